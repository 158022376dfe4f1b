"""Compare: the design of a comparison, its runs, statistics over seeds, tables.

>>> plan = comparison(["trust-region", "clip", "constraint"], agent="ppo")
>>> [variant.name for variant in plan.variants]
['clip', 'constraint']

``Runs(plan, {"CartPole-v1": 50_000}, seeds=(0, 1, 2), output=Path("regions")).finish()`` trains them and returns a row
for each run.
"""

from klrl.studies.compare import Runs
from klrl.studies.comparison import Comparison, Variant, comparison
from klrl.studies.measure import measure
from klrl.studies.report import table
from klrl.studies.statistics import (
    Interval,
    Profile,
    interquartile_mean,
    interval_of,
    kl_per_return,
    mean,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    share_over,
    student,
)
from klrl.studies.trials import Trial
from klrl.studies.tuner import Tuner
from klrl.studies.tuning import Tuning, tuning
from klrl.studies.tuning_results import best_trials, write_results

__all__ = [
    "Comparison",
    "Interval",
    "Profile",
    "Runs",
    "Trial",
    "Tuner",
    "Tuning",
    "Variant",
    "best_trials",
    "comparison",
    "interquartile_mean",
    "interval_of",
    "kl_per_return",
    "mean",
    "measure",
    "paired_difference",
    "performance_profile",
    "probability_of_improvement",
    "share_over",
    "student",
    "table",
    "tuning",
    "write_results",
]
