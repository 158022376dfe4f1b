"""What all tests share: one thread, so that timings and bits do not depend on the machine's cores."""

import torch

torch.set_num_threads(1)
