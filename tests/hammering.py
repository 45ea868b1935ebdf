"""Several hands on one explorer at once."""

import threading
from collections.abc import Iterable
from typing import Any


def hammer(explorer: Any, **sequences: Iterable[Any]) -> None:
    """Give several controls their values in turn, each control on a thread of its own."""

    def move(name: str, values: Iterable[Any]) -> None:
        for value in values:
            explorer.controls[name].value = value

    threads = [threading.Thread(target=move, args=each) for each in sequences.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
