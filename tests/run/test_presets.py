"""Configs: presets, what overrides them, what is refused, and JSON."""

import json
import math
from dataclasses import fields
from typing import get_type_hints

import pytest

from klrl.agents import AGENTS, PPO, NPGConfig, PPOConfig, TRPOConfig
from klrl.run.presets import PRESETS, preset
from klrl.trust_region import PARAMETERS, Adaptive, All, Clip, KLConstraint, KLPenalty, TrustRegion
from klrl.trust_region.names import readers_of

CONFIGS = {name: agent_class.config_class for name, agent_class in AGENTS.items()}
EVERY_PRESET = [(algorithm, name) for algorithm in PRESETS for name in PRESETS[algorithm]]
every_config = pytest.mark.parametrize("config_class", CONFIGS.values(), ids=CONFIGS)


def test_every_preset_builds_a_valid_config_of_its_values():
    for algorithm, name in EVERY_PRESET:
        config, defaults = CONFIGS[algorithm].for_env(f"{name}-v1"), CONFIGS[algorithm]()
        values = {f.name: getattr(config, f.name) for f in fields(config)}
        assert values == {f.name: getattr(defaults, f.name) for f in fields(config)} | dict(PRESETS[algorithm][name])


def test_every_version_of_an_environment_has_the_same_preset():
    for algorithm, name in EVERY_PRESET:
        assert preset(algorithm, f"{name}-v0") == preset(algorithm, f"{name}-v5") == PRESETS[algorithm][name] != {}


@pytest.mark.parametrize("name", PRESETS["trpo"])
def test_npg_starts_where_trpo_does(name):
    ours, theirs = (CONFIGS[a].for_env(f"{name}-v1") for a in ("npg", "trpo"))
    shared = {f.name for f in fields(theirs)} - {"line_search_shrinking_factor", "line_search_max_iter"}
    assert shared == {f.name for f in fields(ours)}
    assert all(getattr(ours, setting) == getattr(theirs, setting) for setting in shared)


@pytest.mark.parametrize("env_id", [None, "Nothing-v0", "CartPole", "my/CartPole-v1"])
def test_an_environment_without_a_preset_has_the_defaults(env_id):
    assert PPOConfig.for_env(env_id) == PPOConfig()


def test_an_agent_without_a_config_takes_the_preset():
    assert PPO("CartPole-v1").config == PPOConfig.for_env("CartPole-v1") != PPOConfig()


@pytest.fixture
def known(monkeypatch):
    """The id of an environment whose preset no tuning will change."""
    monkeypatch.setitem(PRESETS["ppo"], "Known", {"clip_range": 0.18, "gamma": 0.8, "gae_lambda": 0.7})
    return "Known-v3"


def test_overrides_win_over_the_preset(known):
    assert PPOConfig.for_env(known, gamma=0.5, n_epochs=3) == PPOConfig(
        clip_range=0.18, gamma=0.5, gae_lambda=0.7, n_epochs=3
    )


@pytest.mark.parametrize(
    ("overrides", "clip_range", "region"),
    [
        ({}, 0.18, Clip(0.18)),
        ({"clip_range": 0.3}, 0.3, Clip(0.3)),
        ({"trust_region": "clip+early-stop"}, 0.18, All(Clip(0.18), KLConstraint(0.01, on_exit="stop"))),
        ({"trust_region": "constraint", "target_kl": 0.02}, None, KLConstraint(0.02)),
        ({"trust_region": "none"}, None, TrustRegion()),
        ({"trust_region": KLConstraint(0.5)}, None, KLConstraint(0.5)),
    ],
)
def test_a_presets_region_settings_give_way_to_a_region_that_does_not_read_them(known, overrides, clip_range, region):
    config = PPOConfig.for_env(known, **overrides)
    assert config.clip_range == clip_range
    assert config.region == region


@pytest.mark.parametrize(
    "settings",
    [{"trust_region": "clip", "target_kl": 0.1}, {"trust_region": "constraint", "clip_range": 0.1}, {"kl_coef": 1.0}],
)
def test_a_setting_that_no_chosen_region_reads_is_refused(settings):
    with pytest.raises(ValueError, match="allowed: only with a trust region that reads it"):
        PPOConfig(**settings)


def test_a_setting_beside_a_region_object_is_refused():
    with pytest.raises(ValueError, match=r"clip_range = 0.1; allowed: only beside the name of a trust region"):
        PPOConfig(trust_region=Clip(0.2), clip_range=0.1)


@pytest.mark.parametrize("region", ["none", "clip", TrustRegion(), Clip(), All()])
def test_trpo_refuses_a_region_that_does_not_know_the_length_of_a_step(region):
    with pytest.raises(ValueError, match=r"trust_region = .*; allowed for TRPO: early-stop, constraint"):
        TRPOConfig(trust_region=region)


@every_config
def test_an_unknown_region_is_refused_with_the_known_ones(config_class):
    with pytest.raises(ValueError, match=r"trust_region = 'klip'; allowed: none, clip, .*adaptive-penalty"):
        config_class(trust_region="klip")


NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "bool": True, "text": "1", "list": [1]}
NO_INTEGER = {"fraction": 1.5, "whole float": 2.0}
BAD = {
    "integer >= 1": NUMBERS | NO_INTEGER | {"zero": 0, "negative": -1},
    "number > 0": NUMBERS | {"zero": 0.0, "negative": -1.0},
    "number >= 0": NUMBERS | {"negative": -1e-9},
    "number in [0, 1]": NUMBERS | {"negative": -0.1, "large": 1.1},
    "number in (0, 0.999]": NUMBERS | {"zero": 0.0, "negative": -0.1, "one": 1.0},
    "number": NUMBERS,
}
# Ranges that are as they were; what is no number at all is refused by every field, one that was added later, too.
KINDS = {
    "integer >= 1": {
        "n_envs", "n_steps", "batch_size", "n_epochs", "cg_max_steps", "line_search_max_iter", "n_critic_updates",
        "sub_sampling_factor", "fisher_batch_size",
    },
    "number > 0": {
        "target_kl", "clip_range", "rollback_slope", "state_kl", "ratio_deviation", "kl_coef", "learning_rate",
        "max_grad_norm", "cg_tolerance", "state_distance", "reference_coef", "reference_kl", "worker_timeout",
    },
    "number >= 0": {"vf_coef", "ent_coef", "cg_damping", "regression_coef"},
    "number in [0, 1]": {"gamma", "gae_lambda"},
    "number in (0, 0.999]": {"line_search_shrinking_factor"},
    "number": {"log_std_init"},
}  # fmt: skip


def names(config_class):
    return {f.name for f in fields(config_class)}


NUMERIC = {
    name
    for config_class in CONFIGS.values()
    for name, hint in get_type_hints(config_class).items()
    if hint in (int, float, int | None, float | None)
}
REFUSED = {(field, what): value for field in NUMERIC for what, value in NUMBERS.items()} | {
    (field, what): value for kind, fields_ in KINDS.items() for field in fields_ for what, value in BAD[kind].items()
}


@pytest.mark.parametrize("field", sorted({field for field, _ in REFUSED}))
def test_a_bad_number_is_refused_in_one_line_with_what_is_allowed(field):
    region = {"trust_region": readers_of(field).split(", ")[0]} if field in PARAMETERS else {}
    for value in (value for (name, _), value in REFUSED.items() if name == field):
        for config_class in (c for c in CONFIGS.values() if field in names(c)):
            with pytest.raises(ValueError, match=f"^{field} = .*; allowed: .*(number|integer)") as error:
                config_class(**region, **{field: value})
            assert repr(value) in str(error.value)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate_schedule", "cosine"),
        ("vectorization_mode", "threads"),
        ("activation", "gelu"),
        ("normalize_advantage", 1),
        ("actor_hidden_sizes", (64, 0)),
        ("actor_hidden_sizes", 64),
        ("critic_hidden_sizes", (64.0,)),
        ("trust_region", 3),
    ],
)
@every_config
def test_any_other_bad_value_is_refused_in_one_line_too(config_class, field, value):
    with pytest.raises(ValueError, match=f"^{field} = .*; allowed: ") as error:
        config_class(**{field: value})
    assert "\n" not in str(error.value)


@every_config
def test_a_minibatch_larger_than_the_batch_is_refused(config_class):
    assert config_class(n_envs=2, n_steps=8, batch_size=16).batch_size == 16
    with pytest.raises(ValueError, match=r"batch_size = 17; allowed: at most n_envs \* n_steps = 16"):
        config_class(n_envs=2, n_steps=8, batch_size=17)


@pytest.mark.parametrize(
    "config",
    [
        PPOConfig(),
        TRPOConfig(),
        NPGConfig(cg_tolerance=0.1, cg_preconditioner="diagonal"),
        PPOConfig(trust_region="clip+adaptive-penalty", target_kl=0.02, clip_range=0.3, actor_hidden_sizes=()),
        PPOConfig(trust_region=All(Clip(0.1), KLPenalty(Adaptive(target_kl=0.02, beta=3.0)))),
        TRPOConfig(trust_region=KLConstraint(0.05, on_exit="stop"), critic_hidden_sizes=(3, 4)),
    ],
)
def test_a_config_survives_json(config):
    assert type(config).from_json(json.loads(json.dumps(config.to_json()))) == config


def test_every_preset_survives_json():
    for algorithm, name in EVERY_PRESET:
        config = CONFIGS[algorithm].for_env(f"{name}-v1")
        assert type(config).from_json(json.loads(json.dumps(config.to_json()))) == config, name


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"n_envs": 65536, "n_steps": 65536}, "n_envs = 65536, n_steps = 65536; allowed: at most 2147483648 samples"),
        ({"n_envs": 1025, "vectorization_mode": "async"}, "n_envs = 1025 with vectorization_mode = 'async'; allowed"),
        ({"critic_hidden_sizes": (65536, 65536)}, "critic_hidden_sizes = (65536, 65536); allowed: at most 2147483648"),
        ({"action_distribution": "beta", "state_dependent_std": True}, "state_dependent_std = True with action_distri"),
        ({"reference": ""}, "reference = ''; allowed: a saved agent or run directory or none"),
    ],
)
def test_settings_that_are_too_large_together_or_contradict_each_other_are_refused(settings, line):
    with pytest.raises(ValueError, match="allowed") as error:
        PPOConfig(**settings)
    assert str(error.value).startswith(line)


def test_a_fisher_matrix_of_no_sample_is_refused():
    with pytest.raises(ValueError, match=r"^sub_sampling_factor = 65; allowed: at most n_envs \* n_steps = 64$"):
        TRPOConfig(n_envs=4, n_steps=16, batch_size=64, sub_sampling_factor=65)


def test_a_misspelt_setting_is_told_the_nearest_one():
    with pytest.raises(TypeError, match=r"^gama is no setting of PPOConfig; did you mean gamma\?$"):
        PPOConfig(gama=0.9)
