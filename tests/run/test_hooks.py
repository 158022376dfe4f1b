"""Callbacks checked at the door, before anything is trained."""

import functools

import numpy as np
import pytest
import torch
from environments import small_agent
from stable_baselines3.common.callbacks import BaseCallback

from klrl.agents import PPO
from klrl.run import Callback, CallbackList, KLBudget
from klrl.run.directory import RunDirectory
from klrl.run.hooks import check_callback, ends, name_lookalikes
from klrl.run.progress import Progress

HOOKS = {name for name in vars(Callback) if name.startswith("on_")}


def with_method(name, method=lambda self: None, base=Callback):
    return type("Mine", (base,), {name: method})()


LOOKALIKES = {
    "on_step": "on_update_end", "_on_step": "on_update_end", "on_rollout_start": "on_update_end",
    "on_rollout_end": "on_update_start", "_on_rollout_end": "on_update_start",
    "_on_training_start": "on_training_start",
    "on_training_begin": "on_training_start", "on_train_begin": "on_training_start", "on_train_end": "on_training_end",
    "on_epoch_start": "on_epoch_end", "on_batch_end": "on_minibatch_end", "on_updates_end": "on_update_end",
    "on_exception": "on_error", "on_Update_end": "on_update_end", "on_minibatch_stop": "on_minibatch_end",
}  # fmt: skip


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_method_that_only_looks_like_a_hook_is_named_with_the_nearest_one(name):
    with pytest.warns(RuntimeWarning, match=rf"^Mine\.{name} is not a hook: training never calls it; ") as caught:
        small_agent(PPO).learn(64, callback=with_method(name))
    (said,) = (str(warning.message) for warning in caught)
    assert f"; did you mean {LOOKALIKES[name]}(" in said
    assert all(hook in said for hook in HOOKS)
    assert "\n" not in said


@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: [Callback(), c], lambda c: CallbackList([Callback(), c])])
def test_it_is_found_wherever_the_callback_is(wrap):
    class Below(type(with_method("on_step"))):
        """Has it from a class of its own."""

    for callback in (with_method("on_step"), Below()):
        with pytest.warns(RuntimeWarning, match=r"\.on_step is not a hook") as caught:
            small_agent(PPO).learn(64, callback=wrap(callback))
        assert len(caught) == 1


def test_helpers_by_other_names_and_klrl_s_own_classes_are_fine(tmp_path):
    class Mine(KLBudget):
        def step(self, x):
            return x

        def once(self):
            return None

        def update_end(self):
            return None

        on_device = "cpu"

    for callback in (Mine(total=1.0), RunDirectory(tmp_path), Progress(), CallbackList([KLBudget(initial=1.0)])):
        check_callback(callback)
        name_lookalikes(callback)


CANNOT = {
    "no agent": (
        "on_update_end",
        lambda self, batch, metrics: None,
        r"cannot be called with \(agent, batch, metrics\)",
    ),
    "no self": ("on_epoch_end", lambda agent, epoch: None, r"cannot be called with \(agent, epoch\)"),
    "one more": ("on_training_end", lambda self, agent, why: None, r"cannot be called with \(agent\): missing"),
    "by keyword": ("on_error", lambda self, agent, *, error: None, r"cannot be called with \(agent, error\)"),
    "not callable": ("on_update_start", None, "is None"),
}


async def later(self, agent, batch, metrics):
    return False


def one_by_one(self, agent, batch, metrics):
    yield False


CANNOT["coroutine"] = ("on_update_end", later, "is a coroutine or a generator")
CANNOT["generator"] = ("on_update_end", one_by_one, "is a coroutine or a generator")


@pytest.mark.parametrize("case", CANNOT)
def test_a_hook_that_cannot_be_called_is_named_before_training(case):
    name, method, problem = CANNOT[case]
    with pytest.raises(ValueError, match=rf"^Mine\.{name} {problem}.*; allowed: def {name}\(self, agent") as caught:
        small_agent(PPO).learn(64, callback=with_method(name, method))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "method",
    [
        lambda self, agent, batch, metrics: None,
        lambda self, *arguments: None,
        lambda self, a, b, c, d=0, **more: None,
        staticmethod(lambda agent, batch, metrics: None),
        functools.partialmethod(lambda self, x, agent, batch, metrics: None, 0),
    ],
)
def test_a_hook_may_be_written_in_any_way_that_can_be_called(method):
    assert small_agent(PPO).learn(64, callback=with_method("on_update_end", method)).n_updates == 1


class ForOthers(BaseCallback):
    def _on_step(self):
        return True


@pytest.mark.parametrize("callback", [print, ForOthers(), Callback, [print], {"on_step": print}, 3])
def test_what_is_no_callback_is_told_what_a_callback_is(callback):
    expected = (
        r"^callback = .*; allowed: a klrl\.run\.Callback or several, whose on_update_start\(agent, batch\) is called"
    )
    with pytest.raises(ValueError, match=expected) as caught:
        small_agent(PPO).learn(64, callback=callback)
    assert "on_update_end(agent, batch, metrics) after it" in str(caught.value)
    assert str(caught.value).endswith("; did you mean Callback()?") == (callback is Callback)
    assert "\n" not in str(caught.value)


FALSE = [False, np.bool_(False), np.array(False), np.array([False]), torch.tensor(False), np.mean([1.0]) < 0.5]
NOT_FALSE = [None, True, 0, 0.0, 3, "", [], np.float64(0.0), np.array(0), np.zeros(3), torch.tensor(0.0)]
NOT_FALSE += [np.bool_(True), np.array([[True]]), torch.tensor([True]), torch.zeros(3)]


@pytest.mark.parametrize("answer", FALSE, ids=repr)
def test_false_of_every_kind_ends_the_training(answer):
    assert ends(answer)
    callback = with_method("on_update_end", lambda *arguments: answer)
    assert small_agent(PPO).learn(64 * 3, callback=callback).n_updates == 1


@pytest.mark.parametrize("answer", NOT_FALSE, ids=repr)
def test_nothing_else_does(answer):
    assert not ends(answer)


@pytest.mark.parametrize("answer", [np.array([False, True]), torch.zeros(0, dtype=torch.bool)])
def test_several_elements_are_refused(answer):
    callback = with_method("on_update_end", lambda *arguments: answer)
    expected = rf"^Mine\.on_update_end returned an array of {len(answer)} elements; allowed: None, True or False"
    with pytest.raises(ValueError, match=expected):
        small_agent(PPO).learn(64 * 3, callback=callback)
