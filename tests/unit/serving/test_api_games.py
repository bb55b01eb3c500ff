"""The API with models of chess and Go: what is read, drawn, solved and refused."""

from importlib.util import find_spec
from typing import Any, Iterator

import pytest
from served import serving, untrained
from starlette.testclient import TestClient

from mlx_trm.serving.app import make_app
from mlx_trm.serving.schemas import SCHEMAS, find_problem

CHESS = find_spec("chess") is not None
KINGS = "4k3/8/8/8/8/8/8/4K3"
LADDER = "......./..XX.../.XW..../......./......./......./......."
MODELS = {"capture": ("go_tiny.yaml", ["task.kind=capture"]), "territory": ("go_tiny.yaml", [])}
if CHESS:
    ending = ["task.kind=mate1", "task.style=endings"]
    MODELS.update(mate=("chess_moves_tiny.yaml", ending), moves=("chess_moves_tiny.yaml", []))


@pytest.fixture(name="client", scope="module")
def fixture_client() -> Iterator[TestClient]:
    """A client of a server with a small model of each kind."""
    openers = [
        lambda name=name, preset=preset, changes=changes: untrained(name, preset, changes)
        for name, (preset, changes) in MODELS.items()
    ]
    with serving([], openers) as server:
        with TestClient(make_app(server), base_url="http://127.0.0.1:8765") as client:
            yield client


def ask(client: TestClient, path: str, model: str, puzzle: str, **more: Any) -> Any:
    """The response to a puzzle."""
    return client.post(path, json={"model": model, "puzzle": puzzle, **more})


@pytest.mark.parametrize("model", MODELS)
def test_an_example_is_read_and_solved(client: TestClient, model: str) -> None:
    """In the form of the page's grid, too, which stands for the same puzzle."""
    example = client.get(f"/api/example?model={model}").json()["puzzle"]
    read = ask(client, "/api/read", model, example).json()
    assert find_problem(read, SCHEMAS["Read"], "answer") == "" and read["problem"] == ""
    again = ask(client, "/api/read", model, read["typed"]).json()
    assert again == read
    solved = ask(client, "/api/solve", model, read["typed"]).json()
    assert find_problem(solved, SCHEMAS["Answer"], "answer") == ""
    assert solved["puzzle"] == read["puzzle"] and solved["remark"]
    editor = {each["name"]: each for each in client.get("/api/models").json()["models"]}[model]
    assert editor["editor"]["kind"] == "cells"


@pytest.mark.skipif(not CHESS, reason="python-chess is not installed (extra chess)")
def test_what_the_page_types_is_read(client: TestClient) -> None:
    """A row a line, the slash behind it, the other fields below; a drawing; Black's position."""
    typed = "/\n".join([*["........"] * 7, "R...K..k"]) + "\nw - -"
    assert (
        ask(client, "/api/read", "mate", typed).json()["puzzle"] == "8/8/8/8/8/8/8/R3K2k w - - 0 1"
    )
    read = ask(client, "/api/read", "moves", f"{KINGS} b - - e8").json()
    assert read["typed"].endswith(" b - - e8") and read["puzzle"].endswith("w - - 0 1 e1")


@pytest.mark.parametrize(
    "model, puzzle, said",
    [
        ("capture", LADDER.replace("W", "O"), "no group is marked"),
        ("capture", LADDER[:-2], "row 7"),
        ("capture", "(;GM[2]SZ[7])", "GM[2]"),
        ("capture", "(;SZ[9]AB[aa])", "SZ[9]"),
        ("capture", "(;SZ[7]" * 2000, "deep"),
        ("capture", " " * 19_000 + "x", "1 row"),
        ("capture", "\0", "1 row"),
        ("territory", "(;SZ[7];B[aa];W[aa])", "illegal"),
        ("territory", LADDER, "'W'"),
        ("mate", "kk6/8/8/8/8/8/8/K7", "more than one king"),
        ("mate", KINGS, "no mate in one"),
        ("mate", KINGS + " w KQkq - 0 1", "castling rights"),
        ("mate", "K" * 19_000, "19000"),
        ("mate", " " * 19_000 + "x", "0 squares"),
        ("mate", "♔\n" * 5000, "squares"),
        ("mate", "", "empty"),
        ("moves", KINGS, "is missing"),
    ],
)
def test_bad_puzzles_are_one_line(client: TestClient, model: str, puzzle: str, said: str) -> None:
    if model not in MODELS:
        pytest.skip("python-chess is not installed (extra chess)")
    response = ask(client, "/api/solve", model, puzzle)
    assert response.status_code == 422, response.text
    found = response.json()["error"]
    assert said in found and "\n" not in found and len(found) < 500
    read = ask(client, "/api/read", model, puzzle)
    assert said in read.json().get("error", "") + read.json().get("problem", "")
