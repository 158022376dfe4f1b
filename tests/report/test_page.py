"""The file: whole, escaped, written in one step; what is wrong with the input is one line."""

from html.parser import HTMLParser

import pytest
from made_runs import described, rows, write_run
from test_command_line import klrl

from klrl.report import write
from klrl.scripts.main import main

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&"


class Page(HTMLParser):
    """Elements, their attributes, and the text outside of scripts and styles."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.text, self._in = [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        self._in = tag

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in not in ("script", "style"):
            self.text.append(data)


def test_text_of_runs_is_text(tmp_path):
    config = described(env=HOSTILE) | {"agent": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    config["config"]["reference"] = HOSTILE
    history = [row | {"train/stop_reason": HOSTILE} for row in rows(3)]
    write([write_run(tmp_path / "run", history, config)], tmp_path / "hostile.html", command=HOSTILE)
    write([write_run(tmp_path / "tame", rows(3), described())], tmp_path / "tame.html")
    hostile, tame = Page(tmp_path / "hostile.html"), Page(tmp_path / "tame.html")
    assert hostile.tags.count("script") == tame.tags.count("script") == 7
    assert "img" not in hostile.tags
    assert not [name for _, name, _ in hostile.attributes if name.startswith("on")]
    assert "".join(hostile.text).count(HOSTILE) >= 8


def test_nothing_is_loaded_from_anywhere(tmp_path):
    write([write_run(tmp_path / "run", rows(3), described())], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    places = [value for _, name, value in page.attributes if name in ("src", "href", "action", "data", "poster")]
    assert places
    assert all(place.startswith("#") for place in places)
    policy = next(value for _, name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_links_lead_to_sections_that_are_there(tmp_path):
    write([write_run(tmp_path / "log", [{"drift/kl": 0.1}, {"drift/kl": 0.2}])], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    ids = {value for _, name, value in page.attributes if name == "id"}
    links = {value.removeprefix("#") for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    assert links == {"overview", "drift", "failures"}
    assert links <= ids


def test_the_same_runs_give_the_same_file(tmp_path):
    path = write_run(tmp_path / "run", rows(3), described())
    write([path], tmp_path / "report.html")
    first = (tmp_path / "report.html").read_bytes()
    write([path], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == first


def test_runs_without_an_update_make_a_report_without_charts(tmp_path):
    write([write_run(tmp_path / "run", [], described())], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert "figure" not in page.tags
    assert "no update is complete" in page.text


def test_the_command_writes_the_file_and_names_what_is_damaged(tmp_path):
    path = write_run(tmp_path / "run", rows(3), described())
    (path / "metrics.csv").write_text((path / "metrics.csv").read_text() + "1,2\n")
    done = klrl("report", path, "-o", tmp_path / "report.html")
    assert (done.returncode, done.stdout) == (0, f"written: {tmp_path / 'report.html'}, 1 run\n")
    assert done.stderr.startswith(f"{path}: metrics.csv, line 5, is not as klrl writes it: 2 cells under ")
    assert f"klrl report {path} -o {tmp_path / 'report.html'}" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report"], "klrl report: paths missing; for example: klrl report runs"),
        (["report", "nowhere"], "klrl report: path = nowhere is not there; allowed: a run directory, or a folder of"),
        (["report", "{run}", "-o", "{run}/metrics.csv"], "allowed: a name that ends in .html"),
        (["report", "{run}", "-o", "{run}/no/report.html"], "no directory"),
        (["plot", "{run}", "-o", "{run}/figure.gif"], "figure.gif; allowed: a name that ends in .png, .svg, .pdf"),
        (["plot", "{run}", "--metrics", "drift/kll", "-o", "{run}/a.png"], "metrics = 'drift/kll'; allowed: time/"),
        (["plot"], "klrl plot: paths missing; for example: klrl plot runs/demo -o figure.png"),
    ],
)
def test_bad_input_is_one_line_and_leaves_everything_as_it_was(tmp_path, capsys, words, said):
    path = write_run(tmp_path / "run", rows(3), described())
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(SystemExit) as stop:
        main([word.format(run=path) for word in words])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    (line,) = err.splitlines()
    assert said in line
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
