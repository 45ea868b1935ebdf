"""The weights of one layer: as a scheme draws them, and as they should come out.

``layer`` is one layer and the scheme that draws it, as plain values, and what was drawn; ``laws``
are the densities and singular values that theory expects.
"""

from initlab.weights.laws import WeightLaw
from initlab.weights.layer import LAYER_KINDS, DrawnLayer, LayerDraw

__all__ = ["LAYER_KINDS", "DrawnLayer", "LayerDraw", "WeightLaw"]
