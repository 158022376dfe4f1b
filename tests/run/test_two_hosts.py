"""One training on two hosts without a shared disk: network, name and table of hosts of each are namespaces of Linux."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torture.processes import Process
from torture.states import rows

from klrl.scripts import main as command

TRAIN = [
    *("train", "ppo", "--env", "torture.ranked:Failing-v0", "--preset", "none", "--n-envs", "4", "--n-steps", "32"),
    *("--batch-size", "32", "--n-epochs", "2", "--total-timesteps", "1024", "--checkpoint-every", "256"),
    *("--eval-episodes", "0", "--no-try-envs", "--rank-timeout", "5"),
]
TORCHRUN = [
    *(str(Path(sys.executable).with_name("torchrun")), "--nnodes", "2", "--nproc-per-node", "1"),
    *("--rdzv-backend", "c10d", "--rdzv-endpoint", "first:29500", "-m", "klrl"),
]
AS_A_HOST = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'


class Hosts:
    """Two hosts, ``first`` and ``second``, with a cable between them.

    Args:
        folder: has the files of each.
    """

    def __init__(self, folder):
        self.folder = folder
        self.spaces = {name: f"klrl-{os.getpid()}-{name}" for name in ("first", "second")}
        (folder / "hosts").write_text("127.0.0.1 localhost\n10.99.0.1 first\n10.99.0.2 second\n")

    def begin(self):
        """Return why there can be none here, or ``None``."""
        if missing := [name for name in ("ip", "unshare", "mount", "hostname") if shutil.which(name) is None]:
            return f"{missing[0]} is not installed"
        first, second = self.spaces.values()
        commands = [f"ip netns add {space}" for space in (first, second)]
        commands.append(f"ip link add cable netns {first} type veth peer name cable netns {second}")
        for i, space in enumerate((first, second), 1):
            commands += [f"ip -n {space} addr add 10.99.0.{i}/24 dev cable"]
            commands += [f"ip -n {space} link set {device} up" for device in ("cable", "lo")]
        commands.append(f"ip netns exec {first} unshare --uts --mount sh -c '{AS_A_HOST}' - a {self.folder}/hosts true")
        for line in commands:
            ended = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
            if ended.returncode:
                return f"{line}: {ended.stderr.strip()}"
        return None

    def end(self):
        for name, space in self.spaces.items():
            self._kill(name)
            subprocess.run(["ip", "netns", "del", space], capture_output=True)

    def _kill(self, name):
        pids = subprocess.run(["ip", "netns", "pids", self.spaces[name]], capture_output=True, text=True).stdout
        for pid in map(int, pids.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start(self, name, *words):
        """A program on one of them, in a directory of its own."""
        here = self.folder / name
        here.mkdir(exist_ok=True)
        as_a_host = ["unshare", "--uts", "--mount", "sh", "-c", AS_A_HOST, "-", name, self.folder / "hosts"]
        return Process(["ip", "netns", "exec", self.spaces[name], *as_a_host, *words], here)

    def lose(self, name):
        """The power fails there: nobody hears of it."""
        subprocess.run(["ip", "-n", self.spaces[name], "link", "set", "cable", "down"], check=True)
        self._kill(name)

    def repair(self, name):
        subprocess.run(["ip", "-n", self.spaces[name], "link", "set", "cable", "up"], check=True)


@pytest.fixture
def hosts(tmp_path):
    made = Hosts(tmp_path)
    why = made.begin()
    try:
        if why is not None:
            pytest.skip(f"no hosts can be made of network namespaces here: {why}")
        yield made
    finally:
        made.end()


@pytest.mark.slow
def test_two_hosts_take_the_bits_of_one_process_though_one_of_them_is_lost_on_the_way(hosts, tmp_path):
    kwargs = ["--env-kwargs", "how=stop", "rank=1", "at=300", f"marker={tmp_path / 'marker'}"]  # so that no time counts
    words = [*TORCHRUN, *TRAIN, *kwargs, "--run-dir", "run"]
    first, second = (hosts.start(name, *words) for name in ("first", "second"))
    second.until((tmp_path / "marker").exists, 300.0)
    hosts.lose("second")
    second.wait(60.0)
    ended = first.wait(300.0)
    assert ended.code == 1
    assert "klrl train ppo: rank 0: rank 1 has given no sign of life for 5 s" in ended.err
    assert f"; klrl resume {tmp_path / 'first' / 'run'} continues it" in ended.err
    hosts.repair("second")
    ends = [p.wait(300.0) for p in [hosts.start(name, *words, "--resume") for name in ("first", "second")]]
    assert [end.code for end in ends] == [0, 0], ends[0].err[-2000:]
    assert "resuming run: 512 of 1,024 steps" in ends[0].out
    assert not (tmp_path / "second" / "run").exists()
    command.main([*TRAIN, *kwargs, "--run-dir", str(tmp_path / "one")])  # the marker is there: nothing is lost
    for name in ("metrics.csv", "episodes.csv"):
        assert rows(tmp_path / "first" / "run" / name) == rows(tmp_path / "one" / name), name
