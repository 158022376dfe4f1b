r"""Losses on samples, and the KL whose gradient each has in expectation: a right value does not imply a right gradient.

The roles: ``policy`` pi_theta, which is differentiated; ``reference``, fixed; and the sampler, which drew the samples:

* sampler ``"policy"``: pi_theta itself, not differentiated through (samples are data);
* sampler ``"old"``: a fixed behaviour policy, for example that of before the update.

For a target KL(p||q), r = q/p as in :mod:`klrl.kl.estimators`, and w = p / sampler, where the sampler's probability
is always a constant: the policy's own samples have w = pi_theta / sg(pi_theta), 1 in value and the score in gradient
(sg stops the gradient). The losses:

* ``k1``, ``k2``, ``k3``: the estimator of that name, unweighted, differentiated as it stands;
* ``w*k3``, ...: weighted, both factors differentiated;
* ``sg(w)*k3``, ...: weighted, the weight a constant;
* ``k1_in_reward``, ...: w sg(k1), the estimator as a reward: its policy gradient.

The mean of ``w*k1`` and of ``w*k3`` over a fixed sampler that covers p and q is the KL itself, whatever theta: so is
its gradient, and they are right for every sampler and target. k1 alone has no gradient on the policy's own samples,
as E_pi[score] = 0. For KL(policy||reference), ``w*k3``, ``sg(w)*k2`` (on the policy's own samples plain ``k2``) and
``k1_in_reward`` have one and the same gradient on every sample, w log(policy / reference) score; only ``w*k3`` has an
unbiased value >= 0, too. For KL(reference||policy) on the policy's own samples, w = reference / sg(policy):
differentiating this 1 / policy as well gives grad E_reference[k2] instead.

Sources: Liu et al. 2025, arXiv 2510.01555, and Shah et al. 2025, arXiv 2512.21852, for KL(policy||reference); the
tables of the other targets are derived here. All are enumerated in tests/test_kl_estimator_gradients.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from klrl.kl.estimators import SampleEstimator, kl_samples, weighted_samples
from klrl.policy.arrays import Array, as_mask
from klrl.text import warn_user

Sampler = Literal["policy", "old"]
Target = Literal["KL(policy||reference)", "KL(reference||policy)", "KL(old||policy)"]
Loss = Literal[
    "k1", "k2", "k3",
    "w*k1", "w*k2", "w*k3",
    "sg(w)*k1", "sg(w)*k2", "sg(w)*k3",
    "k1_in_reward", "k2_in_reward", "k3_in_reward",
]  # fmt: skip

# Expected gradient of every loss. The first row of each table is what to use: its gradient and value are right,
# and it has no noise where the two policies agree. Names that would repeat a row (w without gradient) are left out.
_EXPECTED: dict[tuple[Sampler, Target], dict[Loss, str]] = {
    ("policy", "KL(policy||reference)"): {
        "w*k3": "grad KL(policy||reference)",
        "k2": "grad KL(policy||reference)",
        "k1_in_reward": "grad KL(policy||reference)",
        "w*k1": "grad KL(policy||reference)",
        "k1": "0",
        "k3": "grad KL(reference||policy)",
        "w*k2": "grad E_policy[k2]",
        "k2_in_reward": "grad (E_policy[k2] - KL(policy||reference))",
        "k3_in_reward": "grad (KL(policy||reference) - KL(reference||policy))",
    },
    ("policy", "KL(reference||policy)"): {
        "w*k3": "grad KL(reference||policy)",
        "w*k1": "grad KL(reference||policy)",
        "w*k2": "grad E_reference[k2]",
        "k1": "0",
        "k2": "grad KL(policy||reference)",
        "k3": "grad chi2(policy||reference) / 2",
    },
    ("old", "KL(old||policy)"): {  # w = 1
        "k3": "grad KL(old||policy)",
        "k1": "grad KL(old||policy)",
        "k2": "grad E_old[k2]",
        "w*k3": "grad KL(old||policy)",
        "w*k1": "grad KL(old||policy)",
        "w*k2": "grad E_old[k2]",
    },
    ("old", "KL(policy||reference)"): {
        "w*k3": "grad KL(policy||reference)",
        "w*k1": "grad KL(policy||reference)",
        "sg(w)*k2": "grad KL(policy||reference)",
        "k1_in_reward": "grad KL(policy||reference)",
        "k1": "-grad KL(old||policy)",
        "k2": "grad E_old[k2]",
        "k3": "grad E_old[k3]",
        "w*k2": "grad E_policy[k2]",
        "sg(w)*k1": "0",
        "sg(w)*k3": "grad KL(reference||policy)",
        "k2_in_reward": "grad (E_policy[k2] - KL(policy||reference))",
        "k3_in_reward": "grad (KL(policy||reference) - KL(reference||policy))",
    },
    ("old", "KL(reference||policy)"): {
        "w*k3": "grad KL(reference||policy)",
        "w*k1": "grad KL(reference||policy)",
        "w*k2": "grad E_reference[k2]",
        "k1": "grad KL(old||policy)",
        "k2": "grad E_old[k2]",
        "k3": "grad E_old[k3]",
    },
}


class BiasedGradientWarning(UserWarning):
    """The expected gradient of the chosen loss is not that of its target."""


@dataclass(frozen=True)
class GradientVerdict:
    """Verdict on a loss: its expected gradient, and the loss to use instead if that is wrong.

    ``expected`` is a formula such as ``"0"`` or ``"grad KL(reference||policy)"``; ``instead`` is a right loss for the
    same sampler and target, None if the loss is right itself. Its text is one sentence.
    """

    estimator: Loss
    sampler: Sampler
    target: Target
    expected: str
    instead: Loss | None

    @property
    def right(self) -> bool:
        """True if the expected gradient is that of the target."""
        return self.expected == f"grad {self.target}"

    def __str__(self) -> str:
        where = f"{self.estimator} on samples from {self.sampler} has the expected gradient {self.expected}"
        return where if self.right else f"{where}, not grad {self.target}; use {self.instead}"


def estimator_gradient(estimator: Loss = "w*k3", *, sampler: Sampler, target: Target) -> GradientVerdict:
    """Say whether E[grad loss] = grad target for this loss, sampler and target (the module explains the names).

    Args:
        estimator: a loss (see the module); ``"w*k3"`` is right for every sampler and target.
        sampler: ``"policy"`` or ``"old"``, which drew the samples.
        target: the KL to be differentiated. KL(old||policy) needs samples from old.

    Raises:
        ValueError: a name is unknown, or does not go with the others.

    >>> print(estimator_gradient("k3", sampler="policy", target="KL(policy||reference)"))
    k3 on samples from policy has the expected gradient grad KL(reference||policy), not grad KL(policy||reference); \
use w*k3
    >>> estimator_gradient("k3", sampler="old", target="KL(old||policy)").right
    True
    """
    for name, value, allowed in (("sampler", sampler, get_args(Sampler)), ("target", target, get_args(Target))):
        if value not in allowed:
            raise ValueError(f"{name} = {value!r}; allowed: {', '.join(allowed)}")
    if (sampler, target) not in _EXPECTED:
        targets = ", ".join(t for s, t in _EXPECTED if s == sampler)
        raise ValueError(f"target = {target!r} with sampler = {sampler!r}; allowed: {targets}")
    table = _EXPECTED[sampler, target]
    if estimator not in table:
        raise ValueError(
            f"estimator = {estimator!r} with sampler = {sampler!r}, target = {target!r}; allowed: {', '.join(table)}"
        )
    right = table[estimator] == f"grad {target}"
    return GradientVerdict(estimator, sampler, target, table[estimator], None if right else next(iter(table)))


def kl_loss(
    log_policy: Tensor,
    log_reference: Tensor,
    *,
    sampler: Sampler = "policy",
    target: Target = "KL(policy||reference)",
    estimator: Loss = "w*k3",
    log_sampler: Tensor | None = None,
    mask: Array | None = None,
) -> Tensor:
    """Return per-sample losses ``[*B]``, nats, whose mean has the expected gradient of the target.

    Only ``log_policy`` is differentiated. For KL(policy||old) from samples of old, w log w - (w - 1), give
    log old as ``log_reference`` and as ``log_sampler``. Values and gradients are computed in float64, whatever the type
    of ``log_policy`` (theirs): a value that is too large for it is inf, its gradient right all the same.

    Args:
        log_policy: log pi_theta of the samples, ``[*B]``, with its graph.
        log_reference: log-probability of the same samples under the target's other policy (old in KL(old||policy)).
        sampler: ``"policy"`` or ``"old"``, which drew the samples.
        target: ``"KL(policy||reference)"``, ``"KL(reference||policy)"`` or ``"KL(old||policy)"``.
        estimator: the loss; ``"w*k3"`` is right throughout, :func:`estimator_gradient` judges the others.
        log_sampler: log old of the samples, for sampler ``"old"`` unless old is the target's other policy.
        mask: which samples count, bool or 0 and 1, ``[*B]``; the others (padding) may be any number, NaN too, and have
            loss and gradient 0. The mean is then ``losses.sum() / mask.sum()``.

    Raises:
        ValueError: names that do not go together, different shapes, ``log_sampler`` missing or not needed, a mask of
            other numbers than 0 and 1.

    Warns:
        BiasedGradientWarning: the loss has another expected gradient than the target.

    >>> import torch
    >>> log_policy = torch.tensor([0.5, 0.5]).log().requires_grad_()
    >>> kl_loss(log_policy, torch.tensor([0.75, 0.25]).log()).mean().backward()
    >>> log_policy.grad  # log(policy / reference) / 2, as E[log(policy / reference) score] asks for
    tensor([-0.2027,  0.3466])
    """
    verdict = estimator_gradient(estimator, sampler=sampler, target=target)
    log_s = _log_sampler(log_policy, log_reference, verdict, log_sampler)
    if not log_policy.shape == log_reference.shape == log_s.shape:
        shapes = f"{list(log_policy.shape)}, {list(log_reference.shape)}, {list(log_s.shape)}"
        raise ValueError(f"log_policy, log_reference, log_sampler have shapes {shapes}; allowed: one shape")
    if not verdict.right:
        warn_user(str(verdict), BiasedGradientWarning)
    logs = [x.double() for x in (log_policy, log_reference.detach(), log_s.detach())]
    if mask is not None:
        counted = _mask_of(mask, log_policy)
        logs = [torch.where(counted, x, 0.0) for x in logs]
    losses: Tensor = _Loss.apply(*logs, _Form.of(verdict))  # type: ignore[no-untyped-call]
    if mask is not None:
        losses = torch.where(counted, losses, 0.0)
    return losses.to(log_policy.dtype)


def _mask_of(given: Array, log_policy: Tensor) -> Tensor:
    counted = as_mask("mask", given).to(log_policy.device)
    if counted.shape != log_policy.shape:
        shapes = f"{list(counted.shape)}, log_policy {list(log_policy.shape)}"
        raise ValueError(f"mask has shape {shapes}; allowed: one shape")
    return counted


class _Form(NamedTuple):
    """Parts of a loss, ``weight * k(log r)``, and those of them that are differentiated."""

    kind: SampleEstimator
    weighted: bool
    by_weight: bool
    """True if the weight moves with the policy."""
    by_ratio: bool
    """True if log r does."""
    policy_is_p: bool

    @classmethod
    def of(cls, verdict: GradientVerdict) -> _Form:
        name, policy_is_p = verdict.estimator, verdict.target == "KL(policy||reference)"
        kind: SampleEstimator = next(k for k in get_args(SampleEstimator) if k in name)
        by_weight = policy_is_p and name != kind and not name.startswith("sg(w)")
        return cls(kind, name != kind, by_weight, not name.endswith("in_reward"), policy_is_p)


class _Loss(torch.autograd.Function):
    """Weighted estimators, with the derivative by log pi of the whole: summed by autograd, terms of size r cancel."""

    generate_vmap_rule = True

    @staticmethod
    def forward(policy: Tensor, other: Tensor, sampler: Tensor, form: _Form) -> Tensor:
        p, q = (policy, other) if form.policy_is_p else (other, policy)
        if not form.weighted:
            return kl_samples(q - p, form.kind)
        return weighted_samples(q - p, p - sampler, form.kind)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, _Form], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.form = inputs[3]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        policy, other, sampler = ctx.saved_tensors
        return gradient * _slope(policy, other, sampler, ctx.form), None, None, None


def _slope(policy: Tensor, other: Tensor, sampler: Tensor, form: _Form) -> Tensor:
    """d loss / d log pi = w (k by_weight +- k' by_ratio), k' = dk / d log r; can be differentiated once more."""
    p, q = (policy, other) if form.policy_is_p else (other, policy)
    log_ratio, log_weight = q - p, p - sampler if form.weighted else torch.zeros_like(p)
    if not form.by_weight:
        log_weight = log_weight.detach()
    if not form.by_ratio:
        return weighted_samples(log_ratio.detach(), log_weight, form.kind)
    weight, sign = log_weight.exp(), -1.0 if form.policy_is_p else 1.0
    match form.kind:
        case "k3" if form.by_weight:
            return -weight * log_ratio  # phi - phi', of size r each
        case "k3":
            slope = sign * _weighted_expm1(log_ratio, log_weight)
        case "k2":
            slope = sign * weight * log_ratio
        case "k1":
            slope = -sign * weight
    return slope + weighted_samples(log_ratio, log_weight, form.kind) if form.by_weight else slope


def _weighted_expm1(log_ratio: Tensor, log_weight: Tensor) -> Tensor:
    """w (r - 1), where r may overflow and w r does not."""
    far = log_ratio > 1.0
    plain = (log_ratio + log_weight).exp() - log_weight.exp()
    return torch.where(far, plain, log_weight.exp() * torch.where(far, 0.0, log_ratio).expm1())


def _log_sampler(policy: Tensor, reference: Tensor, verdict: GradientVerdict, given: Tensor | None) -> Tensor:
    """Return log s of the samples; only an old policy that is not in the target must be given."""
    needed = verdict.sampler == "old" and verdict.target != "KL(old||policy)"
    if needed and given is None:
        raise ValueError("log_sampler = None with sampler = 'old'; allowed: log-probabilities under old")
    if given is not None and not needed:
        place = f"sampler = {verdict.sampler!r}, target = {verdict.target!r}"
        raise ValueError(f"log_sampler is given with {place}; allowed: None, the sampler is known")
    if given is not None:
        return given
    return policy if verdict.sampler == "policy" else reference
