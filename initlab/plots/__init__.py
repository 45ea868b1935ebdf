"""Matplotlib drawings, each drawable once and updatable in place.

``curves`` draws traces and predictions layer by layer; ``weights`` the weights of one layer.
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
from initlab.plots.weights import WeightPicture

__all__ = [
    "BLACK", "BLUE", "HEALTHY", "ORANGE", "QUANTITIES", "SKY", "VIEWS", "Curve",
    "Panel", "Picture", "Stamp", "View", "WeightPicture", "curve",
    "nice_depth", "output_gradient", "plot", "theory_curve", "unit_curves",
]  # fmt: skip
