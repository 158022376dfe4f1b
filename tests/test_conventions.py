"""The rules of the house that code can check: import arrows, the glossary, no pickle, one top-level name."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from klrl.agents import AGENTS, PPO, TRPO, PPOConfig
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
        "klrl.kl",
        "klrl.policy",
        "klrl.run",
        "klrl.studies",
        "klrl.trust_region",
    },
    "klrl.__main__": {"klrl.scripts"},
    "klrl.text": set(),
    "klrl.lazy": set(),
    "klrl.own": {"klrl.text"},
    "klrl.renamed": {"klrl.text"},
    "klrl.shown": set(),
    "klrl.interrupts": set(),
    "klrl.output": {"klrl.text"},
    "klrl.validation": {"klrl.text"},
    "klrl.native": set(),
    "klrl.policy": {"klrl.lazy", "klrl.native", "klrl.shown", "klrl.validation", "klrl.text"},
    "klrl.kl": {"klrl.policy", "klrl.shown", "klrl.text"},
    "klrl.trust_region": {
        "klrl.kl",
        "klrl.lazy",
        "klrl.own",
        "klrl.policy",
        "klrl.renamed",
        "klrl.shown",
        "klrl.validation",
        "klrl.text",
    },
    "klrl.experience": {
        "klrl.interrupts",
        "klrl.output",
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
        "klrl.shown",
        "klrl.trust_region",
        "klrl.validation",
        "klrl.text",
    },
}
ALLOWED["klrl.studies"] = ALLOWED["klrl.agents"] | {"klrl.agents", "klrl.output"}
ALLOWED["klrl.scripts"] = ALLOWED["klrl.studies"] | {"klrl.studies"}
# Heavy packages stay in the rooms that are about them.
ONLY_IN = {
    "gymnasium": {"klrl.policy", "klrl.experience", "klrl.run", "klrl.agents", "klrl.studies", "klrl.scripts"},
    "tensorboard": {"klrl.run"},
    "rich": {"klrl.run", "klrl.scripts"},
    "safetensors": {"klrl.run", "klrl.scripts"},
    "tyro": {"klrl.agents", "klrl.scripts"},
    "matplotlib": {"klrl.scripts"},
}

# Other libraries to compare with: one file of the package knows them, and imports them inside its functions.
PEERS = {"stable_baselines3", "sb3_contrib", "sbx", "tianshou", "cleanrl"}


def imports(path, typing=True):
    tree = ast.parse(path.read_text())
    if not typing:
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


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


def test_peers_are_imported_in_one_file_and_only_when_they_are_measured():
    importing = {path for path in SOURCES if PEERS & {name.split(".")[0] for name in imports(path)}}
    assert importing == {ROOT / "scripts/benchmarks/peers.py"}
    program = "import klrl.scripts.benchmarks.peers, sys; print(*{name.split('.')[0] for name in sys.modules})"
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


def test_nothing_reads_pickles_or_runs_text_as_code():
    for path in SOURCES:
        names = {*imports(path)}
        unsafe = UNSAFE_MODULES - (
            {"runpy"} if path == ROOT / "scripts/benchmarks/peers.py" else set()
        )  # it runs CleanRL's scripts
        assert not {name.split(".")[0] for name in names} & unsafe, path
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not {ast.unparse(call.func) for call in calls} & UNSAFE_CALLS, path
        assert "allow_pickle" not in {keyword.arg for call in calls for keyword in call.keywords}, path
        if path != ROOT / "klrl/experience/workers.py":  # Gymnasium's way to send an environment's maker to own workers
            assert "CloudpickleWrapper" not in {name.rpartition(".")[2] for name in names}, path


def test_the_global_random_generators_are_not_used():
    for path in SOURCES:
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        forbidden = {
            "torch.manual_seed",
            "np.random.seed",
            "random.seed",
            "torch.randn",
            "torch.rand",
            "np.random.rand",
        }
        assert not calls & forbidden, path


def glossary():
    section = (ROOT / "docs/glossary.md").read_text(encoding="utf-8").split("\n## ", 1)[0]
    return re.findall(r"^\| `([a-z]+/[a-z0-9_]+)` \|", section, flags=re.MULTILINE)


@pytest.mark.filterwarnings("ignore:info_keys = ")
def test_the_glossary_lists_every_metric_once_and_no_other(tmp_path):
    assert len(glossary()) == len(set(glossary()))
    seen = set()
    for cls in (PPO, TRPO):
        seen |= set(cls("Pendulum-v1", seed=0).learn(1).history[-1])
    penalised = PPO("CartPole-v1", PPOConfig(trust_region="adaptive-penalty", n_steps=32), seed=0).learn(1)
    reference = str(penalised.save(tmp_path / "reference"))
    referring = PPO("CartPole-v1", PPOConfig(reference=reference, n_steps=32), seed=0).learn(1)
    mending = PPOConfig(vectorization_mode="async", on_worker_failure="restart", n_steps=32, info_keys=("is_success",))
    restarting = PPO("CartPole-v1", mending, seed=0).learn(1)
    restarting.close()
    seen |= {*penalised.history[-1], *referring.history[-1], *restarting.history[-1]}
    assert set(glossary()) == seen


def test_every_trust_region_says_what_it_does():
    assert list(SUMMARIES) == list(REGIONS)


def test_the_version_is_the_same_everywhere():
    import klrl

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == klrl.__version__
    assert f"## {klrl.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_lowest_versions_that_are_tried_are_those_that_are_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = (ROOT / ".ci/constraints-lowest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    for requirement in declared:
        name, _, version = requirement.partition(">=")
        lowest = version.partition(",")[0]
        assert f"{pinned[name]}.".startswith(f"{lowest}."), name


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
