"""Old names still work for one version, and say which ones are theirs now."""

from importlib import import_module

import pytest
import torch
from environments import random_batch, small_agent

from klrl.agents import PPO


@pytest.fixture(scope="module")
def agent():
    return small_agent(PPO).learn(64)


def test_a_batch_answers_to_its_old_names(agent):
    batch = random_batch(agent)
    with pytest.warns(DeprecationWarning, match=r"Batch\.flatten_valid") as caught:
        assert batch.samples(batch.rewards).equal(batch.flatten_valid(batch.rewards))
    assert [said.filename for said in caught] == [__file__]


def test_an_agent_answers_to_its_old_names(agent):
    with pytest.warns(DeprecationWarning, match=r"agent\.reproducibility") as caught:
        assert agent.replay is agent.reproducibility
    assert [said.filename for said in caught] == [__file__]


@pytest.mark.parametrize(
    ("old", "new"), [("surrogate", "objective"), ("judge", "penalized_surrogate"), ("samples", "prepare")]
)
def test_an_agents_methods_answer_to_their_old_names(agent, old, new):
    batch = random_batch(agent)
    prepared = agent.prepare(batch)
    with torch.no_grad():
        policy = agent.actor.linearize(prepared.observations)
        change = prepared.change(policy.output)
        arguments = {"surrogate": (policy, change), "judge": (change,), "samples": (batch,)}[old]
        with pytest.warns(DeprecationWarning, match=rf"^Learner\.{old} is Learner\.{new} now; ") as caught:
            found = getattr(agent, old)(*arguments)
        expected = getattr(agent, new)(*arguments)
    assert [said.filename for said in caught] == [__file__]
    values = {"surrogate": lambda x: x.value, "judge": lambda x: x, "samples": lambda x: x.advantage}[old]
    assert torch.equal(values(found), values(expected))


def test_a_method_of_an_agent_of_ones_own_counts_under_its_old_name():
    with pytest.warns(DeprecationWarning, match=r"^Mine\.surrogate is objective now, Mine\.samples is prepare now; "):

        class Mine(PPO):
            def surrogate(self, policy, change):
                return 2.0 * super().surrogate(policy, change)

            def samples(self, batch):
                self.asked = True
                return super().samples(batch)

    class Today(PPO):
        def objective(self, policy, change):
            return 2.0 * super().objective(policy, change)

    mine, today, plain = (small_agent(cls).learn(128) for cls in (Mine, Today, PPO))
    assert mine.asked
    assert torch.equal(mine.networks.actor_parameters, today.networks.actor_parameters)
    assert not torch.equal(mine.networks.actor_parameters, plain.networks.actor_parameters)


def test_an_override_that_forwards_to_the_new_name_is_for_those_who_call_the_old_one():
    with pytest.warns(DeprecationWarning, match=r"^Mine\.samples calls prepare and is not taken for it"):

        class Mine(PPO):
            def samples(self, batch):
                return self.prepare(batch)

    assert small_agent(Mine).learn(64).num_timesteps == 64


def test_an_improve_that_returns_a_dict_counts():
    class Mine(PPO):
        def improve(self, batch, samples, callback):
            result = super().improve(batch, samples, callback)
            return result.checked("here")

    plain = small_agent(PPO).learn(64)
    with pytest.warns(DeprecationWarning, match=r"improve\(\) returned a dict; allowed: an Improvement"):
        mine = small_agent(Mine).learn(64)
    numbers = [name for name in plain.history[-1] if not name.startswith("time/")]
    assert [mine.history[-1][name] for name in numbers] == [plain.history[-1][name] for name in numbers]


def test_networks_to_optimize_is_refused_as_nobody_calls_it():
    with pytest.raises(TypeError, match=r'^Mine\.networks_to_optimize\(\); allowed: optimized = \("critic",\)'):

        class Mine(PPO):
            def networks_to_optimize(self):
                return (self.critic,)


def test_an_agents_networks_and_drift_answer_by_the_agents_old_names(agent):
    with pytest.warns(DeprecationWarning, match=r"agent\.networks\.actor_parameters now"):
        assert agent.actor_parameters is agent.networks.actor_parameters
    with pytest.warns(DeprecationWarning, match=r"agent\.drift\.kl_sum now"):
        assert agent.kl_sum == agent.drift.kl_sum > 0.0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("klrl.run.board.points", "klrl.run.tensorboard_writer.points"),
        ("klrl.run.board.Board", "klrl.run.tensorboard_writer.TensorBoardWriter"),
        ("klrl.agents.load.load_agent", "klrl.agents.load_agent"),
    ],
)
def test_modules_that_moved_answer(old, new):
    modules = [import_module(name.rpartition(".")[0]) for name in (old, new)]
    with pytest.warns(DeprecationWarning, match=f"^{old} is {new} now") as caught:
        assert getattr(modules[0], old.rpartition(".")[2]) is getattr(modules[1], new.rpartition(".")[2])
    assert [said.filename for said in caught] == [__file__]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = modules[0].nothing
