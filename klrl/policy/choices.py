"""Values of settings of policies, and the name of a mask: what can be said of a policy without torch."""

from typing import Literal, get_args

ActionDistribution = Literal["gaussian", "squashed-gaussian", "beta"]
Activation = Literal[
    "tanh", "relu", "celu", "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu",
    "logsigmoid", "mish", "prelu", "relu6", "rrelu", "selu", "sigmoid", "silu", "softplus", "softshrink", "softsign",
    "tanhshrink",
]  # fmt: skip
"""Names of torch's activations of single numbers, as in ``torch.nn.functional``, that need no argument."""
ImageNetwork = Literal["small", "nature", "impala"]
IMAGE_NETWORKS: tuple[ImageNetwork, ...] = get_args(ImageNetwork)
MinibatchType = Literal["float32", "bfloat16"]
FrameStacks = Literal["channels", "numbers"]
MaskSource = Literal["auto", "info", "none"]
MASK = "action_mask"
"""Name of a mask among a Dict observation's entries, or in ``info`` (as in Gymnasium's Taxi and PettingZoo)."""
