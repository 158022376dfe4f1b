"""A command line is read, explained and refused without torch, whose import takes most of a start."""

import subprocess
import sys

from klrl.agents import AGENTS
from klrl.agents.settings import CONFIGS
from klrl.scripts.benchmark import WHAT
from klrl.scripts.main import VERBS

# Runs one command line after the other, and names the first that has imported torch.
IN_ONE_PROCESS = """
import sys
from klrl.scripts.main import main
for line in sys.argv[1:]:
    try:
        main(line.split())
    except SystemExit as stop:
        print(stop.code, line, flush=True)
    if "torch" in sys.modules:
        sys.exit(f"klrl {line} imports torch")
"""


def ended(lines):
    """Output, errors and exit statuses of these command lines, none of which may need torch."""
    done = subprocess.run([sys.executable, "-c", IN_ONE_PROCESS, *lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    statuses = [line.partition(" ")[0] for line in done.stdout.splitlines() if line.partition(" ")[2] in lines]
    return done.stdout, done.stderr.splitlines(), statuses


def test_every_help_text_comes_without_torch():
    words = [*VERBS, *(f"train {name}" for name in AGENTS), *(f"benchmark {what}" for what in WHAT)]
    said, _, statuses = ended([f"{line} --help" for line in words])
    assert statuses == ["0"] * len(words)
    assert [line for line in words if f"usage: klrl {line} " not in said] == []


def test_bad_flags_are_refused_without_torch():
    lines = {
        "train sac": "algorithm = 'sac'; allowed: ppo, trpo, npg;",
        "train ppo --gama 0.9": "--gama is not an option; did you mean --gamma,",
        "train ppo --env CartPole-v1 --gamma 2": "gamma = 2.0; allowed: a number in [0, 1]",
        "train ppo --env CartPole-v1 --trust-region klip": "trust_region = 'klip'; allowed: none, clip,",
        "train trpo --env CartPole-v1 --trust-region clip": "trust_region = 'clip'; allowed for TRPO: ",
        "train npg --env CartPole-v1 --clip-range 0.3": "clip_range = 0.3; allowed: only with a trust region that",
        "evaluate run --episodes 0": "episodes = 0; allowed: an integer >= 1",
        "distill run --output new --direction both": "direction = 'both'; allowed: forward, reverse",
        "benchmark speed --batch-size 100": "batch_size = 100; allowed: divisors of n_envs * n_steps = 2048",
    }
    _, errors, statuses = ended(lines)
    assert statuses == ["2"] * len(lines)
    assert [(line, said) for line, said in zip(lines.values(), errors, strict=True) if line not in said] == []


def test_the_settings_of_the_command_line_are_the_agents_own():
    assert dict(CONFIGS) == {name: agent.config_class for name, agent in AGENTS.items()}
