"""Closed forms for normals: diagonal, squashed, with a full covariance."""

from __future__ import annotations

import abc
from typing import TypeVar

import torch
from torch import Tensor

from klrl.kl.families.bregman import phi
from klrl.kl.families.family import Family
from klrl.policy.arrays import expm1
from klrl.policy.distributions import DiagGaussian, Distribution, FullGaussian, Gradient, SquashedGaussian

G = TypeVar("G", bound=Distribution)


class GaussianFamily(Family[G], abc.ABC):
    """A family whose KL is the sum of one part due to the means and one due to the covariances."""

    def kl(self, p: G, q: G) -> Tensor:
        """The two parts together."""
        return self.mean_part(p, q) + self.covariance_part(p, q)

    @abc.abstractmethod
    def mean_part(self, p: G, q: G) -> Tensor:
        """1/2 (mu_p - mu_q)' S_q^-1 (mu_p - mu_q), ``[*B, d]``."""

    @abc.abstractmethod
    def covariance_part(self, p: G, q: G) -> Tensor:
        """The KL at equal means, ``[*B, d]``."""


class DiagGaussianFamily(GaussianFamily[DiagGaussian]):
    """N(mean_i, std_i^2), independent."""

    def kl(self, p: DiagGaussian, q: DiagGaussian) -> Tensor:
        """The two parts together, in fewer operations: it is measured in every update, often on many states."""
        z = (p.mean - q.mean) / q.std
        return torch.addcmul(self.covariance_part(p, q), z, z, value=0.5)

    def mean_part(self, p: DiagGaussian, q: DiagGaussian) -> Tensor:
        """1/2 ((mu_p - mu_q) / sigma_q)^2."""
        return 0.5 * ((p.mean - q.mean) / q.std).square()

    def covariance_part(self, p: DiagGaussian, q: DiagGaussian) -> Tensor:
        """1/2 (e^{2d} - 1 - 2d) with d = log sigma_p - log sigma_q: in float64, where it needs no series."""
        d = p.log_std - q.log_std
        if d.dtype == torch.float64:
            return (0.5 * torch.expm1(2.0 * d) - d).clamp_min(0.0)
        wide = d.double()
        r = wide.exp()
        return torch.addcmul(torch.rsub(wide, -0.5), r, r, value=0.5).to(d.dtype).clamp_min(0.0)

    def kl_gradient(self, p: DiagGaussian, q: DiagGaussian) -> Gradient:
        """(mu_q - mu_p) / sigma_q^2 by the mean, 1 - (sigma_p^2 + (mu_q - mu_p)^2) / sigma_q^2 by log_std."""
        z = (q.mean - p.mean) / q.std
        return z / q.std, -expm1(2.0 * (p.log_std - q.log_std)) - z * z

    def fisher_product(self, p: DiagGaussian, tangent: Gradient) -> Gradient:
        """v / sigma^2 by the mean, 2 v by log_std."""
        by_mean, by_log_std = tangent
        return by_mean / (p.std * p.std), 2.0 * by_log_std


class SquashedGaussianFamily(GaussianFamily[SquashedGaussian]):
    """tanh of a normal: one map for p and q changes no KL, so it is the KL of the normals."""

    _base = DiagGaussianFamily()

    def kl(self, p: SquashedGaussian, q: SquashedGaussian) -> Tensor:
        """That of the normals."""
        return self._base.kl(p.base, q.base)

    def mean_part(self, p: SquashedGaussian, q: SquashedGaussian) -> Tensor:
        """That of the normals."""
        return self._base.mean_part(p.base, q.base)

    def covariance_part(self, p: SquashedGaussian, q: SquashedGaussian) -> Tensor:
        """That of the normals."""
        return self._base.covariance_part(p.base, q.base)

    def kl_gradient(self, p: SquashedGaussian, q: SquashedGaussian) -> Gradient:
        """That of the normals."""
        return self._base.kl_gradient(p.base, q.base)

    def fisher_product(self, p: SquashedGaussian, tangent: Gradient) -> Gradient:
        """That of the normals."""
        return self._base.fisher_product(p.base, tangent)


class FullGaussianFamily(GaussianFamily[FullGaussian]):
    """N(mean, L L'); computed in float64, ``[*B, 1]``."""

    def mean_part(self, p: FullGaussian, q: FullGaussian) -> Tensor:
        """1/2 |L_q^-1 (mu_p - mu_q)|^2."""
        difference = (p.mean.double() - q.mean.double()).unsqueeze(-1)
        z = torch.linalg.solve_triangular(_lower(q), difference, upper=False).squeeze(-1)
        return 0.5 * z.square().sum(-1, keepdim=True).to(p.mean.dtype)

    def covariance_part(self, p: FullGaussian, q: FullGaussian) -> Tensor:
        """1/2 |M|^2 + sum_i (M_ii - log(1 + M_ii)) with M = L_q^-1 (L_p - L_q): every term is >= 0."""
        L_p, L_q = torch.broadcast_tensors(_lower(p), _lower(q))
        M = torch.linalg.solve_triangular(L_q, L_p - L_q, upper=False)
        m = M.diagonal(dim1=-2, dim2=-1)
        near = m.abs() < 0.5  # else 1 + m may have been rounded to 0
        ratio = torch.where(near, 1.0, L_p.diagonal(dim1=-2, dim2=-1) / L_q.diagonal(dim1=-2, dim2=-1)).log()
        diagonal = phi(torch.where(near, torch.where(near, m, 0.0).log1p(), ratio))
        return (0.5 * M.square().sum((-2, -1)) + diagonal.sum(-1)).unsqueeze(-1).to(p.mean.dtype)


def _lower(x: FullGaussian) -> Tensor:
    return x.scale_tril.double().tril()
