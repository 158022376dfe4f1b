"""Hooks: their order and arguments, what is kept of what they add, and what waits until they are done."""

import math
import re
import threading

import numpy as np
import pytest
import torch
from environments import Counting, small_agent
from support import parameters, same, without_time

from klrl.agents import PPO, TRPO
from klrl.experience import Batch
from klrl.run import Callback, CallbackList
from klrl.run.callback import Recorder as Recording

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
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.networks.actor_parameters, called.networks.actor_parameters, strict=True)
    )


class Adding(Callback):
    """Adds a metric, and fails in the update with this number."""

    def __init__(self, name, value, failing=None):
        self.name, self.value, self.failing = name, value, failing

    def on_update_end(self, agent, batch, metrics):
        metrics[self.name] = self.value
        if agent.n_updates == self.failing:
            raise ZeroDivisionError


class Seeing(Recording):
    """Remembers the metrics as it is told of them."""

    def __init__(self):
        self.seen = []

    def on_update_end(self, agent, batch, metrics):
        assert math.isnan(metrics["drift/kl_next"])
        self.seen.append(dict(metrics))

    def of(self, agent):
        """The history as it was told of: without what each following rollout has completed."""
        return [row | {"drift/kl_next": math.nan} for row in agent.history]


@pytest.mark.parametrize("nested", [False, True])
def test_what_records_an_update_comes_after_all_that_add_to_it_wherever_it_stands(nested):
    seeing, adding = Seeing(), [Adding("my/a", np.float32(0.5)), Adding("my/b", True)]
    agent = small_agent(PPO).learn(128, [CallbackList([seeing, adding[0]]) if nested else seeing, *adding])
    assert repr(seeing.seen) == repr(seeing.of(agent))
    assert [(row["my/a"], row["my/b"]) for row in seeing.seen] == [(0.5, 1.0)] * 2


def test_every_callback_sees_what_those_before_it_have_added_as_a_number():
    class Later(Callback):
        types = ()

        def on_update_end(self, agent, batch, metrics):
            self.types += (type(metrics["my/a"]),)

    later = Later()
    small_agent(PPO).learn(64, [Adding("my/a", torch.tensor(3)), later])
    assert later.types == (float,)


@pytest.mark.parametrize("value", [0.5, None])
def test_where_a_callback_fails_the_update_is_recorded_without_what_cannot_be(value):
    seeing, after = Seeing(), Recorder()
    agent = small_agent(PPO)
    with pytest.raises(ZeroDivisionError):
        agent.learn(192, [seeing, Adding("my/a", value, failing=1), after])
    assert repr(seeing.seen) == repr(seeing.of(agent))
    assert [row.get("my/a", "absent") for row in seeing.seen] == [0.5 if value else "absent"]
    assert "on_update_end" not in after.names()


def test_a_metric_that_is_none_is_left_out_with_one_warning_that_names_it_and_the_callback():
    seeing, agent = Seeing(), small_agent(PPO)
    expected = r"^left out: metric 'my/a' is None \(NoneType\); allowed: .* \(from Adding\.on_update_end\)$"
    with pytest.warns(RuntimeWarning, match=expected) as said:
        agent.learn(192, [Adding("my/a", None), seeing])
    assert len(said) == 1
    assert repr(seeing.seen) == repr(seeing.of(agent))
    assert not any("my/a" in row for row in agent.history)
    assert same(parameters(agent), parameters(small_agent(PPO).learn(192)))


# What waits until the training is over.
WHERE = [name for name in HOOKS if name != "on_error"]
NO = "was called in one of its callbacks while the agent learns; allowed: when learn() has returned"


class Once(Callback):
    """Does something in one hook, once, after so many updates (that an ``on_update_end`` counts among them)."""

    def __init__(self, hook, act, update=0):
        self.done = False

        def do(agent, *arguments):
            if not self.done and agent.n_updates - (hook == "on_update_end") >= update:
                self.done = True
                act(agent)

        setattr(self, hook, do)


@pytest.mark.parametrize("hook", WHERE)
@pytest.mark.parametrize("act", [lambda a: a.learn(64), lambda a: a.resume(), lambda a: a.learn(64, Recorder())])
def test_learning_inside_of_a_callback_is_refused_and_changes_nothing(hook, act):
    def attempt(agent):
        with pytest.raises(ValueError, match=r"^(learn|resume)\(\) " + re.escape(NO)):
            act(agent)

    alone, agent = small_agent(PPO).learn(192), small_agent(PPO)
    agent.learn(192, Once(hook, attempt))
    assert same(parameters(agent), parameters(alone))
    assert without_time(agent) == without_time(alone)
    assert agent.training == alone.training
    agent.learn(64)


@pytest.mark.parametrize("hook", [name for name in WHERE if name != "on_training_end"])
@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("set_env", lambda a: a.set_env("CartPole-v1")),
        ("close", lambda a: a.close()),
        ("start_from", lambda a: a.start_from("nowhere")),
    ],
)
def test_what_would_take_the_ground_from_a_training_is_refused_in_a_callback(hook, name, act):
    def attempt(agent):
        with pytest.raises(ValueError, match=rf"^{name}\(\) " + re.escape(NO)):
            act(agent)

    alone, agent = small_agent(PPO).learn(192), small_agent(PPO)
    agent.learn(192, Once(hook, attempt))
    assert same(parameters(agent), parameters(alone))


def test_after_the_last_update_environments_may_be_closed_or_changed():
    class Closing(Counting):
        closed = False

        def close(self):
            Closing.closed = True

    small_agent(PPO, Closing).learn(64, Once("on_training_end", lambda agent: agent.close()))
    assert Closing.closed
    agent = small_agent(PPO, lambda: Counting(length=3))
    agent.learn(64, Once("on_training_end", lambda agent: agent.set_env(lambda: Counting(length=5))))
    assert agent.learn(64).episodes[-1].length == 5


def test_a_training_that_failed_leaves_the_agent_free():
    def fail(agent):
        raise ZeroDivisionError

    agent = small_agent(PPO)
    for hook in ("on_training_start", "on_minibatch_end", "on_training_end"):
        with pytest.raises(ZeroDivisionError):
            agent.learn(64, Once(hook, fail))
        agent.set_env("CartPole-v1")
    agent.learn(64)


def test_another_thread_is_refused_while_the_agent_learns():
    agent, heard = small_agent(PPO), []

    def attempt():
        for act in (lambda: agent.learn(64), lambda: agent.set_env("CartPole-v1")):
            try:
                act()
            except ValueError as error:
                heard.append(str(error))

    def in_a_thread(agent):
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()

    agent.learn(192, Once("on_epoch_end", in_a_thread))
    assert heard == [
        f"{what}() was called in another thread while the agent learns; allowed: when learn() has returned"
        for what in ("learn", "set_env")
    ]
    assert same(parameters(agent), parameters(small_agent(PPO).learn(192)))


@pytest.mark.parametrize("hook", HOOKS[:-2])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_is_saved_in_a_callback_resumes_to_the_end_of_the_uninterrupted_training(hook, elsewhere, tmp_path):
    def save(agent):
        if elsewhere:
            thread = threading.Thread(target=agent.save, args=[tmp_path / "a"])
            thread.start()
            thread.join()
        else:
            agent.save(tmp_path / "a")

    agent = small_agent(PPO)
    agent.learn(64 * 4, Once(hook, save, update=0 if hook == "on_training_start" else 1))
    loaded = PPO.load(tmp_path / "a")
    due = {"on_training_start": 0, "on_update_end": 128}.get(hook, 64)
    assert loaded.num_timesteps == due
    assert loaded.training == agent.training
    loaded.resume()
    assert same(parameters(loaded), parameters(agent))
    assert without_time(loaded) == without_time(agent)
