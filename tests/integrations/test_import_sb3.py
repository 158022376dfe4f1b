"""``klrl import-sb3``: the same parameters, the same outputs, and an agent that goes on."""

import numpy as np
import pytest
import torch
from sb3_models import save_model

from klrl.agents import PPO, TRPO, PPOConfig, load_agent
from klrl.policy.distributions import DiagGaussian
from klrl.scripts.import_sb3 import main as import_sb3
from klrl.scripts.train import main as train

pytestmark = pytest.mark.usefixtures("one_reader")


@pytest.mark.parametrize("name", ["relu", "elu", "pendulum", "a2c", "linear", "multi", "bits", "choices", "masked"])
def test_an_agent_has_the_parameters_and_the_outputs(name, saved, tmp_path, capsys):
    model = saved(name)
    more = ["--vecnormalize", str(model.vec_normalize)] if model.vec_normalize else []
    import_sb3([str(model.path), "-o", str(tmp_path / "agent"), *more])
    assert "; their outputs in 256 states differ by at most " in capsys.readouterr().out
    agent = load_agent(tmp_path / "agent")
    assert agent.config.algorithm == ("trpo" if name == "pendulum" else "ppo")
    theirs = sorted((x.detach() for x in model.model.policy.parameters()), key=key)
    mine = sorted((x.detach() for net in (agent.actor, agent.critic) for x in net.parameters()), key=key)
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    space = model.model.observation_space
    space.seed(2)
    states = np.stack([np.asarray(space.sample()) for _ in range(100)])
    states = np.clip(states, -3.0, 3.0) if states.dtype.kind == "f" else states
    masks = {"action_masks": np.ones((100, agent.encoding.n_mask))} if name == "masked" else {}
    record = agent.distribution(states, **masks)
    own = model.own(states)
    if isinstance(record, DiagGaussian):
        mine = [record.mean, record.log_std.exp()]
    elif name == "bits":
        mine = [record.logits]
    else:
        sizes = getattr(record, "nvec", (record.logits.shape[-1],))
        mine = [torch.cat([x.log_softmax(-1) for x in record.logits.split(list(sizes), -1)], -1)]
    for a, b in zip(mine, own, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    values = agent.critic(agent.normalized(torch.from_numpy(agent.encoding(states, *masks.values()))))
    torch.testing.assert_close(values.detach(), model.own_values(states), rtol=1e-6, atol=1e-6)


def key(x):
    return tuple(x.shape), float(x.double().sum()), float(x.flatten()[0])


def test_it_goes_on_under_a_trust_region_where_it_was(saved, tmp_path):
    model = saved("pendulum")
    words = [str(model.path), "-o", str(tmp_path / "agent"), "--env", "Pendulum-v1"]
    import_sb3([*words, "--vecnormalize", str(model.vec_normalize)])
    agent = TRPO.load(tmp_path / "agent")
    assert (agent.num_timesteps, agent.config.target_kl) == (256, 0.01)
    assert (agent.config.n_steps, agent.config.n_envs, agent.config.scale_rewards) == (256, 1, True)
    found = model.model.get_vec_normalize_env()
    assert agent.normalizer.moments.count == round(found.obs_rms.count)
    torch.testing.assert_close(float(agent.return_scaler.moments.variance), float(found.ret_rms.var))
    agent.learn(512)
    assert [row["drift/kl"] <= 0.01 for row in agent.history] == [True, True]
    assert agent.history[0]["drift/kl_initial"] < 0.02  # the first policy is the imported one
    assert agent.num_timesteps == 768


def test_it_is_a_reference_and_a_start(saved, tmp_path):
    import_sb3([str(saved("a2c").path), "-o", str(tmp_path / "agent")])
    small = {"n_envs": 2, "n_steps": 32, "batch_size": 32}
    config = PPOConfig(**small, scale_actions=False, reference=str(tmp_path / "agent"))
    agent = PPO("Pendulum-v1", config, seed=0).learn(64)
    assert agent.history[0]["drift/kl_reference"] > 0.0
    words = ["--n-envs", "2", "--n-steps", "32", "--batch-size", "32", "--preset", "none", "--eval-episodes", "0"]
    run = ["ppo", "--env", "Pendulum-v1", "--start-from", str(tmp_path / "agent"), "--run-dir", str(tmp_path / "run")]
    train([*run, "--trust-region", "clip+constraint", "--target-kl", "0.01", "--total-timesteps", "64", *words])
    started = PPO.load(tmp_path / "run")
    assert started.history[0]["drift/kl_initial"] == pytest.approx(started.history[0]["drift/kl"], abs=0.02)
    assert started.config.scale_actions is False


def test_settings_that_both_have_are_carried(tmp_path):
    model = save_model("cartpole", tmp_path)
    model.model.target_kl = 0.02
    model.model.gamma, model.model.ent_coef = 0.9, 0.01
    model.model.save(model.path)
    import_sb3([str(model.path), "-o", str(tmp_path / "agent")])
    config = PPO.load(tmp_path / "agent").config
    assert (config.gamma, config.ent_coef, config.target_kl, config.trust_region) == (
        0.9,
        0.01,
        0.02,
        "clip+constraint",
    )
    assert (config.n_steps, config.n_epochs, config.clip_range, config.batch_size) == (32, 1, 0.2, 32)


def test_a_variance_near_zero_keeps_its_scale(saved, tmp_path):
    """Where klrl and VecNormalize add different small numbers to a variance."""
    model = save_model("pendulum", tmp_path)
    envs = model.model.get_vec_normalize_env()
    envs.obs_rms.mean, envs.obs_rms.var = np.array([0.5, 0.0, 0.1]), np.array([1e-9, 9.99e-4, 0.3])
    envs.save(tmp_path / "statistics.pkl")
    import_sb3([str(model.path), "-o", str(tmp_path / "agent"), "--vecnormalize", str(tmp_path / "statistics.pkl")])
    agent = load_agent(tmp_path / "agent")
    states = np.array([[0.5001, 0.02, -3.0], [0.4, -0.01, 1.0], [0.5, 0.0, 0.1]], np.float32)
    expected = torch.from_numpy(envs.normalize_obs(states))
    torch.testing.assert_close(agent.normalized(torch.from_numpy(states)), expected, rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "words", "line"),
    [
        ("pendulum", [], "was trained on a VecNormalize, whose statistics its zip does not hold; allowed: "),
        ("cartpole", ["--env", "Pendulum-v1"], "env = Pendulum-v1: its spaces differ; allowed: (Box([-4.8"),
        ("cartpole", ["--env", "NoSuch-v0"], "env = 'NoSuch-v0': "),
    ],
)
def test_what_klrl_does_not_have_is_refused_in_one_line(name, words, line, saved, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        import_sb3([str(saved(name).path), "-o", str(tmp_path / "agent"), *words])
    said = capsys.readouterr().err
    assert (stop.value.code, said.count("\n")) == (2, 1)
    assert line in said
    assert not (tmp_path / "agent").exists()
