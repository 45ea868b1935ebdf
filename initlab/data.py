"""The inputs to explore with: unit Gaussian noise and scikit-learn's handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from initlab.errors import positive_int, seed_number, unknown_name

DataName = Literal["noise", "digits"]
DATA: tuple[DataName, ...] = get_args(DataName)

DIGITS = 1797
CLASSES = 10


@dataclass(frozen=True)
class Batch:
    """Inputs of shape (batch, …) and, where there are labels, integers of shape (batch,)."""

    inputs: Tensor
    labels: Tensor | None = None


def noise(batch_size: int, *shape: int, seed: int = 0) -> Batch:
    """Independent N(0, 1) inputs of shape (batch_size, *shape).

    >>> tuple(noise(4, 3).inputs.shape)
    (4, 3)
    """
    positive_int("batch_size", batch_size)
    for dimension, size in enumerate(shape):
        positive_int(f"shape[{dimension}]", size)
    generator = torch.Generator().manual_seed(seed_number(seed))
    return Batch(torch.randn(batch_size, *shape, generator=generator))


def digits(batch_size: int, *, images: bool = False, seed: int = 0) -> Batch:
    """A random batch, without repeats, of the 1,797 digits of UCI's optical recognition set.

    Pixels are standardized by one mean and one standard deviation over the whole set, so that
    E[x²] = 1 over the set while the images keep their contrast.

    Args:
        batch_size: 1 to 1797.
        images: shape (batch, 1, 8, 8) instead of (batch, 64).
        seed: chooses the batch.

    >>> tuple(digits(5, images=True).inputs.shape)
    (5, 1, 8, 8)
    """
    positive_int("batch_size", batch_size, at_most=DIGITS)
    generator = torch.Generator().manual_seed(seed_number(seed))
    pixels, labels = _standardized_digits()
    chosen = torch.randperm(DIGITS, generator=generator)[:batch_size]
    inputs = pixels[chosen]
    return Batch(inputs.reshape(-1, 1, 8, 8) if images else inputs, labels[chosen])


@lru_cache(maxsize=1)
def _standardized_digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(pixels)
    pixels = (pixels - pixels.mean()) / pixels.std(correction=0)
    return pixels.float(), torch.from_numpy(labels).long()


def batch(name: str, batch_size: int, *, images: bool, features: int, seed: int) -> Batch:
    """The batch that an experiment feeds its network.

    ``features`` is the number of noise features, or of noise channels of 8×8 where ``images``.
    """
    if name == "noise":
        return noise(batch_size, *((features, 8, 8) if images else (features,)), seed=seed)
    if name == "digits":
        return digits(batch_size, images=images, seed=seed)
    raise unknown_name("data", name, DATA)
