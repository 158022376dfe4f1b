"""DPO: direct preference optimisation, and the KL that it spends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from klrl.agents.base import Agent
from klrl.agents.compatibility import check_comparable
from klrl.agents.preferences import Preferences, check_actions, of_steps, play_segments
from klrl.agents.settings import DPOConfig
from klrl.agents.supervised import ActorDescent, checked, closed_after, environments
from klrl.experience import EnvLike
from klrl.kl import kl_divergence
from klrl.policy.arrays import average
from klrl.policy.distributions import Distribution
from klrl.policy.linearization import Linearization, Objective
from klrl.policy.spaces import below
from klrl.policy.surroundings import undisturbed
from klrl.run.callback import Metrics


def fit_preferences(
    policy: Agent[Any], reference: Agent[Any], preferences: Preferences, config: DPOConfig | None = None
) -> Agent[Any]:
    """Fit the policy to preferences; return the policy, with a row of metrics per epoch in its ``history``.

    Rafailov et al. 2023, "Direct Preference Optimization", eq. 7, with tau a segment instead of a text:

        -log sigmoid(beta [log pi(tau_w)/ref(tau_w) - log pi(tau_l)/ref(tau_l)])

    where log pi(tau)/ref(tau) = sum_t log pi(a_t|s_t)/ref(a_t|s_t): the start and the environment's transitions have
    the same probability under both policies, and cancel. Its minimiser is pi(tau) ~ ref(tau) e^(r(tau)/beta) (eq. 4),
    which maximises E[r] - beta KL(pi||ref) for the r whose differences are the log odds of being preferred. A policy
    can have that distribution for single actions, and for segments if transitions are deterministic; with random
    transitions no policy decides which segment it gets.

    The critic and the observation statistics, the policy's and the reference's own, do not change. The first row
    measures the policy as it was given.

    Args:
        policy: the agent to be tuned, usually the reference loaded a second time.
        reference: the agent it is compared with; it does not change.
        preferences: pairs, for example from :func:`~klrl.agents.preferences.collect_preferences`.
        config: settings.

    Raises:
        ValueError: agents or data that do not go together.
        FloatingPointError: a loss or a KL is not finite.
    """
    policy.history.extend(dpo_epochs(policy, reference, preferences, config))
    return policy


def dpo_epochs(
    policy: Agent[Any],
    reference: Agent[Any],
    preferences: Preferences,
    config: DPOConfig | None = None,
    *,
    state: dict[str, Tensor] | None = None,
) -> Epochs:
    """Fit epoch by epoch, see :func:`fit_preferences`; yields the metrics of each, the given policy's first.

    Given ``state``, the :meth:`Epochs.state` of an interrupted tuning, and the policy as it was then, the remaining
    epochs follow, to the bit.
    """
    if policy is reference:
        raise ValueError("policy is the reference; allowed: another agent, for example the reference loaded again")
    check_comparable("reference", reference, "policy", policy)
    data = Compared.of(policy, reference, preferences)
    at_states = reference.distribution(preferences.observations[preferences.valid]).map(lambda x: x.to(policy.device))
    return Epochs(policy, data, at_states, config or DPOConfig(), state)


@dataclass(frozen=True, eq=False)
class Compared:
    """Preferences with the reference's log-probabilities, on the policy's device; ``m`` valid steps."""

    observations: Tensor
    """Observations as the policy normalises them, ``[n, 2, T, *O]``."""
    actions: Tensor
    valid: Tensor
    log_reference: Tensor
    """log ref(a|s), 0 for steps that were not taken, ``[n, 2, T]``."""
    before_tanh: Tensor | None = None

    @classmethod
    @undisturbed
    def of(cls, policy: Agent[Any], reference: Agent[Any], preferences: Preferences) -> Compared:
        """Evaluate the reference on the preferences, once.

        Raises:
            ValueError: the data has actions that the reference cannot take.
        """
        check_actions("the reference", reference, preferences)
        valid, where = preferences.valid, policy.device
        actions, u = preferences.taken(reference.device), preferences.before_tanh
        log_prob = reference.distribution(preferences.observations[valid]).log_prob_inside(actions).to(where)
        if not log_prob.isfinite().all():
            count = int((~log_prob.isfinite()).sum())
            raise ValueError(f"the reference never takes {count} of {len(log_prob)} actions; allowed: actions it takes")
        valid = valid.to(where)
        log_reference = torch.zeros_like(valid, dtype=log_prob.dtype).masked_scatter(valid, log_prob)
        observations, u = policy.normalized(preferences.observations), None if u is None else u.to(where)
        return cls(observations, preferences.actions.to(where), valid, log_reference, u)

    def __len__(self) -> int:
        return len(self.valid)

    def __getitem__(self, pairs: Tensor) -> Compared:
        u = None if self.before_tanh is None else self.before_tanh[pairs]
        return Compared(self.observations[pairs], self.actions[pairs], self.valid[pairs], self.log_reference[pairs], u)

    @property
    def states(self) -> Tensor:
        """Observations of the steps that were taken, ``[m, *O]``."""
        return self.observations[self.valid]

    @property
    def taken(self) -> Tensor:
        """Actions of these steps, ``[m, *A]``."""
        return of_steps(self.actions, self.before_tanh, self.valid)

    def log_ratio(self, policy: Distribution) -> Tensor:
        """Return log pi(tau)/ref(tau) of every segment, ``[n, 2]``, given the policy at the states."""
        return (self.in_place(policy.log_prob_inside(self.taken)) - self.log_reference).sum(-1)

    def in_place(self, steps: Tensor) -> Tensor:
        """Scatter numbers of the steps that were taken, ``[m] -> [n, 2, T]``; 0 elsewhere."""
        return torch.zeros_like(self.log_reference).masked_scatter(self.valid, steps)

    def loss(self, policy: Linearization[Distribution], beta: float) -> Objective:
        """Return E[-log sigmoid(beta (h_w - h_l))], h = log pi(tau)/ref(tau), given the policy at states (eq. 7)."""
        h = self.log_ratio(policy.output)
        margin = beta * (h[:, 0] - h[:, 1])
        slope = -beta * (-margin).sigmoid()  # d loss / d h_w; that by h_l is its negative
        by_step = torch.stack([slope, -slope], 1).unsqueeze(-1).expand(self.valid.shape)[self.valid]
        score = policy.output.score(self.taken)
        gradient = tuple(by_step.unsqueeze(-1) * g for g in score)
        return Objective(softplus(-margin).mean(), ((policy, 1.0 / len(self), gradient),))


class Epochs(Iterator[Metrics]):
    """Epochs of DPO, made by :func:`dpo_epochs`; it can be interrupted after each."""

    def __init__(
        self,
        policy: Agent[Any],
        data: Compared,
        reference: Distribution,
        config: DPOConfig,
        state: dict[str, Tensor] | None,
    ) -> None:
        self._done = 0 if state is None else int(state["done"])
        self._epochs = self._fit(policy, data, reference, config, state)

    def __next__(self) -> Metrics:
        return next(self._epochs)

    def state(self) -> dict[str, Tensor]:
        """Return the state that, with the policy and the preferences, decides the epochs that follow."""
        return {"done": torch.tensor(self._done)} | {f"descent.{k}": x for k, x in self._descent.state().items()}

    def _fit(
        self,
        policy: Agent[Any],
        data: Compared,
        reference: Distribution,
        config: DPOConfig,
        state: dict[str, Tensor] | None,
    ) -> Iterator[Metrics]:
        limits = {"learning_rate": config.learning_rate, "max_grad_norm": config.max_grad_norm}
        self._descent = ActorDescent(policy, **limits)
        if state is not None:
            self._descent.restore(below("descent.", state))
        for epoch in range(self._done, config.n_epochs + 1):
            metrics = _epoch(policy, data, reference, self._descent if epoch > 0 else None, config)
            self._done = epoch + 1
            yield checked(metrics, f"after epoch {epoch}")


@undisturbed
@torch.no_grad()
def _epoch(
    policy: Agent[Any], data: Compared, reference: Distribution, descent: ActorDescent | None, config: DPOConfig
) -> Metrics:
    """Fit the policy, except in the first row, which has no ``descent``, then measure it."""
    if descent is not None:
        order = torch.randperm(len(data), generator=policy.streams.minibatches, device="cpu").to(policy.device)
        for pairs in order.split(config.batch_size):
            minibatch = data[pairs]
            descent.step(minibatch.loss(policy.actor.linearize(minibatch.states), config.beta))
    return _measure(data, policy.actor(data.states), reference, config.beta)


def _measure(data: Compared, policy: Distribution, reference: Distribution, beta: float) -> Metrics:
    """Return metrics of the policy on the data, given both policies at its states."""
    h = data.log_ratio(policy).double()
    margin, (preferred, other) = beta * (h[:, 0] - h[:, 1]), (beta * h).unbind(-1)
    to, back = kl_divergence(policy, reference), kl_divergence(reference, policy)
    return {
        "dpo/loss": average(softplus(-margin)),
        "dpo/accuracy": average((margin > 0.0) + 0.5 * (margin == 0.0)),
        "dpo/margin": average(margin),
        "dpo/reward_preferred": average(preferred),
        "dpo/reward_other": average(other),
        "dpo/kl_policy_reference": average(to),
        "dpo/kl_reference_policy": average(back),
        "dpo/trajectory_kl_reference_policy": average(data.in_place(back).sum(-1)),
    }


def implicit_rewards(policy: Agent[Any], reference: Agent[Any], preferences: Preferences, beta: float) -> Tensor:
    """Return beta log pi(tau)/ref(tau) of every segment, ``[n, 2]``: the return for which the policy is optimal.

    It is that up to a constant for every start (DPO eq. 5).
    """
    data = Compared.of(policy, reference, preferences)
    with torch.no_grad():
        return beta * data.log_ratio(policy.actor(data.states))


def trajectory_kl(
    policy: Agent[Any], reference: Agent[Any], env: EnvLike, *, n: int = 64, length: int = 100, seed: int = 0
) -> tuple[float, float]:
    """Estimate KL(policy||reference) of the first ``length`` steps of an episode, nats; and its standard error.

    E_policy[sum_t KL(pi(.|s_t)||ref(.|s_t))], by the chain rule of KL, with the exact KL in every state.
    """
    envs = environments(env, min(n, 16), policy)
    with closed_after(envs, env):
        (played,) = play_segments(policy, envs, n, length, seed)
    states = played.observations[played.valid]
    kl = kl_divergence(policy.distribution(states).cpu(), reference.distribution(states).cpu())
    along = torch.zeros_like(played.valid, dtype=kl.dtype).masked_scatter(played.valid, kl).sum(-1).double()
    return along.mean().item(), (along.std() / n**0.5).item()
