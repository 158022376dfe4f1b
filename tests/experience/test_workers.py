"""Worker processes, real ones: they give what one process gives, and every way to fail is told or mended."""

import contextlib
import copy
import ctypes
import faulthandler
import gc
import multiprocessing
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Counting, Sampling, box, encoding_of, small_agent
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from support import wait_for
from torture.processes import Fork, Process

from klrl.agents import PPO, PPOConfig
from klrl.experience import BadStep, Collector, make_vector_env
from klrl.experience.cursors import EnvCursor
from klrl.experience.episodes import EpisodeCursor, SeededEpisodes
from klrl.experience.infos import WorkerEnvs
from klrl.experience.processes import FILES
from klrl.experience.worker import _prepare, pickled
from klrl.experience.workers import WorkerFailed, WorkerVectorEnv
from klrl.policy.distributions import Categorical

SAME = AutoresetMode.SAME_STEP
HERE = os.getpid()


def running(pid):
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids(envs):
    return [worker.process.pid for worker in envs._workers]


@pytest.fixture(autouse=True)
def _no_process_is_left():
    yield
    try:
        wait_for(lambda: not multiprocessing.active_children())
    finally:
        for process in multiprocessing.active_children():
            process.kill()  # not the next test's


# -- the same as in one process -----------------------------------------------------------------


class Informing(Counting):
    """Tells something of every kind, in some steps only."""

    def step(self, action):
        *result, _ = super().step(action)
        infos = (
            {"x": self.steps, "nested": {"y": float(self.steps)}},
            {"array": np.arange(3) * self.steps},
            {"t": "text"},
        )
        return *result, infos[(self.steps + self.index) % 3]


SPACES = {
    "Discrete": gym.spaces.Discrete(5, start=-2),
    "float64": gym.spaces.Box(-1.0, 1.0, (2, 3), np.float64),
    "image": gym.spaces.Box(0, 255, (6, 5, 3), np.uint8),
    "MultiBinary": gym.spaces.MultiBinary(3),
    "Dict": gym.spaces.Dict(a=gym.spaces.Discrete(3), b=gym.spaces.Dict(c=box(2))),
    "Tuple": gym.spaces.Tuple([box(1), gym.spaces.MultiDiscrete([2, 3])]),
    "Text": gym.spaces.Text(4),
}
ACTIONS = [gym.spaces.Discrete(3, start=1), box(2), gym.spaces.MultiDiscrete([2, 3]), gym.spaces.Dict(a=box(1))]
TASKS = {
    **{
        name: partial(Sampling, space, ACTIONS[i % len(ACTIONS)], length=3)
        for i, (name, space) in enumerate(SPACES.items())
    },
    "infos": partial(Informing, 1),
    "CartPole": partial(gym.make, "CartPole-v1"),
    "Pendulum": partial(gym.make, "Pendulum-v1", max_episode_steps=20),
}


def equal(a, b):
    """To the bit, and of the same types."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray) and a.dtype == object:
        return isinstance(b, np.ndarray) and equal(a.tolist(), b.tolist())
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("seeded", [False, True], ids=["plain", "seeded"])
@pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)
def test_every_number_is_that_of_environments_in_one_process(make, seeded):
    makes = [partial(SeededEpisodes, make, i) if seeded else make for i in range(3)]
    one = SyncVectorEnv(makes, autoreset_mode=SAME)
    many = WorkerVectorEnv(makes)
    for name in ("observation_space", "action_space", "single_observation_space", "single_action_space", "metadata"):
        assert getattr(one, name) == getattr(many, name)
    one.action_space.seed(0)
    for seed in (7, None, [3, None, 5]):
        results = [(one.reset(seed=seed), many.reset(seed=seed))] if seed is not None else []
        for _ in range(25):
            action = one.action_space.sample()
            results.append((one.step(action), many.step(action)))
        for a, b in results:  # after the last step: none of them is changed by the next
            assert equal(a, b)
    one.close()
    many.close()


@pytest.mark.parametrize("every", [True, False])
def test_seeds_of_a_reset_begin_the_episodes_that_they_begin_in_one_process(every):
    makes = [partial(SeededEpisodes, partial(Sampling, box(2), ACTIONS[0]), i, every=every) for i in range(2)]
    one = SyncVectorEnv(makes, autoreset_mode=SAME)
    with contextlib.closing(WorkerVectorEnv(makes)) as many:
        first, other, again = ((one.reset(seed=s), many.reset(seed=s)) for s in ([1, 2], [3, 4], [1, 2]))
        assert all(equal(a, b) for a, b in (first, other, again))
        assert equal(first[1], again[1])
        assert not equal(first[1], other[1])


def test_what_is_no_array_of_the_action_space_reaches_the_environment_as_it_is():
    with contextlib.closing(WorkerVectorEnv([Remembering] * 2)) as envs:
        envs.reset(seed=0)
        for actions in ([0, 1], np.array([1, 0], np.int32), np.array([0, 1]), (1, 1)):
            envs.step(actions)
            assert equal(envs.get_attr("last"), tuple(actions))


@pytest.mark.parametrize("actions", [[0, 1, 0], [0], np.zeros(3, int), np.zeros((0,), int), ()], ids=repr)
def test_a_wrong_number_of_actions_is_refused_and_nothing_happens(actions):
    with contextlib.closing(WorkerVectorEnv([Counting] * 2)) as envs:
        before, workers = envs.reset(seed=0)[0], pids(envs)
        with pytest.raises(ValueError, match=rf"^{len(actions)} actions; allowed: 2, one for each environment$"):
            envs.step(actions)
        assert all(map(running, workers))
        after = envs.step(np.array([3, 2]))[0]
        assert (after - before)[:, 2:].tolist() == [[1, 3], [1, 2]]  # one step on, with these actions
        assert pids(envs) == workers


def test_a_wrong_number_of_actions_is_refused_in_every_action_space():
    space = gym.spaces.Dict(a=box(1), b=gym.spaces.Discrete(3))
    with contextlib.closing(WorkerVectorEnv([partial(Sampling, box(2), space)] * 2)) as envs:
        envs.reset(seed=0)
        actions = envs.action_space.sample()
        with pytest.raises(ValueError, match=r"^1 actions; allowed: 2"):
            envs.step({key: x[:1] for key, x in actions.items()})
        envs.step(actions)


def test_seeds_and_generators_are_those_of_the_environments():
    one = SyncVectorEnv([partial(gym.make, "CartPole-v1")] * 3, autoreset_mode=SAME)
    with contextlib.closing(WorkerVectorEnv(one.env_fns)) as envs:
        for e in (one, envs):
            e.reset(seed=42)
        assert envs.np_random_seed == one.np_random_seed == (42, 43, 44)
        assert [x.bit_generator.state for x in envs.np_random] == [x.bit_generator.state for x in one.np_random]
        envs.reset()
        assert envs.np_random_seed == (42, 43, 44)  # the streams go on


@pytest.mark.parametrize(
    ("mask", "error", "what"),
    [
        ([True, False], TypeError, "list"),
        (np.array([1, 0]), TypeError, r"int64 \(2,\)"),
        (np.array([True]), ValueError, r"bool \(1,\)"),
        (np.array([[True, False]]), ValueError, r"bool \(1, 2\)"),
        (np.array([False, False]), ValueError, "all False"),
    ],
    ids=repr,
)
def test_a_reset_mask_is_validated(mask, error, what):
    one = SyncVectorEnv([Counting] * 2, autoreset_mode=SAME)
    with contextlib.closing(WorkerVectorEnv([Counting] * 2)) as envs:
        partly = np.array([True, False])
        with pytest.raises(gym.error.ResetNeeded):
            envs.reset(options={"reset_mask": partly})
        envs.reset(seed=0)
        allowed = r"allowed: an array of bool and shape \(2,\), True somewhere"
        with pytest.raises(error, match=rf"^options\['reset_mask'\] is {what}; {allowed}$"):
            envs.reset(options={"reset_mask": mask})
        with pytest.raises((error, AssertionError)):  # which releases before 1.2 raise
            one.reset(options={"reset_mask": mask})  # so does Gymnasium
        options = {"reset_mask": partly}
        assert envs.reset(options=options)[0][:, 1].tolist() == [1, 0]
        assert options == {"reset_mask": partly}


class Remembering(Counting):
    def step(self, action):
        self.last = action
        return super().step(action)


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_every_start_method(context):
    makes = [partial(gym.make, "CartPole-v1")] * 2
    envs, one = WorkerVectorEnv(makes, context=context), SyncVectorEnv(makes, autoreset_mode=SAME)
    assert equal(one.reset(seed=1), envs.reset(seed=1))
    for _ in range(30):
        assert equal(one.step(np.zeros(2, int)), envs.step(np.zeros(2, int)))
    os.kill(pids(envs)[1], signal.SIGKILL)
    with pytest.raises(WorkerFailed, match=r"^environment 1 \(episode 3, seed 2\): worker was killed by SIGKILL"):
        envs.step(np.zeros(2, int))
    assert envs.closed


def test_a_worker_does_without_torch():
    program = "import klrl.experience.worker, klrl.experience.steps, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_attributes_methods_and_places():
    makes = [partial(SeededEpisodes, partial(gym.make, "CartPole-v1"), i) for i in range(2)]
    one, envs = SyncVectorEnv(makes, autoreset_mode=SAME), WorkerVectorEnv(makes)
    for e in (one, envs):
        e.reset(seed=[5, 6])
        e.set_attr("gravity", 5.0)
    cursors = [EpisodeCursor(5, 3, [0, 1, 1]), EpisodeCursor(9, 1)]
    envs.go_to(cursors)
    for env, cursor in zip(one.envs, cursors, strict=True):
        env.cursor = cursor
    assert envs.get_attr("gravity") == envs.call("get_wrapper_attr", "gravity") == (5.0, 5.0)
    assert envs.call("has_wrapper_attr", "nothing") == (False, False)
    assert equal(one.reset(), envs.reset())
    assert [cursor.episode for cursor in envs._cursors] == [3, 1]
    for _ in range(50):
        assert equal(one.step(np.ones(2, int)), envs.step(np.ones(2, int)))
    assert equal(one.reset(options={}), envs.reset(options={}))
    mask = np.array([False, True])
    assert equal(one.reset(options={"reset_mask": mask}), envs.reset(options={"reset_mask": mask}))
    for bad in (lambda: envs.set_attr("x", [1]), lambda: envs.reset(seed=[1])):
        with pytest.raises(ValueError, match="has 1 elements; allowed: 2"):
            bad()
    envs.close()
    envs.close()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        envs.reset()


def test_a_step_needs_a_reset():
    with contextlib.closing(WorkerVectorEnv([Counting])) as envs, pytest.raises(gym.error.ResetNeeded):
        envs.step(np.zeros(1, int))


def test_spaces_that_differ_are_refused():
    makes = [partial(Sampling, gym.spaces.Discrete(n)) for n in (2, 3)]
    with pytest.raises(
        WorkerFailed, match=r"environment 1 \(before its first reset\): RuntimeError: spaces Discrete\(3\)"
    ):
        WorkerVectorEnv(makes)


# -- every way to fail --------------------------------------------------------------------------


class Unpicklable(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.function = lambda: None


class TwoArguments(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def leave(code):
    raise SystemExit(code)


def throw(error):
    raise error


def segfault():
    ctypes.string_at(0)


FAILURES = {
    "SIGKILL": (lambda: os.kill(os.getpid(), signal.SIGKILL), "worker was killed by SIGKILL", ""),
    "os._exit": (lambda: os._exit(3), "worker exited with status 3", ""),
    "SIGSEGV": (segfault, "worker was killed by SIGSEGV", "in segfault"),
    "SystemExit": (lambda: leave(4), "RuntimeError: SystemExit: 4", "in leave"),
    "exception": (lambda: throw(ValueError("sensor fault")), "ValueError: sensor fault", "in throw"),
    "unpicklable exception": (lambda: throw(Unpicklable("a lock")), "test_workers.Unpicklable: a lock", "in throw"),
    "two arguments": (lambda: throw(TwoArguments(1, 2)), "test_workers.TwoArguments: 1 and 2", "in throw"),
    "a broken pipe of its own": (lambda: throw(BrokenPipeError("simulator")), "BrokenPipeError: simulator", "in throw"),
    "hang": (lambda: time.sleep(10_000), "worker hangs: no answer for 2 s", "in <lambda>"),
    "busy hang": (lambda: [None for _ in iter(int, 1)], "worker hangs: no answer for 2 s", "in <lambda>"),
    "1 MB": (lambda: throw(ValueError("first\n" + "x" * 2**20)), "ValueError: first", "x" * 2**20),
}
every_failure = pytest.mark.parametrize(("fail", "what", "trace"), FAILURES.values(), ids=FAILURES)


class Failing(Counting):
    """Fails in one step of the second episode of stream 11, in its worker; episodes have 3 steps."""

    def __init__(self, fail, index, step=2):
        super().__init__(index)
        self.fail, self.when = fail, (EpisodeCursor(11, 1).seed, step)

    def reset(self, *, seed=None, options=None):
        self.seed = seed
        result = super().reset(seed=seed, options=options)
        self._maybe()
        return result

    def step(self, action):
        result = super().step(action)
        self._maybe()
        return result

    def _maybe(self):
        if (self.seed, self.steps) == self.when and os.getpid() != HERE:
            self.fail()


def failing(fail, timeout=600.0, on_failure="stop", **when):
    """The second of three environments fails, by default in step 2 of its second episode."""
    makes = [partial(SeededEpisodes, partial(Failing, fail if i == 1 else None, i, **when), i) for i in range(3)]
    envs = WorkerVectorEnv(makes, on_failure=on_failure)
    envs.reset(seed=[10, 11, 12])
    envs.timeout = timeout
    return envs


def steps(envs, n):
    return [envs.step(np.full(envs.num_envs, 2)) for _ in range(n)]


def crash_without_handlers(last_words):
    """Crash where another library, as Ray when it shuts down, has taken the handlers of faulthandler away."""
    faulthandler.enable()
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    _prepare(last_words)
    segfault()


def test_a_crash_is_told_by_processes_forked_without_handlers():
    context = multiprocessing.get_context("fork")
    last_words, say = context.Pipe(duplex=False)
    process = context.Process(target=crash_without_handlers, args=(say,))
    process.start()
    say.close()
    process.join()
    assert process.exitcode == -signal.SIGSEGV
    assert "in segfault" in os.read(last_words.fileno(), 1 << 16).decode()


@every_failure
def test_a_failure_stops_with_environment_episode_seed_and_traceback(fail, what, trace):
    envs = failing(fail)
    workers = pids(envs)
    steps(envs, 4)
    envs.timeout = 2.0 if "hangs" in what else 600.0
    with pytest.raises(WorkerFailed) as caught:
        steps(envs, 1)
    error, seed = caught.value, EpisodeCursor(11, 1).seed
    assert error.reason == str(error).partition("\n")[0] == f"environment 1 (episode 1, seed {seed}): {what}"
    assert (error.index, error.episode, error.seed) == (1, 1, seed)
    assert trace in error.traceback
    assert error.traceback in str(error) + "\n"
    if "SystemExit" not in what and error.traceback.startswith("Traceback"):
        assert f"in step 2 of environment 1, episode 1 (seed {seed})" in error.traceback
    assert not any(map(running, workers))
    assert envs.closed
    again = copy.copy(error)  # as another process would get it
    assert (str(again), again.reason, again.index) == (str(error), error.reason, 1)


@every_failure
def test_a_failed_worker_is_made_anew_and_begins_the_next_episode(fail, what, trace):
    envs = failing(fail, on_failure="restart")
    workers = pids(envs)
    steps(envs, 4)
    envs.timeout = 2.0 if "hangs" in what else 600.0
    with pytest.warns(RuntimeWarning) as caught:
        observations, rewards, terminated, truncated, infos = envs.step(np.full(3, 2))
    assert [str(w.message) for w in caught] == [
        f"environment 1 (episode 1, seed {EpisodeCursor(11, 1).seed}): {what}; restarted"
    ]
    assert observations.tolist() == [[0, 1, 2, 2], [1, 0, 0, 0], [2, 1, 2, 2]]
    assert (rewards.tolist(), terminated.any(), truncated.any()) == ([1.0, 0.0, 1.0], False, False)
    assert infos.pop("_worker_restarted").tolist() == infos.pop("worker_restarted").tolist() == [False, True, False]
    assert infos.pop("worker_episode").tolist() == [0, 2, 0]
    assert infos.pop("_worker_episode").tolist() == [False, True, False]
    assert not infos
    assert envs.get_attr("seed")[1] == EpisodeCursor(11, 2).seed
    assert not running(workers[1])
    ((*_, ended, _), *_, (observations, *_)) = steps(envs, 3)
    assert ended.tolist() == [True, False, True]
    assert observations[1].tolist() == [1, 1, 0, 0]
    assert envs.get_attr("seed")[1] == EpisodeCursor(11, 3).seed
    envs.close()


class Unmakeable(Counting):
    def __init__(self, index):
        super().__init__(index)
        if index == 1 and os.getpid() != HERE:
            throw(TwoArguments(1, 2))


@pytest.mark.parametrize("on_failure", ["stop", "restart"])
def test_a_constructor_that_fails_in_the_worker_is_the_end_at_once(on_failure):
    with pytest.raises(WorkerFailed, match="in throw") as caught:
        WorkerVectorEnv([partial(Unmakeable, i) for i in range(3)], on_failure=on_failure)
    assert caught.value.reason == "environment 1 (before its first reset): test_workers.TwoArguments: 1 and 2"
    assert (caught.value.seed, caught.value.episode) == (None, None)


def test_the_third_failure_in_a_row_is_the_end():
    always = partial(SeededEpisodes, partial(Always, 0))
    envs = WorkerVectorEnv([always], on_failure="restart")
    envs.reset(seed=[0])
    with pytest.warns(RuntimeWarning, match="restarted"):
        steps(envs, 2)
    with pytest.raises(WorkerFailed, match=rf"episode 2, seed {EpisodeCursor(0, 2).seed}.: ValueError: again"):
        envs.step(np.zeros(1, int))


class Always(Counting):
    def step(self, action):
        raise ValueError("again")


@pytest.mark.parametrize("step", [0, 3], ids=["reset", "last step"])
def test_a_failure_of_the_reset_that_follows_an_episode_names_the_new_one(step):
    envs = failing(lambda: throw(ValueError("x")), step=step)
    steps(envs, 2 if step == 0 else 5)
    episode = EpisodeCursor(11, 1)
    with pytest.raises(WorkerFailed, match=rf"environment 1 \(episode 1, seed {episode.seed}\): ValueError: x"):
        steps(envs, 1)


def test_a_failure_in_reset_is_mended_too():
    envs = failing(lambda: throw(ValueError("x")), step=0, on_failure="restart")
    envs.set_attr("length", 9)
    with pytest.warns(RuntimeWarning, match="ValueError: x; restarted"):
        _, infos = envs.reset()
    assert infos["worker_restarted"].tolist() == [False, True, False]
    assert envs.get_attr("length") == (9,) * 3  # it was told what the one before was told
    assert envs.get_attr("seed") == (EpisodeCursor(10, 1).seed, EpisodeCursor(11, 2).seed, EpisodeCursor(12, 1).seed)
    envs.close()


def test_a_worker_that_dies_between_two_steps_is_mended_when_it_is_asked_something():
    envs = failing(None, on_failure="restart")
    os.kill(pids(envs)[1], signal.SIGKILL)
    with pytest.warns(RuntimeWarning, match="killed by SIGKILL"):
        assert envs.get_attr("index") == (0, 1, 2)
    *_, infos = envs.step(np.zeros(3, int))
    assert infos["worker_restarted"].tolist() == [False, True, False]
    assert "worker_restarted" not in envs.step(np.zeros(3, int))[-1]
    envs.close()


class Odd(Counting):
    def __init__(self, info):
        super().__init__(0)
        self.info = info

    def step(self, action):
        return *super().step(action)[:4], self.info()


def test_what_cannot_be_sent_of_an_info_is_a_text_that_says_so():
    odd = {"lock": multiprocessing.Lock(), "f": lambda: 0, "n": 3, ("a", 1): "b", "deep": [{"e": (x for x in "ab")}]}
    with contextlib.closing(WorkerVectorEnv([partial(Odd, lambda: odd)])) as envs:
        envs.reset(seed=4)
        for _ in range(5):  # an episode ends, too
            *_, infos = envs.step(np.zeros(1, int))
            assert infos["n"][0] == 3 if "n" in infos else infos["final_info"]["n"][0] == 3
    assert pickle.loads(pickled(odd)) == {
        "lock": "Lock that cannot be sent from a worker process: RuntimeError: Lock objects should only be shared "
        "between processes through inheritance",
        "f": f"function that cannot be sent from a worker process: {reason(odd['f'])}",
        "n": 3,
        ("a", 1): "b",
        "deep": f"list that cannot be sent from a worker process: {reason(odd['deep'])}",
    }


def reason(x):
    try:
        pickle.dumps(x)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_an_info_that_cannot_be_read_is_so_only_for_those_who_read_it():
    makes = [partial(Odd, lambda: {"error": TwoArguments(1, 2)})]
    unreadable = pytest.raises(BadStep, match=r"^info of environment 0 cannot be read: TypeError: .*missing 1 required")
    with contextlib.closing(WorkerEnvs(makes)) as envs:
        envs.reset(seed=4)
        *_, infos = envs.step(np.zeros(1, int))
        with unreadable:
            infos[0]
        envs.step(np.zeros(1, int))
    with contextlib.closing(WorkerVectorEnv(makes)) as envs:
        envs.reset(seed=4)
        with unreadable:
            envs.step(np.zeros(1, int))


# -- the life of a process ----------------------------------------------------------------------


class Stop(KeyboardInterrupt):
    pass


def interrupted(envs, seconds):
    """Step until a signal comes."""
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        return not steps(envs, 20_000)
    except Stop:
        return True


def test_an_interrupt_in_the_middle_of_a_step_leaves_nothing_that_waits():
    envs = failing(lambda: time.sleep(10_000))
    steps(envs, 4)

    def stop(*_):
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    try:
        assert interrupted(envs, 0.3)
        with pytest.raises(gym.error.ResetNeeded):
            steps(envs, 1)
        workers = pids(envs)
        observations, _ = envs.reset()  # goes on with new workers, in the next episodes
        assert not any(map(running, workers))
        assert envs.get_attr("seed") == tuple(EpisodeCursor(env_seed, 2).seed for env_seed in (10, 11, 12))
        assert observations[:, 2].tolist() == [0, 0, 0]
        for _ in range(20):  # at any other moment
            assert interrupted(envs, 0.003)
            envs.reset()
        assert interrupted(envs, 0.003)
        workers = pids(envs)
        envs.close()
        assert not any(map(running, workers))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_signals_are_left_to_the_parent():
    with contextlib.closing(WorkerVectorEnv([Counting] * 2)) as envs:
        envs.reset(seed=0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            for pid in pids(envs):
                os.kill(pid, number)
            steps(envs, 2)


def test_environments_are_closed_and_nothing_is_left_open(tmp_path, monkeypatch):
    monkeypatch.setattr("klrl.experience.processes.GRACE", 600.0)

    def makes():
        return [partial(Closing, tmp_path / str(i)) for i in range(3)]

    WorkerVectorEnv(makes()).close()
    assert len(list(tmp_path.iterdir())) == 3
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        envs = WorkerVectorEnv(makes())
        workers = pids(envs)
        del envs  # without close
        assert not any(map(running, workers))
    assert len(os.listdir("/proc/self/fd")) == files


class Closing(Counting):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def close(self):
        self.path.touch()


PARENT = """
import os, sys, time
import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from klrl.experience.cursors import EnvCursor
from klrl.experience.workers import WorkerVectorEnv

class Hanging(CartPoleEnv):
    def step(self, action):
        print(os.getpid(), flush=True)
        time.sleep({sleep})
        while {loop}:
            pass
        return super().step(action)

envs = WorkerVectorEnv([CartPoleEnv, Hanging, CartPoleEnv], timeout=10_000.0)
envs.reset(seed=0)
print(*(worker.process.pid for worker in envs._workers), flush=True)
envs.step(np.zeros(3, int))
{end}
"""


def parent(start, sleep=0, loop=False, end=""):
    """The process that runs that program, and its workers' numbers, once one of them has begun its step."""
    process = start(PARENT.format(sleep=sleep, loop=loop, end=end))
    process.until(lambda: process.out.count("\n") == 2)
    workers = [int(pid) for pid in process.out.split()]
    assert workers.pop() == workers[1]
    return process, workers


@pytest.mark.parametrize("how", [{"sleep": 10_000}, {"loop": True}], ids=["sleep", "loop"])
def test_no_worker_survives_a_parent_that_is_killed_while_one_hangs(how, tmp_path):
    process, workers = parent(lambda program: Fork(["-c", program], tmp_path), **how)
    assert all(map(running, workers))
    process.send(signal.SIGKILL)
    wait_for(lambda: not any(map(running, workers)))
    assert process.wait().err == ""


STOPPED = """
import os, time
import numpy as np
from functools import partial
from gymnasium.envs.classic_control import CartPoleEnv
from klrl.experience.workers import WorkerVectorEnv

class Slow(CartPoleEnv):
    def step(self, action):
        time.sleep(1.0)
        return super().step(action)

envs = WorkerVectorEnv([Slow, Slow], timeout=4.0)
envs.reset(seed=0)
print("ready", flush=True)
envs.step(np.zeros(2, int))
envs.close()
"""


def test_time_that_all_processes_were_stopped_is_no_hang(tmp_path):
    process = Fork(["-c", STOPPED], tmp_path)
    process.until(lambda: process.out == "ready\n")
    time.sleep(0.2)
    process.send(signal.SIGSTOP, everyone=True)  # Ctrl-Z
    time.sleep(5.0)
    process.send(signal.SIGCONT, everyone=True)
    ended = process.wait()
    assert (ended.err, ended.code) == ("", 0)


class Slow(Counting):
    """Hangs in one step of an episode, if there is such a step; takes its time for the others."""

    def __init__(self, hangs):
        super().__init__(length=60)
        self.hangs = hangs

    def step(self, action):
        time.sleep(10_000.0 if self.steps == self.hangs else 0.1)
        return super().step(action)


@pytest.mark.parametrize("hangs", [None, 12])
def test_actions_that_are_played_again_may_take_longer_than_the_timeout_together_but_not_each(hangs):
    envs = WorkerVectorEnv([partial(SeededEpisodes, partial(Slow, hangs))] * 2, timeout=2.5)
    with contextlib.closing(envs):
        envs.go_to([EpisodeCursor(1), EpisodeCursor(1, 0, [0] * 30)])
        began = time.monotonic()
        if hangs is None:
            envs.reset()
            assert time.monotonic() - began > 2.5
        else:
            with pytest.raises(WorkerFailed, match=r"environment 1 .*: worker hangs: no answer for 2\.5 s"):
                envs.reset()


@pytest.mark.parametrize("end", ["", "envs.x = envs; raise KeyboardInterrupt", "os._exit(1)"])
def test_no_worker_survives_a_parent_that_ends_without_close(end, tmp_path):
    def start(program):  # where Python ends by itself it is taken apart, in a process of its own
        quick = end.startswith("os._exit")
        return Fork(["-c", program], tmp_path) if quick else Process([sys.executable, "-c", program], tmp_path)

    process, workers = parent(start, end=end)
    process.wait()
    wait_for(lambda: not any(map(running, workers)))


# -- batches and agents -------------------------------------------------------------------------


def act(observation):
    n = len(observation)
    return torch.full((n,), 2), np.full(n, 2), Categorical(torch.zeros(n, 4))


def test_a_batch_leaves_out_the_step_that_was_lost_and_cuts_the_episode_before_it():
    envs = failing(lambda: throw(ValueError("x")), on_failure="restart")
    collector = Collector(envs, EnvCursor.beginning([10, 11, 12]), encoding_of(envs))
    with pytest.warns(RuntimeWarning, match="restarted"):
        batch = collector.collect(act, 8)
    T, F = True, False
    # Environment 1: three steps, one step, the lost one, three steps; the others: three, three, two.
    assert batch.valid.T.tolist() == [[T] * 8, [T, T, T, T, F, T, T, T], [T] * 8]
    assert batch.truncated.T.tolist() == [[F, F, T, F, F, T, F, F], [F, F, T, T, F, F, F, T], [F, F, T, F, F, T, F, F]]
    assert not batch.terminated.any()
    assert batch.observations[:, 1, 2].tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert batch.rewards[:, 1].tolist() == [0, 1, 2, 0, 0, 0, 1, 2]
    rows = batch.truncated.nonzero().tolist()
    assert rows == [[2, 0], [2, 1], [2, 2], [3, 1], [5, 0], [5, 2], [7, 1]]
    assert batch.final_observations[:, [0, 2]].tolist() == [[i, 1 if t == 3 else 3] for t, i in rows]
    values = batch.next_values(batch.observations[..., 2], lambda x: x[..., 2])
    assert values[:, 1][batch.valid[:, 1]].tolist() == [1, 2, 3, 1, 1, 2, 3]
    found = [(e.total_timesteps, e.episode_return, e.length, e.env_index) for e in batch.episodes]
    assert found == [(9, 3, 3, 0), (9, 3, 3, 1), (9, 3, 3, 2), (17, 3, 3, 0), (17, 3, 3, 2), (23, 3, 3, 1)]
    assert (collector.total_timesteps, batch.n_samples, collector.restarts) == (23, 23, 1)
    at = collector.cursor
    assert at.episodes.tolist() == [cursor.episode for cursor in envs._cursors] == [2, 3, 2]
    assert at.lengths.tolist() == [2, 0, 2]
    assert at.returns.tolist() == [1, 0, 1]
    envs.close()


def test_a_rollout_with_a_lost_worker_can_be_gone_on_with_elsewhere():
    makes = [partial(SeededEpisodes, partial(gym.make, "CartPole-v1"), i) for i in range(3)]
    envs, one = WorkerVectorEnv(makes, on_failure="restart"), SyncVectorEnv(makes, autoreset_mode=SAME)
    collector = Collector(envs, np.random.SeedSequence(0), encoding_of(envs))

    def right(observation):
        return torch.ones(3, dtype=torch.int64), np.ones(3, np.int64), Categorical(torch.zeros(3, 2))

    collector.collect(right, 25)
    os.kill(pids(envs)[1], signal.SIGKILL)
    with pytest.warns(RuntimeWarning, match="killed by SIGKILL; restarted"):
        batch = collector.collect(right, 24)
    assert not batch.valid[0, 1]
    other = Collector(one, collector.cursor, encoding_of(envs))  # arrives there, or raises
    a, b = (c.collect(right, 20) for c in (collector, other))
    assert torch.equal(a.observations, b.observations)
    assert torch.equal(a.truncated | a.terminated, b.truncated | b.terminated)
    envs.close()


def test_a_worker_that_is_made_anew_when_environments_are_taken_to_a_place_begins_another_episode_there():
    envs = failing(lambda: throw(ValueError("x")), step=0, on_failure="restart")
    zeros = np.zeros(3)
    at = EnvCursor(np.array([10, 11, 12]), np.array([1, 1, 1]), zeros.astype(int), zeros, ())
    with pytest.warns(RuntimeWarning, match="restarted"):
        collector = Collector(envs, at, encoding_of(envs))
    assert collector.cursor.episodes.tolist() == [1, 2, 1]
    assert collector.restarts == 1
    envs.close()


def test_a_loss_in_the_first_row_of_a_batch_changes_that_row_only():
    envs = failing(lambda: throw(ValueError("x")), on_failure="restart")
    collector = Collector(envs, EnvCursor.beginning([10, 11, 12]), encoding_of(envs))
    collector.collect(act, 4)
    with pytest.warns(RuntimeWarning, match="restarted"):
        batch = collector.collect(act, 4)
    assert batch.valid[:, 1].tolist() == [False, True, True, True]
    assert batch.truncated[:, 1].tolist() == [False, False, False, True]
    assert [(e.episode_return, e.length) for e in batch.episodes if e.env_index == 1] == [(3, 3)]
    envs.close()


class BlindAnew(Counting):
    """Raises in its second episode, and whoever is made after that sees nothing."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def reset(self, **kwargs):
        observation, info = super().reset(**kwargs)
        return observation * (np.nan if self.path.exists() else 1.0), info

    def step(self, action):
        if self.episode == 1:
            self.path.touch()
            raise ValueError("sensor fault")
        return super().step(action)


def test_what_a_worker_that_was_made_anew_gives_is_named_with_the_episode_it_begins(tmp_path):
    envs = WorkerVectorEnv([partial(SeededEpisodes, partial(BlindAnew, tmp_path / "raised"))], on_failure="restart")
    collector = Collector(envs, np.random.SeedSequence(0), encoding_of(envs))
    with (
        pytest.warns(RuntimeWarning, match="sensor fault; restarted"),
        pytest.raises(
            FloatingPointError, match=r"observation of environment 0.* in step 0 of its episode 2, after 3 steps"
        ),
    ):
        collector.collect(act, 8)
    envs.close()


class Rarely(Counting):
    """Raises in one of its steps, in a worker; tells by a file that it has."""

    taken = 0

    def __init__(self, path):
        super().__init__()
        self.path = path

    def step(self, action):
        Rarely.taken += os.getpid() != HERE
        if Rarely.taken == 20:
            with contextlib.suppress(FileExistsError):
                self.path.touch(exist_ok=False)
                raise ValueError("sensor fault")
        return super().step(action)


def test_training_goes_on_and_counts(tmp_path):
    env = partial(Rarely, tmp_path / "raised")
    agent = small_agent(PPO, env, vectorization_mode="async", on_worker_failure="restart")
    with pytest.warns(RuntimeWarning, match="sensor fault; restarted"):
        agent.learn(128)
    assert [metrics["rollout/worker_restarts"] for metrics in agent.history] == [1.0] * len(agent.history)
    agent.close()
    (tmp_path / "raised").unlink()
    agent = small_agent(PPO, env, vectorization_mode="async")
    with pytest.raises(WorkerFailed, match="ValueError: sensor fault"):
        agent.learn(128)


@pytest.mark.parametrize(("every", "begun"), [(True, f"seed {EpisodeCursor(5, 1).seed}"), (False, None)])
def test_the_seed_of_an_episode_that_fails_is_named_where_it_had_one(every, begun):
    envs = make_vector_env(Fifth, 1, "async", seed_every_episode=every)
    envs.reset(seed=[5])
    where = "episode 1" if begun is None else f"episode 1, {begun}"
    with pytest.raises(WorkerFailed, match=rf"^environment 0 \({where}\): ValueError: the fifth step"):
        steps(envs, 5)


class Fifth(Counting):
    """Fails in its fifth step, the second of its second episode."""

    taken = 0

    def step(self, action):
        self.taken += 1
        if self.taken == 5:
            raise ValueError("the fifth step")
        return super().step(action)


def test_only_workers_can_be_restarted():
    for mode in ("sync", "envpool"):
        with pytest.raises(
            ValueError, match=f"on_worker_failure = 'restart' with vectorization_mode = '{mode}'; allowed"
        ):
            PPOConfig(on_worker_failure="restart", vectorization_mode=mode)
    envs = make_vector_env(Counting, 2, "async", 7.0, "restart")
    assert (envs.timeout, envs.on_failure) == (7.0, "restart")
    envs.close()


def test_the_command_line_ends_with_the_workers_traceback_and_one_line(tmp_path):
    (tmp_path / "faulty.py").write_text(
        "import os, sys, gymnasium as gym\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Faulty(CartPoleEnv):\n"
        "    def step(self, action):\n"
        "        raise ValueError('sensor fault')\n"
        "gym.register('Faulty-v0', Faulty)\n"
    )
    words = "train ppo --env faulty:Faulty-v0 --vectorization-mode async --total-timesteps 64 --n-envs 2 --run-dir run"
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    result = Fork(["-m", "klrl.scripts.main", *words.split()], tmp_path, environment).wait()
    assert result.code == 1
    *traceback, last = result.err.strip().splitlines()
    assert traceback[0].startswith("Traceback")
    assert last.startswith("klrl train ppo: environment ")
    assert last.endswith("ValueError: sensor fault")


@contextlib.contextmanager
def open_files(more):
    """This process may open only so many more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_more_workers_than_open_files_allow_are_refused_in_one_line_and_so_many_can_train():
    gc.collect()  # what earlier tests have left open
    with open_files(45):
        now = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        with pytest.raises(ValueError, match=r"^n_envs = 30 with vectorization_mode = 'async'; allowed: ") as refused:
            make_vector_env(Counting, 30, "async")
        found = re.search(r"at most (\d+) with `ulimit -n (\d+)`, 30 with `ulimit -n (\d+)`$", str(refused.value))
        most, limit, needed = (int(number) for number in found.groups())
        assert (most, limit) == (7, now)
        assert needed - limit == pytest.approx(4 * (30 - most), abs=3)
        agent = small_agent(PPO, Counting, vectorization_mode="async", n_envs=most).learn(64)
        agent.close()


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_the_number_of_open_files_for_each_worker(context):
    opened = []
    for n in (1, 1, 4):  # the first one opens some for all
        gc.collect()
        before = len(os.listdir("/dev/fd"))
        with contextlib.closing(WorkerVectorEnv([CartPoleEnv] * n, context=context)):
            opened.append(len(os.listdir("/dev/fd")) - before)
    assert opened[2] - opened[1] == 3 * FILES


@pytest.mark.parametrize("on_failure", ["stop", "restart"])
def test_a_promise_that_an_environment_breaks_is_told_in_one_line_as_in_this_process(on_failure):
    envs = make_vector_env(partial(Talkative, 4), 2, "async", on_worker_failure=on_failure)
    envs.reset(seed=[1, 2])
    for _ in range(3):
        envs.step(np.zeros(2, np.int64))
    with pytest.raises(BadStep, match=r"^environment \d, step 4: info is 'hello' \(str\); allowed: a dict"):
        envs.step(np.zeros(2, np.int64))


class Talkative(Counting):
    """Its info is no dict from some step on."""

    def __init__(self, step):
        super().__init__(length=10)
        self.chatty = step

    def step(self, action):
        *rest, info = super().step(action)
        return *rest, "hello" if self.steps == self.chatty else info
