"""A small study: its design, its command, and its runs as digests."""

import json

from torture.processes import Fork
from torture.states import run_parts

from klrl.studies import Study

DESIGN = """
seeds = "3-4"
steps = 640
environments = ["CartPole-v1"]
presets = false
[base]
n_envs = 2
n_steps = 32
batch_size = 16
actor_hidden_sizes = [8]
[run]
eval_episodes = 2
checkpoint_every = 128
[[variants]]
[[variants]]
name = "a/b"
trust_region = "constraint"
target_kl = 0.02
[[variants]]
agent = "trpo"
"""


def design_file(folder, words=DESIGN):
    path = folder / "design.toml"
    if not path.exists() or path.read_text() != words:  # a process that was started before may be reading it
        path.write_text(words)
    return path


def started(folder, *words, out="out"):
    """The command on that design, in a process of its own."""
    command = ["-m", "klrl.scripts.main", "study", design_file(folder), "--output", folder / out, *words]
    return Fork(list(map(str, command)), folder)


def parts(output):
    return {str(run.directory.relative_to(output)): run_parts(run.directory) for run in Study.load(output).runs}


def rows(output):
    """The table but for how long things took, and how much memory."""
    found = json.loads((output / "results.json").read_text())["rows"]
    return [{k: v for k, v in row.items() if k not in ("steps_per_second", "peak_memory_mib")} for row in found]
