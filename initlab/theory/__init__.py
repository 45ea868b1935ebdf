"""What theory says of (activation, sigma_w, sigma_b), as plain functions of plain numbers.

``mean_field`` holds the maps of infinite width, their fixed points and what follows from them;
``finite_width`` how far one draw of the weights strays from them.
"""

from initlab.theory.finite_width import (
    GapScatter,
    Image,
    Layer,
    LengthLaw,
    Scatter,
    SlopeScatter,
    activated,
    advanced,
    diluted,
    inactive_fraction,
    parted,
    passed_back,
    relu_length_law,
    rigidity,
    slope_scatter,
)
from initlab.theory.mean_field import (
    ActivationSpec,
    DepthScales,
    FixedPoint,
    JacobianSpectrum,
    chi_1,
    correlation_fixed_point,
    correlation_map,
    critical_length,
    critical_sigma_w,
    depth_scales,
    edge_of_chaos,
    fixed_points,
    jacobian_spectrum,
    length_map,
    length_map_slope,
    padding_profile,
    residual_correlations,
    residual_lengths,
    settled_length,
)

__all__ = [
    "ActivationSpec", "DepthScales", "FixedPoint", "GapScatter", "Image", "JacobianSpectrum",
    "Layer", "LengthLaw", "Scatter", "SlopeScatter", "activated", "advanced", "chi_1",
    "correlation_fixed_point", "correlation_map", "critical_length", "critical_sigma_w",
    "depth_scales", "diluted", "edge_of_chaos", "fixed_points", "inactive_fraction",
    "jacobian_spectrum", "length_map", "length_map_slope", "padding_profile", "parted",
    "passed_back", "relu_length_law", "residual_correlations", "residual_lengths", "rigidity",
    "settled_length", "slope_scatter",
]  # fmt: skip
