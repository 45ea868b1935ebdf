"""Matplotlib drawings, each drawable once and updatable in place.

``curves`` draws traces and predictions layer by layer; ``weights`` the weights of one layer;
``numbers`` is how numbers are written, beside them and wherever explorers say them.
"""

from initlab.plots.curves import (
    BLACK,
    BLUE,
    HEALTHY,
    ORANGE,
    QUANTITIES,
    SKY,
    VIEWS,
    Curve,
    Panel,
    Picture,
    Stamp,
    View,
    curve,
    nice_depth,
    output_gradient,
    plot,
    theory_curve,
    unit_curves,
)
from initlab.plots.numbers import digits, power, power_of_ten, size
from initlab.plots.weights import WeightPicture

__all__ = [
    "BLACK", "BLUE", "HEALTHY", "ORANGE", "QUANTITIES", "SKY", "VIEWS", "Curve",
    "Panel", "Picture", "Stamp", "View", "WeightPicture", "curve", "digits",
    "nice_depth", "output_gradient", "plot", "power", "power_of_ten", "size",
    "theory_curve", "unit_curves",
]  # fmt: skip
