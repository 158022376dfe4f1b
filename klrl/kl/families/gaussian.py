"""Closed forms for normals: diagonal, squashed, with a full covariance."""

from __future__ import annotations

import abc
import math
from typing import TypeVar

import torch
from torch import Tensor

from klrl.kl.families.bregman import phi
from klrl.kl.families.envelopes import masses_between_crossings, rotated_distance
from klrl.kl.families.family import Family, no_closed_form
from klrl.kl.families.roots import length, root
from klrl.policy.arrays import expm1
from klrl.policy.distributions import DiagGaussian, Distribution, FullGaussian, Gradient, SquashedGaussian

G = TypeVar("G", bound=Distribution)


class GaussianFamily(Family[G], abc.ABC):
    """A family whose KL is the sum of one part due to the means and one due to the covariances."""

    def kl(self, p: G, q: G) -> Tensor:
        """Return the sum of both parts."""
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
        """Return the sum of both parts in fewer operations: it is measured in every update, often on many states."""
        z = _standardized(p.mean - q.mean, q)
        return torch.addcmul(self.covariance_part(p, q), z, z, value=0.5)

    def mean_part(self, p: DiagGaussian, q: DiagGaussian) -> Tensor:
        """1/2 ((mu_p - mu_q) / sigma_q)^2."""
        return 0.5 * _standardized(p.mean - q.mean, q).square()

    def covariance_part(self, p: DiagGaussian, q: DiagGaussian) -> Tensor:
        """1/2 (e^{2d} - 1 - 2d) with d = log sigma_p - log sigma_q: in float64, where it needs no series."""
        d = p.log_std - q.log_std
        if d.dtype == torch.float64:
            return (0.5 * torch.expm1(2.0 * d) - d).clamp_min(0.0)
        wide = d.double()
        r = wide.exp()
        return torch.addcmul(torch.rsub(wide, -0.5), r, r, value=0.5).to(d.dtype).clamp_min(0.0)

    def renyi(self, p: DiagGaussian, q: DiagGaussian, alpha: float) -> Tensor:
        """alpha/2 z^2 / s with z = (mu_p - mu_q) / sigma_q, s = alpha + (1 - alpha) r^2, and a part of r alone.

        r = sigma_p / sigma_q; infinite where s <= 0 (Gil, Alajaji & Linder 2013, "Rényi divergence measures for
        commonly used univariate continuous distributions").
        """
        log_r2 = 2.0 * (p.log_std - q.log_std)
        z = (p.mean - q.mean) / q.std
        scale = log_r2.exp() / alpha - torch.expm1(log_r2)  # s / alpha
        finite = scale > 0.0
        divergence = 0.5 * z.square() / torch.where(finite, scale, 1.0) + _renyi_of_ratios(log_r2, finite, alpha)
        return divergence.clamp_min(0.0).masked_fill(~finite & ((log_r2 != 0.0) | (z != 0.0)), math.inf)

    def total_variation(self, p: DiagGaussian, q: DiagGaussian) -> Tensor:
        """erf(|z| / sqrt 8) for equal covariances, z = (mu_p - mu_q) / sigma; in one dimension always."""
        if p.mean.shape[-1] == 1:
            return _total_variation(p, q).squeeze(-1)
        if not bool((p.log_std == q.log_std).all()):
            raise no_closed_form(_DIFFERENT, p, q)
        return torch.erf(length((p.mean - q.mean) / q.std) / math.sqrt(8.0))

    def wasserstein(self, p: DiagGaussian, q: DiagGaussian) -> Tensor:
        """sqrt(|mu_p - mu_q|^2 + |sigma_p - sigma_q|^2)."""
        return length(torch.cat(torch.broadcast_tensors(p.mean - q.mean, p.std - q.std), -1))

    def fisher_rao(self, p: DiagGaussian, q: DiagGaussian) -> Tensor:
        r"""sqrt(sum_i d_i^2), d_i = 2 sqrt(2) artanh(delta): every dimension is a hyperbolic half-plane.

        delta^2 = (m^2 + 8 sinh^2(s / 2)) / (m^2 + 8 cosh^2(s / 2)) with s = log(sigma_p / sigma_q) and
        m^2 = (mu_p - mu_q)^2 / (sigma_p sigma_q) (Costa, Santos & Strapasson 2015, "Fisher information distance: a
        geometrical reading").
        """
        s, middle = p.log_std - q.log_std, (0.5 * (p.log_std + q.log_std)).exp()
        nearer = ((p.mean - q.mean) / middle).square() + 8.0 * torch.sinh(0.5 * s).square()
        delta = root(nearer / (nearer + 8.0))  # cosh^2 = 1 + sinh^2
        far = delta > 0.5
        artanh = torch.where(
            far, torch.log1p(delta) + 0.5 * (nearer / 8.0).log1p(), torch.where(far, 0.0, delta).atanh()
        )
        return length(math.sqrt(8.0) * artanh)

    def geometric_mixture(self, p: DiagGaussian, q: DiagGaussian, share: Tensor) -> DiagGaussian:
        """Average the precisions, and the means times precisions; in units of q's standard deviation."""
        excess = share * torch.expm1(2.0 * (q.log_std - p.log_std))  # of the precision, over q's
        weight = (share + excess) / (1.0 + excess)
        return DiagGaussian(q.mean + weight * (p.mean - q.mean), q.log_std - 0.5 * torch.log1p(excess))

    def tempered(self, p: DiagGaussian, temperature: float) -> DiagGaussian:
        """Multiply the variances."""
        return DiagGaussian(p.mean, p.log_std + 0.5 * math.log(temperature))

    def kl_gradient(self, p: DiagGaussian, q: DiagGaussian) -> Gradient:
        """Return the derivatives of KL(p||q).

        By the mean (mu_q - mu_p) / sigma_q^2, by log_std 1 - (sigma_p^2 + (mu_q - mu_p)^2) / sigma_q^2.
        """
        z = (q.mean - p.mean) / q.std
        return z / q.std, -expm1(2.0 * (p.log_std - q.log_std)) - z * z

    def fisher_product(self, p: DiagGaussian, tangent: Gradient) -> Gradient:
        """Return v / sigma^2 for the mean, 2 v for log_std."""
        by_mean, by_log_std = tangent
        std = p.std
        return by_mean / (std * std), 2.0 * by_log_std


def _standardized(difference: Tensor, q: DiagGaussian) -> Tensor:
    """Convert to units of q's standard deviation; 0 stays 0 even where that underflows."""
    return difference / q.std.clamp_min(torch.finfo(difference.dtype).tiny)


class SquashedGaussianFamily(GaussianFamily[SquashedGaussian]):
    """A tanh of a normal: one map for p and q changes no KL, so all values are those of the normals."""

    _base = DiagGaussianFamily()

    def kl(self, p: SquashedGaussian, q: SquashedGaussian) -> Tensor:
        """Return the KL of the normals."""
        return self._base.kl(p.base, q.base)

    def mean_part(self, p: SquashedGaussian, q: SquashedGaussian) -> Tensor:
        """Return the normals' part."""
        return self._base.mean_part(p.base, q.base)

    def covariance_part(self, p: SquashedGaussian, q: SquashedGaussian) -> Tensor:
        """Return the normals' part."""
        return self._base.covariance_part(p.base, q.base)

    def geometric_mixture(self, p: SquashedGaussian, q: SquashedGaussian, share: Tensor) -> SquashedGaussian:
        """Return the tanh of the normals' mixture."""
        return SquashedGaussian(*self._base.geometric_mixture(p.base, q.base, share).parameters)

    def tempered(self, p: SquashedGaussian, temperature: float) -> SquashedGaussian:
        """Return the tanh of the tempered normal."""
        return SquashedGaussian(*self._base.tempered(p.base, temperature).parameters)

    def renyi(self, p: SquashedGaussian, q: SquashedGaussian, alpha: float) -> Tensor:
        """Return the divergence of the normals."""
        return self._base.renyi(p.base, q.base, alpha)

    def fisher_rao(self, p: SquashedGaussian, q: SquashedGaussian) -> Tensor:
        """Return the distance of the normals."""
        return self._base.fisher_rao(p.base, q.base)

    def total_variation(self, p: SquashedGaussian, q: SquashedGaussian) -> Tensor:
        """Return the distance of the normals."""
        return self._base.total_variation(p.base, q.base)

    def kl_gradient(self, p: SquashedGaussian, q: SquashedGaussian) -> Gradient:
        """Return the gradient of the normals."""
        return self._base.kl_gradient(p.base, q.base)

    def fisher_product(self, p: SquashedGaussian, tangent: Gradient) -> Gradient:
        """Return the product of the normals."""
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

    def geometric_mixture(self, p: FullGaussian, q: FullGaussian, share: Tensor) -> FullGaussian:
        """Average the precisions, and the precisions times means."""
        S_p, S_q = (torch.cholesky_inverse(_lower(x)) for x in (p, q))
        t = share.double().unsqueeze(-1)
        S = t * S_p + (1.0 - t) * S_q
        towards = t * S_p @ (p.mean - q.mean).double().unsqueeze(-1)
        mean = q.mean + torch.linalg.solve(S, towards).squeeze(-1)
        scale_tril = torch.linalg.cholesky(torch.linalg.inv(S))
        return FullGaussian(mean.to(q.mean.dtype), scale_tril.to(q.mean.dtype))

    def tempered(self, p: FullGaussian, temperature: float) -> FullGaussian:
        """Multiply the covariance matrix."""
        return FullGaussian(p.mean, p.scale_tril * math.sqrt(temperature))

    def renyi(self, p: FullGaussian, q: FullGaussian, alpha: float) -> Tensor:
        """alpha/2 z' S^-1 z with z = L_q^-1 (mu_p - mu_q), S = alpha 1 + (1 - alpha) M M', and a part of M alone.

        M = L_q^-1 L_p, whose singular values are the ratios r of :class:`DiagGaussianFamily`.
        """
        if alpha == math.inf:
            raise no_closed_form("the Rényi divergence of infinite order", p, q)
        M = torch.linalg.solve_triangular(*torch.broadcast_tensors(_lower(q), _lower(p)), upper=False)
        z = torch.linalg.solve_triangular(_lower(q), (p.mean - q.mean).unsqueeze(-1), upper=False)
        log_r2 = 2.0 * torch.linalg.svdvals(M).log()
        finite = (log_r2.exp() / alpha - torch.expm1(log_r2) > 0.0).all(-1, keepdim=True)
        unit = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
        S = torch.where(finite.unsqueeze(-1), unit + (1.0 / alpha - 1.0) * (M @ M.mT), unit)
        mean_part = 0.5 * (z * torch.linalg.solve_ex(S, z)[0]).sum((-2, -1)).unsqueeze(-1)
        divergence = mean_part + _renyi_of_ratios(log_r2, finite, alpha).sum(-1, keepdim=True)
        return divergence.clamp_min(0.0).masked_fill(~finite, math.inf)

    def total_variation(self, p: FullGaussian, q: FullGaussian) -> Tensor:
        """Return erf(|z| / sqrt 8) for equal covariances, z = L^-1 (mu_p - mu_q); in one dimension always."""
        L_p, L_q = _lower(p), _lower(q)
        if p.mean.shape[-1] == 1:
            one = [DiagGaussian(x.mean, L.squeeze(-1).log()) for x, L in ((p, L_p), (q, L_q))]
            return _total_variation(*one).squeeze(-1)
        if not bool((L_p == L_q).all()):
            raise no_closed_form(_DIFFERENT, p, q)
        z = torch.linalg.solve_triangular(L_q, (p.mean - q.mean).unsqueeze(-1), upper=False).squeeze(-1)
        return torch.erf(length(z) / math.sqrt(8.0))

    def wasserstein(self, p: FullGaussian, q: FullGaussian) -> Tensor:
        """sqrt(|mu_p - mu_q|^2 + min_U |L_p - L_q U|^2) over orthogonal U, attained at U = W V', L_q' L_p = W S V'.

        The minimum is tr(S_p + S_q - 2 (S_q^1/2 S_p S_q^1/2)^1/2), here without cancellation.
        """
        apart = rotated_distance(*torch.broadcast_tensors(_lower(p), _lower(q)))
        return root((p.mean - q.mean).square().sum(-1) + apart)


_DIFFERENT = "the total variation, where covariances differ in more than one dimension,"


def _lower(x: FullGaussian) -> Tensor:
    return x.scale_tril.double().tril()


def _renyi_of_ratios(log_r2: Tensor, finite: Tensor, alpha: float) -> Tensor:
    """1/2 (log(1 + t e) / t - log r^2) with e = r^2 - 1, t = 1 - alpha: the part that is there at equal means.

    Where r is near 1, with log(1 + y) = y - phi(log(1 + y)) so that e drops out.
    """
    if alpha == math.inf:
        return -0.5 * log_r2
    t = 1.0 - alpha
    log_s = torch.where(finite, t * torch.expm1(log_r2), 0.0).log1p()
    near = log_r2.abs() < 0.5
    small = torch.where(near, log_r2, 0.0)
    return 0.5 * torch.where(near, phi(small) - phi(torch.where(near, log_s, 0.0)) / t, log_s / t - log_r2)


def _total_variation(p: DiagGaussian, q: DiagGaussian) -> Tensor:
    """Return the total variation of every dimension, in units of the narrower normal: N(0, 1) and N(d, r^2)."""
    log_r = (p.log_std - q.log_std).abs()
    distance = (p.mean - q.mean).abs() / torch.minimum(p.log_std, q.log_std).exp()
    distance = distance.clamp_max(1e150)  # its square does not overflow
    equal = log_r < 1e-12
    between = masses_between_crossings(distance, torch.where(equal, 1.0, log_r))
    return torch.where(equal, torch.erf(distance / math.sqrt(8.0)), between).clamp(0.0, 1.0)
