"""Solving: steps one at a time, what each says, and many puzzles side by side."""

import copy
import math
from pathlib import Path
from typing import Any, List, Tuple

import mlx.core as mx
import numpy as np
import pytest
from scripted import (
    FIRST,
    FIRST_SOLVED,
    SECOND,
    experiment,
    scripted_model,
    tiny_config,
    tiny_solver,
)

import mlx_trm as trm
from mlx_trm.config.sections import EvalConfig
from mlx_trm.errors import CheckpointError, ConfigError, DataError
from mlx_trm.inference.search.rows import Rows
from mlx_trm.inference.solver import Solver
from mlx_trm.models import TRM
from mlx_trm.models.carry import IGNORE_LABEL_ID, Batch
from mlx_trm.models.memory import _evaluation_row_bytes
from mlx_trm.runs.checkpoint import save_checkpoint
from mlx_trm.tasks import SudokuConfig, Task

TINY = tiny_config()


@pytest.fixture(name="scripted")
def fixture_scripted() -> Solver:
    """A solver with the scripted model."""
    return Solver(scripted_model(), experiment())


@pytest.fixture(name="tiny", scope="module")
def fixture_tiny() -> Solver:
    """A solver with a real model of random weights."""
    return tiny_solver(TINY)


def seen(solver: Solver) -> List[Tuple[int, bool]]:
    """What the scripted model was asked: rows, and whether it was in training mode."""
    return solver.model.seen


def test_each_step_says_what_the_answer_is(scripted: Solver) -> None:
    """Number, answer, belief, correctness by the rules, and cells changed since the step before."""
    found = list(scripted.steps(FIRST))
    assert [step.step for step in found] == [1, 2, 3, 4]
    assert [step.answer for step in found] == [
        FIRST_SOLVED[: 4 * k] + "1" * (16 - 4 * k) for k in (1, 2, 3, 4)
    ]
    beliefs = [1 / (1 + math.exp(-q)) for q in (-0.5, 0.5, 1.5, 2.5)]
    assert [step.halt_probability for step in found] == pytest.approx(beliefs)
    assert [step.correct for step in found] == [False, False, False, True]
    # Each of the rows 3421, 4312 and 2134 has one 1, which was there already.
    assert [step.changed for step in found[1:]] == [3, 3, 3]
    assert found[3].tokens.dtype == np.uint8
    assert found[3].tokens.tolist() == [int(c) + 1 for c in FIRST_SOLVED]


def test_the_first_step_is_compared_with_the_puzzle(scripted: Solver) -> None:
    """Of the answer 1243 1111 1111 1111 the first cell alone is as the puzzle has it."""
    assert next(scripted.steps(FIRST)).changed == 15


def test_steps_are_computed_when_asked_for(scripted: Solver) -> None:
    """Nothing before the first ``next``; one supervision step for each."""
    steps = scripted.steps(FIRST)
    assert not seen(scripted)
    next(steps)
    assert len(seen(scripted)) == 1
    next(steps)
    assert len(seen(scripted)) == 2


def test_stops_early_only_if_asked(scripted: Solver) -> None:
    """q_halt > 0 after step 2 of FIRST and step 3 of SECOND."""
    assert [s.step for s in scripted.steps(FIRST, stop_when_halted=True)] == [1, 2]
    assert [s.step for s in scripted.steps(SECOND, stop_when_halted=True)] == [1, 2, 3]
    assert scripted.solve(FIRST, stop_when_halted=True).step == 2
    assert scripted.solve(FIRST).step == 4


def test_number_of_steps(scripted: Solver) -> None:
    """The argument comes first, then eval.steps, then the model's halt_max_steps."""
    assert scripted.solve(FIRST).step == 4
    assert scripted.solve(FIRST, steps=6).step == 6
    solver = Solver(scripted.model, experiment(evaluation=EvalConfig(steps=3)), scripted.task)
    assert solver.solve(FIRST).step == 3
    assert solver.solve(FIRST, steps=1).step == 1


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused(scripted: Solver, steps: int) -> None:
    """At once, not when the first step is asked for."""
    with pytest.raises(ValueError, match="steps must be at least 1"):
        scripted.steps(FIRST, steps=steps)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        scripted.solve_many([FIRST], steps=steps)


def test_many_are_solved_as_one(scripted: Solver) -> None:
    """Every batch size gives what solving one by one gives, in the order given."""
    puzzles = [FIRST, SECOND, SECOND, FIRST, FIRST]
    for early in (False, True):
        expected = [scripted.solve(puzzle, stop_when_halted=early) for puzzle in puzzles]
        for size in (1, 2, 3, 64):
            found = scripted.solve_many(puzzles, batch_size=size, stop_when_halted=early)
            assert found == expected
            assert [f.tokens.tolist() for f in found] == [e.tokens.tolist() for e in expected]


def test_many_go_on_only_while_needed(scripted: Solver) -> None:
    """FIRST needs two steps until q_halt > 0, SECOND three."""
    scripted.solve_many([FIRST, FIRST], stop_when_halted=True)
    assert len(seen(scripted)) == 2
    seen(scripted).clear()
    found = scripted.solve_many([FIRST, SECOND], stop_when_halted=True)
    assert len(seen(scripted)) == 3
    assert [step.step for step in found] == [2, 3]
    assert [step.changed for step in found] == [3, 3]


def test_batches_have_one_shape(scripted: Solver) -> None:
    """So that they are compiled once; few puzzles are not filled up."""
    assert len(scripted.solve_many([FIRST] * 5, batch_size=2)) == 5
    assert {rows for rows, _ in seen(scripted)} == {2}
    seen(scripted).clear()
    scripted.solve_many([FIRST] * 3, batch_size=64)
    assert {rows for rows, _ in seen(scripted)} == {3}


def test_no_puzzles_have_no_answers(scripted: Solver) -> None:
    """And an impossible batch size is refused."""
    assert not scripted.solve_many([])
    with pytest.raises(ValueError, match="batch_size"):
        scripted.solve_many([FIRST], batch_size=0)


def test_the_mode_of_the_model_is_left_alone(scripted: Solver) -> None:
    """A model in training is used in evaluation mode, and is in training between the steps."""
    scripted.model.train()
    for _ in scripted.steps(FIRST, steps=2):
        assert scripted.model.training
    assert seen(scripted) == [(1, False), (1, False)]


def test_unreadable_puzzles_are_refused_at_once(scripted: Solver) -> None:
    """Before the first step; among several the message says which."""
    with pytest.raises(DataError):
        scripted.steps("12")
    with pytest.raises(DataError, match="^puzzle 2: "):
        scripted.solve_many([FIRST, "1..x............"])
    assert not seen(scripted)


def test_tokens_are_taken_as_text_is(scripted: Solver) -> None:
    """A row of whole numbers, of any kind, wherever a puzzle is taken; also mixed with text."""
    tokens = scripted.task.parse(FIRST)
    expected = list(scripted.steps(FIRST))
    for same in (tokens, tokens.astype(np.int64), tokens.tolist(), mx.array(tokens)):
        found = list(scripted.steps(same))
        assert found == expected and scripted.solve(same) == expected[-1]
        assert [f.tokens.tolist() for f in found] == [e.tokens.tolist() for e in expected]
    both = np.stack([tokens, scripted.task.parse(SECOND)])
    for many in (both, mx.array(both.astype(np.int32)), [FIRST, both[1]], [both[0], SECOND]):
        assert scripted.solve_many(many) == scripted.solve_many([FIRST, SECOND])


@pytest.mark.parametrize(
    "wrong, said",
    [
        (np.ones((15,), np.int32), "int32 of shape (15,)"),
        (np.ones((1, 16), np.uint8), "uint8 of shape (1, 16)"),
        (np.ones((16,), np.float32), "float32 of shape (16,)"),
        (np.ones((16,), bool), "bool of shape (16,)"),
        ([], "float64 of shape (0,)"),
        ([[1], [2, 3]], "list"),
        ([1] * 15 + [6], "position 15 holds 6"),
        ([-1] * 16, "position 0 holds -1"),
        ([1] * 15 + [300], "position 15 holds 300"),
        (7, "int64 of shape ()"),
        (None, "NoneType"),
    ],
)
def test_tokens_that_are_none_of_the_task_s(scripted: Solver, wrong: Any, said: str) -> None:
    """One error says what is wanted and what was given; among several puzzles, which."""
    wanted = f"tokens are 16 whole numbers from 0 to 5, not {said}"
    for call in (scripted.steps, scripted.solve):
        with pytest.raises(DataError) as error:
            call(wrong)
        assert str(error.value) == wanted
    with pytest.raises(DataError) as error:
        scripted.solve_many([FIRST, wrong])
    assert str(error.value) == f"puzzle 2: {wanted}"
    assert not seen(scripted)


def test_an_answer_that_the_caller_has(scripted: Solver) -> None:
    """It counts where the task has no rules; what is not scored may be anything."""

    class Unruly(type(scripted.task)):  # type: ignore[misc]
        """Sudoku without its rules."""

        check = Task.check

    solver = Solver(scripted.model, scripted.config, Unruly(scripted.config.task))
    right = scripted.task.parse(FIRST_SOLVED).astype(np.int32)
    verdicts = [step.correct for step in solver.steps(FIRST, labels=right)]
    assert verdicts == [False, False, False, True]
    scored = np.where(np.arange(16) < 8, right, IGNORE_LABEL_ID)
    assert [s.correct for s in solver.steps(FIRST, labels=scored)] == [False, True, True, True]
    wrong = np.where(right == 2, 3, 2)
    assert scripted.solve(FIRST).correct is True
    *_, last = scripted.steps(FIRST, labels=wrong)
    assert last.correct is True  # by the rules
    for refused in (right[:9], right.astype(np.float32), right + 9):
        with pytest.raises(DataError, match="^labels: tokens are 16 whole numbers from 0 to 5"):
            solver.steps(FIRST, labels=refused)


def test_weights_that_stand_in_for_the_model_s(tiny: Solver, tmp_path: Path) -> None:
    """As a trainer has them: the average beside the model, which stays as it is."""
    other = TRM(TINY, tiny.task.spec, seed=4)
    save_checkpoint(tmp_path / "run", tiny.model, tiny.config, 5, other.trained_weights())
    average = other.trained_weights()
    solver = Solver(tiny.model, tiny.config, tiny.task, weights=average)
    loaded = Solver.from_checkpoint(tmp_path / "run")
    raw = [tiny.solve(puzzle) for puzzle in (FIRST, SECOND)]
    assert [solver.solve(p) for p in (FIRST, SECOND)] == [loaded.solve(p) for p in (FIRST, SECOND)]
    assert [tiny.solve(puzzle) for puzzle in (FIRST, SECOND)] == raw
    assert solver.solve(FIRST).answer != tiny.solve(FIRST).answer


def test_a_model_of_another_size_is_refused(tiny: Solver) -> None:
    """A 6x6 task does not fit a model made for 4x4."""
    config = experiment(TINY)
    config.task = SudokuConfig(name="sudoku", size=6)
    with pytest.raises(ConfigError, match="vocab_size is 8, the model was made for 6"):
        Solver(tiny.model, config)


def test_steps_are_the_models_supervision_steps(tiny: Solver) -> None:
    """The same answers and beliefs as calling the model with its carry, step after step."""
    model = tiny.model
    inputs = mx.array(tiny.task.parse(FIRST).astype(np.int32))[None]
    batch = Batch(inputs, mx.zeros_like(inputs), mx.zeros((1,), dtype=mx.int32))
    carry = model.initial_carry(batch)
    answers = set()
    for step in tiny.steps(FIRST):
        carry, outputs = model(carry, batch)
        assert step.tokens.tolist() == mx.argmax(outputs.logits[0], axis=-1).tolist()
        assert step.halt_probability == pytest.approx(mx.sigmoid(outputs.q_halt).item(), rel=1e-5)
        answers.add(step.answer)
    assert len(answers) > 1  # random weights, and yet the answer evolves


def test_rows_of_a_real_model_do_not_meet(tiny: Solver) -> None:
    """Batched answers are those of single puzzles."""
    puzzles = [FIRST, SECOND, "." * 16]
    found = tiny.solve_many(puzzles, batch_size=3)
    for puzzle, step in zip(puzzles, found):
        alone = tiny.solve(puzzle)
        assert step.answer == alone.answer
        assert step.halt_probability == pytest.approx(alone.halt_probability, rel=1e-4)


def test_extreme_beliefs_do_not_overflow(scripted: Solver) -> None:
    """q_halt of a thousand, either way, is a probability of 0 or 1."""
    own = scripted.model.reason
    for value, expected in ((1000.0, 1.0), (-1000.0, 0.0)):

        def reason(carry: Any, rows: Any, q: float = value) -> Any:
            latents, outputs = own(carry, rows)
            return latents, outputs._replace(q_halt=mx.full((1,), q))

        object.__setattr__(scripted.model, "reason", reason)
        assert scripted.solve(FIRST, steps=1).halt_probability == expected


def test_from_checkpoint_takes_the_average(tiny: Solver, tmp_path: Path) -> None:
    """EMA weights by default, raw ones on request; both from the run folder."""
    other = TRM(TINY, tiny.task.spec, seed=4)
    save_checkpoint(tmp_path / "run", tiny.model, tiny.config, 5, other.trained_weights())
    raw = Solver.from_checkpoint(tmp_path / "run", weights="raw")
    averaged = Solver.from_checkpoint(str(tmp_path / "run" / "step_5"))
    for puzzle in (FIRST, SECOND):
        assert list(raw.steps(puzzle)) == list(tiny.steps(puzzle))
    answers = [averaged.solve(puzzle).answer for puzzle in (FIRST, SECOND)]
    assert answers != [tiny.solve(puzzle).answer for puzzle in (FIRST, SECOND)]
    with pytest.raises(CheckpointError):
        Solver.from_checkpoint(tmp_path / "nothing")


def test_a_task_without_rules_is_solved_unchecked(scripted: Solver) -> None:
    """``correct`` is None then; everything else is as ever."""

    class Unruly(type(scripted.task)):  # type: ignore[misc]
        """Sudoku without its rules."""

        check = Task.check

    expected = scripted.solve(FIRST)
    solver = Solver(scripted.model, scripted.config, Unruly(scripted.config.task))
    found = solver.solve(FIRST)
    assert expected.correct is True and found.correct is None
    assert (found.answer, found.halt_probability) == (expected.answer, expected.halt_probability)


def test_a_model_with_two_q_values_halts_where_halting_is_worth_more() -> None:
    """HRM's rule: q_halt above q_continue, not above 0."""
    config = trm.load_config("sudoku_tiny.yaml")
    model_config = trm.HRMConfig(
        hidden_size=16, num_heads=2, expansion=2, swiglu_multiple=16, H_layers=1, L_layers=1,
        H_cycles=1, L_cycles=1, halt_max_steps=4, pos_encodings="rope",
    )  # fmt: skip
    spec = trm.TaskSpec(vocab_size=6, seq_len=16)
    for bias, taken in (([-1.0, -2.0], 1), ([1.0, 2.0], 4)):
        model = trm.build_model(model_config, spec)
        model.q_head.bias = mx.array(bias)
        config.model = model_config
        solver = trm.Solver(model, config)
        assert solver.solve("1... ..2. .3.. ...4", stop_when_halted=True).step == taken


def test_batches_are_no_larger_than_fits(scripted: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the estimate, whoever asks for more."""
    monkeypatch.setattr("mlx_trm.inference.solver.cap_evaluation_rows", lambda model, rows, most: 2)
    assert len(scripted.solve_many([FIRST] * 5, batch_size=64)) == 5
    assert {rows for rows, _ in seen(scripted)} == {2}


def test_a_memory_limit_makes_batches_smaller_and_refuses_no_search(tiny: Solver) -> None:
    """``eval.memory_limit_gb`` of a run suits its own batches; a search has others."""
    row = _evaluation_row_bytes(tiny.model) / 2**30
    puzzles = [FIRST, SECOND] * 8
    answers = []
    for limit in (None, 2.1 * row):
        config = copy.deepcopy(tiny.config)
        config.eval.memory_limit_gb = limit
        solver = Solver(tiny.model, config, tiny.task)
        found = solver.search(puzzles, rollouts=2, symmetries=True, steps=2)
        answers.append([result.answer for result in found])
        answers[-1] += [step.answer for step in solver.solve_many(puzzles, 2)]
    assert answers[0] == answers[1]
    config.eval.memory_limit_gb = 0.9 * row
    with pytest.raises(ConfigError, match="for a batch of 1; set at least"):
        Solver(tiny.model, config, tiny.task).solve(FIRST)


def test_a_search_s_batch_is_no_larger_than_fits(
    tiny: Solver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def cap(model: Any, rows: int, most: Any) -> int:
        asked.append(rows)
        return 2

    want = [result.answer for result in tiny.search([FIRST, SECOND, FIRST], batch_size=3)]
    monkeypatch.setattr("mlx_trm.inference.search.engine.cap_evaluation_rows", cap)
    sizes = []
    step = Rows.step

    def counted(rows: Rows) -> Any:
        sizes.append(len(rows._runs))
        return step(rows)

    monkeypatch.setattr(Rows, "step", counted)
    found = [result.answer for result in tiny.search([FIRST, SECOND, FIRST], batch_size=3)]
    assert found == want and asked == [3] and max(sizes) == 2
