"""Distil a saved agent into another one: ``klrl distill runs/demo --actor-hidden-sizes 16 16 --output small``."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro

from klrl.agents import AGENTS, Agent, DistillationConfig, load_agent
from klrl.agents.distillation import distillation_rounds, student_config
from klrl.experience.environments import describe
from klrl.output import as_program
from klrl.run.callback import Metrics
from klrl.run.evaluation import ENOUGH
from klrl.scripts.cli.command_line import bad_input, parse
from klrl.scripts.cli.halfway import Halfway, fingerprint
from klrl.scripts.cli.saved_agents import LoadedAgent, claim, working, write
from klrl.text import printable
from klrl.validation import NonNegativeInt, PositiveInt


@dataclass(frozen=True, kw_only=True)
class Distilling:
    """Fit a student's policy to a saved teacher's by the exact KL, and save it as an agent that can learn further."""

    teacher: tyro.conf.Positional[Path]
    """A saved agent or a run directory."""
    output: Path
    """A new or empty directory for the student."""
    config: tyro.conf.OmitArgPrefixes[DistillationConfig] = field(default_factory=DistillationConfig)
    student: Path | None = None
    """A saved agent to be moved towards the teacher; by default a new one."""
    agent: str | None = None
    """Algorithm of a new student; by default the teacher's."""
    actor_hidden_sizes: tuple[PositiveInt, ...] | None = None
    """Hidden layers of a new student's policy; by default the teacher's."""
    critic_hidden_sizes: tuple[PositiveInt, ...] | None = None
    """Hidden layers of a new student's critic; by default the teacher's."""
    env: str | None = None
    """Gymnasium id; by default the environment of the teacher's training."""
    episodes: PositiveInt = 20
    """Number of episodes that teacher and student play at the end."""
    max_steps: PositiveInt = ENOUGH
    """Most steps of such an episode; longer ones are cut, which a line says."""
    seed: NonNegativeInt = 0
    """Seed of the environments and of a new student."""
    json: Path | None = None
    """File to which the numbers are also written."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl distill``."""
    prog = "klrl distill"
    args = parse(Distilling, sys.argv[1:] if argv is None else argv, prog)
    torch.set_num_threads(1)
    with bad_input(prog):
        teacher = LoadedAgent.load(args.teacher, args.env)
        student = _student(args, teacher)
        halfway = Halfway(args.output, _decided(args, teacher, student))
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


def _decided(args: Distilling, teacher: LoadedAgent, student: Agent[Any]) -> dict[str, Any]:
    """Return everything that decides the finished student."""
    agents = {"teacher": fingerprint(teacher.agent), "student": fingerprint(student), "env": describe(teacher.env)}
    return agents | {"config": asdict(args.config), "agent": student.config.to_json(), "seed": args.seed}


def _student(args: Distilling, teacher: LoadedAgent) -> Agent[Any]:
    own = {"actor_hidden_sizes": args.actor_hidden_sizes, "critic_hidden_sizes": args.critic_hidden_sizes}
    own = {name: sizes for name, sizes in own.items() if sizes is not None}
    if args.student is not None:
        for name, value in (({"agent": args.agent} if args.agent else {}) | own).items():
            raise ValueError(f"{name} = {value} beside student = {args.student}; allowed: for a new student")
        return load_agent(args.student)
    name = args.agent or teacher.name
    if name not in AGENTS:
        raise ValueError(f"agent = {name!r}; allowed: {', '.join(AGENTS)}")
    config = student_config(AGENTS[name].config_class, teacher.agent, teacher.env_id, **own)
    student = AGENTS[name](teacher.env, config, seed=args.seed)
    student.close()  # a student is shown the teacher's states
    return student


def _say(i: int, metrics: Metrics, config: DistillationConfig) -> None:
    """Print one line per round; it is measured on states that the student has not been fitted to."""
    when = f"round {i + 1}" if i < config.n_rounds else "finished"
    kl = [f"{metrics[f'distill/kl_{name}']:.6f}" for name in ("forward", "reverse")]
    print(f"{when + ':':<10} KL(teacher‖student) {kl[0]}  KL(student‖teacher) {kl[1]} nats per state", flush=True)


if __name__ == "__main__":
    as_program(main)
