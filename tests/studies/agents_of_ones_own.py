"""What is not klrl's: an agent, one step of gradient ascent on the surrogate of whatever region; and a region."""

from dataclasses import dataclass
from typing import ClassVar

from klrl.agents import Agent, AgentConfig
from klrl.agents.improvement import Improvement
from klrl.trust_region import Clip


@dataclass(frozen=True, kw_only=True, repr=False)
class PlainConfig(AgentConfig):
    """Settings of an agent without passes."""

    algorithm: ClassVar[str] = "plain"

    trust_region: str = "none"
    """Limit of the step."""


class Plain(Agent[PlainConfig]):
    """Vanilla policy gradient."""

    config_class: ClassVar[type[PlainConfig]] = PlainConfig

    def improve(self, batch, samples, callback):
        """Take one step on L(theta) - E[(V - V_target)^2]."""
        policy = self.actor.linearize(samples.observations)
        value_loss = self.value_loss(samples)
        self.descend(value_loss - self.objective(policy, samples.change(policy.output)))
        return Improvement(value_loss=value_loss.value.item(), stop_reason="one step")


@dataclass(frozen=True)
class Wide(Clip):
    """A clip of another width."""

    clip_range: float = 0.5
