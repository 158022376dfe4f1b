"""klrl explore-kl: one real run, its numbers against SciPy, and identities that must not survive a broken KL."""

import contextlib
import csv
import importlib.util
import io
import math
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy import integrate, optimize, special, stats
from scipy.spatial.distance import jensenshannon

from klrl.scripts import explore_kl
from klrl.scripts.explore import (
    asymmetry,
    coding,
    dimensions,
    estimators,
    fits,
    gradients,
    inference,
    learning,
    supports,
)
from klrl.scripts.explore.report import BrokenIdentity, Identity, rows, shown, write
from klrl.scripts.main import main

SEED = 3
FIGURES = [
    "01-coding-cost.png",
    "02-asymmetry.png",
    "03-forward-reverse.png",
    "04-disjoint-supports.png",
    "05-estimators.png",
    "06-gradients.png",
    "07-learning.png",
    "08-inference.png",
    "09-dimensions.png",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the command printed, and the folder that it filled."""
    folder, printed = tmp_path_factory.mktemp("explore") / "new" / "folder", io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(["explore-kl", "--output", str(folder), "--seed", str(SEED)])
    return printed.getvalue(), folder


@pytest.fixture(scope="module")
def value(made):
    """A number of the table by its name."""
    return {row["quantity"]: float(row["value"]) for row in table(made[1])}.__getitem__


def table(folder):
    with (folder / "numbers.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def generator(section):
    return torch.Generator().manual_seed(1000 * SEED + section - 1)


def test_all_figures_are_there_with_something_in_them_and_the_text_names_them(made):
    text, folder = made[0], made[1]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FIGURES, "README.md", "numbers.csv"])
    for name in FIGURES:
        image = imread(folder / name)
        assert min(image.shape[:2]) > 450
        assert 0.01 < (image[..., :3].min(-1) < 0.7).mean() < 0.6  # ink on paper
        assert f"]({name})" in text
        assert f"\n{name}: " in text


def test_the_text_is_printed_and_written_with_every_number_and_identity(made):
    printed, folder = made
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text in printed
    assert max(len(line) for line in text.split("## All numbers")[0].splitlines() if line[:1] not in "-![") <= 100
    assert re.findall(r"^## (\d)", text, flags=re.MULTILINE) == list("123456789")
    assert {row["section"] for row in table(folder)} == set("123456789")
    for row in table(folder):
        assert shown(float(row["value"])) in text
        assert row["quantity"].removesuffix(", left").removesuffix(", right") in text
    assert text.count(": left ") == sum(row["quantity"].endswith(", left") for row in table(folder)) >= 25


def test_coding_cost(value):
    P, Q = coding.P, coding.Q
    assert value("KL(P‖Q)") == pytest.approx(stats.entropy(P, Q, base=2), rel=1e-12)
    assert value("H(P)") == pytest.approx(stats.entropy(P, base=2), rel=1e-12)
    assert value("measured length, code for P") == pytest.approx(value("H(P)"), abs=0.06)


def test_asymmetry(value):
    fair, sure = (0.5, 0.5), asymmetry.SURE
    assert value("KL(fair‖nearly sure)") == pytest.approx(stats.entropy(fair, sure), rel=1e-12)
    assert value("KL(nearly sure‖fair)") == pytest.approx(stats.entropy(sure, fair), rel=1e-12)
    assert value("least KL of 6,000 between random pairs") > 0.0


def mixture(x):
    weights, means, stds = fits.WEIGHTS, fits.MEANS, fits.STDS
    return sum(w * stats.norm.pdf(x, m, s) for w, m, s in zip(weights, means, stds, strict=True))


def reverse(x):
    q = stats.norm(x[0], math.exp(x[1]))
    actions = np.linspace(x[0] - 9 * q.std(), x[0] + 9 * q.std(), 2001)
    return integrate.simpson(q.pdf(actions) * (q.logpdf(actions) - np.log(mixture(actions))), x=actions)


def test_fits(value):
    mean, std = value("forward fit: mean"), value("forward fit: standard deviation")
    assert mean == pytest.approx(integrate.quad(lambda a: a * mixture(a), -12, 12)[0], abs=1e-6)
    cross = integrate.quad(lambda a: mixture(a) * np.log(mixture(a) / stats.norm.pdf(a, mean, std)), -12, 12, limit=200)
    assert value("forward fit: its KL") == pytest.approx(cross[0], abs=1e-5)
    found = optimize.minimize(reverse, [2.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-9})
    assert value("reverse fit, right mode: mean") == pytest.approx(found.x[0], abs=1e-3)
    assert value("reverse fit, right mode: its KL") == pytest.approx(found.fun, abs=1e-5)


def test_disjoint_supports(value):
    cells, wide = supports.CELLS, supports.WIDE
    p, one, apart = (np.where((np.arange(cells) >= s) & (np.arange(cells) < s + wide), 1.0, 0.0) for s in (0, 1, wide))
    assert value("KL(P‖Q) at shift 1") == math.inf == stats.entropy(p, one)
    assert value("Jensen-Shannon at shift 1") == pytest.approx(jensenshannon(p, one) ** 2, rel=1e-9)
    way = stats.wasserstein_distance(np.arange(cells), np.arange(cells), p, apart)
    assert value(f"Wasserstein distance at shift {wide}") == pytest.approx(way, rel=1e-9)


def test_estimators(value):
    # k1 < 0 where the sample x > shift / 2; k2 is biased by shift^2 / 4 of the KL.
    shift = estimators.SHIFT
    assert value("share of negative samples of k1") == pytest.approx(stats.norm.sf(shift / 2), abs=0.005)
    assert value("k2, 3,000 samples: bias divided by the KL") == pytest.approx(shift**2 / 4, abs=0.01)
    expected = 2.0 / shift / math.sqrt(estimators.SIZES[-1])
    assert value("k1, 3,000 samples: standard deviation divided by the KL") == pytest.approx(expected, rel=0.2)
    wide = "300 samples of 16 dimensions: standard deviation divided by the KL"
    assert value(f"k3, {wide}") > value(f"k1, {wide}")


def test_gradients(value):
    policy, reference, _ = torch.empty(3, 5, dtype=torch.float64).normal_(generator=generator(6)).softmax(-1).numpy()
    start = stats.entropy(policy, reference)
    assert value("KL(policy‖reference) after 100 steps down the loss k1") == pytest.approx(start, rel=1e-9)
    assert value("KL(policy‖reference) after 100 steps down the loss w*k3") < 0.01 * start
    assert value("combinations that are right") == 16  # as counted in the tables of test_kl_estimator_gradients.py


def test_learning(value):
    n = learning.TRIALS
    heads = learning.tosses(generator(7)).numpy()
    least = optimize.minimize_scalar(
        lambda x: -stats.binom.logpmf(heads, n, x).mean(), bounds=(0.01, 0.99), method="bounded"
    )
    assert value("likeliest probability of heads") == pytest.approx(least.x, abs=1e-4)
    soft, predicted = learning.SOFT.numpy(), special.softmax(learning.LOGITS.numpy(), -1)
    kl = special.rel_entr(soft, predicted).sum(-1).mean()
    assert value("mean KL(label‖prediction), soft labels") == pytest.approx(kl, rel=1e-9)


def test_inference(value):
    a, b = inference.PRIOR
    heads, tails = inference.HEADS, inference.TAILS
    evidence = special.betaln(a + heads, b + tails) - special.betaln(a, b)
    assert value("log evidence of the tosses") == pytest.approx(evidence, rel=1e-9)
    policy = inference.POLICY.numpy()
    mean = np.broadcast_to(policy.mean(0), policy.shape)
    information = stats.entropy(policy, mean, axis=1).mean()
    assert value("mutual information of state and action") == pytest.approx(information, rel=1e-9)
    gain = integrate.quad(
        lambda x: stats.beta.pdf(x, a + heads, b + tails) * np.log(
            stats.beta.pdf(x, a + heads, b + tails) / stats.beta.pdf(x, a, b)), 1e-9, 1 - 1e-9
    )[0]  # fmt: skip
    assert value("information gained from the tosses, KL(posterior‖prior)") == pytest.approx(gain, abs=1e-7)


def test_dimensions(value):
    assert value("d = 17: KL, summed") == pytest.approx(17 * value("d = 17: mean over dimensions"), rel=1e-9)
    # E_old[w^2] = e^{m^2} between normals m apart, m^2 = 2 KL.
    for d in (1, 6, 17):
        share = value(f"d = {d}: effective sample size over sample size")
        assert share == pytest.approx(math.exp(-2.0 * d * dimensions.TARGET), rel=1e-9)


def swapped(p, q, *more, **settings):
    return kl(q, p, *more, **settings)


def scaled(*pair, **settings):
    return 1.2 * kl(*pair, **settings)


def shifted(*pair, **settings):
    return kl(*pair, **settings) + 0.2


kl = coding.kl_divergence
BROKEN = [
    (coding, swapped),
    (asymmetry, shifted),
    (fits, swapped),
    (supports, scaled),
    (estimators, scaled),
    (gradients, swapped),
    (learning, swapped),
    (inference, swapped),
    (dimensions, scaled),
]


@pytest.mark.parametrize(("module", "wrong"), BROKEN, ids=lambda x: x.__name__.split(".")[-1])
def test_a_wrong_kl_breaks_an_identity_of_every_section(module, wrong, monkeypatch):
    monkeypatch.setattr(module, "kl_divergence", wrong)
    if module is estimators:
        monkeypatch.setattr(module, "REPEATS", 2)
    with pytest.raises(BrokenIdentity):
        module.section(generator(1))


def test_an_identity_that_fails_names_both_sides_and_nan_is_no_agreement():
    assert str(Identity("a = b", 0.43124, 0.43124, "nats")) == "a = b: left 0.4312, right 0.4312 nats"
    with pytest.raises(BrokenIdentity, match=r"a = b: left 1\.0, right 1\.001 nats; they must agree"):
        Identity("a = b", 1.0, 1.001, "nats")
    with pytest.raises(BrokenIdentity):
        Identity("a = b", math.nan, math.nan, "nats")


def test_a_wrong_verdict_on_a_gradient_is_found(monkeypatch):
    def forgiving(loss, **where):
        verdict = estimator_gradient(loss, **where)
        return replace(verdict, expected=f"grad {verdict.target}", instead=None)

    estimator_gradient = gradients.estimator_gradient
    monkeypatch.setattr(gradients, "estimator_gradient", forgiving)
    with pytest.raises(BrokenIdentity, match="k1 on samples from policy"):
        gradients.section(generator(6))


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["explore-kl", *map(str, words)])
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    return stop.value.code, line.strip()


def test_a_broken_identity_ends_the_command_with_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(coding, "kl_divergence", swapped)
    status, line = refused(capsys, "--output", tmp_path / "new")
    assert status == 1
    assert line.startswith("klrl explore-kl: cross-entropy -sum P log2 Q = H(P) + KL(P‖Q): left ")
    assert not list((tmp_path / "new").iterdir())


def test_a_used_folder_a_bad_seed_and_missing_matplotlib_are_refused_in_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    status, line = refused(capsys, "--output", tmp_path)
    assert status == 2
    assert line == f"klrl explore-kl: output = {tmp_path} is not empty; allowed: a new or empty directory"
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]
    assert refused(capsys, "--seed", -1)[1].startswith("klrl explore-kl: seed = -1; allowed: ")
    monkeypatch.setattr(explore_kl, "installed", lambda package: package != "matplotlib")
    status, line = refused(capsys, "--output", tmp_path / "new")
    assert (status, line) == (2, "klrl explore-kl: the figures need matplotlib: pip install 'klrl[plots]'")
    assert not (tmp_path / "new").exists()


def test_nothing_but_the_seed_decides(made, monkeypatch, tmp_path):
    folder = made[1]
    again = coding.section(generator(1))
    write([again], "", tmp_path)
    assert (tmp_path / FIGURES[0]).read_bytes() == (folder / FIGURES[0]).read_bytes()
    other = coding.section(torch.Generator().manual_seed(0))
    mine = [list(row.values()) for row in table(folder) if row["section"] == "1"]
    assert rows([again]) == mine != rows([other])
    monkeypatch.setattr(estimators, "REPEATS", 2)
    assert rows([estimators.section(generator(5))]) == rows([estimators.section(generator(5))])


def test_the_help_needs_no_matplotlib():
    program = (
        "import sys; from klrl.scripts.main import main\n"
        "try: main(['explore-kl', '--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "usage: klrl explore-kl" in done.stdout
    assert importlib.util.find_spec("matplotlib")
