"""Saved agents whose tensors and numbers lie: one line, before anything is made of them."""

import re

import pytest
import torch
from environments import small_agent

from klrl.agents import PPO, TRPO, load_agent
from klrl.run import checkpoint


def lies(name, x):
    """Other tensors, by what is wrong with them."""
    yield "gone", None
    yield "empty", x.new_zeros(0)
    yield "flat", x.reshape(-1)[None, None]
    yield "half", x.to(torch.float16)
    counted = name.endswith((".step", ".variance", ".exp_avg_sq")) or name.startswith("whereabouts.")
    if counted and name not in ("whereabouts.actions", "whereabouts.observation", "whereabouts.returns"):
        yield "negative", -x.abs() - 1
    if name.startswith(("normalizer.", "return_scaler.", "optimizer.")):
        yield "nan", torch.full_like(x, float("nan"))
        yield "infinite", torch.full_like(x, float("inf"))


def test_no_tensor_that_lies_becomes_an_agent(tmp_path):
    """All agents keep tensors of the same names."""
    agent, other = (small_agent(cls, "Pendulum-v1", seed=0).learn(64) for cls in (PPO, TRPO))
    tensors, state = checkpoint.read(agent.save(tmp_path / "good"))
    assert {*checkpoint.read(other.save(tmp_path / "other"))[0]} - {*tensors} == set()
    taken = set()
    for name, x in tensors.items():
        if name.startswith(("observation_space.", "action_space.", "history.")):  # they have tests of their own
            continue
        for what, lie in lies(name, x):
            forged = {k: v for k, v in tensors.items() if k != name} | ({} if lie is None else {name: lie})
            checkpoint.write(tmp_path / "forged", forged, state)
            try:
                load_agent(tmp_path / "forged")
                taken.add((name, what))
            except ValueError as error:
                assert re.fullmatch(r"path = [^\n]*", str(error))  # noqa: PT017
    # Actions may have been too many to be kept, and agents may have been in other numbers of environments; the
    # environments themselves judge observations and actions.
    kinds = {"gone", "half"}
    assert taken == {("return_scaler.running", "empty"), ("probe.observations", "half")} | {
        (f"whereabouts.{name}", kind) for name in ("actions", "observation") for kind in kinds
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Tensors and state of a trained agent."""
    return checkpoint.read(small_agent(PPO).learn(64).save(tmp_path_factory.mktemp("saved") / "agent"))


@pytest.mark.parametrize("name", ["num_timesteps", "n_updates", "normalizer_count", "return_scaler_count", "history"])
@pytest.mark.parametrize("number", [-1, 10**30, 0.5, True, "1", None])
def test_no_count_that_lies_becomes_an_agent(name, number, saved, tmp_path):
    tensors, state = saved
    if name == "history" and number is True:
        number = 2
    checkpoint.write(tmp_path / "agent", tensors, state | {name: number})
    with pytest.raises(ValueError, match=rf"^path = [^\n]*{name}[^\n]*$"):
        load_agent(tmp_path / "agent")


@pytest.mark.parametrize("region", [None, 1.0, "clip", [], {"class": "Fixed", "beta": 1.0}, {"class": "Fake"},
                                    {"class": "KLPenalty", "coefficient": 1.0}])  # fmt: skip
def test_no_region_that_lies_becomes_an_agents(region, saved, tmp_path):
    tensors, state = saved
    checkpoint.write(tmp_path / "agent", tensors, state | {"region": region})
    with pytest.raises(ValueError, match=r"^path = [^\n]*$"):
        load_agent(tmp_path / "agent")
