"""Settings of all tests: equal hypothesis examples in every run, and one thread.

Networks this small take longer on two threads, several times so where others use the machine.
"""

import torch
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")
torch.set_num_threads(1)
