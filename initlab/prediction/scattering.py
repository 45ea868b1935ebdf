"""How far one draw of the weights strays from the mean field, layer by layer (see
``theory.finite_width``), and with it the gradients.

Here, and only here, a prediction depends on the width itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from initlab.activations import Activation
from initlab.prediction.propagation import (
    Affine,
    Gradient,
    GradientStep,
    Step,
    gradient_shares,
)
from initlab.theory import (
    GapScatter,
    Layer,
    LengthLaw,
    Scatter,
    SlopeScatter,
    activated,
    advanced,
    parted,
    passed_back,
    slope_scatter,
)

_RANGE = 1e-60, 1e60  # outside it E φ⁴ leaves float64; and there φ has no scale of its own


@dataclass(frozen=True, eq=False)
class Draw:
    """One layer of a network of given width.

    Attributes:
        step: the layer as every width has it.
        layer: the same, with its width.
        kernel: the scatter of the pre-activations' variance, from which the next layer's follows;
            None where no scatter is followed.
        gap: that of the variance across samples; None where that is not followed.
    """

    step: Step
    layer: Affine
    kernel: Scatter | None
    gap: GapScatter | None

    @cached_property
    def at(self) -> Layer:
        """The layer as its finite width sees it."""
        signal, phi = self.step.before, self.step.phi
        assert phi is not None
        q, (low, high) = signal.second_moment, _RANGE
        rigid, inside = self.layer.rigidity(q), min(max(q, low), high)
        return Layer(phi, self.layer.outputs, inside, signal.decorrelation, rigid, self.layer.keep)

    @cached_property
    def before(self) -> Scatter | None:
        """The scatter of the pre-activations' mean square."""
        if self.kernel is None:
            return None
        signal = self.step.before
        rigid = self.layer.rigidity(signal.second_moment)
        return self.kernel.over_units(self.layer.outputs, signal.decorrelation, rigid)

    @cached_property
    def after(self) -> Scatter | None:
        """The scatter of the activations' mean square."""
        return None if self.kernel is None else activated(self.kernel, self.at)

    @cached_property
    def across(self) -> LengthLaw | None:
        """The law of the pre-activations' variance across samples, relative to the mean field's."""
        signal = self.step.before
        if self.kernel is None or self.gap is None or not signal.across_samples_var:
            return None
        rigid = self.layer.rigidity(signal.second_moment)
        shared = signal.second_moment * (1 - signal.decorrelation) / signal.across_samples_var
        return self.gap.law(self.kernel, shared, self.layer.outputs, rigid)

    @cached_property
    def slopes(self) -> SlopeScatter | None:
        """What φ' adds to the scatter of a gradient; None where no scatter is followed."""
        if self.step.phi is None or self.kernel is None:
            return None
        return slope_scatter(self.kernel, self.at)

    @cached_property
    def response(self) -> tuple[float, float]:
        """What scattered lengths do to ln E φ'²: its change per ln q, and by how much its mean is
        off that at the mean-field length.

        Taken between one deviation below and one above, not at a point: over what a deep network
        scatters, E φ'² bends.
        """
        q, phi = self.step.before.second_moment, self.step.phi
        if phi is None or self.kernel is None or not q > 0:
            return 0.0, 0.0
        at, stray = math.log(q), math.sqrt(self.kernel.single) + 1e-3
        points = (at, at + self.kernel.shift - stray, at + self.kernel.shift + stray)
        here, low, high = (_log_slopes(phi, point) for point in points)
        return (high - low) / (2 * stray), (high + low) / 2 - here


@lru_cache(maxsize=8192)
def first_draw(scatter: Scatter | None, gap: GapScatter | None, step: Step, layer: Affine) -> Draw:
    """The first layer, which reads inputs of this scatter."""
    kept = scatter if step.before.second_moment > 0 else None
    return Draw(step, layer, kept, gap)


@lru_cache(maxsize=8192)
def next_draw(draw: Draw, step: Step, layer: Affine) -> Draw:
    """The layer that reads another's activations."""
    below, factor = draw.step, layer.flow.factor
    if draw.kernel is None or below.read is None or not step.before.second_moment > 0:
        return Draw(step, layer, None, None)
    at, following = draw.at, factor * below.read.second_moment + layer.bias_var
    next_q = following / below.before.second_moment * at.q
    if not 0 < next_q < math.inf:
        return Draw(step, layer, None, None)
    kernel = advanced(draw.kernel, at, factor, next_q)
    if not math.isfinite(kernel.single + kernel.pair + kernel.shift):
        return Draw(step, layer, None, None)
    if draw.gap is None or draw.slopes is None:
        return Draw(step, layer, kernel, None)
    response, _ = draw.response
    gap = parted(draw.gap, draw.kernel, at, draw.slopes, response,
                 carried=below.carried, masked=below.masked, passed=step.passed)  # fmt: skip
    return Draw(step, layer, kernel, gap)


def _log_slopes(phi: Activation, log_q: float) -> float:
    """ln E φ'² at one length, between knots that all networks share."""
    low, high = (math.log(end) for end in _RANGE)
    place = min(max(log_q, low), high) * _KNOTS
    below = math.floor(place)
    first, second = _log_slopes_at(phi, below), _log_slopes_at(phi, below + 1)
    return first + (place - below) * (second - first)


@lru_cache(maxsize=8192)
def _log_slopes_at(phi: Activation, knot: int) -> float:
    return math.log(max(phi.moments(math.exp(knot / _KNOTS)).derivative_second_moment, 1e-300))


_KNOTS = 8  # per e-fold of q


# ---------------------------------------------------------------- gradients


def backward(draws: Sequence[Draw], likeness: float) -> tuple[list[GradientStep], Gradient]:
    """The gradients of every layer, from the first on, and that of the input.

    Args:
        draws: the layers from the input on.
        likeness: the mean square cosine between two samples' gradients at the output.
    """
    rows: list[GradientStep] = []
    shares = gradient_shares(tuple(draw.step for draw in draws))
    size, scatter, below = 1.0, Scatter(angle=likeness), Scatter()
    rigid = 1.0  # relative to the output's gradient, the output's own draw does not scatter
    followed = all(draw.kernel is not None for draw in draws)
    drifts = _drifts(draws) if followed else [(0.0, 0.0, 0.0)] * (len(draws) + 1)

    def gradient(at: Scatter, drift: tuple[float, float, float]) -> Gradient:
        if not followed:
            return Gradient(size, None)
        single, pair, shift = at.single + drift[0], at.pair + drift[1], at.shift + drift[2]
        return Gradient(size, Scatter(single, pair, shift, at.angle))

    for index in range(len(draws) - 1, -1, -1):
        draw, share = draws[index], shares[index]
        after = read = None
        if share.slope is not None:
            read = gradient(below, drifts[index + 1])
            size /= draw.layer.keep
            after = gradient(below, drifts[index + 1])
            size *= share.slope
            if followed and draw.slopes is not None:
                scatter = passed_back(scatter, draw.slopes, rigid)
        rows.append(GradientStep(after, gradient(scatter, drifts[index]), read))
        size *= draw.layer.backward_factor * share.kept
        rigid = draw.layer.rigidity_below
        if followed:
            below = scatter.over_units(draw.layer.inputs, 1.0, rigid)
    return rows[::-1], gradient(below, drifts[0])


def _drifts(draws: Sequence[Draw]) -> list[tuple[float, float, float]]:
    """How much the scatter of the lengths adds to that of the gradient, at each layer and above.

    The gradient is a product over the layers of E φ'², each a function of that layer's length. The
    deviations of the lengths pass from layer to layer, so they add up before they are squared.
    Returns (single, pair) log-(co)variances and the shift of the mean logarithm at each layer, and
    zeros above the last.
    """
    rows = [(0.0, 0.0, 0.0)]
    phi = draws[0].step.phi
    if phi is None or phi.homogeneous:
        return rows * (len(draws) + 1)
    reach = fresh_single = fresh_pair = shift = 0.0
    for index in range(len(draws) - 1, -1, -1):
        here, passed = draws[index].kernel or Scatter(), 0.0
        if index + 1 < len(draws):
            new, passed = draws[index + 1].kernel or Scatter(), draws[index + 1].step.passed
            fresh_single += reach**2 * max(new.single - passed**2 * here.single, 0.0)
            fresh_pair += reach**2 * max(new.pair - passed**2 * here.pair, 0.0)
        response, offset = draws[index].response
        reach, shift = passed * reach + response, shift + offset
        single, pair = reach**2 * here.single + fresh_single, reach**2 * here.pair + fresh_pair
        rows.append((single, pair, shift))
    return rows[::-1]
