"""Help of klrl train: groups that fit a screen, with every option once."""

import re

import pytest

from klrl.agents.settings import CONFIGS
from klrl.scripts.cli import help_text
from klrl.scripts.main import main


@pytest.fixture
def shown(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")

    def show(*words):
        with pytest.raises(SystemExit) as stop:
            main(["train", *words])
        assert stop.value.code == 0
        return capsys.readouterr().out

    return show


@pytest.mark.parametrize("name", CONFIGS)
def test_every_group_fits_a_screen_and_every_option_is_in_one(name, shown):
    text = shown(name, "--help")
    assert text.startswith(f"usage: klrl train {name} ")
    boxes = re.findall(r"^╭─ (.*?) ─*╮\n(.*?)^╰", text, re.DOTALL | re.MULTILINE)
    assert max(box.count("\n") + 2 for _, box in boxes) <= help_text.SCREEN
    assert max(map(len, text.splitlines()[5:])) == 100
    titles = [re.sub(r", \d of \d$", "", title) for title, _ in boxes]
    assert set(titles) == {*help_text.GROUPS, name.upper()}
    flags = re.findall(r"^│ --(?:\[no-\])?([\w-]+)", "".join(box for _, box in boxes), re.MULTILINE)
    assert len(flags) == len(set(flags))
    settings = {key.replace("_", "-") for key in CONFIGS[name].for_env(None).to_json()}
    assert settings <= set(flags)
    assert {"env", "wrapper", "seed", "eval-every", "video-every", "track", "torch-threads"} <= set(flags)
    assert "(default: 0.99)" in text


def test_one_group_is_shown_by_the_beginning_of_its_name_and_another_one_is_refused(shown, capsys):
    text = shown("trpo", "--env", "CartPole-v1", "--help", "net")
    assert set(re.findall(r"^╭─ (.*?)(?:, \d of \d)? ─", text, re.MULTILINE)) == {"networks and actions"}
    assert "--activation" in text
    assert "--gamma" not in text
    with pytest.raises(SystemExit) as stop:
        main(["train", "ppo", "--help", "newtorks"])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("klrl train ppo: help = 'newtorks'; allowed: run, trust-region, ")
    assert line.count("\n") == 1
