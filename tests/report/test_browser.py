"""The page in a real browser: what it draws, what it answers, and that it asks no network for anything."""

import io
from collections import Counter

import numpy as np
import pytest
from environments import Broken, small_agent
from made_runs import described, rows, write_audit, write_run
from PIL import Image
from test_reading import Stop

from klrl.agents import PPO, load_agent
from klrl.report import write

VISIBLE = "figure:not([hidden]) .plot"


@pytest.fixture
def opened(watched, tmp_path):
    """Opens a report of these paths; complaints on the console and requests end the test."""
    with watched(tmp_path / "report.html") as open_file:

        def open_report(*paths, **context):
            write(paths, tmp_path / "report.html")
            return open_file(**{"viewport": {"width": 1300, "height": 900}} | context)

        yield open_report


def plot(page, section, chart, env=0):
    """The place of a chart, drawn."""
    place = page.locator(f'#{section} figure[data-chart="{chart}"][data-env="{env}"] .plot')
    place.scroll_into_view_if_needed()
    page.wait_for_function("element => element.dataset.drawn", arg=place.element_handle())
    return place


def frames(page, number):
    """Wait until the page has been drawn so many times."""
    for _ in range(number):
        page.evaluate("new Promise(done => requestAnimationFrame(done))")


def ink(page, place):
    """Number of pixels of a chart that are neither white, black nor grey, by colour in sixteenths."""
    frames(page, 6)
    shot = np.asarray(Image.open(io.BytesIO(place.screenshot())).convert("RGB")).reshape(-1, 3)
    coloured = shot[np.ptp(shot, axis=1) > 60] >> 4
    return Counter(map(tuple, coloured.tolist()))


BLUE, ORANGE = (0, 7, 11), (13, 5, 0)
"""Colours of the first two variants, in sixteenths."""


def tips(page):
    return [
        tip.evaluate("e => e.shadowRoot.textContent") for tip in page.locator(".bk-Tooltip").all() if tip.is_visible()
    ]


def hover(page, place, across=0.6):
    """Move over a chart, at a share of its width, until it answers, and return what it says."""
    box = place.bounding_box()
    for i in range(5, 55):
        page.mouse.move(box["x"] + across * box["width"], box["y"] + box["height"] * i / 60)
        frames(page, 3)
        if said := tips(page):
            return said[0]
    raise AssertionError("no hover")


def two_variants(tmp_path, seeds=1, updates=40):
    for target in (0.01, 0.02):
        for seed in range(seeds):
            config = described(seed=seed, target_kl=target, total_timesteps=2048 * updates)
            write_run(tmp_path / f"runs/{target} {seed}", rows(updates, seed, target), config)
    return tmp_path / "runs"


def test_a_report_of_one_run(opened, tmp_path):
    agent = small_agent(PPO)
    agent.learn(256, run_dir=tmp_path / "one")
    page = opened(tmp_path / "one")
    place = plot(page, "drift", "drift/kl|steps")
    assert ink(page, place)[BLUE] > 50
    said = hover(page, place)
    assert "KL, nats" in said
    assert "environment steps" in said
    assert page.locator("#failures").inner_text().endswith("every file could be read.")


def test_a_variant_is_switched_off_and_on_again(opened, tmp_path):
    page = opened(two_variants(tmp_path))
    place = plot(page, "drift", "drift/kl|steps")
    both = ink(page, place)
    assert min(both[BLUE], both[ORANGE]) > 50
    page.get_by_label("target_kl=0.02").uncheck()
    one = ink(page, place)
    assert one[BLUE] > 50
    assert ORANGE not in one
    assert "target_kl=0.02" not in page.locator("#drift .legend").inner_text()
    page.get_by_label("target_kl=0.02").check()
    assert ink(page, place)[ORANGE] > 50


def test_an_environment_is_switched_off(opened, tmp_path):
    for env in ("A-v1", "B-v1"):
        write_run(tmp_path / f"runs/{env}", rows(5), described(env=env))
    page = opened(tmp_path / "runs")
    before = page.locator(VISIBLE).count()
    page.get_by_role("checkbox", name="A-v1").uncheck()
    assert page.locator(VISIBLE).count() == before / 2
    assert page.locator('figure[data-env="1"]').first.is_visible()


def test_the_keyboard_reads_a_curve_and_zooms(opened, tmp_path):
    history = rows(5)
    page = opened(write_run(tmp_path / "runs", history, described()))
    place = plot(page, "drift", "drift/kl|steps")
    place.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    said = place.locator("xpath=following-sibling::output")
    kl = float(f"{history[1]['drift/kl']:.4g}")
    assert said.inner_text() == f"environment steps 4096; ppo: {kl}"
    before = ink(page, place)
    page.keyboard.press("+")
    assert ink(page, place) != before
    page.keyboard.press("0")
    for _ in range(12):  # there may be buttons on the way
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    else:
        raise AssertionError("the chart keeps the focus")


def test_intervals_seeds_and_a_logarithmic_axis(opened, tmp_path):
    page = opened(two_variants(tmp_path, seeds=3))
    place = plot(page, "drift", "drift/kl|steps")
    assert page.get_by_label("mean over seeds, 95 % interval").is_checked()
    said = hover(page, place)
    assert "95 % interval" in said
    assert "seeds" in said
    mean = ink(page, place)
    page.get_by_label("every seed").check()
    assert ink(page, plot(page, "drift", "drift/kl|steps")) != mean
    page.get_by_label("KL on a logarithmic axis").check()
    assert ink(page, plot(page, "drift", "drift/kl|steps"))[BLUE] > 50


def test_a_report_of_60_runs_is_small_and_answers(opened, tmp_path):
    for env in ("A-v1", "B-v1"):
        for target in (0.01, 0.02, 0.03):
            for seed in range(10):
                config = described(seed=seed, env=env, target_kl=target, total_timesteps=2048 * 500)
                write_run(tmp_path / f"runs/{env} {target} {seed}", rows(500, seed, target), config)
    page = opened(tmp_path / "runs")
    assert (tmp_path / "report.html").stat().st_size < 6e6
    place = plot(page, "drift", "drift/kl|steps", env=1)
    assert min(ink(page, place)[colour] for colour in (BLUE, ORANGE)) > 50
    page.get_by_label("target_kl=0.02").uncheck()
    assert ORANGE not in ink(page, place)


def test_a_failed_and_a_resumed_run(opened, tmp_path):
    broken = small_agent(PPO, lambda: Broken("reward", 0))
    with pytest.raises(FloatingPointError):
        broken.learn(96, run_dir=tmp_path / "runs/broken")
    with pytest.raises(KeyboardInterrupt):
        small_agent(PPO).learn(256, Stop(2), run_dir=tmp_path / "runs/resumed")
    load_agent(tmp_path / "runs/resumed").resume(run_dir=tmp_path / "runs/resumed")
    page = opened(tmp_path / "runs")
    assert "the step is in non-finite.npz" in page.locator("#failures table").inner_text()
    table = page.locator("#overview table", has_text="continued").inner_text()
    assert "once" in table
    assert ink(page, plot(page, "drift", "drift/kl|steps", env=1))


def test_the_log_of_another_library(opened, tmp_path):
    history = [{"drift/kl": 0.01 * i, "drift/kl_target": 0.025} for i in range(6)]
    page = opened(write_run(tmp_path / "theirs", history))
    said = hover(page, plot(page, "drift", "drift/kl|steps"))
    assert "updates" in said
    assert page.locator("#learning").count() == 0


def test_hostile_names_are_text_also_where_the_script_writes_them(opened, tmp_path):
    hostile = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
    page = opened(write_run(tmp_path / "run", rows(5), described(env=hostile) | {"agent": hostile}))
    place = plot(page, "drift", "drift/kl|steps")
    assert hostile in hover(page, place)
    place.focus()
    page.keyboard.press("ArrowRight")
    assert hostile in page.locator("#drift .legend").inner_text()
    assert page.locator("img").count() == 0
    assert page.title() == "Report on run"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_text_can_be_read(opened, tmp_path, scheme):
    page = opened(two_variants(tmp_path), color_scheme=scheme)
    plot(page, "drift", "drift/kl|steps")
    found = page.evaluate("""() => {
        const rgb = element => getComputedStyle(element).color.match(/[0-9]+/g).slice(0, 3).map(Number);
        const paper = getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number);
        const chosen = ["h1", ".about", "nav a", "td", ".about code", "main summary"];
        return {paper, inks: chosen.map(name => rgb(document.querySelector(name)))};
    }""")
    light = [contrast(found["paper"], one) for one in found["inks"]]
    assert min(light) >= 4.5  # WCAG 2.2, 1.4.3
    assert (sum(found["paper"]) > 380) == (scheme == "light")


def contrast(one, other):
    """Contrast of two colours, WCAG 2.2."""

    def luminance(rgb):
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in (v / 255.0 for v in rgb)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_phone_shows_everything_without_scrolling_sideways(opened, tmp_path):
    page = opened(two_variants(tmp_path), viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    place = plot(page, "drift", "drift/kl|steps")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert place.bounding_box()["width"] > 300
    assert not page.locator("#controls").get_attribute("open")


def test_a_changed_scheme_draws_again(opened, tmp_path):
    page = opened(two_variants(tmp_path))
    place = plot(page, "drift", "drift/kl|steps")
    light = ink(page, place)
    page.emulate_media(color_scheme="dark")
    dark = ink(page, plot(page, "drift", "drift/kl|steps"))
    assert BLUE in light
    assert BLUE not in dark
    assert sum(dark.values()) > 100


def place_of(page, number):
    """The place of an audit's chart, drawn."""
    place = page.locator(f'figure[data-audit="{number}"] .plot')
    place.scroll_into_view_if_needed()
    page.wait_for_function("element => element.dataset.drawn", arg=place.element_handle())
    return place


def test_an_audit_has_bars_and_lines_with_error_bars(opened, tmp_path):
    hostile = "<img src=x onerror=alert(1)>"
    result = write_audit(tmp_path / "pair.json", ("A", hostile))
    write_audit(tmp_path / "order.json", ("64", "128", "192"), (64, 128, 192), dimensions=1)
    page = opened(tmp_path / "pair.json", tmp_path / "order.json")
    for number in ("0 0 0", "0 1 0", "1 0 0"):
        linear = ink(page, place_of(page, number))
        assert len(linear) > 1
        assert sum(linear.values()) > 200
    assert f"KL(A‖{hostile})" in hover(page, place_of(page, "0 1 0"), across=0.7)
    assert page.locator("img").count() == 0
    place = place_of(page, "0 0 0")
    place.focus()
    page.keyboard.press("ArrowRight")
    kl = result.divergences[0].kl
    said = place.locator("xpath=following-sibling::output").inner_text()
    assert said.startswith(f"on the states of A; KL(A‖{hostile}): {kl.value:.4g} ± {kl.stderr:.2g}, median ")
    before = ink(page, place)
    page.get_by_label("KL on a logarithmic axis").check()
    assert ink(page, place_of(page, "0 0 0")) != before


def test_an_audit_on_a_phone_in_the_dark(opened, tmp_path):
    write_audit(tmp_path / "pair.json")
    page = opened(tmp_path / "pair.json", viewport={"width": 360, "height": 740}, is_mobile=True, color_scheme="dark")
    assert sum(ink(page, place_of(page, "0 0 0")).values()) > 200
    assert BLUE not in ink(page, place_of(page, "0 0 0"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
