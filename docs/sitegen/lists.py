"""What stands in the repository's other files: the protocol of reliability, findings."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable

from klrl.agents.settings import CONFIGS
from klrl.text import cell
from klrl.trust_region.names import PARAMETERS, SUMMARIES, parameters_of
from sitegen.results import RESULTS, ROOT


def reliability() -> str:
    """What held, point by point."""
    sys.path.insert(0, str(ROOT / "tests"))
    from torture.case import table
    from torture.main import POINTS

    records = [json.loads(path.read_text(encoding="utf-8")) for path in (RESULTS / "torture").glob("*.json")]
    rows = [row for record in records for row in record["rows"]]
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    return f"{table(rows, POINTS)}\n\nSeed {seeds}; seconds are summed over the cases, of which two run at a time."


def findings() -> str:
    """One section per script, from its header: the guess, what happens, why it matters."""
    sections = []
    for path in sorted((ROOT / "findings").glob("*.sh")):
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
        end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
        header = " ".join(line[1:].strip() for line in lines[:end])
        parts = re.split(r"(Guess|What happens|Why it matters): ", header)[1:]
        said = [f"**{name}:** {text.strip()}" for name, text in zip(parts[::2], parts[1::2], strict=True)]
        sections.append("\n\n".join([f"## {path.stem}", *said, f"[findings/{path.name}](../findings/{path.name})"]))
    return "\n\n".join(sections)


def trust_regions() -> str:
    """Every trust region by name: what it does, and the flags of its settings."""
    defaults: dict[str, list[str]] = {}
    for name, config in CONFIGS.items():
        defaults.setdefault(str(config.for_env(None).trust_region), []).append(name.upper())
    rows = ["| name | what it does | reads |", "|---|---|---|"]
    for name, what in SUMMARIES.items():
        default = f" (default of {' and '.join(defaults[name])})" if name in defaults else ""
        flags = [f"`--{x.replace('_', '-')}`" for x in PARAMETERS if x in parameters_of(name)]
        rows.append(f"| `{name}`{default} | {cell(what)} | {', '.join(flags)} |")
    return "\n".join(rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "reliability": reliability,
    "findings": findings,
    "trust-regions": trust_regions,
}
