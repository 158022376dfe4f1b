"""Settings that all agents share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import tyro

from klrl import schedules
from klrl.agents.own_networks import NetworkArgument, check_layers, network_of_word, refuse_word
from klrl.experience.engines import VectorizationMode
from klrl.experience.workers import OnFailure
from klrl.policy.choices import ActionDistribution, Activation, FrameStacks, ImageNetwork, MaskSource, MinibatchType
from klrl.run.presets import preset
from klrl.schedules import During, Value
from klrl.shown import changed
from klrl.text import allowed, nearest
from klrl.trust_region import REGIONS, RegionSettings, TrustRegion, region_from_json, region_to_json, with_region
from klrl.trust_region.names import region_of_word
from klrl.validation import Bounds, Fraction, InfoKey, Pattern, Positive, PositiveInt

if TYPE_CHECKING:
    from klrl.policy.observations import Encoding

RegionArgument = Annotated[
    str | TrustRegion,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(REGIONS)}}}[+...]|MODULE:NAME",
        instance_from_str=lambda words: region_of_word(words[0]),
        is_instance=lambda x: isinstance(x, (str, TrustRegion)),
        str_from_instance=lambda x: [str(x)],
    ),
]

StepSize = Annotated[Value, During(0.0, 10.0, open_below=True)]
"""Range of Adam's step size: its first step moves every parameter by as much, and weights are around 1."""
Width = Annotated[int, Bounds(1, 2**16)]
Passes = Annotated[int, Bounds(1, 10**6)]
"""Number of passes over a batch, or of tries and steps in one update."""
Device = Annotated[str, Pattern(r"cpu|cuda(:\d{1,2})?|mps|auto", "cpu, cuda, cuda:0, cuda:1, ..., mps, auto")]
MOST_SAMPLES = 2**31
"""Largest number of samples in a batch: even 16 bytes of each are 32 GiB."""
MOST_WEIGHTS = 2**31
"""Largest number of weights between hidden layers: 8 GiB of float32, and Adam keeps two more numbers for each."""
OLDER: Mapping[str, Any] = {
    "fold_reward_scale": False,
    "scale_actions": False,
    "layer_norm": False,
    "network": None,
    "image_network": "small",
    "frame_stacks": "numbers",
    "shared_encoder": False,
    "drift_states": None,
    "minibatch_dtype": "float32",
}
"""Values that hold in files saved before there was the setting."""
MOST_PROCESSES = 1024
"""Largest number of worker processes; the limit of open files may allow fewer, which their start checks."""


def shares_encoder(setting: bool | None, encoding: Encoding, *, own: bool) -> bool:
    """Tell whether a critic reads the policy's encoder, given the setting: by default of images, in klrl's networks."""
    return bool(encoding.images) and not own if setting is None else setting


@dataclass(frozen=True, kw_only=True, repr=False)
class AgentConfig(RegionSettings):
    """Settings shared by all agents, the region's first, under Stable-Baselines3's names where those exist."""

    algorithm: ClassVar[str]
    """The agent's name on the command line, in presets and in saved state."""
    at_most_samples: ClassVar[tuple[str, ...]] = ("batch_size",)
    """Names of settings that are at most n_envs * n_steps."""

    trust_region: RegionArgument
    """Trust region: everything that limits the step."""
    reference: Annotated[str, Pattern("(?s).+", "a saved agent or run directory")] | None = None
    """A saved agent or run directory whose policy the regions reference-... measure from; with any other region
    drift/kl_reference and drift/kl_reference_forward are only reported."""

    n_envs: Annotated[int, Bounds(1, 2**16)] = 8
    """Parallel environments."""
    n_steps: PositiveInt = 256
    """Steps per environment and update; one batch is n_envs * n_steps."""
    vectorization_mode: VectorizationMode = "sync"
    """Environments in this process (sync), one process each (async), by the environment's own vectorised version
    (vector_entry_point), or in EnvPool's C++ threads (envpool: pip install 'klrl[envpool]')."""
    worker_timeout: Positive = 60.0
    """Seconds without an answer after which a worker process of async counts as hanging."""
    on_worker_failure: OnFailure = "stop"
    """End the training (stop) when a worker process of async dies, raises or hangs, or restart it and go on with its
    next episode (restart; the third failure without a finished episode ends the training)."""
    rebuild_envs: bool = False
    """Make a new environment for every episode, so that even environments whose episodes depend on earlier ones can be
    resumed exactly. The price: a constructor call per episode, and everything an environment keeps over resets is lost
    (curricula, running statistics, counters, attributes that callbacks set)."""
    seed_every_episode: bool = True
    """Seed every episode, or only each environment's first one, for environments whose reset is much slower with a seed
    (ale-py reloads the ROM); their episodes cannot be played again, so a resumed training begins new ones."""
    try_envs: bool = True
    """Test with 400 random steps, in environments made for that, whether episodes can be played again: at the beginning
    of klrl train, and before an agent continues the episodes of a saved one."""
    info_keys: tuple[InfoKey, ...] = ()
    """Keys of numbers in info, separated by spaces; values in the last step of an episode are averaged over the last
    100 episodes, as rollout/success_rate (is_success) or rollout/info/KEY."""
    sign_of_rewards: bool = False
    """Tell the learner only the sign of each reward, as is usual for Atari; logged returns are of the rewards."""
    life_is_episode: bool = False
    """Let the loss of a life (lives in info) be terminal for the learner, as is usual for Atari; the game goes on, and
    logged episodes are whole games."""
    gamma: Fraction = 0.99
    """Discount factor."""
    gae_lambda: Fraction = 0.95
    """Decay lambda of generalised advantage estimation."""
    batch_size: PositiveInt = 64
    """Minibatch size; at most n_envs * n_steps."""
    learning_rate: StepSize = 3e-4
    """Adam's step size (TRPO, NPG: of the critic), a number or a schedule: linear:FROM:TO, cosine:FROM:TO, constant:X,
    piecewise:X:DONE:X:... with shares of the training that are done. Other settings that may be scheduled say so."""
    learning_rate_schedule: Literal["constant", "linear"] = "linear"
    """Keep a learning rate that is a number, or let it fall linearly to zero over the training."""
    max_grad_norm: Positive = 0.5
    """Gradients longer than this are scaled down to it."""
    minibatch_dtype: MinibatchType = "float32"
    """Type in which networks of images compute on minibatches, forwards and backwards; bfloat16 is faster where the
    processor has it. Parameters, Adam, the fully connected heads, acting and every measurement stay float32."""
    normalize_advantage: bool = True
    """Give the batch's advantages mean 0 and standard deviation 1."""
    drift_states: PositiveInt | None = None
    """States on which metrics that need a pass of the network of their own are measured: drift/kl_next, and with
    statistics to learn drift/kl_normalizer and drift/kl_total (by default all; of images 64, as drift/kl_initial).
    drift/kl and whatever a region judges are of all."""
    normalize_observations: bool = True
    """Subtract the running mean of observations and divide by their standard deviation; clip at 10."""
    image_scale: Literal["declared", "seen"] = "declared"
    """Divide the elements of uint8 images by their space's bound (declared), or by the largest in the first batch
    (seen), for images such as MiniGrid's that stay far below it."""
    frame_stacks: FrameStacks = "channels"
    """Take uint8 observations of four dimensions as a stack of images, whose frames become channels of one, or as
    numbers."""
    fold_normalizer: bool = True
    """Keep the policy's function when observation statistics change, by folding the change into the first layer."""
    scale_rewards: bool = True
    """Divide rewards by the running standard deviation of the discounted return; clip at 10."""
    fold_reward_scale: bool = False
    """Keep the critic's values in units of the reward when that standard deviation changes, by folding the change into
    the last layer (PopArt)."""
    actor_hidden_sizes: tuple[Width, ...] = (64, 64)
    """Widths of the policy network's hidden layers."""
    critic_hidden_sizes: tuple[Width, ...] = (64, 64)
    """Widths of the value network's hidden layers."""
    activation: Activation = "tanh"
    """Activation function of the hidden layers, by its name in torch.nn.functional; derivatives of others than tanh and
    relu come by autograd, which is slower."""
    layer_norm: bool = False
    """Normalise the sums of every hidden layer over its units, before the activation; derivatives come by autograd."""
    image_network: ImageNetwork = "small"
    """Network from an image to the hidden layers' features: three small convolutions (small), those of DQN's Nature
    paper with a layer of 512 (nature: 36 x 36 or more), or IMPALA's residual ones with a layer of 256 (impala).
    layer_norm reaches the layer of 512 or 256, too."""
    network: NetworkArgument = None
    """Networks of your own in place of these layers: MODULE:NAME of a function of (n_inputs, n_outputs) that returns a
    torch.nn.Module, for the policy and for the critic. Only the name is saved, and loading asks for it again."""
    shared_encoder: bool | None = None
    """Let the critic read the policy's encoder, an image's convolutions or a vector's hidden layers, which the trust
    region judges, keeps and takes back with the policy; by default with images only (--no-shared-encoder: never)."""
    log_std_init: Annotated[float, Bounds(-20.0, 20.0)] = 0.0
    """First log standard deviation of Gaussian policies."""
    action_distribution: ActionDistribution = "gaussian"
    """Policies on Box actions: a Gaussian clipped to the box, one squashed into it by tanh, or a beta distribution."""
    state_dependent_std: bool = False
    """Let a Gaussian policy's standard deviation depend on the state."""
    scale_actions: bool = True
    """Let a Gaussian act in units of the box, so that -1 and 1 are its bounds; in the environment's units for an
    unbounded box, and without this setting."""
    action_mask: MaskSource = "auto"
    """Masks of Discrete and MultiDiscrete actions: the entry "action_mask" of a Dict observation if there is one
    (auto), info["action_mask"] of every reset and step (info), or no masks (none)."""
    device: Device = "cpu"
    """Device of networks and updates: cpu, cuda, cuda:1, ..., mps (untried), or the first of these GPUs that there is,
    else cpu (auto); for networks as small as these, cpu."""

    def __new__(cls, **settings: Any) -> Self:
        """Suggest the nearest setting if one is misspelt.

        Raises:
            TypeError: an unknown setting.
        """
        known = [f.name for f in fields(cls)]
        for name in settings.keys() - set(known):
            hint = nearest(name, known) or f"; allowed: {allowed(name, known)}"
            raise TypeError(f"{name} is no setting of {cls.__name__}{hint}")
        return super().__new__(cls)

    def __repr__(self) -> str:
        return changed(self)

    def __post_init__(self) -> None:
        if isinstance(self.network, str):
            object.__setattr__(self, "network", network_of_word(self.network))
        super().__post_init__()
        self._check_sizes()
        check_layers(self)
        if self.state_dependent_std and self.action_distribution == "beta":
            raise ValueError("state_dependent_std = True with action_distribution = 'beta'; allowed: with a Gaussian")
        if self.on_worker_failure == "restart" and self.vectorization_mode != "async":
            raise ValueError(
                f"on_worker_failure = 'restart' with vectorization_mode = {self.vectorization_mode!r}; allowed: 'async'"
            )
        if self.rebuild_envs and not self.seed_every_episode:
            raise ValueError(
                "seed_every_episode = False with rebuild_envs = True, so every one is a first; allowed: True"
            )
        if self.region.reads_reference and self.reference is None:
            raise ValueError(f"reference = None with {self.trust_region!r}; allowed: a saved agent or run directory")

    def shares_encoder(self, encoding: Encoding) -> bool:
        """Tell whether the critic reads the policy's encoder of these observations.

        Raises:
            ValueError: it is asked for, and there is nothing to share.
        """
        if self.shared_encoder and not encoding.images and not self.actor_hidden_sizes:
            raise ValueError(
                "shared_encoder = True with actor_hidden_sizes = () and no images; allowed: with layers to share"
            )
        return shares_encoder(self.shared_encoder, encoding, own=self.network is not None)

    def check_observations(self, encoding: Encoding) -> None:
        """Refuse settings that are for images alone.

        Raises:
            ValueError: bfloat16 without networks of images that are klrl's own.
        """
        if self.minibatch_dtype != "float32" and (not encoding.images or self.network is not None):
            what = "a network of your own" if encoding.images else "observations without images"
            raise ValueError(f"minibatch_dtype = {self.minibatch_dtype!r} with {what}; allowed: 'float32'")

    def _check_sizes(self) -> None:
        samples = self.n_envs * self.n_steps
        if samples > MOST_SAMPLES:
            raise ValueError(
                f"n_envs = {self.n_envs}, n_steps = {self.n_steps}; allowed: at most {MOST_SAMPLES} samples in a batch"
            )
        if self.batch_size > samples:
            raise ValueError(f"batch_size = {self.batch_size}; allowed: at most n_envs * n_steps = {samples}")
        if self.vectorization_mode == "async" and self.n_envs > MOST_PROCESSES:
            raise ValueError(
                f"n_envs = {self.n_envs} with vectorization_mode = 'async'; allowed: at most {MOST_PROCESSES} processes"
            )
        for name in ("actor_hidden_sizes", "critic_hidden_sizes"):
            if sum(n * m for n, m in pairwise(getattr(self, name))) > MOST_WEIGHTS:
                raise ValueError(f"{name} = {getattr(self, name)}; allowed: at most {MOST_WEIGHTS} weights")

    @classmethod
    def for_env(cls, env_id: str | None, **overrides: Any) -> Self:
        """Build a config from the defaults, the environment's preset over them, and ``overrides`` over both.

        A preset's region settings are dropped if ``overrides`` choose a region that does not read them; its minibatches
        are capped at the rollout.
        """
        settings = dict(preset(cls.algorithm, env_id))
        chosen = overrides.get("trust_region")
        if chosen is not None:
            settings = with_region(settings, chosen)
        settings |= overrides
        if "batch_size" not in overrides:
            whole = settings.get("n_envs", cls.n_envs) * settings.get("n_steps", cls.n_steps)
            if isinstance(whole, int) and whole > 0:
                settings["batch_size"] = min(settings.get("batch_size", cls.batch_size), whole)
        return cls(**settings)

    def to_json(self) -> dict[str, Any]:
        """Return every field as plain JSON."""
        shallow = {f.name: schedules.to_json(getattr(self, f.name)) for f in fields(self)}
        return shallow | {"trust_region": region_to_json(self.trust_region)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Rebuild a config from :meth:`to_json`'s output; missing settings keep their meaning in older versions."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in {**OLDER, **data}.items()}
        schedules.refuse_functions(values)
        refuse_word(values)
        region = values["trust_region"]
        return cls(**(values | {"trust_region": region if isinstance(region, str) else region_from_json(region)}))

    def values_at(self, progress_remaining: float) -> dict[str, float]:
        """Return the numbers of the settings that may be scheduled, at this share of the training still to come.

        Raises:
            ValueError: a function gives a number that its setting does not allow.
        """
        found = schedules.values_at(self, progress_remaining)
        if self.learning_rate_schedule == "linear" and not schedules.is_scheduled(self.learning_rate):
            found["learning_rate"] *= progress_remaining
        return found

    def with_envs(self, n_envs: int) -> Self:
        """Return the settings for another number of environments (a user's vector environment has its own).

        Minibatches are capped at the rollout.
        """
        if n_envs == self.n_envs:
            return self
        capped = {name: min(getattr(self, name), n_envs * self.n_steps) for name in self.at_most_samples}
        return replace(self, n_envs=n_envs, **capped)
