"""The rules of the house that code can check: import arrows, the glossary, no pickle, one top-level name."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import pytest
from gymnasium.wrappers import TransformReward

from klrl.agents import AGENTS, PPO, TRPO, PPOConfig
from klrl.agents.training import RANKS
from klrl.run import EvalCallback
from klrl.trust_region.names import REGIONS, SUMMARIES

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for room in ("klrl", "agents", "scripts") for path in (ROOT / room).rglob("*.py"))
SOURCES = [path for path in SOURCES if not path.is_relative_to(ROOT / "klrl/agents")]
SOURCES = [path for path in SOURCES if not path.is_relative_to(ROOT / "klrl/scripts")]

# A room may import the rooms named here (and itself); nothing below imports anything above.
ALLOWED = {
    "klrl": {
        "klrl.agents",
        "klrl.experience",
        "klrl.integrations",
        "klrl.kl",
        "klrl.monitor",
        "klrl.policy",
        "klrl.run",
        "klrl.studies",
        "klrl.trust_region",
    },
    "klrl.__main__": {"klrl.scripts"},
    "klrl.text": set(),
    "klrl.keywords": set(),
    "klrl.lazy": set(),
    "klrl.own": {"klrl.text"},
    "klrl.renamed": {"klrl.text"},
    "klrl.shown": set(),
    "klrl.interrupts": set(),
    "klrl.output": {"klrl.text"},
    "klrl.validation": {"klrl.text"},
    "klrl.schedules": {"klrl.text", "klrl.validation"},
    "klrl.native": set(),
    "klrl.policy": {"klrl.lazy", "klrl.native", "klrl.shown", "klrl.validation", "klrl.text"},
    "klrl.kl": {"klrl.policy", "klrl.shown", "klrl.text"},
    "klrl.trust_region": {
        "klrl.kl",
        "klrl.lazy",
        "klrl.own",
        "klrl.policy",
        "klrl.renamed",
        "klrl.schedules",
        "klrl.shown",
        "klrl.validation",
        "klrl.text",
    },
    "klrl.experience": {
        "klrl.interrupts",
        "klrl.keywords",
        "klrl.output",
        "klrl.own",
        "klrl.policy",
        "klrl.renamed",
        "klrl.shown",
        "klrl.validation",
        "klrl.text",
    },
    "klrl.run": {
        "klrl.experience",
        "klrl.interrupts",
        "klrl.lazy",
        "klrl.output",
        "klrl.policy",
        "klrl.renamed",
        "klrl.shown",
        "klrl.validation",
        "klrl.text",
    },
    "klrl.agents": {
        "klrl.experience",
        "klrl.interrupts",
        "klrl.kl",
        "klrl.lazy",
        "klrl.native",
        "klrl.own",
        "klrl.policy",
        "klrl.renamed",
        "klrl.run",
        "klrl.schedules",
        "klrl.shown",
        "klrl.trust_region",
        "klrl.validation",
        "klrl.text",
    },
}
ALLOWED["klrl.monitor"] = {
    "klrl.interrupts", "klrl.kl", "klrl.lazy", "klrl.policy", "klrl.run", "klrl.text", "klrl.trust_region",
}  # fmt: skip
ALLOWED["klrl.integrations"] = ALLOWED["klrl.monitor"] | {"klrl.experience", "klrl.monitor"}
ALLOWED["klrl.audit"] = {"klrl.kl", "klrl.lazy", "klrl.policy", "klrl.run", "klrl.text"}
ALLOWED["klrl.studies"] = ALLOWED["klrl.agents"] | {"klrl.agents", "klrl.output"}
ALLOWED["klrl.report"] = {"klrl", "klrl.keywords", "klrl.lazy", "klrl.run", "klrl.studies", "klrl.text"}
ALLOWED["klrl.scripts"] = ALLOWED["klrl.studies"] | {
    "klrl.audit", "klrl.integrations", "klrl.keywords", "klrl.monitor", "klrl.report", "klrl.studies",
}  # fmt: skip
# Heavy packages stay in the rooms that are about them.
ONLY_IN = {
    "gymnasium": {
        "klrl.policy",
        "klrl.experience",
        "klrl.run",
        "klrl.integrations",
        "klrl.audit",
        "klrl.agents",
        "klrl.studies",
        "klrl.scripts",
    },
    "tensorboard": {"klrl.run"},
    "rich": {"klrl.run", "klrl.scripts"},
    "safetensors": {"klrl.run", "klrl.integrations", "klrl.scripts"},
    "tyro": {"klrl.run", "klrl.agents", "klrl.scripts"},
    "filelock": {"klrl.run", "klrl.studies"},
    "tomli_w": {"klrl.studies"},
    "ray": {"klrl.studies"},
    "matplotlib": {"klrl.run", "klrl.report", "klrl.agents", "klrl.scripts"},
    "bokeh": {"klrl.report"},
    "optuna": {"klrl.studies"},
    "onnxruntime": {"klrl.scripts"},
}

# Other libraries: klrl.integrations knows those that it reads; two files of the benchmarks know those to compare with,
# and import them inside their functions.
PEERS = {"stable_baselines3", "sb3_contrib", "sbx", "tianshou", "cleanrl"}


class Names(NamedTuple):
    """What a file imports, also when it is run, what it calls, and the names of its calls' arguments."""

    imported: set
    imported_to_run: set
    called: set
    keywords: set


@cache
def names_in(path):
    """The names in a file, which is parsed once."""
    body = ast.parse(path.read_text()).body
    typing = [node for node in body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    calls = [node for statement in body for node in ast.walk(statement) if isinstance(node, ast.Call)]
    return Names(
        {*imported(body)},
        {*imported([node for node in body if node not in typing])},
        {ast.unparse(call.func) for call in calls},
        {keyword.arg for call in calls for keyword in call.keywords},
    )


def imported(statements):
    for node in (node for statement in statements for node in ast.walk(statement)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(path, typing=True):
    return names_in(path).imported if typing else names_in(path).imported_to_run


def room(module):
    return ".".join(module.split(".")[:2])


def module_of(path):
    """Its name when installed; of a package's ``__init__.py`` the package's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "klrl" else ("klrl", *parts)).removesuffix(".__init__")


def room_of(path):
    return room(module_of(path))


def test_imports_run_one_way():
    for path in SOURCES:
        here, names = room_of(path), {*imports(path)}
        rooms = {room(name) for name in names if name.startswith("klrl.")} - {here}
        assert rooms <= ALLOWED.get(here, set()), path
        for package, allowed in ONLY_IN.items():
            if any(name.split(".")[0] == package or f".{package}" in name for name in names):
                assert here in allowed, f"{package} in {path}"


@pytest.mark.parametrize("path", ["klrl/__init__.py", "klrl/__main__.py"])
def test_what_is_above_the_rooms_imports_them_when_they_are_used(path):
    always = [
        node for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    assert {node.module for node in always if isinstance(node, ast.ImportFrom)} <= {"importlib", "typing"}
    assert not any(isinstance(node, ast.Import) for node in always)


def test_no_file_imports_in_a_circle():
    """Imports inside functions count, those for type checkers do not; a package's file stands for what it exports."""
    named = {module_of(path): path for path in SOURCES}
    arrows = {}
    for module, path in named.items():
        modules = {name if name in named else name.rpartition(".")[0] for name in imports(path, typing=False)}
        arrows[module] = {name for name in modules if name in named} - {module}
    while free := [module for module, others in arrows.items() if not others & arrows.keys()]:
        for module in free:
            del arrows[module]
    assert not arrows


def test_peers_are_imported_in_few_files_and_only_when_they_are_measured():
    importing = {path for path in SOURCES if PEERS & {name.split(".")[0] for name in imports(path)}}
    importing = {path for path in importing if room_of(path) != "klrl.integrations"}
    assert importing == {ROOT / f"scripts/benchmarks/{name}.py" for name in ("asked_peers", "learning_peers", "peers")}
    program = "from klrl.scripts.benchmarks import asked_peers, learning_peers, peers; import sys"
    program += "; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not (PEERS | {"envpool", "torch"}) & set(loaded)


UNSAFE_MODULES = {
    "pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "runpy", "code", "codeop",
}  # fmt: skip
UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "os.system", "os.popen",
    "torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "np.load", "numpy.load", "np.fromfile",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all",
}  # fmt: skip


EXEMPT = {
    ROOT / "scripts/benchmarks/peers.py": {"runpy"},  # runs CleanRL's scripts
    ROOT / "klrl/integrations/sb3_zip.py": {"pickle", "torch.load"},  # reads other libraries' files, in a child process
}


def test_nothing_reads_pickles_or_runs_text_as_code():
    for path in SOURCES:
        names, exempt = {*imports(path)}, EXEMPT.get(path, set())
        assert not {name.split(".")[0] for name in names} & (UNSAFE_MODULES - exempt), path
        assert not names_in(path).called & (UNSAFE_CALLS - exempt), path
        assert "allow_pickle" not in names_in(path).keywords, path
        if path != ROOT / "klrl/experience/workers.py":  # Gymnasium's way to send an environment's maker to own workers
            assert "CloudpickleWrapper" not in {name.rpartition(".")[2] for name in names}, path


def test_foreign_files_are_read_without_what_could_execute_them():
    """Only tensors come out of ``torch.load``, and pickles go through the one class that makes what it lists."""
    tree = ast.parse((ROOT / "klrl/integrations/sb3_zip.py").read_text())
    calls = {ast.unparse(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert {ast.unparse(x) for x in calls["torch.load"].keywords if x.arg == "weights_only"} == {"weights_only=True"}
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in used if name.startswith("pickle.")} == {"pickle.Unpickler"}
    importing = {path.name for path in SOURCES if any("sb3_zip" in name for name in imports(path))}
    assert importing == {"sb3_process.py"}  # the program of the child process
    assert not [path for path in SOURCES if any("sb3_process" in name for name in imports(path))]


def test_the_global_random_generators_are_not_used():
    for path in SOURCES:
        forbidden = {
            "torch.manual_seed",
            "np.random.seed",
            "random.seed",
            "torch.randn",
            "torch.rand",
            "np.random.rand",
        }
        assert not names_in(path).called & forbidden, path


def glossary():
    section = (ROOT / "docs/glossary.md").read_text(encoding="utf-8").split("\n## ", 1)[0]
    return re.findall(r"^\| `([a-z]+/[a-z0-9_]+)` \|", section, flags=re.MULTILINE)


@pytest.mark.filterwarnings("ignore:info_keys = ")
def test_the_glossary_lists_every_metric_once_and_no_other(tmp_path):
    assert len(glossary()) == len(set(glossary()))
    seen = set()
    for cls in (PPO, TRPO):
        seen |= set(cls("Pendulum-v1", seed=0).learn(1).history[-1])
    regions = "adaptive-penalty+next-state-constraint"
    penalised = PPO("CartPole-v1", PPOConfig(trust_region=regions, n_steps=32), seed=0).learn(1)
    reporting = PPOConfig(
        trust_region="quantile-constraint+cvar-constraint+max-constraint+r2vpo", n_steps=32, drift_states=16
    )
    seen |= set(PPO("CartPole-v1", reporting, seed=0).learn(1).history[-1])
    reference = str(penalised.save(tmp_path / "reference"))
    bounded = "reference-constraint+reference-forward-constraint"
    referring = PPO("CartPole-v1", PPOConfig(trust_region=bounded, reference=reference, n_steps=32), seed=0).learn(1)
    mending = PPOConfig(vectorization_mode="async", on_worker_failure="restart", n_steps=32, info_keys=("is_success",))
    restarting = PPO("CartPole-v1", mending, seed=0).learn(1)
    restarting.close()
    succeeding = TransformReward(gym.make("CartPole-v1"), float)
    succeeding.step = lambda action: (*gym.Wrapper.step(succeeding, action)[:4], {"is_success": True})
    evaluated = PPO("CartPole-v1", PPOConfig(n_steps=32), seed=0).learn(1, EvalCallback(succeeding, n_eval_episodes=1))
    seen |= {*penalised.history[-1], *referring.history[-1], *restarting.history[-1], *evaluated.history[-1]}
    assert set(glossary()) == seen | {RANKS}  # of several ranks: tests/run/test_world.py has them


def test_every_trust_region_says_what_it_does():
    assert list(SUMMARIES) == list(REGIONS)


def test_the_version_is_the_same_everywhere():
    import klrl

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == klrl.__version__
    assert f"## {klrl.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_lowest_versions_that_are_tried_are_those_that_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / ".ci/constraints-lowest.txt").read_text()
    (extras,) = re.findall(r"'\.\[([a-z,]+)\]'", text)  # of the command that stands there
    declared = [*project["dependencies"]]
    declared += [needed for extra in extras.split(",") for needed in project["optional-dependencies"][extra]]
    pinned = dict(line.split("==") for line in text.splitlines() if not line.startswith("#"))
    for requirement in declared:
        name, _, version = requirement.partition(">=")
        lowest = version.partition(",")[0]
        assert f"{pinned[name.partition('[')[0]]}.".startswith(f"{lowest}."), name


def test_every_package_folder_is_installed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in SOURCES}
    assert {name if name.startswith("klrl") else f"klrl.{name}" for name in folders} == listed


def test_the_agents_folder_refuses_to_be_a_top_level_package():
    result = subprocess.run([sys.executable, "-c", "import agents"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "from klrl.agents import PPO" in result.stderr


def test_import_klrl_is_light():
    program = "import klrl, sys; assert not {'torch', 'gymnasium', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_agent_is_exported_with_its_config():
    import klrl.agents

    assert {c.__name__ for cls in AGENTS.values() for c in (cls, cls.config_class)} <= set(klrl.agents.__all__)


def derived(cls):
    return {cls}.union(*map(derived, cls.__subclasses__()))


def test_every_public_region_and_schedule_is_exported():
    from klrl import trust_region

    classes = derived(trust_region.TrustRegion) | derived(trust_region.Coefficient)
    named = {c.__name__ for c in classes if c.__module__.startswith("klrl.") and not c.__name__.startswith("_")}
    assert named <= set(trust_region.__all__)
