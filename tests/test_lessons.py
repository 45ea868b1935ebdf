"""Lessons: every exercise has a hidden solution that its check calls right."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from initlab.lessons import EXERCISES, check

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def hidden_solutions() -> dict[str, str]:
    """Exercise → the code in the collapsed answer that follows its check cell."""
    found = {}
    for path in NOTEBOOKS:
        waiting = None
        for cell in json.loads(path.read_text())["cells"]:
            source = "".join(cell["source"])
            asked = re.search(r'check\("([^"]+)"', source)
            if cell["cell_type"] == "code" and asked:
                waiting = asked[1]
            answer = re.search(r"<details>.*?```python\n(.*?)```", source, re.DOTALL)
            if answer and waiting:
                found[waiting], waiting = answer[1], None
    return found


def test_every_exercise_is_asked_and_answered_in_a_notebook():
    assert set(hidden_solutions()) == set(EXERCISES)


@pytest.mark.parametrize("exercise", EXERCISES)
def test_the_hidden_solution_is_right(exercise, capsys):
    scope: dict = {}
    exec(hidden_solutions()[exercise], scope)
    check(exercise, scope["answer"])
    assert capsys.readouterr().out == f"{exercise}: right\n"


@pytest.mark.parametrize("exercise", EXERCISES)
@pytest.mark.parametrize(
    "answer",
    [-1, 0, 1e9, 10**400, True, 1j, "many", "", [1, 2], {}, object, float("nan"),
     torch.ones(2), np.ones(3)],
    ids=repr,
)  # fmt: skip
def test_a_wrong_answer_gets_one_line_and_no_traceback(exercise, answer, capsys):
    check(exercise, answer)
    out = capsys.readouterr().out
    assert out.startswith(f"{exercise}: not yet: ")
    assert out.count("\n") == 1


def test_near_misses_get_a_hint_of_their_own(capsys):
    check("01-std-for-relu", 0.05)
    check("01-std-for-relu", 0.005)
    check("01-overflow", 21)
    hints = capsys.readouterr().out.splitlines()
    assert "ReLU" in hints[0]
    assert "variance" in hints[1]
    assert "squares" in hints[2]


@pytest.mark.parametrize("answer", [np.float32(1), torch.tensor(1), torch.ones(1), 1.0])
def test_a_number_may_come_as_a_numpy_or_torch_scalar(answer, capsys):
    check("01-symmetry", answer)
    assert capsys.readouterr().out == "01-symmetry: right\n"


def test_notebooks_are_saved_with_their_exercises_unanswered():
    text = "".join(path.read_text() for path in NOTEBOOKS)
    assert all(f"{exercise}: not answered yet" in text for exercise in EXERCISES)


def test_no_answer_yet(capsys):
    check("01-symmetry", None)
    assert capsys.readouterr().out == "01-symmetry: not answered yet\n"


def test_an_unknown_exercise_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean '01-symmetry'"):
        check("01-symetry", 1)
