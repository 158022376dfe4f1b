#!/usr/bin/env bash
# Guess: workers that torchrun starts anew after a failure (--max-restarts) meet an empty store: the key-value store belongs
# to the process group, and that is made anew.
# What happens: the store lives in torchrun's agent, which goes on, and its keys with it. What the failed start has set is
# there in the second one, in the process group's own store and in one opened at MASTER_ADDR and MASTER_PORT; a counter goes
# on from its old value. So it is by the default rendezvous and with --standalone.
# Why it matters: "wait until rank 0 has set the key", a counter as a barrier, or an address left in the store all hold at
# once after a restart, with what dead workers said. Keys need TORCHELASTIC_RESTART_COUNT in their names.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 2>pip.log || { cat pip.log; exit 1; }
cat > worker.py <<'PY'
import os
import sys

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

start = os.environ["TORCHELASTIC_RESTART_COUNT"]
dist.init_process_group("gloo")
raw = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False)
for name, store in ("group", _get_default_store()), ("address", raw):
    there = store.check(["ready"])
    store.set("ready", "yes")
    print(f"start {start}, {name}: key {'there' if there else 'not there'}, counter {store.add('arrived', 1)}", flush=True)
sys.exit(start == "0")
PY
cat > expected <<'END'
start 0, group: key not there, counter 1
start 0, address: key not there, counter 1
start 1, group: key there, counter 2
start 1, address: key there, counter 2
END
venv/bin/python -c 'import torch; print("torch", torch.__version__.split("+")[0])'
for rendezvous in "" --standalone; do
  echo "torchrun${rendezvous:+ $rendezvous}"
  venv/bin/python -m torch.distributed.run $rendezvous --nproc-per-node=1 --max-restarts=1 worker.py >found 2>torchrun.log \
    || { cat torchrun.log; exit 1; }
  cat found
  diff found expected
done
