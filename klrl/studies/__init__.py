"""Compare: designs, their runs on engines, statistics over seeds, tables.

>>> design = comparison(["trust-region", "clip", "constraint"], environments={"CartPole-v1": 50_000})
>>> [variant.name for variant in design.variants]
['clip', 'constraint']

``Study(design, "regions").run()`` trains every run, from where it was interrupted; ``Study.load("regions")`` looks at
them.
"""

from klrl.studies.comparison import comparison
from klrl.studies.design import Design, Variant
from klrl.studies.engines import Engine, make_engine
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
from klrl.studies.study import Run, Study
from klrl.studies.tuner import Tuner
from klrl.studies.tuning import Tuning, tuning
from klrl.studies.tuning_results import best_trials, write_results

__all__ = [
    "Design",
    "Engine",
    "Interval",
    "Profile",
    "Run",
    "Study",
    "Tuner",
    "Tuning",
    "Variant",
    "best_trials",
    "comparison",
    "interquartile_mean",
    "interval_of",
    "kl_per_return",
    "make_engine",
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
