"""What all tests share: one thread, so that bits do not depend on the machine's cores, and signals that are heard."""

import signal

import torch

torch.set_num_threads(1)
# Processes inherit what is ignored (by nohup, or in the background of a shell), and tests send these to theirs.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
