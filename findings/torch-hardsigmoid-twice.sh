#!/usr/bin/env bash
# Guess: every activation of torch.nn can be differentiated twice: ReLU6, Hardtanh and Hardswish, which are as piecewise, can.
# What happens: Hardsigmoid cannot. Its second derivative raises "derivative for aten::hardsigmoid_backward is not
# implemented", although Hardswish, which is x times it, has one, and so has relu6(x + 3) / 6, which is the same function.
# Why it matters: Fisher-vector and Hessian-vector products (TRPO, natural gradients, double backward of any kind) fail in the
# middle of a training for this one activation; forward-mode differentiation has it.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 2>pip.log || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import torch
from torch import nn


def twice(function):
    """Return whether u -> J' u can be differentiated by u, as a product with the Jacobian needs."""
    x = torch.linspace(-1.0, 1.0, 5, requires_grad=True)
    y = function(x)
    u = torch.zeros_like(y, requires_grad=True)
    try:
        (g,) = torch.autograd.grad(y, x, u, create_graph=True)
        torch.autograd.grad(g.sum(), u)
    except RuntimeError as error:
        return str(error)
    return "twice"


print("torch", torch.__version__.split("+")[0])
pieces = nn.Hardsigmoid()(x := torch.linspace(-4.0, 4.0, 33)), nn.functional.relu6(x + 3.0) / 6.0
assert torch.allclose(*pieces)
found = {kind.__name__: twice(kind()) for kind in (nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.ReLU6)}
found["relu6(x + 3) / 6"] = twice(lambda x: nn.functional.relu6(x + 3.0) / 6.0)
for name, said in found.items():
    print(f"{name}: {said}")
assert found.pop("Hardsigmoid") == "derivative for aten::hardsigmoid_backward is not implemented"
assert set(found.values()) == {"twice"}
PY
venv/bin/python case.py
