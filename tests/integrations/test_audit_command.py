"""``klrl audit`` with real models: klrl's and Stable-Baselines3's, pairs and directories, and what it refuses."""

import json
import shutil

import gymnasium as gym
import numpy as np
import pytest
from environments import SMALL
from sb3_models import save_model
from torch import distributions as td

from klrl.agents import PPO, PPOConfig
from klrl.audit import visit
from klrl.scripts.audit import main as audit
from klrl.scripts.cli.audited import Opened

pytestmark = pytest.mark.usefixtures("one_reader")


def result(tmp_path, *words):
    audit([*map(str, words), "--json", str(tmp_path / "audit.json")])
    return json.loads((tmp_path / "audit.json").read_text())


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        audit([*map(str, words)])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said.removeprefix("klrl audit: ").strip()


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    path = tmp_path_factory.mktemp("klrl") / "agent"
    PPO("CartPole-v1", PPOConfig(**SMALL), seed=0).learn(64).save(path)
    return path


def test_an_agent_and_a_zip_are_compared_in_the_agents_environment(saved, cartpole, tmp_path, capsys):
    zipped = saved("cartpole")
    found = result(tmp_path, cartpole, zipped.path, "--episodes", "3")
    assert (found["env"], found["format"], found["versions"]["klrl"]) == ("CartPole-v1", 1, "0.1.0")
    a, b = found["policies"]
    assert (a["library"], a["algorithm"], b["algorithm"], b["num_timesteps"]) == ("klrl", "PPO", "PPO", 32)
    assert b["library"].startswith("stable-baselines3 2")
    assert [p["states"] for p in (a, b)] == [sum(p["lengths"]) for p in (a, b)]
    assert [(x["p"], x["q"], x["states_of"]) for x in found["divergences"]] == [
        ("A", "B", "A"), ("B", "A", "A"), ("A", "B", "B"), ("B", "A", "B"),
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert f"KL(A‖B) on A's states  {found['divergences'][0]['mean']:.4f} ± " in said
    opened = Opened([cartpole, zipped.path], None, (), False)  # the same states again, and torch's KL there
    with gym.make("CartPole-v1") as env:
        states = visit(opened.policies[0], env, 3).observations.numpy()
    (logits,) = zipped.own(states)
    p, q = PPO.load(cartpole).distribution(states).logits, logits
    kl = td.kl_divergence(td.Categorical(logits=p.double()), td.Categorical(logits=q.double()))
    assert found["divergences"][0]["mean"] == pytest.approx(kl.mean().item(), rel=1e-4)


def test_a_gaussian_in_units_of_the_box_is_compared_with_one_in_the_environments(saved, tmp_path):
    """The same policy in both libraries, whose networks have outputs in different units."""
    twin = saved("a2c")
    config = PPOConfig(n_envs=1, n_steps=64, normalize_observations=False, scale_actions=True)
    agent = PPO("Pendulum-v1", config, seed=0)
    theirs = twin.model.policy.state_dict()
    names = ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"]
    mine = {
        f"trunk.{2 * i}.{kind}": theirs[f"{name}.{kind}"] for i, name in enumerate(names) for kind in ("weight", "bias")
    }
    mine |= {f"trunk.4.{kind}": 0.5 * theirs[f"action_net.{kind}"] for kind in ("weight", "bias")}  # the box is [-2, 2]
    agent.actor.load_state_dict(mine | {"log_std": theirs["log_std"] - np.log(2.0)})
    agent.save(tmp_path / "agent")
    found = result(tmp_path, tmp_path / "agent", twin.path, "--episodes", "1")
    assert max(x["largest"] for x in found["divergences"]) < 1e-9
    assert agent.actor.units.half_range.tolist() == [2.0]


def test_a_directory_of_zips_is_compared_in_order_with_the_statistics_beside_them(tmp_path):
    for steps, seed in ((512, 2), (256, 0)):
        saved = save_model("pendulum", tmp_path, steps, seed)
        saved.vec_normalize.rename(tmp_path / f"pendulum_vecnormalize_{steps}_steps.pkl")
    found = result(tmp_path, tmp_path, "--env", "Pendulum-v1", "--episodes", "1")
    assert [(p["name"], p["num_timesteps"]) for p in found["policies"]] == [
        ("pendulum_256_steps", 256), ("pendulum_512_steps", 512),
    ]  # fmt: skip
    assert [p["statistics"][-33:] for p in found["policies"]] == [
        "/pendulum_vecnormalize_256_steps.pkl"[-33:], "/pendulum_vecnormalize_512_steps.pkl"[-33:],
    ]  # fmt: skip
    assert len(found["divergences"]) == 4


def test_the_checkpoints_of_a_run_are_compared_with_the_next_and_the_first(tmp_path):
    PPO("CartPole-v1", PPOConfig(**SMALL), seed=0).learn(192, run_dir=tmp_path / "run")
    found = result(tmp_path, tmp_path / "run", "--episodes", "2")
    names = [p["name"] for p in found["policies"]]
    assert names == sorted(names, key=int)
    pairs = {(x["p"], x["q"]) for x in found["divergences"]}
    n = len(names)
    expected = {(names[i], names[i + 1]) for i in range(n - 1)} | {(names[0], x) for x in names[1:]}
    assert pairs == expected | {(q, p) for p, q in expected}
    assert n >= 3
    checkpoints = tmp_path / "run/checkpoints"
    shutil.copytree(sorted(checkpoints.iterdir())[0], checkpoints / "best")
    assert [p["name"] for p in result(tmp_path, tmp_path / "run", "--episodes", "1")["policies"]] == names


def test_the_best_checkpoint_of_a_run_is_compared_once(tmp_path):
    PPO("CartPole-v1", PPOConfig(**SMALL), seed=0).learn(192, run_dir=tmp_path / "run")
    first, *others = sorted((tmp_path / "run/checkpoints").iterdir())
    shutil.copytree(first, tmp_path / "run/checkpoints/best")
    numbers = [str(int(path.name)) for path in others]
    assert [p.name for p in Opened([tmp_path / "run"], None, (), False).policies] == [str(int(first.name)), *numbers]
    shutil.rmtree(first)
    assert [p.name for p in Opened([tmp_path / "run"], None, (), False).policies] == ["best", *numbers]


def test_the_result_as_a_page(cartpole, tmp_path, capsys):
    page = tmp_path / "audit.html"
    audit([str(cartpole), str(cartpole), "--episodes", "2", "--report", str(page)])
    text = page.read_text()
    assert "<h1>Audit on CartPole-v1</h1>" in text
    assert text.count("<td>0 ± 0</td>") == 4
    assert f"klrl audit {cartpole} {cartpole} --episodes 2 --report {page}" in text
    assert "KL(A‖B) on A's states  0.0000 ± 0.0000" in capsys.readouterr().out
    assert refused(capsys, cartpole, cartpole, "--report", tmp_path / "a.pdf").endswith(
        "a.pdf; allowed: a name that ends in .html"
    )
    assert "no directory" in refused(capsys, cartpole, cartpole, "--report", tmp_path / "no/a.html")


def test_masks_of_both_libraries(saved, tmp_path):
    model = saved("masked").path
    found = result(tmp_path, model, model, "--env", "AuditChoosing-v0", "--episodes", "2")
    assert [x["mean"] for x in found["divergences"]] == [0.0] * 4
    assert found["policies"][0]["algorithm"] == "MaskablePPO"


def test_a_missing_vec_normalize_is_asked_for(saved, tmp_path, capsys):
    model = saved("pendulum")
    said = refused(capsys, model.path, model.path, "--env", "Pendulum-v1")
    assert said == (
        f"path = {model.path} was trained on a VecNormalize, whose statistics its zip does not hold; allowed: "
        "--vecnormalize FILE, as VecNormalize.save wrote it, or --vecnormalize none if it left observations as they are"
    )
    beside = model.path.with_name("pendulum_vecnormalize_32_steps.pkl")
    shutil.copy(model.vec_normalize, beside)
    assert f"allowed: --vecnormalize {beside}, or" in refused(capsys, model.path, model.path, "--env", "Pendulum-v1")
    beside.unlink()
    words = ["--env", "Pendulum-v1", "--episodes", "1", "--vecnormalize"]
    found = result(tmp_path, model.path, model.path, *words, "none", model.vec_normalize)
    assert found["divergences"][0]["mean"] > 1e-6
    assert [p["statistics"] for p in found["policies"]] == [None, str(model.vec_normalize)]


def test_what_does_not_fit_is_refused_in_one_line(saved, cartpole, tmp_path, capsys):
    zipped, other = saved("cartpole").path, saved("a2c").path
    hopper, pendulum = saved("hopper").vec_normalize, saved("pendulum").path
    lines = {
        (zipped, zipped): "env = none; allowed: --env ID (a zip of Stable-Baselines3 names no environment)",
        (cartpole, other): "B has observation_space Box([-1. -1. -8.], [1. 1. 8.], (3,), float32); allowed: A's, Box(",
        (other, other, "--env", "CartPole-v1"): "env = CartPole-v1 has observation_space Box(",
        (cartpole, tmp_path / "no"): f"path = {tmp_path / 'no'}: No such file or directory",
        (tmp_path,): f"paths = {tmp_path} has 0 checkpoints; allowed: two or more, or another policy beside it",
        (zipped,): f"paths = {zipped}; allowed: two saved policies, or a directory of checkpoints",
        (): "paths missing; for example: klrl audit runs/a model.zip",
        (zipped, zipped, zipped): "paths = ",
        (
            cartpole,
            zipped,
            "--vecnormalize",
            "a",
            "b",
        ): "vecnormalize = a b; allowed: one file, or none, for each of 1 zips",
        (
            pendulum,
            other,
            "--vecnormalize",
            hopper,
            "none",
        ): f"vecnormalize = {hopper} is for observations of shape (11,); allowed:",
        (cartpole, zipped, "--episodes", "0"): "episodes = 0; allowed: an integer >= 1",
    }
    for words, line in lines.items():
        assert refused(capsys, *words).startswith(line)
