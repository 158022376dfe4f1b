"""The drift monitor: KL of any library's policies against float64 sums by hand, what it copies, refuses and writes."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from support import full_disk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import distributions as td

import klrl
from klrl.agents import PPO, TRPO, PPOConfig
from klrl.monitor import DriftMonitor
from klrl.policy.distributions import Categorical, DiagGaussian, GaussianMixture
from klrl.run import Callback, checkpoint
from klrl.run.tensorboard_writer import points
from klrl.scripts.main import main

N, D = 40, 3
gen = torch.Generator().manual_seed(0)
OBS = torch.randn(N, 4, generator=gen)
WEIGHTS = [torch.randn(4, 2 * D, generator=gen) * 0.3 for _ in range(2)]


def gaussian(weights, obs=OBS):
    mean, log_std = (obs @ weights).chunk(2, -1)
    return mean, 0.3 * log_std


def measured(policies, obs=OBS, actions=None, **more):
    """One update from the first policy to the second."""
    now = iter(policies)
    current = [next(now)]
    monitor = DriftMonitor(lambda o: current[0](o), **more)
    with monitor.update(obs, actions, timesteps=N):
        current[0] = next(now)
    return monitor.history[-1]


def by_hand(p, q):
    """KL of Gaussians summed over dimensions, mean over states, in float64 by the textbook's formula."""
    (m, s), (n, t) = ([x.double() for x in r] for r in (p, q))
    kl = t - s + ((2 * s).exp() + (m - n) ** 2) / (2 * (2 * t).exp()) - 0.5
    return kl.sum(-1).mean().item()


def softmax_kl(p, q):
    p, q = (x.double().log_softmax(-1) for x in (p, q))
    return (p.exp() * (p - q)).sum(-1).mean().item()


EXPECTED = by_hand(*(gaussian(w) for w in WEIGHTS))


@pytest.mark.parametrize(
    "make",
    [
        lambda m, s: td.Normal(m, s.exp()),
        lambda m, s: td.Independent(td.Normal(m, s.exp()), 1),
        lambda m, s: td.MultivariateNormal(m, torch.diag_embed((2 * s).exp())),
        lambda m, s: DiagGaussian(m, s),
        lambda m, s: DiagGaussian(m.numpy(), s.numpy()),
        lambda m, s: {"mean": m.numpy(), "std": s.exp().numpy()},
        lambda m, s: {"mean": m.tolist(), "log_std": s},
        lambda m, s: td.TransformedDistribution(td.Normal(m, s.exp()), [td.TanhTransform()]),
        lambda m, s: td.Independent(
            td.TransformedDistribution(td.Normal(m, s.exp()), [td.TanhTransform(), td.AffineTransform(1.0, 2.0)]), 1
        ),
    ],
    ids=["Normal", "Independent", "full", "record", "numpy record", "std", "log_std", "tanh", "tanh and affine"],
)
def test_the_kl_of_one_action_is_summed_over_its_dimensions(make):
    row = measured([lambda o, w=w: make(*gaussian(w, o)) for w in WEIGHTS])
    assert row["drift/kl"] == pytest.approx(EXPECTED, rel=1e-4)
    assert row["drift/kl_max"] > row["drift/kl"]


def test_choices_of_every_form_have_the_kl_of_their_sums():
    heads = [(OBS @ w).split([2, 4], -1) for w in WEIGHTS]
    expected = sum(softmax_kl(p, q) for p, q in zip(*heads, strict=True))
    forms = [
        lambda two: [td.Categorical(logits=x) for x in two],
        lambda two: tuple(Categorical(x) for x in two),
        lambda two: {"logits": torch.cat(two, -1).numpy(), "nvec": np.array([2, 4])},
    ]
    for form in forms:
        row = measured([lambda o, two=two, form=form: form(two) for two in heads])
        assert row["drift/kl"] == pytest.approx(expected, rel=1e-5)
    for form in (lambda x: td.Categorical(logits=x), lambda x: td.OneHotCategorical(logits=x), lambda x: {"logits": x}):
        row = measured([lambda o, two=two, form=form: form(two[1]) for two in heads])
        assert row["drift/kl"] == pytest.approx(softmax_kl(heads[0][1], heads[1][1]), rel=1e-5)


def test_bits_and_masks():
    p, q = ((OBS @ w)[:, :3] for w in WEIGHTS)
    row = measured([lambda o: td.Bernoulli(logits=p), lambda o: td.Bernoulli(logits=q)])
    pairs = [torch.stack([torch.zeros_like(x), x], -1) for x in (p, q)]
    assert row["drift/kl"] == pytest.approx(3 * softmax_kl(*pairs), rel=1e-5)
    masked = [x.masked_fill(torch.tensor([True, False, False]), -1e8) for x in (p, q)]
    row = measured([lambda o, x=x: td.Categorical(logits=x) for x in masked])
    assert row["drift/kl"] == pytest.approx(softmax_kl(p[:, 1:], q[:, 1:]), rel=1e-5)


@pytest.mark.parametrize("maps", [[], [td.TanhTransform(), td.AffineTransform(1.0, 2.0)]], ids=["plain", "mapped"])
def test_ratios_and_their_estimates_are_those_of_the_actions(maps):
    def policy(w, obs=OBS):
        mean, log_std = gaussian(w, obs)
        return td.Independent(td.TransformedDistribution(td.Normal(mean, log_std.exp()), maps), 1)

    old, new = (policy(w) for w in WEIGHTS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        actions = old.sample()
    log_prob = old.log_prob(actions)
    weights = [WEIGHTS[0]]
    monitor = DriftMonitor(lambda o: policy(weights[0], o))
    with monitor.update(OBS, actions, timesteps=N, log_prob=log_prob):
        weights[0] = WEIGHTS[1]
    row, ratio = monitor.history[-1], (new.log_prob(actions) - log_prob).double().exp()
    assert row["drift/ratio_max"] == pytest.approx(ratio.max().item(), rel=1e-3)
    assert row["drift/kl_k3"] == pytest.approx((ratio - 1 - ratio.log()).mean().item(), rel=1e-3)
    assert row["drift/ess"] == pytest.approx((ratio.sum() ** 2 / (ratio**2).sum() / N).item(), rel=1e-3)
    assert row["drift/start_ratio_error"] < 1e-5
    assert ("train/entropy" in row) == (not maps)


def test_actions_of_any_shape_that_libraries_store():
    logits = (OBS @ WEIGHTS[0])[:, :4]
    index = torch.arange(N) % 4
    log_prob = logits.log_softmax(-1)[torch.arange(N), index]
    one_hot = torch.nn.functional.one_hot(index, 4)
    cases = [(td.Categorical, a) for a in (index, index.float()[:, None], index.numpy())]
    cases += [(td.OneHotCategorical, one_hot), (td.OneHotCategorical, index)]
    for family, actions in cases:
        monitor = DriftMonitor(lambda o, family=family: family(logits=logits[: len(o)]))
        monitor.before(torch.arange(N), actions, log_prob)
        assert monitor.after(N)["drift/start_ratio_error"] < 1e-6


def test_large_batches_are_given_in_pieces():
    seen, shift = [], [0.0]

    def policy(obs):
        seen.append(len(obs["a"]))
        return td.Normal(obs["a"] + shift[0], torch.as_tensor(obs["b"][0]))

    monitor = DriftMonitor(policy, states_at_once=16)
    with monitor.update({"a": OBS, "b": (np.ones((N, 1), np.float32),)}, timesteps=1):
        shift[0] = 0.1
    assert seen == 4 * [16, 16, 8]  # the batch and the probe, which is all of so few states, before and after
    assert monitor.history[-1]["drift/kl"] == pytest.approx(4 * 0.1**2 / 2, rel=1e-5)


def test_what_is_held_does_not_move_with_the_parameters_or_the_buffer():
    """A Normal made of a parameter shares its memory: an optimiser's step in place moves the old policy, too."""
    mean, std, obs = torch.zeros(N, 1), torch.nn.Parameter(torch.ones(1, 1)), torch.ones(N, 1)
    monitor = DriftMonitor(lambda o: td.Normal(mean * o, std.expand(len(o), 1)))
    with monitor.update(obs, timesteps=1):
        std.data.mul_(2.0)
        obs.zero_()
        mean.add_(1.0)
    expected = math.log(2.0) + (1.0 + 1.0) / (2.0 * 4.0) - 0.5  # the observations are still ones
    assert monitor.history[-1]["drift/kl"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("policy", "obs", "said"),
    [
        (lambda o: td.Categorical(logits=torch.zeros(8, 5, 2)), torch.zeros(8, 5, 3), r"begin with \[8, 5\]; allowed:"),
        (lambda o: td.Normal(torch.zeros(8, 5, 2), 1.0), torch.zeros(8, 5, 3), r"shape \[8, 5, 2\], and observations"),
        (lambda o: td.Categorical(logits=torch.zeros(4, 2)), torch.zeros(8, 3), r"shape \[4\] for 8 .*allowed: \[8\]"),
        (lambda o: Categorical(torch.zeros(8, 5, 2)), torch.zeros(8, 3), r"batch shape \[8, 5\] for 8 obs"),
        (lambda o: torch.zeros(8, 2), torch.zeros(8, 3), r"returned Tensor of shape \[8, 2\]; allowed: a record"),
        (lambda o: {"loc": torch.zeros(8, 2)}, torch.zeros(8, 3), r"returned a dict of loc; allowed: a record"),
        (lambda o: {"logits": "a"}, torch.zeros(8, 3), r"returned logits = str; allowed: an array of numbers"),
        (lambda o: td.Laplace(torch.zeros(8), 1.0), torch.zeros(8, 3), r"Laplace has no record; allowed: "),
        (
            lambda o: GaussianMixture(torch.zeros(8, 2), torch.zeros(8, 2, 1), torch.zeros(8, 2, 1)),
            torch.zeros(8, 3),
            "no closed form for a KL",
        ),
        (lambda o: None, 3.0, r"observations = float of shape \[\]; allowed: arrays"),
        (lambda o: None, [1.0, 2.0], r"observations = list; allowed: arrays"),
        (lambda o: None, {"a": torch.zeros(3), "b": torch.zeros(4)}, r"observations = 3 and 4 rows; allowed: at least"),
        (lambda o: None, torch.zeros(0, 3), r"observations = 0 rows; allowed: at least one"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_one_line(policy, obs, said):
    with pytest.raises((TypeError, ValueError), match=said) as refused:
        DriftMonitor(policy).before(obs)
    assert "\n" not in str(refused.value)


def test_wrong_actions_times_and_turns_are_refused():
    monitor = DriftMonitor(lambda o: td.Normal(o, 1.0))
    with pytest.raises(ValueError, match=r"actions = shape \[40, 2\]; allowed: \[40, 4\]"):
        monitor.before(OBS, torch.zeros(N, 2))
    with pytest.raises(ValueError, match="log_prob = 3 numbers; allowed: 40"):
        monitor.before(OBS, OBS, torch.zeros(3))
    with pytest.raises(ValueError, match="without actions"):
        monitor.before(OBS, log_prob=torch.zeros(N))
    with pytest.raises(ValueError, match=r"after\(\) without before\(\)"):
        monitor.after(1)
    with monitor.update(OBS, timesteps=10):
        pass
    with pytest.raises(ValueError, match="timesteps = 9; allowed: an integer >= 10"), monitor.update(OBS, timesteps=9):
        pass
    for wrong in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match=r"target_kl = .*; allowed: a number > 0"):
            DriftMonitor(lambda o: o, wrong)


def test_an_update_that_raises_leaves_nothing_behind():
    monitor = DriftMonitor(lambda o: td.Normal(o, 1.0))
    with pytest.raises(KeyError), monitor.update(OBS, timesteps=1):
        raise KeyError
    assert len(monitor.history) == 0
    with pytest.raises(ValueError, match="without before"):
        monitor.after(1)


def test_a_policy_with_a_state_of_its_own_gets_a_warning():
    calls = iter(range(1, 100))
    monitor = DriftMonitor(lambda o: td.Normal(o * next(calls), 1.0))
    with pytest.warns(RuntimeWarning, match="gives other distributions when it is called again: KL = "):
        monitor.before(OBS)


def test_log_probabilities_of_another_policy_get_one_warning():
    monitor = DriftMonitor(lambda o: td.Normal(o, 1.0))
    right = td.Normal(OBS, 1.0).log_prob(OBS).sum(-1)
    with pytest.warns(RuntimeWarning, match=r"differ from the collector's by up to 0\.25 nats"):
        monitor.before(OBS, OBS, right + 0.25)
    monitor.before(OBS, OBS, right + 0.25)  # warnings are errors here
    monitor.after(1)
    assert monitor.history[-1]["drift/start_ratio_error"] == pytest.approx(math.expm1(0.25), rel=1e-5)


def test_log_probabilities_of_other_choices_get_one_warning_too():
    logits = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
    actions = torch.arange(N) % 3
    right = logits.log_softmax(-1)[torch.arange(N), actions]
    with pytest.warns(RuntimeWarning, match=r"differ from the collector's by up to 0\.25 nats"):
        DriftMonitor(lambda o: td.Categorical(logits=logits)).before(OBS, actions, right + 0.25)


def test_random_numbers_of_the_training_stay_the_same():
    state = torch.get_rng_state()
    monitor = DriftMonitor(lambda o: (torch.randn(3), td.Normal(o, 1.0))[1])
    with monitor.update(OBS, timesteps=1):
        pass
    assert torch.equal(torch.get_rng_state(), state)


def test_a_policy_that_became_nan_is_reported_and_raises_nothing():
    row = measured(
        [lambda o: {"mean": o, "std": torch.ones(1)}, lambda o: {"mean": o * math.nan, "std": torch.ones(1)}]
    )
    assert math.isnan(row["drift/kl"])


class Beside(Callback):
    """Measures klrl's own agent as if it were another library's."""

    def __init__(self):
        self.monitor = DriftMonitor(lambda o: self.agent.distribution(o), target_kl=0.01)

    def on_update_start(self, agent, batch):
        self.agent, self.monitor.network = agent, agent.actor
        self.monitor.before(batch.flatten_valid(batch.observations), batch.flatten_valid(batch.actions))

    def on_update_end(self, agent, batch, metrics):
        self.monitor.after(agent.num_timesteps)


@pytest.mark.parametrize(("cls", "env"), [(PPO, "CartPole-v1"), (TRPO, "Pendulum-v1")])
def test_klrls_own_agents_have_the_drift_that_they_report(cls, env):
    """The policy is measured with its statistics after the update, so they stay as they are here."""
    config = cls.config_class(n_envs=2, n_steps=64, normalize_observations=False)
    beside = Beside()
    agent = cls(env, config, seed=0).learn(384, beside)
    assert len(agent.history) == len(beside.monitor.history) == 3
    for own, row in zip(agent.history, beside.monitor.history, strict=True):
        for name in set(own) & set(row) - {"drift/kl_target", "drift/states_over_target"}:
            assert row[name] == pytest.approx(own[name], rel=2e-3, abs=1e-7, nan_ok=True), name
        assert {name for name in own if name.startswith("drift/")} - set(row) <= {
            "drift/start_kl", "drift/start_ratio_error", "drift/kl_normalizer", "drift/kl_total", "drift/kl_target",
        }  # fmt: skip


# -- files ------------------------------------------------------------------------------------------------------------


def moved(monitor, step, **more):
    with monitor.update(OBS, timesteps=step) as metrics:
        metrics.update(more)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_next_batch_judges_an_update_by_the_network_before_it(tmp_path):
    network, seen = torch.nn.Linear(4, 2), []
    monitor = DriftMonitor(lambda o: {"logits": network(o)}, run_dir=tmp_path / "run", network=network)
    batches = [OBS + i for i in range(4)]
    for i, obs in enumerate(batches):
        with monitor.update(obs, timesteps=N * (i + 1)):
            seen.append([obs @ network.weight.detach().T + network.bias.detach() for obs in batches])
            with torch.no_grad():
                network.weight += 0.1 * torch.randn(2, 4, generator=torch.Generator().manual_seed(i))
    expected = [softmax_kl(seen[k][k + 1], seen[k + 1][k + 1]) for k in range(3)]
    assert [row["drift/kl_next"] for row in monitor.history] == pytest.approx([*expected, math.nan], nan_ok=True)
    monitor.close()
    written = [float(row["drift/kl_next"]) for row in rows(tmp_path / "run/metrics.csv")]
    assert repr(written) == repr([row["drift/kl_next"] for row in monitor.history])
    assert [x for x, _ in points(tmp_path / "run")["drift/kl_next"]] == [N, 2 * N, 3 * N]


def test_statistics_of_their_time_are_given_with_the_batch():
    network = torch.nn.Linear(4, 2)
    monitor = DriftMonitor(lambda o: {"logits": network(o)}, network=network)
    with monitor.update(OBS, timesteps=N), torch.no_grad():
        old = network(OBS / 2)
        network.weight += 0.1
    with torch.no_grad():
        new = network(OBS / 3)
    monitor.before(OBS / 3, earlier=OBS / 2)
    assert monitor.history[-1]["drift/kl_next"] == pytest.approx(softmax_kl(old, new))


def test_the_run_directory_has_every_metric_in_csv_and_tensorboard(tmp_path):
    run = tmp_path / "run"
    monitor = DriftMonitor(
        lambda o: td.Normal(o, 1.0), 0.01, run, notes={"agent": "mine", "seed": 3, "library": "torch"}
    )
    assert not run.exists()
    moved(monitor, 40, **{"train/approx_kl": torch.tensor(0.5)})
    moved(monitor, 80, **{"train/loss": 1})
    monitor.close()
    config = json.loads((run / "config.json").read_text())
    assert (config["agent"], config["seed"], config["env"], config["target_kl"]) == ("mine", 3, None, 0.01)
    assert config["versions"]["klrl"] == klrl.__version__
    table = rows(run / "metrics.csv")
    assert [row["time/total_timesteps"] for row in table] == ["40.0", "80.0"]
    assert [row["train/approx_kl"] for row in table] == ["0.5", ""]
    assert [{k: float(v) for k, v in row.items() if v} for row in table] == [*monitor.history]
    board = EventAccumulator(str(run)).Reload()
    shown = {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    assert shown["train/approx_kl"] == [(40, 0.5)]
    assert set(shown) == {name for row in monitor.history for name in row}
    assert {p.name.partition(".")[0] for p in run.iterdir()} == {"config", "metrics", "events"}


def test_a_directory_that_is_not_empty_or_in_use_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").touch()
    with pytest.raises(FileExistsError, match="is not empty; allowed: a new or empty directory"):
        DriftMonitor(lambda o: o, run_dir=tmp_path / "full")
    first = DriftMonitor(lambda o: td.Normal(o, 1.0), run_dir=tmp_path / "run")
    moved(first, 1)
    with pytest.raises(BlockingIOError, match="is in use by process"):
        DriftMonitor(lambda o: o, run_dir=tmp_path / "run")
    first.close()
    with pytest.raises(FileExistsError, match=r"is not empty; allowed: a new or empty directory$"):  # no run to resume
        DriftMonitor(lambda o: o, run_dir=tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="a monitor's log has no policy; allowed: a saved agent or a run"):
        checkpoint.read(tmp_path / "run")


def test_a_full_disk_ends_the_files_and_not_the_training(tmp_path):
    monitor = DriftMonitor(lambda o: td.Normal(o, 1.0), run_dir=tmp_path / "run")
    moved(monitor, 1)
    with full_disk(), pytest.warns(RuntimeWarning, match=r"nothing more is written to .*monitor\.history go on"):
        moved(monitor, 2)
    moved(monitor, 3)
    assert [row["time/total_timesteps"] for row in monitor.history] == [1.0, 2.0, 3.0]
    assert [row["time/total_timesteps"] for row in rows(tmp_path / "run/metrics.csv")][:1] == ["1.0"]


def test_additions_that_are_no_metrics_are_left_out_with_a_warning():
    monitor = DriftMonitor(lambda o: td.Normal(o, 1.0))
    with pytest.warns(RuntimeWarning, match=r"left out: metric 'drift/kl' is 7\.0 .*allowed: another name"):
        moved(monitor, 1, **{"drift/kl": 7.0})
    assert monitor.history[-1]["drift/kl"] == 0.0


def test_the_summary_says_what_was_asked_logged_and_measured():
    scale = [1.0]
    monitor = DriftMonitor(lambda o: td.Normal(o * scale[0], 1.0), target_kl=0.01)
    assert monitor.summary() == "no update was measured"
    for step, factor, logged in ((1, 1.0, 0.002), (2, 1.2, 0.004), (3, 1.2, math.nan)):
        with monitor.update(OBS, timesteps=step) as more:
            scale[0] = factor
            more["train/approx_kl"] = logged
    kl = 0.2**2 / 2 * OBS.double().square().sum(-1).mean().item()
    assert monitor.summary("train/approx_kl") == (
        "3 updates, KL asked for 0.01, logged 0.0030 on average (largest 0.0040) as train/approx_kl, measured "
        f"{kl / 3:.4f} on average (largest {kl:.4f}), 33% of the updates over what was asked for"
    )


def test_resume_refuses_a_monitored_run_in_one_line(tmp_path, capsys):
    notes = {"agent": "PPO of elsewhere", "seed": 0, "total_timesteps": 1}
    monitor = DriftMonitor(lambda o: td.Normal(o, 1.0), run_dir=tmp_path / "run", notes=notes)
    moved(monitor, 1)
    monitor.close()
    with pytest.raises(SystemExit) as stop:
        main(["resume", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert (stop.value.code, said.count("\n")) == (2, 1)
    assert "holds agent 'PPO of elsewhere'; allowed: ppo," in said


def test_the_monitor_is_at_the_top():
    assert klrl.DriftMonitor is DriftMonitor
    assert PPOConfig.algorithm == "ppo"
