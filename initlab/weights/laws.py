"""What a scheme's weights should look like: the density of the entries, and the singular values.

Entries are iid, or follow from an orthogonal matrix; both have laws that need no simulation. A new
scheme gets its law by one entry in ``DENSITIES``; without one, no curve is drawn over the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from initlab.schemes import CUT_STD, Fans, Scheme, halved

Density = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class WeightLaw:
    """The distribution of one entry: points that hold a share of them, a density for the rest.

    Attributes:
        atoms: (value, share) of each value that entries take exactly; shares add up to at most 1.
        density: of the entries that are at no atom (its integral is 1); None where all are.
        support: where the density is above 0, or to five standard deviations of a normal.
    """

    atoms: tuple[tuple[float, float], ...] = ()
    density: Density | None = None
    support: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Ensemble:
    """What is known of the weights of one map: its scheme, fans, and the entries' mean and std."""

    scheme: Scheme
    fans: Fans
    mean: float
    std: float

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix view: outputs × inputs·taps."""
        return self.fans.rows, round(self.fans.fan_in)


# ---------------------------------------------------------------- the entries


def weight_law(ensemble: Ensemble) -> WeightLaw | None:
    """The law of one entry; None where the scheme has none in ``DENSITIES``.

    >>> from initlab import scheme
    >>> law = weight_law(Ensemble(scheme("uniform", low=-1, high=1), Fans(4, 4, 1, 4), 0, 3**-0.5))
    >>> law.density(np.array([0.0, 2.0])).round(3).tolist()
    [0.5, 0.0]
    """
    if ensemble.scheme.ensemble == "constant" or ensemble.std == 0:
        return WeightLaw(atoms=((ensemble.mean, 1.0),))
    law = DENSITIES.get(ensemble.scheme.name)
    return law and law(ensemble)


def _uniform(ensemble: Ensemble) -> WeightLaw:
    half = math.sqrt(3) * ensemble.std
    low, high = ensemble.mean - half, ensemble.mean + half
    return WeightLaw((), lambda w: ((w >= low) & (w <= high)) / (high - low), (low, high))


def _normal(ensemble: Ensemble) -> WeightLaw:
    return _cut_normal(ensemble.mean, ensemble.std, -math.inf, math.inf)


def _cut_normal(mean: float, std: float, low: float, high: float) -> WeightLaw:
    """N(mean, std²) cut to [low, high] (absolute)."""

    def below(w: float) -> float:
        return math.erfc((mean - w) / (math.sqrt(2) * std)) / 2

    scale = std * math.sqrt(2 * math.pi) * (below(high) - below(low))

    def density(w: np.ndarray) -> np.ndarray:
        return ((w >= low) & (w <= high)) * np.exp(-(((w - mean) / std) ** 2) / 2) / scale

    return WeightLaw((), density, (max(low, mean - 5 * std), min(high, mean + 5 * std)))


def _truncated(ensemble: Ensemble) -> WeightLaw:
    values = ensemble.scheme.values
    return _cut_normal(values["mean"], values["std"], values["a"], values["b"])


def _variance_scaling(ensemble: Ensemble) -> WeightLaw:
    distribution = ensemble.scheme.values["distribution"]
    if distribution != "truncated_normal":
        return (_uniform if distribution == "uniform" else _normal)(ensemble)
    wide = ensemble.std / CUT_STD
    return _cut_normal(0.0, wide, -2 * wide, 2 * wide)


def _entry_of_orthogonal(gain: float, size: int) -> WeightLaw:
    """An entry of gain times a uniformly random unit vector of this size.

    Its density is (1 − (w/g)²)^((size − 3)/2), normalized: nearly N(0, g²/size) where size is
    large, U(±g) for 3, and ±g for 1.
    """
    if size == 1:
        return WeightLaw(atoms=((-gain, 0.5), (gain, 0.5)))
    log_beta = math.lgamma(0.5) + math.lgamma((size - 1) / 2) - math.lgamma(size / 2)

    def density(w: np.ndarray) -> np.ndarray:
        inside = np.clip(1 - (w / gain) ** 2, 0, None)
        with np.errstate(divide="ignore"):  # of size 2 it is infinite at both ends
            height = np.exp((size - 3) / 2 * np.log(inside) - log_beta) / gain
        return np.where(inside > 0, height, 0.0)

    reach = min(gain, 5 * gain / math.sqrt(size))
    return WeightLaw((), density, (-reach, reach))


def _orthogonal(ensemble: Ensemble) -> WeightLaw:
    return _entry_of_orthogonal(ensemble.fans.gain, max(ensemble.shape))


def _delta_orthogonal(ensemble: Ensemble) -> WeightLaw:
    fans = ensemble.fans
    centre = _entry_of_orthogonal(fans.gain, max(fans.rows, round(fans.columns)))
    return _beside_zeros(centre, 1 - 1 / fans.taps)


def _looks_linear(ensemble: Ensemble) -> WeightLaw:
    return _entry_of_orthogonal(ensemble.fans.gain, max(_block(ensemble)))


def _sparse(ensemble: Ensemble) -> WeightLaw:
    rows, values = ensemble.fans.rows, ensemble.scheme.values
    zeros = math.ceil(values["sparsity"] * rows) / rows
    others = _cut_normal(0.0, values["std"], -math.inf, math.inf)
    return _beside_zeros(others, zeros)


def _diagonal(ensemble: Ensemble) -> WeightLaw:
    fans = ensemble.fans
    ones = min(fans.rows, fans.columns) / (fans.rows * fans.fan_in)
    return WeightLaw(atoms=((fans.gain, ones), (0.0, 1 - ones))[: 2 if ones < 1 else 1])


def _beside_zeros(law: WeightLaw, zeros: float) -> WeightLaw:
    """The law of entries of which this share is exactly 0."""
    if zeros == 0:
        return law
    others = tuple((value, share * (1 - zeros)) for value, share in law.atoms)
    return WeightLaw((*others, (0.0, zeros)), law.density, law.support)


DENSITIES: Mapping[str, Callable[[Ensemble], WeightLaw]] = MappingProxyType(
    {
        **dict.fromkeys(
            ("uniform", "fan_in_uniform", "xavier_uniform", "kaiming_uniform", "lecun_uniform",
             "pytorch_default", "siren"),
            _uniform,
        ),
        **dict.fromkeys(
            ("normal", "xavier_normal", "kaiming_normal", "lecun_normal", "dropout_corrected",
             "critical"),
            _normal,
        ),
        "trunc_normal": _truncated,
        "variance_scaling": _variance_scaling,
        "orthogonal": _orthogonal,
        "delta_orthogonal": _delta_orthogonal,
        "looks_linear": _looks_linear,
        "sparse": _sparse,
        "identity": _diagonal,
        "dirac": _diagonal,
    }
)  # fmt: skip
"""Scheme → the law of its entries; those of constant schemes are all at one value."""


# ---------------------------------------------------------------- the singular values


def singular_value_law(ensemble: Ensemble, maps: int = 1) -> tuple[str, np.ndarray] | None:
    """The singular values of the matrix view, from large to small, and the name of their law.

    Args:
        ensemble: what is known of one map.
        maps: how many independent maps (groups of a convolution) there are; theirs are pooled.

    Returns:
        The law's name and ``maps`` times min(rows, columns) values; None where none is known.
    """
    own = ensemble.scheme
    law = _STRUCTURED.get(own.name) if own.ensemble == "structured" else _SPECTRA[own.ensemble]
    if law is None:
        return None
    name, values = law(ensemble, maps)
    return name, np.sort(values)[::-1]


Spectrum = tuple[str, np.ndarray]


def _independent(ensemble: Ensemble, maps: int) -> Spectrum:
    """Marchenko & Pastur 1967; a mean stands out as one large value per map.

    Benaych-Georges & Nadakuditi 2012: noise of std σ lifts a singular value θ of the mean to
    √((θ² + σ²m)(θ² + σ²n))/θ, and hides it below σ(mn)^¼.
    """
    rows, columns = ensemble.shape
    bulk = ensemble.std * marchenko_pastur(rows, columns, maps * min(rows, columns))
    theta, noise = abs(ensemble.mean) * math.sqrt(rows * columns), ensemble.std**2
    if theta**4 <= noise**2 * rows * columns:
        return "Marchenko–Pastur", bulk
    outlier = math.sqrt((theta**2 + noise * rows) * (theta**2 + noise * columns)) / theta
    return "Marchenko–Pastur, and the mean", np.concatenate([[outlier] * maps, bulk[maps:]])


def marchenko_pastur(rows: int, columns: int, count: int) -> np.ndarray:
    """``count`` equally likely singular values of a matrix with iid entries of variance 1.

    With y = min/max of the sizes, λ = s²/max = 1 + y − 2√y cos θ has the density
    2 sin²θ/(πλ) in θ, smooth where that of λ has infinite slopes.

    >>> values = marchenko_pastur(400, 100, 1000)  # between √400 − √100 and √400 + √100
    >>> round(values[0]), round(values[-1])
    (30, 10)
    """
    small, large = sorted((rows, columns))
    ratio = small / large
    edges = np.linspace(0, np.pi, 4097)
    theta = (edges[1:] + edges[:-1]) / 2
    mass = np.sin(theta) ** 2 / (1 + ratio - 2 * math.sqrt(ratio) * np.cos(theta))
    below = np.concatenate([[0.0], np.cumsum(mass)]) / mass.sum()
    chances = (np.arange(count, 0, -1) - 0.5) / count
    at = np.interp(chances, below, edges)
    return np.sqrt(large * (1 + ratio - 2 * math.sqrt(ratio) * np.cos(at)))


def _all_equal(ensemble: Ensemble, maps: int) -> Spectrum:
    return "all equal", np.full(maps * min(ensemble.shape), ensemble.fans.gain)


def _rank_one(ensemble: Ensemble, maps: int) -> Spectrum:
    rows, columns = ensemble.shape
    return "rank one", _some(abs(ensemble.mean) * math.sqrt(rows * columns), 1, ensemble, maps)


def _equal_or_zero(ensemble: Ensemble, maps: int) -> Spectrum:
    """One tap holds an identity or orthogonal matrix, so that its smaller size is the rank."""
    fans = ensemble.fans
    rank = min(fans.rows, round(fans.columns))
    return "equal or 0", _some(fans.gain, rank, ensemble, maps)


def _mirrored(ensemble: Ensemble, maps: int) -> Spectrum:
    """Each mirroring multiplies those of the block Q by √2, and adds as many zeros."""
    rows, columns = _block(ensemble)
    doubled = (ensemble.shape[0] // rows) * (ensemble.shape[1] // columns)
    value = ensemble.fans.gain * math.sqrt(doubled)
    return "equal or 0", _some(value, min(rows, columns), ensemble, maps)


def _block(ensemble: Ensemble) -> tuple[int, int]:
    """The shape of the orthogonal block that looks_linear mirrors."""
    return halved(*ensemble.shape, ensemble.scheme.values["mirror"])


def _some(value: float, rank: int, ensemble: Ensemble, maps: int) -> np.ndarray:
    values = np.zeros((maps, min(ensemble.shape)))
    values[:, :rank] = value
    return values.ravel()


_SPECTRA: Mapping[str, Callable[[Ensemble, int], Spectrum]] = MappingProxyType(
    {"iid": _independent, "orthogonal": _all_equal, "constant": _rank_one}
)
_STRUCTURED: Mapping[str, Callable[[Ensemble, int], Spectrum]] = MappingProxyType(
    {
        "identity": _equal_or_zero,
        "dirac": _equal_or_zero,
        "delta_orthogonal": _equal_or_zero,
        "looks_linear": _mirrored,
    }
)
