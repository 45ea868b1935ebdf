"""init_(): which scheme reaches which parameter of which layer, and the report of it.

``initializing`` holds ``init_``, ``reach`` decides which tensor gets which scheme, or why it gets
none, and ``report`` is what is handed back.
"""

from initlab.initialize.initializing import BIASES, init_
from initlab.initialize.reach import check_choices, choose, resolve
from initlab.initialize.report import InitReport, InitRow

__all__ = ["BIASES", "InitReport", "InitRow", "check_choices", "choose", "init_", "resolve"]
