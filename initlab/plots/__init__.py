"""Matplotlib drawings, each drawable once and updatable in place.

``views`` is the table of what can be drawn; ``curves`` draws traces and predictions layer by
layer; ``weights`` the weights of one layer; ``numbers`` is how numbers are written, beside them and
wherever explorers say them.
"""

from initlab.plots.curves import (
    BLACK,
    BLUE,
    HEALTHY,
    MOST_ROWS,
    ORANGE,
    SKY,
    Curve,
    Panel,
    Picture,
    Stamp,
    curve,
    ghost,
    lines,
    nice_depth,
    output_gradient,
    plot,
    readout,
    theory_curve,
)
from initlab.plots.numbers import digits, power, power_of_ten, size
from initlab.plots.views import BESIDE_FORWARD, QUANTITIES, VIEWS, View
from initlab.plots.weights import WeightPicture

__all__ = [
    "BESIDE_FORWARD", "BLACK", "BLUE", "HEALTHY", "MOST_ROWS", "ORANGE", "QUANTITIES", "SKY",
    "VIEWS", "Curve", "Panel", "Picture", "Stamp", "View", "WeightPicture", "curve", "digits",
    "ghost", "lines", "nice_depth", "output_gradient", "plot", "power", "power_of_ten", "readout",
    "size", "theory_curve",
]  # fmt: skip
