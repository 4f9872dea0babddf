"""Where score distillation and its SDS limit end, on Gaussian classes whose scores are known."""

import pytest
import torch

from limbeck.rules import DistributionMatching, Sample, surrogate

F64 = torch.float64


def affine_student(classes, critic, iterations=100):
    """(A, b) after descent along the rule's pull; ``critic``: is it the exact score of the student's samples?"""
    z, e, t, labels = classes.design()
    A, b = (0.5 * torch.eye(2, dtype=F64)).requires_grad_(), torch.zeros(2, 2, dtype=F64).requires_grad_()
    teacher = classes.denoiser()
    optimizer = torch.optim.Adam([A, b], lr=0.1)
    for k in range(iterations):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - k / iterations)
        own = classes.denoiser(A.detach(), b.detach()) if critic else None
        x = z @ A.T + b[labels]
        pull = DistributionMatching(teacher, own, normaliser="vsd")(Sample(x, {"label": labels}), t, e)
        optimizer.zero_grad()
        surrogate(x, pull.gradient).backward()
        optimizer.step()
    return A.detach(), b.detach()


def test_vsd_ends_in_the_teachers_law(classes):
    A, b = affine_student(classes, critic=True)
    C = classes.factor @ classes.factor.T
    assert (b - classes.means).abs().max() < 0.002
    assert (A @ A.T - C).abs().max() < 0.02 * C.max()


def test_sds_ends_in_the_means_without_variance(classes):
    A, b = affine_student(classes, critic=False)
    assert (b - classes.means).abs().max() < 0.002 and A.abs().max() < 0.002


def test_the_mean_pull_of_sds_is_its_closed_form(classes):
    # E g = a s s^2 / (a^2 lam + s^2) (x - m) in every eigendirection: towards the mean, wherever x is
    _, e, t, labels = classes.design()
    process = classes.denoiser().process
    x = classes.means[labels] + 0.7
    pull = DistributionMatching(classes.denoiser(), None, normaliser="vsd")(Sample(x, {"label": labels}), t, e)
    for time in t.unique():
        for label in (0, 1):
            rows = (t == time) & (labels == label)
            a, s = process.a(time), process.s(time)
            C = classes.factor @ classes.factor.T
            shrink = a * s * torch.linalg.inv(a**2 * C + s**2 * torch.eye(2, dtype=F64)) * s**2
            expected = shrink @ torch.full((2,), 0.7, dtype=F64)
            torch.testing.assert_close(pull.gradient[rows].mean(0), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("w", [0.0, 1.0, 4.5])
def test_at_the_teachers_law_nothing_pulls_whatever_the_guidance(w, classes):
    z, e, t, labels = classes.design()
    teacher, critic = classes.denoiser(), classes.denoiser()
    sample = Sample(z @ classes.factor.T + classes.means[labels], {"label": labels})
    pull = DistributionMatching(teacher, critic, guidance=w, critic_guidance=w, normaliser="vsd")(sample, t, e)
    assert float(pull.gradient.abs().max()) == 0.0
    one_sided = DistributionMatching(teacher, critic, guidance=w, normaliser="vsd")(sample, t, e)  # DMD's guidance
    assert (float(one_sided.gradient.abs().max()) > 1e-3) == (w != 1)
