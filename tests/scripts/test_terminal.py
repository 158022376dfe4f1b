"""Names on a terminal and in Markdown: nothing in them is obeyed."""

import io

import pytest

from klrl.scripts.benchmarks import speed_report
from klrl.scripts.cli.command_line import fail
from klrl.scripts.cli.terminal import PlainConsole
from klrl.studies import report as compare_report
from klrl.text import cell, printable

ESCAPE = "\x1b]0;owned\x07\x1b[31m"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("runs/CartPole-v1 ± ‖ ü", "runs/CartPole-v1 ± ‖ ü"),
        ("two\nlines", "two\nlines"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("over\rwritten\b\t\x9b", "over\\rwritten\\x08\\t\\x9b"),
        ("right\u202eleft\u200b\ud800", "right\\u202eleft\\u200b\\ud800"),
    ],
)
def test_control_and_invisible_characters_are_written_as_escapes(text, shown):
    assert printable(text) == shown


def test_a_console_obeys_nothing_in_a_text(capsys):
    PlainConsole().print(f"run directory: [red]{ESCAPE}[/red] [/] :smile:", 3)
    assert capsys.readouterr().out == f"run directory: [red]{printable(ESCAPE)}[/red] [/] :smile: 3\n"


def test_a_refusal_is_one_line_without_control_characters(capsys):
    with pytest.raises(SystemExit):
        fail("klrl", f"env = {ESCAPE}\nnext")
    assert capsys.readouterr().err == "klrl: env = \\x1b]0;owned\\x07\\x1b[31m next\n"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a|b", "a\\|b"),
        ("a\\|b", "a\\\\\\|b"),
        ("<script>\nx</script>", "&lt;script&gt; x&lt;/script&gt;"),
        (f"{ESCAPE}x", "\\\\x1b]0;owned\\\\x07\\\\x1b[31mx"),
    ],
)
def test_a_name_stays_inside_of_its_cell(name, shown):
    assert cell(name) == shown
    assert speed_report.markdown([["environment"], [name]]).splitlines()[-1] == f"| {shown} |"


def test_a_comparison_escapes_environments_and_variants():
    rows = [{"env": "A|B", "variant": "<b>", "status": "failed"}]
    assert "| A\\|B | &lt;b&gt; | failed |" in compare_report.table(rows)


def test_a_file_that_is_no_terminal_gets_the_same(monkeypatch):
    monkeypatch.setattr("sys.stdout", written := io.StringIO())
    PlainConsole().print("x" * 300)
    assert written.getvalue() == "x" * 300 + "\n"
