"""Expected gradients of every loss, by enumeration of all actions, against the gradient of the exact divergence."""

import math
import warnings

import mpmath
import numpy as np
import pytest
import torch

from klrl.kl import BiasedGradientWarning, estimator_gradient, kl_loss
from klrl.kl.estimator_gradients import _EXPECTED

# Five actions, softmax logits; the policy is near neither of the others, and they are not near each other.
LOGITS, REFERENCE, OLD = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
REFERENCE, OLD = REFERENCE.log_softmax(-1), OLD.log_softmax(-1)


def kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum()


def k2(log_a, log_b):
    return (log_a - log_b).square() / 2


# The divergences that the tables name, in textbook form, as functions of log pi, log ref, log old;
# the estimators inside an expectation are those of the row's target.
OBJECTIVES = {
    "KL(policy||reference)": lambda pi, ref, old: kl(pi, ref),
    "KL(reference||policy)": lambda pi, ref, old: kl(ref, pi),
    "KL(old||policy)": lambda pi, ref, old: kl(old, pi),
    "E_policy[k2]": lambda pi, ref, old: (pi.exp() * k2(pi, ref)).sum(),
    "E_reference[k2]": lambda pi, ref, old: (ref.exp() * k2(pi, ref)).sum(),
    "(E_policy[k2] - KL(policy||reference))": lambda pi, ref, old: (pi.exp() * k2(pi, ref)).sum() - kl(pi, ref),
    "(KL(policy||reference) - KL(reference||policy))": lambda pi, ref, old: kl(pi, ref) - kl(ref, pi),
    "chi2(policy||reference) / 2": lambda pi, ref, old: ((pi.exp() - ref.exp()).square() / ref.exp()).sum() / 2,
    "E_reference[(log r)^2 / 2 - (log r)^3 / 6]": lambda pi, ref, old: (
        ref.exp() * ((pi - ref) ** 2 / 2 - (pi - ref) ** 3 / 6)
    ).sum(),
}
# Under the fixed sampler the expectation of an unweighted loss is itself the objective.
OLD_OBJECTIVES = {
    ("E_old[k2]", "KL(old||policy)"): lambda pi, ref, old: (old.exp() * k2(old, pi)).sum(),
    ("E_old[k2]", "KL(policy||reference)"): lambda pi, ref, old: (old.exp() * k2(pi, ref)).sum(),
    ("E_old[k2]", "KL(reference||policy)"): lambda pi, ref, old: (old.exp() * k2(pi, ref)).sum(),
    ("E_old[k3]", "KL(policy||reference)"): lambda pi, ref, old: (
        old.exp() * (ref.exp() / pi.exp() - 1 - (ref - pi))
    ).sum(),
    ("E_old[k3]", "KL(reference||policy)"): lambda pi, ref, old: (
        old.exp() * (pi.exp() / ref.exp() - 1 - (pi - ref))
    ).sum(),
}
ROWS = [(sampler, target, loss) for (sampler, target), table in _EXPECTED.items() for loss in table]
EVERY_ROW = pytest.mark.parametrize(("sampler", "target", "loss"), ROWS)
# The rows that the literature calls right (arXiv 2510.01555, 2512.21852) and those derived by hand; no other is.
RIGHT = {
    ("policy", "KL(policy||reference)"): {"k2", "k1_in_reward", "w*k1", "w*k3"},
    ("policy", "KL(reference||policy)"): {"w*k1", "w*k3"},
    ("old", "KL(old||policy)"): {"k1", "k3", "w*k1", "w*k3"},
    ("old", "KL(policy||reference)"): {"w*k1", "w*k3", "sg(w)*k2", "k1_in_reward"},
    ("old", "KL(reference||policy)"): {"w*k1", "w*k3"},
}


def gradient(objective):
    logits = LOGITS.clone().requires_grad_()
    (found,) = torch.autograd.grad(objective(logits.log_softmax(-1), REFERENCE, OLD), logits)
    return found


def sample_gradients(sampler, target, loss, logits=LOGITS, reference=REFERENCE, old=OLD):
    """The gradient of kl_loss by the logits at every action, [action, logit], and the action's probability."""
    other = old if target == "KL(old||policy)" else reference
    log_sampler = old if sampler == "old" and other is not old else None
    logits = logits.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BiasedGradientWarning)
        losses = kl_loss(
            logits.log_softmax(-1), other, sampler=sampler, target=target, estimator=loss, log_sampler=log_sampler
        )
    rows = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in losses]
    return torch.stack(rows), (logits.detach().log_softmax(-1) if sampler == "policy" else old).exp()


def expected_gradient(*row, **policies):
    rows, probability = sample_gradients(*row, **policies)
    return probability @ rows


@EVERY_ROW
def test_the_expected_gradient_of_every_loss_is_the_one_named(sampler, target, loss):
    found, verdict = expected_gradient(sampler, target, loss), estimator_gradient(loss, sampler=sampler, target=target)
    if verdict.expected == "0":
        torch.testing.assert_close(found, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
        return
    sign, name = verdict.expected.split("grad ", 1)
    objective = OBJECTIVES[name] if name in OBJECTIVES else OLD_OBJECTIVES[name, target]
    torch.testing.assert_close(found, gradient(objective) * (-1 if sign == "-" else 1), rtol=1e-12, atol=1e-12)


@EVERY_ROW
def test_a_loss_is_called_right_exactly_where_its_expected_gradient_is_the_targets(sampler, target, loss):
    verdict = estimator_gradient(loss, sampler=sampler, target=target)
    error = (expected_gradient(sampler, target, loss) - gradient(OBJECTIVES[target])).abs().max()
    assert verdict.right is bool(error < 1e-12) is (loss in RIGHT[sampler, target])
    assert verdict.right or error > 1e-3
    assert verdict.instead is None if verdict.right else verdict.instead in RIGHT[sampler, target]


@EVERY_ROW
def test_kl_loss_warns_of_the_wrong_ones_and_of_no_other(sampler, target, loss):
    log_sampler = OLD if sampler == "old" and target != "KL(old||policy)" else None
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        kl_loss(
            LOGITS.log_softmax(-1), REFERENCE, sampler=sampler, target=target, estimator=loss, log_sampler=log_sampler
        )
    right = loss in RIGHT[sampler, target]
    assert [w.category for w in seen] == ([] if right else [BiasedGradientWarning])
    if not right:
        verdict = estimator_gradient(loss, sampler=sampler, target=target)
        text = str(seen[0].message)
        assert "\n" not in text
        assert all(part in text for part in (f"not grad {target}; use {verdict.instead}", f" {verdict.expected},"))
        assert seen[0].filename == __file__


@pytest.mark.parametrize(("sampler", "target"), _EXPECTED)
def test_the_default_is_right_unbiased_and_without_noise_where_the_policies_agree(sampler, target):
    verdict = estimator_gradient(sampler=sampler, target=target)
    assert verdict.right
    # Its value: the expectation is the KL itself, and no sample is negative.
    pi, other = LOGITS.log_softmax(-1), OLD if target == "KL(old||policy)" else REFERENCE
    log_sampler = OLD if sampler == "old" and target != "KL(old||policy)" else None
    losses = kl_loss(pi, other, sampler=sampler, target=target, log_sampler=log_sampler)
    probability = (pi if sampler == "policy" else OLD).exp()
    torch.testing.assert_close(probability @ losses, OBJECTIVES[target](pi, REFERENCE, OLD), rtol=1e-12, atol=0)
    assert (losses >= 0).all()
    rows, _ = sample_gradients(sampler, target, verdict.estimator, logits=other)
    torch.testing.assert_close(rows, torch.zeros(5, 5, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("sampler", "same"), [("policy", ["w*k3", "k2", "k1_in_reward"]),
                                               ("old", ["w*k3", "sg(w)*k2", "k1_in_reward"])])  # fmt: skip
def test_three_right_losses_have_one_gradient_sample_by_sample(sampler, same):
    # w log(pi / ref) score, with score = onehot - pi.
    pi = LOGITS.log_softmax(-1)
    weight = (pi - (pi if sampler == "policy" else OLD)).exp()
    expected = (weight * (pi - REFERENCE))[:, None] * (torch.eye(5) - pi.exp())
    for loss in same:
        found, _ = sample_gradients(sampler, "KL(policy||reference)", loss)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_r_log_r_minus_r_plus_one_on_old_samples_is_right_for_the_kl_of_policy_and_old():
    logits = LOGITS.clone().requires_grad_()
    pi = logits.log_softmax(-1)
    losses = kl_loss(pi, OLD, sampler="old", log_sampler=OLD)
    ratio = (pi - OLD).exp()
    torch.testing.assert_close(losses, ratio * ratio.log() - (ratio - 1), rtol=1e-12, atol=1e-14)
    (found,) = torch.autograd.grad((OLD.exp() * losses).sum(), logits)
    torch.testing.assert_close(found, gradient(lambda pi, ref, old: kl(pi, old)), rtol=1e-12, atol=1e-12)


def test_differentiating_the_sampler_too_is_wrong():
    # w k3 with w = reference / policy, both differentiated: grad E_reference[k2], as the module says.
    logits = LOGITS.clone().requires_grad_()
    pi = logits.log_softmax(-1)
    losses = (REFERENCE - pi).exp() * ((pi - REFERENCE).exp() - 1 - (pi - REFERENCE))
    (found,) = torch.autograd.grad((pi.detach().exp() * losses).sum(), logits)
    torch.testing.assert_close(found, gradient(OBJECTIVES["E_reference[k2]"]), rtol=1e-12, atol=1e-12)


def total_variance(loss, step):
    """The trace of the gradient's covariance under old, target KL(old||policy), policy = old + step in logits."""
    rows, probability = sample_gradients("old", "KL(old||policy)", loss, logits=OLD + step * LOGITS)
    mean = probability @ rows
    return (probability @ (rows - mean).square().sum(-1)).item()


def test_k1_is_as_noisy_near_the_old_policy_as_far_away_and_k3_is_not():
    # At pi = old the k1 gradient is -score = pi - onehot, of trace variance 1 - sum old^2.
    noise = 1 - OLD.exp().square().sum().item()
    for step in (1e-1, 1e-2, 1e-3):
        assert total_variance("k1", step) == pytest.approx(noise, rel=1e-12)
    # k3 and k2: (r - 1) score and log r score, whose variance falls with the square of the step, as the KL does.
    for loss in ("k3", "k2"):
        assert total_variance(loss, 1e-3) < 1e-5 * noise
        assert total_variance(loss, 1e-3) / total_variance(loss, 1e-2) == pytest.approx(1e-2, rel=0.05)


def test_batch_dimensions_and_float32_stay():
    log_policy = LOGITS.float().log_softmax(-1).expand(2, 3, 5)
    losses = kl_loss(log_policy, REFERENCE.float().expand(2, 3, 5))
    assert (losses.shape, losses.dtype) == ((2, 3, 5), torch.float32)


def test_only_the_policy_is_differentiated():
    policy, reference, old = (x.clone().requires_grad_() for x in (LOGITS, REFERENCE, OLD))
    kl_loss(policy, reference, sampler="old", log_sampler=old).sum().backward()
    assert policy.grad is not None
    assert reference.grad is None
    assert old.grad is None


def test_an_action_the_policy_gave_up_leaves_a_finite_weighted_loss():
    # w r = ref / old = 1 though r overflows float32: the loss is 1 - w - w log r, its gradient -w log r.
    log_policy = torch.tensor([-100.0], requires_grad=True)
    losses = kl_loss(log_policy, torch.tensor([-0.5]), sampler="old", log_sampler=torch.tensor([-0.5]))
    losses.sum().backward()
    assert losses.item() == pytest.approx(1.0)
    assert math.isfinite(log_policy.grad.item())
    assert abs(log_policy.grad.item()) < 1e-30


def test_the_right_loss_to_use_instead_is_named():
    verdict = estimator_gradient("k2", sampler="old", target="KL(old||policy)")
    assert (verdict.right, verdict.expected, verdict.instead) == (False, "grad E_old[k2]", "k3")
    assert str(verdict).endswith("has the expected gradient grad E_old[k2], not grad KL(old||policy); use k3")
    assert "use" not in str(estimator_gradient(sampler="policy", target="KL(policy||reference)"))


def written_out(loss, target, at, other, old):
    """A loss as a function of log pi, constants held at ``at``, in mpmath's numbers."""

    def of(pi):
        first = target == "KL(policy||reference)"
        held = loss.startswith("sg(w)") or not first or loss in ("k1", "k2", "k3")
        d = (other - pi if first else pi - other) if "reward" not in loss else other - at
        weight = 1 if loss in ("k1", "k2", "k3") else mpmath.exp(((at if held else pi) if first else other) - old)
        kind = next(k for k in ("k1", "k2", "k3") if k in loss)
        return weight * {"k1": -d, "k2": d * d / 2, "k3": mpmath.exp(d) - 1 - d}[kind]

    return of


@EVERY_ROW
def test_values_and_gradients_at_any_log_ratio_in_any_type(sampler, target, loss):
    # log ratios from -200 to 200, that of policy and old 2; all numbers are exact in every type
    ratios = [-200.0, -96.0, -16.0, -6.0, -1.0, -0.125, 0.0, 0.03125, 0.5, 4.0, 11.0, 20.0, 100.0, 200.0]
    policy, other = torch.full((len(ratios),), -8.0), torch.tensor(ratios) - 8.0
    exact = []
    with mpmath.workdps(250):
        for x in other.tolist():
            old = {"policy": -8, "old": x if "old" in target else -10}[sampler]
            right = written_out(loss, target, mpmath.mpf(-8), mpmath.mpf(x), mpmath.mpf(old))
            by_pi = mpmath.diff(right, mpmath.mpf(-8), h=mpmath.mpf(10) ** -80)
            exact.append((float(right(mpmath.mpf(-8))), float(by_pi)))
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        log_policy = policy.to(dtype, copy=True).requires_grad_()
        log_sampler = torch.full_like(policy, -10.0).to(dtype) if sampler == "old" and "old" not in target else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BiasedGradientWarning)
            losses = kl_loss(
                log_policy, other.to(dtype), sampler=sampler, target=target, estimator=loss, log_sampler=log_sampler
            )
        losses.sum().backward()
        limits = torch.finfo(dtype)
        close = {"rel": max(4 * limits.eps, 1e-12), "abs": max(limits.smallest_normal * limits.eps, 1e-50)}
        for found, numbers in zip((losses, log_policy.grad), zip(*exact, strict=True), strict=True):
            expected = [math.copysign(math.inf, x) if abs(x) > limits.max else x for x in numbers]
            assert found.tolist() == pytest.approx(expected, **close), dtype


@pytest.mark.parametrize("kind", [bool, np.int64, np.uint8, np.float32])
def test_what_a_mask_leaves_out_never_enters(kind):
    padded = torch.tensor([-1.0, -1e10, -2.0, math.nan, -math.inf], requires_grad=True)
    reference = torch.tensor([-1.1, 0.0, -2.2, 5.0, -math.inf])
    counted = np.array([1, 0, 1, 0, 0], kind)
    losses = kl_loss(padded, reference, mask=counted)
    (losses.sum() / counted.sum()).backward()
    alone = padded.detach()[[0, 2]].clone().requires_grad_()
    kl_loss(alone, reference[[0, 2]]).mean().backward()
    assert losses[1].item() == losses[3].item() == losses[4].item() == 0.0
    assert padded.grad[[0, 2]].tolist() == alone.grad.tolist()
    assert padded.grad[[1, 3, 4]].tolist() == [0.0, 0.0, 0.0]


def test_the_loss_can_be_differentiated_twice_and_by_torchs_transforms():
    at = LOGITS.log_softmax(-1)
    for sampler, target, loss in ROWS:
        given = {"log_sampler": OLD} if sampler == "old" and target != "KL(old||policy)" else {}
        other = OLD if target == "KL(old||policy)" else REFERENCE
        settings = {"sampler": sampler, "target": target, "estimator": loss} | given
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BiasedGradientWarning)
            policy = at.clone().requires_grad_()
            (slope,) = torch.autograd.grad(kl_loss(policy, other, **settings).sum(), policy, create_graph=True)
            second = torch.autograd.grad(slope.sum(), policy)[0] if slope.requires_grad else torch.zeros(5)
            transformed = torch.func.grad(lambda x: kl_loss(x, other, **settings).sum())(at)  # noqa: B023
        for i in range(5):
            old = (at if sampler == "policy" else OLD)[i].item()
            with mpmath.workdps(60):
                right = written_out(loss, target, mpmath.mpf(at[i].item()), mpmath.mpf(other[i].item()), old)
                by_pi = float(mpmath.diff(right, mpmath.mpf(at[i].item()), 2))
            assert second[i].item() == pytest.approx(by_pi, rel=1e-9, abs=1e-12), (sampler, target, loss)
        assert transformed.tolist() == slope.tolist()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mask": torch.full((5,), 0.5)}, "^mask = 0.5 at a place; allowed: bool, or 0 and 1$"),
        ({"mask": torch.ones(4)}, r"^mask has shape \[4\], log_policy \[5\]; allowed: one shape$"),
        ({"sampler": "new"}, "^sampler = 'new'; allowed: policy, old$"),
        ({"target": "KL"}, r"^target = 'KL'; allowed: KL\(policy\|\|reference\), KL\(reference\|\|policy\), KL\(old"),
        (
            {"target": "KL(old||policy)"},
            "with sampler = 'policy'; allowed: KL.policy..reference., KL.reference..policy.$",
        ),
        ({"estimator": "k4"}, "^estimator = 'k4' with sampler = 'policy', .*; allowed: w.k3, k2, k1_in_reward, "),
        ({"sampler": "old"}, "^log_sampler = None with sampler = 'old'; allowed: log-probabilities under old$"),
        ({"log_sampler": OLD}, "^log_sampler is given with sampler = 'policy', .*; allowed: None"),
        ({"log_sampler": OLD, "sampler": "old", "target": "KL(old||policy)"}, "^log_sampler is given with .*old"),
        ({"log_sampler": OLD[:1], "sampler": "old"}, r"have shapes \[5\], \[5\], \[1\]; allowed: one shape$"),
    ],
)
def test_names_and_tensors_that_do_not_go_together_are_refused_in_one_line(options, text):
    with pytest.raises(ValueError, match=text) as error:
        kl_loss(LOGITS, REFERENCE, **options)
    assert "\n" not in str(error.value)
