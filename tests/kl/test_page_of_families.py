"""The table of families and divergences in docs/kl.md is what the functions do."""

from pathlib import Path

import pytest
from families import MAKE, mixture

from klrl.kl import (
    cross_entropy,
    effective_sample_size,
    entropy,
    estimate_divergence,
    estimate_entropy,
    estimate_mutual_information,
    fisher_rao,
    hellinger,
    jeffreys,
    jensen_shannon,
    kl_divergence,
    kl_upper_bound,
    kl_variational,
    mutual_information,
    renyi,
    reverse_kl,
    skew_divergence,
    total_variation,
    wasserstein,
)
from klrl.policy.distributions import GaussianMixture, NoClosedForm

pytestmark = pytest.mark.filterwarnings("ignore:.*the standard error cannot be trusted:RuntimeWarning")

N = 100  # samples: whether there is an estimate, not which


def sampled(divergence):
    return lambda p, q: estimate_divergence(p, q, divergence, N)


# Column: the functions in it, and what there is instead of them, if anything.
COLUMNS = {
    "KL, reverse, Jeffreys": ([kl_divergence, reverse_kl, jeffreys], [sampled("kl"), sampled("jeffreys")]),
    "entropy, cross-entropy": ([lambda p, q: entropy(p), cross_entropy], [lambda p, q: estimate_entropy(p, N)]),
    "Rényi, ESS": ([lambda p, q: renyi(p, q, 0.5), effective_sample_size], []),
    "Hellinger": ([hellinger], [sampled("hellinger")]),
    "Jensen-Shannon": ([jensen_shannon], [sampled("jensen_shannon")]),
    "total variation": ([total_variation], [sampled("total_variation")]),
    "Wasserstein": ([wasserstein], []),
    "Fisher-Rao": ([fisher_rao], []),
    "skew": ([skew_divergence], []),
    "I(S;A)": ([lambda p, q: mutual_information(p)], [lambda p, q: estimate_mutual_information(p, 2)]),
}
FAMILIES = {**{family.__name__: make for family, make in MAKE.items()}, "GaussianMixture": mixture}


def works(functions, p, q):
    answers = []
    for function in functions:
        try:
            function(p, q)
        except NoClosedForm:
            answers.append(False)
        else:
            answers.append(True)
    assert len(set(answers)) == 1, "a column holds only what is alike"
    return answers[0]


def cell(column, p, q):
    functions, instead = COLUMNS[column]
    if works(functions, p, q):
        return "exact"
    if not instead:
        return "refused"
    assert works(instead, p, q)
    bounded = isinstance(p, GaussianMixture) and column.startswith("KL")
    return "bound, sampled" if bounded and works([kl_upper_bound, kl_variational], p, q) else "sampled"


def table():
    lines = [f"| family | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
    for name, make in FAMILIES.items():
        p, q = make(4, seed=1), make(4, seed=2)
        lines.append(f"| {name} | {' | '.join(cell(column, p, q) for column in COLUMNS)} |")
    return "\n".join(lines)


def test_the_table_of_families_is_what_the_functions_do():
    assert table() in (Path(__file__).parents[2] / "docs/kl.md").read_text(encoding="utf-8")
