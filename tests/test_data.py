import pytest
import torch

from initlab import digits, noise


def test_the_digits_have_unit_second_moment_over_the_whole_set():
    inputs = digits(1797).inputs.double()
    assert float(inputs.mean()) == pytest.approx(0, abs=1e-6)
    assert float(inputs.square().mean()) == pytest.approx(1, abs=1e-6)


def test_a_batch_of_digits_repeats_no_image_and_keeps_its_labels():
    from sklearn.datasets import load_digits

    batch = digits(300, seed=1)
    assert len(torch.unique(batch.inputs, dim=0)) == 300
    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels - pixels.mean()) / pixels.std()
    table = torch.cdist(batch.inputs.double(), torch.from_numpy(pixels)).argmin(1)
    assert torch.equal(batch.labels, torch.from_numpy(labels)[table])
    assert digits(3, images=True).inputs.shape == (3, 1, 8, 8)


def test_noise_is_standard_normal_and_repeatable():
    inputs = noise(1000, 64, seed=2).inputs
    assert float(inputs.square().mean()) == pytest.approx(1, abs=5 * (2 / 64_000) ** 0.5)
    assert torch.equal(inputs, noise(1000, 64, seed=2).inputs)


def test_a_batch_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="batch_size=1798"):
        digits(1798)
    with pytest.raises(ValueError, match="batch_size=0"):
        noise(0, 3)
