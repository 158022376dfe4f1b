"""Other libraries at the same work as klrl, for ``klrl benchmark speed``; nothing else in klrl imports them.

Each function trains for ``job.workload.total_timesteps`` and calls ``clock`` at the end of every update. All get the
same environments, number of steps, minibatches, optimiser (Adam, eps 1e-5) and networks (separate tanh layers);
every docstring says what still differs.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym

from klrl.scripts.benchmarks.workload import Clock, Job


def stable_baselines3(job: Job, clock: Clock) -> None:
    """PPO of Stable-Baselines3 on its DummyVecEnv with Monitor, as ``make_vec_env`` makes it.

    The same counts as klrl. It normalises advantages per minibatch, klrl per batch, and does not measure KL exactly.
    """
    from stable_baselines3 import PPO
    from torch import nn

    w = job.workload
    if job.variant:
        _learn_from_images(PPO, job, clock)
        return
    settings = {"n_epochs": w.n_epochs, "batch_size": w.batch_size, "clip_range": w.clip_range, "ent_coef": 0.0}
    _learn(PPO, job, clock, nn.Tanh, vf_coef=w.vf_coef, max_grad_norm=w.max_grad_norm, **settings)


def sbx(job: Job, clock: Clock) -> None:
    """PPO of SBX, Stable-Baselines3 in JAX, on the same environments as Stable-Baselines3.

    The same counts as klrl; the first update, which compiles, is not timed. It normalises advantages per minibatch.
    """
    from flax.linen import tanh
    from sbx import PPO

    w = job.workload
    settings = {"n_epochs": w.n_epochs, "batch_size": w.batch_size, "clip_range": w.clip_range, "ent_coef": 0.0}
    _learn(PPO, job, clock, tanh, vf_coef=w.vf_coef, max_grad_norm=w.max_grad_norm, **settings)


def sb3_contrib(job: Job, clock: Clock) -> None:
    """TRPO of sb3-contrib on the same environments as Stable-Baselines3.

    The same counts as klrl. It ends conjugate gradient only at a squared residual of 1e-10, klrl at a relative one
    of 1e-4, and does not limit the critic's gradients.
    """
    from sb3_contrib import TRPO
    from torch import nn

    w = job.workload
    settings = {"batch_size": w.critic_batch_size, "n_critic_updates": w.n_critic_updates, "target_kl": w.target_kl}
    _learn(TRPO, job, clock, nn.Tanh, cg_max_steps=w.cg_max_steps, **settings)


def _learn(cls: Any, job: Job, clock: Clock, activation: Any, **settings: Any) -> None:
    """Train one of these algorithms; ``clock`` is called at the start of each rollout, that is after each update."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    w = job.workload
    hidden = list(w.hidden_sizes)
    policy = {"net_arch": {"pi": hidden, "vf": hidden}, "activation_fn": activation, "optimizer_kwargs": {"eps": 1e-5}}
    shared = {"n_steps": w.n_steps, "gamma": w.gamma, "gae_lambda": w.gae_lambda, "learning_rate": w.learning_rate}
    envs: Any = make_vec_env(job.env, w.n_envs, seed=job.seed)
    envs = VecNormalize(envs, gamma=w.gamma) if w.normalize else envs
    agent = cls("MlpPolicy", envs, policy_kwargs=policy, seed=job.seed, device="cpu", **shared, **settings)
    agent.learn(w.total_timesteps, _marks(clock))
    clock()


def _learn_from_images(cls: Any, job: Job, clock: Clock) -> None:
    """Train PPO with its NatureCNN, shared as by default or not; Pong in its wrappers, and in a stack of 4."""
    from stable_baselines3.common.env_util import make_atari_env, make_vec_env
    from stable_baselines3.common.vec_env import VecFrameStack

    from klrl.scripts.benchmarks.random_images import RANDOM, SHARED, RandomImages

    w = job.workload
    envs: Any = make_vec_env(RandomImages, w.n_envs, seed=job.seed) if job.env == RANDOM else None
    if envs is None:
        import ale_py

        gym.register_envs(ale_py)
        envs = VecFrameStack(make_atari_env("PongNoFrameskip-v4", w.n_envs, seed=job.seed), 4)
    policy = {"share_features_extractor": job.variant == SHARED, "optimizer_kwargs": {"eps": 1e-5}}
    agent = cls(
        "CnnPolicy", envs, n_steps=w.n_steps, batch_size=w.batch_size, n_epochs=w.n_epochs, gamma=w.gamma,
        gae_lambda=w.gae_lambda, learning_rate=w.learning_rate, clip_range=w.clip_range, vf_coef=w.vf_coef,
        max_grad_norm=w.max_grad_norm, ent_coef=0.0, policy_kwargs=policy, seed=job.seed, device="cpu",
    )  # fmt: skip
    agent.learn(w.total_timesteps, _marks(clock))
    clock()


def _marks(clock: Clock) -> Any:
    """Return a callback that calls ``clock`` at the start of each rollout, that is after each update."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Marks(BaseCallback):
        def _on_rollout_start(self) -> None:
            if self.num_timesteps > 0:
                clock()

        def _on_step(self) -> bool:
            return True

    return Marks()


def cleanrl(job: Job, clock: Clock) -> None:
    """PPO of CleanRL: the user's file for the environment's actions, run as it is, with flags for the same settings.

    An update ends where the file prints its ``SPS:`` line; its TensorBoard writer goes to a folder that is deleted.
    The continuous file wraps every environment in Gymnasium's normalisers, and no flag says otherwise; unless
    ``normalize`` asks for them, those four wrappers do nothing here, so that the work is equal. (Since Gymnasium 1.0
    the file as published calls one of them with too few arguments; it gets the missing one.) What differs: it writes
    TensorBoard events, it normalises advantages per minibatch, and its widths are fixed at 64-64.

    Raises:
        ValueError: no file for the environment's actions, or other hidden sizes.
    """
    import runpy

    file, w = _cleanrl_file(job), job.workload
    if w.hidden_sizes != (64, 64):
        raise ValueError(f"hidden_sizes = {w.hidden_sizes}; allowed for CleanRL's file: (64, 64)")
    transform = gym.wrappers.TransformObservation
    wrappers: dict[str, Any] = {"TransformObservation": lambda env, f: transform(env, f, env.observation_space)}
    if not w.normalize:
        names = ("NormalizeObservation", "TransformObservation", "NormalizeReward", "TransformReward")
        wrappers = dict.fromkeys(names, lambda env, *args, **kwargs: env)
    for name, wrapper in wrappers.items():
        setattr(gym.wrappers, name, wrapper)
    values = {
        "env-id": job.env,
        "seed": job.seed,
        "total-timesteps": w.total_timesteps,
        "num-envs": w.n_envs,
        "num-steps": w.n_steps,
        "num-minibatches": w.steps_per_update // w.batch_size,
        "update-epochs": w.n_epochs,
        "learning-rate": w.learning_rate,
        "gamma": w.gamma,
        "gae-lambda": w.gae_lambda,
        "clip-coef": w.clip_range,
        "vf-coef": w.vf_coef,
        "max-grad-norm": w.max_grad_norm,
        "ent-coef": 0.0,
    }
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    sys.argv = [file, *flags, "--no-cuda", "--no-anneal-lr", "--no-clip-vloss"]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(_Lines(clock)):
        runpy.run_path(file, run_name="__main__")


def _cleanrl_file(job: Job) -> str:
    """Return CleanRL's file for the kind of actions, which is in its name."""
    with gym.make(job.env) as env:
        continuous = isinstance(env.action_space, gym.spaces.Box)
    for file in job.files:
        if ("continuous" in Path(file).stem) == continuous:
            return file
    wanted = "ppo_continuous_action.py" if continuous else "ppo.py"
    raise ValueError(f"cleanrl = {', '.join(job.files)}; allowed for the actions of {job.env}: {wanted}")


class _Lines(io.TextIOBase):
    """Reads the standard output of CleanRL's file."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def write(self, text: str) -> int:
        if text.startswith("SPS:"):
            self.clock()
        return len(text)


def tianshou(job: Job, clock: Clock) -> None:
    """PPO and TRPO of Tianshou 2 with its trainer, collector and DummyVectorEnv; no logger, no test episodes.

    PPO: the same counts as klrl; it normalises advantages per minibatch. TRPO: its 10 conjugate gradient steps are
    fixed and are raised to the same number here; its critic takes whole-batch steps only, so that the same passes
    over the data are one sixteenth of the optimiser's steps (10, not 160): less work than klrl's. It draws from the
    global random generators, which are left as they are.

    Raises:
        ValueError: rewards are to be normalised, for which its environments have nothing.
    """
    if job.workload.normalize:
        raise ValueError("normalize = True; allowed for Tianshou: False")
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OnPolicyTrainerParams

    w = job.workload
    envs = DummyVectorEnv([partial(gym.make, job.env) for _ in range(w.n_envs)])
    envs.seed(job.seed)
    with gym.make(job.env) as env:
        algorithm = _tianshou_algorithm(job, env.observation_space, env.action_space)
    collector = Collector(algorithm, envs, VectorReplayBuffer(w.steps_per_update, w.n_envs))
    params = OnPolicyTrainerParams(
        training_collector=collector,
        max_epochs=1,
        epoch_num_steps=w.total_timesteps,
        collection_step_num_env_steps=w.steps_per_update,
        update_step_num_repetitions=w.n_epochs if job.algorithm == "ppo" else 1,
        batch_size=w.batch_size if job.algorithm == "ppo" else None,
        training_fn=lambda epoch, step: clock() if step > 0 else None,
        show_progress=False,
        verbose=False,
    )
    algorithm.run_training(params)
    clock()


def _tianshou_algorithm(job: Job, observations: gym.Space, actions: gym.Space) -> Any:
    from tianshou.algorithm import PPO, TRPO
    from tianshou.algorithm.optim import AdamOptimizerFactory

    class TRPOWithSteps(TRPO):
        def _conjugate_gradients(self, b: Any, flat_kl_grad: Any, nsteps: int = 10, residual_tol: float = 1e-10) -> Any:
            return super()._conjugate_gradients(b, flat_kl_grad, job.workload.cg_max_steps, residual_tol)

    w = job.workload
    policy, critic = _tianshou_networks(job, observations, actions)
    shared = {"policy": policy, "critic": critic, "optim": AdamOptimizerFactory(lr=w.learning_rate, eps=1e-5)}
    shared |= {"gamma": w.gamma, "gae_lambda": w.gae_lambda, "max_batchsize": w.steps_per_update}
    if job.algorithm == "trpo":
        return TRPOWithSteps(max_kl=w.target_kl, optim_critic_iters=w.n_critic_updates, **shared)
    clip = {"eps_clip": w.clip_range, "vf_coef": w.vf_coef, "ent_coef": 0.0, "max_grad_norm": w.max_grad_norm}
    return PPO(**clip, **shared)


def _tianshou_networks(job: Job, observations: gym.Space, actions: gym.Space) -> tuple[Any, Any]:
    from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy, ProbabilisticActorPolicy
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
    from tianshou.utils.net.discrete import DiscreteActor
    from torch import nn
    from torch.distributions import Independent, Normal

    def hidden() -> Any:
        return Net(state_shape=observations.shape, hidden_sizes=job.workload.hidden_sizes, activation=nn.Tanh)

    critic = ContinuousCritic(preprocess_net=hidden())
    if isinstance(actions, gym.spaces.Discrete):
        discrete = DiscreteActor(preprocess_net=hidden(), action_shape=int(actions.n), softmax_output=False)
        return DiscreteActorPolicy(actor=discrete, action_space=actions), critic
    actor = ContinuousActorProbabilistic(preprocess_net=hidden(), action_shape=actions.shape, unbounded=True)
    dist = lambda loc_scale: Independent(Normal(*loc_scale), 1)  # noqa: E731
    return ProbabilisticActorPolicy(actor=actor, dist_fn=dist, action_space=actions), critic


def envpool(job: Job) -> Any:
    """Make EnvPool's vector environment, stepped on ``threads`` threads."""
    import envpool

    w = job.workload
    return envpool.make(job.env, env_type="gymnasium", num_envs=w.n_envs, num_threads=w.threads, seed=job.seed)
