"""A search: what it equals, what nothing changes, and what it refuses."""

import copy
from typing import Any, Dict, List, Tuple

import mlx.core as mx
import numpy as np
import pytest
from gambling import Echo, Gambler, gambling, small_puzzles
from scripted import (
    FIRST,
    FIRST_SOLVED,
    SECOND,
    experiment,
    scripted_model,
    tiny_config,
    tiny_solver,
)

from mlx_trm.inference.evaluator import Evaluator
from mlx_trm.inference.search import Result, SearchSettings
from mlx_trm.inference.search.draws import RowDraws
from mlx_trm.inference.search.problems import dataset_problems
from mlx_trm.inference.search.rows import choose_size
from mlx_trm.inference.solver import Solver
from mlx_trm.models import TRM
from mlx_trm.tasks import Scorer, build_task

TINY = tiny_config()


@pytest.fixture(name="puzzles", scope="module")
def fixture_puzzles() -> Tuple[np.ndarray, np.ndarray]:
    """Two hundred 4x4 puzzles, and their solutions."""
    return small_puzzles(200)


@pytest.fixture(name="tiny", scope="module")
def fixture_tiny() -> Solver:
    """A real model of random weights."""
    return tiny_solver(TINY)


@pytest.fixture(name="gambler")
def fixture_gambler(puzzles: Tuple[np.ndarray, np.ndarray]) -> Solver:
    """A model that has to be lucky, and knows the puzzles."""
    return gambling(Gambler, puzzles)


def told(results: Any) -> List[Tuple[Any, ...]]:
    """What results say, apart from their places, probabilities and confidences."""
    return [(r.answer, r.steps, r.rollouts, r.rollout, r.accepted, r.correct) for r in results]


def believed(results: Any) -> np.ndarray:
    """Their probabilities and confidences, which may be rounded otherwise in another batch."""
    return np.array([[r.probability, *r.confidence] for r in results])


# What it equals ----------------------------------------------------------------------------------


class Keeper(Scorer):  # pylint: disable=abstract-method
    """Keeps what an evaluation shows it."""

    def __init__(self) -> None:
        self.predictions: List[np.ndarray] = []
        self.q_halt: List[float] = []

    def update(self, rows: Any) -> None:
        self.predictions += list(rows.predictions)
        self.q_halt += rows.q_halt.tolist()

    def result(self) -> Dict[str, float]:
        return {}


def test_who_watches_sees_the_puzzles_own_cells(tiny: Solver) -> None:
    """Answers and confidences of symmetric copies are those of the rollouts' results."""
    seen: Dict[int, Tuple[np.ndarray, np.ndarray]] = {}

    def watch(_: int, rollout: int, tokens: np.ndarray, __: float, sure: np.ndarray) -> None:
        seen[rollout] = tokens.copy(), sure.copy()

    (result,) = tiny.search([FIRST], on_answer=watch, rollouts=4, symmetries=True)
    assert len({float(sure[0]) for _, sure in seen.values()}) > 1
    for candidate in result.candidates:
        tokens, sure = seen[candidate.rollout]
        assert np.array_equal(tokens, candidate.tokens)
        assert np.array_equal(sure, candidate.confidence) and len(set(sure.tolist())) > 1


@pytest.mark.parametrize("start", ["fixed", "random"])
@pytest.mark.parametrize("count, size", [(64, 16), (50, 16)])
def test_a_plain_search_is_the_evaluation(
    count: int, size: int, start: str, monkeypatch: Any
) -> None:
    """Fixed steps, one rollout: the same predictions and q to the bit, with the same batch size."""
    config = experiment(copy.copy(TINY))
    config.task.test_puzzles = count
    config.eval.batch_size = size
    model = TRM(config.model, build_task(config.task).spec, seed=3)
    model.config.start = start
    evaluator = Evaluator(model, config)
    keeper = Keeper()
    monkeypatch.setattr(evaluator.task, "scorer", lambda source=None: keeper)
    metrics = evaluator.run("test")["all"]
    found: List[Result] = []
    problems = dataset_problems(evaluator.task.dataset("test"))
    report = evaluator.search(problems, SearchSettings(batch_size=size), found.append)
    assert len(found) == count
    for result, prediction, q_halt in zip(found, keeper.predictions, keeper.q_halt):
        assert result.tokens.tolist() == prediction.tolist()
        assert result.candidates[0].q_halt == q_halt
    assert report["answers"]["exact_accuracy"] == metrics["exact_accuracy"]
    given = [result.problem.inputs for result in found]
    plain = Solver(model, config).solve_many(given, batch_size=size)
    assert [step.tokens.tolist() for step in plain] == [r.tokens.tolist() for r in found]
    other = Solver(model, config).search(given, start="fixed", batch_size=size)
    same = [r.answer for r in other] == [r.answer for r in found]
    assert same == (start == "fixed")


def test_one_rollout_without_noise_is_solve_many(tiny: Solver, puzzles: Any) -> None:
    """Whatever the start's and the selection's names, the seed, and how long it may go on."""
    plain = tiny.solve_many(puzzles[0][:20])
    for changes in ({}, {"select": "rules"}, {"start": "random", "seed": 7}, {"symmetries": True}):
        found = list(tiny.search(puzzles[0][:20], **changes))
        assert [r.answer for r in found] == [step.answer for step in plain]
        np.testing.assert_allclose(
            [r.probability for r in found], [s.halt_probability for s in plain], atol=1e-6
        )


def test_halting_rules() -> None:
    """The scripted model believes after steps 2 and 3, is right after 4, and stays so."""
    solver = Solver(scripted_model(), experiment())
    for halt, steps, taken in [
        ("fixed", 7, [7, 7]),
        ("q", 7, [2, 3]),
        ("rules", 7, [4, 4]),
        ("rules", 3, [3, 3]),
        ("stable", 9, [6, 6]),
    ]:
        found = list(solver.search([FIRST, SECOND], halt=halt, steps=steps))
        assert [r.steps for r in found] == taken, halt
        assert [r.accepted for r in found] == [steps > 3 and halt != "q"] * 2
    result = next(solver.search([FIRST], halt="rules"))
    assert (result.answer, result.rollouts, result.correct) == (FIRST_SOLVED, 1, True)
    assert result.probability == pytest.approx(1 / (1 + np.exp(-2.5)))
    # Logits are 1 for the token and 0 for the five others.
    np.testing.assert_allclose(result.confidence, np.e / (np.e + 5), rtol=1e-6)


# What changes nothing ----------------------------------------------------------------------------

WAYS = [
    {"rollouts": 4, "start": "random", "select": "q"},
    {"rollouts": 3, "noise": 0.3, "select": "vote"},
    {"rollouts": 3, "symmetries": True, "select": "residual"},
    {"rollouts": 6, "halt": "rules"},
    {"rollouts": 6, "halt": "q", "select": "rules"},
    {"rollouts": 6, "halt": "q", "select": "first_halt"},
    {"rollouts": 6, "halt": "rules", "select": "first_halt"},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
@pytest.mark.parametrize("name", ["tiny", "gambler"])
def test_batch_size_and_order_change_nothing(
    name: str, way: Dict[str, Any], puzzles: Any, request: Any
) -> None:
    """Neither does what becomes of the other rows: most end early, and others take their place."""
    solver: Solver = request.getfixturevalue(name)
    given = puzzles[0][:10]
    wanted = list(solver.search(given, batch_size=8, **way))
    assert [r.place for r in wanted] == list(range(10))
    first_halt = way["select"] == "first_halt" if "select" in way else False
    for size in (3, 64):
        found = list(solver.search(given, batch_size=size, **way))
        if first_halt:  # when the others are given up depends on how many run side by side
            assert [r.answer for r in found] == [r.answer for r in wanted]
            assert [r.rollout for r in found] == [r.rollout for r in wanted]
        else:
            assert told(found) == told(wanted)
            # Rounding of float32, amplified by some steps of a model with random weights.
            np.testing.assert_allclose(believed(found), believed(wanted), atol=1e-3)
    order = np.random.default_rng(0).permutation(10)
    found = list(solver.search(given[order], batch_size=8, **way))
    assert [r.answer for r in found] == [wanted[i].answer for i in order]
    alone = [next(solver.search([given[i]], batch_size=8, **way)) for i in (0, 7)]
    assert [r.answer for r in alone] == [wanted[i].answer for i in (0, 7)]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
def test_the_seed_decides_everything(tiny: Solver, puzzles: Any, way: Dict[str, Any]) -> None:
    """The same seed gives the same to the bit; another one gives other answers."""
    given = puzzles[0][:5]
    wanted, again = (list(tiny.search(given, seed=5, **way)) for _ in range(2))
    assert told(again) == told(wanted) and (believed(again) == believed(wanted)).all()
    other = list(tiny.search(given, seed=6, **way))
    assert [r.candidates[-1].tokens.tolist() for r in other] != [
        r.candidates[-1].tokens.tolist() for r in wanted
    ]


def test_the_training_mode_is_given_back(tiny: Solver, puzzles: Any) -> None:
    """Between results, too."""
    tiny.model.train()
    results = tiny.search(puzzles[0][:3], batch_size=1)
    next(results)
    assert tiny.model.training
    tiny.model.eval()


# Rollouts ----------------------------------------------------------------------------------------


def test_rollouts_solve_what_the_first_does_not(gambler: Solver, puzzles: Any) -> None:
    """Every accepted grid keeps the rules and the givens; steps and rollouts are what it took."""
    inputs, labels = puzzles
    one = list(gambler.search(inputs, halt="rules"))
    many = list(gambler.search(inputs, halt="rules", rollouts=12))
    assert sum(r.correct for r in one) == int((inputs[:, 0] > 1).sum()) < 120
    assert sum(r.correct for r in many) > 195
    for result, puzzle, label in zip(many, inputs, labels):
        if result.accepted:
            grid = result.tokens.reshape(4, 4).astype(int) - 1
            boxes = grid.reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)
            for lines in (grid, grid.T, boxes):
                assert (np.sort(lines, axis=1) == np.arange(1, 5)).all()
            assert ((puzzle == 1) | (puzzle == result.tokens)).all()
            assert (result.tokens == label).all() and result.rollout == result.rollouts - 1
        else:
            assert result.rollouts == 12 and result.steps == 72
        assert result.steps == sum(c.steps for c in result.candidates)
        assert [c.rollout for c in result.candidates] == list(range(result.rollouts))
        assert not any(c.accepted for c in result.candidates[:-1])
    assert np.mean([r.steps for r in many]) < 20


def test_what_the_rules_accept_counts_more_than_q(puzzles: Any) -> None:
    """However the answer is chosen where none is accepted, and whatever the model believes."""

    class Doubter(Gambler):
        """Believes its wrong answers."""

        def reason(self, carry: Any, rows: Any) -> Any:
            latents, outputs = super().reason(carry, rows)
            return latents, outputs._replace(q_halt=-outputs.q_halt)

    solver = gambling(Doubter, puzzles)
    for select in ("q", "vote", "residual", "rules"):
        found = list(solver.search(puzzles[0][:20], halt="rules", rollouts=12, select=select))
        assert sum(bool(r.accepted) for r in found) >= 18
        assert all(r.accepted for r in found if any(c.accepted for c in r.candidates))


def test_nothing_is_computed_for_puzzles_that_are_done(gambler: Solver, puzzles: Any) -> None:
    """With one row, as many steps are computed as the results count."""
    found = list(gambler.search(puzzles[0][:20], halt="rules", rollouts=5, batch_size=1))
    assert gambler.model.calls == [1] * sum(r.steps for r in found)
    gambler.model.calls.clear()
    found = list(gambler.search(puzzles[0], halt="rules", rollouts=5, batch_size=16))
    calls = gambler.model.calls
    assert calls[0] == 16 and calls == sorted(calls, reverse=True)
    assert sum(calls) < 1.25 * sum(r.steps for r in found)


def test_the_last_puzzles_get_a_smaller_batch(gambler: Solver, puzzles: Any) -> None:
    """Their answers and costs are those of any other batch; with fixed steps nothing changes."""
    want = list(gambler.search(puzzles[0][:30], halt="rules", rollouts=9, batch_size=1))
    gambler.model.calls.clear()
    found = list(gambler.search(puzzles[0][:30], halt="rules", rollouts=9, batch_size=20))
    assert set(gambler.model.calls) >= {20, 4, 1}
    assert [(r.answer, r.steps, r.rollouts) for r in found] == [
        (r.answer, r.steps, r.rollouts) for r in want
    ]
    gambler.model.calls.clear()
    list(gambler.search(puzzles[0][:22], steps=3, batch_size=20))
    assert gambler.model.calls == [20] * 6


def test_one_puzzle_gets_a_small_batch(gambler: Solver, puzzles: Any) -> None:
    """One row for one rollout, some for several that run side by side."""
    for way, rows in [({}, 1), ({"rollouts": 3}, 4), ({"rollouts": 9}, 16)]:
        gambler.model.calls.clear()
        list(gambler.search(puzzles[0][:1], steps=2, **way))
        assert gambler.model.calls == [rows] * 2
    assert [choose_size(n, 64) for n in (1, 2, 4, 5, 16, 17, 900)] == [1, 4, 4, 16, 16, 64, 64]
    assert [choose_size(n, 3) for n in (1, 2, 3)] == [1, 3, 3]


def test_the_first_to_halt_ends_the_others(gambler: Solver, puzzles: Any) -> None:
    """The answer is that of the fewest steps, and rollouts that cannot be it are given up."""
    settings = SearchSettings(halt="rules", rollouts=8, select="first_halt")
    results = [next(gambler.search([puzzle], settings)) for puzzle in puzzles[0][:10]]
    accepted = [result for result in results if result.accepted]
    for result in accepted:
        best = min((c for c in result.candidates if c.halted), key=lambda c: (c.steps, c.rollout))
        assert result.rollout == best.rollout
        assert result.steps <= 8 * best.steps < 48
    assert len(accepted) >= 8


def test_random_starts_leave_the_first_rollout_alone(gambler: Solver, puzzles: Any) -> None:
    """Unless the model itself starts at random; start fixed overrules it."""
    inputs = puzzles[0][:40]
    plain = [r.correct for r in gambler.search(inputs)]
    found = list(gambler.search(inputs, rollouts=2, start="random"))
    assert [r.candidates[0].correct for r in found] == plain
    gambler.model.config.start = "random"
    assert [r.correct for r in gambler.search(inputs)] != plain
    assert [r.correct for r in gambler.search(inputs, start="fixed")] == plain
    drawn = [r.correct for r in gambler.search(inputs, start="model")]
    assert [r.correct for r in gambler.search(inputs, start="random")] == drawn


def test_answers_of_copies_are_those_of_the_puzzle(puzzles: Any) -> None:
    """The model answers the copy itself: mapped back, that is the puzzle; so are confidences."""
    grids = puzzles[1][:10]
    echo = gambling(Echo, puzzles)
    for grid, result in zip(grids, echo.search(grids, rollouts=5, symmetries=True, steps=1)):
        assert [c.tokens.tolist() for c in result.candidates] == [grid.tolist()] * 5
        assert all(c.accepted and c.correct for c in result.candidates)
        assert len({c.q_halt for c in result.candidates}) > 1  # they were copies
        for candidate in result.candidates[1:]:
            # The model is surer of larger digits, so equal digits of the puzzle are as sure.
            for digit in range(2, 6):
                assert len(set(candidate.confidence[grid == digit].tolist())) == 1
        first = result.candidates[0].confidence
        logits = np.float32(1) + grid
        np.testing.assert_allclose(first, np.exp(logits) / (np.exp(logits) + 5), rtol=1e-5)


def test_noise_is_what_is_asked_for() -> None:
    """z_H gets a normal of that deviation before each step, another one each time."""
    seen: List[np.ndarray] = []

    class Watcher(Gambler):
        """Keeps z_H as it enters a step, and gives back zeros."""

        def reason(self, carry: Any, rows: Any) -> Any:
            seen.append(np.array(carry.latents[0]))
            latents, outputs = super().reason(carry, rows)
            return (mx.zeros_like(latents[0]), latents[1]), outputs

    solver = gambling(Watcher, (np.ones((1, 16)), np.ones((1, 16))))
    list(solver.search([FIRST, SECOND] * 30, noise=0.5, steps=3))
    rows = np.stack(seen)[:, :60]
    assert rows.std() == pytest.approx(0.5, rel=0.02) and abs(rows.mean()) < 0.01
    assert len({row.tobytes() for step in rows for row in step[:2]}) == 6
    assert (rows[:, 0] == rows[:, 2]).all()  # the same puzzle, wherever it is


def test_keys_follow_from_seed_puzzle_rollout_and_step() -> None:
    """Nothing else, and each of them matters."""
    a, b = np.arange(16) % 5, np.arange(16) % 4
    keys = {
        RowDraws(seed, tokens, rollout).key(step).tobytes()
        for seed in (0, 1)
        for tokens in (a, b)
        for rollout in (0, 1, 11)
        for step in (0, 1, 2)
    }
    assert len(keys) == 36
    assert RowDraws(0, a.astype(np.int64), 1).key(3).tolist() == RowDraws(0, a, 1).key(3).tolist()
    draws = [RowDraws(0, a, rollout).generator().integers(1 << 30) for rollout in (1, 2, 1)]
    assert draws[0] == draws[2] != draws[1]
