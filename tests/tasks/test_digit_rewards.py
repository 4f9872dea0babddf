"""Rewards on the digits: what they say of real digits, and that they can be followed."""

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.tasks import load_digits
from limbeck.tasks.digit_rewards import DIGIT_REWARDS, class_reward, even_reward, ink_reward, log_probabilities


def test_the_classifier_knows_digits_that_it_has_not_seen():
    images, labels = load_digits()
    right = (log_probabilities(images).argmax(1) == labels)[1::2]
    assert float(right.double().mean()) > 0.92
    torch.testing.assert_close(log_probabilities(images[:9].double()).exp().sum(1), torch.ones(9, dtype=torch.float64))


def test_rewards_say_what_their_names_say():
    images, labels = load_digits()
    even = even_reward(images)
    assert even.shape == labels.shape and float(even[labels % 2 == 0].mean()) > 0.8 > 0.2 > float(even[labels % 2 == 1].mean())
    right, wrong = (class_reward(images, {"label": (labels + shift) % 10}) for shift in (0, 1))
    assert float((right > wrong).double().mean()) > 0.95
    assert float(ink_reward(torch.ones(1, 1, 8, 8))) == 1.0
    with pytest.raises(LimbeckError, match="needs the label"):
        class_reward(images[:2])


@pytest.mark.parametrize("name", DIGIT_REWARDS)
def test_rewards_can_be_followed(name):
    x = torch.zeros(4, 1, 8, 8, requires_grad=True)
    cond = {"label": torch.arange(4)}
    before = DIGIT_REWARDS[name](x, cond)
    (gradient,) = torch.autograd.grad(before.sum(), x)
    after = DIGIT_REWARDS[name](x.detach() + 1e-2 * gradient, cond)
    assert bool((after > before.detach()).all())
