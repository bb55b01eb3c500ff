"""The thread that computes: turns, places, who leaves, what fails."""

import threading
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from mlx_trm.errors import DataError
from mlx_trm.serving.worker import AT_ONCE, Busy, Job, Worker


class Told:
    """Collects what jobs are told, and waits for what is last."""

    def __init__(self) -> None:
        self.events: List[Tuple[str, Any]] = []
        self.over = threading.Event()

    def emit(self, name: str, content: Dict[str, Any]) -> None:
        self.events.append((name, content))
        if name in ("done", "error"):
            self.over.set()


def counting(order: List[str], name: str, turns: int) -> Any:
    """Work of some turns, each noted."""

    def work(emit: Any) -> Iterator[None]:
        for _ in range(turns):
            order.append(name)
            yield
        emit("done", {})

    return work


def start(waiting: int = 8, seconds: float = 60.0) -> Worker:
    worker = Worker(waiting, seconds)
    worker.start(lambda: None)
    return worker


def test_jobs_take_turns() -> None:
    """A short job that comes second is done before a long one."""
    order: List[str] = []
    gate = threading.Event()

    def held(emit: Any) -> Iterator[None]:
        gate.wait(60)
        yield
        emit("done", {})

    worker, told = start(), [Told() for _ in range(3)]
    works = [held, counting(order, "long", 9), counting(order, "short", 2)]
    for work, each in zip(works, told):
        worker.submit(Job(work, each.emit))
    gate.set()
    assert all(each.over.wait(60) for each in told)
    assert order[:5] == ["long", "short", "long", "short", "long"] and order.count("long") == 9
    worker.stop()


def test_a_full_queue_refuses_and_places_move_up() -> None:
    """Those that wait are told how many are before them; one that leaves makes room."""
    worker, gate = start(waiting=2), threading.Event()

    def held(emit: Any) -> Iterator[None]:
        gate.wait(60)
        yield
        emit("done", {})

    told = [Told() for _ in range(AT_ONCE + 3)]
    jobs = [Job(held, each.emit) for each in told]
    for job in jobs[:-1]:  # also while the thread is held by the first step of the first one
        worker.submit(job)
    with pytest.raises(Busy) as refused:
        worker.submit(jobs[-1])
    assert refused.value.seconds >= 1 and f"{AT_ONCE + 2} puzzles" in str(refused.value)
    jobs[-2].leave()
    worker.submit(jobs[-1])
    gate.set()
    assert all(each.over.wait(60) for each in [*told[:-2], told[-1]])
    assert told[-1].events[0][0] == "waiting" and told[-1].events[-1][0] == "done"
    places = [content["ahead"] for name, content in told[-1].events if name == "waiting"]
    assert places[0] >= 1 and places == sorted(places, reverse=True)
    assert not told[-2].over.is_set()
    worker.stop()


def test_what_fails_is_one_line_and_ends_no_other(caplog: Any) -> None:
    def fails(error: Exception) -> Any:
        def work(_: Any) -> Iterator[None]:
            yield
            raise error

        return work

    worker, good, bad, bug = start(), Told(), Told(), Told()
    worker.submit(Job(fails(DataError("a\nb")), bad.emit))
    worker.submit(Job(fails(ValueError("x")), bug.emit))
    worker.submit(Job(counting([], "good", 3), good.emit))
    assert all(each.over.wait(60) for each in (good, bad, bug))
    assert bad.events[-1] == ("error", {"error": "a b"}) and good.events[-1] == ("done", {})
    said = bug.events[-1][1]["error"]
    assert "(a bug)" in said and "ValueError" not in said and "x" not in said.split()
    # With its traceback in the message: a terminal shows nothing but messages.
    (record,) = caplog.records
    assert "ValueError: x" in record.getMessage() and "in fails" not in record.getMessage()
    assert "in work\n" in record.getMessage() and "DataError" not in caplog.text
    worker.stop()


def test_what_cannot_be_loaded_is_raised_at_the_start() -> None:
    def prepare() -> None:
        raise DataError("no such model")

    with pytest.raises(DataError, match="no such model"):
        Worker(1, 1.0).start(prepare)


def test_stopping_drops_what_is_left() -> None:
    worker, told = start(), Told()
    worker.submit(Job(counting([], "long", 10**9), told.emit))
    worker.stop()
    assert not told.over.is_set()


def test_the_end_waits_no_longer_than_it_is_told() -> None:
    """A step that is being computed cannot be interrupted; whoever stops is told."""
    gate, begun = threading.Event(), threading.Event()

    def held(_: Any) -> Iterator[None]:
        begun.set()
        gate.wait(60)
        yield

    worker = start()
    worker.submit(Job(held, lambda *_: None))
    assert begun.wait(60)
    assert worker.stop(0.01) is False
    gate.set()
    assert worker.stop(60) is True
