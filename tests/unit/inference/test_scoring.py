"""Scores of a search: ways of choosing and their cost, bins, comparisons, files of predictions."""

import json
import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import pytest
from scripted import FIRST, FIRST_SOLVED, experiment

from mlx_trm.errors import ConfigError, DataError
from mlx_trm.inference.predictions import (
    Comparison,
    mcnemar,
    read_predictions,
    write_predictions,
)
from mlx_trm.inference.scoring import SearchScores, judge_exactly, powers_of_two, rating_bins
from mlx_trm.inference.search import Candidate, Problem, Result, SearchSettings
from mlx_trm.inference.search.scheduling import Schedule
from mlx_trm.inference.search.selection import choose
from mlx_trm.models.carry import IGNORE_LABEL_ID
from mlx_trm.tasks import build_task

NAN = float("nan")


def candidate(rollout: int, answer: int, **changes: Any) -> Candidate:
    """A candidate whose answer is one number over and over; 1 is right."""
    values: Dict[str, Any] = {
        "steps": 4,
        "halted": False,
        "q_halt": 0.0,
        "residual": NAN,
        "accepted": answer == 1,
        "correct": answer == 1,
        **changes,
    }
    tokens = np.full(16, answer, np.uint8)
    return Candidate(rollout, tokens, confidence=np.ones(16, np.float32), **values)


def result(candidates: Sequence[Candidate], rollout: int = 0, **changes: Any) -> Result:
    """A result of some candidates."""
    best = candidates[rollout]
    problem = Problem(0, np.ones(16, np.uint8), **changes)
    return Result(
        place=0,
        tokens=best.tokens,
        answer="",
        steps=sum(c.steps for c in candidates),
        rollouts=len(candidates),
        probability=0.5,
        accepted=best.accepted,
        confidence=best.confidence,
        correct=best.correct,
        rollout=rollout,
        problem=problem,
        candidates=candidates,
    )


FOUR = [
    candidate(0, 2, q_halt=-1.0, residual=0.5, steps=6, halted=False),
    candidate(1, 3, q_halt=2.0, residual=0.4, steps=5, halted=True),
    candidate(2, 1, q_halt=1.0, residual=0.1, steps=3, halted=True),
    candidate(3, 2, q_halt=NAN, residual=NAN, steps=3, halted=True),
]


def test_each_way_of_choosing() -> None:
    """By its own measure; numbers that are none never win; of equals the lowest rollout."""
    wanted = {"q": 1, "vote": 0, "rules": 2, "residual": 2, "first_halt": 2}
    for select, rollout in wanted.items():
        assert choose(FOUR, select).rollout == rollout, select
        assert choose(FOUR[::-1], select).rollout == rollout, select
    none = [candidate(0, 2, q_halt=0.1), candidate(1, 3, q_halt=0.2)]
    assert [choose(none, s).rollout for s in ("rules", "first_halt", "vote")] == [1, 1, 1]
    assert choose([candidate(0, 2, q_halt=NAN)], "q").rollout == 0
    numbers = [candidate(0, 2, q_halt=NAN, residual=NAN), candidate(1, 3, q_halt=-9, residual=9.0)]
    assert [choose(numbers, s).rollout for s in ("q", "residual", "vote")] == [1, 1, 1]


def test_columns_and_their_cost() -> None:
    """Each way of choosing, with the steps and rollouts that it alone would have taken."""
    settings = SearchSettings(rollouts=4, halt="q", steps=6)
    scores = SearchScores(settings, 6, has_rules=True)
    assert scores.everything and scores.marks == [1, 2, 4, 6]
    scores.add(result(FOUR, 1))
    scores.add(result([candidate(n, 1, steps=2, halted=True) for n in range(4)]))
    found = scores.report()["by_choice"]
    told = {n: (v["exact_accuracy"], v["steps"], v["rollouts"]) for n, v in found.items()}
    assert told == {
        "single": (0.5, 4.0, 1.0),
        "pass@2": (0.5, 7.5, 2.0),
        "pass@4": (1.0, 12.5, 4.0),
        "q": (0.5, 12.5, 4.0),
        "vote": (0.5, 12.5, 4.0),
        "residual": (1.0, 12.5, 4.0),
        "first_halt": (1.0, (3 * 4 + 2 * 4) / 2, 4.0),
        "rules": (1.0, (14 + 2) / 2, 2.0),
    }
    assert scores.report()["accepted"]["count"] == 1


def test_where_the_rules_end_a_puzzle() -> None:
    """Only what is known is told: q and votes of rollouts that were never run are not."""
    settings = SearchSettings(rollouts=4, halt="rules")
    scores = SearchScores(settings, 6, has_rules=True)
    assert not scores.everything
    scores.add(result(FOUR[:3], 2))
    found = scores.report()["by_choice"]
    told = {n: (v["exact_accuracy"], v["steps"], v["rollouts"]) for n, v in found.items()}
    assert told == {
        "single": (0.0, 6.0, 1.0),
        "pass@2": (0.0, 11.0, 2.0),
        "pass@4": (1.0, 14.0, 3.0),
        "rules": (1.0, 14.0, 3.0),
    }


def test_accuracy_by_steps_is_the_first_rollouts() -> None:
    """After it has halted its answer stays what it was."""
    scores = SearchScores(SearchSettings(steps=8, halt="q"), 8, has_rules=False)
    early = candidate(0, 1, steps=3, marks={1: False, 2: True})
    late = candidate(0, 2, steps=8, marks={1: False, 2: False, 4: True, 8: False})
    scores.add(result([early]))
    scores.add(result([late]))
    found = scores.report()
    assert "accepted" not in found and "by_choice" not in found
    told = {n: (v["exact_accuracy"], v["steps"]) for n, v in found["by_steps"].items()}
    assert told == {"1": (0.0, 1), "2": (0.5, 2), "4": (1.0, 3.5), "8": (0.5, 5.5)}
    assert found["answers"]["exact_accuracy_low"] == pytest.approx(0.0945, abs=1e-4)


def test_exact_is_by_the_label_where_there_is_one() -> None:
    """Cells that do not count are left out; without a label the rules decide."""
    tokens = np.array([2, 3, 4])
    labels = np.array([2, IGNORE_LABEL_ID, 4])
    assert judge_exactly(Problem(0, tokens, labels=labels), tokens, False)
    assert not judge_exactly(Problem(0, tokens, labels=labels), tokens + 1, True)
    for none in (None, np.full(3, IGNORE_LABEL_ID)):
        for accepted in (True, False, None):
            assert judge_exactly(Problem(0, tokens, labels=none), tokens, accepted) is accepted


def test_rating_bins() -> None:
    """Few ratings stand alone; many are put into ranges of about as many puzzles each."""
    ratings = np.array([0, 0, 3, 3, 3, 7])
    found = rating_bins(ratings, np.array([1, 0, 1, 1, 0, 0]))
    assert {n: (v["count"], v["exact_accuracy"]) for n, v in found.items()} == {
        "0": (2, 0.5),
        "3": (3, 2 / 3),
        "7": (1, 0.0),
    }
    many = rating_bins(np.arange(1000)[::-1], (np.arange(1000)[::-1] < 500).astype(int))
    assert [(v["count"], v["exact_accuracy"]) for v in many.values()] == [
        (250, 1.0),
        (250, 1.0),
        (250, 0.0),
        (250, 0.0),
    ] and list(many) == ["0-249", "250-499", "500-749", "750-999"]
    heavy = rating_bins(np.array([0] * 90 + list(range(1, 11))), np.ones(100, int))
    assert sum(v["count"] for v in heavy.values()) == 100 and "steps" not in heavy["0-10"]


def test_sources_are_told_apart() -> None:
    """One source alone is no table."""
    scores = SearchScores(SearchSettings(), 4, has_rules=False)
    scores.add(result([candidate(0, 1)], source="a"))
    assert "by_source" not in scores.report()
    scores.add(result([candidate(0, 2)], source="b", rating=5))
    found = scores.report()
    assert [(n, v["exact_accuracy"]) for n, v in found["by_source"].items()] == [("a", 1), ("b", 0)]
    assert list(found["by_rating"]) == ["5"] and powers_of_two(1) == [1]
    assert powers_of_two(12) == [1, 2, 4, 8, 12] and powers_of_two(16) == [1, 2, 4, 8, 16]


def test_mcnemar_is_the_binomial_test() -> None:
    """Against sums written out."""
    for b, c in [(0, 0), (1, 0), (3, 9), (9, 3), (25, 25), (200, 260)]:
        n, k = b + c, min(b, c)
        plain = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0
        assert mcnemar(b, c) == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_predictions_are_read_as_written(tmp_path: Path, suffix: str) -> None:
    """Puzzle, answer, and what is known of it; compared by puzzle."""
    task = build_task(experiment().task)
    path = tmp_path / f"p{suffix}"
    inputs = [task.parse(FIRST), task.parse(FIRST_SOLVED), task.parse("." * 16)]
    truths: List[Optional[bool]] = [True, False, None]
    with write_predictions(path, task) as write:
        for tokens, correct in zip(inputs, truths):
            best = candidate(0, 2, accepted=correct, correct=correct)
            write(
                Result(0, tokens, task.format(tokens), 4, 1, NAN, correct, best.confidence,
                       correct, 0, Problem(0, tokens), [best])
            )  # fmt: skip
        assert not path.exists()
    texts = [task.format(tokens) for tokens in inputs]
    assert read_predictions(path) == dict(zip(texts, truths))
    if suffix == ".jsonl":
        first = json.loads(path.read_text().splitlines()[0])
        assert first["accepted"] is True and first["probability"] is None
    comparison = Comparison(path)
    for text, correct in zip([*texts, "x"], [False, False, True, True]):
        comparison.add(text, correct)
    assert comparison.result()._replace(p=0) == (0, 0, 1, 1, 0)
    with pytest.raises(DataError, match="shares no puzzle"):
        Comparison(path).result()


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """An evaluation that fails leaves the old one."""
    path = tmp_path / "p.csv"
    path.write_text("old")
    with pytest.raises(KeyError):
        with write_predictions(path, build_task(experiment().task)):
            raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigError, match="must end in .csv or .jsonl"):
        with write_predictions(tmp_path / "p.txt", build_task(experiment().task)):
            pass


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.csv", "a,b\n1,2\n", "entry 1 has no puzzle and correct"),
        ("a.csv", "puzzle,correct\n1..,maybe\n", "correct is 'maybe'"),
        ("a.jsonl", '{"puzzle": 3, "correct": true}\n', "entry 1 has no puzzle"),
        ("a.jsonl", "nothing\n", "is no file of predictions"),
        ("a.jsonl", None, "cannot be read"),
    ],
)
def test_files_that_are_no_predictions(
    tmp_path: Path, name: str, text: Optional[str], message: str
) -> None:
    """Refused in a line that names the file."""
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_predictions(tmp_path / name)


# Schedules ---------------------------------------------------------------------------------------


def problems(count: int) -> List[Problem]:
    """Puzzles without content."""
    return [Problem(place, np.zeros(1, np.uint8)) for place in range(count)]


def taken(schedule: Schedule) -> List[tuple]:
    """All that can be begun now, as (place, rollout)."""
    found = iter(schedule.take, None)
    return [(work.problem.place, rollout) for work, rollout in found]


def test_later_rollouts_queue_behind_those_of_all_others() -> None:
    """In a window of three puzzles, of which the first is given back first."""
    schedule = Schedule(problems(5), rollouts=2, window=3)
    works = {}
    for _ in range(6):
        work, rollout = schedule.take() or (None, -1)
        works[work.problem.place, rollout] = work
    assert list(works) == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    assert schedule.take() is None
    for key in [(1, 0), (1, 1), (0, 1)]:
        schedule.end(works[key], key[1], 4, candidate(key[1], 2))
    assert not list(schedule.finished()) and schedule.done_count == 1
    assert schedule.take() is None  # the window is full: the first puzzle is not done
    schedule.end(works[0, 0], 0, 4, candidate(0, 2))
    assert [work.problem.place for work in schedule.finished()] == [0, 1]
    assert taken(schedule) == [(3, 0), (4, 0), (3, 1), (4, 1)]


def test_the_lowest_accepted_rollout_is_the_answer() -> None:
    """Later ones are pointless; earlier ones are waited for; those begun ahead do not count."""
    schedule = Schedule(problems(1), rollouts=5, window=3, leaves_early=True)
    begun = [schedule.take() for _ in range(4)]
    work = begun[0][0]
    assert [rollout for _, rollout in begun] == [0, 1, 2, 3]
    schedule.end(work, 2, 3, candidate(2, 1, steps=3))
    assert work.accepted == 2 and work.is_pointless(3, 2) and not work.is_pointless(1, 2)
    assert schedule.take() is None  # the fifth is not begun any more
    schedule.end(work, 3, 3, None)
    schedule.end(work, 0, 4, candidate(0, 2))
    assert not list(schedule.finished())
    schedule.end(work, 1, 4, candidate(1, 1))
    assert [c.rollout for c in next(schedule.finished()).found()] == [0, 1]


def test_rollouts_follow_one_another_while_others_wait() -> None:
    """With rules a second rollout begins when the first has failed, or a row would be empty."""
    schedule = Schedule(problems(3), rollouts=3, window=9, leaves_early=True)
    first = [schedule.take() for _ in range(2)]
    schedule.end(first[0][0], 0, 4, candidate(0, 2))
    assert taken(schedule)[:2] == [(2, 0), (0, 1)]
