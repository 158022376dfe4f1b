"""The page of klrl explore-kl in a real browser: its script computes what klrl.kl does, and its controls move it."""

import math

import pytest
import torch

from klrl.kl import entropy, kl_divergence, reverse_kl
from klrl.scripts.explore import estimators, fits, regions, updates
from klrl.scripts.explore.page import page as written
from klrl.scripts.explore.sections import LEAD, explore

NEAR = 1e-9


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The page, with fewer samples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimators, "REPEATS", 4)
        patch.setattr(estimators, "OPTIMAL", 2)
        html = written(explore(0), LEAD)
    path = tmp_path_factory.mktemp("explore") / "kl.html"
    path.write_text(html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def opened(watched, path):
    """Opens the page; complaints on the console, and requests, end the tests."""
    with watched(path) as open_file:
        yield lambda **context: open_file(**{"viewport": {"width": 1280, "height": 900}} | context)


@pytest.fixture(scope="module")
def page(opened):
    return opened()


def drawn(page, place):
    place.scroll_into_view_if_needed()
    page.wait_for_function("element => element.dataset.drawn", arg=place.element_handle())
    return place


def demo(page, live):
    """The demonstration that a function of the script moves, and what that says with the controls as they are."""
    number = page.evaluate(
        "live => JSON.parse(document.getElementById('data').textContent).demos.findIndex(x => x.live === live)", live
    )
    return page.locator(f'[data-demo="{number}"]')


def live(page, name, **values):
    """What the script's function returns for values of the controls, with the page's own constants."""
    return page.evaluate(
        """([name, values]) => LIVE[name](values,
            JSON.parse(document.getElementById("data").textContent).demos.find(x => x.live === name).given)""",
        [name, values],
    )


def test_coins_are_those_of_klrl(page):
    for p, q in ((0.7, 0.4), (0.02, 0.98), (0.5, 0.5), (0.3, 0.301)):
        P, Q = (regions.coin(torch.tensor(x, dtype=torch.float64)) for x in (p, q))
        assert page.evaluate("([p, q]) => klCoin(p, q)", [p, q]) == pytest.approx(float(kl_divergence(P, Q)), abs=NEAR)
        assert page.evaluate("p => entropyOf([p, 1 - p])", p) == pytest.approx(float(entropy(P)), abs=NEAR)
        columns = live(page, "code", p=p, q=q)["columns"]
        assert columns["entropy"]["y"][0] == pytest.approx(float(entropy(P, 2)), abs=NEAR)
        gap = columns["gap"]
        assert gap["high"][0] - gap["low"][0] == pytest.approx(float(kl_divergence(P, Q, 2)), abs=NEAR)
        columns = live(page, "directions", p=p, q=q)["columns"]
        expected = [float(kl_divergence(P, Q)), float(reverse_kl(P, Q))]
        assert columns["here"]["y"] == pytest.approx(expected, abs=NEAR)
        grid = torch.tensor(columns["forward"]["x"], dtype=torch.float64)
        every, P = regions.coin(grid), regions.coin(torch.full_like(grid, p))
        assert columns["forward"]["y"] == pytest.approx(kl_divergence(P, every).tolist(), abs=NEAR)
        assert columns["reverse"]["y"] == pytest.approx(reverse_kl(P, every).tolist(), abs=NEAR)


def test_gaussians_are_those_of_klrl(page):
    for m, s, M, S in ((0.0, 1.0, 0.1, 1.05), (1.0, 0.2, -2.0, 3.0), (0.5, 2.0, 0.5, 2.0)):
        expected = kl_divergence(regions.gaussian(m, s), regions.gaussian(M, S))
        assert page.evaluate("x => klGaussian(...x)", [m, s, M, S]) == pytest.approx(float(expected), abs=NEAR)
    words = live(page, "gaussians", mean=0.1, std=1.05, delta=updates.DELTAS.index(0.01))["words"]
    forward, reverse = regions.both(0.1, 1.05)
    assert words.startswith(f"KL(old‖new) = {forward:.4f} nats, inside the region of 0.01 nats; ")
    assert words.endswith(f"KL(new‖old) = {reverse:.4f} nats")


@pytest.mark.parametrize(("mean", "std"), [(1.0, 1.0), (-2.0, 0.6), (4.5, 0.3)])
def test_fits_are_those_of_klrl(page, mean, std):
    found = page.evaluate(
        """([mean, std]) => {
            const {demos} = JSON.parse(document.getElementById("data").textContent);
            const {grid, log_p} = demos.find(x => x.live === "fits").given;
            const log_q = logGaussian(grid, mean, std);
            return [klCells(log_p, log_q), klCells(log_q, log_p)];
        }""",
        [mean, std],
    )
    at = torch.tensor(mean, dtype=torch.float64), torch.tensor(math.log(std), dtype=torch.float64)
    expected = [float(fits.divergence(direction, *at)) for direction in ("forward", "reverse")]
    assert found == pytest.approx(expected, rel=NEAR, abs=NEAR)


@pytest.mark.parametrize("delta", updates.DELTAS)
def test_regions_are_those_of_klrl(page, delta):
    found = live(page, "probabilities", delta=updates.DELTAS.index(delta), epsilon=0.2)["columns"]
    p = torch.tensor(found["within"]["x"], dtype=torch.float64)
    low, high = regions.coin_within(p, delta)
    assert found["within"]["low"] == pytest.approx(low.tolist(), abs=NEAR)
    assert found["within"]["high"] == pytest.approx(high.tolist(), abs=NEAR)
    inner = torch.tensor(found["edge"]["x"], dtype=torch.float64)
    edge = kl_divergence(regions.coin(inner), regions.coin(1.2 * inner))
    assert found["edge"]["y"] == pytest.approx(edge.tolist(), abs=NEAR)
    curves = live(page, "gaussians", mean=0.0, std=1.0, delta=updates.DELTAS.index(delta))["columns"]
    for name, kl in (("forward", kl_divergence), ("reverse", reverse_kl)):
        x, y = (torch.tensor(curves[name][c], dtype=torch.float64) for c in "xy")
        assert kl(regions.gaussian(0.0, torch.ones_like(y)), regions.gaussian(x, y)).tolist() == pytest.approx(
            [delta] * len(x), abs=NEAR
        )
        assert x.max() > 0.9 * (2 * delta) ** 0.5
        assert x.min() == -x.max()
        assert y.min() < 1.0 < y.max()


def test_steps_are_those_of_klrl(page):
    stds = updates.STDS[::6]
    for way, gradient in (("plain", regions.plain_gradient), ("natural", regions.natural_gradient)):
        found = page.evaluate(
            f"""stds => stds.map(s => {{
                const d = {way}Gradient(s, {regions.GOAL}), size = sizeAt(s, d, {updates.DELTA});
                return [...d, gainOf(s, d, size, {regions.GOAL}), klOfStep(s, d, {updates.RATE})];
            }})""",
            stds.tolist(),
        )
        expected = gradient(stds)
        gain = regions.gain_at(stds, expected, updates.DELTA)
        kl = regions.kl_of_step(stds, expected, updates.RATE)
        columns = [expected.mean, expected.log_std, gain, kl]
        for mine, theirs in zip(zip(*found, strict=True), columns, strict=True):
            assert list(mine) == pytest.approx(theirs.tolist(), rel=1e-8, abs=NEAR)


def test_every_chart_is_drawn(page):
    places = page.locator(".plot").all()
    assert len(places) > 20
    for place in places:
        drawn(page, place)
        assert place.locator("canvas, .bk-Figure").count()


def data_of(page, place):
    """All numbers that are drawn in a chart."""
    return page.evaluate(
        """element => plots.get(element).figure.renderers.filter(x => x.data_source)
            .map(x => Object.values(x.data_source.data).map(y => [...y].join()).join()).join(";")""",
        place.element_handle(),
    )


def test_a_moved_slider_moves_the_chart_and_what_is_said(page):
    place = demo(page, "code")
    chart = drawn(page, place.locator(".plot").first)
    before, said = data_of(page, chart), place.locator(".said").inner_text()
    assert said.startswith("H(P) = 0.881 bits; H(P, Q) = 1.146 bits; KL(P‖Q) = 0.265 bits")
    slider = place.locator("input").nth(1)
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert place.locator("label b").nth(1).inner_text() == "0.41"
    assert place.locator(".said").inner_text() != said
    assert data_of(page, chart) != before
    page.keyboard.press("ArrowLeft")
    assert place.locator(".said").inner_text() == said
    assert data_of(page, chart) == before


def test_a_slider_of_kept_places_and_a_button(page):
    place = page.locator("#supports [data-demo]").first
    chart = drawn(page, place.locator(".plot").first)
    before = data_of(page, chart)
    assert "KL(P‖Q) = infinite" in place.locator(".said").inner_text()
    place.locator("input").focus()
    page.keyboard.press("Home")
    assert place.locator(".said").inner_text().startswith("KL(P‖Q) = 0 nats")
    assert data_of(page, chart) != before
    place = demo(page, "fits")
    place.get_by_role("button", name="left mode").click()
    assert place.locator(".said").inner_text().endswith("reverse KL(q‖p) = 0.510 nats")


def test_the_keyboard_reads_a_chart(page):
    place = drawn(page, demo(page, "directions").locator(".plot"))
    place.focus()
    page.keyboard.press("ArrowRight")
    said = place.locator("xpath=following-sibling::output").inner_text()
    assert said.startswith("q, the probability of heads under Q 0.005; KL(P‖Q): ")


def test_a_phone_in_the_dark_scrolls_in_one_direction(opened):
    page = opened(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True, color_scheme="dark")
    place = drawn(page, page.locator("#updates .plot").first)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert place.bounding_box()["width"] > 300
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, paper[4:-1].split(", "))) < 200
