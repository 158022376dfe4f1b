"""Tables of the page on sequences, from ``sequences.json`` and ``rlhf.json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from klrl.text import cell
from sitegen.markdown import command, table
from sitegen.results import read

_PLACES = {
    "loss": "loss, `sequence_kl_loss`",
    "reward": "reward, k1",
    "grpo": "loss, k3 of every token (GRPO)",
}


def estimates() -> str:
    """Mean, deviation and coverage of every estimator, enumerated."""
    record = read("sequences.json")
    rows = [
        [
            name,
            f"{x['mean']:.4f}",
            f"{x['deviation']:.3f}",
            *(f"{100.0 * x[f'coverage_{n}']:.1f} %" for n in (64, 256)),
        ]
        for name, x in record["estimators"].items()
    ]
    head = ["by token", "mean", "standard deviation of one sequence", "of 64 sequences", "of 256"]
    said = (
        f"The KL is {record['kl']:.4f} nats; the last columns are the shares of {record['repeats']:,} intervals for 95 "
        "% that hold it:"
    )
    return "\n\n".join([command(record["command"]), said, table(head, rows)])


def gradients() -> str:
    """Distance and noise of every loss's gradient."""
    found = read("sequences.json")["gradients"]
    rows = [
        [name, f"{x['error']:.2f}", f"{x['cosine']:.3f}" if x["error"] < 0.995 else "", f"{x['noise']:.1f}"]
        for name, x in found.items()
    ]
    return table(["loss", "error", "cosine with the right one", "noise"], rows)


def rlhf() -> str:
    """What each training ends with."""
    record = read("rlhf.json")

    def pair(x: Sequence[float], digits: int) -> str:
        return f"{x[0]:.{digits}f} ± {x[1]:.{digits}f}"

    rows = [["before", pair(record["start"]["reward"], 3), "0", "0", record["start"]["sentences"][0]]]
    for name, title in _PLACES.items():
        end = record[name]["end"]
        rows.append(
            [title, pair(end["reward"], 3), pair(end["exact"], 2), pair(end["reverse"], 2), end["sentences"][0]]
        )
    head = ["where the KL stands", "share of vowels", "KL(policy‖reference)", "KL(reference‖policy)", "one sentence"]
    settings = record["settings"]
    said = (
        f"One seed each, {settings['updates']} updates on {settings['batch']} sentences, aim {settings['target_kl']:g} "
        f"nats; measured on {settings['judged']} sentences after the last update, ± one standard error:"
    )
    return "\n\n".join([command(record["command"]), said, table(head, rows)])


def memory() -> str:
    """Peak memory of a minibatch."""
    record = read("sequences.json")["memory"]
    return cell(
        f"A minibatch of 64 x 128 tokens over 32,000 words has {record['logits_gb']:.2f} GB of float32 logits in each "
        f"policy. `sequence_kl_loss` needs {record['loss']:.2f} times that beside them, with its gradient "
        f"{record['loss and gradient']:.2f} times: 1 is the gradient itself."
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "sequences-estimates": estimates,
    "sequences-gradients": gradients,
    "sequences-rlhf": rlhf,
    "sequences-memory": memory,
}
