"""Logs that grow: only what is new is read, and another file is read anew."""

import json
from pathlib import Path

from logged import evaluation, train, write

from mlx_trm.serving.following import MOST_POINTS, Follower, Runs, compare


def append(folder: Path, *lines: object, end: str = "\n") -> None:
    """Write more lines to a log."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(
            "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + end
        )


def test_a_log_is_read_as_it_grows(tmp_path: Path) -> None:
    """Not there yet, begun, grown, a line that is only half there."""
    follower = Follower("run", tmp_path)
    follower.poll()
    assert follower.summary() == {
        "name": "run",
        "step": None,
        "total": None,
        "problem": "no metrics.jsonl yet",
    }
    write(tmp_path, [train(10)])
    follower.poll()
    mark = follower.mark()
    follower.poll()
    assert follower.mark() == mark and follower.summary()["step"] == 10
    half = json.dumps(train(30))
    append(tmp_path, train(20), half[:30], end="")
    follower.poll()
    assert follower.summary() == {"name": "run", "step": 20, "total": 100, "problem": ""}
    append(tmp_path, half[30:], evaluation(30, "hard"))
    follower.poll()
    found = follower.describe()
    assert found["parts"]["train"]["lr"]["steps"] == [10, 20, 30] and "eval hard" in found["parts"]


def test_only_what_is_new_is_read(tmp_path: Path) -> None:
    """What stood there before may be anything: it is not looked at again."""
    follower = Follower("run", write(tmp_path, [train(10)]))
    follower.poll()
    path = tmp_path / "metrics.jsonl"
    with path.open("r+b") as file:  # the same file, so the same place goes on
        file.write(b"#" * 20)
    append(tmp_path, train(20))
    follower.poll()
    assert follower.summary() == {"name": "run", "step": 20, "total": 100, "problem": ""}


def test_a_log_that_was_rewound_is_read_anew(tmp_path: Path) -> None:
    """Another file in its place, with as many lines; and one that was cut in place."""
    follower = Follower("run", write(tmp_path, [train(10), train(20)]))
    follower.poll()
    mark = follower.mark()
    (tmp_path / "new").write_text("".join(json.dumps(train(n)) + "\n" for n in (10, 15)))
    (tmp_path / "new").replace(tmp_path / "metrics.jsonl")
    follower.poll()
    assert follower.summary()["step"] == 15 and follower.mark() != mark
    with (tmp_path / "metrics.jsonl").open("r+") as file:
        file.truncate(len(json.dumps(train(10))) + 1)
    follower.poll()
    assert follower.summary()["step"] == 10


def test_a_line_that_is_none_is_left_out_and_said(tmp_path: Path) -> None:
    follower = Follower("run", write(tmp_path, [train(10)]))
    append(tmp_path, "<script>", train(20))
    follower.poll()
    assert follower.summary()["step"] == 20
    assert follower.summary()["problem"] == "metrics.jsonl:2: is not JSON; left out"


def test_long_logs_become_few_points(tmp_path: Path) -> None:
    follower = Follower("run", write(tmp_path, [train(n, lm_loss=n) for n in range(1, 2001)]))
    follower.poll()
    drawn = follower.describe()["parts"]["train"]["lm_loss"]
    assert len(drawn["steps"]) == len(drawn["values"]) == MOST_POINTS
    assert (drawn["values"][0], drawn["last"]) == (3.0, 2000.0)
    json.dumps(drawn, allow_nan=False)


def test_runs_are_found_and_new_ones_too(tmp_path: Path) -> None:
    """A run itself, the runs in a folder, one that begins later; checkpoints are none."""
    write(tmp_path / "a" / "x", [train(1)])
    write(tmp_path / "b" / "x", [train(2)])
    (tmp_path / "a" / "step_5").mkdir()
    for name in ("config.yaml", "state.json"):
        (tmp_path / "a" / "step_5" / name).write_text("{}")
    runs = Runs([tmp_path / "a", tmp_path / "b" / "x"])
    assert list(runs.scan()) == ["a/x", "b/x"]
    write(tmp_path / "a" / "y", [train(3)])
    assert [each["name"] for each in runs.list()] == ["a/x", "a/y", "b/x"]
    assert [each.name for each in runs.find(["b/x", "a/y", "b/x"])] == ["b/x", "a/y"]


def test_a_configuration_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    """It is read as text: what it names is not imported, what it lacks is not filled in."""
    texts = {"a": "plugins: [evil]\nseed: 1\n", "b": "seed: 1\n", "c": "{"}
    for name, text in texts.items():
        write(tmp_path / name, [train(1)])
        (tmp_path / name / "config.yaml").write_text(text)
    found = compare(list(Runs([tmp_path]).scan().values()))
    assert found["unread"] == ["c"] and found["differing"][0] == {
        "name": "plugins",
        "values": ["[evil]", None, None],
    }
