#!/usr/bin/env bash
# Guess: torch.nn.utils.skip_init(nn.Linear, ...) is never slower than nn.Linear(...): it leaves out the drawing of the
# initial weights and does nothing else.
# What happens: it makes the layer on the meta device and moves it with to_empty(), whose empty_like goes through torch's
# Python references. The first call of a process imports sympy and torch.fx's symbolic shapes, several hundred modules,
# and costs more than a hundred times an ordinary layer of 64 x 64 (0.7 s of CPU time where this was written).
# Why it matters: a library that calls it for small networks, so as not to disturb the global generator, pays half of
# PyTorch's own import time again in every process: every command, every worker. fork_rng() around the ordinary
# constructor leaves the generator alone, too.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 2>pip.log || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import sys
import time

import torch
from torch import nn


def cost(make):
    start = time.process_time()
    make()
    return time.process_time() - start


print("torch", torch.__version__.split("+")[0])
cost(lambda: nn.Linear(64, 64))
with torch.random.fork_rng(devices=()):
    plain = cost(lambda: nn.Linear(64, 64))
assert "sympy" not in sys.modules
skipping = cost(lambda: nn.utils.skip_init(nn.Linear, 64, 64))
assert "sympy" in sys.modules
print(f"the first skip_init costs {'more' if skipping > 100.0 * plain else 'less'} than a hundred ordinary layers")
assert skipping > 100.0 * plain, (skipping, plain)
PY
venv/bin/python case.py
