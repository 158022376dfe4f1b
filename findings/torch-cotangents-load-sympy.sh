#!/usr/bin/env bash
# Guess: y.backward(g), torch.autograd.grad(y, x, g) and (y * g).sum().backward() are three ways to the same numbers at
# the same cost; the first two save a product and a sum.
# What happens: the first time that a gradient by the outputs is given, torch checks its shape with a function of
# torch.fx.experimental.symbolic_shapes, whose import brings the whole of sympy: some 480 modules, 30 MiB and a third
# of a second (measured where this was written), in a program that compiles and traces nothing. The scalar form, and
# g left out, load none of it. The numbers are the same to the bit.
# Why it matters: whatever multiplies by a Jacobian from the left (policy gradients written out by the outputs, Fisher
# vector products, distillation losses) pays that in every process: in each of many workers, and in short runs.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 2>pip.log || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import sys

import torch

how = sys.argv[1]
x = torch.linspace(-1.0, 1.0, 6).reshape(2, 3).requires_grad_()
g = torch.tensor([[0.3, -0.7, 2.0], [1.1, 0.0, -5.0]])
y, before = x.sin(), len(sys.modules)
assert "sympy" not in sys.modules
if how == "y.backward(g)":
    y.backward(g)
    found = x.grad
elif how == "grad(y, x, g)":
    (found,) = torch.autograd.grad(y, x, g)
else:
    (found,) = torch.autograd.grad((y * g).sum(), x)
more = len(sys.modules) - before
print(f"{how}: sympy {'loaded' if 'sympy' in sys.modules else 'not loaded'}, {'over 400' if more > 400 else more} modules")
assert torch.equal(found, x.detach().cos() * g)
assert ("sympy" in sys.modules, more > 400) == ((False, False) if "sum" in how else (True, True))
PY
venv/bin/python -c 'import torch; print("torch", torch.__version__.partition("+")[0])'
venv/bin/python case.py "y.backward(g)"
venv/bin/python case.py "grad(y, x, g)"
venv/bin/python case.py "grad((y * g).sum(), x)"
