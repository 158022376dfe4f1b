#!/usr/bin/env bash
# Guess: kl_divergence of two Binomials is n times that of two Bernoullis, never negative, and 0 between equal ones; that of
# Poisson(0), which is always 0, and Bernoulli(0.2) is -log(0.8).
# What happens: with logits of 20, whose probability is 1 in float32, Binomial(3) against a fair one gives minus infinity and
# against itself NaN, where Bernoulli gives log(2) and 0; with logits of 16.6 it gives twice the right value. Poisson(0)
# against Bernoulli(0.2) gives infinity and against Poisson(1), whose answer is 1, NaN: one formula says infinity for every
# rate, the other takes 0 log(0).
# Why it matters: a policy of counts, or a penalty by KL, meets logits of 17 as soon as it has become sure. A trust region
# asks whether KL <= limit: minus infinity passes that, whatever the step was. log_prob is right in all these cases.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 2>pip.log || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import math

import torch
from torch.distributions import Bernoulli, Binomial, Poisson, kl_divergence


def summed(p, q, outcomes):
    """Return KL(p || q) as the sum over the outcomes that p can have, by log_prob."""
    x = torch.tensor(outcomes)
    log_p = p.log_prob(x)
    return (log_p.exp() * (log_p - q.log_prob(x))).sum().item()


def coin(logits):
    return Bernoulli(logits=torch.tensor(logits))


def three(logits):
    return Binomial(3, logits=torch.tensor(logits))


counts = [0.0, 1.0, 2.0, 3.0]
cases = {
    "Bernoulli, logits 20 and 0": (coin(20.0), coin(0.0), counts[:2]),
    "Binomial(3), logits 20 and 0": (three(20.0), three(0.0), counts),
    "Binomial(3), logits 20 and 20": (three(20.0), three(20.0), counts),
    "Binomial(3), logits 16.6 and 0": (three(16.6), three(0.0), counts),
    "Binomial(3), logits 2 and 0": (three(2.0), three(0.0), counts),
    "Poisson(0), Bernoulli(0.2)": (Poisson(0.0), Bernoulli(0.2), counts[:1]),
    "Poisson(0), Poisson(1)": (Poisson(0.0), Poisson(1.0), counts[:1]),
}
print("torch", torch.__version__.split("+")[0])
seen = {}
for name, (p, q, outcomes) in cases.items():
    seen[name] = kl_divergence(p, q).item(), summed(p, q, outcomes)
    print("{}: {:.4f}, summed over the outcomes {:.4f}".format(name, *seen[name]))
given, right = zip(*seen.values())
log2 = math.log(2.0)
two = 3.0 * (torch.sigmoid(torch.tensor(2.0)).item() * 2.0 + math.log(2.0) - math.log1p(math.exp(2.0)))
for value, expected in zip(right, (log2, 3.0 * log2, 0.0, 3.0 * log2, two, -math.log(0.8), 1.0), strict=True):
    assert abs(value - expected) < 1e-4, (value, expected)
assert abs(given[0] - right[0]) < 1e-4 and abs(given[4] - right[4]) < 1e-4
assert given[1] == -math.inf and math.isnan(given[2]) and given[3] > 1.9 * right[3]
assert given[5] == math.inf and math.isnan(given[6])
PY
venv/bin/python case.py
