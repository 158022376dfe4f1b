"""klrl explore-kl: one real run, its numbers against SciPy, and identities that must not survive a broken KL."""

import contextlib
import importlib.util
import io
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special, stats
from scipy.spatial.distance import jensenshannon

from klrl.report import page as report_page
from klrl.scripts.explore import (
    asymmetry,
    coding,
    dimensions,
    estimators,
    fits,
    gradients,
    inference,
    learning,
    regions,
    sections,
    supports,
    training,
    updates,
)
from klrl.scripts.explore.charts import Demo
from klrl.scripts.explore.contents import BrokenIdentity, Identity, shown
from klrl.scripts.explore.page import paragraphs
from klrl.scripts.main import main

SEED = 3
CHAPTERS = 10


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.links, self.ids, self.text = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        if self.tags and self.tags[-1] not in ("script", "style"):
            self.text.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the command printed, its page, and the chapters that it computed."""
    output, printed, kept = tmp_path_factory.mktemp("explore") / "kl.html", io.StringIO(), []
    explore = sections.explore
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "explore", lambda seed: kept.extend(explore(seed)) or kept)
        patch.setattr(estimators, "OPTIMAL", 10)
        main(["explore-kl", "-o", str(output), "--seed", str(SEED)])
    return printed.getvalue(), output.read_text(encoding="utf-8"), kept


@pytest.fixture(scope="module")
def value(made):
    """A number of the table by its name."""
    return {x.name: x.value for section in made[2] for x in section.numbers}.__getitem__


def generator(section):
    return torch.Generator().manual_seed(1000 * SEED + section - 1)


def test_the_page_is_whole_and_asks_no_network(made):
    page = Page(made[1])
    assert [link for link in page.links if not link.startswith("#")] == []
    assert {link[1:] for link in page.links} <= {*page.ids}
    assert len(page.ids) == len({*page.ids})
    assert "default-src 'none'" in made[1]
    assert len(made[1].encode()) < 1.8e6
    demos = [block for section in made[2] for block in section.blocks if isinstance(block, Demo)]
    assert made[1].count('class="plot"') == sum(len(demo.charts) for demo in demos) > 20
    assert sum(len(demo.sliders) for demo in demos) >= 12


def test_every_number_and_every_identity_is_on_the_page(made):
    text = " ".join(Page(made[1]).text)
    titles = re.findall(r"<h2>(\d+)\. ", made[1])
    assert titles == [str(i) for i in range(1, CHAPTERS + 1)]
    checked = [x for section in made[2] for x in section.identities]
    for section in made[2]:
        assert section.numbers
        assert section.identities
        assert section.title in text
        for number in section.numbers:
            assert number.name in text
            assert shown(number.value) in text
    assert [x for x in checked if str(x) not in text] == []
    assert len(checked) >= 35


def test_the_terminal_is_told_in_two_lines(made):
    first, second = made[0].splitlines()
    count = sum(len(section.identities) for section in made[2])
    assert first == f"checked: {count} equalities in {CHAPTERS} chapters hold"
    assert second.startswith("written: ")
    assert second.endswith("kl.html; open it in a browser, no network needed")


def test_text_is_text():
    assert paragraphs("a < b & *c*\n\n`<i>` w*k3*x") == [
        "a &lt; b &amp; <em>c</em>",
        "<code>&lt;i&gt;</code> w*k3*x",
    ]


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
    policy, reference, _ = torch.empty(3, 5, dtype=torch.float64).normal_(generator=generator(10)).softmax(-1).numpy()
    start = stats.entropy(policy, reference)
    assert value("KL(policy‖reference) after 60 steps down the loss k1") == pytest.approx(start, rel=1e-9)
    assert value("KL(policy‖reference) after 60 steps down the loss w*k3") < 0.01 * start
    assert value("combinations that are right") == 16  # as counted in the tables of test_kl_estimator_gradients.py


def test_learning(value):
    n = learning.TRIALS
    heads = learning.tosses(generator(6)).numpy()
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


def test_updates(value):
    def kl(p, q):
        return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))

    for p in (0.5, 0.9, 0.1, 0.01, 0.001):
        low, high = (value(f"probability {p:g} within 0.01 nats, {name}") for name in ("least", "largest"))
        assert low == pytest.approx(optimize.brentq(lambda q, p=p: kl(p, q) - 0.01, 1e-12, p), rel=1e-6)
        assert high == pytest.approx(optimize.brentq(lambda q, p=p: kl(p, q) - 0.01, p, 1 - 1e-9), rel=1e-9)
    assert value("probability 0.5 within 0.01 nats, largest") == pytest.approx(0.57, abs=5e-4)
    for name in ("least", "largest"):
        s = value(f"standard deviation within 0.01 nats, {name}, over the old one")
        assert math.log(s) + 0.5 / s**2 - 0.5 == pytest.approx(0.01, rel=1e-9)
    gains = [value(f"gain of the {name} gradient at 0.01 nats, standard deviation 1") for name in ("natural", "plain")]
    for gain, way in zip(gains, ((4.0, -1.0), (4.0, -2.0)), strict=True):  # F^-1 g and g, by hand
        size = optimize.brentq(lambda x, w=way: x * w[1] + 0.5 * (1 + (x * w[0]) ** 2) * math.exp(-2 * x * w[1])
                               - 0.5 - 0.01, 1e-6, 0.2)  # fmt: skip
        assert gain == pytest.approx(5 - (2 - size * way[0]) ** 2 - math.exp(2 * size * way[1]), rel=1e-9)
    assert gains[0] > gains[1]


def test_the_kept_trainings_are_as_the_page_says(made, value):
    kept = training.kept()
    assert kept["command"] == training.COMMAND
    ppo, trpo = (row["metrics"] for row in kept["rows"])
    assert max(trpo["drift/kl"]) <= training.TARGET < max(ppo["drift/kl"])
    assert value("PPO, clip 0.2: KL(first‖last)") > 10 * value("PPO, clip 0.2: sum of the updates' KL")
    assert value("PPO, clip 0.2: largest ratio") > 1.0 + updates.EPSILON
    for row in kept["rows"]:
        assert len({len(column) for column in row["metrics"].values()}) == 1
        # a length is the sum of mean roots, at most the root of the mean
        assert row["metrics"]["drift/path_length"][-1] <= sum((2 * x) ** 0.5 for x in row["metrics"]["drift/kl"]) + 1e-3


def test_a_training_is_kept_as_it_is_made():
    rows = training.trained(256)
    assert [row["trained"] for row in rows] == [row["trained"] for row in training.kept()["rows"]]
    for new, old in zip(rows, training.kept()["rows"], strict=True):
        assert new["metrics"].keys() == old["metrics"].keys()
        assert all(len(column) == 1 and math.isfinite(column[0]) for column in new["metrics"].values())


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
    (regions, scaled),
]


@pytest.mark.parametrize(("module", "wrong"), BROKEN, ids=lambda x: x.__name__.split(".")[-1])
def test_a_wrong_kl_breaks_an_identity_of_every_section(module, wrong, monkeypatch):
    monkeypatch.setattr(module, "kl_divergence", wrong)
    if module is estimators:
        monkeypatch.setattr(module, "REPEATS", 2)
        monkeypatch.setattr(module, "OPTIMAL", 2)
    with pytest.raises(BrokenIdentity):
        (updates if module is regions else module).section(generator(1))


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
        gradients.section(generator(10))


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["explore-kl", *map(str, words)])
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    return stop.value.code, line.strip()


def test_a_broken_identity_ends_the_command_with_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(coding, "kl_divergence", swapped)
    status, line = refused(capsys, "--output", tmp_path / "new.html")
    assert status == 1
    assert line.startswith("klrl explore-kl: cross-entropy -sum P log2 Q = H(P) + KL(P‖Q): left ")
    assert not list(tmp_path.iterdir())


def test_a_bad_file_a_bad_seed_and_a_missing_extra_are_refused_in_one_line(monkeypatch, capsys, tmp_path):
    status, line = refused(capsys, "--output", tmp_path)
    assert status == 2
    assert line == f"klrl explore-kl: output = {tmp_path}; allowed: a name that ends in .html"
    line = refused(capsys, "--output", tmp_path / "no" / "kl.html")[1]
    assert line.startswith(f"klrl explore-kl: output = {tmp_path / 'no' / 'kl.html'}: no directory ")
    assert refused(capsys, "--seed", -1)[1].startswith("klrl explore-kl: seed = -1; allowed: ")
    monkeypatch.setattr(report_page, "has_extra", lambda: False)
    status, line = refused(capsys, "--output", tmp_path / "new.html")
    assert (status, line) == (2, "klrl explore-kl: the report needs bokeh: pip install 'klrl[report]'")
    assert not list(tmp_path.iterdir())


def test_nothing_but_the_seed_decides(made, monkeypatch):
    again, other = coding.section(generator(1)), coding.section(torch.Generator().manual_seed(0))
    assert again == made[2][0] != other
    monkeypatch.setattr(estimators, "REPEATS", 2)
    monkeypatch.setattr(estimators, "OPTIMAL", 2)
    assert estimators.section(generator(5)) == estimators.section(generator(5))


def test_the_help_needs_no_plot_library():
    program = (
        "import sys; from klrl.scripts.main import main\n"
        "try: main(['explore-kl', '--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'bokeh', 'torch'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "usage: klrl explore-kl" in done.stdout
    assert importlib.util.find_spec("bokeh")
