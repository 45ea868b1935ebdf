"""How far one draw of the weights strays from the mean field, layer by layer (see
``theory.finite_width``), and with it the gradients.

Here, and only here, a prediction depends on the width itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

from initlab.prediction.propagation import (
    Affine,
    Gradient,
    GradientStep,
    Step,
    gradient_shares,
)
from initlab.theory import (
    GapScatter,
    Image,
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


class Scatters(NamedTuple):
    """Of a layer's pre-activations, of its activations and of what tells samples apart before them;
    None where that is not followed."""

    before: Scatter | None
    after: Scatter | None
    across: LengthLaw | None = None


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
        signal, phi = self.step.varying, self.step.phi
        assert phi is not None
        q, (low, high) = signal.second_moment, _RANGE
        return Layer(
            phi,
            self.layer.outputs,
            min(max(q, low), high),
            signal.decorrelation,
            self.layer.rigidity(q),
            self.layer.keep,
            self.image,
        )

    @cached_property
    def image(self) -> Image | None:
        """The positions of a convolution."""
        return Image(self.step.before.lengths.shape[-1]) if self.layer.border else None

    @property
    def positions(self) -> int:
        return self.image.positions if self.image else 1

    @cached_property
    def before(self) -> Scatter | None:
        """The scatter of the pre-activations' mean square."""
        if self.kernel is None:
            return None
        signal = self.step.varying
        rigid = self.layer.rigidity(signal.second_moment)
        units = self.kernel.over_units(
            self.layer.outputs,
            signal.decorrelation,
            rigid,
            self.step.offset**2 / signal.second_moment,
        )
        return units.over_positions(self.positions)

    @cached_property
    def after(self) -> Scatter | None:
        """The scatter of the activations' mean square."""
        return None if self.activated is None else self.activated.over_positions(self.positions)

    @cached_property
    def activated(self) -> Scatter | None:
        """The same of each position of an image."""
        return None if self.kernel is None else activated(self.kernel, self.at)

    @cached_property
    def across(self) -> LengthLaw | None:
        """The law of the pre-activations' variance across samples, relative to the mean field's."""
        signal = self.step.varying
        if self.kernel is None or self.gap is None or not signal.across_samples_var:
            return None
        rigid = self.layer.rigidity(signal.second_moment)
        shared = signal.second_moment * (1 - signal.decorrelation) / signal.across_samples_var
        return self.gap.law(self.kernel, shared, self.layer.outputs, rigid)

    @property
    def scatters(self) -> Scatters:
        after = None if self.step.phi is None else self.after
        return Scatters(self.before, after, self.across)

    @cached_property
    def slopes(self) -> SlopeScatter | None:
        """What φ' adds to the scatter of a gradient; None where no scatter is followed."""
        if self.step.phi is None or self.kernel is None:
            return None
        return slope_scatter(self.kernel, self.at)

    @cached_property
    def response(self) -> tuple[float, float]:
        """What scattered lengths do to ln E φ'²; see ``Layer.response``."""
        if self.step.phi is None or self.kernel is None:
            return 0.0, 0.0
        return self.at.response(self.kernel, self.kernel.own)


@lru_cache(maxsize=8192)
def first_draw(scatter: Scatter | None, gap: GapScatter | None, step: Step, layer: Affine) -> Draw:
    """The first layer, which reads inputs of this scatter."""
    q = step.varying.second_moment
    if scatter is None or not q > 0:
        return Draw(step, layer, None, gap)
    share = 1 - layer.bias_var / q
    kernel = replace(
        scatter,
        single=share**2 * scatter.single,
        angle=share**2 * scatter.angle,
        common=share**2 * scatter.common,
    )
    return Draw(step, layer, kernel, gap)


@lru_cache(maxsize=8192)
def next_draw(draw: Draw, step: Step, layer: Affine) -> Draw:
    """The layer that reads another's activations."""
    below, factor = draw.step, layer.flow.factor
    if (
        draw.kernel is None
        or draw.activated is None
        or below.read is None
        or not step.varying.second_moment > 0
    ):
        return Draw(step, layer, None, None)
    at = draw.at
    if not 0 < factor * at.phi.moments(at.q).second_moment < math.inf:
        return Draw(step, layer, None, None)
    bias_var = layer.bias_var * at.q / below.varying.second_moment
    kernel = advanced(draw.kernel, draw.activated, at, factor, bias_var)
    if not math.isfinite(kernel.single + kernel.pair + kernel.shift):
        return Draw(step, layer, None, None)
    if draw.gap is None or draw.slopes is None:
        return Draw(step, layer, kernel, None)
    response, _ = draw.response
    gap = parted(draw.gap, draw.kernel, at, draw.slopes, response,
                 carried=below.carried, masked=below.masked, passed=step.passed)  # fmt: skip
    return Draw(step, layer, kernel, gap)


# ---------------------------------------------------------------- gradients


def backward(
    draws: Sequence[Draw], likeness: float, drawn: int, parted: bool
) -> tuple[list[GradientStep], Gradient]:
    """The gradients of every layer, from the first on, and that of the input.

    Args:
        draws: the layers from the input on.
        likeness: the mean square cosine between two samples' gradients at the output.
        drawn: of how many normal numbers a sample's gradient at the output is made, at each
            position; 0 where it is the unit of all others.
        parted: whether the lengths on which the gradients depend have no law.
    """
    rows: list[GradientStep] = []
    shares = gradient_shares(tuple(draw.step for draw in draws))
    scatter = below = Scatter(single=math.log1p(2 / drawn) if drawn else 0.0, angle=likeness)
    size = 1.0
    rigid = 1.0  # relative to the output's gradient, the output's own draw does not scatter
    followed = all(draw.kernel is not None for draw in draws)
    # Behind an average over the image the gradients of its positions are one.
    positions = draws[-1].positions
    drifts = _drifts(draws) if followed else [(0.0, 0.0, 0.0)] * (len(draws) + 1)

    def gradient(at: Scatter, drift: tuple[float, float, float]) -> Gradient:
        if parted:
            return Gradient(size, Scatter(single=math.inf))
        if not followed:
            return Gradient(size, None)
        single, pair = max(at.single + drift[0], 0.0), max(at.pair + drift[1], 0.0)
        total = Scatter(single, pair, at.shift + drift[2], at.angle)
        return Gradient(size, total.over_positions(positions))

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


def weights_share(below: Step, above: Step) -> float:
    """The share of a layer's length that its weights make, the rest being the bias."""
    read, length = below.read, above.varying.second_moment
    return above.flow.factor * read.second_moment / length if read and length > 0 else 0.0


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
    reach = single = pair = shift = 0.0
    for index in range(len(draws) - 1, -1, -1):
        draw, here, passed = draws[index], draws[index].kernel or Scatter(), 0.0
        if index + 1 < len(draws):
            new, passed = draws[index + 1].kernel or Scatter(), draws[index + 1].step.passed
            single += reach**2 * max(new.single - passed**2 * here.single, 0.0)
            pair += reach**2 * max(new.pair - passed**2 * here.pair, 0.0)
            # The units that make the layers above longer are those that pass the gradient here.
            of_one, of_two = draw.slopes.with_length if draw.slopes else (0.0, 0.0)
            share = weights_share(draw.step, draws[index + 1].step)
            single += 2 * reach * share * of_one
            pair += 2 * reach * share * of_two
        response, offset = draw.response
        reach, shift = passed * reach + response, shift + offset
        rows.append((reach**2 * here.single + single, reach**2 * here.pair + pair, shift))
    return rows[::-1]
