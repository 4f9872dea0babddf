import hashlib
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import sklearn.datasets
import torch

from limbeck.errors import LimbeckError
from limbeck.metrics import frechet_distance, frechet_distance_of_moments, moments
from limbeck.tasks import DigitFeatures, digit_split, load_digit_features, load_digits
from limbeck.tasks.digit_features import FEATURES_FILE

RECORD = json.loads(FEATURES_FILE.with_suffix(".json").read_text())
SCRIPT = Path(__file__).parents[2] / "scripts" / "make_digit_features.py"


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def net():
    return load_digit_features()


@pytest.fixture(scope="module")
def features(net, digits):
    return net.features(digits[0])


def script():
    spec = importlib.util.spec_from_file_location("make_digit_features", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_digits_are_scikit_learns_in_minus_one_to_one(digits):
    images, labels = digits
    source = sklearn.datasets.load_digits()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32 and labels.dtype == torch.int64
    np.testing.assert_array_equal(8 * (images[:, 0] + 1), source.images)
    np.testing.assert_array_equal(labels, source.target)
    assert images.min() == -1 and images.max() == 1


def test_the_split_is_a_stratified_partition(digits):
    labels = digits[1]
    train, held_out = digit_split(labels)
    assert len(train) == 1437 and len(held_out) == RECORD["held_out"] == 360
    assert torch.cat([train, held_out]).sort().values.equal(torch.arange(1797))
    expected = labels.bincount() * 360 / 1797
    assert ((labels[held_out].bincount() - expected).abs() < 1).all()


def test_held_out_accuracy_is_the_recorded_one(net, digits):
    images, labels = digits
    held_out = digit_split(labels)[1]
    accuracy = (net.logits(images[held_out]).argmax(1) == labels[held_out]).double().mean().item()
    assert accuracy == pytest.approx(RECORD["held_out_accuracy"], abs=1e-12)
    assert accuracy >= 0.97


def test_features_are_whitened_on_the_real_digits(features):
    assert features.shape == (1797, 32) and features.dtype == torch.float64
    mean, covariance = moments(features)
    assert mean.abs().max() < 1e-9
    assert (covariance - torch.eye(32)).abs().max() < 1e-9


def test_the_net_is_frozen_but_differentiable_in_the_image(net, digits):
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    x = digits[0][:1].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: net.features(x)[:, :2], x)


def test_weights_are_stored_in_single_precision():
    tensors = safetensors.torch.load_file(FEATURES_FILE)
    wide = {name for name, tensor in tensors.items() if tensor.dtype == torch.float64}
    assert wide == {"mean", "whitening"}
    assert FEATURES_FILE.stat().st_size < 100_000


def test_frechet_distances_are_small_between_real_halves_and_large_for_what_is_not_a_digit(net, digits, features):
    images, labels = digits
    # Every second digit of each class.
    order = torch.cat([torch.nonzero(labels == label)[:, 0] for label in range(10)])
    halves = frechet_distance(features[order[::2]], features[order[1::2]])
    generator = torch.Generator().manual_seed(0)
    noise = frechet_distance(net.features(torch.randn(1797, 1, 8, 8, generator=generator)), features)
    # A Gaussian of the digits' own pixel moments has their mean and covariance, and no digit's shape.
    mean, covariance = moments(images)
    values, vectors = torch.linalg.eigh(covariance)
    pixels = mean + torch.randn(1797, 64, generator=generator).double() * values.clamp(min=0).sqrt() @ vectors.T
    gaussian = frechet_distance(net.features(pixels.reshape(-1, 1, 8, 8)), features)
    assert halves < 0.7 and gaussian > 8 * halves and noise > 40 * halves


def test_the_frechet_distance_sees_each_missing_class(features, digits):
    labels = digits[1]
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    for label in range(10):
        rest = labels != label
        fewer = frechet_distance(features[order[: int(rest.sum())]], features)
        assert frechet_distance(features[rest], features) > 20 * fewer


def test_the_frechet_distance_grows_with_a_distortion(net, digits, features):
    images = digits[0]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    distances = [frechet_distance(net.features(images + s * noise), features) for s in (0.1, 0.2, 0.4, 0.8)]
    assert distances == sorted(distances) and distances[0] < 0.1 and distances[-1] > 3


def test_the_recorded_floor_is_that_of_four_samples_per_digit(features, digits):
    labels, generator = digits[1], torch.Generator().manual_seed(1)
    reference, values = moments(features), []
    for _ in range(15):
        drawn = [
            rows[torch.randint(len(rows), (4 * len(rows),), generator=generator)]
            for rows in (features[labels == label] for label in range(10))
        ]
        values.append(frechet_distance_of_moments(moments(torch.cat(drawn)), reference))
    assert np.median(values) == pytest.approx(RECORD["frechet_floor_of_7188"], rel=0.05)


@pytest.mark.parametrize("place", [100, -1, 50_000])
def test_a_flipped_bit_is_found(tmp_path, place):
    file = tmp_path / FEATURES_FILE.name
    shutil.copy(FEATURES_FILE.with_suffix(".json"), file.with_suffix(".json"))
    content = bytearray(FEATURES_FILE.read_bytes())
    file.write_bytes(content)
    assert RECORD["sha256"] == hashlib.sha256(content).hexdigest()
    load_digit_features(file)
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(LimbeckError, match=f"recorded is {RECORD['sha256']}"):
        load_digit_features(file)


def test_missing_files_and_wrong_images_are_named(tmp_path, net):
    with pytest.raises(LimbeckError, match=r"x\.safetensors is missing"):
        load_digit_features(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(LimbeckError, match=r"x\.json is missing"):
        load_digit_features(tmp_path / "x.safetensors")
    for call in (net.features, net.logits):
        with pytest.raises(LimbeckError, match=r"images have shape \(2, 8, 8\)"):
            call(torch.zeros(2, 8, 8))


@pytest.mark.slow
def test_the_script_rebuilds_the_net():
    rebuilt, accuracy = script().make()
    assert accuracy == pytest.approx(RECORD["held_out_accuracy"], abs=1e-12)
    shipped = load_digit_features().state_dict()
    for name, tensor in rebuilt.state_dict().items():
        torch.testing.assert_close(tensor, shipped[name], rtol=1e-4, atol=1e-5)


def test_training_is_deterministic_and_leaves_the_global_generator_alone(digits):
    module = script()
    module.EPOCHS = 1
    images, labels = digits[0][:128], digits[1][:128]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = module.train(images, labels, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = (module.train(images, labels, seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_whitening_rounds_the_weights_and_fits_any_net(digits):
    torch.manual_seed(0)
    net = DigitFeatures().requires_grad_(False)
    script().whiten(net, digits[0])
    assert all(torch.equal(p, p.float().double()) for p in net.parameters())
    mean, covariance = moments(net.features(digits[0]))
    assert mean.abs().max() < 1e-6 and (covariance - torch.eye(32)).abs().max() < 1e-6
