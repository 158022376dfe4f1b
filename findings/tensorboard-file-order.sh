#!/usr/bin/env bash
# Guess: TensorBoard merges the event files of a directory by step (or by the wall time inside of them), so a training
# that was interrupted and resumed shows as one curve.
# What happens: it reads files in the order of their names, and a name begins with the time at which the writer was made.
# Where the clock went back in between (NTP, a virtual machine that was moved, a second machine), the resumed half comes
# first: the points are 5 to 9, then 0 to 4, and the drawn line runs backwards.
# Why it matters: what a chart shows of a resumed run depends on two clocks. A writer that wants the order of its steps
# has to name its files after the newest one that is there.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check tensorboard==2.21.0 2>pip.log || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import tempfile
import time

import tensorboard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

real = time.time


def write(directory, steps, shift):
    """A writer on a clock that is off by ``shift`` seconds."""
    time.time = lambda: real() + shift
    writer = EventFileWriter(directory)
    for step in steps:
        value = Summary.Value(tag="x", simple_value=float(step))
        writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=[value])))
    writer.close()
    time.time = real


def shown(shift):
    directory = tempfile.mkdtemp(dir=".")
    write(directory, range(5), 0.0)
    write(directory, range(5, 10), shift)
    return [point.step for point in EventAccumulator(directory).Reload().Scalars("x")]


print("tensorboard", tensorboard.__version__)
forward, back = shown(3600.0), shown(-3600.0)
print("second file an hour later:  ", forward)
print("second file an hour earlier:", back)
assert forward == list(range(10)) and back == [*range(5, 10), *range(5)]
PY
venv/bin/python case.py 2>/dev/null
