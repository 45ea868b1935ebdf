"""How the weights of a layer should be drawn, given the activation that it reads."""

from __future__ import annotations

import math
from dataclasses import dataclass

from initlab.activations import ACTIVATIONS, Activation


@dataclass(frozen=True)
class Draw:
    """How to draw the weights of a layer: gain²/fan_in is their variance.

    ``activation`` is set where the gain is that activation's own. ``centred`` weights have rows
    that sum to 0, so that the mean of what they read does not pass: h = W·(φ − E φ). ``omega`` is
    the ω of the sin(ω·z) that reads the layer, and ``position`` where it stands, for "siren".
    """

    scheme: str
    gain: float
    activation: str | None = None
    centred: bool = False
    omega: float | None = None
    position: str = "hidden"


PLAIN = Draw("lecun_normal", 1.0)
"""For what is of unit variance already: inputs, normalized signals, residual streams."""

LOGITS = Draw("lecun_normal", 0.1)
"""For the last layer of a classifier: logits near 0 start the loss at log C, whatever the layers
below do to the scale (Goyal et al. 2017, sec. 5.1, draw them with a standard deviation of 0.01)."""


def draw_after(phi: Activation | None) -> Draw:
    """The draw that keeps signal and gradient of layers that read this activation.

    - Positively homogeneous (relu, leaky relu): 1/√(E φ²), which keeps both (He et al. 2015).
    - Two tails (tanh, sigmoid): 1/φ'(0) on centred weights, the edge of chaos, where the gradient
      neither grows nor decays exponentially (Schoenholz et al. 2017). For sigmoid that is the
      factor 4 of Glorot and Bengio (2010).
    - A mean that outweighs its variation (softplus): 1/√(Var φ) on centred weights.
    - All others (gelu, silu, elu): 1/√(E φ²).

    >>> from initlab.activations import ACTIVATIONS
    >>> draw = draw_after(ACTIVATIONS["sigmoid"])
    >>> draw.scheme, draw.gain, draw.centred
    ('lecun_normal', 4.0, True)
    """
    if phi is None or phi.name == "identity":
        return PLAIN
    moments = phi.moments(1.0)
    if not moments.variance > 0:  # constant: no weights make it pass a signal
        return PLAIN
    centred = moments.mean**2 > moments.second_moment / 2
    slope = phi.moments(0.0).derivative_second_moment
    if phi.tails is not None and all(map(math.isfinite, phi.tails)) and slope > 0:
        return Draw("lecun_normal", 1 / math.sqrt(slope), centred=centred)
    if centred:
        return Draw("lecun_normal", 1 / math.sqrt(moments.variance), centred=True)
    has_name = ACTIVATIONS.get(phi.name) is phi  # a slope of one's own has none
    gain = 1 / math.sqrt(moments.second_moment)
    return Draw("kaiming_normal", gain, phi.name if has_name else None)


def draw_before_sine(omega: float, fan_in: float, *, is_first: bool) -> Draw:
    """The draw of a SIREN (Sitzmann et al. 2020, sec. 3.2), whose sine reads ω times the layer.

    Hidden layers read sines of mean square 1/2: a variance of 2/(ω²·fan_in) makes ω·z of variance
    1. First layers spread their inputs over several periods on purpose.

    >>> draw_before_sine(30.0, 64, is_first=False).gain * 30 / 2**0.5
    1.0
    """
    if is_first:
        return Draw("siren", 1 / math.sqrt(3 * fan_in), omega=omega, position="first")
    return Draw("siren", math.sqrt(2) / omega, omega=omega)


def right_gains(phi: Activation | None) -> tuple[float, float]:
    """The smallest and the largest gain that are right for layers that read this activation.

    They lie between the edge of chaos and 1/√(E φ²): for tanh between 1 and 1.59. Of layers that
    read no activation, between 1 and the √2 that is customary in front of relu as well.
    """
    draw = draw_after(phi)
    if phi is None or draw is PLAIN:
        return 1.0, math.sqrt(2)
    forward = 1 / math.sqrt(phi.moments(1.0).second_moment)
    return min(draw.gain, forward), max(draw.gain, forward)
