"""ARC's votes: the recorded evaluation, and that neither order nor processes matter."""

import json
from pathlib import Path
from typing import Any, List, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import REFERENCE

from mlx_trm.datasets.dataset import SetSource
from mlx_trm.errors import DataError
from mlx_trm.tasks import ARC, ARCConfig, ScoredRows
from mlx_trm.tasks.arc.grids import augmented_name, encode, parse_name
from mlx_trm.tasks.arc.voting import PASS_AT, ArcScorer, load_scorer, pack, unpack

TOY = REFERENCE / "arc_toy"
SOURCE = SetSource(TOY / "built", "test", "all", 0)
GRIDS = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1)).map(
    lambda t: np.random.default_rng(t[2]).integers(0, 10, t[:2]).astype(np.uint8)
)


def recorded() -> ScoredRows:
    """The recorded batches as one."""
    batches = np.load(TOY / "evaluator_batches.npz")
    count = sum(name.endswith(".size") for name in batches)

    def joined(name: str) -> np.ndarray:
        return np.concatenate([batches[f"batch{i}.{name}"] for i in range(count)])

    inputs = joined("inputs")
    return ScoredRows(
        inputs,
        joined("labels"),
        joined("preds"),
        joined("puzzle_identifiers"),
        joined("q_halt_logits"),
        np.arange(len(inputs)),
    )


def part(rows: ScoredRows, chosen: Sequence[int]) -> ScoredRows:
    """Some of the rows."""
    return ScoredRows(*(column[list(chosen)] for column in rows))


METRICS = json.loads((TOY / "evaluator" / "metrics.json").read_text())
SUBMISSION = json.loads((TOY / "evaluator" / "submission.json").read_text())


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_recorded_evaluation(data: Any) -> None:
    """Exactly, whatever the order, the batches, and the number of processes."""
    rows = recorded()
    order = data.draw(st.permutations(range(len(rows.inputs))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=6)))
    scorers = [load_scorer(SOURCE) for _ in range(data.draw(st.integers(1, 4)))]
    for at, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(order)])):
        if end > start:
            scorers[at % len(scorers)].update(part(rows, order[start:end]))
    for other in scorers[1:]:
        scorers[0].merge(other.state())
    assert scorers[0].result() == METRICS
    assert json.loads(scorers[0].files()["submission.json"]) == SUBMISSION


def puzzle(*pairs: Any) -> List[Any]:
    """A test task from (input, output) grids."""
    return list(pairs)


def row(
    place: int, given_: np.ndarray, answer: np.ndarray, belief: float, number: int = 1
) -> ScoredRows:
    """One row for a scorer."""
    inputs = encode(given_)[None]
    return ScoredRows(
        inputs, inputs, encode(answer)[None] if answer.size else np.zeros((1, 900), np.uint8),
        np.array([number]), np.array([belief], np.float32), np.array([place])
    )  # fmt: skip


A, B, C = (np.full((2, 3), color, dtype=np.uint8) for color in (1, 2, 3))


def test_votes_then_belief_then_first_seen() -> None:
    """More votes win; of as many the mean belief; of equal ones the first in the data set."""
    scorer = ArcScorer(["<blank>", "x"], {"x": puzzle((A, C))})
    scorer.update(row(5, A, A, 9.0))
    scorer.update(row(1, A, B, -3.0))
    scorer.update(row(2, A, B, -3.0))
    assert [a["attempt_1"] for a in scorer.submission()["x"]] == [B.tolist()]
    assert scorer.submission()["x"][0]["attempt_2"] == A.tolist()
    scorer.update(row(3, A, C, 9.0))  # as good as A, and before it in the data set
    assert scorer.submission()["x"][0]["attempt_2"] == C.tolist()
    assert scorer.result() == {f"ARC/pass@{k}": float(k > 1) for k in PASS_AT}
    scorer.update(row(0, A, C, -9.0))  # two votes, and with a mean belief of one half the first
    assert scorer.submission()["x"][0]["attempt_1"] == C.tolist()
    assert scorer.result()["ARC/pass@1"] == 1.0


def test_a_task_scores_the_share_of_its_inputs() -> None:
    """Two inputs, one solved; the other task has no prediction at all."""
    tasks = {"x": puzzle((A, B), (B, C)), "y": puzzle((C, A))}
    scorer = ArcScorer(["<blank>", "x", "y"], tasks)
    scorer.update(row(0, A, B, 0.0))
    scorer.update(row(1, B, A, 0.0))
    assert scorer.result()["ARC/pass@1"] == 0.25
    made = scorer.submission()
    assert [len(made[name]) for name in ("x", "y")] == [2, 1]
    assert made["y"] == [{"attempt_1": [[0]], "attempt_2": [[0]]}]
    scorer.update(row(2, C, np.zeros((0, 0), np.uint8), 0.0, number=2))
    assert scorer.submission()["y"] == [{"attempt_1": [[0]], "attempt_2": [[0]]}]


def test_what_has_no_solution_is_not_scored() -> None:
    """One black cell stands for it, where answers may be missing; it is submitted all the same."""
    nothing = np.zeros((1, 1), np.uint8)
    tasks = {"x": puzzle((A, B), (B, nothing)), "y": puzzle((C, nothing))}
    names = ["<blank>", "x", "y"]
    scorer = ArcScorer(names, tasks, complete=False)
    assert scorer.result()["ARC/pass@1"] == 0.0  # of the one that is known
    scorer.update(row(0, A, B, 0.0))
    scorer.update(row(1, C, A, 0.0, number=2))
    assert scorer.result()["ARC/pass@1"] == 1.0
    assert scorer.submission()["y"][0]["attempt_1"] == A.tolist()
    unknown = ArcScorer(names, {"y": puzzle((C, nothing))}, complete=False).result()
    assert all(np.isnan(value) for value in unknown.values()) and len(unknown) == len(PASS_AT)
    complete = ArcScorer(names, tasks)
    complete.update(row(0, B, nothing, 0.0))
    assert complete.result()["ARC/pass@1"] == 0.25  # there it is an answer like any other


def test_what_is_not_counted() -> None:
    """Blank rows, inputs of no test pair; identifiers of other data sets are taken off."""
    scorer = ArcScorer(["<blank>", "x"], {"x": puzzle((A, B))}, first_identifier=7)
    scorer.update(row(0, A, B, 0.0, number=0))
    scorer.update(row(1, C, B, 0.0, number=8))
    assert scorer.result()["ARC/pass@1000"] == 0.0
    scorer.update(row(2, A, B, 0.0, number=8))
    assert scorer.result()["ARC/pass@1"] == 1.0


@given(grid=GRIDS, transform=st.integers(0, 7), colors=st.permutations(range(1, 10)))
@settings(max_examples=50, deadline=None)
def test_augmentations_vote_for_the_original(
    grid: np.ndarray, transform: int, colors: List[int]
) -> None:
    """An augmented row counts for the test input it came from, with the answer turned back."""
    name = augmented_name("x", transform, [0, *colors])
    change = parse_name(name)
    assert (change.undo(change.apply(grid)) == grid).all()
    answer = np.ascontiguousarray(grid[::-1])
    scorer = ArcScorer(["<blank>", name], {"x": puzzle((grid, answer))})
    scorer.update(row(0, change.apply(grid), change.apply(answer), 0.0))
    assert scorer.result()["ARC/pass@1"] == 1.0
    assert scorer.submission()["x"][0]["attempt_2"] == answer.tolist()


@given(grid=GRIDS)
@settings(max_examples=50, deadline=None)
def test_packed_grids(grid: np.ndarray) -> None:
    """Shape and cells come back; half a byte a cell."""
    assert (unpack(pack(grid)) == grid).all() and unpack(pack(grid)).shape == grid.shape
    assert len(pack(grid)) == 2 + (grid.size + 1) // 2


def test_votes_are_kept_for_the_next_evaluation_only_if_asked_for() -> None:
    """``aggregated_voting``: the votes of both; otherwise those of the last one alone."""
    rows = recorded()
    for aggregated in (False, True):
        task = ARC(ARCConfig("arc", data_dir=str(TOY / "built"), aggregated_voting=aggregated))
        first = task.scorer(SOURCE)
        first.update(rows)
        assert first.result() == METRICS
        second = task.scorer(SOURCE)
        assert (second.result() == METRICS) is aggregated
        second.update(rows)
        assert second.result()["ARC/pass@2"] == METRICS["ARC/pass@2"]
        votes = sum(
            len(v.order) for v in second._votes.values()
        )  # pylint: disable=protected-access
        real = int((rows.puzzle_identifiers > 0).sum())
        assert votes == real * (2 if aggregated else 1)


def test_only_the_test_split_is_voted_on() -> None:
    """The train split has no test inputs."""
    task = ARC(ARCConfig("arc", data_dir=str(TOY / "built")))
    assert task.scorer() is None and task.scorer(SOURCE._replace(split="train")) is None


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("identifiers.json", None, "identifiers.json: cannot be read: .* build the dataset again"),
        ("identifiers.json", "{}", "identifiers.json: is not a JSON list; .* build"),
        ("test_puzzles.json", "[", "test_puzzles.json: is not JSON"),
        ("test_puzzles.json", '{"x": 3}', "test_puzzles.json: is damaged"),
        ("test_puzzles.json", '{"x": {"test": [{"input": [[10]], "output": [[0]]}]}}',
         "test_puzzles.json: x: test pair 1 input: row 1 has 10"),
    ],
)  # fmt: skip
def test_what_votes_need(tmp_path: Path, name: str, text: Any, says: str) -> None:
    """Missing or damaged files are named."""
    for path in (TOY / "built").glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).unlink()
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=says):
        load_scorer(SOURCE._replace(folder=tmp_path))


def test_kept_votes_are_counted_once_by_several_processes() -> None:
    """Three evaluations with ``aggregated_voting``, shared by two processes and by one."""
    rows = recorded()
    config = ARCConfig("arc", data_dir=str(TOY / "built"), aggregated_voting=True)
    tasks = [ARC(config), ARC(config)]
    alone = ARC(config)
    for _ in range(3):
        single = alone.scorer(SOURCE)
        single.update(rows)
        pair = [task.scorer(SOURCE) for task in tasks]
        for rank, scorer in enumerate(pair):
            scorer.update(part(rows, range(rank, len(rows.inputs), 2)))
        states = [scorer.state() for scorer in pair]
        for rank, scorer in enumerate(pair):
            scorer.merge(states[1 - rank])
        for scorer in pair:
            for key, votes in single._votes.items():  # pylint: disable=protected-access
                other = scorer._votes[key]  # pylint: disable=protected-access
                assert len(other.order) == len(votes.order)
                assert other.ranking() == votes.ranking()
