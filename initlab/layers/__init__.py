"""The layers of a model: their parameters and true fans, and what surrounds them.

``slots`` knows what each parameter does in its layer; ``surroundings`` which activation a layer
reads or feeds, and which residual branch it is in.
"""

from initlab.layers.slots import (
    BIASES,
    LAYERS,
    WEIGHTS,
    Law,
    Slot,
    parts_of,
    quantized_layers,
    slots_of,
    why_untouchable,
)
from initlab.layers.surroundings import (
    Branch,
    Surroundings,
    branches_ending,
    in_sequential,
    in_trace,
)

__all__ = [
    "BIASES", "LAYERS", "WEIGHTS", "Branch", "Law", "Slot", "Surroundings", "branches_ending",
    "in_sequential", "in_trace", "parts_of", "quantized_layers", "slots_of", "why_untouchable",
]  # fmt: skip
