#!/usr/bin/env bash
# Guess: kl_divergence of two batches of Wishart distributions holds, entry by entry, the divergence of each pair.
# What happens: the part that comes from the degrees of freedom is summed over the whole batch and added to every entry. The
# general rule for exponential families sums each natural parameter over as many last dimensions as an event has, two here,
# and the degrees of freedom have batch dimensions only. Of three pairs here, that of two equal distributions gets 0.66 and
# another -0.73. Equal degrees of freedom in every pair hide it, and so does a batch of one.
# Why it matters: Wisharts are posteriors and priors of precisions (noise models, Bayesian dynamics). A variational penalty or
# a trust region on a minibatch of them is wrong for each entry, by an amount that grows with the batch.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 scipy==1.17.1 2>pip.log \
  || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import numpy as np
import torch
from scipy.special import digamma, multigammaln
from torch.distributions import Wishart, kl_divergence


def by_hand(n, v, m, w):
    """Return KL(W(n, v) || W(m, w)) in its closed form."""
    d = len(v)
    ratio = np.linalg.solve(w, v)
    psi = digamma((n - np.arange(d)) / 2.0).sum()
    return (
        -m / 2.0 * np.linalg.slogdet(ratio)[1] + n / 2.0 * (np.trace(ratio) - d)
        + multigammaln(m / 2.0, d) - multigammaln(n / 2.0, d) + (n - m) / 2.0 * psi
    )


def together(n, v, m, w):
    n, v, m, w = map(torch.as_tensor, (n, v, m, w))
    return kl_divergence(Wishart(n, covariance_matrix=v), Wishart(m, covariance_matrix=w)).detach().numpy()


eye = np.eye(2)
n, v = np.array([3.0, 4.0, 6.0]), np.stack([eye, [[2.0, 0.5], [0.5, 1.0]], eye])
m, w = np.array([5.0, 4.0, 5.0]), np.stack([eye / 2.0, [[2.0, 0.5], [0.5, 1.0]], eye])
print("torch", torch.__version__.split("+")[0])
right = np.array([by_hand(*pair) for pair in zip(n, v, m, w)])
alone = np.array([together(*pair) for pair in zip(n, v, m, w)])
batch = together(n, v, m, w)
for name, values in ("closed form", right), ("one by one", alone), ("as a batch", batch):
    print(f"{name}:", " ".join(f"{x:.4f}" for x in values + 0.0))

# The term of the degrees of freedom: (n - m) / 2 times E_p[log det X].
mean_log_det = np.array([digamma((a - np.arange(2)) / 2.0).sum() + np.linalg.slogdet(2.0 * b)[1] for a, b in zip(n, v)])
term = (n - m) / 2.0 * mean_log_det
print("batch as the sum predicts:", np.allclose(batch, right - term + term.sum()))
assert np.allclose(alone, right) and np.allclose(batch, right - term + term.sum()) and not np.allclose(batch, right)
assert abs(right[1]) < 1e-12 < 0.6 < batch[1] and batch[2] < -0.7
assert np.allclose(together(n, v, n, w), [by_hand(*pair) for pair in zip(n, v, n, w)])
PY
venv/bin/python case.py
