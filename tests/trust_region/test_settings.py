"""The settings of regions: one record, whose fields are flags, keyword arguments and JSON of every agent."""

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest

import klrl
from klrl.agents import AGENTS, PPOConfig, TRPOConfig
from klrl.trust_region import (
    PARAMETERS,
    REGIONS,
    Adaptive,
    All,
    Clip,
    Dual,
    KLConstraint,
    KLPenalty,
    RegionSettings,
    TrustRegion,
    with_region,
)
from klrl.trust_region.names import parameters_of, readers_of
from klrl.validation import describe, hints

# Allowed values of the flags, as they were while each setting was a field of the agents' config.
FLAGS = {
    "target_kl": "a number in (0, 1e+06] or none",
    "clip_range": "a number in (0, 1e+06] or none",
    "rollback_slope": "a number in (0, 1e+06] or none",
    "state_kl": "a number in (0, 1e+06] or none",
    "state_distance": "a number in (0, 1e+06] or none",
    "regression_coef": "a number in [0, 1e+06] or none",
    "ratio_deviation": "a number in (0, 1e+06] or none",
    "kl_coef": "a number in [0.0001, 10000] or none",
    "reference_coef": "a number in (0, 1e+06] or none",
    "reference_kl": "a number in (0, 1e+06] or none",
}
agents = pytest.mark.parametrize("agent", AGENTS)


def helps(cls):
    """The texts under a class's fields, each on one line."""
    body = ast.parse(inspect.getsource(cls)).body[0].body
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


@agents
def test_the_first_flags_of_every_agent_are_the_region_and_its_settings_as_they_were(agent):
    config = AGENTS[agent].config_class
    names = ["trust_region", *FLAGS]
    assert [field.name for field in fields(config)][: len(names)] == names
    types = hints(config)
    assert {name: describe(types[name]) for name in FLAGS} == FLAGS
    assert all(field.default is None for field in fields(config) if field.name in FLAGS)


def test_the_record_has_the_settings_that_some_region_reads_and_no_other():
    assert {field.name for field in fields(RegionSettings)} == {"trust_region", *PARAMETERS}


@pytest.mark.parametrize("name", REGIONS)
def test_the_help_of_a_setting_names_every_region_or_kind_that_reads_it_and_its_default(name):
    for setting, parameter in inspect.signature(REGIONS[name]).parameters.items():
        groups = re.findall(r"\(([^()]+): ([\d.]+)\)", helps(RegionSettings)[setting])
        defaults = {reader: float(x) for readers, x in groups for reader in readers.split(", ")}
        kind = "projections" if "projection" in name else "penalties" if "penalty" in name else name
        reader = next((reader for reader in defaults if kind in reader.split()), name)
        assert defaults[reader] == parameter.default


# The region of the settings.
@pytest.mark.parametrize("config_class", [PPOConfig, TRPOConfig, RegionSettings])
def test_settings_are_keyword_arguments_and_reach_the_region(config_class):
    config = config_class(target_kl=0.02, trust_region="constraint")
    assert config.region == KLConstraint(0.02)
    assert replace(config, target_kl=0.03).region == KLConstraint(0.03)
    joined = replace(config, trust_region="constraint+adaptive-penalty", kl_coef=2.0)
    assert joined.region == All(KLConstraint(0.02), KLPenalty(Adaptive(target_kl=0.02, beta=2.0)))


@pytest.mark.parametrize("config_class", [PPOConfig, RegionSettings])
@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"trust_region": "clip", "target_kl": 0.01}, r"target_kl = 0.01; allowed: only with a trust region that"),
        ({"trust_region": Clip(), "target_kl": 0.01}, r"target_kl = 0.01; allowed: only beside the name of a trust"),
        ({"trust_region": "klip"}, r"trust_region = 'klip'; allowed: none, clip, .*; did you mean clip\?"),
        ({"trust_region": "constraint", "target_kl": -1.0}, r"target_kl = -1.0; allowed: a number in \(0, 1e\+06\]"),
        ({"trust_region": 5}, r"trust_region = 5; allowed: text or TrustRegion"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(config_class, settings, line):
    with pytest.raises(ValueError, match=f"^{line}") as error:
        assert config_class(**settings).region is None
    assert "\n" not in str(error.value)


# What config.json and checkpoints said of regions while their settings were fields of the agents' config.
DUAL = {"class": "Dual", "target_kl": 0.02, "beta": 1.0, "minimum": 0.0001, "maximum": 10000.0, "rate": 0.2}
PENALTY = {"class": "KLPenalty", "coefficient": DUAL}
MADE = {"class": "All", "regions": [{"class": "Clip", "clip_range": 0.3}, PENALTY]}
SAVED = [
    ("ppo", {"trust_region": "clip"}, Clip()),
    (
        "ppo",
        {"trust_region": "clip+adaptive-penalty", "target_kl": 0.02, "clip_range": 0.1, "kl_coef": 2.0},
        All(Clip(0.1), KLPenalty(Adaptive(target_kl=0.02, beta=2.0))),
    ),
    (
        "ppo",
        {"trust_region": MADE},
        All(Clip(0.3), KLPenalty(Dual(target_kl=0.02))),
    ),
    ("trpo", {"trust_region": "constraint", "target_kl": 0.03}, KLConstraint(0.03)),
    ("npg", {"trust_region": "constraint", "target_kl": 0.002}, KLConstraint(0.002)),
]


@pytest.mark.parametrize(("agent", "said", "region"), SAVED)
def test_what_was_saved_before_is_read_and_written_as_it_was(agent, said, region):
    whole = {"trust_region": said["trust_region"]} | dict.fromkeys(FLAGS) | said | {"n_envs": 2, "batch_size": 32}
    config = AGENTS[agent].config_class.from_json(json.loads(json.dumps(whole)))
    assert config.region == region
    again = json.loads(json.dumps(config.to_json()))
    if said.get("trust_region") == MADE:  # what was added since says that nothing has happened
        assert again["trust_region"]["regions"][1]["coefficient"].pop("rate_share") == 1.0
    assert list(again)[: len(FLAGS) + 1] == list(whole)[: len(FLAGS) + 1]
    assert {name: again[name] for name in whole} == whole


# The one rule for settings that come from elsewhere: a preset, a saved agent, the base of a comparison.
SETTINGS = {"gamma": 0.9, "trust_region": "clip", **dict.fromkeys(FLAGS, 0.1)}


@pytest.mark.parametrize("region", [*REGIONS, "clip+constraint", Clip(), TrustRegion()], ids=str)
def test_settings_that_another_region_does_not_read_are_dropped(region):
    kept = {name for name in FLAGS if isinstance(region, str) and parameters_of(region) & {name}}
    expected = {"gamma": 0.9, "trust_region": region, **dict.fromkeys(kept, 0.1)}
    assert with_region(SETTINGS, region) == expected
    assert SETTINGS["trust_region"] == "clip"


def test_readers_are_the_regions_that_have_the_parameter():
    assert readers_of("clip_range") == "clip, spo, rollback"
    assert {name for setting in PARAMETERS for name in readers_of(setting).split(", ")} == REGIONS.keys() - {"none"}


def test_a_preset_keeps_what_the_chosen_region_reads():
    assert TRPOConfig.for_env("CartPole-v1").target_kl == 0.03
    assert TRPOConfig.for_env("CartPole-v1", trust_region="early-stop").target_kl == 0.03
    assert TRPOConfig.for_env("CartPole-v1", trust_region="fixed-penalty").target_kl is None
    assert TRPOConfig.for_env("CartPole-v1", trust_region=KLConstraint()).target_kl is None


# A region with a setting of its own, added to a copy of the package: its file and names.py are all there is to touch.
REGION = """

@dataclass(frozen=True)
class Annealed(TrustRegion):
    \"\"\"Mean KL(old||new) <= a bound that falls from first_kl to 0.\"\"\"

    first_kl: Positive = 0.05
    on_exit = cast("OnExit | None", "backtrack")
    left: float = 1.0

    def violation(self, change: Change) -> float:
        return average(change.kl) - self.left * self.first_kl
"""
NAME = """
def _annealed(first_kl: float = 0.05) -> TrustRegion:
    from klrl.trust_region.bounds import Annealed

    return Annealed(first_kl)


REGIONS: dict[str, Callable[..., TrustRegion]] = {
    "annealed": _annealed,
"""
FIELD = '''    reference_kl: Limit | None = None
    """Bound'''


def grown(folder, field):
    """A copy of the package with another region."""
    shutil.copytree(Path(klrl.__file__).parent, folder / "klrl")
    bounds, names = (folder / f"klrl/trust_region/{name}.py" for name in ("bounds", "names"))
    bounds.write_text(bounds.read_text() + REGION)
    text = names.read_text().replace("\nREGIONS: dict[str, Callable[..., TrustRegion]] = {\n", NAME)
    names.write_text(text.replace(FIELD, field + FIELD))
    return folder


def run(folder, program):
    command = [sys.executable, "-W", "error", "-c", program]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_new_setting_is_a_flag_a_keyword_and_json_and_no_agents_file_was_touched(tmp_path):
    field = '    first_kl: Limit | None = None\n    """First bound, nats (annealed: 0.05)."""\n'
    program = f"""
import klrl, json
from klrl.agents import PPOConfig, TRPOConfig
from klrl.scripts.main import main
from klrl.trust_region.bounds import Annealed
assert klrl.__file__ == {str(tmp_path / "klrl/__init__.py")!r}
assert PPOConfig().first_kl is None and TRPOConfig().region.target_kl == 0.01
config = PPOConfig(trust_region="annealed", first_kl=0.2)
assert config.region == Annealed(0.2)
assert PPOConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
assert PPOConfig.for_env("Pendulum-v1", trust_region="clip+annealed").region.regions[1] == Annealed()
from klrl.trust_region import region_from_json, region_to_json
assert region_from_json(region_to_json(Annealed(0.3))) == Annealed(0.3)
main(["train", "ppo", "--help"])
"""
    text = " ".join(run(grown(tmp_path, field), program).replace("│", " ").split())
    assert "--first-kl FLOAT First bound, nats (annealed: 0.05)." in text


def test_a_setting_that_was_forgotten_in_the_record_breaks_nobody_elses_config(tmp_path):
    program = """
from klrl.agents import NPGConfig, PPO, PPOConfig, TRPOConfig
from klrl.trust_region import region_from_name
from klrl.trust_region.bounds import Annealed
assert [c().region.target_kl for c in (PPOConfig, TRPOConfig, NPGConfig)] == [None, 0.01, 0.01]
assert region_from_name("annealed", first_kl=0.2) == Annealed(0.2)
assert PPOConfig(trust_region="annealed").region == Annealed()
PPO("CartPole-v1", PPOConfig(trust_region="annealed", n_envs=1, n_steps=16, batch_size=16)).learn(1)
try:
    PPOConfig(trust_region="annealed", first_kl=0.2)
except TypeError as error:
    assert str(error).startswith("first_kl is no setting of PPOConfig"), error
"""
    run(grown(tmp_path, ""), program)
