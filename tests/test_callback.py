"""Hooks: their order and arguments."""

import math

import pytest
import torch
from environments import small_agent

from klrl.agents import PPO, TRPO
from klrl.experience import Batch
from klrl.run import Callback, CallbackList

HOOKS = [name for name in vars(Callback) if name.startswith("on_")]


class Recorder(Callback):
    """Remembers the name and the arguments of every call."""

    def __init__(self, answer=None):
        self.calls, self.answer = [], answer

    def names(self):
        return [name for name, _ in self.calls]

    def arguments(self, hook):
        return [arguments for name, arguments in self.calls if name == hook]


def _hook(name):
    def record(self, *arguments):
        self.calls.append((name, arguments))
        return self.answer if name == "on_update_end" else None

    return record


for _name in HOOKS:
    setattr(Recorder, _name, _hook(_name))


@pytest.mark.parametrize(("agent_class", "epochs"), [(PPO, {"n_epochs": 3}), (TRPO, {"n_critic_updates": 3})])
def test_hooks_come_in_the_order_of_training_down_to_the_minibatch(agent_class, epochs):
    recorder = Recorder()
    small_agent(agent_class, **epochs).learn(100, callback=recorder)
    epoch = ["on_minibatch_end", "on_minibatch_end", "on_epoch_end"]
    update = ["on_update_start", *epoch * 3, "on_update_end"]
    assert recorder.names() == ["on_training_start", *update * 2, "on_training_end"]


def test_hooks_receive_what_their_signatures_promise():
    recorder = Recorder()
    agent = small_agent(PPO, n_epochs=3).learn(100, callback=recorder)
    assert all(arguments[0] is agent for _, arguments in recorder.calls)
    assert recorder.arguments("on_training_start") == [(agent, 100)]
    assert [epoch for _, epoch in recorder.arguments("on_epoch_end")] == [0, 1, 2, 0, 1, 2]
    for (_, begun), (_, ended, metrics), kept in zip(
        recorder.arguments("on_update_start"), recorder.arguments("on_update_end"), agent.history, strict=True
    ):
        assert isinstance(begun, Batch)
        assert begun is ended
        assert metrics is kept
    for _, losses in recorder.arguments("on_minibatch_end"):
        assert "train/value_loss" in losses
        assert all(math.isfinite(x) for x in losses.values())


def test_the_end_of_a_second_training_counts_from_its_start():
    agent, recorder = small_agent(PPO).learn(100), Recorder()
    agent.learn(100, callback=recorder)
    assert recorder.arguments("on_training_start") == [(agent, 128 + 100)]


@pytest.mark.parametrize(("answer", "n_updates"), [(False, 1), (None, 3), (True, 3), (0, 3)])
def test_only_false_ends_the_training(answer, n_updates):
    agent = small_agent(PPO).learn(192, callback=[Recorder(), Recorder(answer)])
    assert len(agent.history) == agent.n_updates == n_updates


def test_a_list_calls_everyone_in_order_even_when_the_first_wants_to_stop():
    first, second = Recorder(False), Recorder()
    assert CallbackList([first, second]).on_update_end("agent", "batch", {}) is False
    assert first.calls == second.calls == [("on_update_end", ("agent", "batch", {}))]


@pytest.mark.parametrize("hook", ["on_update_start", "on_minibatch_end", "on_epoch_end", "on_update_end"])
def test_training_end_is_called_also_after_an_exception(hook, monkeypatch):
    def fail(*arguments):
        raise ZeroDivisionError

    recorder, failing = Recorder(), Callback()
    monkeypatch.setattr(failing, hook, fail)
    with pytest.raises(ZeroDivisionError):
        small_agent(PPO).learn(64, callback=[recorder, failing])
    assert recorder.names()[-1] == "on_training_end"


def test_every_hook_of_the_base_class_does_nothing():
    plain, called = small_agent(PPO).learn(64), small_agent(PPO).learn(64, callback=Callback())
    assert all(torch.equal(a, b) for a, b in zip(plain.actor_parameters, called.actor_parameters, strict=True))
