#!/usr/bin/env bash
# Guess: a seeded sampler makes a search repeatable, and a search that is stopped and started again, or shared by several
# processes, goes on with other settings than those it has tried.
# What happens: the seed starts the sampler's random numbers anew in every process, whatever the study holds already. With
# the same seed, RandomSampler (and TPESampler for its first ten trials) suggests the very settings that have been tried.
# Why it matters: a search restarted after a crash, or four workers started with one command line, spend their time on
# repetitions, and nothing says so; without a seed nothing is repeatable. A seed has to be made for every trial.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check optuna==5.0.0 2>pip.log || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import sys

import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)
sampler = getattr(optuna.samplers, sys.argv[1])(seed=0)
study = optuna.create_study(
    study_name=sys.argv[1], storage="sqlite:///study.db", sampler=sampler, load_if_exists=True
)
study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), n_trials=3)
if sys.argv[2] == "second":
    tried = [trial.params["x"] for trial in study.trials]
    same = tried[:3] == tried[3:]
    print(f"{sys.argv[1]}: after a restart {'the same three values again' if same else 'other values'}")
    assert same, tried
PY
venv/bin/python -c "import optuna; print('optuna', optuna.__version__)"
for sampler in RandomSampler TPESampler; do
  venv/bin/python case.py $sampler first
  venv/bin/python case.py $sampler second
done
