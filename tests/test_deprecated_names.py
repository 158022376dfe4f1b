"""Old names still work for one version, and say which ones are theirs now."""

import pytest
from environments import small_agent

from klrl.agents import PPO


@pytest.fixture(scope="module")
def agent():
    return small_agent(PPO).learn(64)


def test_an_agent_answers_to_its_old_names(agent):
    with pytest.warns(DeprecationWarning, match=r"agent\.reproducibility") as caught:
        assert agent.replay is agent.reproducibility
    assert [said.filename for said in caught] == [__file__]
