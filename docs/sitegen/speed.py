"""Tables of accuracy, speed and cost, from the JSON files in ``scripts/results``."""

from __future__ import annotations

from collections.abc import Callable

from klrl.scripts.benchmarks import atari, images, pixels
from klrl.scripts.benchmarks.accuracy_measurements import SHARE
from klrl.scripts.benchmarks.measure import LIBRARIES
from klrl.scripts.benchmarks.ranks import speedups
from klrl.scripts.benchmarks.scaling_report import table as of_points
from klrl.scripts.benchmarks.seeds import table as of_seeds
from klrl.scripts.benchmarks.speed_report import profile_table
from sitegen.markdown import command, listed, table
from sitegen.results import Row, groups, read

LEVELS = (1e-8, 1e-6, 1e-4, 1e-2, 1.0, 100.0)
"""KL in the table, nats; the file has more."""
OTHERS: dict[str, tuple[str, ...]] = {
    "Stable-Baselines3, sb3-contrib": ("stable-baselines3", "sb3-contrib"),
    "SBX": ("sbx",),
    "CleanRL": ("cleanrl",),
    "Tianshou": ("tianshou",),
}
"""Columns beside klrl's, where they were measured: each library stands in one of them."""
VARIANTS = {"numpy": "on numpy", "envpool-64": "EnvPool, 64 environments", "two-processes": "two processes"}
"""Columns of the table of klrl's own variants."""


def accuracy() -> str:
    """Errors of the float32 KL."""
    record = read("accuracy.json")
    lines = []
    for (family,), rows in groups(record["rows"], "family").items():
        for way in ("klrl", "torch"):
            errors = {row["kl"]: f"{row[way]:.0e}" for row in rows if way in row}
            cells = [next((e for kl, e in errors.items() if abs(kl / level - 1) < 1e-6), "") for level in LEVELS]
            lines.append([family if way == "klrl" else "", way, *cells])
    pairs = sorted({row["pairs"] for row in record["rows"]})
    head = ["KL, nats", "", *(f"{level:g}" for level in LEVELS)]
    return "\n\n".join(
        [
            command(record["command"]),
            f"Largest relative error over {pairs[-1]:,} random pairs of float32 distributions; right is torch's "
            f"formula in float64. From Exponential on, over {pairs[-1] // SHARE:,} pairs, right is the textbook's in "
            "40 digits; a cell is empty where torch has no formula, or hardly a pair of float32 has such a KL:",
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
    usual = [row for row in record["summary"] if not row.get("variant")]
    others = {name: libraries for name, libraries in OTHERS.items() if {*libraries} & {r["library"] for r in usual}}
    head = ["", "klrl", "klrl on EnvPool", *others, "environments alone: sync, EnvPool"]
    lines = [[f"{name}, {env}", *_speeds(group, usual, env, others)] for (name, env), group in _tasks(usual)]
    machine, repeats = record["machine"], max(row["repeats"] for row in usual)
    work = record["workload"]
    said = [
        command(record["command"]),
        table(head, lines),
        "Steps per second of CPU time, which other programs on the machine change little: medians of "
        f"{repeats} repeats on {machine['cpu']}, {work['threads']} thread each; in brackets how many times as fast "
        "klrl is on the same, synchronous environments.",
        _memory(usual, others),
    ]
    return "\n\n".join([*said, *_variants(record["summary"])])


def _tasks(rows: list[Row]) -> list[tuple[tuple[str, str], list[Row]]]:
    """Rows by algorithm, in capitals, and environment."""
    found = groups([row for row in rows if row["algorithm"]], "algorithm", "env")
    return sorted(((algorithm.upper(), env), group) for (algorithm, env), group in found.items())


def _variants(rows: list[Row]) -> list[str]:
    """The table of klrl's own variants, if there are any, and what its numbers are."""
    names = [name for name in VARIANTS if name in {row.get("variant") for row in rows}]
    if not names:
        return []
    ours = [row for row in rows if row["library"] == "klrl" and (row["variant"] or row["engine"] == "sync")]
    lines = []
    for (name, env), group in _tasks(ours):
        found = {row["variant"]: row for row in group}
        lines.append([f"{name}, {env}", *(_variant(found.get(variant)) for variant in ("", *names))])
    return [
        table(["", "klrl", *(f"klrl, {VARIANTS[name]}" for name in names)], lines),
        "Steps per second of CPU time, and the peak memory of one process.",
    ]


def _variant(row: Row | None) -> str:
    return "" if row is None else f"{row['cpu_median']:,.0f}, {row['peak_mib']:,.0f} MiB"


def _speeds(group: list[Row], rows: list[Row], env: str, others: dict[str, tuple[str, ...]]) -> list[str]:
    ours = {row["engine"]: row["cpu_median"] for row in group if row["library"] == "klrl"}
    alone = {row["engine"]: row["cpu_median"] for row in rows if not row["algorithm"] and row["env"] == env}
    cells = [f"**{ours['sync']:,.0f}**", f"{ours['envpool']:,.0f}"]
    for libraries in others.values():
        other = next((row for row in group if row["library"] in libraries), None)
        cells.append("" if other is None else f"{other['cpu_median']:,.0f} ({other['klrl_ratio']:.1f}x)")
    return [*cells, f"{alone['sync']:,.0f}, {alone['envpool']:,.0f}"]


def _memory(rows: list[Row], others: dict[str, tuple[str, ...]]) -> str:
    said = []
    columns = {"klrl": ("klrl",), **others}
    for name, libraries, engine in (
        *((n, ls, "sync") for n, ls in columns.items()),
        ("klrl on EnvPool", ("klrl",), "envpool"),
    ):
        peaks = [row["peak_mib"] for row in rows if row["library"] in libraries and row["engine"] == engine]
        said.append(f"{name} {min(peaks):,.0f} to {max(peaks):,.0f} MiB")
    return f"Peak memory: {listed(said)}."


def of_images() -> str:
    """Steps per CPU second and memory on images."""
    record = read("speed-images.json")
    work, machine = record["workload"], record["machine"]
    repeats = record["summary"][0]["repeats"]
    often = "One measurement each" if repeats == 1 else f"Median of {repeats} repeats"
    said = (
        f"{often} on {machine['cpu']}, {work['threads']} thread, "
        f"{work['n_envs']} x {work['n_steps']} steps, {work['n_epochs']} epochs, minibatches of {work['batch_size']}."
    )
    return "\n\n".join([command(record["command"]), images.table(record["summary"]), said])


def of_games() -> str:
    """Games by three engines."""
    record = read("atari.json")
    return f"{command(record['command'])}\n\n{atari.table(record['rows'])}"


def of_pixels() -> str:
    """Trainings from images, and the command of each."""
    record = read("pixels.json")
    trained = dict.fromkeys(row["command"] for row in record["rows"])
    return "\n\n".join([*map(command, trained), "All of it:", command(record["command"]), pixels.table(record["rows"])])


def profile() -> str:
    """Where klrl's own time goes."""
    record = read("speed.json")
    rows = [row for row in record["measurements"] if row["profile"]]
    measured = {name: LIBRARIES[name] for name in LIBRARIES if name in {row["library"] for row in record["summary"]}}
    notes = [f"- {name}: {library.differs}" for name, library in measured.items() if library.differs]
    return "\n\n".join([profile_table(rows), "What is not equal work:", "\n".join(notes)])


def seeds() -> str:
    """How long many seeds take."""
    records = [read(f"{name}.json") for name in ("seeds", "seeds-processes")]
    return "\n\n".join(part for record in records for part in (command(record["command"]), of_seeds(record["rows"])))


def scaling() -> str:
    """Cost per step along the axes."""
    record = read("scaling.json")
    return f"{command(record['command'])}\n\n{of_points(record['summary'])}"


def ranks() -> str:
    """One training on one and more ranks."""
    record = read("ranks.json")
    rows = speedups(record["rows"])
    head = [
        "a step takes",
        "ranks",
        "steps/s",
        "times one rank",
        "bound",
        "gathering",
        "of the rollout",
        "start",
        "memory",
    ]
    lines = [
        [
            f"{row['pause']:g} ms more", str(row["ranks"]), f"{row['fps']:,.0f}", f"{row['speedup']:.2f}",
            f"{row['bound']:.2f}", f"{1e3 * row['gather']:.0f} ms", f"{100 * row['share']:.1f} %",
            f"{row['start']:.0f} s", f"{row['kib'] / 1024:.0f} MiB",
        ]
        for row in rows
    ]  # fmt: skip
    one = rows[0]
    sent = max(row["bytes"] for row in rows) / (one["n_envs"] * one["n_steps"])
    text = (
        f"PPO on {one['env']}, {one['n_envs']} environments x {one['n_steps']} steps, on a machine with {one['cores']} "
        "cores that did other things, too; medians over updates. The bound is Amdahl's, by the shares measured on one "
        f"rank; memory is the most that rank 0 had. A step of an environment is {sent:.0f} bytes that are gathered."
    )
    return "\n\n".join([command(record["command"]), text, table(head, lines)])


BLOCKS: dict[str, Callable[[], str]] = {
    "accuracy": accuracy,
    "accuracy-cost": accuracy_cost,
    "speed": speed,
    "atari": of_games,
    "pixels": of_pixels,
    "speed-images": of_images,
    "speed-profile": profile,
    "seeds": seeds,
    "scaling": scaling,
    "ranks": ranks,
}
