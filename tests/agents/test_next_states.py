"""KL(old||new) on the states that the new policy visits: by torch.distributions, over interruptions, and held."""

import copy
import csv
import math

import numpy as np
import pytest
import torch
from environments import random_batch, small_agent
from support import both, exactly, parameters, same, without_time

from klrl.agents import PPO, TRPO
from klrl.run import Callback, checkpoint
from klrl.run.directory import RunDirectory
from klrl.run.tensorboard_writer import points
from klrl.trust_region import NextStateConstraint

NEXT = "drift/kl_next"


class Witness(Callback):
    """Keeps each policy before its update, with its statistics, and the states and distributions of every rollout."""

    def __init__(self):
        self.policies, self.rollouts, self.rows, self.said = [], [], [], []

    def on_update_start(self, agent, batch):
        self.said.append([row[NEXT] for row in agent.history])
        self.rollouts.append((batch.flatten_valid(batch.observations), exactly(batch.flatten_valid(batch.behaviour))))
        self.policies.append(self.of(agent))

    def on_update_end(self, agent, batch, metrics):
        self.rows.append(dict(metrics))

    @staticmethod
    def of(agent):
        actor, normalizer = copy.deepcopy(agent.actor), agent.normalizer
        return lambda observations: exactly(actor(normalizer(observations)))

    def expected(self):
        """What each update but the last one is to have."""
        with torch.no_grad():
            return [
                torch.distributions.kl_divergence(old(states), new).mean().item()
                for old, (states, new) in zip(self.policies[1:-1], self.rollouts[2:], strict=True)
            ]


@pytest.mark.parametrize(
    ("agent_class", "env", "settings"),
    [
        (PPO, "CartPole-v1", {}),
        (TRPO, "Pendulum-v1", {}),
        (TRPO, "CartPole-v1", {"fold_normalizer": False}),
        (PPO, "Pendulum-v1", {"normalize_observations": False}),
    ],
)
def test_an_update_is_judged_by_the_rollout_after_it(agent_class, env, settings):
    witness = Witness()
    agent = small_agent(agent_class, env, **settings).learn(5 * 64, witness)
    found = [row[NEXT] for row in agent.history]
    # The first policy takes its statistics from its first batch, within the update: the witness does not know it.
    assert found[1:-1] == pytest.approx(witness.expected(), rel=1e-3, abs=1e-9)
    assert all(map(math.isfinite, found[:-1]))
    assert math.isnan(found[-1])
    assert all(math.isnan(row[NEXT]) for row in witness.rows)
    assert [said[:-1] for said in witness.said[1:]] == [found[:i] for i in range(4)]
    assert [said[-1] for said in witness.said[1:]] == found[:-1]


@both
@pytest.mark.parametrize("region", ["constraint", "next-state-constraint"])
def test_an_interrupted_training_judges_as_if_it_had_gone_on(tmp_path, agent_class, region):
    class Break(Callback):
        def on_epoch_end(self, agent, epoch):
            if agent.num_timesteps == 3 * 64:
                raise KeyboardInterrupt

    whole = small_agent(agent_class, "Pendulum-v1", trust_region=region).learn(6 * 64, run_dir=tmp_path / "whole")
    agent = small_agent(agent_class, "Pendulum-v1", trust_region=region)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(6 * 64, [RunDirectory(tmp_path / "run"), Break()])
    assert [math.isnan(row[NEXT]) for row in agent.history] == [False, False, True]
    assert [row["drift/kl_next"] == "nan" for row in table(tmp_path / "run")] == [False, False, True]
    loaded = agent_class.load(tmp_path / "run").resume(run_dir=tmp_path / "run")
    agent.resume()
    assert without_time(loaded) == without_time(agent) == without_time(whole)
    assert same(parameters(loaded), parameters(whole))
    assert loaded.region == whole.region
    names = {*whole.history[0]} - {"time/fps"}
    assert [{k: row[k] for k in names} for row in table(tmp_path / "run")] == [
        {k: row[k] for k in names} for row in table(tmp_path / "whole")
    ]
    assert points(tmp_path / "run")[NEXT] == points(tmp_path / "whole")[NEXT]
    assert [at for at, _ in points(tmp_path / "run")[NEXT]] == [64 * i for i in range(1, 6)]


def table(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_last_row_of_a_training_is_completed_by_the_next_one_in_its_history_alone(tmp_path):
    agent = small_agent(PPO).learn(128, run_dir=tmp_path / "first")
    agent.learn(128, run_dir=tmp_path / "second")
    assert [math.isnan(row[NEXT]) for row in agent.history] == [False, False, False, True]
    for run in ("first", "second"):
        assert [row[NEXT] == "nan" for row in table(tmp_path / run)] == [False, True]


def test_an_agent_saved_before_there_was_the_metric_goes_on_without_its_last_update(tmp_path):
    path = small_agent(PPO).learn(128).save(tmp_path / "agent")
    tensors, state = checkpoint.read(path)
    for name in ("predecessor.parameters", "predecessor.normalizer.mean", "predecessor.normalizer.variance"):
        del tensors[name]
    for name in ("predecessor_count", "path_length"):
        del state[name]
    checkpoint.write(path, tensors, state)
    agent = PPO.load(path).learn(128)
    assert [math.isnan(row[NEXT]) for row in agent.history] == [False, True, False, True]
    assert math.isnan(agent.history[-1]["drift/path_length"])


def test_a_policy_of_another_size_is_refused(tmp_path):
    path = small_agent(PPO).learn(64).save(tmp_path / "agent")
    tensors, state = checkpoint.read(path)
    tensors["predecessor.parameters"] = tensors["predecessor.parameters"][1:]
    checkpoint.write(path, tensors, state)
    with pytest.raises(ValueError, match=r"predecessor\.parameters is"):
        PPO.load(path)


def test_what_is_not_the_outcome_of_the_update_alone_is_not_judged(tmp_path):
    def moved(agent):
        with torch.no_grad():
            next(agent.actor.parameters()).mul_(1.01)

    def saved_and_loaded(agent):
        moved(agent)
        return PPO.load(agent.save(tmp_path / "agent"))

    for between in (moved, saved_and_loaded, lambda agent: agent.set_env("CartPole-v1")):
        agent = small_agent(PPO).learn(64)
        agent = (between(agent) or agent).learn(64)
        assert [math.isnan(row[NEXT]) for row in agent.history] == [True, True]


@both
def test_judging_leaves_the_policy_as_it_was_and_happens_once(agent_class):
    agent = small_agent(agent_class)
    assert math.isnan(agent.kl_on_next_states(random_batch(agent)))
    agent.update(random_batch(agent))
    before, batch = parameters(agent), random_batch(agent, seed=1)
    assert agent.kl_on_next_states(batch) >= 0.0
    assert same(parameters(agent), before)
    assert math.isnan(agent.kl_on_next_states(batch))


def test_an_update_adapts_the_region_to_the_batch_without_any_training():
    region = NextStateConstraint(next_kl=1e-6)
    agent = small_agent(PPO, trust_region=region)
    agent.update(random_batch(agent))
    assert agent.region == region
    agent.update(random_batch(agent, seed=1, scale=3.0))
    assert agent.region.scale != region.scale


@both
def test_the_bound_in_force_holds_on_the_batch_and_is_logged_with_that_of_the_next_states(agent_class):
    agent = small_agent(agent_class, "Pendulum-v1", trust_region="next-state-constraint", next_kl=0.004).learn(10 * 64)
    scale = 0.5
    for row in agent.history:
        assert row["drift/kl"] <= row["drift/kl_target"] == pytest.approx(0.004 * scale)
        assert row["drift/kl_next_target"] == 0.004
        over = row[NEXT] / 0.004
        scale *= math.exp(-0.5) / over if over > 1.0 else math.exp(0.5 * 0.03 / 0.97)
        scale = min(max(scale, 0.01), 1.0)
    assert len({row["drift/kl_target"] for row in agent.history}) == 10
    assert np.isfinite([row[NEXT] for row in agent.history[:-1]]).all()
