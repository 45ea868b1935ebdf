"""Mean-field facts about (activation, sigma_w, sigma_b): how second moments travel through depth.

In a wide network with independent zero-mean weights of variance sigma_w²/fan_in and biases of
variance sigma_b², the pre-activations are Gaussian, and one number per layer, q = E h², says how
large they are (Poole et al. 2016; Schoenholz et al. 2017). Everything here is plain floats.
"""

from __future__ import annotations

from torch import nn

from initlab.activations import Activation, ElementwiseFunction
from initlab.activations import activation as resolve
from initlab.errors import finite_number

ActivationSpec = str | nn.Module | ElementwiseFunction | Activation


def length_map(activation: ActivationSpec, q: float, sigma_w: float, sigma_b: float) -> float:
    """One step of q → sigma_w²·E φ²(√q z) + sigma_b², z ~ N(0, 1) (Poole et al. 2016, eq. 3).

    Raises:
        ValueError: q negative, or a number that is not finite. TypeError: not an activation.

    >>> round(length_map("relu", 1.0, 2**0.5, 0.0), 12)
    1.0
    """
    finite_number("sigma_w", sigma_w)
    finite_number("sigma_b", sigma_b)
    return sigma_w**2 * resolve(activation).moments(q).second_moment + sigma_b**2


def chi_1(activation: ActivationSpec, q: float, sigma_w: float) -> float:
    """sigma_w²·E φ'²(√q z): the factor by which a layer multiplies the gradient's second moment.

    Below 1 gradients vanish, above 1 they explode (Schoenholz et al. 2017, eq. 5).

    >>> round(chi_1("tanh", 0.0, 1.0), 12)
    1.0
    """
    finite_number("sigma_w", sigma_w)
    return sigma_w**2 * resolve(activation).moments(q).derivative_second_moment
