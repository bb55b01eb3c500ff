"""The API: what each route answers, in the shapes that its description says; what it refuses."""

import asyncio
import itertools
import json
from typing import Any, Dict, Iterator

import pytest
from child_processes import wait_until
from logged import evaluation, train, write
from openapi_spec_validator import validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError
from served import MAZE, SOLVED, SUDOKU, events_of, packaged, serving
from starlette.testclient import TestClient

from mlx_trm.serving import handlers, streams
from mlx_trm.serving.app import make_app
from mlx_trm.serving.description import ROUTES, describe
from mlx_trm.serving.schemas import SCHEMAS, find_problem
from mlx_trm.serving.worker import AT_ONCE, Job

STREAM = {"Accept": "text/event-stream"}
HERE = "http://127.0.0.1:8765"


@pytest.fixture(name="folder", scope="module")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two runs with logs and configurations, and one that has logged nothing yet."""
    top = tmp_path_factory.mktemp("runs")
    for name, rate in (("first", "1e-4"), ("second", "2e-4")):
        write(top / name, [train(10), evaluation(10), train(20)])
        (top / name / "config.yaml").write_text(f"train: {{lr: {rate}, batch_size: 8}}\nseed: 0\n")
    (top / "new").mkdir()
    (top / "new" / "config.yaml").write_text("seed: 0\n")
    (top / "other").mkdir()
    return top


@pytest.fixture(name="client", scope="module")
def fixture_client(folder: Any) -> Iterator[TestClient]:
    """A client of a server with three small models."""
    with serving([folder]) as server:
        with TestClient(make_app(server), base_url=HERE) as client:
            yield client


def answer(response: Any, schema: str, status: int = 200) -> Dict[str, Any]:
    """The JSON of a response, which is of the shape that the description says."""
    assert response.status_code == status, response.text
    content = response.json()
    assert find_problem(content, SCHEMAS[schema], "answer") == ""
    return content


def solve(client: TestClient, model: str, puzzle: str, **more: Any) -> Any:
    """Ask for a puzzle's answer."""
    headers = more.pop("headers", {})
    body = {"model": model, "puzzle": puzzle, **more}
    return client.post("/api/solve", json=body, headers=headers)


# Solving ----------------------------------------------------------------------------------------


def test_the_models_are_listed_with_what_they_take(client: TestClient) -> None:
    models = {each["name"]: each for each in answer(client.get("/api/models"), "Models")["models"]}
    assert list(models) == ["sudoku-4x4", "maze", "arc"]
    assert models["sudoku-4x4"]["settings"]["halt"] == "rules"
    assert models["sudoku-4x4"]["editor"]["boxes"] == [2, 2]
    assert models["maze"]["editor"]["kind"] == "cells" and models["maze"]["editor"]["rows"] == 5
    assert "29b20d42:2" in models["arc"]["names"] and not models["arc"]["rules"]


def test_a_puzzle_is_solved(client: TestClient) -> None:
    found = answer(solve(client, "sudoku-4x4", SUDOKU), "Answer")
    assert (found["answer"], found["accepted"], found["correct"]) == (SOLVED, True, True)
    assert found["puzzle"] == "1.....2..3.....4" and 0.5 < found["q"] <= 1
    assert len(found["confidence"]) == 4 and min(map(min, found["confidence"])) > 0.5
    (step,) = found["history"]
    assert (step["answer"], step["changed"], step["step"]) == (SOLVED, 12, 1)


def test_every_step_streams_in(client: TestClient) -> None:
    """One plain run of five steps: waiting, begin, five steps with Q and confidence, done."""
    plain = {"rollouts": 1, "halt": "fixed", "symmetries": False, "steps": 5}
    response = solve(client, "sudoku-4x4", SUDOKU, headers=STREAM, **plain)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    assert [name for name, _ in events] == ["waiting", "begin", *["step"] * 5, "done"]
    steps = [content for name, content in events if name == "step"]
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5]
    for step in steps:
        assert find_problem(step, SCHEMAS["Step"], "step") == ""
    assert steps[-1]["answer"] == SOLVED and steps[1]["changed"] == 0
    assert find_problem(events[-1][1], SCHEMAS["Answer"], "done") == ""
    assert events[-1][1]["steps"] == 5


def test_rollouts_are_told_apart(client: TestClient) -> None:
    """Fixed steps of two runs, one on a symmetric copy: its answers are the puzzle's own."""
    asked = {"rollouts": 2, "halt": "fixed", "symmetries": True, "steps": 2}
    events = events_of(solve(client, "sudoku-4x4", SUDOKU, headers=STREAM, **asked).text)
    steps = [content for name, content in events if name == "step"]
    assert sorted((each["rollout"], each["step"]) for each in steps) == [
        (0, 1),
        (0, 2),
        (1, 1),
        (1, 2),
    ]
    assert {each["answer"] for each in steps if each["step"] == 2} == {SOLVED}


def test_drawings_are_those_of_the_page(client: TestClient) -> None:
    events = events_of(solve(client, "sudoku-4x4", SUDOKU, headers=STREAM, draw=True).text)
    begin, step = dict(events)["begin"], dict(events)["step"]
    assert begin["drawing"]["puzzle"]["s"][0] == "1" and begin["drawing"]["solution"]["t"] == SOLVED
    assert step["frame"]["board"]["t"] == SOLVED and len(step["frame"]["k"]) == 2 * 16


def test_mazes_and_tasks_by_name(client: TestClient) -> None:
    maze = answer(solve(client, "maze", MAZE), "Answer")
    assert maze["remark"] and maze["accepted"] is False and len(maze["confidence"]) == 5
    task = answer(solve(client, "arc", "29b20d42:1"), "Answer")
    assert task["accepted"] is None and task["correct"] is False
    rows = task["answer"].split("/")
    assert (len(task["confidence"]), len(task["confidence"][0])) == (len(rows), len(rows[0]))


def test_a_puzzle_is_read(client: TestClient) -> None:
    """Rows as they are pasted; what has no answer is drawn too, and the problem said."""

    def ask(text: str, model: str = "sudoku-4x4") -> Any:
        return client.post("/api/read", json={"model": model, "puzzle": text})

    found = answer(ask("1 . . .\n. . 2 .\n. 3 . .\n. . . 4\n"), "Read")
    assert (found["puzzle"], found["problem"]) == ("1.....2..3.....4", "")
    assert found["drawing"]["m"][0] == "1"
    assert "more than one solution" in answer(ask("................"), "Read")["problem"]
    assert "twice in row 1" in answer(ask("11.............."), "Error", 422)["error"]
    assert found["demonstrations"] == []


def test_what_an_arc_task_asks_for_is_shown(client: TestClient) -> None:
    """Its demonstration pairs, by its name and by its grid; none of a grid that is in no task."""

    def read(text: str) -> Any:
        return answer(client.post("/api/read", json={"model": "arc", "puzzle": text}), "Read")

    found = read("29b20d42:2")
    assert found["drawing"]["c"]
    shown = found["demonstrations"]
    assert len(shown) == 4 and all(pair[side]["c"] for pair in shown for side in pair)
    assert [list(pair) for pair in shown] == [["puzzle", "answer"]] * 4
    assert any(pair["puzzle"]["t"] != pair["answer"]["t"] for pair in shown)
    assert read(found["puzzle"])["demonstrations"] == shown
    assert read("123/321")["demonstrations"] == []


@pytest.mark.parametrize("model", ["sudoku-4x4", "maze", "arc"])
def test_examples_can_be_solved(client: TestClient, model: str) -> None:
    text = answer(client.get("/api/example", params={"model": model}), "Example")["puzzle"]
    answer(solve(client, model, text, steps=1, rollouts=1), "Answer")


# What is refused --------------------------------------------------------------------------------

BAD = [
    ({"puzzle": SUDOKU}, 422, "lacks the field 'model'"),
    ({"model": "sudoku-4x4"}, 422, "lacks the field 'puzzle'"),
    ({"model": "sudoku-4x5", "puzzle": SUDOKU}, 422, "did you mean 'sudoku-4x4'"),
    ({"model": "../weights", "puzzle": SUDOKU}, 422, "no model"),
    ({"model": "sudoku-4x4", "puzzle": ""}, 422, "puzzle is empty"),
    ({"model": "sudoku-4x4", "puzzle": "1" * 20001}, 422, "longer than 20000"),
    ({"model": "sudoku-4x4", "puzzle": "1..."}, 422, "4 cells"),
    ({"model": "sudoku-4x4", "puzzle": "." * 16}, 422, "more than one solution"),
    ({"model": "sudoku-4x4", "puzzle": "123....4........"}, 422, "no solution"),
    ({"model": "arc", "puzzle": "/etc/passwd"}, 422, "rows of digits"),
    ({"model": "sudoku-4x4", "puzzle": SUDOKU, "steps": 0}, 422, "at least 1"),
    ({"model": "sudoku-4x4", "puzzle": SUDOKU, "steps": 300}, 422, "at most 2048"),
    ({"model": "sudoku-4x4", "puzzle": SUDOKU, "steps": True}, 422, "of type integer"),
    ({"model": "sudoku-4x4", "puzzle": SUDOKU, "step": 3}, 422, "did you mean 'steps'"),
    ({"model": "sudoku-4x4", "puzzle": SUDOKU, "halt": "never"}, 422, "must be one of"),
    ({"model": "sudoku-4x4", "puzzle": SUDOKU, "seed": -1}, 422, "at least 0"),
    ({"model": "arc", "puzzle": "29b20d42:1", "halt": "rules"}, 422, "has no rules"),
    ([], 422, "of type object"),
]


@pytest.mark.parametrize("body, status, words", BAD)
def test_bad_requests_are_one_line(client: TestClient, body: Any, status: int, words: str) -> None:
    for headers in ({}, STREAM):
        response = client.post("/api/solve", json=body, headers=headers)
        found = answer(response, "Error", status)["error"]
        assert words in found and "\n" not in found


def test_requests_that_cannot_be_read(client: TestClient) -> None:
    """No JSON, a form of another site, too much, nested without end, another method, no route."""
    head = {"Content-Type": "application/json"}

    def post(content: bytes, headers: Any = head) -> Any:
        return client.post("/api/solve", content=content, headers=headers)

    assert "not JSON" in answer(post(b"{"), "Error", 400)["error"]
    assert "not JSON" in answer(post(b"[" * 30000), "Error", 400)["error"]
    assert answer(post(b"a=1", {"Content-Type": "text/plain"}), "Error", 415)
    assert "65536" in answer(post(b" " * 70000), "Error", 413)["error"]
    assert answer(client.get("/api/solve"), "Error", 405) and answer(client.get("/x"), "Error", 404)
    assert answer(client.get("/assets/../serve.py"), "Error", 404)
    assert answer(client.get("/assets/%2e%2e%2fapp.py"), "Error", 404)


def test_a_request_that_does_not_come_is_given_up(client: TestClient, monkeypatch: Any) -> None:
    async def never(_: Any) -> bytes:
        await asyncio.sleep(60)
        return b""

    monkeypatch.setattr(handlers, "BODY_SECONDS", 0.01)
    monkeypatch.setattr(handlers, "_receive", never)
    assert "in time" in answer(solve(client, "sudoku-4x4", SUDOKU), "Error", 408)["error"]


def test_a_bug_is_a_line_too(client: TestClient, monkeypatch: Any, caplog: Any) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("a <b>bug</b>")

    monkeypatch.setattr(handlers, "prepare_work", broken)
    found = answer(solve(client, "sudoku-4x4", SUDOKU), "Error", 500)
    assert "(a bug)" in found["error"] and "KeyError" not in found["error"]
    assert "KeyError: 'a <b>bug</b>'" in caplog.messages[-1] and "in broken" in caplog.messages[-1]


def test_a_bug_in_a_stream_is_its_last_event(
    client: TestClient, monkeypatch: Any, caplog: Any
) -> None:
    """The status has been sent by then; the terminal gets the traceback here too."""

    async def broken(*_: Any) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(streams.Events, "next", broken)
    response = solve(client, "sudoku-4x4", SUDOKU, headers=STREAM)
    ((name, content),) = events_of(response.text)
    assert name == "error" and "(a bug)" in content["error"] and "secret" not in response.text
    assert "secret" in caplog.messages[-1] and "in broken" in caplog.messages[-1]


@pytest.mark.parametrize("path", ["/api/read", "/api/solve"])
def test_what_the_rules_cannot_tell_in_time_is_given_up(path: str) -> None:
    """By the deadline, or as soon as the server ends; otherwise a thread would keep it waiting."""
    body = {"model": "sudoku-4x4", "puzzle": SUDOKU}
    with serving(openers=[packaged]) as server:
        server.doorman = streams.Doorman(1e-9)
        client = TestClient(make_app(server), base_url=HERE)
        found = answer(client.post(path, json=body), "Error", 422)
        assert "given up after 1e-09 s" in found["error"]
        server.doorman = streams.Doorman(60)
        server.doorman.close()
        found = answer(client.post(path, json=body), "Error", 422)
        assert "nobody waits" in found["error"]


def test_under_load_a_client_is_told_when_to_come_again() -> None:
    """Four puzzles that never end take turns, and nobody may wait; once they leave all is well."""
    endless = [Job(lambda emit: itertools.repeat(None), lambda *_: None) for _ in range(AT_ONCE)]
    with serving(openers=[packaged], waiting=0) as server:
        client = TestClient(make_app(server), base_url=HERE)
        for job in endless:
            server.worker.submit(job)
        wait_until(lambda: server.worker.load()["waiting"] == 0)
        load = answer(client.get("/api/load"), "Load")
        assert load == {"working": AT_ONCE, "waiting": 0, "most_waiting": 0}
        for headers in ({}, STREAM):
            response = solve(client, "sudoku-4x4", SUDOKU, headers=headers)
            assert "try again" in answer(response, "Error", 503)["error"]
            assert 1 <= int(response.headers["Retry-After"]) <= 60
        for job in endless:
            job.leave()
        wait_until(lambda: server.worker.load()["working"] == 0)
        answer(solve(client, "sudoku-4x4", SUDOKU), "Answer")


def test_a_puzzle_that_takes_too_long_is_given_up() -> None:
    with serving(openers=[packaged], seconds=0.0) as server:
        client = TestClient(make_app(server), base_url=HERE)
        asked = {"halt": "fixed", "rollouts": 1, "symmetries": False, "steps": 200}
        assert (
            "given up after 0 s"
            in answer(solve(client, "sudoku-4x4", SUDOKU, **asked), "Error", 422)["error"]
        )
        events = events_of(solve(client, "sudoku-4x4", SUDOKU, headers=STREAM, **asked).text)
        assert events[-1][0] == "error"
        wait_until(lambda: server.worker.load()["working"] == 0)


# Runs -------------------------------------------------------------------------------------------


def test_runs_are_listed(client: TestClient) -> None:
    runs = answer(client.get("/api/runs"), "Runs")["runs"]
    assert [(run["name"], run["step"], run["total"]) for run in runs] == [
        ("first", 20, 100),
        ("new", None, None),
        ("second", 20, 100),
    ]


def test_logs_are_curves(client: TestClient) -> None:
    (log,) = answer(client.get("/api/logs?run=first"), "Logs")["logs"]
    assert log["parts"]["train"]["lm_loss"] == {
        "steps": [10, 20],
        "values": [0.2, 0.1],
        "last": 0.1,
    }
    assert log["parts"]["eval all"]["exact_accuracy"]["last"] == 0.2
    assert log["metrics"][:4] == ["lm_loss", "q_halt_loss", "exact_accuracy", "accuracy"]
    assert "count" not in log["metrics"] and "exact_accuracy_low" not in log["metrics"]


def test_runs_are_compared_by_the_settings_that_differ(client: TestClient) -> None:
    found = answer(client.get("/api/compare?run=first&run=second"), "Comparison")
    assert found["differing"] == [{"name": "train.lr", "values": ["0.0001", "0.0002"]}]
    assert [each["name"] for each in found["same"]] == ["train.batch_size", "seed"]


@pytest.mark.parametrize("path", ["/api/logs", "/api/compare"])
def test_a_run_is_a_name_and_no_path(client: TestClient, folder: Any, path: str) -> None:
    for name in ("../first", str(folder / "first"), "other", "/etc", "firts"):
        found = answer(client.get(path, params={"run": name}), "Error", 422)["error"]
        assert "no run" in found
    assert "no run is named" in answer(client.get(path), "Error", 422)["error"]
    assert answer(client.get(path, params={"run": ["first"] * 13}), "Error", 422)


# The table --------------------------------------------------------------------------------------


def test_the_description_is_the_table(client: TestClient) -> None:
    """Every route that answers is described, with a schema that is there."""
    document = client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    described = {(m.upper(), path) for path, item in document["paths"].items() for m in item}
    assert described == {(route.method, route.path) for route in ROUTES}
    text = json.dumps(document)
    for name in document["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in text or name == "Step", name
    names = [op["operationId"] for item in document["paths"].values() for op in item.values()]
    assert len(set(names)) == len(names)
    for item in document["paths"].values():
        for operation in item.values():
            assert set(operation["responses"]) >= {"200", "403"} and operation["summary"]


def test_the_description_is_valid() -> None:
    """By the specification's own schema, which notices what is missing."""
    validate(describe())
    broken = describe()
    del broken["paths"]["/api/load"]["get"]["responses"]["200"]["description"]
    with pytest.raises(OpenAPIValidationError):
        validate(broken)


def test_each_route_is_tried_here(client: TestClient) -> None:
    """Pages and assets too; a route that is added is missing until its test is written."""
    tried = {"/", "/runs", "/openapi.json", "/assets/{name}", "/api/load"}
    for path in ("/", "/runs", "/openapi.json", "/assets/solve.js", "/api/load"):
        assert client.get(path).status_code == 200, path
    tried |= {"/api/models", "/api/example", "/api/read", "/api/solve"}
    tried |= {"/api/runs", "/api/logs", "/api/compare"}
    assert {route.path for route in ROUTES} == tried


def test_too_many_puzzles_to_read_are_refused(client: TestClient, monkeypatch: Any) -> None:
    monkeypatch.setattr(streams, "MOST_READING", 0)
    for path in ("/api/read", "/api/solve"):
        response = client.post(path, json={"model": "sudoku-4x4", "puzzle": SUDOKU})
        assert "being read" in answer(response, "Error", 503)["error"]
        assert response.headers["Retry-After"] == "5"


@pytest.mark.parametrize("busy", [False, True])
def test_who_waits_for_an_answer_may_leave(busy: bool, monkeypatch: Any) -> None:
    """The client is looked for, and gone: where nothing happens, and while steps keep coming."""

    class Gone:
        """A client that has left."""

        async def is_disconnected(self) -> bool:
            return True

    class Steps(streams.Events):
        """Endless."""

        async def next(self, seconds: float) -> Any:
            await asyncio.sleep(0.001)
            return "step", {}

    async def wait() -> Any:
        events = Steps() if busy else streams.Events()
        collected = handlers._collect(Gone(), events)  # type: ignore[arg-type]
        return await asyncio.wait_for(collected, 60)

    monkeypatch.setattr(handlers, "LOOK_SECONDS", 0.01)
    assert asyncio.run(wait()).status_code == 503
