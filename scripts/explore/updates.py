"""Updates of a policy: what a bound on KL allows, clip against KL, two gradients, the drift of two trainings."""

from __future__ import annotations

import math
from typing import Any

import torch

from klrl.kl import kl_divergence
from klrl.scripts.explore import regions, training
from klrl.scripts.explore.charts import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    Block,
    Chart,
    Demo,
    Formula,
    Slider,
    Table,
    level,
    line,
    series,
)
from klrl.scripts.explore.contents import Identity, Number, Section, identity, number, shown

DELTA, EPSILON, RATE = 0.01, 0.2, 0.03
DELTAS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
STDS = torch.logspace(-1.0, 0.5, 31, dtype=torch.float64)
OLD = torch.tensor([0.5, 0.9, 0.1, 0.01, 0.001], dtype=torch.float64)


def section(rng: torch.Generator) -> Section:
    """Show bounds, clips and gradients on two actions and on Gaussians, and the kept trainings."""
    del rng
    trained = training.kept()["rows"]
    blocks = (
        *_story(), _probabilities(), *_gaussians(), *_clip(), *_gradients(), *_drift(trained),
    )  # fmt: skip
    title = "Updates: what a policy may change at a time"
    return Section("updates", title, "Updates: PPO and TRPO", blocks, _numbers(trained), _identities(trained))


def _numbers(trained: list[dict[str, Any]]) -> tuple[Number, ...]:
    low, high = regions.coin_within(OLD, DELTA)
    narrow, wide = regions.std_within(DELTA)
    one = torch.ones(1, dtype=torch.float64)
    found = [
        number(f"probability {old:g} within {DELTA:g} nats, {name}", value, "1")
        for old, *ends in zip(OLD.tolist(), low.tolist(), high.tolist(), strict=True)
        for name, value in zip(("least", "largest"), ends, strict=True)
    ]
    found += [
        number(f"mean of a Gaussian within {DELTA:g} nats, in standard deviations", (2.0 * DELTA) ** 0.5, "1"),
        number(f"standard deviation within {DELTA:g} nats, least, over the old one", narrow, "1"),
        number(f"standard deviation within {DELTA:g} nats, largest, over the old one", wide, "1"),
        number(f"gain of the natural gradient at {DELTA:g} nats, standard deviation 1",
               regions.gain_at(one, regions.natural_gradient(one), DELTA), "reward"),
        number(f"gain of the plain gradient at {DELTA:g} nats, standard deviation 1",
               regions.gain_at(one, regions.plain_gradient(one), DELTA), "reward"),
    ]  # fmt: skip
    for row in trained:
        metrics = row["metrics"]
        found += [
            number(f"{row['trained']}: {what}", value, unit)
            for what, value, unit in (
                ("updates", len(metrics["drift/kl"]), "1"),
                ("sum of the updates' KL", math.fsum(metrics["drift/kl"]), "nats"),
                ("KL(first‖last)", metrics["drift/kl_initial"][-1], "nats"),
                ("largest ratio", max(metrics["drift/ratio_max"]), "1"),
            )
        ]
    return tuple(found)


def _identities(trained: list[dict[str, Any]]) -> tuple[Identity, ...]:
    half, one = torch.tensor(0.5, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    old, step = regions.gaussian(0.0, 1.0), (2.0 * DELTA) ** 0.5
    edge = kl_divergence(regions.coin(half), regions.coin(half * (1.0 + EPSILON)))
    tiny = 1e-8
    natural = regions.gain_at(one, regions.natural_gradient(one), tiny)
    gradient = regions.plain_gradient(one)
    slope = (2.0 * tiny * (gradient.mean**2 + gradient.log_std**2 / 2.0)).sqrt()  # F is diagonal: 1 and 2
    over = max(trained[1]["metrics"]["drift/kl"]) - training.TARGET
    return (
        identity(f"largest probability within {DELTA:g} nats of 0.5 = 1/2 + 1/2 √(1 − exp(−2 · {DELTA:g}))",
                 regions.coin_within(half, DELTA)[1], 0.5 + 0.5 * math.sqrt(-math.expm1(-2.0 * DELTA)), ""),
        identity(f"KL of a Gaussian's mean moved by √(2 · {DELTA:g}) standard deviations = {DELTA:g}",
                 kl_divergence(old, regions.gaussian(step, 1.0)), DELTA, "nats"),
        identity("KL at the edge of the clip, old probability 0.5 = −1/2 log(1 − ε²)",
                 edge, -0.5 * math.log1p(-(EPSILON**2)), "nats"),
        identity("gain of a tiny natural step over √(2 δ gᵀ F⁻¹ g) = 1", natural / slope, 1.0, "", 1e-3),
        identity("gain of a tiny natural step over the best of 3,600 directions = 1",
                 natural / regions.best_gain(1.0, tiny), 1.0, "", 1e-3),
        identity("what the largest of TRPO's updates exceeds its bound by = nothing",
                 max(over, 0.0), 0.0, "nats", 0.0),
    )  # fmt: skip


def _story() -> tuple[Block, ...]:
    return (
        """
        A reinforcement learner has a *policy* π: at every state it gives each action a probability, or an action with
        several joints a Gaussian. It acts for a while, and then judges every action that it took by its *advantage*:
        how much better it turned out than what was to be expected. An *update* changes the policy so that actions of
        positive advantage become more probable.

        All this was measured with the *old* policy. A *new* one that is far from it visits other states and does other
        things, about which the data say little. So the change is limited: KL(old‖new), averaged over states, is kept
        near a small number δ. The set of policies within δ is a *trust region*. A usual δ is 0.01 nats. How much is
        that?
        """,
    )


def _probabilities() -> Table:
    low, high = regions.coin_within(OLD, DELTA)
    rows = [
        (f"{p:g}", f"{a:.2g}" if a < 1e-3 else f"{a:.4f}", f"{b:.4f}", f"{a / p:.2f} to {b / p:.2f}")
        for p, a, b in zip(OLD.tolist(), low.tolist(), high.tolist(), strict=True)
    ]
    return Table(
        f"Two actions: what a KL of {DELTA:g} nats may make of the probability of one",
        ("old probability", "least new one", "largest new one", "ratio new / old"),
        tuple(rows),
    )


def _gaussians() -> tuple[Block, ...]:
    narrow, wide = regions.std_within(DELTA)
    shape = Chart(
        "Old and new policy at a state", "action", "probability density",
        (
            line("old, N(0, 1)", torch.linspace(-4.0, 4.0, 121), torch.distributions.Normal(0.0, 1.0).log_prob(
                torch.linspace(-4.0, 4.0, 121)).exp(), GREY, 1),
            series("line", "new", BLUE, live="new", x=[], y=[]),
        ),
        x_range=(-4.0, 4.0), y_range=(0.0, 0.7),
    )  # fmt: skip
    region = Chart(
        "The trust region", "mean of the new policy", "its standard deviation",
        (
            series("line", "KL(old‖new) = δ", BLUE, live="forward", x=[], y=[], width=2.5),
            series("line", "KL(new‖old) = δ", ORANGE, 1, live="reverse", x=[], y=[]),
            series("line", "½ Δᵀ F Δ = δ", GREEN, 2, live="ellipse", x=[], y=[], width=1.5),
            series("points", "new", None, live="here", x=[], y=[], size=9),
        ),
        x_range=(-0.5, 0.5), y_range=(0.7, 1.4),
    )  # fmt: skip
    sliders = (
        Slider("mean", "mean of the new policy", -0.5, 0.5, 0.01, 0.1),
        Slider("std", "its standard deviation", 0.7, 1.4, 0.01, 1.05),
        _delta(),
    )
    see = f"""At δ = {DELTA:g} the mean may move by {math.sqrt(2.0 * DELTA):.3f} standard deviations, or the standard
        deviation may become {narrow:.3f} to {wide:.3f} of the old one: two curves that one can hardly tell apart. For
        small δ the two directions of KL and the parabola of chapter 8 draw the same region; raise δ and they part."""
    return (
        f"""
        Where a choice was open, a step of {DELTA:g} nats is small: 0.5 becomes 0.57 at most. But a rare action may
        become several times as probable, or vanish. For a Gaussian, move the new policy about and watch the region:
        """,
        Demo((shape, region), see, sliders, live="gaussians", given={"deltas": DELTAS}),
    )


def _delta() -> Slider:
    return Slider("delta", "δ, nats", 0, len(DELTAS) - 1, 1, DELTAS.index(DELTA), tuple(f"{x:g}" for x in DELTAS))


def _clip() -> tuple[Block, ...]:
    allowed = Chart(
        "What each allows", "old probability of the action", "new probability",
        (
            series("area", "KL(old‖new) at most δ", BLUE, live="within", x=[], low=[], high=[]),
            series("line", "clip, ratio 1 − ε and 1 + ε", ORANGE, 1, live="low", x=[], y=[]),
            series("line", "", ORANGE, 1, live="high", x=[], y=[]),
        ),
        x_range=(0.0, 1.0), y_range=(0.0, 1.0), height=340,
    )  # fmt: skip
    edge = Chart(
        "KL at the upper edge of the clip", "old probability of the action", "KL(old‖new), nats",
        (
            series("line", "ratio 1 + ε", ORANGE, live="edge", x=[], y=[]),
            series("line", "δ", BLUE, 1, live="bound", x=[], y=[]),
        ),
        log=True, x_range=(0.0, 1.0), y_range=(1e-5, 2.0), height=340,
    )  # fmt: skip
    sliders = (_delta(), Slider("epsilon", "ε of the clip", 0.05, 0.4, 0.01, EPSILON))
    see = """The clip is a cone: it hardly lets a rare action become less rare, whatever that costs. The region of the
        KL is wide in the middle, where changes are hard to notice, and narrow towards certainty. Where the old
        probability is above 1/(1 + ε) the clip even allows certainty, an infinite KL."""
    return (
        """
        TRPO (trust region policy optimisation) keeps to such a region. PPO (proximal policy optimisation) usually does
        not measure the KL: it looks at the *ratio* of the new to the old probability of each action that was taken,
        and *clips* it. With A the advantage and ε a small number, often 0.2, each sample counts
        """,
        Formula("min( ratio · A,  clip(ratio, 1 − ε, 1 + ε) · A )"),
        """
        so that nothing is won by raising a good action beyond the ratio 1 + ε, or by lowering a bad one below 1 − ε.
        That is another region, and no wall either: a sample outside merely stops pushing, while others, which share
        the same network, may push it on.
        """,
        Demo((allowed, edge), see, sliders, live="probabilities", given={"deltas": DELTAS}),
    )


def _gradients() -> tuple[Block, ...]:
    steps = Chart(
        "From the old policy, KL at most δ", "mean of the new policy", "its standard deviation",
        (
            series("line", "KL(old‖new) = δ", BLUE, live="region", x=[], y=[]),
            series("line", "plain gradient", ORANGE, 1, live="plain", x=[], y=[], width=3),
            series("line", "natural gradient", GREEN, live="natural", x=[], y=[], width=3),
        ),
        height=340,
    )  # fmt: skip
    cost = Chart(
        f"One plain step with learning rate {RATE:g}", "standard deviation of the old policy", "KL(old‖new), nats",
        (
            series("line", "plain gradient", ORANGE, 1, live="rate", x=[], y=[]),
            level(DELTA, (float(STDS[0]), float(STDS[-1])), "natural gradient, δ", GREEN, 0),
            series("points", "old policy", None, live="here", x=[], y=[], size=9),
        ),
        log_x=True, log=True, height=340, x_at=(0.1, 0.2, 0.5, 1.0, 2.0, 3.0),
    )  # fmt: skip
    slider = Slider("s", "standard deviation of the old policy", 0, len(STDS) - 1, 1, 20,
                    tuple(f"{x:.2f}" for x in STDS.tolist()))  # fmt: skip
    given = {"stds": STDS.tolist(), "sizes": STDS.tolist(), "goal": regions.GOAL, "rate": RATE, "delta": DELTA}
    costs = regions.kl_of_step(STDS, regions.plain_gradient(STDS), RATE)
    see = f"""A narrow policy takes a plain step of its mean as a leap, a wide one that of its spread: the same learning
        rate spends from {float(costs.min()):.2f} to {float(costs.max()):.2f} nats. The natural gradient spends what it
        is given, and gains most."""
    return (
        f"""
        In which direction should the step go? The *gradient* g of the expected advantage says how much each parameter
        helps, but a learning rate then treats all parameters alike, though some change the policy much more than
        others. The *natural gradient* F⁻¹g divides by what a change costs in KL, and is the best direction within a
        small trust region; TRPO follows it. Here an action a of a Gaussian policy with mean 0 is rewarded by −(a −
        {regions.GOAL:g})²:
        """,
        Demo((steps, cost), see, (slider,), live="gradients", given=given),
    )


def _drift(trained: list[dict[str, Any]]) -> tuple[Block, ...]:
    looks = ((ORANGE, 1), (BLUE, 0))

    def curves(metric: str) -> tuple[Any, ...]:
        return tuple(
            line(row["trained"], row["metrics"]["time/total_timesteps"], row["metrics"][metric], *look)
            for row, look in zip(trained, looks, strict=True)
        )

    steps = "environment steps"
    ends = (0.0, 1.05 * training.STEPS)
    wide: dict[str, Any] = {"x_range": ends, "x_at": (0.0, 20_000.0, 40_000.0)}
    bound = level(training.TARGET, ends, f"{training.TARGET:g} nats", None, 2)
    charts = (
        Chart("KL(old‖new) of every update", steps, "nats", (*curves("drift/kl"), bound), log=True, **wide),
        Chart("KL(first‖new): how far it has come", steps, "nats", curves("drift/kl_initial"), **wide),
        Chart("Largest ratio in an update", steps, "new / old probability",
              (*curves("drift/ratio_max"), level(1.0 + EPSILON, ends, f"{1.0 + EPSILON:g}", PURPLE, 2)), **wide),
        Chart("What it learned", steps, "mean return", curves("rollout/ep_rew_mean"), **wide),
    )  # fmt: skip
    (ppo, trpo) = (row["metrics"] for row in trained)
    small, large = min(ppo["drift/kl"]), max(ppo["drift/kl"])
    every = [int(metrics["time/total_timesteps"][0]) for metrics in (ppo, trpo)]
    return (
        f"""
        So much for theory. Here are two trainings on CartPole-v1 (a pole is balanced on a cart by pushing left or
        right; 500 is the best return): {training.STEPS:,} steps with klrl's PPO, which updates every {every[0]:,}
        steps, and with its TRPO, every {every[1]:,}. They were trained once, by `{training.COMMAND}` with seed
        {training.SEED}, and their metrics kept; all else on this page is computed when it is written.
        """,
        Demo(
            charts,
            """KL(old‖new) is exact and a mean over the batch's states, KL(first‖new) one over 256 states of the first
            batch; ratios are of the actions that were taken.""",
        ),
        f"""
        TRPO's updates lie between {shown(min(trpo["drift/kl"]))} and {shown(max(trpo["drift/kl"]))} nats, under their
        bound. PPO's go from {small:.5f} to {large:.4f}: the clip lets the policy move much or little. Its largest
        ratio was {max(ppo["drift/ratio_max"]):.2f}, far beyond {1.0 + EPSILON:g}: no wall, as was said. Nor does
        TRPO's bound hold single ratios: it is a bound on the mean over states, and the largest ratio was
        {max(trpo["drift/ratio_max"]):.2f}.

        And small steps go far. The KLs of PPO's {len(ppo["drift/kl"])} updates add up to
        {math.fsum(ppo["drift/kl"]):.2f} nats, but from the first policy to the last it is
        {ppo["drift/kl_initial"][-1]:.1f}: chapter 2's broken triangle inequality. Lengths that add up are √(2 KL).
        That is why klrl logs, after every update, what was asked for, what was done, and how far it is from where it
        started.
        """,
    )
