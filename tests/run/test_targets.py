"""Which updates went beyond a bound, and what single states are counted against."""

from klrl.run.targets import asked_for, beyond, judged_by


def test_an_update_is_beyond_if_it_is_beyond_one_of_its_bounds():
    inside = {"drift/kl": 0.5, "drift/kl_cvar": 0.04, "drift/kl_cvar_bound": 0.04, "drift/kl_max": 3.0}
    assert beyond({"drift/kl": 0.5}) is None
    assert beyond(inside) is False
    assert beyond(inside | {"drift/kl_target": 0.5}) is False
    assert beyond(inside | {"drift/kl_target": 0.4}) is True
    assert beyond(inside | {"drift/kl_max_bound": 2.0}) is True


def test_states_are_counted_against_the_means_target_else_the_smallest_bound_in_nats():
    rows = {
        0.01: {"drift/kl": 1.0},
        0.3: {"drift/kl": 1.0, "drift/kl_target": 0.3, "drift/kl_max_bound": 0.1},
        0.1: {"drift/kl_max_bound": 0.1, "drift/kl_cvar_bound": 0.2, "drift/ratio_variance_target": 0.05},
    }
    for expected, row in rows.items():
        assert judged_by(asked_for(row), 0.01) == expected
    assert judged_by(asked_for({"drift/ratio_variance_target": 0.05}), 0.01) == 0.01
