"""The command: how it starts, answers twenty at once, and ends; what it refuses in a line."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from child_processes import started, wait_until
from logged import train, write
from served import SOLVED, SUDOKU

from mlx_trm import serve
from mlx_trm.system.blas import BETTER_BLAS

JSON = {"Content-Type": "application/json"}
LONG = {"halt": "fixed", "rollouts": 1, "symmetries": False, "steps": 2000}


@contextmanager
def running(*words: object) -> Iterator[Any]:
    """A server in a process of its own, at a port of its own."""
    command = [sys.executable, "-m", "mlx_trm.serve", "--port", "0", *words]
    with started(command) as process:
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), (line, process.stderr.read())
        yield process, int(line.split(":")[2].split("/")[0])


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> Any:
    """A response, read or not, and its connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    content = None if body is None else json.dumps(body)
    connection.request(method, path, content, {**(JSON if content else {}), **headers})
    return connection.getresponse(), connection


def solve(port: int, **more: Any) -> Dict[str, Any]:
    """The answer to a puzzle."""
    response, connection = ask(
        port, "POST", "/api/solve", {"model": "sudoku-4x4", "puzzle": SUDOKU, **more}
    )
    found = json.loads(response.read())
    connection.close()
    return {**found, "status": response.status}


def interrupt(process: "subprocess.Popen[str]") -> List[Any]:
    """Ctrl-C: the exit code, and what was written but for advice that depends on the machine."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    lines = [line for line in err.splitlines(True) if BETTER_BLAS not in line]
    assert len(err.splitlines()) - len(lines) <= 1
    return [process.returncode, out, "".join(lines)]


def test_twenty_at_once_those_who_leave_and_the_end(tmp_path: Path) -> None:
    """One process for all of it: it takes seconds to start."""
    run = write(tmp_path / "run", [train(10)])
    with running("--runs", tmp_path) as (process, port):
        found: List[Dict[str, Any]] = []
        clients = [
            threading.Thread(target=lambda: found.append(solve(port, seed=0))) for _ in range(20)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert [(each["status"], each["answer"]) for each in found] == [(200, SOLVED)] * 20

        # A client leaves in the middle of its puzzle: its place is free, and others get theirs.
        body = {"model": "sudoku-4x4", "puzzle": SUDOKU, **LONG}
        for accept in ({"Accept": "text/event-stream"}, {}):
            response, connection = (None, None)
            if accept:
                response, connection = ask(port, "POST", "/api/solve", body, **accept)
                assert response.readline() == b"event: waiting\n"
                response.close()
            else:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
                connection.request("POST", "/api/solve", json.dumps(body), JSON)
                wait_until(lambda: load(port) != (0, 0), process)
            connection.close()
            wait_until(lambda: load(port) == (0, 0), process)
        assert solve(port)["status"] == 200

        # A run is followed: its log at first, and again when it has grown.
        response, connection = ask(port, "GET", "/api/logs?run=run", Accept="text/event-stream")
        assert next_event(response)["step"] == 10
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(train(20)) + "\n")
        assert next_event(response)["step"] == 20

        # Ctrl-C ends it although that client and another one are still there.
        asked, other = ask(port, "POST", "/api/solve", body, Accept="text/event-stream")
        asked.readline()
        assert interrupt(process) == [130, "", "interrupted\n"]
        connection.close()
        other.close()


def load(port: int) -> Any:
    """How many puzzles are being solved and wait."""
    response, connection = ask(port, "GET", "/api/load")
    found = json.loads(response.read())
    connection.close()
    return found["working"], found["waiting"]


def next_event(response: http.client.HTTPResponse) -> Any:
    """What the next event says."""
    while True:
        line = response.readline()
        assert line, "the stream has ended"
        if line.startswith(b"data: "):
            return json.loads(line[6:])


def test_a_port_in_use_is_one_line(capsys: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert serve.main(["--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert said == f"--port {port}: is in use; name another one, or 0 for any that is free\n"


@pytest.mark.parametrize("name", ["starlette", "uvicorn"])
def test_a_missing_package_is_one_line(name: str, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert serve.main([]) == 2
    assert capsys.readouterr().err == f'serve: needs {name}; pip install "mlx_trm[serve]"\n'


@pytest.mark.parametrize(
    "words, said",
    [
        (["nowhere"], "nowhere: no such run or checkpoint folder"),
        (["--runs", "nowhere"], "--runs nowhere: is no folder"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid: is no address"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1: cannot be used"),
        (["--port", "70000"], "'70000' is not a whole number from 0 to 65535"),
        (["--queue", "0"], "'0' is not a whole number of at least 1"),
        (["--seconds", "nan"], "'nan' is not a number above 0"),
        (["train.lr=1", "--port", "0"], "unexpected 'train.lr=1'"),
    ],
)
def test_what_cannot_be_served_is_one_line(words: List[str], said: str, capsys: Any) -> None:
    assert serve.main(words) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_damaged_model_is_one_line(tmp_path: Path, capsys: Any) -> None:
    """It is loaded before anybody is answered."""
    (tmp_path / "step_1").mkdir()
    (tmp_path / "step_1" / "state.json").write_text("{")
    assert serve.main([str(tmp_path), "--port", "0"]) == 2
    err = capsys.readouterr().err
    assert "state.json" in err and err.count("\n") == 1


def test_names_of_models(tmp_path: Path, monkeypatch: Any) -> None:
    """A run that is called like weights of the package gets a longer name; paths are never sent."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs/sudoku", "runs/mine"):
        (tmp_path / name).mkdir(parents=True)
    assert [name for name, _ in serve.name_runs(["runs/mine", "runs/mine"])] == ["mine"]
    both = serve.name_runs(["runs/mine", "runs/sudoku"])
    assert [name for name, _ in both] == ["runs/mine", "runs/sudoku"]


def test_the_address_that_is_printed() -> None:
    assert serve.url_of("0.0.0.0", 80) == "http://127.0.0.1:80/"
    assert serve.url_of("::1", 80) == "http://[::1]:80/"
    assert serve.is_local("127.0.0.1") and serve.is_local("::1") and not serve.is_local("0.0.0.0")


STUCK = """
import itertools, sys, threading, time
from mlx_trm import serve
from mlx_trm.serving import app, shelf, solving
from mlx_trm.system.patience import check_patience

def long_step(*_):
    deaf.wait()
    yield

def long_reading(*_):
    while True:
        check_patience()
        time.sleep(0.01)

app.STEP_SECONDS = 0.1
deaf = threading.Event()
if "step" in sys.argv:
    solving.solve_in_turns = long_step
else:
    shelf.Served.read = long_reading
sys.exit(serve.main(["--port", "0"]))
"""


@pytest.mark.parametrize("stuck, presses", [("step", 1), ("step", 2), ("read", 1)])
def test_the_end_comes_whatever_is_being_computed(stuck: str, presses: int) -> None:
    """A step that does not end is left after seconds, at a second Ctrl-C at once; rules stop."""
    with started([sys.executable, "-c", STUCK, stuck]) as process:
        port = int(process.stdout.readline().split(":")[2].split("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        body = {"model": "sudoku-4x4", "puzzle": SUDOKU}
        connection.request("POST", "/api/solve", json.dumps(body), JSON)
        if stuck == "step":
            wait_until(lambda: load(port)[0] == 1, process)
        else:  # nothing tells when it is being read
            time.sleep(0.2)
        for _ in range(presses - 1):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        assert interrupt(process) == [130, "", "interrupted\n"]
        connection.close()
