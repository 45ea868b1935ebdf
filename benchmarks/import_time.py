"""What `import initlab` costs over `import torch`: fresh interpreters, in pairs."""

import statistics
import subprocess
import sys

PAIRS = 15
TIMED_IMPORT = """
import time
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""


def import_seconds(module: str) -> float:
    command = [sys.executable, "-c", TIMED_IMPORT.format(module=module)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    for module in ("torch", "initlab"):
        import_seconds(module)  # fills the bytecode and disk caches
    pairs = []
    for turn in range(PAIRS):
        order = ("torch", "initlab") if turn % 2 else ("initlab", "torch")
        pairs.append({module: import_seconds(module) for module in order})

    for module in ("torch", "initlab"):
        seconds = statistics.median(pair[module] for pair in pairs)
        print(f"import {module:8} {1000 * seconds:5.0f} ms")
    ratio = statistics.median(pair["initlab"] / pair["torch"] for pair in pairs)
    print(f"initlab / torch  {ratio:5.2f}   (median of {PAIRS} pairs; aim: at most 1.15)")


if __name__ == "__main__":
    main()
