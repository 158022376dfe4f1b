"""An interrupted and resumed training is the uninterrupted one: parameters, rows, points, episodes, to the bit."""

import csv
import json
import shutil
import signal

import gymnasium as gym
import numpy as np
import pytest
from environments import SMALL, Broken, Counting, Noise, Sampling, box, small_agent
from gymnasium.envs.registration import EnvSpec
from support import Nowhere, every_agent, parameters, same, slots, without_time
from test_command_line import klrl
from test_reproducibility import Remembering, Unseeded
from test_run_directory import Curriculum, NowAndThen
from test_tensorboard_writer import shown
from torture.processes import Fork

from klrl.agents import PPO, TRPO, PPOConfig
from klrl.agents.saving import history as saved_history
from klrl.native import available
from klrl.run import Callback, checkpoint
from klrl.run.directory import RunDirectory
from klrl.run.lock import Lock
from klrl.scripts.main import main

TOTAL = 64 * 6


class Interrupt(Callback):
    """Ctrl-C in the middle of something, in the update with this number."""

    def __init__(self, where, update=3):
        self.where, self.update = where, update

    def _interrupt(self, agent, where):
        if where == self.where and agent.n_updates == self.update:
            self.where = None
            raise KeyboardInterrupt

    def on_update_start(self, agent, batch):
        self._interrupt(agent, "update")

    def on_minibatch_end(self, agent, metrics):
        self._interrupt(agent, "minibatch")

    def on_epoch_end(self, agent, epoch):
        self._interrupt(agent, "epoch")

    def on_update_end(self, agent, batch, metrics):
        self._interrupt(agent, "end")


def rows(path):
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "time/fps"} for row in csv.DictReader(file)]


def state(run):
    """Everything a run has kept but times, as text or bits."""
    tensors, saved = checkpoint.read(run)
    history = [row | {"time/fps": 0.0} for row in saved_history(saved["history"], tensors)]
    tensors = {name: x for name, x in tensors.items() if not name.startswith("history.")}
    points = {tag: values for tag, values in shown(run).items() if tag != "time/fps"}
    return {
        "tensors": {name: x.numpy().tobytes() for name, x in tensors.items()},
        "saved": repr(saved),
        "history": repr(history),
        "metrics": rows(run / "metrics.csv"),
        "episodes": (run / "episodes.csv").read_text(),
        "points": points,
    }


def interrupted(agent, run, where, **keep):
    with pytest.raises(KeyboardInterrupt):
        agent.learn(TOTAL, [Interrupt(where), RunDirectory(run, **keep)])


ENVIRONMENTS = {
    "CartPole-v1": "CartPole-v1",
    "Pendulum-v1": "Pendulum-v1",
    "Remembering": lambda: Remembering(box(1)),
    "masks": lambda: Sampling(gym.spaces.Discrete(3), gym.spaces.Discrete(4), masks="info"),
}
PLACES = ["update", "minibatch", "end"]
"""Where in an update an interrupt comes: with CartPole in all of them, with every other environment in one."""


@every_agent
@pytest.mark.parametrize(
    ("env", "places"), list(zip(ENVIRONMENTS, [PLACES, *([place] for place in PLACES)], strict=True))
)
def test_the_resumed_run_is_the_uninterrupted_one(agent_class, env, places, tmp_path):
    settings = {"seed": 4, "action_mask": "info" if env == "masks" else "auto", "rebuild_envs": env == "Remembering"}
    whole = small_agent(agent_class, ENVIRONMENTS[env], **settings).learn(TOTAL, run_dir=tmp_path / "whole")
    given = None if isinstance(ENVIRONMENTS[env], str) else ENVIRONMENTS[env]
    for where in places:
        run = tmp_path / where
        interrupted(small_agent(agent_class, ENVIRONMENTS[env], **settings), run, where, checkpoint_every=128)
        agent = agent_class.load(run, given).resume(run_dir=run)
        assert same(parameters(agent), parameters(whole)), where
        assert same(slots(agent), slots(whole)), where
        assert without_time(agent) == without_time(whole), where
        assert state(run) == state(tmp_path / "whole"), where


@pytest.mark.parametrize("update", [1, 2, 3, 4, 5])
def test_metrics_that_come_and_go_are_resumed_in_their_columns(tmp_path, update):
    def callbacks():
        return [Curriculum(), NowAndThen()]

    whole = small_agent(PPO).learn(TOTAL, callbacks(), run_dir=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        small_agent(PPO).learn(TOTAL, [*callbacks(), Interrupt("end", update)], run_dir=tmp_path / "run")
    for path in sorted((tmp_path / "run/checkpoints").iterdir())[1:]:
        shutil.rmtree(path)  # killed before that was written: rows and columns are taken back
    agent = PPO.load(tmp_path / "run").resume(callbacks(), run_dir=tmp_path / "run")
    assert same(parameters(agent), parameters(whole))
    assert without_time(agent) == without_time(whole)
    header = (tmp_path / "whole/metrics.csv").read_text().partition("\n")[0]
    assert (tmp_path / "run/metrics.csv").read_text().partition("\n")[0] == header
    assert state(tmp_path / "run") == state(tmp_path / "whole")


@pytest.mark.parametrize("settings", [{"trust_region": "adaptive-penalty"}, {"learning_rate_schedule": "constant"}])
def test_schedules_and_coefficients_go_on(settings, tmp_path):
    whole = small_agent(PPO, **settings).learn(TOTAL)
    interrupted(small_agent(PPO, **settings), tmp_path / "run", "epoch")
    assert without_time(PPO.load(tmp_path / "run").resume()) == without_time(whole)


def test_two_interruptions_are_no_worse_than_one(tmp_path):
    whole = small_agent(TRPO).learn(TOTAL, run_dir=tmp_path / "whole")
    interrupted(small_agent(TRPO), tmp_path / "run", "minibatch")
    with pytest.raises(KeyboardInterrupt):
        TRPO.load(tmp_path / "run").resume(Interrupt("minibatch", update=5), run_dir=tmp_path / "run")
    agent = TRPO.load(tmp_path / "run").resume(run_dir=tmp_path / "run")
    assert without_time(agent) == without_time(whole)
    assert state(tmp_path / "run") == state(tmp_path / "whole")


def test_a_run_in_processes_goes_on_in_one_and_the_other_way_round(tmp_path):
    whole = small_agent(PPO).learn(TOTAL)
    for first, then in (("async", "sync"), ("sync", "async")):
        agent = small_agent(PPO, vectorization_mode=first)
        interrupted(agent, tmp_path / first, "minibatch")
        agent.close()
        tensors, saved = checkpoint.read(tmp_path / first)
        saved["config"]["vectorization_mode"] = then
        loaded = PPO.load(checkpoint.write(tmp_path / f"then {then}", tensors, saved)).resume()
        loaded.close()
        assert without_time(loaded) == without_time(whole)


def test_an_agent_that_was_loaded_and_saved_again_is_still_where_it_was(tmp_path):
    whole = small_agent(PPO).learn(TOTAL)
    interrupted(small_agent(PPO), tmp_path / "run", "minibatch")
    again = PPO.load(tmp_path / "run").save(tmp_path / "again")
    assert without_time(PPO.load(again).resume()) == without_time(whole)


def test_learning_on_after_load_is_learning_on(tmp_path):
    agent = small_agent(PPO).learn(128)
    loaded = PPO.load(agent.save(tmp_path / "agent"))
    assert without_time(loaded.learn(128)) == without_time(agent.learn(128))


def test_a_given_environment_goes_on_in_its_episodes_and_set_env_begins_new_ones(tmp_path):
    agent = small_agent(PPO, lambda: Noise(box(1)))
    path = agent.learn(128).save(tmp_path / "agent")
    agent.learn(128)
    given, put_in = PPO.load(path, lambda: Noise(box(1))), PPO.load(path)
    put_in.set_env(lambda: Noise(box(1)))
    assert without_time(given.learn(128)) == without_time(agent) != without_time(put_in.learn(128))


def test_an_environment_that_does_not_come_back_begins_new_episodes_with_a_warning(tmp_path):
    class Different(Noise):
        def _observe(self):
            return super()._observe() + np.float32(1.0)

    path = small_agent(PPO, lambda: Noise(box(1))).learn(128).save(tmp_path / "agent")
    loaded = PPO.load(path, lambda: Different(box(1)))
    expected = r"environment 0 did not come back to where it was, \d+ steps into its episode 3: new episodes begin"
    with pytest.warns(RuntimeWarning, match=expected):
        loaded.learn(64)
    assert loaded.num_timesteps == 192


def test_there_must_be_a_training_to_resume():
    with pytest.raises(ValueError, match=r"the agent has no training to resume; allowed: learn\(total_timesteps\)"):
        small_agent(PPO).resume()


def test_a_finished_training_is_resumed_by_doing_nothing(tmp_path):
    agent = small_agent(PPO).learn(128, run_dir=tmp_path)
    before = state(tmp_path)
    assert without_time(PPO.load(tmp_path).resume(run_dir=tmp_path)) == without_time(agent)
    assert state(tmp_path) == before


def test_rows_that_are_not_whole_or_lost_are_written_again(tmp_path):
    small_agent(PPO).learn(TOTAL, run_dir=tmp_path / "whole")
    interrupted(small_agent(PPO), tmp_path / "run", "minibatch")
    metrics = tmp_path / "run/metrics.csv"
    metrics.write_text(metrics.read_text()[:-150])
    PPO.load(tmp_path / "run").resume(run_dir=tmp_path / "run")
    assert state(tmp_path / "run") == state(tmp_path / "whole")


def test_a_number_that_is_none_leaves_the_last_update_and_the_step_it_came_from(tmp_path):
    class Later(Broken):
        """Breaks in its fourth episode."""

        def step(self, action):
            self.what = "reward" if self.episode == 3 else None
            return super().step(action)

    agent = small_agent(PPO, Later(None, 0, length=10))
    with pytest.raises(FloatingPointError, match=r"^reward of environment 0 is nan in step 1 of its episode 3"):
        agent.learn(TOTAL, run_dir=tmp_path)
    with np.load(tmp_path / "non-finite.npz") as step:
        np.testing.assert_array_equal(step["observation"], [[0.0, 3.0, 0.0, 0.0]])
        assert step["environment"] == 0


def test_where_the_step_cannot_be_written_the_number_that_is_none_is_told_all_the_same(tmp_path):
    class InTheWay(Callback):
        def on_training_start(self, agent, total_timesteps):
            (tmp_path / "non-finite.npz").mkdir()

    expected = r"^reward of environment 0 is nan .*; the step could not be written: .*non-finite\.npz"
    with pytest.raises(FloatingPointError, match=expected):
        small_agent(PPO, Broken("reward", 0)).learn(TOTAL, [RunDirectory(tmp_path), InTheWay()])


# The command.
QUICK = ["--env", "CartPole-v1", "--n-envs", "2", "--n-steps", "32", "--batch-size", "32", "--eval-episodes", "1"]
QUICK += ["--actor-hidden-sizes", "8", "--critic-hidden-sizes", "8", "--checkpoint-every", "256"]


def test_a_killed_run_is_finished_by_klrl_resume(tmp_path):
    words = ["train", "trpo", *QUICK, "--total-timesteps", "1600"]
    assert klrl(*words, "--run-dir", tmp_path / "whole").returncode == 0
    dying = ["-m", "torture.child", "die-saving", "30"]  # while it writes one of six checkpoints
    assert Fork([*dying, *words, "--run-dir", tmp_path / "run"], tmp_path).wait().code == -signal.SIGKILL
    assert len([*tmp_path.glob("run/checkpoints/0*/MANIFEST.json")]) > 1
    resumed = klrl("resume", tmp_path / "run")
    assert resumed.returncode == 0, resumed.stderr
    assert "evaluation: mean return" in resumed.stdout
    assert state(tmp_path / "run") == state(tmp_path / "whole")
    again = klrl("resume", tmp_path / "run")
    assert (again.returncode, again.stdout) == (0, f"{tmp_path / 'run'}: finished, 1,600 steps\n")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and everything that it kept."""
    path = tmp_path_factory.mktemp("trained") / "run"
    with pytest.raises(SystemExit):
        main(["train", "ppo", *QUICK, "--total-timesteps", "256", "--run-dir", str(path), "--gamma", "2"])
    main(["train", "ppo", *QUICK, "--total-timesteps", "256", "--run-dir", str(path)])
    return path, state(path)


@pytest.fixture
def run(trained, tmp_path):
    """A run that was interrupted before its first checkpoint."""
    path, whole = trained
    shutil.copytree(path, tmp_path / "run")
    for file in (tmp_path / "run/checkpoints").rglob("*"):
        if file.is_file():
            file.unlink()
    return tmp_path / "run", whole


def test_a_run_without_a_checkpoint_starts_anew(run):
    path, whole = run
    main(["resume", str(path)])
    assert state(path) == whole


def test_a_run_that_spent_its_budget_is_finished(tmp_path, capsys):
    main(["train", "trpo", *QUICK, "--run-dir", str(tmp_path / "run"), "--kl-budget", "0.02"])
    main(["resume", str(tmp_path / "run")])
    assert "finished, drift/kl_sum = " in capsys.readouterr().out


def test_a_run_whose_environment_was_not_described_goes_on_in_the_one_that_is_given(run):
    """As those of environments that are registered with tuples, before files had these."""
    path, whole = run
    main(["resume", str(path)])
    edit(path, env=None)
    main(["resume", str(path), "--env", "CartPole-v1"])
    assert state(path) == whole


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda run: (run / "config.json").unlink(), "no config.json there, so there is no run to resume; allowed"),
        (lambda run: (run / "config.json").write_text("[]"), "config.json is not as a run writes it: "),
        (lambda run: (run / "config.json").write_text("[" * 10_000), "config.json is not as a run writes it: "),
        (
            lambda run: (run / "config.json").write_text(" " * 2**21),
            "config.json has 2,097,152 bytes; allowed: at most",
        ),
        (lambda run: (run / "config.json").write_text("{"), "config.json is not as a run writes it: "),
        (
            lambda run: edit(run, env={"id": "Mine-v0", "kwargs": {}, "max_episode_steps": None}),
            "allowed: --env MODULE:M",
        ),
        (lambda run: edit(run, env=None), "env = one without an id; allowed: --env ID"),
        (lambda run: edit(run, agent="dqn"), "holds agent 'dqn'; allowed: ppo, trpo, npg"),
        (lambda run: edit(run, checkpoint_every=0), "checkpoint_every = 0; allowed: an integer >= 1 or none"),
        (lambda run: edit(run, config={}), "config.json is not as a run writes it: KeyError"),
        (lambda run: edit(run, config=7), "config.json is not as a run writes it: config = 7"),
        (lambda run: edit(run, total_timesteps="x"), "config.json is not as a run writes it: total_timesteps = x"),
        (lambda run: edit(run, total_timesteps=0), "total_timesteps = 0; allowed: an integer >= 1"),
        (lambda run: edit(run, seed={}), "config.json is not as a run writes it: seed = {}"),
        (lambda run: edit(run, agent=["ppo"]), "config.json is not as a run writes it: agent = ['ppo']"),
        (lambda run: edit(run, versions=[1]), "config.json is not as a run writes it: versions = [1]"),
        (lambda run: edit(run, env="CartPole-v1"), "config.json is not as a run writes it: env = CartPole-v1"),
        (lambda run: edit(run, env={"id": "CartPole-v1"}), "allowed: an id, keyword arguments and a number of steps"),
        (
            lambda run: finish_and_edit(run),
            "config.json says learning_rate = 0.5, the saved agent 0.001; allowed: the",
        ),
        (lambda run: edit(run, start_from=["x"]), "config.json is not as a run writes it: start_from = ['x']"),
        (lambda run: relink(run / "config.json", "/dev/zero"), "a link, not a file: "),
    ],
)
def test_what_cannot_be_resumed_is_refused_with_one_line(run, spoil, expected, capsys):
    path, _ = run
    spoil(path)
    with pytest.raises(SystemExit) as stop:
        main(["resume", str(path)])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith("klrl resume: ")
    assert expected in said
    assert said.count("\n") == 1


def finish_and_edit(run):
    main(["resume", str(run)])
    edit(run, config=json.loads((run / "config.json").read_text())["config"] | {"learning_rate": 0.5})


def relink(path, target):
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def edit(run, **changes):
    file = run / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_run_that_is_still_going_is_refused_with_its_process(run, capsys):
    path, _ = run
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    lock = Lock(path)
    for words in (["resume", str(path)], ["train", "ppo", *QUICK, "--run-dir", str(path)]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        assert "is in use by process " in capsys.readouterr().err
    lock.release()
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def test_other_versions_than_then_are_said(run):
    path, _ = run
    edit(
        path, versions={"torch": "1.0", "python": json.loads((path / "config.json").read_text())["versions"]["python"]}
    )
    with pytest.warns(RuntimeWarning, match=r"versions differ, so the run may differ from .*: torch 1\.0 -> "):
        main(["resume", str(path)])


@pytest.mark.skipif(not available(), reason="the kernel was not built")
def test_another_path_than_then_is_said(run, monkeypatch):
    path, _ = run
    level = available()[-1]
    monkeypatch.setenv("KLRL_NATIVE", "off")
    words = (
        rf"paths differ, so the run will differ from .*: .*optimizer kernel \({level}\) -> numpy; "
        rf".*kernel {level} -> off"
    )
    with pytest.warns(RuntimeWarning, match=words):
        main(["resume", str(path)])


def remembering():
    return Remembering(box(1))


NEW_ONES = "if this run is interrupted, klrl resume begins new ones"


@pytest.mark.parametrize(
    ("more", "line", "replay"),
    [
        (
            [],
            "a used environment behaves differently: episodes cannot be played again (--rebuild-envs makes a new one "
            f"for each); {NEW_ONES}",
            "new",
        ),
        (["--rebuild-envs"], "every episode gets a new environment, and nothing that one keeps outlives it", "new"),
        (["--no-seed-every-episode"], f"episodes cannot be played again; {NEW_ONES}", "never"),
        (
            ["--no-try-envs"],
            "it was not tried, so it is unknown whether its episodes can be played again; klrl resume tries",
            "unknown",
        ),
    ],
)
def test_the_first_line_says_whether_episodes_can_be_played_again(more, line, replay, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(gym.registry, "Remembering-v0", EnvSpec("Remembering-v0", remembering))
    words = ["--total-timesteps", "64", "--run-dir", str(tmp_path / "run"), *more]
    main(["train", "ppo", *QUICK, *words, "--env", "Remembering-v0"])
    assert capsys.readouterr().out.splitlines()[0] == f"Remembering-v0: {line}"
    assert json.loads((tmp_path / "run/config.json").read_text())["replay"] == replay


@pytest.mark.parametrize("kept", [True, False], ids=["checkpoint", "none"])
@pytest.mark.parametrize("rebuilt", [True, False])
def test_a_run_with_new_environments_before_there_was_the_setting_goes_on_with_them(
    rebuilt, kept, tmp_path, monkeypatch
):
    """Saved with the field taken out of config and checkpoint, as runs were then."""
    monkeypatch.setitem(gym.registry, "Remembering-v0", EnvSpec("Remembering-v0", remembering))
    settings = {"total_timesteps": 256, "checkpoint_every": 64}
    words = [f"--{k.replace('_', '-')}={v}" for k, v in settings.items()]
    more = ["--rebuild-envs"] if rebuilt else []
    for name in ("whole", "run"):
        main(["train", "ppo", *QUICK, *words, *more, "--env", "Remembering-v0", "--run-dir", str(tmp_path / name)])
    for step in (tmp_path / "run/checkpoints").iterdir():
        if int(step.name) > 128 or not kept:
            shutil.rmtree(step)
        else:
            tensors, data = checkpoint.read(step)
            del data["config"]["rebuild_envs"]
            shutil.rmtree(step)
            checkpoint.write(step, tensors, data)
    config = json.loads((tmp_path / "run/config.json").read_text())
    del config["config"]["rebuild_envs"]
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    main(["resume", str(tmp_path / "run")])
    one, other = (PPO.load(tmp_path / name) for name in ("whole", "run"))
    assert other.config.rebuild_envs
    assert same(parameters(one), parameters(other)) == rebuilt


@every_agent
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_agent_itself_goes_on_as_if_it_had_not_been_interrupted(agent_class, mode, tmp_path):
    whole = small_agent(agent_class, seed=2).learn(TOTAL)
    for where in PLACES:
        agent = small_agent(agent_class, seed=2, vectorization_mode=mode)
        interrupted(agent, tmp_path / where, where)
        agent.resume(run_dir=tmp_path / where)
        agent.close()
        assert without_time(agent) == without_time(whole), where
        assert same(parameters(agent), parameters(whole)), where


@every_agent
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_it_goes_on_where_not_even_the_first_update_was_whole(agent_class, mode):
    class Once(Callback):
        def on_update_start(self, agent, batch):
            raise KeyboardInterrupt

    whole = small_agent(agent_class, seed=2).learn(TOTAL)
    agent = small_agent(agent_class, seed=2, vectorization_mode=mode)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(TOTAL, callback=Once())
    agent.resume()
    agent.close()
    assert same(parameters(agent), parameters(whole))


def test_an_agent_of_before_keeps_its_meaning_when_it_is_saved_again(tmp_path):
    tensors, data = checkpoint.read(small_agent(PPO).learn(64).save(tmp_path / "new"))
    del data["config"]["rebuild_envs"]  # a trial decided then
    old = PPO.load(checkpoint.write(tmp_path / "old", tensors, data))
    assert "rebuild_envs" not in checkpoint.read(old.save(tmp_path / "again"))[1]["config"]


def test_a_region_of_ones_own_is_still_there_after_an_interrupt():
    agent = small_agent(PPO, trust_region=Nowhere())
    with pytest.raises(KeyboardInterrupt):
        agent.learn(TOTAL, Interrupt("minibatch", update=1))
    assert agent.region == Nowhere()
    assert agent.resume().num_timesteps == TOTAL


def test_another_runs_directory_is_refused_and_left_alone(tmp_path):
    small_agent(PPO, seed=1).learn(TOTAL, run_dir=tmp_path / "other")
    before = state(tmp_path / "other")
    agent = small_agent(PPO, seed=2)
    interrupted(agent, tmp_path / "mine", "minibatch")
    with pytest.raises(
        ValueError,
        match=r"config\.json says seed = 1, the saved agent 2; allowed: the directory of the agent's own run",
    ):
        agent.resume(run_dir=tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=r"no config\.json there; allowed: the directory of this run"):
        agent.resume(run_dir=tmp_path / "mistyped")
    assert state(tmp_path / "other") == before


def test_a_run_directory_is_not_used_twice(tmp_path):
    keep = RunDirectory(tmp_path)
    agent = small_agent(PPO).learn(64, keep)
    before = state(tmp_path)
    with pytest.raises(FileExistsError, match="is not empty"):
        agent.learn(64, keep)
    assert state(tmp_path) == before


def test_episodes_of_an_environment_that_cannot_be_played_again_begin_anew_with_a_warning(tmp_path):
    path = small_agent(PPO, lambda: Unseeded(box(1))).learn(128).save(tmp_path / "agent")
    with pytest.warns(RuntimeWarning, match="of these environments cannot be played again: new episodes begin"):
        PPO.load(path, lambda: Unseeded(box(1))).learn(64)


class Shorter(Counting):
    """Its episodes end where those of the saved agent went on."""

    def __init__(self, length):
        super().__init__(length=5)


class Dearer(Counting):
    """Its rewards are others."""

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward + 1.0, *rest


@pytest.mark.parametrize("other", [Shorter, Dearer])
def test_an_environment_that_ends_early_or_pays_something_else_when_it_is_played_again_is_elsewhere(other, tmp_path):
    agent = small_agent(PPO, lambda: Counting(length=50), try_envs=False).learn(64)  # a trial would know it already
    loaded = PPO.load(agent.save(tmp_path / "agent"), lambda: other(length=50))
    with pytest.warns(RuntimeWarning, match="environment 0 did not come back to where it was"):
        loaded.learn(64)


class Bandit(gym.Env):
    """Every observation is the same."""

    observation_space = box(1)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), 1.0, self.steps == self.length, False, {}


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_end_that_no_observation_shows_is_noticed_when_it_is_played_again(mode, tmp_path):
    path = small_agent(PPO, lambda: Bandit(50), vectorization_mode=mode).learn(64).save(tmp_path / "agent")
    loaded = PPO.load(path, lambda: Bandit(5))
    with pytest.warns(RuntimeWarning, match="environment 0 did not come back to where it was"):
        loaded.learn(64)
    loaded.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_environment_that_keeps_something_is_kept_after_an_interrupt_and_begins_new_episodes_with_a_warning(mode):
    agent = PPO(remembering, PPOConfig(**SMALL, vectorization_mode=mode), trial=True)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(TOTAL, Interrupt("minibatch", update=1))
    before = agent.envs.get_attr("episodes")
    assert before == (1 + 64 // 20,) * 2
    with pytest.warns(RuntimeWarning, match="of these environments cannot be played again: new episodes begin"):
        agent.resume()
    assert agent.num_timesteps == TOTAL
    steps = TOTAL // 2 - 32  # since the end of the first update
    assert agent.envs.get_attr("episodes") == tuple(n + 1 + steps // 20 for n in before)
    agent.close()
