"""The schemes: how weights are drawn, with formula, source, when to use it, and PyTorch code.

``catalogue`` is where to look first, and where a new scheme goes; ``structured`` holds those that
are not random everywhere, ``whole_model`` those that look at more than one tensor. ``entry`` says
what a scheme is.
"""

from initlab.schemes.catalogue import CUT_STD, SCHEMES, applicable, register_scheme, scheme
from initlab.schemes.entry import DTYPES, MODES, Fans, Mode, Parameter, Scheme, bias_code
from initlab.schemes.structured import halved
from initlab.schemes.whole_model import DrawnModel

__all__ = [
    "CUT_STD", "DTYPES", "MODES", "SCHEMES", "DrawnModel", "Fans", "Mode", "Parameter", "Scheme",
    "applicable", "bias_code", "halved", "register_scheme", "scheme",
]  # fmt: skip
