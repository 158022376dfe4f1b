#!/usr/bin/env bash
# Guess: ray.shutdown() leaves a program's handlers of fatal signals as ray.init() found them, so faulthandler, which was enabled
# before, still prints the stack of a crash.
# What happens: from then on SIGSEGV has no handler at all, while faulthandler.is_enabled() still says True, and enabling it
# again changes nothing, since it believes that its handlers are there. Disabling it first does.
# Why it matters: programs that run a study on Ray and then train in the same process, and every process that is forked from
# them, end in a crash of a simulator without a word. pytest's own faulthandler is silent after the first test with Ray.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check ray==2.60.0 2>pip.log || { cat pip.log; exit 1; }
cat > handlers.py <<'PY'
import faulthandler
import signal

import ray


def say(when):
    caught = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("SigCgt"))
    handled = bool(int(caught, 16) >> (signal.SIGSEGV - 1) & 1)
    print(f"{when}: enabled {faulthandler.is_enabled()}, SIGSEGV handled {handled}", flush=True)


faulthandler.enable()
say("before")
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
ray.shutdown()
say("after ray.shutdown()")
faulthandler.enable()
say("enabled again")
faulthandler.disable()
faulthandler.enable()
say("disabled and enabled")
PY
cat > expected <<'END'
before: enabled True, SIGSEGV handled True
after ray.shutdown(): enabled True, SIGSEGV handled False
enabled again: enabled True, SIGSEGV handled False
disabled and enabled: enabled True, SIGSEGV handled True
END
venv/bin/python -c 'import ray; print("ray", ray.__version__)'
venv/bin/python handlers.py 2>ray.log >found || { cat ray.log; exit 1; }
cat found
diff found expected
