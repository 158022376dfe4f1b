"""The callback in the real Stable-Baselines3 and sb3-contrib: KL by hand in float64, trainings the same to the bit."""

import csv
import json
from copy import deepcopy
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import newest
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete, InvalidActionEnvMultiBinary, InvalidActionEnvMultiDiscrete
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from klrl.integrations.sb3 import DriftCallback
from klrl.report import read_runs
from klrl.report.summary import command

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:You are using a.*")


class Line(gym.Env):
    """Actions of any kind that are rewarded for being near the observation, which may come in two parts."""

    def __init__(self, actions=None, parts=False):
        box, self.parts = gym.spaces.Box(-5.0, 5.0, (3,)), parts
        self.observation_space = gym.spaces.Dict(a=box, b=box) if parts else box
        self.action_space = actions or gym.spaces.Box(-1.0, 1.0, (3,))

    def _see(self):
        return self.np_random.normal(1.0, 2.0, 3).astype(np.float32).clip(-5.0, 5.0)

    def _observation(self):
        return {"a": self.seen, "b": self.seen**2 / 5.0} if self.parts else self.seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.seen = 0, self._see()
        return self._observation(), {}

    def step(self, action):
        reward = -float(np.abs(np.ravel(action)[:1] - np.tanh(self.seen[:1])).sum())
        self.t, self.seen = self.t + 1, self._see()
        return self._observation(), reward, self.t % 7 == 0, False, {}


def vec(n=2, normalize=False, cls=DummyVecEnv, **kwargs):
    start = {"vec_env_kwargs": {"start_method": "fork"}} if cls is SubprocVecEnv else {}
    envs = make_vec_env(lambda: Line(**kwargs), n, seed=0, vec_env_cls=cls, **start)
    return VecNormalize(envs) if normalize else envs


SHORT = {"n_steps": 32, "device": "cpu", "seed": 0, "learning_rate": 3e-3}
FEW = SHORT | {"batch_size": 16, "n_epochs": 3}
bits, many = gym.spaces.MultiBinary(3), gym.spaces.MultiDiscrete([2, 3])
SMALL = {"policy_kwargs": {"lstm_hidden_size": 16, "net_arch": [16]}} | FEW
CASES = {
    "PPO, Box": lambda: PPO("MlpPolicy", vec(), target_kl=0.01, **FEW),
    "PPO, Discrete": lambda: PPO("MlpPolicy", "CartPole-v1", **FEW),
    "PPO, MultiDiscrete": lambda: PPO("MlpPolicy", vec(actions=many), **FEW),
    "PPO, MultiBinary": lambda: PPO("MlpPolicy", vec(actions=bits), **FEW),
    "PPO, Dict": lambda: PPO("MultiInputPolicy", vec(normalize=True, parts=True), **FEW),
    "PPO, Taxi": lambda: PPO("MlpPolicy", newest("Taxi"), **FEW),
    "PPO, gSDE": lambda: PPO("MlpPolicy", vec(), use_sde=True, **FEW),
    "PPO, squashed gSDE": lambda: PPO("MlpPolicy", vec(), use_sde=True, policy_kwargs={"squash_output": True}, **FEW),
    "PPO, VecNormalize": lambda: PPO("MlpPolicy", vec(normalize=True), **FEW),
    "A2C": lambda: A2C("MlpPolicy", vec(), **SHORT),
    "TRPO": lambda: TRPO("MlpPolicy", vec(normalize=True), target_kl=0.01, batch_size=64, **SHORT),
    "Maskable, Discrete": lambda: MaskablePPO("MlpPolicy", InvalidActionEnvDiscrete(dim=9, n_invalid_actions=4), **FEW),
    "Maskable, MultiDiscrete": lambda: MaskablePPO(
        "MlpPolicy", InvalidActionEnvMultiDiscrete(dims=[3, 4], n_invalid_actions=3), **FEW
    ),
    "Maskable, MultiBinary": lambda: MaskablePPO(
        "MlpPolicy", InvalidActionEnvMultiBinary(dims=4, n_invalid_actions=2), **FEW
    ),
    "Recurrent, Box": lambda: RecurrentPPO("MlpLstmPolicy", vec(normalize=True), **SMALL),
    "Recurrent, Discrete": lambda: RecurrentPPO("MlpLstmPolicy", make_vec_env("CartPole-v1", 2, seed=0), **SMALL),
    "Recurrent, Dict": lambda: RecurrentPPO("MultiInputLstmPolicy", vec(parts=True), **SMALL),
}


class Independent(BaseCallback):
    """Keeps parameters and every observation as it was given, for sums that are done by hand afterwards."""

    def __init__(self):
        super().__init__()
        self.parameters, self.seen, self.lstm = [], [], []

    def _on_rollout_start(self):
        self.parameters.append(deepcopy(self.model.policy.state_dict()))
        self.seen.append([])

    def _on_step(self):
        if not self.seen[-1] and isinstance(self.model, RecurrentPPO):
            self.lstm.append(deepcopy(self.model._last_lstm_states.pi))
        names = [name for name in ("obs_tensor", "action_masks", "episode_starts") if name in self.locals]
        self.seen[-1].append({name: deepcopy(self.locals[name]) for name in names})
        return True

    def _on_training_end(self):
        self.parameters.append(deepcopy(self.model.policy.state_dict()))

    def kl(self):
        """Of every update, the mean over steps and environments of KL(old||new)."""
        for i, (old, new) in enumerate(pairwise(self.parameters)):
            sums = [by_hand(p, q) for p, q in zip(self.played(i, old), self.played(i, new), strict=True)]
            yield torch.cat(sums).mean().item()

    def kl_next(self):
        """Of every update but the last one, KL(old||new) at the steps of the next rollout."""
        for i, (old, new) in enumerate(pairwise(self.parameters[:-1])):
            sums = [by_hand(p, q) for p, q in zip(self.played(i + 1, old), self.played(i + 1, new), strict=True)]
            yield torch.cat(sums).mean().item()

    @torch.no_grad()
    def played(self, i, parameters):
        """What a policy does at the steps of a rollout, one after the other, its LSTM carried on from the first."""
        policy, lstm = self.model.policy, self.lstm[i] if self.lstm else None
        policy.load_state_dict(parameters)
        policy.set_training_mode(False)
        done = []
        for given in self.seen[i]:
            if lstm is not None:
                d, lstm = policy.get_distribution(given["obs_tensor"], lstm, given["episode_starts"])
            elif given.get("action_masks") is not None:
                d = policy.get_distribution(given["obs_tensor"], given["action_masks"])
            else:
                d = policy.get_distribution(given["obs_tensor"])
            done.append(numbers(d))
        return done


def numbers(d):
    """The parameters of a library's distribution in float64."""
    if hasattr(d, "distributions"):
        return [x.logits.double() for x in d.distributions]
    d = d.distribution
    if isinstance(d, list):
        return [x.logits.double() for x in d]
    if isinstance(d, torch.distributions.Normal):
        return d.mean.double(), d.stddev.double()
    if isinstance(d, torch.distributions.Bernoulli):
        return [torch.stack([torch.zeros_like(x), x], -1).double() for x in d.logits.unbind(-1)]
    return [d.logits.double()]


def by_hand(p, q):
    if isinstance(p, tuple):
        (m, s), (n, t) = p, q
        return (torch.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5).sum(-1)
    logs = [[x.log_softmax(-1) for x in heads] for heads in (p, q)]
    return sum((a.exp() * torch.where(a < -1e6, 0.0, a - b)).sum(-1) for a, b in zip(*logs, strict=True))


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_every_update_has_the_kl_of_sums_by_hand(make, capsys):
    model, drift, independent = make(), DriftCallback(), Independent()
    steps = 3 * model.n_steps * model.n_envs
    model.learn(steps, [independent, drift])
    expected = [*independent.kl()]
    assert len(expected) == len(drift.history) == 3
    assert [row["drift/kl"] for row in drift.history] == pytest.approx(expected, rel=1e-3)
    assert min(expected) > 0.0
    found = [row["drift/kl_next"] for row in drift.history]
    assert np.isfinite(found[:-1]).all()
    assert np.isnan(found[-1])
    if model.get_vec_normalize_env() is None:
        assert found[:-1] == pytest.approx([*independent.kl_next()], rel=1e-3)
    assert all(row["drift/start_ratio_error"] <= 1e-5 for row in drift.history)
    assert [row["time/total_timesteps"] for row in drift.history] == [steps / 3, 2 * steps / 3, steps]
    assert f"klrl: {type(model).__name__} of " in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["PPO, Box", "PPO, Dict", "PPO, gSDE", "A2C", "TRPO", "Maskable, Discrete", "Recurrent, Box"]
)
def test_a_measured_training_is_the_same_to_the_bit(name, tmp_path):
    trained = []
    for callback in (None, DriftCallback(tmp_path / "run", verbose=0)):
        model = CASES[name]()
        model.learn(3 * model.n_steps * model.n_envs, callback)
        trained.append((model.policy.state_dict(), model.policy.optimizer.state_dict()["state"], torch.get_rng_state()))
    assert all(torch.equal(x, trained[1][0][k]) for k, x in trained[0][0].items())
    moments = [[x for of in state[1].values() for x in of.values()] for state in trained]
    assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(*moments, strict=True))
    assert torch.equal(trained[0][2], trained[1][2])


def test_what_trpo_logs_is_the_reverse_kl_divided_by_the_number_of_dimensions():
    drift = DriftCallback(verbose=0)
    TRPO("MlpPolicy", vec(), target_kl=0.01, batch_size=64, **SHORT).learn(192, drift)
    for row in drift.history:
        assert row["train/is_line_search_success"] == 1.0
        assert row["drift/kl_reverse"] == pytest.approx(3 * row["train/kl_divergence_loss"], rel=1e-3)
        assert row["drift/kl"] > row["drift/kl_target"] == 0.01
    assert "KL asked for 0.01, logged 0.00" in drift.summary()
    assert "100% of the updates over what was asked for" in drift.summary()


class Statistics(BaseCallback):
    """Policies and statistics at the rollouts' starts, and every raw observation, by the wrapper's own functions."""

    def __init__(self):
        super().__init__()
        self.rollouts, self.raw = [], []

    def _on_rollout_start(self):
        env = self.model.get_env()
        self.rollouts.append((deepcopy(self.model.policy.state_dict()), deepcopy(env.obs_rms), self.raw))
        self.raw = [env.unnormalize_obs(self.model._last_obs).astype(np.float64)]

    def _on_step(self):
        self.raw.append(self.model.get_env().get_original_obs().astype(np.float64))
        return True

    def _on_training_end(self):
        self._on_rollout_start()


def test_what_statistics_do_to_the_policy_is_told_apart():
    drift, statistics, independent = DriftCallback(verbose=0), Statistics(), Independent()
    envs = vec(normalize=True)
    model = PPO("MlpPolicy", envs, **FEW).learn(192, [drift, statistics, independent])
    model.policy.set_training_mode(False)
    starts = statistics.rollouts
    for row, (old, before, _), (new, after, raw) in zip(drift.history, starts[:-1], starts[1:], strict=True):
        at = {}
        for name, parameters, rms in (("old", old, before), ("new", new, before), ("moved", new, after)):
            envs.obs_rms = rms
            model.policy.load_state_dict(parameters)
            obs = torch.as_tensor(envs.normalize_obs(np.concatenate(raw[:-1])))
            with torch.no_grad():
                at[name] = numbers(model.policy.get_distribution(obs))
        # the first raw observations are unnormalised again here, up to float32's rounding
        assert row["drift/kl_normalizer"] == pytest.approx(by_hand(at["new"], at["moved"]).mean().item(), rel=1e-3)
        assert row["drift/kl_total"] == pytest.approx(by_hand(at["old"], at["moved"]).mean().item(), rel=1e-3)
        assert row["drift/kl_normalizer"] > 1e-6
    for i, row in enumerate(drift.history[:-1]):
        old, envs.obs_rms, _ = starts[i]
        obs = torch.as_tensor(envs.normalize_obs(np.concatenate(starts[i + 2][2][:-1])))
        new = [torch.cat(x) for x in zip(*independent.played(i + 1, independent.parameters[i + 1]), strict=True)]
        model.policy.load_state_dict(old)
        with torch.no_grad():
            kl = by_hand(numbers(model.policy.get_distribution(obs)), tuple(new)).mean().item()
        assert row["drift/kl_next"] == pytest.approx(kl, rel=1e-3)


def test_observations_that_change_after_their_statistics_are_not_followed():
    drift = DriftCallback(verbose=0)
    model = PPO("MlpPolicy", VecFrameStack(vec(normalize=True), 2), **FEW)
    with pytest.warns(RuntimeWarning, match="VecFrameStack stands between VecNormalize and the policy"):
        model.learn(64, drift)
    assert "drift/kl_total" not in drift.history[-1]
    assert drift.history[-1]["drift/start_ratio_error"] < 1e-5


class Seen(Line):
    """An image beside the numbers."""

    def __init__(self):
        super().__init__(parts=True)
        image = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(image=image, **self.observation_space.spaces)

    def _observation(self):
        return {"image": self.np_random.integers(0, 256, (36, 36, 3)).astype(np.uint8), **super()._observation()}


def test_statistics_of_some_parts_beside_an_image():
    drift = DriftCallback(verbose=0)
    envs = VecNormalize(make_vec_env(Seen, 1, seed=0), norm_obs_keys=["a", "b"])
    PPO("MultiInputPolicy", envs, **FEW | {"n_epochs": 1}).learn(32, drift)
    (row,) = drift.history
    assert row["drift/start_ratio_error"] <= 1e-5
    assert 0.0 < row["drift/kl_normalizer"] < 1.0


def test_worker_processes_and_their_files(tmp_path):
    drift = DriftCallback(tmp_path / "run", target_kl=0.02, verbose=0)
    envs = vec(cls=SubprocVecEnv)
    PPO("MlpPolicy", envs, **FEW).learn(128, drift)
    envs.close()
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["drift/kl"]) for row in table] == [row["drift/kl"] for row in drift.history]
    assert table[-1]["drift/kl_target"] == "0.02"
    assert {"train/approx_kl", "train/value_loss", "rollout/ep_rew_mean"} < set(table[-1])
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["agent"] == "PPO of stable_baselines3"
    assert (config["seed"], config["config"]["n_epochs"], config["target_kl"]) == (0, 3, 0.02)
    assert "stable_baselines3" in config["versions"]


def test_a_report_names_the_environment_and_counts_seeds_together(tmp_path):
    plain, wrapped = (lambda: "CartPole-v1"), (lambda: gym.wrappers.TransformReward(gym.make("CartPole-v1"), np.sign))
    for name, make, seed in (("0", plain, 0), ("1", plain, 1), ("2", wrapped, 0)):
        drift = DriftCallback(tmp_path / name, target_kl=0.02, verbose=0)
        PPO("MlpPolicy", make(), **FEW | {"seed": seed}).learn(64, drift)
        drift.monitor.close()
    same, other, changed = read_runs([tmp_path])
    assert [(run.env, run.seed, run.status) for run in (same, other, changed)] == [
        ("CartPole-v1", 0, "done"), ("CartPole-v1", 1, "done"), ("CartPole-v1", 0, "done"),
    ]  # fmt: skip
    assert same.variant == other.variant != changed.variant
    assert same.config["env"] == {"id": "CartPole-v1", "kwargs": {}, "max_episode_steps": 500}
    assert changed.config["env"] == "CartPole-v1"
    assert {command(run.config) for run in (same, other, changed)} == {""}  # klrl cannot repeat them
    np.testing.assert_array_equal(changed.columns["drift/kl"], [row["drift/kl"] for row in drift.history])


def test_the_librarys_log_has_the_drift_beside_its_own_kl(tmp_path):
    model = PPO("MlpPolicy", vec(), **FEW)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    drift = DriftCallback(verbose=0)
    model.learn(192, drift)
    model.logger.close()
    with (tmp_path / "progress.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    said = [(float(row["train/approx_kl"]), float(row["drift/kl"])) for row in table if row["train/approx_kl"]]
    expected = [(row["train/approx_kl"], row["drift/kl"]) for row in drift.history]
    assert len(said) == 2  # the last update is never dumped
    assert np.allclose(said, expected[:2], rtol=1e-5)


def test_a_training_that_stops_early_and_one_that_goes_on():
    drift = DriftCallback(verbose=0)
    model = PPO("MlpPolicy", vec(), **FEW)
    model.learn(640, [drift, StopTrainingOnMaxEpisodes(10)])
    assert [row["time/total_timesteps"] for row in drift.history] == [64.0, 128.0]
    model.learn(64, drift, reset_num_timesteps=False)
    assert len(drift.history) == 3
    first_probe = drift.history[-1]["drift/kl_initial"]
    model.learn(64, drift)  # counts its steps from 0 again, the same policy moves on
    steps = [row["time/total_timesteps"] for row in drift.history]
    assert steps == sorted(steps)
    assert len(set(steps)) == 4
    assert drift.history[-1]["drift/kl_initial"] != first_probe
    total = sum(row["drift/kl"] for row in drift.history)
    assert drift.history[-1]["drift/kl_sum"] == pytest.approx(total)


def test_an_update_that_failed_is_not_measured_by_the_next_training(monkeypatch):
    drift = DriftCallback(verbose=0)
    model = PPO("MlpPolicy", vec(), **FEW)
    train = model.train
    monkeypatch.setattr(model, "train", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.learn(64, drift)
    monkeypatch.setattr(model, "train", train)
    model.learn(64, drift)
    assert len(drift.history) == 1


def test_other_algorithms_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^model = DQN of stable_baselines3 .*; allowed: PPO, A2C, .*DriftMonitor$"):
        DQN("MlpPolicy", "CartPole-v1", device="cpu").learn(10, DriftCallback())


def test_a_directory_with_something_in_it_is_refused_before_training(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        DriftCallback(tmp_path)
