"""Models that take turns: what one search computes does not depend on the others."""

from itertools import zip_longest
from typing import Any, List

import numpy as np
import pytest
from served import SUDOKU, packaged, untrained

from mlx_trm.errors import ConfigError, DataError
from mlx_trm.serving.shelf import Shelf

OTHER = "..3. .... 2..1 .4.."
FIXED = {"halt": "fixed", "rollouts": 3, "steps": 3, "symmetries": True}


def test_turns_give_what_a_search_gives() -> None:
    """Two searches of one model, step by step in turn, equal each alone, to the bit."""
    served = packaged()
    solver, settings = served.solver, served.settings(FIXED)
    seen: List[List[Any]] = [[], []]

    def watcher(number: int) -> Any:
        return lambda place, rollout, tokens, q, sure: seen[number].append((rollout, q))

    searches = [
        solver.search_in_turns(puzzle, settings, watcher(number))
        for number, puzzle in enumerate((SUDOKU, OTHER))
    ]
    found: List[List[Any]] = [[], []]
    for turn in zip_longest(*searches, fillvalue=()):
        for results, ready in zip(found, turn):
            results += ready
    for puzzle, (result,), steps in zip((SUDOKU, OTHER), found, seen):
        (alone,) = solver.search([puzzle], settings)
        assert (result.answer, result.rollout, result.steps) == (alone.answer, alone.rollout, 9)
        assert result.probability == alone.probability and len(steps) == 9
        assert np.array_equal(result.confidence, alone.confidence)


def test_settings_begin_with_those_that_suit_the_model() -> None:
    served = packaged()
    assert (served.settings({}).halt, served.settings({}).rollouts) == ("rules", 8)
    changed = served.settings({"rollouts": 2, "steps": 3})
    assert (changed.halt, changed.rollouts, changed.steps) == ("rules", 2, 3)
    with pytest.raises(ConfigError, match="steps: 2056 in all rollouts together, at most 2048"):
        served.settings({"steps": 257})


def test_models_are_found_by_name_alone() -> None:
    shelf = Shelf([packaged])
    shelf.load()
    assert shelf.find("sudoku-4x4").summary.startswith("4x4")
    with pytest.raises(ConfigError, match="did you mean 'sudoku-4x4'"):
        shelf.find("sudoku-4x")


def test_a_name_of_several_puzzles_is_refused() -> None:
    """An ARC task with two test inputs: in a line that names them, not the first one of them."""
    served = untrained("arc", "arc_tiny.yaml")
    known = served.solver.task.known_tasks().by_name
    several = [name for name, tasks in known.items() if len(tasks) > 1]
    assert several, "the package's ARC tasks have one with several test inputs"
    with pytest.raises(DataError) as caught:
        served.read(several[0])
    assert f"{several[0]}:1, {several[0]}:2" in str(caught.value) and "\n" not in str(caught.value)
    assert served.read(f"{several[0]}:2").text == f"{several[0]}:2"
