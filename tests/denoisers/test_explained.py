"""Explained variances by model and noise level on the digits: orderings that are known, and the table."""

import json

import pytest
import torch
from sklearn.datasets import load_digits

from limbeck.denoisers import FiniteSetDenoiser, GaussianDenoiser, explained_by, explained_variance, fit_mixture
from limbeck.errors import LimbeckError
from limbeck.noise import VE, RectifiedFlow

SIGMAS = (5.0, 2.0, 1.0, 0.5, 0.1)


@pytest.fixture(scope="module")
def digits():
    return torch.as_tensor(load_digits().data / 8 - 1)


@pytest.fixture(scope="module")
def memorised(digits):
    """The digits' own optimal denoiser as the teacher."""
    return explained_by(FiniteSetDenoiser(digits, VE()), digits, SIGMAS, (10, 40), probe=digits[::8])


@pytest.fixture(scope="module")
def generalising(digits):
    """A smooth teacher of one half of the digits, asked about the other half."""
    return explained_by(fit_mixture(digits[::2], 20, VE()), digits[1::2], SIGMAS, probe=digits[::8])


def test_every_refinement_explains_more(memorised):
    names = ["mean", "isotropic", "gaussian", "10 components", "40 components", "data points"]
    assert list(memorised.values) == names
    for i, sigma in enumerate(SIGMAS):
        column = [memorised.values[name][i] for name in names]
        assert column == sorted(column) and column[-1] == pytest.approx(1, abs=1e-12), sigma
    for values in memorised.values.values():
        assert list(values)[:-1] == sorted(values[:-1], reverse=True), "less noise is harder, but for the points themselves"
    assert memorised.values["gaussian"][0] > 0.9999 and memorised.values["gaussian"][2] < 0.95
    assert memorised.best(1.0) == "data points"


def test_of_a_teacher_that_generalises_the_points_explain_least_at_low_noise(generalising):
    values = generalising.values
    assert values["data points"][0] > values["gaussian"][0]
    for i in (3, 4):
        assert values["gaussian"][i] > values["data points"][i] + 0.1
    assert values["data points"][4] < 0
    for i in (1, 2, 3):
        assert values["10 components"][i] > max(values["gaussian"][i], values["data points"][i])
    assert generalising.best(0.5) == "10 components"


def test_directions_cut_off_without_a_remainder_fail_at_low_noise_alone(digits):
    full, reference = GaussianDenoiser.from_data(digits, VE()), fit_mixture(digits, 20, VE())
    kept = GaussianDenoiser.from_data(digits, VE(), 20)
    cut = GaussianDenoiser(full.mean, full.U[:, :20], full.eigenvalues[:20], 0.0, VE())

    def explained(model):
        return explained_variance(model, reference, digits[::8], [5.0, 0.1], torch.Generator().manual_seed(0)).tolist()

    high, low = zip(*(explained(model) for model in (full, kept, cut)), strict=True)
    assert max(high) - min(high) < 1e-4
    assert low[0] > low[1] > 0 > low[2]


def test_values_are_those_of_the_models_one_by_one(digits, memorised):
    gaussian, reference = GaussianDenoiser.from_data(digits, VE()), FiniteSetDenoiser(digits, VE())
    one = explained_variance(gaussian, reference, digits[::8], SIGMAS, torch.Generator().manual_seed(0))
    assert memorised.values["gaussian"] == tuple(one.tolist())


def test_noise_levels_are_ratios_in_every_process(digits, memorised):
    flow = RectifiedFlow()
    found = explained_by(FiniteSetDenoiser(digits, flow), digits, (1.0,), (), probe=digits[::8])
    assert found.values["gaussian"][0] == pytest.approx(memorised.values["gaussian"][2], rel=1e-9)


def test_the_reference_alone_sees_the_condition(digits):
    labels = torch.as_tensor(load_digits().target)
    teacher = FiniteSetDenoiser(digits, VE(), labels=labels)
    found = explained_by(teacher, digits, (2.0,), (), cond={"label": labels})
    assert found.values["gaussian"][0] < 0.99


def test_table_and_json(generalising):
    lines = generalising.table().splitlines()
    assert len(lines) == 6 and len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["score", *(word for s in SIGMAS for word in ("sigma", f"{s:g}"))]
    assert float(lines[3].split()[1]) == pytest.approx(generalising.values["gaussian"][0], abs=1e-6)
    assert json.loads(json.dumps(generalising.to_dict()))["values"]["mean"] == list(generalising.values["mean"])


def test_errors(digits):
    with pytest.raises(LimbeckError, match=r"cannot make 9 clusters of 5 samples; choose 1..5"):
        explained_by(FiniteSetDenoiser(digits, VE()), digits[:5], (1.0,), (9,))
