"""Old names still work for one version, and say which ones are theirs now."""

import pytest
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
