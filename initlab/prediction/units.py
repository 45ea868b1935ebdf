"""Moments of what an activation makes of a layer's units, of each sample and over pairs of them.

A unit is N(mean, variance) over the layer, of each sample; two samples' are correlated. In Hermite
coefficients E f(u)g(v) = Σ f_n·g_n·cⁿ (Mehler), here for all products of a few functions at once, a
quadrature for each sample and none for a pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from initlab.activations import Activation

(
    ONE, VALUE, SQUARE, CUBE, SLOPE, VALUE_SLOPE, SLOPE_SQUARE, VALUE_SLOPE_SQUARE,
    SQUARE_SLOPE_SQUARE,
) = range(9)  # fmt: skip
"""The functions: 1, φ, φ², φ³, φ', φφ', φ'², φφ'², φ²φ'², with φ in units of a scale."""

_REACH = 6.5  # in standard deviations
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)
_DEGREE = 12


@dataclass(frozen=True, eq=False)
class Pairs:
    """Which samples are compared; ``powers`` are those of the correlation of their units, from 0 to
    12 and, for what is left at 1, the 14th."""

    left: np.ndarray
    right: np.ndarray
    powers: np.ndarray


def pairs_of(left: np.ndarray, right: np.ndarray, c: np.ndarray, stray: np.ndarray) -> Pairs:
    """Pairs of correlation c, whose mean square distance from it is ``stray``."""
    way = np.minimum(np.sqrt(stray), np.minimum(1 - c, 1 + c))
    powers = np.repeat(np.stack([c + way, c - way])[:, :, None], _DEGREE + 3, axis=2)
    powers[:, :, 0] = 1.0
    powers = np.multiply.accumulate(powers, axis=2).mean(axis=0)
    return Pairs(left, right, np.delete(powers, _DEGREE + 1, axis=1))


@dataclass(frozen=True, eq=False)
class Units:
    """The moments of the k functions.

    Attributes:
        means: E f, of shape (samples, k).
        slopes: d E f / d mean and d E f / d variance, in units of the scale, (samples, k, 2).
        leaning: E f·z/2d and E f·(z/2d)² with z = (u − mean)/deviation and d the deviation in units
            of the scale, (samples, k, 2): what ∂u/∂variance makes of them.
        products: E f·g, (samples, k, k).
        shared: E f(u)g(v) of the left and the right sample of each pair, (pairs, k, k).
    """

    means: np.ndarray
    slopes: np.ndarray
    leaning: np.ndarray
    products: np.ndarray
    shared: np.ndarray


def units(
    phi: Activation, means: np.ndarray, deviations: np.ndarray, scales: np.ndarray, pairs: Pairs
) -> Units:
    """Of pre-activations whose means and deviations, and their φ, are relative to the scales."""
    z, weights = _quadrature(phi.kinks, means, deviations, scales)
    x = torch.from_numpy(scales[:, None] * (means[:, None] + deviations[:, None] * z))
    value, slope = phi.function(x).detach().numpy(), phi.derivative(x).numpy()
    functions = _functions(value / scales[:, None], slope)
    weighted = functions * weights[:, None]
    found = weighted @ _hermite(z)
    products = weighted @ functions.swapaxes(1, 2)
    rest = products - found @ found.swapaxes(1, 2)
    shared = (found[pairs.left] * pairs.powers[:, None, :-1]) @ found[pairs.right].swapaxes(1, 2)
    shared += pairs.powers[:, -1, None, None] * (rest[pairs.left] + rest[pairs.right]) / 2
    first, second = found[:, :, 1], found[:, :, 2] * math.sqrt(2)
    d = deviations[:, None]
    slopes = np.stack([first / d, second / (2 * d**2)], axis=-1)
    leaning = np.stack([first / (2 * d), (second + found[:, :, 0]) / (4 * d**2)], axis=-1)
    return Units(found[:, :, 0], slopes, leaning, products, shared)


def _functions(value: np.ndarray, slope: np.ndarray) -> np.ndarray:
    rows = np.empty((len(value), 9, value.shape[1]))
    rows[:, ONE] = 1.0
    rows[:, VALUE], rows[:, SLOPE] = value, slope
    np.multiply(value, value, out=rows[:, SQUARE])
    np.multiply(rows[:, SQUARE], value, out=rows[:, CUBE])
    np.multiply(value, slope, out=rows[:, VALUE_SLOPE])
    np.multiply(slope, slope, out=rows[:, SLOPE_SQUARE])
    np.multiply(rows[:, VALUE_SLOPE], slope, out=rows[:, VALUE_SLOPE_SQUARE])
    np.multiply(rows[:, VALUE_SLOPE], rows[:, VALUE_SLOPE], out=rows[:, SQUARE_SLOPE_SQUARE])
    return rows


def _quadrature(
    kinks: tuple[float, ...], means: np.ndarray, deviations: np.ndarray, scales: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes z and weights for each sample, split where x is 0 and at the kinks."""
    edges = np.empty((len(means), len({0.0, *kinks}) + 2))
    edges[:, 0], edges[:, -1] = -_REACH, _REACH
    for place, at in enumerate(sorted({0.0, *kinks}), start=1):
        edges[:, place] = ((at / scales - means) / deviations).clip(-_REACH, _REACH)
    half = np.diff(edges)[:, :, None] / 2
    z = (edges[:, :-1, None] + half + half * _NODES).reshape(len(means), -1)
    weights = (half * _WEIGHTS).reshape(len(means), -1) * np.exp(-(z**2) / 2)
    return z, weights / weights.sum(axis=1, keepdims=True)


def _hermite(z: np.ndarray) -> np.ndarray:
    """The normalized Hermite polynomials, along a last axis."""
    rows = np.empty((_DEGREE + 1, *z.shape))
    rows[0], rows[1] = 1.0, z
    for n in range(1, _DEGREE):
        np.multiply(z, rows[n], out=rows[n + 1])
        rows[n + 1] -= math.sqrt(n) * rows[n - 1]
        rows[n + 1] /= math.sqrt(n + 1)
    return np.moveaxis(rows, 0, -1)
