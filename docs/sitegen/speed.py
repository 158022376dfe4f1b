"""Tables of accuracy, speed and cost, from the JSON files in ``scripts/results``."""

from __future__ import annotations

from collections.abc import Callable

from klrl.scripts.benchmarks.measure import LIBRARIES
from klrl.scripts.benchmarks.scaling_report import table as of_points
from klrl.scripts.benchmarks.speed_report import profile_table
from sitegen.markdown import command, listed, table
from sitegen.results import Row, groups, read

LEVELS = (1e-8, 1e-6, 1e-4, 1e-2, 1.0, 100.0)
"""KL in the table, nats; the file has more."""
OTHERS: dict[str, tuple[str, ...]] = {
    "Stable-Baselines3, sb3-contrib": ("stable-baselines3", "sb3-contrib"),
    "CleanRL": ("cleanrl",),
    "Tianshou": ("tianshou",),
}
"""Columns beside klrl's: each library stands in one of them."""


def accuracy() -> str:
    """Errors of the float32 KL."""
    record = read("accuracy.json")
    lines = []
    for (family,), rows in groups(record["rows"], "family").items():
        for way in ("klrl", "torch"):
            errors = {row["kl"]: f"{row[way]:.0e}" for row in rows}
            cells = [next(error for kl, error in errors.items() if abs(kl / level - 1) < 1e-6) for level in LEVELS]
            lines.append([family if way == "klrl" else "", way, *cells])
    pairs = max(row["pairs"] for row in record["rows"])
    head = ["KL, nats", "", *(f"{level:g}" for level in LEVELS)]
    return "\n\n".join(
        [
            command(record["command"]),
            f"Largest relative error over {pairs:,} random pairs of float32 distributions; right is torch's formula in "
            "float64:",
            table(head, lines),
        ]
    )


def accuracy_cost() -> str:
    """Microseconds of a KL."""
    times = read("accuracy.json")["microseconds"]
    first = next(iter(times.values()))
    lines = [[name, f"{value:.0f}", f"{value / first:.2f}"] for name, value in times.items()]
    return table(["KL of 2048 x 6 Gaussians", "microseconds", "of torch's on objects"], lines)


def speed() -> str:
    """Steps/s at equal work."""
    record = read("speed.json")
    rows = record["summary"]
    head = ["", "klrl", "klrl on EnvPool", *OTHERS, "environments alone: sync, EnvPool"]
    lines = [
        [f"{algorithm.upper()}, {env}", *_speeds(group, rows, env)]
        for (algorithm, env), group in groups(rows, "algorithm", "env").items()
        if algorithm
    ]
    lines.sort(key=lambda line: line[0])
    machine, repeats = record["machine"], max(row["repeats"] for row in rows)
    work = record["workload"]
    return "\n\n".join(
        [
            command(record["command"]),
            table(head, lines),
            f"Median steps/s of {repeats} repeats on {machine['cpu']}, {work['threads']} thread each; in brackets how "
            "many times as fast klrl is on the same, synchronous environments.",
            _memory(rows),
        ]
    )


def _speeds(group: list[Row], rows: list[Row], env: str) -> list[str]:
    ours = {row["engine"]: row["median"] for row in group if row["library"] == "klrl"}
    alone = {row["engine"]: row["median"] for row in rows if not row["algorithm"] and row["env"] == env}
    cells = [f"**{ours['sync']:,.0f}**", f"{ours['envpool']:,.0f}"]
    for libraries in OTHERS.values():
        other = next((row for row in group if row["library"] in libraries), None)
        cells.append("" if other is None else f"{other['median']:,.0f} ({other['klrl_ratio']:.1f}x)")
    return [*cells, f"{alone['sync']:,.0f}, {alone['envpool']:,.0f}"]


def _memory(rows: list[Row]) -> str:
    said = []
    columns = {"klrl": ("klrl",), **OTHERS}
    for name, libraries, engine in (
        *((n, ls, "sync") for n, ls in columns.items()),
        ("klrl on EnvPool", ("klrl",), "envpool"),
    ):
        peaks = [row["peak_mib"] for row in rows if row["library"] in libraries and row["engine"] == engine]
        said.append(f"{name} {min(peaks):,.0f} to {max(peaks):,.0f} MiB")
    return f"Peak memory: {listed(said)}."


def profile() -> str:
    """Where klrl's own time goes."""
    rows = [row for row in read("speed.json")["measurements"] if row["profile"]]
    notes = [f"- {name}: {library.differs}" for name, library in LIBRARIES.items() if library.differs]
    return "\n\n".join([profile_table(rows), "What is not equal work:", "\n".join(notes)])


def scaling() -> str:
    """Cost per step along the axes."""
    record = read("scaling.json")
    return f"{command(record['command'])}\n\n{of_points(record['summary'])}"


BLOCKS: dict[str, Callable[[], str]] = {
    "accuracy": accuracy,
    "accuracy-cost": accuracy_cost,
    "speed": speed,
    "speed-profile": profile,
    "scaling": scaling,
}
