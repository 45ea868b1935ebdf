"""The inputs to explore with."""

import pytest
import torch
from sklearn.datasets import load_digits

from initlab import digits, noise
from initlab.data import CLASSES, DATA, DIGITS, batch


def test_noise_is_standard_normal():
    """10⁶ draws: s.e. of the mean 1e-3, of the variance √2·1e-3, of the kurtosis √24·1e-3."""
    inputs = noise(1000, 1000).inputs.double()
    assert abs(inputs.mean()) < 5e-3
    assert abs(inputs.var() - 1) < 5 * 2**0.5 * 1e-3
    assert abs((inputs**4).mean() - 3) < 5 * 96**0.5 * 1e-3


def test_noise_has_the_shape_asked_for_and_no_labels():
    made = noise(4, 3, 8, 8)
    assert made.inputs.shape == (4, 3, 8, 8)
    assert made.inputs.dtype == torch.float32
    assert made.labels is None


def test_a_seed_decides_the_noise_and_torchs_global_state_is_left_alone():
    state = torch.random.get_rng_state()
    assert torch.equal(noise(5, 7, seed=3).inputs, noise(5, 7, seed=3).inputs)
    assert not torch.equal(noise(5, 7, seed=3).inputs, noise(5, 7, seed=4).inputs)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_all_digits_together_are_standardized():
    every = digits(DIGITS)
    assert abs(every.inputs.double().mean()) < 1e-6
    assert every.inputs.double().square().mean() == pytest.approx(1, abs=1e-6)


def test_digits_are_the_real_ones_with_their_labels():
    pixels, labels = load_digits(return_X_y=True)
    chosen = digits(50, seed=1)
    restored = chosen.inputs.double() * pixels.std() + pixels.mean()
    index = {tuple(row): label for row, label in zip(pixels, labels, strict=True)}
    for row, label in zip(restored.round(), chosen.labels, strict=True):
        assert index[tuple(row.tolist())] == int(label)


def test_a_batch_of_digits_holds_no_digit_twice():
    every = digits(DIGITS)
    assert len(torch.unique(every.inputs, dim=0)) == len(
        torch.unique(torch.from_numpy(load_digits().data), dim=0)
    )
    assert sorted(set(every.labels.tolist())) == list(range(CLASSES))


def test_digits_as_images_are_the_same_digits():
    flat, images = digits(6, seed=2), digits(6, images=True, seed=2)
    assert images.inputs.shape == (6, 1, 8, 8)
    assert torch.equal(images.inputs.flatten(1), flat.inputs)
    assert torch.equal(images.labels, flat.labels)


def test_a_seed_chooses_the_digits_and_torchs_global_state_is_left_alone():
    state = torch.random.get_rng_state()
    assert torch.equal(digits(9, seed=5).inputs, digits(9, seed=5).inputs)
    assert not torch.equal(digits(9, seed=5).inputs, digits(9, seed=6).inputs)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_writing_into_a_batch_does_not_change_the_next():
    first = digits(3).inputs
    kept = first.clone()
    first.zero_()
    assert torch.equal(digits(3).inputs, kept)


@pytest.mark.parametrize("size", [0, -3])
@pytest.mark.parametrize("make", [digits, lambda size: noise(size, 4)])
def test_an_empty_batch_is_refused(make, size):
    with pytest.raises(ValueError, match=f"batch_size={size} must be"):
        make(size)


@pytest.mark.parametrize("size", [2.5, "many", None, True])
def test_a_batch_size_that_is_no_whole_number_is_refused(size):
    with pytest.raises(TypeError, match=r"batch_size=.* must be a whole number"):
        noise(size, 4)


def test_more_digits_than_there_are_is_refused():
    with pytest.raises(ValueError, match="batch_size=1798 must be between 1 and 1,797"):
        digits(1798)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("images", [False, True])
def test_every_kind_of_data_comes_as_vectors_and_as_images(name, images):
    inputs = batch(name, 5, images=images, features=3, seed=0).inputs
    if name == "noise":
        assert inputs.shape == ((5, 3, 8, 8) if images else (5, 3))
    else:
        assert inputs.shape == ((5, 1, 8, 8) if images else (5, 64))


def test_unknown_data_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="unknown data 'nois'; did you mean 'noise'"):
        batch("nois", 5, images=False, features=3, seed=0)


@pytest.mark.parametrize("make", [digits, lambda size, seed: noise(size, 4, seed=seed)])
def test_a_seed_that_is_no_whole_number_is_refused(make):
    with pytest.raises(TypeError, match="seed='lucky' must be a whole number"):
        make(5, seed="lucky")


def test_a_size_of_noise_below_1_is_refused():
    with pytest.raises(ValueError, match=r"shape\[1\]=-1 must be at least 1"):
        noise(5, 4, -1)
