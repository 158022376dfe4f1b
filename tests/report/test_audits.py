"""Audits in a report: read from their JSON, every value checked; shown with standard errors, beside runs or alone."""

import json
import math

import pytest
from made_runs import described, rows, write_audit, write_run
from test_page import HOSTILE, Page

from klrl.report import write
from klrl.report.audits import read_audit
from klrl.report.comparisons import section
from klrl.scripts.main import main


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Path of an audit of two policies with actions of two dimensions, and the audit itself."""
    path = tmp_path_factory.mktemp("pair") / "audit.json"
    return path, write_audit(path)


@pytest.fixture(scope="module")
def order(tmp_path_factory):
    """Path of an audit of three checkpoints, and the audit itself."""
    path = tmp_path_factory.mktemp("order") / "audit.json"
    return path, write_audit(path, ("64", "128", "192"), (64, 128, 192), dimensions=1)


def measured(result, p, q, states_of):
    return next(x for x in result.divergences if (x.p, x.q, x.states_of) == (p, q, states_of))


def words(x):
    return f"{x.value:.4g} ± {x.stderr:.2g}"


def test_an_audit_is_read_as_it_was_written(pair):
    path, result = pair
    found = read_audit(path)
    assert (found.path, found.env, found.seed, [x.name for x in found.policies]) == (path, "Noise-v0", 0, ["A", "B"])
    for mine, visits in zip(found.policies, result.visits, strict=True):
        played = visits.evaluation
        assert (mine.steps, mine.states, mine.episodes, mine.cut) == (64, 60, 3, 0)
        assert mine.mean_return == played.mean
        assert mine.origin == {"path": f"runs/{mine.name}", "library": "klrl", "algorithm": "PPO"}
    for mine, theirs in zip(found.compared, result.divergences, strict=True):
        assert (mine.p, mine.q, mine.states_of, mine.largest) == (theirs.p, theirs.q, theirs.states_of, theirs.largest)
        assert mine.kl == (theirs.kl.value, theirs.kl.stderr)
        assert mine.quantiles == tuple(theirs.quantiles.values())
        assert mine.per_dimension == tuple((part.value, part.stderr) for part in theirs.per_dimension)


def test_two_policies_have_bars_of_both_directions_on_the_states_of_both(pair):
    path, result = pair
    apart, parts = section(read_audit(path))["charts"]
    (plot,) = apart["plots"]
    assert (plot["kind"], plot["ticks"]) == ("bars", ["A", "B"])
    for series, (p, q) in zip(plot["series"], ("AB", "BA"), strict=True):
        found = [measured(result, p, q, states_of) for states_of in "AB"]
        assert series["name"] == f"KL({p}‖{q})"
        assert series["y"] == [x.kl.value for x in found]
        assert series["high"] == [x.kl.value + x.kl.stderr for x in found]
        assert series["low"] == [x.kl.value - x.kl.stderr for x in found]
        assert [*zip(*series["marks"], strict=True)] == [
            (x.quantiles[0.5], x.quantiles[0.95], x.largest) for x in found
        ]
        assert series["words"][0].startswith(f"{words(found[0].kl)}, median {found[0].quantiles[0.5]:.4g}, 95 % ")
    for plot, states_of in zip(parts["plots"], "AB", strict=True):
        assert plot["title"] == f"on {states_of}'s states"
        for series, (p, q) in zip(plot["series"], ("AB", "BA"), strict=True):
            x = measured(result, p, q, states_of)
            assert series["at"] == [1.0, 2.0]
            assert series["y"] == [part.value for part in x.per_dimension]
            assert sum(series["y"]) == pytest.approx(x.kl.value, rel=1e-12)


def test_checkpoints_have_lines_over_steps_to_the_next_and_from_the_first(order):
    path, result = order
    following, first = section(read_audit(path))["charts"]  # of a single dimension there is no chart of its own
    for chart, pairs in ((following, [("64", "128"), ("128", "192")]), (first, [("64", "128"), ("64", "192")])):
        for plot, side in zip(chart["plots"], (0, 1), strict=True):
            assert (plot["kind"], plot["x"]) == ("line", "environment steps")
            forward, backward = plot["series"]
            assert (forward["name"], backward["name"]) == ("KL(earlier‖later)", "KL(later‖earlier)")
            assert forward["at"] == backward["at"] == [128.0, 192.0]
            assert forward["y"] == [measured(result, *pair, pair[side]).kl.value for pair in pairs]
            assert backward["y"] == [measured(result, *pair[::-1], pair[side]).kl.value for pair in pairs]


def test_checkpoints_whose_steps_do_not_rise_stand_in_their_order(tmp_path, order):
    record = json.loads(order[0].read_text())
    record["policies"][2]["num_timesteps"] = 128
    (tmp_path / "a.json").write_text(json.dumps(record))
    plot = section(read_audit(tmp_path / "a.json"))["charts"][0]["plots"][0]
    assert (plot["x"], plot["series"][0]["at"]) == ("place in the order", [2.0, 3.0])


def test_episodes_that_were_cut_are_counted(tmp_path, pair):
    record = inside("policies", cut=[0, 2])(json.loads(pair[0].read_text()))
    (tmp_path / "a.json").write_text(json.dumps(record))
    shown = section(read_audit(tmp_path / "a.json"))["policies"]
    assert [row[5] for row in shown] == ["3\n2 cut", "3"]


def test_where_every_kl_is_zero_the_axis_has_no_logarithm(tmp_path, pair):
    record = json.loads(pair[0].read_text())
    record["divergences"] = [x | {"mean": 0.0} for x in record["divergences"]]
    (tmp_path / "a.json").write_text(json.dumps(record))
    apart, parts = section(read_audit(tmp_path / "a.json"))["charts"]
    assert [plot["log"] for chart in (apart, parts) for plot in chart["plots"]] == [False, True, True]


def test_a_single_episode_has_no_standard_error(tmp_path):
    result = write_audit(tmp_path / "a.json", n_episodes=1)
    audit = read_audit(tmp_path / "a.json")
    assert math.isnan(audit.compared[0].kl.stderr)
    shown = section(audit)
    assert shown["divergences"][0][2] == f"{result.divergences[0].kl.value:.4g}"
    assert shown["charts"][0]["plots"][0]["series"][0]["low"] == [None, None]
    write([tmp_path / "a.json"], tmp_path / "report.html")


def test_audits_stand_beside_runs(tmp_path, pair, order, capsys):
    run = write_run(tmp_path / "run", rows(3), described())
    main(["report", *map(str, (pair[0], run, order[0], pair[0])), "-o", str(tmp_path / "report.html")])
    assert capsys.readouterr().out == f"written: {tmp_path / 'report.html'}, 1 run, 2 audits\n"
    page = Page(tmp_path / "report.html")
    links = [value.removeprefix("#") for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert links == ["overview", "overview", "learning", "drift", "step", "cost", "audit", "failures"]
    assert {*links} <= {value for _, name, value in page.attributes if name == "id"}
    text = "".join(page.text)
    for _, result in (pair, order):
        for x in result.divergences:
            assert words(x.kl) in text
            assert f"{x.quantiles[0.9]:.4g}" in text
            assert f"{x.quantiles[0.99]:.4g}" in text
            assert f"{x.largest:.4g}" in text
    assert words(pair[1].divergences[3].per_dimension[1]) in text
    assert len([1 for _, name, _ in page.attributes if name == "data-audit"]) == 3 + 4


def test_audits_alone_have_a_page_without_runs(tmp_path, pair):
    assert write([pair[0]], tmp_path / "report.html") == []
    page = Page(tmp_path / "report.html")
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert links == ["#audit", "#audit"]
    assert "1 audit" in page.text
    assert "Noise-v0: A and B" in page.text
    assert not [1 for _, name, _ in page.attributes if name in ("data-variant", "data-env")]


def test_text_of_an_audit_is_text(tmp_path, pair):
    text = json.dumps(json.loads(pair[0].read_text()) | {"env": HOSTILE, "versions": {HOSTILE: HOSTILE}})
    hostile = json.dumps(HOSTILE)
    for name in ('"A"', '"runs/A"', '"klrl"', '"PPO"'):
        text = text.replace(name, hostile)
    (tmp_path / "hostile.json").write_text(text)
    write([tmp_path / "hostile.json"], tmp_path / "hostile.html")
    write([pair[0]], tmp_path / "tame.html")
    page, tame = Page(tmp_path / "hostile.html"), Page(tmp_path / "tame.html")
    assert page.tags.count("script") == tame.tags.count("script")
    assert "img" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "".join(page.text).count(HOSTILE) >= 10


def changed(**more):
    return lambda record: record | more


def inside(name, /, **more):
    return lambda record: record | {name: [record[name][0] | more, *record[name][1:]]}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda record: None, "format = None; allowed: 1"),
        (lambda record: [record], "format = [{"),
        (changed(format=2), "format = 2; allowed: 1"),
        (changed(policies="A"), "policies = A; allowed: a list"),
        (changed(policies=["A", "B"]), "policies = ['A', 'B']; allowed: a list of objects"),
        (changed(policies=[]), "policies = ; allowed: two or more, each with a name of its own"),
        (changed(divergences=[]), "divergences = []; allowed: at least one"),
        (changed(versions=[1]), "versions = [1]; allowed: an object"),
        (changed(env=3), "env = 3; allowed: text"),
        (inside("policies", name="B"), "policies = B, B; allowed: two or more, each with a name of its own"),
        (inside("policies", states=-1), "policies[0].states = -1; allowed: an integer >= 0"),
        (inside("policies", states=True), "policies[0].states = True; allowed: an integer >= 0"),
        (inside("policies", mean_return="1"), "policies[0].mean_return = 1; allowed: a number"),
        (inside("divergences", p="C"), "divergences: KL(C‖B) on A's states; allowed: two of the policies, and"),
        (inside("divergences", states_of=None), "divergences[0].states_of = None; allowed: text"),
        (inside("divergences", mean=math.nan), "divergences[0].mean = nan; allowed: a finite number"),
        (inside("divergences", largest=10**400), "divergences[0].largest = 1000"),
        (inside("divergences", quantiles={"0.5": 0.1}), "divergences[0].quantiles.0.9 = missing; allowed: a finite"),
        (inside("divergences", per_dimension=[]), "divergences[0].per_dimension = []; allowed: at least one"),
        (
            inside("divergences", per_dimension=[{"mean": 0.1, "stderr": "x"}]),
            "divergences[0].per_dimension[0].stderr = x; allowed: a finite number",
        ),
        (
            inside("divergences", per_dimension=[{"mean": 0.1, "stderr": None}]),
            "divergences: per_dimension of several lengths; allowed: one number of dimensions",
        ),
    ],
)
def test_what_is_no_audit_is_refused_in_one_line(tmp_path, pair, capsys, damage, said):
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(damage(json.loads(pair[0].read_text()))))
    assert refused(path, capsys).startswith(said)


@pytest.mark.parametrize("data", [b"{", b"\xff", b"", b"[" * 100_000, b"drift/kl\n0.1\n"])
def test_files_of_other_kinds_are_refused_in_one_line(tmp_path, capsys, data):
    (tmp_path / "other").write_bytes(data)
    refused(tmp_path / "other", capsys)


def refused(path, capsys):
    output = path.with_name("report.html")
    with pytest.raises(SystemExit) as stop:
        main(["report", str(path), "-o", str(output)])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, output.exists()) == (2, "", False)
    (line,) = err.splitlines()
    begin = f"klrl report: path = {path} is not as klrl audit --json writes it: "
    assert line.startswith(begin)
    return line.removeprefix(begin)
