"""README and the site's pages: their examples run, their links lead somewhere, their generated tables are current."""

import re
from pathlib import Path

import pytest
import torch
from sitegen import blocks, cli, sphinx_parts

import klrl
import klrl.policy.distributions
from klrl.scripts.main import VERBS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / ".github/CONTRIBUTING.md", *PAGES]
PYTHON = re.compile(r"(?:<!-- (not run|slow) -->\n)?```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
NUMBER = re.compile(r"-?\d+\.?\d*")
DOORS = ("README.md", "docs/getting-started.md")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```", re.DOTALL)


def named(path):
    return str(path.relative_to(ROOT))


def shortened(code):
    """With two updates in the place of every training, and how many trainings there are."""
    return re.subn(r"(learn\((?:total_timesteps=)?)[\d_]+", r"\g<1>2048", code)


def examples():
    """Every page with Python blocks, and what they print; those that train until an agent has learned are shortened."""
    for path in PAGES:
        found = PYTHON.findall(path.read_text(encoding="utf-8"))
        codes = [
            (shortened(code)[0] if kind == "slow" else code, out) for kind, code, out in found if kind != "not run"
        ]
        if codes:
            yield pytest.param(codes, id=named(path))


def assert_printed(found, expected):
    """The same words, and the same numbers up to one in their last place, in which versions of torch may differ."""
    assert NUMBER.sub("#", found) == NUMBER.sub("#", expected)
    for a, b in zip(NUMBER.findall(found), NUMBER.findall(expected), strict=True):
        assert abs(float(a) - float(b)) <= 1.01 * 10.0 ** -len(b.partition(".")[2]) * ("." in b), expected


@pytest.mark.parametrize("codes", list(examples()))
def test_the_examples_of_a_page_run_and_print_what_stands_below(codes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        for code, printed in codes:
            capsys.readouterr()
            exec(compile(code, "page", "exec"), {"__name__": "page"})
            if printed:
                assert_printed(capsys.readouterr().out, printed)
    torch.set_num_threads(threads)


def test_the_example_of_readme_is_that_of_getting_started():
    (_, short, _), (_, long, _) = (PYTHON.findall((ROOT / name).read_text(encoding="utf-8"))[0] for name in DOORS)
    assert set(short.splitlines()) <= set(long.splitlines())


def test_the_example_of_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    ((_, code, _),) = PYTHON.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    code, n = shortened(code)
    assert n == 2
    with torch.random.fork_rng():
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    torch.set_num_threads(threads)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if " <= " in line)
    kl, target = map(float, line.split(" <= "))
    assert kl <= target
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "cartpole"}


def anchors(path):
    """The names of a page's headings, as forges and the site make them."""
    for heading in re.findall(r"^#+ (.*)$", CODE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_links_lead_to_files_and_headings_that_exist(path):
    for target in LINK.findall(CODE.sub("", path.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.is_file(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_files_that_are_named_exist(path):
    named_files = re.findall(
        r"`((?:klrl|agents|scripts|tests|docs|findings|\.ci|\.github)/[\w./-]*)`", path.read_text()
    )
    assert [name for name in named_files if not (ROOT / name).exists()] == []


def test_generated_blocks_and_files_are_current():
    stale = [named(path) for path, text in blocks.current().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "make docs rewrites them"


def test_every_result_is_in_a_table():
    shown = " ".join(path.read_text(encoding="utf-8") for path in TEXTS)
    assert [name for name in blocks.BLOCKS if f"<!-- generated: {name} -->" not in shown] == []


def test_the_reference_has_every_verb_with_every_option():
    text = cli.reference()
    for verb in VERBS:
        assert f"\n## klrl {verb}\n" in f"\n{text}"
    for option in ("--trust-region", "--target-kl", "--cg-max-steps", "--n-epochs", "--vary", "--soak-minutes"):
        assert f"```{{option}} {option}" in text


def test_every_package_with_public_names_has_a_page_of_its_api():
    pages = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/api").glob("*.md"))
    packages = ["klrl", *(f"klrl.{name}" for name in klrl._ROOMS if name != "policy")]
    assert [name for name in packages if f"automodule:: {name}\n" not in pages] == []
    records = klrl.policy.distributions.__all__
    assert [name for name in klrl.policy.__all__ if name not in records and f"klrl.policy.{name}\n" not in pages] == []


def test_readme_is_a_door():
    assert (ROOT / "README.md").stat().st_size <= 10_240


def test_the_page_that_is_none_of_sphinx_has_a_link():
    assert f'<a href="{sphinx_parts.EXPLORED}">' in (ROOT / "docs/explore-kl.md").read_text(encoding="utf-8")


def test_every_page_is_in_a_table_of_contents():
    listed = {ROOT / "docs/index.md"}
    for page in PAGES:
        for toctree in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            entries = [line for line in toctree.splitlines() if line and not line.startswith(":")]
            listed |= {file for entry in entries for file in page.parent.glob(f"{entry}.*")}
    assert {*PAGES, *(ROOT / "docs").rglob("*.ipynb")} == listed
