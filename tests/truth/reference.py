"""The reference tables, computed outside initlab with mpmath and an independent simulation.

``reference.json`` holds one table a line; each says by which method it was made.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def table(name: str) -> list[dict[str, Any]]:
    """The entries of one table."""
    return json.loads(Path(__file__).with_name("reference.json").read_text())[name]["entries"]


def entry_id(entry: dict[str, Any]) -> str:
    """What pytest calls the entry."""
    return entry["id"]
