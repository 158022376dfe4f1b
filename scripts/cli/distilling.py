"""Distillation of a saved agent into another one (``klrl distill``)."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from klrl.agents import AGENTS, Agent, DistillationConfig, load_agent
from klrl.agents.distillation import distillation_rounds, student_config
from klrl.agents.own_networks import of_flag, saved_name
from klrl.experience.environments import describe
from klrl.run import checkpoint
from klrl.run.callback import Metrics
from klrl.scripts.cli.command_line import bad_input
from klrl.scripts.cli.halfway import Halfway, fingerprint
from klrl.scripts.cli.saved_agents import LoadedAgent, claim, working, write
from klrl.text import printable

if TYPE_CHECKING:
    from klrl.scripts.distill import Distilling


def fit_student(prog: str, args: Distilling) -> None:
    """Fit the student, save it, and let it and its teacher play."""
    torch.set_num_threads(1)
    with bad_input(prog):
        teacher = _teacher(args)
        student = _student(args, teacher)
        halfway = Halfway(args.output, _decided(args, teacher, student), student.config.network)
        found = halfway.find()
        history: list[Metrics] = []
        state = None
        if found is not None:
            student, state, history = found.agent, found.state, found.history
        rounds = distillation_rounds(teacher.agent, student, teacher.env, args.config, seed=args.seed, state=state)
        claim(args.output, args.json, again=found is not None)
    with working(prog, halfway.goes_on):
        for metrics in rounds:
            history.append(metrics)
            halfway.keep(student, rounds.state(), history, last=len(history) > args.config.n_rounds)
            _say(len(history) - 1, metrics, args.config)
        student.save(args.output)
        print(printable(f"student: {args.output}"))
        returns = teacher.returns(
            {"teacher": teacher.agent, "student": student}, args.episodes, args.seed, args.max_steps
        )
    record = {"teacher": str(args.teacher), "student": str(args.output), "env": teacher.env_id, "seed": args.seed}
    with bad_input(prog):
        write(args.json, record | {"config": asdict(args.config), "history": history, "evaluation": returns})
    halfway.forget()


def _teacher(args: Distilling) -> LoadedAgent:
    own = saved_name(checkpoint.read(args.teacher)[1].get("config")) or args.student is None
    return LoadedAgent.load(args.teacher, args.env, network=args.network if own else None)


def _decided(args: Distilling, teacher: LoadedAgent, student: Agent[Any]) -> dict[str, Any]:
    """Return everything that decides the finished student."""
    agents = {"teacher": fingerprint(teacher.agent), "student": fingerprint(student), "env": describe(teacher.env)}
    return agents | {"config": asdict(args.config), "agent": student.config.to_json(), "seed": args.seed}


def _student(args: Distilling, teacher: LoadedAgent) -> Agent[Any]:
    own: dict[str, Any] = {
        "actor_hidden_sizes": args.actor_hidden_sizes,
        "critic_hidden_sizes": args.critic_hidden_sizes,
    }
    own = {name: sizes for name, sizes in own.items() if sizes is not None}
    if args.student is not None:
        for name, value in (({"agent": args.agent} if args.agent else {}) | own).items():
            raise ValueError(f"{name} = {value} beside student = {args.student}; allowed: for a new student")
        saved = checkpoint.read(args.student)
        config = saved[1].get("config")
        network = of_flag(args.student, config, args.network if saved_name(config) else None)
        return load_agent(args.student, saved=saved, network=network)
    name = args.agent or teacher.name
    if name not in AGENTS:
        raise ValueError(f"agent = {name!r}; allowed: {', '.join(AGENTS)}")
    if own:
        own["network"] = None
    config = student_config(AGENTS[name].config_class, teacher.agent, teacher.env_id, **own)
    student = AGENTS[name](teacher.env, config, seed=args.seed)
    student.close()  # a student is shown the teacher's states
    return student


def _say(i: int, metrics: Metrics, config: DistillationConfig) -> None:
    """Print one line per round; it is measured on states that the student has not been fitted to."""
    when = f"round {i + 1}" if i < config.n_rounds else "finished"
    kl = [f"{metrics[f'distill/kl_{name}']:.6f}" for name in ("forward", "reverse")]
    print(f"{when + ':':<10} KL(teacher‖student) {kl[0]}  KL(student‖teacher) {kl[1]} nats per state", flush=True)
