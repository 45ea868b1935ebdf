"""What imports of initlab cost over `import torch`: fresh interpreters, in turn.

`import initlab` alone is lazy and loads not even torch, so the names that bring it along are timed
as well.
"""

import statistics
import subprocess
import sys

ROUNDS = 15
STATEMENTS = (
    "import torch",
    "import initlab",
    "from initlab import Experiment, init_, trace",
    "from initlab import SignalExplorer",
)
TIMED = """
import time
start = time.perf_counter()
{statement}
print(time.perf_counter() - start)
"""


def seconds(statement: str) -> float:
    command = [sys.executable, "-c", TIMED.format(statement=statement)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    for statement in STATEMENTS:
        seconds(statement)  # fills the bytecode and disk caches
    rounds = [
        {statement: seconds(statement) for statement in STATEMENTS[:: 1 if turn % 2 else -1]}
        for turn in range(ROUNDS)
    ]
    print(f"median of {ROUNDS} rounds; aim: at most 1.15 without a widget")
    print(f"{'':46}{'ms':>6}  / torch")
    for statement in STATEMENTS:
        taken = statistics.median(each[statement] for each in rounds)
        ratio = statistics.median(each[statement] / each["import torch"] for each in rounds)
        print(f"{statement:46}{1000 * taken:6.0f}{ratio:9.2f}")


if __name__ == "__main__":
    main()
