"""Killed before any operation on a file: state, log, links and folder are right when it goes on.

What is killed, and what has to hold right after and in the end, is in ``tests/helpers/killing.py``.
The full run (``-m slow``) kills before every operation; otherwise a few are drawn, whose numbers
are in the message of a failure.
"""

import json
import random
import signal
import sys
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List

import pytest
from child_processes import run_python
from fetch_server import Server
from killing import FETCHED
from paths import HELPERS

from mlx_trm.datasets.sources import SOURCES

PROGRAM = HELPERS / "killing.py"
# How many operations are drawn for the sample.
SAMPLE = {"train": 3, "older": 2, "build": 1, "import": 1}
AT_ONCE = 50
SCENARIOS = ["train", "older", "build", "build_new", "export", "convert", "import", "pack",
             "unpack", "fetch"]  # fmt: skip
# Forked processes share the imports; elsewhere MLX may not be forked, even unused.
CAN_FORK = sys.platform == "linux"


def program(scenario: str, folder: Path, what: str, *numbers: object) -> List[Dict[str, Any]]:
    """Run the program, and read its lines."""
    done = run_python(PROGRAM, scenario, folder, what, *numbers, env={"OPENBLAS_NUM_THREADS": "1"})
    if what == "try" and done.returncode == -signal.SIGKILL:
        return []
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def count_operations(scenario: str, folder: Path) -> int:
    """Do everything once without a kill, to compare with."""
    if CAN_FORK:
        found = program(scenario, folder, "all", "prepared", "whole")[-1]
    else:
        program(scenario, folder, "try", "prepared")
        (found,) = program(scenario, folder, "try", "whole")
    return int(found["operations"])


def killed(scenario: str, folder: Path, numbers: Iterable[int]) -> Dict[str, List[str]]:
    """Kill before each of these operations, go on, and give what was wrong."""
    answers: List[Dict[str, Any]] = []
    wanted = list(numbers)
    if CAN_FORK:
        for start in range(0, len(wanted), AT_ONCE):  # so that no process takes too long
            answers += program(scenario, folder, "all", *wanted[start : start + AT_ONCE])
    else:
        for number in wanted:
            assert not program(scenario, folder, "try", number), f"{number}: not killed"
            answers += program(scenario, folder, "mend", number)
    return {answer["number"]: answer["wrong"] for answer in answers}


@pytest.fixture(name="server", autouse=True)
def make_server(monkeypatch: Any) -> Iterator[None]:
    """What is fetched comes from this machine."""
    monkeypatch.setenv("no_proxy", "*")
    with Server() as web:
        for file in SOURCES["conceptarc"].files:
            web.files[f"/{file.path}"] = FETCHED[file.target]
        monkeypatch.setenv("KILLING_SERVER", web.address)
        yield


@pytest.mark.parametrize("scenario", list(SAMPLE))
def test_a_sample_of_kills(scenario: str, tmp_path: Path) -> None:
    """A run from nothing, a run that goes on from an older checkpoint, and a build of data."""
    count = count_operations(scenario, tmp_path)
    assert count > 30, "the operations are counted"
    drawn = random.SystemRandom().sample(range(1, count + 1), SAMPLE[scenario])
    found = killed(scenario, tmp_path, drawn)
    assert found == {str(number): [] for number in drawn}, f"of {count} operations"


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_kill_before_every_operation(scenario: str, tmp_path: Path) -> None:
    """All of them; it takes half an hour on two cores."""
    count = count_operations(scenario, tmp_path)
    found = killed(scenario, tmp_path, range(1, count + 1))
    assert len(found) == count > 4
    assert {number: wrong for number, wrong in found.items() if wrong} == {}
