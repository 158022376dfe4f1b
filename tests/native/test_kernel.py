"""The C file on its own: its functions, what compilers and sanitizers say of it, and klrl without it."""

import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from klrl.agents import PPO
from klrl.native import LEVELS, Network, at_level, available, find
from klrl.native.library import VERSION

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "klrl/native/kernel.c"
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math"]
needs_kernel = pytest.mark.skipif(not available(), reason="the kernel was not built")
needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")


def numbers(low, high, n=2**18):
    """Evenly spaced numbers, and small ones of every size."""
    small = np.logspace(-38, 0, n) * np.where(np.arange(n) % 2, 1.0, -1.0)
    return np.concatenate([np.linspace(low, high, n), small]).astype(np.float32)


@needs_kernel
@pytest.mark.parametrize("level", available())
@pytest.mark.parametrize(
    ("name", "exact", "low", "high", "ulp"),
    [("exp", np.exp, -87.0, 88.7, 1.1), ("expm1", np.expm1, -30.0, 79.0, 1.7), ("tanh", np.tanh, -10.0, 10.0, 2.5)],
)
def test_functions_are_off_by_a_few_units_in_the_last_place(level, name, exact, low, high, ulp):
    x = numbers(low, high)
    expected = exact(x.astype(np.float64))
    y = at_level(level).function(name, x)
    assert (np.abs(y - expected) <= ulp * np.spacing(np.abs(expected.astype(np.float32)))).all()


@needs_kernel
@pytest.mark.parametrize("level", available())
def test_functions_keep_what_is_not_finite_and_what_is_beyond(level):
    x = np.array([np.nan, np.inf, -np.inf, 200.0, -200.0, 89.5, -103.0, 0.0] * 2, np.float32)
    kernel = at_level(level)
    with np.errstate(over="ignore", under="ignore"):
        np.testing.assert_allclose(kernel.function("exp", x), np.exp(x), rtol=1e-6, atol=2e-45)
    expected = np.expm1(x.astype(np.float64))
    expected[x > 80.0] = np.inf
    np.testing.assert_allclose(kernel.function("expm1", x), expected)
    np.testing.assert_array_equal(kernel.function("tanh", x), np.tanh(x))


@needs_kernel
@pytest.mark.parametrize("level", available())
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("own", [0, 3])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 5, 2), (17, 64, 64, 6), (9, 70, 33, 18), (4, *[6] * 15, 5)])
def test_outputs_are_those_of_the_layers_in_float64(level, sizes, own, relu):
    g = torch.Generator().manual_seed(sum(sizes))
    layers = [(torch.randn(o, i, generator=g) / i**0.5, torch.randn(o, generator=g)) for i, o in pairwise(sizes)]
    theta = torch.cat([torch.full((own,), torch.nan), *[x.ravel() for layer in layers for x in layer]]).numpy()
    network = Network.with_layers(sizes, theta, relu=relu)
    for rows in (1, 2, 15, 16, 17, 64, 65, 150):
        outputs = at_level(level).outputs(network, rows)
        for _ in range(2):
            x = torch.randn(rows, sizes[0], generator=g, dtype=torch.float64)
            expected = x.float().double()
            for k, (W, b) in enumerate(layers):
                if k:
                    expected = expected.relu() if relu else expected.tanh()
                expected = expected @ W.double().T + b.double()
            got = outputs(x.numpy())
            assert (got.dtype, got.shape) == (np.float32, (rows, sizes[-1]))
            np.testing.assert_allclose(got, expected.numpy(), rtol=2e-5, atol=2e-5)


@needs_kernel
@pytest.mark.parametrize("level", available())
def test_outputs_follow_the_parameters_and_keep_what_is_not_finite(level):
    theta = np.array([0.5, 2.0, 3.0, 0.25], np.float32)
    outputs = at_level(level).outputs(Network.with_layers((3, 1), theta), 3)
    x = np.array([[1.0, 1.0, 1.0], [np.nan, 0.0, 0.0], [0.0, np.inf, 0.0]])
    first = outputs(x)
    np.testing.assert_array_equal(first, [[5.75], [np.nan], [np.inf]])
    theta *= 2.0
    np.testing.assert_array_equal(outputs(x), [[11.5], [np.nan], [np.inf]])
    assert first[0, 0] == 5.75


@needs_kernel
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("own", [0, 3])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 5, 2), (17, 64, 64, 6), (9, 70, 33, 18), (5, 16, 32, 40, 1)])
def test_products_with_the_jacobian_are_those_of_autograd_in_float64(sizes, own, relu):
    g = torch.Generator().manual_seed(sum(sizes))
    shapes = [(own,), *[shape for i, o in pairwise(sizes) for shape in ((o, i), (o,))]]
    cuts = [int(np.prod(shape)) for shape in shapes]
    theta = torch.randn(sum(cuts), generator=g) / max(sizes) ** 0.5
    network = Network.with_layers(sizes, theta.numpy(), relu=relu)
    for rows in (1, 15, 16, 65, 150):
        x = torch.randn(rows, sizes[0], generator=g)

        def outputs(vector, x=x):
            _, *layers = [piece.reshape(shape) for piece, shape in zip(vector.split(cuts), shapes, strict=True)]
            h = x.double()
            for k in range(0, len(layers), 2):
                h = (h.relu() if relu else h.tanh()) if k else h
                h = h @ layers[k].T + layers[k + 1]
            return h

        v, u = torch.randn(len(theta), generator=g), torch.randn(rows, sizes[-1], generator=g)
        expected, Jv = torch.autograd.functional.jvp(outputs, theta.double(), v.double())
        _, Ju = torch.autograd.functional.vjp(outputs, theta.double(), u.double())
        for level in available():
            at = at_level(level).linearize(network, x.numpy())
            for got, exact in (
                (at.outputs, expected),
                (at.push_forward(v.numpy()), Jv),
                (at.pull_back(u.numpy()), Ju),
            ):
                assert got.dtype == np.float32
                assert np.linalg.norm(got - exact.numpy()) <= 2e-6 * exact.norm() + 1e-7, (level, rows)
            again = at.push_forward(v.numpy()), at.pull_back(u.numpy())
            np.testing.assert_array_equal(again[0], at.push_forward(v.numpy()))
            np.testing.assert_array_equal(again[1], at.pull_back(u.numpy()))
            alone = at_level(level).linearize(network, x.numpy(), derivative=False)
            np.testing.assert_array_equal(alone.outputs, at.outputs)


@needs_kernel
def test_the_variable_chooses_a_level_or_none(monkeypatch):
    monkeypatch.delenv("KLRL_NATIVE", raising=False)
    assert find() is at_level(available()[-1])
    for level in available():
        monkeypatch.setenv("KLRL_NATIVE", level)
        assert find().level == PPO("CartPole-v1").describe()["paths"]["kernel"] == level
    monkeypatch.setenv("KLRL_NATIVE", "off")
    assert find() is None
    paths = PPO("CartPole-v1").describe()["paths"]
    assert (paths["kernel"], paths["optimizer"]) == ("off", "numpy")
    monkeypatch.setenv("KLRL_NATIVE", "fast")
    levels = ", ".join((*reversed(available()), "off"))
    with pytest.raises(ValueError, match=f"^KLRL_NATIVE = fast; allowed here: {levels}$"):
        PPO("CartPole-v1")


def test_levels_are_in_ascending_order_and_the_versions_agree():
    assert available() == LEVELS[: len(available())]
    assert f"int klrl_version(void) {{ return {VERSION}; }}" in SOURCE.read_text()


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_compilers_have_no_objections(compiler, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    command = [
        compiler,
        *FLAGS,
        "-Wall",
        "-Wextra",
        "-Werror",
        "-shared",
        "-fPIC",
        SOURCE,
        "-lm",
        "-o",
        tmp_path / "k.so",
    ]
    subprocess.run(command, check=True)


MAIN = r"""
#include "kernel.c"
#include <stdio.h>

static uint32_t state = 1;
static float uniform(void) { state = state * 1664525u + 1013904223u; return (float)(state >> 8) / 8388608.0f - 1.0f; }
static float *floats(int64_t n, float size) {
  float *x = malloc(sizeof(float) * (size_t)n);
  for (int64_t i = 0; i < n; i++) x[i] = size * uniform();
  return x;
}
static Network network(int64_t layers, const int64_t *sizes, int64_t own, int64_t relu) {
  Network net = {.layers = layers, .own = own, .relu = relu, .rate = 1e-3};
  memcpy(net.sizes, sizes, sizeof(int64_t) * (size_t)(layers + 1));
  int64_t P = size_of(&net);
  net.theta = floats(P, 0.3f), net.mean = calloc((size_t)P, 4), net.square = calloc((size_t)P, 4);
  return net;
}
static void drop(Network *net) { free(net->theta), free(net->mean), free(net->square); }

int main(void) {
  const int64_t shapes[][4] = {{1, 1, 1, 1}, {3, 5, 2, 7}, {17, 64, 6, 64}, {16, 16, 4, 100}, {33, 70, 18, 130}};
  int64_t (*const epochs[])(Network *, Network *, const Samples *, const Loss *, double *) = {
      klrl_epoch_plain, klrl_epoch_avx2, klrl_epoch_avx512};
  void (*const outputs[])(const Network *, float *, int64_t, const float *, float *, int64_t) = {
      klrl_outputs_plain, klrl_outputs_avx2, klrl_outputs_avx512};
  void (*const products[][2])(const Network *, float *, int64_t, const float *, float *) = {
      {klrl_push_plain, klrl_pull_plain}, {klrl_push_avx2, klrl_pull_avx2}, {klrl_push_avx512, klrl_pull_avx512}};
  for (int level = 0; level <= klrl_level(); level++)
    for (int s = 0; s < 5; s++)
      for (int policy = 0; policy < 4; policy++) {
        int64_t in = shapes[s][0], wide = shapes[s][1], d = shapes[s][2], batch = shapes[s][3], n = 2 * batch + 1;
        int64_t categorical = policy >= 2, mask = policy == 3 ? in : 0, width = in + (mask ? d : 0);
        int64_t hidden[] = {in, wide, wide, policy == 1 ? 2 * d : d}, short_[] = {in, 1};
        Network actor = network(3, hidden, policy == 0 ? d : 0, s % 2), critic = network(1, short_, 0, 0);
        int64_t *order = malloc(sizeof(int64_t) * (size_t)n), *choices = malloc(sizeof(int64_t) * (size_t)n);
        for (int64_t i = 0; i < n; i++) order[i] = n - 1 - i, choices[i] = 0;
        float *x = floats(n * width, 1.0f);
        for (int64_t i = 0; mask && i < n; i++) x[i * width + mask] = 1.0f;
        float *a = floats(n * d, 1.0f), *old = floats(n * d, 0.3f), *old_s = floats(n * d, 0.3f), *p = floats(n, 1.0f);
        float *A = floats(n, 1.0f), *R = floats(n, 1.0f);
        double *metrics = malloc(sizeof(double) * (size_t)(3 * ((n + batch - 1) / batch)));
        Samples samples = {n, batch, width, mask, order, choices, x, a, p, A, R, old, old_s};
        for (int surrogate = PLAIN; surrogate <= ROLLBACK; surrogate++) {
          double beta = surrogate % 2 ? 0.5 : 0.0;
          Loss loss = {surrogate, categorical, d, 0.2, 0.3, beta, 0.5, 0.01, 0.2, 0.0, 0.5, 0.9, 0.999, 1e-5};
          if (epochs[level](&actor, &critic, &samples, &loss, metrics) != (n + batch - 1) / batch) return 1;
          if (epochs[level](NULL, &critic, &samples, &loss, metrics) != (n + batch - 1) / batch) return 2;
        }
        x[0] = NAN; /* in the last minibatch */
        Loss loss = {PLAIN, categorical, d, 0.2, 0.3, 0.5, 0.5, 0.0, 0.2, 0.0, 0.5, 0.9, 0.999, 1e-5};
        if (epochs[level](&actor, &critic, &samples, &loss, metrics) != (n + batch - 1) / batch - 1) return 3;
        float *memory = floats(klrl_room(&actor, 0), 1.0f), *rows = floats(batch * in, 1.0f);
        float *y = floats(batch * hidden[3], 0.0f), *v = floats(size_of(&actor), 1.0f);
        outputs[level](&actor, memory, batch, rows, y, 0);
        float *more = floats(klrl_room(&actor, batch), 1.0f);
        outputs[level](&actor, more, batch, rows, y, 1);
        products[level][0](&actor, more, batch, v, y);
        products[level][1](&actor, more, batch, y, v);
        free(memory), free(more), free(rows), free(y), free(v);
        drop(&actor), drop(&critic), free(order), free(choices), free(x), free(a), free(old), free(old_s), free(p);
        free(A), free(R), free(metrics);
      }
  return puts("done") < 0;
}
"""


@needs_compiler
def test_sanitizers_find_nothing_in_ragged_shapes(tmp_path):
    (tmp_path / "main.c").write_text(MAIN)
    program = tmp_path / "main"
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-I", SOURCE.parent]
    if subprocess.run(["gcc", *flags, tmp_path / "main.c", "-lm", "-o", program], capture_output=True).returncode:
        pytest.skip("gcc has no sanitizers here, or another processor's levels")
    result = subprocess.run([program], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


def test_klrl_is_built_without_a_compiler(tmp_path):
    pytest.importorskip("setuptools")
    program = "import setuptools; setuptools.setup()"
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        program,
        "build_ext",
        "--build-lib",
        tmp_path,
        "--build-temp",
        tmp_path,
    ]
    result = subprocess.run(
        [*command, "--force"], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"CC": "/bin/false"}
    )
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.rglob("_kernel*.so"))


@needs_kernel
def test_without_the_file_numpy_computes_and_the_variable_says_why(tmp_path):
    shutil.copytree(ROOT / "klrl", tmp_path / "klrl", ignore=shutil.ignore_patterns("_kernel*"))
    program = (
        "import klrl, klrl.native; assert klrl.native.available() == ()\n"
        "print(klrl.PPO('CartPole-v1').learn(1).describe()['paths']['kernel'])\n"
        "import os; os.environ['KLRL_NATIVE'] = 'plain'; klrl.PPO('CartPole-v1')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "KLRL_NATIVE": ""},
    )  # fmt: skip
    assert result.stdout == "not built\n", result.stderr
    assert result.stderr.strip().endswith(
        "KLRL_NATIVE = plain; allowed here: off: the kernel was not built with klrl, which takes a C compiler"
    )
