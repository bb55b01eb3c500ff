"""What a search is given: streams, samples, and settings that it refuses."""

from typing import Any, Iterator, List

import numpy as np
import pytest
from gambling import Gambler, gambling, small_puzzles
from scripted import FIRST, experiment, scripted_model, tiny_config, tiny_solver

import mlx_trm as trm
from mlx_trm.config.sections import TaskConfig, TaskSpec
from mlx_trm.errors import ConfigError, DataError
from mlx_trm.inference.search import Result, SearchSettings
from mlx_trm.inference.search.engine import WINDOW
from mlx_trm.inference.search.problems import dataset_problems, sample_problems
from mlx_trm.inference.solver import Solver
from mlx_trm.models import TRM
from mlx_trm.tasks import Task, build_task

TINY = tiny_config(H_cycles=1, L_cycles=1)


@pytest.fixture(name="puzzles", scope="module")
def fixture_puzzles() -> np.ndarray:
    """Two hundred 4x4 puzzles."""
    return small_puzzles(200)[0]


@pytest.fixture(name="tiny", scope="module")
def fixture_tiny() -> Solver:
    """A real model of random weights."""
    return tiny_solver(TINY)


# Streams -----------------------------------------------------------------------------------------


def test_a_stream_is_read_no_further_than_the_window(puzzles: Any) -> None:
    """Ten thousand puzzles: what is read ahead of the results is bounded, at every result."""
    read = 0
    solver = gambling(Gambler, small_puzzles(200))

    def stream() -> Iterator[np.ndarray]:
        nonlocal read
        for number in range(10_000):
            read += 1
            yield puzzles[number % len(puzzles)]

    most = 0
    for given, _ in enumerate(solver.search(stream(), halt="rules", steps=3, batch_size=4), 1):
        most = max(most, read - given)
        if given == 300:
            break
    assert most <= WINDOW * 4 and read <= 300 + WINDOW * 4


def test_results_come_as_soon_as_they_are_known(tiny: Solver, puzzles: Any) -> None:
    """The first batch's, before the second is computed."""
    read: List[int] = []
    results = tiny.search((read.append(i) or puzzles[i] for i in range(40)), batch_size=8)
    assert not read
    assert next(results).place == 0 and len(read) == 8


def test_a_puzzle_that_cannot_be_read_is_named(tiny: Solver) -> None:
    """After the results of those before it were computed, or at once."""
    with pytest.raises(DataError, match="^puzzle 2: the puzzle has 3 cells"):
        list(tiny.search([FIRST, "123"]))
    assert not list(tiny.search([]))


def test_a_sample_follows_from_seed_and_puzzles_alone() -> None:
    """Their order makes no difference, and a larger sample holds a smaller one."""
    config = experiment()
    config.task.test_puzzles = 200
    dataset = build_task(config.task).dataset("test")

    def drawn(count: int, seed: int, reverse: bool = False) -> List[bytes]:
        problems = list(dataset_problems(dataset))
        found = sample_problems(reversed(problems) if reverse else problems, count, seed)
        assert [each.place for each in found] == sorted(each.place for each in found)
        return [each.inputs.tobytes() for each in found]

    assert drawn(20, 0) == drawn(20, 0, reverse=True)
    assert set(drawn(20, 0)) < set(drawn(50, 0)) and drawn(20, 0) != drawn(20, 1)
    assert len(drawn(500, 0)) == 200


# What it refuses ---------------------------------------------------------------------------------


class NoRules(Task):
    """A task without rules and symmetries."""

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec(vocab_size=6, seq_len=16)

    def groups(self, split: str, rng: Any) -> Any:
        return []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"halt": "sometimes"}, "halt: .*sometimes"),
        ({"rollouts": 0}, "rollouts: .*at least 1"),
        ({"rollouts": 2.5}, "rollouts: expected a whole number"),
        ({"noise": -1.0}, "noise: .*at least 0"),
        ({"steps": 0}, "steps: .*at least 1"),
        ({"batch_size": 0}, "batch_size: .*at least 1"),
        ({"select": "best"}, "select: "),
        ({"select": "first_halt"}, "first_halt needs rollouts that halt"),
        ({"rollouts": 3, "start": "fixed"}, "rollouts: 3 runs would all be the same"),
        ({"rollouts": 3, "start": "model"}, "rollouts: 3 runs would all be the same"),
        ({"restarts": 3}, "no setting 'restarts'"),
    ],
)
def test_settings_that_cannot_be_used(tiny: Solver, changes: Any, message: str) -> None:
    """In one line, before any puzzle is read."""
    with pytest.raises(ConfigError, match=message) as caught:
        tiny.search([FIRST], **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"halt": "rules"}, "halt: the task plain has no rules"),
        ({"select": "rules"}, "select: the task plain has no rules"),
        ({"symmetries": True, "rollouts": 2}, "symmetries: the task plain names none"),
    ],
)
def test_what_a_task_does_not_have(changes: Any, message: str) -> None:
    """A task that neither checks nor turns its puzzles can still be searched by q."""
    config = experiment(TINY)
    task = NoRules(TaskConfig("plain"))
    solver = Solver(TRM(TINY, task.spec), config, task)
    with pytest.raises(ConfigError, match=message):
        solver.search([np.ones(16, np.uint8)], **changes)
    result = next(solver.search([np.ones(16, np.uint8)], rollouts=3, select="vote"))
    assert result.accepted is None and result.correct is None and result.rollouts == 3


def test_a_model_with_one_latent_has_no_random_start() -> None:
    """Only latents other than the answer's are drawn."""
    solver = Solver(scripted_model(), experiment())
    with pytest.raises(ConfigError, match="no latent but the answer's"):
        solver.search([FIRST], rollouts=2)
    assert next(solver.search([FIRST], rollouts=2, symmetries=True)).correct


def test_the_names_are_public() -> None:
    """What a user needs is in the package."""
    assert trm.SearchSettings is SearchSettings and trm.Result is Result
