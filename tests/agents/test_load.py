"""A saved agent comes back as the agent it is."""

import pytest
from environments import small_agent
from support import every_agent, parameters, same

from klrl.agents import AGENTS, PPO, Agent, load_agent
from klrl.run import checkpoint


@every_agent
def test_a_saved_agent_of_any_algorithm_is_loaded(agent_class, tmp_path):
    agent = small_agent(agent_class, "CartPole-v1").learn(64)
    loaded = load_agent(agent.save(tmp_path / "agent"))
    assert type(loaded) is AGENTS[agent.config.algorithm] is agent_class
    assert same(parameters(loaded), parameters(agent))
    assert loaded.learn(64).num_timesteps == agent.num_timesteps + 64


def test_an_algorithm_that_is_not_there_is_named(tmp_path):
    path = small_agent(AGENTS["ppo"], "CartPole-v1").save(tmp_path / "agent")
    tensors, state = checkpoint.read(path)
    checkpoint.write(path, tensors, state | {"agent": "sac"})
    with pytest.raises(ValueError, match=r"holds agent 'sac'; allowed: .*npg, .*ppo, .*trpo"):
        load_agent(path)


def test_nothing_saved_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no saved agent there"):
        load_agent(tmp_path)


def test_a_class_that_is_half_written_or_written_again_does_not_come_in_between(tmp_path):
    def define():
        class Mine(PPO):
            pass

        return Mine

    type("Half", (Agent,), {"improve": lambda self, batch, samples, callback: None})
    first, second = define(), define()
    path = small_agent(PPO, "CartPole-v1").save(tmp_path / "agent")
    assert type(load_agent(path)) is PPO
    assert first is not second
