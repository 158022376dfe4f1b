"""What is seen first: names at the top, ``python -m klrl``, what the rooms export, what types say."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import klrl

ROOT = Path(__file__).parents[1]
LAZY = ["klrl", "klrl.monitor", "klrl.policy", "klrl.experience", "klrl.trust_region", "klrl.run", "klrl.agents"]
"""Packages with names that are imported when they are used."""


def named_for_type_checkers(package):
    """Names that a package's file imports from its modules, also in the block that only type checkers read."""
    body = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text()).body
    body += [node for block in body if isinstance(block, ast.If) for node in block.body]
    imports = [
        node for node in body if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{package}.")
    ]
    names = {(node.module, alias.name) for node in imports for alias in node.names}
    named = {name for module, name in names if name != "*" and (module != package or package == "klrl")}
    return named.union(*(import_module(module).__all__ for module, name in names if name == "*"))


@pytest.mark.parametrize("package", LAZY)
def test_type_checkers_see_the_names_that_are_imported_when_they_are_used(package):
    module = import_module(package)
    assert named_for_type_checkers(package) == set(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'PPOO'"):
        _ = module.PPOO


def test_the_agents_are_at_the_top():
    from klrl.agents import NPG, PPO, TRPO, load_agent

    assert [klrl.PPO, klrl.TRPO, klrl.NPG, klrl.load_agent] == [PPO, TRPO, NPG, load_agent]
    assert klrl.kl.kl_divergence is klrl.kl_divergence


def test_a_room_is_there_without_an_import_of_its_own():
    program = "import klrl; print(klrl.trust_region.Clip(0.2), klrl.run.RunDirectory.__name__, 'torch' in dir(klrl))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "Clip(clip_range=0.2) RunDirectory False\n"


def test_klrl_is_a_module_that_can_be_run():
    done = subprocess.run([sys.executable, "-m", "klrl", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"klrl {klrl.__version__}\n"
    refused = subprocess.run([sys.executable, "-m", "klrl", "trian"], capture_output=True, text=True)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


TYPED = """
import numpy as np
import torch
from torch import distributions as td
import klrl
from klrl.kl import entropy, kl_divergence, renyi
from klrl.policy import Categorical
from klrl.run import Callback, LearningAgent, Metrics

tensors, arrays = Categorical(torch.zeros(3)), Categorical(np.zeros(3))
reveal_type(kl_divergence(tensors, tensors))
reveal_type(kl_divergence(arrays, arrays, 2))
reveal_type(kl_divergence(td.Normal(0.0, 1.0), td.Normal(0.0, 1.0)))
reveal_type(renyi(arrays, arrays, 2.0, base=2))
reveal_type(entropy(arrays))
reveal_type(arrays.log_prob(np.zeros(())))
reveal_type(klrl.PPO("CartPole-v1").history[0])


class Mine(Callback):
    def on_update_end(self, agent: LearningAgent, batch: klrl.experience.Batch, metrics: Metrics) -> bool:
        return agent.num_timesteps < len(agent.episodes)


def either(callback: Callback, agent: klrl.Agent) -> None:
    callback.on_training_end(agent)
"""


def test_types_say_what_is_given(tmp_path):
    pytest.importorskip("mypy")
    file = tmp_path / "typed.py"
    file.write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    revealed = [line.split('"')[1] for line in done.stdout.splitlines() if "Revealed type" in line]
    tensor, array = "torch._tensor.Tensor", "numpy.ndarray[tuple[Any, ...], numpy.dtype[Any]]"
    assert revealed[:-1] == [tensor, array, tensor, array, array, array], done.stdout
    assert revealed[-1] == "dict[str, float | str]"
    assert "error" not in done.stdout
