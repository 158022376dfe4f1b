"""Results of a search: a CSV of its trials, the best settings as JSON, and the command lines that train with them."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klrl.agents.config import AgentConfig
from klrl.studies.results import write
from klrl.studies.tuner import BUDGET, Tuner
from klrl.studies.tuning import Tuning, shown

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Best:
    """One of the best trials: the best one, or one of those with no better return at no more KL."""

    number: int
    mean_return: float
    kl_sum: float
    """Mean over seeds, in nats."""
    chosen: dict[str, Any]
    config: AgentConfig
    command: str
    """Trains with these settings, on seed 0."""

    def __str__(self) -> str:
        return f"trial {self.number}: return {self.mean_return:.6g}, KL {self.kl_sum:.4g} nats; {shown(self.chosen)}"


def best_trials(tuner: Tuner) -> list[Best]:
    """Return the best trial within the budget, or with two objectives those that none is better than in both."""
    if tuner.design.objective == "return-and-kl":
        found = sorted(tuner.study.best_trials, key=lambda trial: -trial.values[0])
    else:
        try:
            found = [tuner.study.best_trial]
        except ValueError:  # none is finished, or none within the budget
            found = []
    return [_best(tuner.design, trial) for trial in found]


def _best(design: Tuning, trial: FrozenTrial) -> Best:
    by_name = {one.name: one for one in design.space}
    chosen = {name: by_name[name].value_of(value) for name, value in trial.params.items()}
    returns, kl = trial.user_attrs["mean_return"], trial.user_attrs["kl_sum"]
    means = sum(returns) / len(returns), sum(kl) / len(kl)
    return Best(trial.number, *means, chosen, design.config(chosen), design.command(chosen))


def write_results(tuner: Tuner) -> list[Path]:
    """Write ``trials.csv`` and the settings of the best trials; return the paths of the latter.

    One objective: ``best.json``; two: ``best-NUMBER.json`` for each. ``PPOConfig(**json.load(file))`` takes them.

    Raises:
        OSError: a file cannot be written.
    """
    with tuner.turns:
        write(tuner.output / "trials.csv", _csv(tuner))
        single = tuner.design.objective == "return"
        files = {
            tuner.output / ("best.json" if single else f"best-{one.number}.json"): one.config
            for one in best_trials(tuner)
        }
        for stale in {*tuner.output.glob("best*.json")} - files.keys():
            stale.unlink()
        for path, config in files.items():
            write(path, json.dumps(config.to_json(), indent=1) + "\n")
    return [*files]


def _csv(tuner: Tuner) -> str:
    names = [one.name for one in tuner.design.space]
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, ["number", "state", "return", "kl_sum", "over_budget", *names, "error"])
    writer.writeheader()
    for trial in tuner.study.get_trials(deepcopy=False):
        writer.writerow(_row(trial))
    return lines.getvalue()


def _row(trial: FrozenTrial) -> dict[str, Any]:
    means: dict[str, Any] = {}
    for column, name in (("return", "mean_return"), ("kl_sum", "kl_sum")):
        if of_seeds := trial.user_attrs.get(name):
            means[column] = sum(of_seeds) / len(of_seeds)
    over = {"over_budget": trial.constraints[BUDGET] > 0.0} if BUDGET in trial.constraints else {}
    said = {"number": trial.number, "state": trial.state.name.lower(), "error": trial.user_attrs.get("error")}
    return said | means | over | trial.params
