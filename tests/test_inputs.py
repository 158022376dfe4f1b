"""Bad settings, spaces and environments, some of each; ``klrl torture --only R9 R10`` runs them all."""

import sys

import gymnasium as gym
import pytest
from torture import bad_settings, inputs
from torture.faulty import FAULTS, Faulty, action_spaces, observation_spaces

SETTINGS = bad_settings.bad_settings()


def test_there_are_as_many_cases_as_promised_and_no_two_alike():
    names = [case.name for case in SETTINGS]
    assert len(names) == len(set(names)) >= 250
    assert len(list(bad_settings.bad_keywords())) >= 250
    assert len(observation_spaces()) * len(action_spaces()) >= 15 * 15
    assert len(FAULTS) >= 12


@pytest.mark.parametrize("case", [*SETTINGS[7:-80:60], *SETTINGS[-80::4]], ids=lambda case: case.name)
def test_a_bad_command_line_is_refused_before_an_environment_is_made(case):
    assert inputs.refuse_setting(case) is None


def test_every_bad_value_of_every_setting_is_refused_in_python():
    assert [problem for case in bad_settings.bad_keywords() if (problem := inputs.refuse_keyword(*case))] == []


@pytest.mark.parametrize("name", [*observation_spaces()][::2])
def test_an_observation_space_is_learned_on_or_refused(name):
    assert inputs.try_spaces(name, "Discrete") is None


@pytest.mark.parametrize("name", [*action_spaces()][1::2])
def test_an_action_space_is_learned_on_or_refused(name):
    assert inputs.try_spaces("Box", name) is None


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_environment_is_learned_on_or_named(name):
    assert inputs.try_environment(name) is None


def test_the_protocol_notices_what_it_is_there_to_notice(monkeypatch):
    good = bad_settings.BadSetting(
        "good", ["ppo", "--env", "Marked-v0", "--total-timesteps", "1", "--eval-episodes", "0"], ()
    )
    problem = inputs.refuse_setting(good)
    assert "status 0" in problem
    assert "an environment was made" in problem

    def other() -> gym.Env:
        return type("Other", (Faulty,), {"observe": lambda self: self.observation_space.sample()})()

    def raising() -> gym.Env:
        raise RuntimeError("two\nlines")

    monkeypatch.setitem(FAULTS, "another", FAULTS["nothing"]._replace(twin=other))
    monkeypatch.setitem(FAULTS, "crash", FAULTS["nothing"]._replace(make=raising))
    assert "its twin learned something else" in inputs.try_environment("another")
    assert "status 70" in inputs.try_environment("crash")


def test_a_child_that_hangs_is_ended_and_its_exit_status_is_told():
    def hang():
        while True:
            pass

    assert inputs.in_child(hang, seconds=0.1).status < 0
    assert inputs.in_child(lambda: sys.exit(3)).status == 3
