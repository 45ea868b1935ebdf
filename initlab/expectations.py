"""Gaussian expectations by quadrature: of one normal variable, and of correlated pairs.

Both split their panels where a function has kinks and refine around them, so that piecewise smooth
functions are integrated to eight digits or more without sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Integrands = Callable[[np.ndarray], np.ndarray]
"""Maps x of shape (n,) to the values of k functions there, of shape (k, n), all float64."""

_ORDER = 24
_ENDS = np.array([-1 + 1e-9, 1 - 1e-9])  # just inside a panel, so that a kink at its edge is none
_REACH = 13.0  # beyond 13 standard deviations a Gaussian weighs less than 1e-37
_ROUNDS = 30
_MOST_PANELS = 4096


def _gauss_legendre() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes and weights of a panel, and the map from values at the nodes to what is unresolved.

    That is the 3 highest Legendre coefficients, and what the interpolating polynomial misses at
    either end, where no Gauss node would see a kink; it weighs as much as the part without nodes.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_ORDER)
    degrees = np.arange(_ORDER)
    to_coefficients = weights[:, None] * np.polynomial.legendre.legvander(nodes, _ORDER - 1)
    to_coefficients *= (2 * degrees + 1) / 2
    at_ends = np.polynomial.legendre.legvander(_ENDS, _ORDER - 1)
    missed = np.concatenate([-to_coefficients @ at_ends.T, np.eye(2)]) * (1 - nodes[-1])
    tail = np.concatenate([to_coefficients[:, -3:], np.zeros((2, 3))])
    return (
        np.concatenate([nodes, _ENDS]),
        np.concatenate([weights, [0, 0]]),
        np.concatenate([tail, missed], axis=1),
    )


_NODES, _WEIGHTS, _UNRESOLVED = _gauss_legendre()


def gaussian_expectation(
    integrands: Integrands, q: float, kinks: tuple[float, ...] = ()
) -> np.ndarray:
    """E f(x) for x ~ N(0, q) and each of the k functions f, by adaptive Gauss-Legendre panels.

    Args:
        integrands: maps x of shape (n,) to values of shape (k, n), float64.
        q: variance of x, above 0.
        kinks: points where a function or its derivative jumps; others are found by bisection.

    Returns:
        Array of shape (k,).
    """
    scale = math.sqrt(q)
    edges = _panel_edges(scale, kinks)
    low, high = edges[:-1], edges[1:]
    total: np.ndarray | float = 0.0
    size: Any = None
    for last in (*[False] * _ROUNDS, True):
        half = (high - low) / 2
        z = (low + half)[:, None] + half[:, None] * _NODES
        density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        with np.errstate(over="ignore", invalid="ignore"):  # beyond floats: inf or nan
            values = integrands((scale * z).ravel()).reshape(-1, *z.shape) * density
            parts = (values @ _WEIGHTS) * half
            rough = np.abs(values @ _UNRESOLVED).max(axis=-1) * half
        if size is None:
            size = np.abs(parts).sum(axis=1)
        bad = (rough > 1e-14 * (size[:, None] + np.finfo(float).tiny)).any(axis=0)
        bad &= (high - low) > 1e-13 * np.maximum(np.abs(low), np.abs(high))
        if last or not bad.any() or bad.sum() > _MOST_PANELS:
            return total + parts.sum(axis=1)
        total = total + parts[:, ~bad].sum(axis=1)
        middle = (low[bad] + high[bad]) / 2
        low, high = np.concatenate([low[bad], middle]), np.concatenate([middle, high[bad]])
    raise AssertionError("unreachable: the last round returns")


def _panel_edges(scale: float, kinks: tuple[float, ...]) -> np.ndarray:
    """Panel edges in z: unit steps, the kinks, and steps that double away from the kinks.

    The doubling resolves what φ does on its own scale of x = scale·z when scale is huge.
    """
    edges = set(np.arange(-_REACH, _REACH + 1))
    for kink in {0.0, *kinks}:
        step = 0.5
        edges.add(kink / scale)
        while scale > 1 and step < scale:
            edges |= {(kink - step) / scale, (kink + step) / scale}
            step *= 2
    return np.array(sorted(edge for edge in edges if abs(edge) <= _REACH))


def hermite_coefficients(
    integrands: Integrands, q: float, degree: int, kinks: tuple[float, ...] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """E f(√q z)·h_n(z) for each function f and normalized Hermite polynomial h_n, n = 0 … degree.

    For z, z' of correlation c, E f(√q z) g(√q z') is the sum of their products times cⁿ (Mehler).

    Returns:
        The coefficients, of shape (k, degree + 1), and E f_i f_j, of shape (k, k).
    """
    scale = math.sqrt(q)
    edges = _panel_edges(scale, kinks)
    half = np.diff(edges)[:, None] / 2
    inside = slice(0, _ORDER)
    z = (edges[:-1, None] + half + half * _NODES[inside]).ravel()
    weight = (half * _WEIGHTS[inside]).ravel() * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    with np.errstate(over="ignore", invalid="ignore"):
        values = integrands(scale * z)
        weighted = values * weight
        products = weighted @ values.T
    polynomials = [np.ones_like(z), z]
    for n in range(1, degree):
        following = (z * polynomials[n] - math.sqrt(n) * polynomials[n - 1]) / math.sqrt(n + 1)
        polynomials.append(following)
    return weighted @ np.stack(polynomials[: degree + 1], axis=1), products


# ---------------------------------------------------------------- correlated pairs

_PAIR_REACH = 7.0
_PAIR_STEP = 2.0
_SMOOTH_STEP = 3.5  # where the functions have no kinks and vary on a scale of 1 or more
_PAIR_NODES, _PAIR_WEIGHTS = np.polynomial.legendre.leggauss(10)
_FINEST = 1e-6  # a narrower feature weighs nothing, and a panel edge lies on it already
_LINEAR_BELOW = 1e-11  # a pair this close differs by φ' times its distance, to 1e-5 or better


def pair_expectation(
    integrands: Integrands, q: float, decorrelation: float, kinks: tuple[float, ...] = ()
) -> tuple[np.ndarray, float]:
    """E f_i(u) f_j(v) for u, v ~ N(0, q) of correlation c, and how far f_0(u), f_0(v) are apart.

    With a shared part y and own parts z, u = √q (√c y + √(1−c) z), the expectation is that of
    the product of the inner means over z; so is the gap E f_0² − E f_0(u) f_0(v), which is the mean
    over y of the variance over z and therefore keeps its digits however close c is to 1.

    Args:
        integrands: k functions.
        q: variance of u and of v, above 0.
        decorrelation: 1 − c, in [0, 2].
        kinks: points where a function or its derivative jumps.

    Returns:
        The products, of shape (k, k), and the gap (nan where ``decorrelation`` is below 1e-11:
        there it is q·(1−c)·E f_0'²).
    """
    opposite = decorrelation > 1
    own = 2 - decorrelation if opposite else decorrelation
    shared_scale, own_scale = math.sqrt(1 - own), math.sqrt(own)
    points = {0.0, *kinks, *((-kink for kink in kinks) if opposite else ())}
    features = [point / math.sqrt(q) for point in sorted(points)]
    # A kink is blurred by the own parts; what is merely steep varies on the scale 1/√q.
    blur = own_scale if kinks else max(own_scale, 1 / math.sqrt(q))
    step = _PAIR_STEP if kinks or q > 1 else _SMOOTH_STEP
    if shared_scale == 0:
        y, weight_y = np.zeros(1), np.ones(1)
    else:
        centres = [np.array(feature / shared_scale) for feature in features]
        y, weight_y = _pair_panels(centres, blur / shared_scale, step, split=False)
    if own_scale == 0:
        z, weight_z = np.zeros((len(y), 1)), np.ones((len(y), 1))
    else:
        centres = [(feature - shared_scale * y) / own_scale for feature in features]
        sharpness = 1 / math.sqrt(q) / own_scale
        z, weight_z = _pair_panels(centres, sharpness, step, split=bool(kinks))
    x = math.sqrt(q) * (shared_scale * y[:, None] + own_scale * z)
    with np.errstate(over="ignore", invalid="ignore"):  # beyond floats: inf or nan
        values = integrands(x.ravel()).reshape(-1, *x.shape)
        inner = (values * weight_z).sum(axis=-1)
        partner = inner[:, ::-1] if opposite else inner
        products = (inner * weight_y) @ partner.T
    if opposite:
        gap = float(((values[0] ** 2 * weight_z).sum(axis=-1) * weight_y).sum() - products[0, 0])
    elif decorrelation < _LINEAR_BELOW:
        gap = math.nan
    else:
        apart = values[0] - inner[0][:, None]
        gap = float(((apart**2 * weight_z).sum(axis=-1) * weight_y).sum())
    return products, gap


def _pair_panels(
    centres: list[np.ndarray], width: float, step: float, *, split: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and Gaussian weights along the last axis, refined around each centre down to width.

    ``split`` puts a panel edge on the centres themselves even where no refinement is needed.
    """
    width = max(width, _FINEST)
    offsets = [0.0] if split or width < step / 2 else []
    while width < step / 2:
        offsets += [width, -width]
        width *= 2
    shape = centres[0].shape
    base = np.arange(-_PAIR_REACH, _PAIR_REACH + step / 2, step)
    refined = [centre[..., None] + np.array(offsets) for centre in centres if offsets]
    edges = np.concatenate([np.broadcast_to(base, (*shape, len(base))), *refined], axis=-1)
    edges = np.sort(np.clip(edges, -_PAIR_REACH, _PAIR_REACH), axis=-1)
    low, high = edges[..., :-1, None], edges[..., 1:, None]
    half = (high - low) / 2
    nodes = low + half + half * _PAIR_NODES
    weights = half * _PAIR_WEIGHTS * np.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi)
    return nodes.reshape(*shape, -1), weights.reshape(*shape, -1)
