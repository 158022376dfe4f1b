"""Draws what docs/examples/rlhf.py measured: ``python docs/examples/figure.py`` writes docs/_static/rlhf.svg."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).resolve().parents[1]
RESULTS, OUTPUT = DOCS.parent / "scripts" / "results" / "rlhf.json", DOCS / "_static" / "rlhf.svg"
COLOURS = {"loss": "#1f5fa8", "reward": "#c2410c", "grpo": "#4d7c0f"}
LABELS = {"loss": "in the loss, exact", "reward": "in the reward, k1", "grpo": "in the loss, k3 (GRPO)"}


def main() -> None:
    """Draw the estimates of one training, and the ways of all three."""
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    history = record["loss"]["history"]
    updates = range(len(history))
    plt.rcParams.update({"svg.hashsalt": "klrl", "font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.7), layout="constrained")
    for name, colour, shift in (("k1", "#555555", -0.2), ("k3", "#c2410c", 0.2)):
        values, errors = zip(*(row[name] for row in history), strict=True)
        at = [i + shift for i in updates]
        left.errorbar(at, values, [2.0 * x for x in errors], fmt=".", ms=4, lw=0.8, color=colour, label=name)
    values, errors = zip(*(row["exact"] for row in history), strict=True)
    low, high = ([x + k * e for x, e in zip(values, errors, strict=True)] for k in (-2.0, 2.0))
    left.fill_between(updates, low, high, color=COLOURS["loss"], alpha=0.25, lw=0)
    left.plot(updates, values, color=COLOURS["loss"], label="exact by token")
    left.axhline(record["settings"]["target_kl"], color="black", lw=0.8, ls=":")
    left.set_xlabel("update")
    left.set_ylabel("KL(policy‖reference), nats per sentence")
    left.set_title(
        f"estimates from {record['settings']['batch']} sentences, ± 2 standard errors", fontsize=10, loc="left"
    )
    left.legend(frameon=False, fontsize=9)
    for name, colour in COLOURS.items():
        rows = record[name]["history"]
        right.plot(
            [x["exact"][0] for x in rows], [x["reward"] for x in rows], ".-", ms=4, lw=0.7, color=colour, alpha=0.6
        )
        end = record[name]["end"]
        right.plot(end["exact"][0], end["reward"][0], "o", color=colour, label=LABELS[name])
    right.axvline(record["settings"]["target_kl"], color="black", lw=0.8, ls=":")
    right.set_xlabel("KL(policy‖reference), nats per sentence")
    right.set_ylabel("share of vowels")
    right.set_title("where the KL stands; dots: after the last update", fontsize=10, loc="left")
    right.legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(OUTPUT, metadata={"Date": None}, facecolor="white")
    print(f"written: {OUTPUT}")


if __name__ == "__main__":
    main()
