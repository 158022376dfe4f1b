"""EnvPool and environments that are vectorised themselves, against plain Gymnasium."""

import copy
import json
import sys
import tempfile
from pathlib import Path

import envpool
import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Counting, encoding_of, small_agent
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from support import both, parameters, same
from torture.processes import Fork

from klrl.agents import PPO, PPOConfig
from klrl.experience import Collector, make_vector_env
from klrl.experience.engines import NO_LIMIT
from klrl.experience.environments import declared_mode
from klrl.policy.distributions import Categorical
from klrl.run.seeding import environment_seeds
from klrl.scripts.main import main

ENGINES = ["envpool", "vector_entry_point"]
every_engine = pytest.mark.parametrize("engine", ENGINES)
every_task = pytest.mark.parametrize(
    ("engine", "env"),
    [("envpool", id) for id in ("CartPole-v1", "Pendulum-v1", "HalfCheetah-v4")]
    + [("vector_entry_point", "CartPole-v1")],
)


def changed(id, /, **fields):
    """The registered EnvSpec with other fields."""
    spec = copy.deepcopy(gym.spec(id))
    for name, value in fields.items():
        setattr(spec, name, value)
    return spec


def collect(envs, n_steps, seed=0):
    """A batch of uniformly random actions, and the actions that were executed ``[T, N, *A]``."""
    generator, space, executed = np.random.default_rng(seed), envs.single_action_space, []

    def act(observation):
        if isinstance(space, gym.spaces.Discrete):
            executed.append(generator.integers(space.n, size=envs.num_envs))
        else:
            size = (envs.num_envs, *space.shape)
            executed.append(generator.uniform(space.low, space.high, size).astype(space.dtype))
        return torch.from_numpy(executed[-1]), executed[-1], Categorical(torch.zeros(envs.num_envs, 2))

    try:
        return Collector(envs, environment_seeds(seed), encoding_of(envs)).collect(act, n_steps), np.array(executed)
    finally:
        envs.close()


def episodes(batch, i):
    """First and last row of every finished episode of environment ``i``; NEXT_STEP: a dummy row lies between two."""
    last = np.flatnonzero(batch.ended[:, i])
    return zip([0, *(last[:-1] + 2)], last, strict=True)


# -- the data -----------------------------------------------------------------------------------


@every_task
def test_an_agent_sees_gymnasiums_spaces_whatever_the_engine(engine, env):
    envs, sync = (make_vector_env(env, 3, mode) for mode in (engine, "sync"))
    assert envs.num_envs == 3
    assert declared_mode(envs) is AutoresetMode.NEXT_STEP
    for name in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(envs, name) == getattr(sync, name)
    envs.close()


@every_task
def test_every_end_is_followed_by_one_step_that_counts_nowhere(engine, env):
    batch, _ = collect(make_vector_env(changed(env, max_episode_steps=15), 3, engine), 100)
    assert batch.ended.any(dim=0).all()
    assert torch.equal(batch.valid[1:], ~batch.ended[:-1])
    assert batch.valid[0].all()
    assert (batch.rewards[~batch.valid] == 0).all()
    assert not batch.ended[~batch.valid].any()
    assert max(e.length for e in batch.episodes) == 15


@every_engine
def test_cartpole_replayed_by_gymnasium_from_the_first_observation_is_the_same_episode(engine):
    batch, executed = collect(make_vector_env(changed("CartPole-v1", max_episode_steps=20), 4, engine), 300)
    judge, replayed = gym.make("CartPole-v1").unwrapped, []
    seen = torch.cat([batch.observations, batch.next_observations[None]]).numpy()
    for i in range(4):
        for first, last in episodes(batch, i):
            judge.reset()
            judge.state = tuple(seen[first, i].astype(float))
            total, length = 0.0, last - first + 1
            for t in range(first, last + 1):
                observation, reward, fell, _, _ = judge.step(executed[t, i])
                np.testing.assert_allclose(observation, seen[t + 1, i], rtol=1e-4, atol=1e-5)
                assert reward == batch.rewards[t, i]
                if engine == "envpool" and t == first + 19:
                    fell = False  # see test_envpool_calls_a_termination_in_the_step_of_the_time_limit_a_truncation
                assert fell == batch.terminated[t, i]
                total += reward
            assert batch.truncated[last, i] == (not fell)
            assert length == 20 or fell
            replayed.append((i, total, length))
    assert len(replayed) > 30
    assert batch.truncated.any()
    assert batch.terminated.any()
    assert sorted(replayed) == sorted((e.env_index, e.episode_return, e.length) for e in batch.episodes)


def test_pendulum_is_truncated_after_200_steps_and_bootstraps_from_where_gymnasium_arrives():
    batch, executed = collect(make_vector_env("Pendulum-v1", 2, "envpool"), 405)
    assert [(e.length, e.env_index) for e in batch.episodes] == [(200, 0), (200, 1)] * 2
    assert not batch.terminated.any()
    assert batch.truncated.nonzero().tolist() == [[199, 0], [199, 1], [400, 0], [400, 1]]
    judge, seen = gym.make("Pendulum-v1").unwrapped, batch.observations.double().numpy()
    judge.reset()
    arrived = np.zeros((405, 2, 3))
    for t, i in batch.valid.nonzero().tolist():
        judge.state = np.array([np.arctan2(seen[t, i, 1], seen[t, i, 0]), seen[t, i, 2]])
        arrived[t, i], reward, _, _, _ = judge.step(executed[t, i])
        assert reward == pytest.approx(float(batch.rewards[t, i]), abs=1e-4)
    # At its speed limit of 8, EnvPool's pendulum has turned by the speed before the limit, Gymnasium's by 8.
    free = batch.valid.numpy() & (np.abs(arrived[..., 2]) < 8)
    assert free.sum() > 780
    assert free[batch.truncated.numpy()].all()
    value = batch.next_values(batch.observations.sum(-1), lambda x: x.sum(-1)).numpy()
    np.testing.assert_allclose(value[free], arrived.sum(-1)[free], atol=1e-4)
    np.testing.assert_allclose(batch.final_observations, arrived[batch.truncated.numpy()], atol=1e-4)
    for e, rows in zip(batch.episodes, (slice(200), slice(200), slice(201, 401), slice(201, 401)), strict=True):
        assert e.episode_return == pytest.approx(float(batch.rewards[rows, e.env_index].double().sum()), abs=1e-2)


@pytest.mark.parametrize("settings", [{}, {"ctrl_cost_weight": 0.5, "frame_skip": 2}], ids=["registered", "changed"])
@pytest.mark.parametrize("version", ["v4", "v5"])
def test_every_halfcheetah_step_is_gymnasiums_from_the_same_state(version, settings):
    if version == "v4":
        settings = {k: v for k, v in settings.items() if k != "frame_skip"}  # v4 has no such argument
    spec = changed(f"HalfCheetah-{version}", kwargs=settings, max_episode_steps=70)
    envs, judge, generator = make_vector_env(spec, 2, "envpool"), gym.make(spec).unwrapped, np.random.default_rng(0)
    judge.reset()
    before, _ = envs.reset(seed=[1, 2])
    resetting = np.zeros(2, dtype=bool)
    for t in range(200):
        action = generator.uniform(-1, 1, (2, 6)).astype(np.float32)
        after, reward, terminated, truncated, _ = envs.step(action)
        assert not terminated.any()
        assert truncated.tolist() == [t % 71 == 69] * 2
        for i in np.flatnonzero(~resetting):
            judge.set_state(np.concatenate([[0.0], before[i, :8]]), before[i, 8:])
            observation, expected, *_ = judge.step(action[i])
            np.testing.assert_allclose(after[i], observation, rtol=1e-5, atol=1e-5)
            assert reward[i] == pytest.approx(expected, abs=1e-5)
        before, resetting = after, truncated
    envs.close()


def test_envpool_calls_a_termination_in_the_step_of_the_time_limit_a_truncation():
    push = np.ones(1, dtype=np.int64)
    for limit in (NO_LIMIT, 8):
        envs = make_vector_env(changed("CartPole-v1", max_episode_steps=limit), 1, "envpool")
        envs.reset(seed=[3])
        steps = [envs.step(push)[2:4] for _ in range(8)]
        ends = [(bool(terminated[0]), bool(truncated[0])) for terminated, truncated in steps]
        envs.close()
        assert ends == [(False, False)] * 7 + [(limit == NO_LIMIT, limit == 8)]


def test_no_time_limit_stays_no_time_limit():
    batch, _ = collect(make_vector_env(changed("Pendulum-v1", max_episode_steps=None), 1, "envpool"), 450)
    assert not batch.ended.any()
    envs = make_vector_env(changed("CartPole-v1", max_episode_steps=None), 1, "vector_entry_point")
    assert envs.unwrapped.max_episode_steps > 1_000_000


# -- seeds --------------------------------------------------------------------------------------


def everything(batch):
    names = ("observations", "rewards", "terminated", "truncated", "valid")
    return np.concatenate([getattr(batch, n).double().numpy().reshape(len(batch.valid), -1) for n in names], axis=1)


def rollout(pool, n, n_steps=150):
    """What every step of ``n`` environments returned, without the infos, ``[T, n, ...]``."""
    action = np.zeros((n, *pool.single_action_space.shape), pool.single_action_space.dtype)
    steps = (pool.step(action)[:4] for _ in range(n_steps))
    return np.array([np.concatenate([np.reshape(x, (n, -1)) for x in step], axis=1) for step in steps])


@every_task
def test_the_same_seed_gives_the_same_rollout_bit_for_bit_and_another_seed_another_one(engine, env):
    one, again, other = (everything(collect(make_vector_env(env, 4, engine), 150, seed)[0]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.isin(one[0], other[0]).all()


@pytest.mark.parametrize("env", ["CartPole-v1", "HalfCheetah-v4"])
def test_an_envpool_environment_depends_neither_on_its_neighbours_nor_on_threads(env):
    seeds = [0, 5, 2**31 + 7, 2**32 - 1]
    four, two = make_vector_env(env, 4, "envpool"), make_vector_env(env, 2, "envpool")
    first, _ = four.reset(seed=seeds)
    two.reset(seed=seeds[:2])
    assert len({row.tobytes() for row in first}) == 4
    reference = rollout(four, 4)
    np.testing.assert_array_equal(rollout(two, 2), reference[:, :2])
    for threads in (1, 4):
        signed = np.array(seeds, dtype=np.uint32).view(np.int32)
        pool = envpool.make(env, env_type="gymnasium", num_envs=4, num_threads=threads, seed=signed)
        pool._gym_observation_space = four.single_observation_space  # its own would warn about its bounds
        pool.reset()
        np.testing.assert_array_equal(rollout(pool, 4), reference)


def test_envpool_resets_with_one_seed_with_none_and_again():
    envs = make_vector_env("CartPole-v1", 2, "envpool")
    unseeded, _ = envs.reset()
    first, _ = envs.reset(seed=7)
    following, _ = envs.reset()
    np.testing.assert_array_equal(envs.reset(seed=[7, 8])[0], first)
    np.testing.assert_array_equal(envs.reset()[0], following)
    assert len({x.tobytes() for x in (unseeded, first, following)}) == 3


# -- what is refused ----------------------------------------------------------------------------

WRAPPED = gym.wrappers.TimeAwareObservation(gym.make("CartPole-v1")).spec


@pytest.mark.parametrize(
    ("engine", "env", "message"),
    [
        ("envpool", "CartPoll-v1", "env = 'CartPoll-v1': unknown; did you mean CartPole-v1"),
        ("envpool", "Engines/CartPole-v1", "'Engines/CartPole-v1' is not one of EnvPool's .*; allowed: .*CartPole-v1"),
        ("envpool", Counting, "'envpool' and env = <class .*; allowed: an id or EnvSpec without wrappers"),
        ("envpool", Counting(), "'envpool' and env = <.*; allowed: an id or EnvSpec without wrappers"),
        ("envpool", WRAPPED, "'envpool' and env = EnvSpec CartPole-v1 with wrappers; allowed: an id"),
        ("envpool", changed("CartPole-v1", kwargs={"sutton_barto_reward": 1}), "sutton_barto_reward = 1; allowed"),
        ("envpool", changed("HalfCheetah-v5", kwargs={"xml_file": "half_cheetah.xml"}), "xml_file = 'half_.*; allowed"),
        ("envpool", changed("HalfCheetah-v5", kwargs={"frame_skip": 2.5}), "'frame_skip': 2.5.*; allowed .*_skip': 5"),
        ("envpool", changed("CartPole-v1", entry_point=Counting), "entry_point = <class .*; allowed: 'gymnasium"),
        ("vector_entry_point", "Acrobot-v1", "'Acrobot-v1' has no vector_entry_point; allowed: "),
        ("vector_entry_point", Counting, "'vector_entry_point' and env = <class .*; allowed"),
        ("vector_entry_point", WRAPPED, "'vector_entry_point' and env = EnvSpec CartPole-v1 with wrappers; allowed"),
        ("vector_entry_point", changed("CartPole-v1", kwargs={"gravity": 1}), "unexpected keyword argument 'gravity'"),
        ("vector_entry_point", "Engines/CartPole-v1", "has spaces .*; allowed: Gymnasium's"),
    ],
)  # fmt: skip
def test_what_an_engine_does_not_have_is_refused_in_one_line(engine, env, message, monkeypatch):
    other = changed("CartPole-v1", id="Engines/CartPole-v1", entry_point=Counting, namespace="Engines")
    monkeypatch.setitem(gym.registry, other.id, other)
    with pytest.raises(ValueError, match=message) as error:
        PPO(env, PPOConfig(vectorization_mode=engine))
    assert "\n" not in str(error.value)


def test_spaces_that_are_not_gymnasiums_are_refused(monkeypatch):
    monkeypatch.setitem(gym.registry, "CartPole-v1", changed("CartPole-v1", entry_point=Counting))
    with pytest.raises(ValueError, match=r"EnvPool's spaces are .*Discrete.2.*; allowed: Gymnasium's, .*Discrete.4"):
        make_vector_env("CartPole-v1", 2, "envpool")


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ValueError, match=r"vectorization_mode = 'envpool': .*; allowed: pip install 'klrl\[envpool\]'"):
        make_vector_env("CartPole-v1", 2, "envpool")


# -- agents -------------------------------------------------------------------------------------


@both
@every_task
def test_a_saved_agent_goes_on_in_the_same_engine(agent_class, engine, env, tmp_path):
    agent = small_agent(agent_class, env, vectorization_mode=engine).learn(128)
    again = agent_class.load(agent.save(tmp_path / "agent"))
    agent.set_env(env)  # new episodes, as after load
    for a in (agent, again):
        a.learn(128)
        assert a.config.vectorization_mode == a.describe()["config"]["vectorization_mode"] == engine
        assert declared_mode(a.training_envs.envs) is AutoresetMode.NEXT_STEP  # of klrl's own engines only these
        a.close()
    assert same(parameters(agent), parameters(again))


def test_set_env_takes_a_vector_env_of_another_engine_and_refuses_a_function():
    agent = small_agent(PPO, "CartPole-v1", vectorization_mode="envpool")
    with pytest.raises(ValueError, match="'envpool' and env = <function"):
        agent.set_env(lambda: gym.make("CartPole-v1"))
    agent.set_env(SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3))
    assert agent.learn(96).config.n_envs == 3


def klrl(words, cwd):
    with tempfile.TemporaryDirectory() as scratch:
        return Fork(["-m", "klrl.scripts.main", *words.split()], Path(scratch), cwd=cwd).wait()


def test_the_command_line_trains_in_envpool_and_evaluates_in_gymnasium(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # in this process, which has imported both engines
    flags = "--env HalfCheetah-v4 --vectorization-mode envpool --total-timesteps 2048 --eval-episodes 1 --run-dir run"
    main(["train", "ppo", *flags.split(), "--n-epochs", "1"])
    said = capsys.readouterr().out
    assert "preset for HalfCheetah-v4" in said
    assert "evaluation: mean return" in said
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert saved["config"]["vectorization_mode"] == "envpool"
    assert saved["versions"]["envpool"]
    main(["evaluate", "run", "--episodes", "1"])
    assert "mean return" in capsys.readouterr().out


def test_the_command_line_refuses_an_id_that_the_engine_lacks_before_anything_is_written(tmp_path):
    result = klrl("train trpo --env Acrobot-v1 --vectorization-mode vector_entry_point", tmp_path)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "has no vector_entry_point; allowed" in result.err
    assert not list(tmp_path.iterdir())
