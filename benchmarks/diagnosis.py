"""How often diagnose() is right: the confusion table of a bench of models with planted faults.

Run with ``python benchmarks/diagnosis.py``. The models and the faults are those of
``tests/bench_models.py``; the limits of diagnose() are derived in its own documentation and are not
fitted to them. The seeds here are others than those of the tests. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import torch

from initlab.diagnosis import FAULTS

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from bench_models import CASES, Outcome, run  # type: ignore[import-not-found]

_SHORT = {
    "non_finite": "n.fin",
    "symmetry": "symm",
    "dead_units": "dead",
    "bias_dominated": "bias",
    "exploding_activations": "expl.a",
    "saturation": "satur",
    "vanishing_activations": "van.a",
    "vanishing_gradients": "van.g",
    "exploding_gradients": "expl.g",
    "rank_collapse": "rank",
    "wrong_initial_loss": "loss",
    "healthy": "none",
}


def table(outcomes: list[Outcome]) -> str:
    """Rows: what was planted. Columns: what was named first, and how many were placed and cured."""
    named = Counter((outcome.case.fault or "healthy", outcome.named) for outcome in outcomes)
    verdicts = ("healthy", *FAULTS)
    lines = [f"{'planted':22}" + "".join(f"{_SHORT[v]:>7}" for v in verdicts) + "  placed   cured"]
    for fault in verdicts:
        row = [outcome for outcome in outcomes if (outcome.case.fault or "healthy") == fault]
        counts = "".join(f"{named[fault, verdict] or '·':>7}" for verdict in verdicts)
        if fault == "healthy":
            lines.append(f"{fault:22}{counts}")
            continue
        placed, cured = (sum(flags) for flags in zip(*map(_flags, row), strict=True))
        lines.append(f"{fault:22}{counts}{placed:>5}/{len(row):<3}{cured:>4}/{len(row):<3}")
    return "\n".join(lines)


def _flags(outcome: Outcome) -> tuple[bool, bool]:
    return outcome.is_placed, outcome.is_cured


def summary(outcomes: list[Outcome]) -> str:
    """The three shares that matter, in per cent."""
    planted = [outcome for outcome in outcomes if outcome.case.fault]
    healthy = [outcome for outcome in outcomes if not outcome.case.fault]
    return "\n".join(
        f"{100 * sum(flags) / len(flags):5.1f} % {what} ({sum(flags)} of {len(flags)})"
        for what, flags in (
            ("of the planted faults are named first", [o.is_right for o in planted]),
            ("are found to begin where they were planted", [o.is_placed for o in planted]),
            ("are cured by executing the remedy once", [o.is_cured for o in planted]),
            ("of the healthy models raise no alarm", [o.is_right for o in healthy]),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seeds", type=int, default=3, help="draws of every model")
    parser.add_argument("--first-seed", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    outcomes = [run(case, seed) for case in CASES for seed in seeds]
    took = time.perf_counter() - start
    print(f"{len(CASES)} models, {len(seeds)} draws of each, {took:.0f} s\n")
    print(table(outcomes), end="\n\n")
    print(summary(outcomes))
    for outcome in outcomes:
        if not outcome.is_right:
            print(f"  {outcome.case} (seed {outcome.seed}) was called {outcome.named}")


if __name__ == "__main__":
    main()
