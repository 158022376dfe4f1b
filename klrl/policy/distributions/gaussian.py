"""Normal distributions: diagonal, squashed into a box, with a full covariance, mixed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from klrl.policy.arrays import A, Array, exp, is_numpy, tanh_
from klrl.policy.distributions.categorical import Categorical
from klrl.policy.distributions.record import (
    Distribution,
    Gradient,
    NoClosedForm,
    OfNoise,
    check_floating,
    check_supported,
    noise,
    on_tensors,
    widened,
)
from klrl.policy.distributions.squashed import before_tanh, log_slope, remembering

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False, repr=False)
class DiagGaussian(OfNoise[A]):
    """Independent normals N(mean_i, exp(log_std_i)^2); an action is a vector ``[*B, d]``.

    ``mean [*B, d]`` and ``log_std [*B, d]``.
    """

    mean: A
    log_std: A

    def __post_init__(self) -> None:
        check_floating("mean", self.mean)
        check_floating("log_std", self.log_std)
        if self.mean.shape != self.log_std.shape:
            raise ValueError(f"log_std has shape {list(self.log_std.shape)}, the mean {list(self.mean.shape)}")

    @property
    def std(self) -> A:
        """Standard deviations, ``[*B, d]``."""
        return exp(self.log_std)

    def draw_noise(self, generator: torch.Generator | None, steps: Sequence[int] = ()) -> A:
        """Standard normal noise, ``[*steps, *B, d]``."""
        return noise(self.mean, lambda x: x.normal_(generator=generator), steps)

    def from_noise(self, noise: A) -> A:
        """Mean + std * noise."""
        return self.mean + self.std * noise

    def mode(self) -> A:
        """The mean."""
        return self.mean

    def log_prob(self, action: A) -> A:
        """Log-density of ``action`` (``[*B, d]``), summed over the d dimensions."""
        z = (action - self.mean) / self.std
        return -(0.5 * z * z + self.log_std + 0.5 * LOG_2PI).sum(-1)

    def entropy(self) -> A:
        """sum_i log(std_i) + d/2 log(2 pi e)."""
        return (self.log_std + 0.5 * (LOG_2PI + 1.0)).sum(-1)

    def score(self, action: A) -> Gradient:
        """Derivative by the mean z / std, by log_std z^2 - 1, with z = (action - mean) / std."""
        std = self.std
        z = (action - self.mean) / std
        return z / std, z * z - 1.0

    def entropy_gradient(self) -> Gradient:
        """Return the derivative by the mean, 0, and by log_std, 1."""
        return 0.0 * self.mean, 0.0 * self.log_std + 1.0


@dataclass(frozen=True, eq=False, repr=False)
class SquashedGaussian(OfNoise[A]):
    """a = tanh(u) with u ~ N(mean_i, exp(log_std_i)^2), independent; an action is a vector in (-1, 1), ``[*B, d]``.

    ``mean [*B, d]`` and ``log_std [*B, d]`` are those of u (Haarnoja et al. 2018, "Soft Actor-Critic", appendix C).
    Near the border, a in float32 no longer says what u was: samples remember it (:mod:`.squashed`), and their
    log-probability and score are right at any mean. Other actions that rounding puts on the border count as the nearest
    number inside.
    """

    mean: A
    log_std: A

    def __post_init__(self) -> None:
        _ = self.base

    @property
    def base(self) -> DiagGaussian[A]:
        """The distribution of u."""
        return DiagGaussian(self.mean, self.log_std)

    def draw_noise(self, generator: torch.Generator | None, steps: Sequence[int] = ()) -> A:
        """Standard normal noise, ``[*steps, *B, d]``."""
        return self.base.draw_noise(generator, steps)

    def from_noise(self, noise: A) -> A:
        """The hyperbolic tangent of u, which it remembers."""
        u = self.base.from_noise(noise)
        return remembering(_inside(tanh_(u + 0.0)), u)

    def mode(self) -> A:
        """tanh(mean), the median of every dimension: the action without noise, as Soft Actor-Critic takes it."""
        return _inside(tanh_(self.mean + 0.0))

    def log_prob(self, action: A) -> A:
        """log N(u) - sum_i log(1 - a_i^2) with u = artanh(a), for ``action [*B, d]``."""
        check_supported(self, action, "numbers from -1 to 1")
        return self.log_prob_inside(action)

    def supports(self, action: Array) -> Array:
        """True where every number is in [-1, 1]."""
        return (abs(action) <= 1.0).all(-1)

    def log_prob_inside(self, action: A) -> A:
        """:meth:`log_prob` of an action in [-1, 1]."""
        if (u := before_tanh(action)) is not None:
            return self.base.log_prob(u) - log_slope(u).sum(-1)
        a = _inside(action)
        return self.base.log_prob(_artanh(a)) - _log((1.0 - a) * (1.0 + a)).sum(-1)

    def score(self, action: A) -> Gradient:
        """The record of u."""
        u = before_tanh(action)
        return self.base.score(_artanh(_inside(action)) if u is None else u)

    @on_tensors
    def entropy(self: SquashedGaussian[Tensor]) -> Tensor:
        """H(u) + E[sum_i log(1 - tanh(u_i)^2)], by quadrature; the error is below 1e-9 nats in float64."""
        return self.base.entropy() + _log_slope(self.mean.double(), self.log_std.double().exp()).sum(-1).to(self.mean)


def _log(x: Array) -> Array:
    return np.log(x) if is_numpy(x) else x.log()


def _artanh(a: Array) -> Array:
    return np.arctanh(a) if is_numpy(a) else a.atanh()


def _inside(a: Array) -> Array:
    """Limit numbers to those between the largest below 1 and its negative."""
    if is_numpy(a):
        edge = 1.0 - np.finfo(a.dtype).epsneg
        return np.clip(a, -edge, edge)
    edge = 1.0 - torch.finfo(a.dtype).eps / 2.0
    return a.clamp(-edge, edge)


_HERMITE = tuple(torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(64))
_LEGENDRE = tuple(torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(96))


def _log_slope(mean: Tensor, std: Tensor) -> Tensor:
    r"""E[log(1 - tanh(u)^2)] for u ~ N(mean, std^2), element by element.

    Gauss and Hermite's rule where the normal is narrow. Where it is wide, log(1 - tanh^2) = log 4 - 2|u| -
    2 log(1 + e^{-2|u|}): E|u| is known, the rest is a bump of width 1, integrated by Gauss and Legendre's rule.
    """
    mean, std = mean.unsqueeze(-1), std.unsqueeze(-1)
    narrow = std < 0.7

    x, w = (t.to(mean.device) for t in _HERMITE)
    u = (mean + torch.where(narrow, std, 0.1) * x).abs()
    by_hermite = ((math.log(4.0) - 2.0 * u - 2.0 * (-2.0 * u).exp().log1p()) * (w / w.sum())).sum(-1)

    s, width = torch.where(narrow, 1.0, std), 20.0
    x, w = (t.to(mean.device) for t in _LEGENDRE)
    v, w = 0.5 * width * (x + 1.0), 0.5 * width * w
    density = ((-0.5 * ((v - mean) / s) ** 2).exp() + (-0.5 * ((v + mean) / s) ** 2).exp()) / (s * (2 * math.pi) ** 0.5)
    bump = ((-2.0 * v).exp().log1p() * density * w).sum(-1)
    z = (mean / s).squeeze(-1)
    s = s.squeeze(-1)
    size = s * ((2.0 / math.pi) ** 0.5 * (-0.5 * z * z).exp() + z * torch.erf(z / 2.0**0.5))
    by_parts = math.log(4.0) - 2.0 * size - 2.0 * bump
    return torch.where(narrow.squeeze(-1), by_hermite, by_parts)


@dataclass(frozen=True, eq=False, repr=False)
class FullGaussian(Distribution[A]):
    """A normal with any covariance L L'; an action is a vector ``[*B, d]``.

    ``mean [*B, d]`` and ``scale_tril [*B, d, d]``, the lower triangular L with a positive diagonal (what is above the
    diagonal is not read), as in ``torch.distributions.MultivariateNormal``.
    """

    mean: A
    scale_tril: A

    def __post_init__(self) -> None:
        check_floating("mean", self.mean)
        check_floating("scale_tril", self.scale_tril, ndim=2)
        d = self.mean.shape[-1]
        if self.scale_tril.shape != (*self.mean.shape, d):
            shapes = f"{list(self.scale_tril.shape)}, the mean {list(self.mean.shape)}"
            raise ValueError(f"scale_tril has shape {shapes}; allowed: {[*self.mean.shape, d]}")

    @on_tensors
    def sample(self: FullGaussian[Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Mean + L times standard normal noise."""
        z = noise(self.mean, lambda x: x.normal_(generator=generator))
        return self.mean + (self.scale_tril.tril() @ z.unsqueeze(-1)).squeeze(-1)

    def mode(self) -> A:
        """The mean."""
        return self.mean

    @on_tensors
    def log_prob(self: FullGaussian[Tensor], action: Array) -> Tensor:
        """Log-density of ``action [*B, d]``."""
        wide = widened(self)  # nothing solves in half precision
        difference = (action - wide.mean).unsqueeze(-1)
        z = torch.linalg.solve_triangular(wide.scale_tril, difference, upper=False).squeeze(-1)
        d = self.mean.shape[-1]
        log_prob = -0.5 * (z.square().sum(-1) + d * LOG_2PI) - wide._half_log_determinant()
        return log_prob.to(self.mean.dtype)

    @on_tensors
    def entropy(self: FullGaussian[Tensor]) -> Tensor:
        """sum_i log L_ii + d/2 log(2 pi e)."""
        return self._half_log_determinant() + 0.5 * self.mean.shape[-1] * (LOG_2PI + 1.0)

    def _half_log_determinant(self: FullGaussian[Tensor]) -> Tensor:
        return self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


@dataclass(frozen=True, eq=False, repr=False)
class GaussianMixture(Distribution[A]):
    """Component i with probability softmax(logits)_i, then a diagonal normal; an action is a vector ``[*B, d]``.

    ``logits [*B, K]``, ``mean [*B, K, d]`` and ``log_std [*B, K, d]``.
    """

    logits: A
    mean: A
    log_std: A

    def __post_init__(self) -> None:
        check_floating("logits", self.logits)
        check_floating("mean", self.mean, ndim=2)
        check_floating("log_std", self.log_std, ndim=2)
        if self.mean.shape != self.log_std.shape or self.mean.shape[:-1] != self.logits.shape:
            shapes = ", ".join(str(list(x.shape)) for x in self.parameters)
            raise ValueError(f"logits, mean, log_std have shapes {shapes}; allowed: [*B, K], [*B, K, d], [*B, K, d]")

    @property
    def event_shape(self) -> tuple[int, ...]:
        """d numbers."""
        return (self.mean.shape[-1],)

    @property
    def weights(self) -> Categorical[A]:
        """Index of the component."""
        return Categorical(self.logits)

    @property
    def components(self) -> DiagGaussian[A]:
        """The normals, batch shape ``[*B, K]``."""
        return DiagGaussian(self.mean, self.log_std)

    @on_tensors
    def sample(self: GaussianMixture[Tensor], generator: torch.Generator | None = None) -> Tensor:
        """A component, then its normal."""
        return self._component(self.weights.sample(generator)).sample(generator)

    @on_tensors
    def mode(self: GaussianMixture[Tensor]) -> Tensor:
        """The most probable one of the components' means (a mixture's mode has no formula)."""
        around = self.components.map(lambda x: x.unsqueeze(-3)).log_prob(self.mean.unsqueeze(-2))
        best = torch.logsumexp(self.weights.log_probs.unsqueeze(-2) + around, -1).argmax(-1)
        return self._component(best).mean

    def _component(self: GaussianMixture[Tensor], index: Tensor) -> DiagGaussian[Tensor]:
        """One component per state."""
        i = index[..., None, None].expand(*self.batch_shape, 1, *self.event_shape)
        return DiagGaussian(self.mean.gather(-2, i).squeeze(-2), self.log_std.gather(-2, i).squeeze(-2))

    @on_tensors
    def log_prob(self: GaussianMixture[Tensor], action: Array) -> Tensor:
        """log sum_i w_i N_i(action), for ``action [*B, d]``."""
        return torch.logsumexp(self.weights.log_probs + self.components.log_prob(action.unsqueeze(-2)), -1)

    def entropy(self) -> A:
        """Refused.

        Raises:
            NoClosedForm: always, with what there is instead.
        """
        raise NoClosedForm("the entropy of a GaussianMixture has no closed form; allowed: klrl.kl.estimate_entropy(p)")
