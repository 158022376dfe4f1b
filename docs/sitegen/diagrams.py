"""Diagrams as SVG: the rooms with the arrows of their imports, read from the sources, and the life of one update."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    "scripts": "the command line",
    "klrl.report": "SHOW: one HTML file, figures",
    "klrl.studies": "COMPARE: designs, runs, statistics",
    "klrl.audit": "COMPARE POLICIES: saved ones",
    "klrl.integrations": "other libraries' policies",
    "klrl.monitor": "WATCH: any training's drift",
    "agents": "one file per paper",
    "klrl.run": "KEEP: logs, checkpoints, evaluation",
    "klrl.experience": "COLLECT: environments, rollouts",
    "klrl.trust_region": "LIMIT: regions, natural gradient",
    "klrl.kl": "MEASURE: exact KL, divergences",
    "klrl.policy": "ACT: distributions, networks",
    "klrl.native": "the optional kernel in C",
}
"""What the diagram names, with the word for it."""
WIDTH, HEIGHT, INK, LINE, PAPER = 236, 52, "#1f2933", "#7b8794", "#eef4fb"


def svg(width: int, height: int, parts: Iterable[str], title: str) -> str:
    """Put parts on a white sheet."""
    head = "M0 0 L8 4 L0 8 z"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="system-ui, sans-serif" font-size="13" fill="{INK}" role="img">',
            f"<title>{escape(title)}</title>",
            f'<defs><marker id="a" markerWidth="8" markerHeight="8" refX="8" refY="4" orient="auto">'
            f'<path d="{head}" fill="{LINE}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def box(
    x: float, y: float, title: str, *lines: str, width: int = WIDTH, height: int = HEIGHT, fill: str = PAPER
) -> str:
    """Draw a box with a bold first line."""
    top = y + (height - 17 * len(lines)) / 2 + 5
    parts = [f'<rect x="{x:g}" y="{y:g}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{LINE}"/>']
    for i, line in enumerate((title, *lines)):
        style = ' font-weight="600"' if i == 0 else ' font-size="12"'
        parts.append(
            f'<text x="{x + width / 2:g}" y="{top + 17 * i:g}" text-anchor="middle"{style}>{escape(line)}</text>'
        )
    return "\n".join(parts)


def arrow(*points: tuple[float, float], label: str = "") -> str:
    """Draw a line through points, with its head at the last one."""
    path = " L".join(f"{x:g} {y:g}" for x, y in points)
    drawn = f'<path d="M{path}" fill="none" stroke="{LINE}" stroke-width="1.3" marker-end="url(#a)"/>'
    if not label:
        return drawn
    x, y = points[len(points) // 2 - 1] if len(points) > 2 else points[0]
    return drawn + f'\n<text x="{x + 8:g}" y="{y - 6:g}" font-size="12" fill="{LINE}">{escape(label)}</text>'


def imports() -> dict[str, set[str]]:
    """Which room imports which, read from the sources."""
    arrows: dict[str, set[str]] = {room: set() for room in ROOMS}
    for room in ROOMS:
        for path in ROOT.joinpath(*room.split(".")).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                    arrows[room] |= {_room(node.module)}
                elif isinstance(node, ast.Import):
                    arrows[room] |= {_room(alias.name) for alias in node.names}
        arrows[room] = (arrows[room] & ROOMS.keys()) - {room}
    return arrows


def _room(module: str) -> str:
    name = ".".join(module.split(".")[:2])
    return name.removeprefix("klrl.") if name in ("klrl.agents", "klrl.scripts") else name


def _reaches(arrows: dict[str, set[str]], start: str, end: str) -> bool:
    return any(room == end or _reaches(arrows, room, end) for room in arrows[start])


def rooms() -> str:
    """Draw rooms on floors; an arrow says imports, and those that follow from others are left out."""
    arrows = imports()
    needed = {
        room: {to for to in tos if not any(_reaches(arrows, other, to) for other in tos - {to})}
        for room, tos in arrows.items()
    }
    floor: dict[str, int] = {}
    for room in reversed(ROOMS):
        floor[room] = 1 + max((floor[to] for to in arrows[room]), default=-1)
    levels = max(floor.values()) + 1
    step_x, step_y = WIDTH + 40, HEIGHT + 38
    place = {}
    for level in range(levels):
        here = [room for room in ROOMS if floor[room] == level]
        for i, room in enumerate(here):
            place[room] = (20 + step_x * (i + (2 - len(here)) / 2), 20 + step_y * (levels - 1 - level))
    parts = [
        arrow((place[room][0] + WIDTH / 2, place[room][1] + HEIGHT), (place[to][0] + WIDTH / 2, place[to][1]))
        for room, tos in needed.items()
        for to in sorted(tos)
    ]
    parts += [box(*place[room], room, text) for room, text in ROOMS.items()]
    return svg(2 * step_x, step_y * levels + 10, parts, "Rooms of klrl; an arrow means: imports")


STEPS = (
    ("Collect", "n_envs x n_steps steps; the old policy's", "distribution parameters are stored"),
    ("Estimate", "values once per batch, GAE advantages;", "truncation bootstraps, termination does not"),
    ("Check", "KL(old‖new) is 0 and every ratio is 1", "before the first step"),
    ("Improve", "the agent's paper: ascend E[surrogate − penalty];", "the region says how far and when to stop"),
    ("Measure", "exact KL(old‖new) on the whole batch:", "mean, largest, reverse, estimates"),
    ("Adapt", "the region for the next update:", "β, learning-rate factor"),
    ("Renormalise", "new observation statistics, folded into", "the first layer, so the policy stays"),
    ("Keep", "metrics.csv, TensorBoard, episodes,", "a checkpoint when it is time"),
)


def update() -> str:
    """Draw what happens between two rollouts."""
    width, height, gap = 320, 70, 26
    parts = []
    for i, (title, *lines) in enumerate(STEPS):
        y = 20 + i * (height + gap)
        fill = "#fdf1dc" if title == "Improve" else PAPER
        parts.append(box(130, y, title, *lines, width=width, height=height, fill=fill))
        if i:
            parts.append(arrow((290, y - gap), (290, y)))
    rows = {title: 20 + i * (height + gap) + height / 2 for i, (title, *_) in enumerate(STEPS)}
    parts += [
        arrow((130, rows["Keep"]), (40, rows["Keep"]), (40, rows["Collect"]), (130, rows["Collect"])),
        f'<text x="48" y="{rows["Improve"] - 18:g}" font-size="12" fill="{LINE}">next</text>',
        f'<text x="48" y="{rows["Improve"] - 3:g}" font-size="12" fill="{LINE}">update</text>',
        arrow((450, rows["Adapt"]), (520, rows["Adapt"]), (520, rows["Improve"]), (450, rows["Improve"])),
        f'<text x="458" y="{rows["Measure"] + 4:g}" font-size="12" fill="{LINE}">next</text>',
        f'<text x="458" y="{rows["Measure"] + 19:g}" font-size="12" fill="{LINE}">region</text>',
    ]
    return svg(560, 20 + len(STEPS) * (height + gap), parts, "The life of one update")


DIAGRAMS: dict[str, Callable[[], str]] = {"rooms": rooms, "update": update}
