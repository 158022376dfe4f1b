"""What stands in the repository's other files: the protocol of reliability, findings."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable

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


BLOCKS: dict[str, Callable[[], str]] = {"reliability": reliability, "findings": findings}
