"""``python -m mlx_trm.solve``: what it prints, writes and refuses."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any, List, NamedTuple, Optional

import numpy as np
import pytest
from PIL import Image
from scripted import (
    FIRST,
    FIRST_SOLVED,
    SECOND,
    SECOND_SOLVED,
    experiment,
    scripted_model,
)

from mlx_trm.drawing.terminal import EXPLAINED, draw_bar, side_by_side, with_beliefs
from mlx_trm.inference.packaged import find_pretrained
from mlx_trm.models import TRM, TRMConfig
from mlx_trm.runs.checkpoint import save_checkpoint
from mlx_trm.solve import main
from mlx_trm.tasks import build_task
from mlx_trm.tasks.text import underline_changes

GIVEN = """\
┌─────┬─────┐
│ 1 . │ . . │
│ . . │ 2 . │
├─────┼─────┤
│ . 3 │ . . │
│ . . │ . 4 │
└─────┴─────┘
"""
AFTER_TWO = """\
┌─────┬─────┐   step  Q
│ 1 2 │ 4 3 │      1  ███▊······ 0.38
│+3+4 │+2 1 │      2  ██████▎··· 0.62
├─────┼─────┤
│!1!1 │ 1!1 │
│!1 1 │!1!1 │
└─────┴─────┘
"""
AFTER_FOUR = """\
┌─────┬─────┐   step  Q
│ 1 2 │ 4 3 │      1  ███▊······ 0.38
│ 3 4 │ 2 1 │      2  ██████▎··· 0.62
├─────┼─────┤      3  ████████▏· 0.82
│ 4 3 │ 1 2 │      4  █████████▎ 0.92
│+2 1 │+3+4 │
└─────┴─────┘
"""
SOLVED = """\
┌─────┬─────┐
│ 1 2 │ 4 3 │
│ 3 4 │ 2 1 │
├─────┼─────┤
│ 4 3 │ 1 2 │
│ 2 1 │ 3 4 │
└─────┴─────┘
"""


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module", name="run_dir")
def fixture_run_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of the scripted model."""
    run = tmp_path_factory.mktemp("runs") / "scripted"
    save_checkpoint(run, scripted_model(), experiment(), 7)
    return str(run)


@pytest.fixture(name="solve")
def fixture_solve(capsys: pytest.CaptureFixture[str], run_dir: str) -> Any:
    """Run the command in this process; the run folder is put in."""

    def call(*words: str, run: Optional[str] = None) -> Result:
        code = main([run or run_dir, *words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


def test_the_final_answer_stands_beside_the_puzzle(solve: Any) -> None:
    """With what the model believes and whether the answer is right."""
    done = solve(FIRST)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == f"puzzle: {FIRST}"
    pairs = zip(GIVEN.splitlines(), SOLVED.splitlines())
    assert lines[1:-1] == [f"{left}   {right}" for left, right in pairs]
    assert lines[-1] == "after 4 steps: right, halt probability 0.924"


def test_every_step_is_shown_when_asked_for(solve: Any) -> None:
    """The puzzle, then each answer with the beliefs; what changed or is wrong is marked."""
    done = solve(FIRST, "--show", "steps")
    assert done.code == 0
    assert done.out.startswith(
        f"puzzle: {FIRST}\n{GIVEN}{EXPLAINED}\n\nstep 1: 15 cells changed, wrong ("
    )
    second = "\nstep 2: 3 cells changed, wrong (10 of 16 cells right), halt probability 0.622\n"
    assert second + AFTER_TWO + "\nstep 3: 3 cells changed" in done.out
    last = "\nstep 4: 3 cells changed, right, halt probability 0.924\n" + AFTER_FOUR
    assert done.out.endswith(last + "after 4 steps: right, halt probability 0.924\n")
    assert len(re.findall("^step ", done.out, flags=re.MULTILINE)) == 4


@pytest.mark.parametrize("show", ["final", "steps"])
def test_steps_can_be_fewer(solve: Any, show: str) -> None:
    """By number, or because the model believes its answer right."""
    done = solve(FIRST, "--show", show, "--steps", "1")
    assert "after 1 step: wrong (7 of 16 cells right), halt probability 0.378\n" in done.out
    done = solve(FIRST, "--show", show, "--stop-when-halted")
    assert "after 2 steps: wrong (10 of 16 cells right), halt probability 0.622\n" in done.out


def test_a_file_holds_several_puzzles(solve: Any, tmp_path: Path) -> None:
    """One a line, with comments; the last line sums up."""
    file = tmp_path / "puzzles.txt"
    file.write_text(f"# two puzzles\n1... ..2. .3.. ...4\n\n{SECOND}  # easy\n", encoding="utf-8")
    for show in ("final", "steps"):
        done = solve(str(file), "--show", show)
        assert done.code == 0
        assert f"puzzle 1 of 2 ({file}:2): {FIRST}\n" in done.out
        assert f"puzzle 2 of 2 ({file}:4): {SECOND}\n" in done.out
        assert done.out.endswith(
            "2 puzzles: 2 right (100.0 %), 4.0 steps and halt probability 0.871 on average\n"
        )
    done = solve(str(file), "--steps", "3", "--stop-when-halted")
    assert "2 puzzles: 0 right (0.0 %), 2.5 steps and" in done.out


def test_quiet_is_a_line_for_each_puzzle(solve: Any, tmp_path: Path) -> None:
    """The answer comes first, so that it can be cut out; both ways of solving say the same."""
    file = tmp_path / "puzzles.txt"
    file.write_text(f"{SECOND}\n{FIRST}\n", encoding="utf-8")
    expected = [
        f"{SECOND_SOLVED}  after 4 steps: right, halt probability 0.818",
        f"{FIRST_SOLVED}  after 4 steps: right, halt probability 0.924",
    ]
    assert solve(str(file), "-q").out.splitlines()[:-1] == expected
    assert solve(str(file), "-q", "--show", "steps").out.splitlines()[:-1] == expected


def test_more_puzzles_than_a_batch(solve: Any, tmp_path: Path) -> None:
    """They come out in the order they came in."""
    file = tmp_path / "puzzles.txt"
    file.write_text(f"{FIRST}\n{FIRST}\n{SECOND}\n" * 24, encoding="utf-8")
    answers = [line[:16] for line in solve(str(file), "-q").out.splitlines()[:-1]]
    assert answers == [FIRST_SOLVED, FIRST_SOLVED, SECOND_SOLVED] * 24


def test_a_csv_of_the_references_columns(solve: Any, tmp_path: Path) -> None:
    """Its column ``question`` is solved."""
    file = tmp_path / "puzzles.csv"
    rows = f"a,{FIRST},{FIRST_SOLVED},0\nb,{SECOND},{SECOND_SOLVED},1\n"
    file.write_text(f"source,question,answer,rating\n{rows}", encoding="utf-8")
    done = solve(str(file))
    assert f"puzzle 2 of 2 ({file}:3): {SECOND}\n" in done.out


def test_standard_input(solve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """``-`` reads puzzles from there, a line each."""
    text = io.TextIOWrapper(io.BytesIO(f"{FIRST}\n".encode()), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", text)
    assert f"puzzle (standard input:1): {FIRST}\n" in solve("-").out


def test_standard_input_without_end(solve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is read of it than of a file: one line."""
    endless = io.BytesIO(b"1" * 10_000)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(endless, encoding="utf-8"))
    monkeypatch.setattr("mlx_trm.cli.puzzles._MOST_BYTES", 1000)
    done = solve("-")
    assert done.code == 2 and done.err.count("\n") == 1
    assert "standard input: has more than 1,000 bytes; give fewer puzzles" in done.err
    assert endless.tell() < 10_000


@pytest.mark.parametrize("show", ["final", "steps"])
def test_json_holds_every_step(solve: Any, tmp_path: Path, show: str) -> None:
    """Also where only the last is shown."""
    file = tmp_path / "steps.json"
    done = solve(FIRST, "--show", show, "--json", str(file))
    assert done.code == 0 and "after 4 steps: right" in done.out
    (entry,) = json.loads(file.read_text(encoding="utf-8"))
    assert (entry["puzzle"], entry["solution"]) == (FIRST, FIRST_SOLVED)
    assert [step["step"] for step in entry["steps"]] == [1, 2, 3, 4]
    assert [step["correct"] for step in entry["steps"]] == [False, False, False, True]
    assert [step["changed"] for step in entry["steps"]] == [15, 3, 3, 3]
    assert entry["steps"][1]["answer"] == FIRST_SOLVED[:8] + "1" * 8
    assert entry["steps"][1]["halt_probability"] == pytest.approx(0.6224593)


BAD_PUZZLES = {
    "empty": ("", "the puzzle has 0 cells, 4x4 needs 16"),
    "short": ("1234", "the puzzle has 4 cells, 4x4 needs 16"),
    "9x9": ("." * 81, "the puzzle has 81 cells, 4x4 needs 16"),
    "letter": ("1...x...........", "'x'"),
    "digit": ("1...5...........", "'5'"),
    "contradiction": ("11..............", "contradictory givens: 1 stands twice in row 1"),
    "no solution": ("123...4.........", "the puzzle has no solution"),
    "two solutions": ("1....2....3....4", "more than one solution: row "),
    "blank": ("." * 16, "more than one solution: row "),
    "no file": ("puzzles.txt", "puzzles.txt: no such file"),
    "no such path": ("some/where", "some/where: no such file"),
}


@pytest.mark.parametrize("show", ["final", "steps"])
@pytest.mark.parametrize("case", sorted(BAD_PUZZLES))
def test_impossible_puzzles_are_refused(solve: Any, case: str, show: str) -> None:
    """One line, exit code 2, and nothing is solved."""
    puzzle, message = BAD_PUZZLES[case]
    done = solve(puzzle, "--show", show)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert len(done.err.splitlines()) == 1


BAD_FILES = {
    "empty": (b"\n  \n", "holds no puzzle"),
    "comments": (b"# nothing\n", "holds no puzzle"),
    "not text": (b"\xff\xfe\x00", "is not UTF-8 text"),
    "one bad line": (f"{FIRST}\n12\n".encode(), "bad.txt:2: the puzzle has 2 cells"),
}


@pytest.mark.parametrize("case", sorted(BAD_FILES))
def test_files_that_cannot_be_used(solve: Any, tmp_path: Path, case: str) -> None:
    """One line that names the file, and exit code 2."""
    content, message = BAD_FILES[case]
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    done = solve(str(file))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(str(file)) and message in done.err
    assert len(done.err.splitlines()) == 1


def test_every_bad_line_is_reported(solve: Any, tmp_path: Path) -> None:
    """A heading and a line each in the file's order, ten at most."""
    file = tmp_path / "bad.txt"
    file.write_text(f"{FIRST}\n{'.' * 16}\n1\n", encoding="utf-8")
    lines = solve(str(file)).err.splitlines()
    assert lines[0] == f"{file} has 2 problems:"
    assert lines[1].startswith(f"  {file}:2: the puzzle has more than one solution")
    assert lines[2] == f"  {file}:3: the puzzle has 1 cells, 4x4 needs 16"
    file.write_text("1\n" * 13, encoding="utf-8")
    lines = solve(str(file)).err.splitlines()
    assert lines[0] == f"{file} has 13 problems:" and len(lines) == 12
    assert lines[-1] == "  and 3 more"


def test_other_things_that_can_be_mended(solve: Any, tmp_path: Path) -> None:
    """A folder for a puzzle, no run, a file for a run, no place for the JSON file, bad options."""
    folder = str(tmp_path)
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    cases: List[Any] = [
        (solve(folder), f"{folder}: is a folder"),
        (solve(FIRST, run=str(tmp_path / "none")), "no such run"),
        (solve(FIRST, run=folder), "holds no checkpoint"),
        (solve(FIRST, run=str(file)), "is a file"),
        (solve(FIRST, "-q", "--json", str(file / "x.json")), "cannot be written"),
        (solve(FIRST, "--steps", "0"), "'0' is not a whole number of at least 1"),
        (solve(FIRST, "--show", "all"), "--show"),
        (solve(FIRST, SECOND), SECOND),
    ]
    for done, message in cases:
        assert done.code == 2, message
        assert message in done.err
        assert len(done.err.splitlines()) == 1


def test_colour_is_for_terminals(solve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for files and pipes, and not where NO_COLOR is set."""
    assert "\033" not in solve(FIRST, "--show", "steps").out
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    colored = solve(FIRST, "--show", "steps").out
    assert "\033[1m1\033[0m" in colored  # a given
    # After step 2 row 2 has changed to 3421, whose 2 is given; its 1 was there before.
    assert "+\033[4m3\033[0m+\033[4m4\033[0m │+\033[1m\033[4m2\033[0m 1 │" in colored
    assert "!\033[31m1\033[0m" in colored  # wrong, and there before
    assert re.sub("\033\\[[0-9]+m", "", colored) == solve_plain(solve, monkeypatch)


def solve_plain(solve: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same in a terminal without colours."""
    monkeypatch.setenv("NO_COLOR", "1")
    plain: str = solve(FIRST, "--show", "steps").out
    assert "\033" not in plain
    return plain


def test_side_by_side_ignores_colour() -> None:
    """Codes take no room, and the shorter drawing is filled up."""
    left = "a\033[1mb\033[0m\nabc"
    assert side_by_side(left, "x\ny\nz", " ") == "a\033[1mb\033[0m  x\nabc y\n    z"


def test_a_bar_holds_a_share() -> None:
    """In eighths of a character; what is no number, or none between 0 and 1, breaks nothing."""
    bars = {0.0: "·" * 10, 0.5: "█████·····", 0.56: "█████▋····", 1.0: "█" * 10, 7.0: "█" * 10}
    assert {share: draw_bar(share) for share in bars} == bars
    assert draw_bar(float("nan")) == draw_bar(-1.0) == bars[0.0]


def test_a_long_run_shows_its_last_beliefs() -> None:
    """As many as the drawing has lines for."""
    shown = with_beliefs("a\nb\nc", [0.0, 0.25, 0.5, 1.0]).splitlines()
    assert [line[:10] for line in shown] == ["a   step  ", "b      3  ", "c      4  "]


def test_underlining_needs_drawings_of_one_shape() -> None:
    """A task whose drawings vary in length is shown without it."""
    assert underline_changes("abc", "abc", "abcd") == "abc"
    assert underline_changes("!\033[31mb\033[0mc", " bc", " xc") == (
        "!\033[31m\033[4mb\033[24m\033[0mc"
    )


def test_a_real_model_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights answer, wrongly, and that is exit code 0."""
    config = experiment(
        TRMConfig(hidden_size=16, num_heads=2, L_layers=1, swiglu_multiple=16, halt_max_steps=3)
    )
    model = TRM(config.model, build_task(config.task).spec, seed=1)
    save_checkpoint(tmp_path / "run", model, config, 0)
    assert main([str(tmp_path / "run"), FIRST, "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    last = next(line for line in out.splitlines() if line.startswith("after"))
    match = re.fullmatch(r"after 3 steps: wrong \((\d+) of 16 cells right\), .* 0\.007", last)
    assert match and int(match.group(1)) < 16
    assert np.isclose(1 / (1 + np.exp(5.0)), 0.007, atol=5e-4)  # the Q head starts at -5


@pytest.mark.parametrize("options", ["", "--halt rules --rollouts 3 --symmetries"])
def test_pictures_of_every_step(solve: Any, tmp_path: Path, options: str) -> None:
    """A strip, an animation and a page, each named; the rest is the same without them."""
    files = [tmp_path / name for name in ("a.png", "a.gif", "a.html")]
    words = [word for file in files for word in (f"--{file.suffix[1:]}", str(file))]
    done = solve(FIRST, *words, *options.split())
    assert (done.code, done.err) == (0, "".join(f"written: {file}\n" for file in files))
    assert done.out == solve(FIRST, *options.split()).out
    assert solve(FIRST, "-q", *words).err == ""
    with Image.open(files[0]) as strip, Image.open(files[1]) as animation:
        assert (strip.format, animation.format) == ("PNG", "GIF")
        assert animation.n_frames == 5  # the puzzle and four steps
    text = files[2].read_text(encoding="utf-8")
    (scene,) = json.loads(re.findall('id="data">(.*)</script>', text)[0])
    assert scene["title"] == FIRST and scene["puzzle"]["t"] == FIRST
    assert scene["solution"]["t"] == FIRST_SOLVED
    (take,) = scene["takes"]
    assert (take["rollout"], take["chosen"]) == (0, True)
    assert [frame["correct"] for frame in take["frames"]] == [False, False, False, True]
    assert [frame["changed"] for frame in take["frames"]] == [15, 3, 3, 3]
    assert take["frames"][1]["q"] == pytest.approx(0.622459, abs=1e-6)
    assert take["frames"][3]["board"]["t"] == FIRST_SOLVED


def test_a_page_has_every_rollout(solve: Any, tmp_path: Path) -> None:
    """Also those whose answer was not taken."""
    file = tmp_path / "a.html"
    assert (
        solve(FIRST, "--html", str(file), *"--rollouts 3 --steps 2 --noise 1e-3".split()).code == 0
    )
    (scene,) = json.loads(re.findall('id="data">(.*)</script>', file.read_text("utf-8"))[0])
    assert [take["rollout"] for take in scene["takes"]] == [0, 1, 2]
    assert sum(take["chosen"] for take in scene["takes"]) == 1
    assert all([frame["step"] for frame in t["frames"]] == [1, 2] for t in scene["takes"])


def test_pictures_need_pillow(solve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the command that installs it, before anything is solved; a page needs none."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    for option in ("--png", "--gif"):
        done = solve(FIRST, option, str(tmp_path / "a"))
        assert (done.code, done.out) == (2, "")
        assert done.err == f'{option}: needs Pillow; pip install "mlx_trm[plot]"\n'
    assert solve(FIRST, "--html", str(tmp_path / "a")).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_pictures_that_cannot_be_made(
    solve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many grids, or no place for the file: a line, and no file."""
    monkeypatch.setattr("mlx_trm.drawing.raster.MOST_PANELS", 4)
    monkeypatch.setattr("mlx_trm.drawing.page.MOST_CELLS", 16)
    for option in ("--png", "--gif", "--html"):
        done = solve(FIRST, option, str(tmp_path / "a"))
        assert done.code == 2 and done.err.startswith(f"{option}: ") and "show fewer" in done.err
        done = solve(FIRST, option, str(tmp_path / "none" / "a"))
        assert done.code == 2 and "cannot be written (there is no folder" in done.err
    assert not list(tmp_path.iterdir())


def test_every_step_of_a_belief_that_is_no_number(
    solve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that diverged still gives a readable file: null."""
    own = type(scripted_model()).reason

    def reason(self: Any, carry: Any, rows: Any) -> Any:
        latents, outputs = own(self, carry, rows)
        return latents, outputs._replace(q_halt=outputs.q_halt * float("nan"))

    monkeypatch.setattr(type(scripted_model()), "reason", reason)
    assert solve(FIRST, "--json", str(tmp_path / "x.json"), "--steps", "1").code == 0
    (entry,) = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert entry["steps"][0]["halt_probability"] is None


def test_several_runs_say_what_they_took_and_how_it_is_known(solve: Any, tmp_path: Path) -> None:
    """Steps and rollouts, and by what the answer is known; the same as JSON."""
    path = tmp_path / "r.json"
    done = solve(FIRST, "--halt", "rules", "--rollouts", "3", "--symmetries", "--json", str(path))
    assert done.code == 0
    assert done.out.endswith("after 4 steps in 1 rollout: right, accepted by the rules\n")
    found = json.loads(path.read_text())[0]
    assert found["answer"] == FIRST_SOLVED and found["accepted"] and found["steps"] == 4
    assert len(found["confidence"]) == 16 and found["solution"] == FIRST_SOLVED
    done = solve(FIRST, "--halt", "q", "-q")
    assert re.search(r"in 1 rollout: wrong .*, not accepted by the rules, q 0.62", done.out)


def test_several_puzzles_of_several_runs(solve: Any, tmp_path: Path) -> None:
    """Each in its place, and a line that sums them up."""
    file = tmp_path / "puzzles.txt"
    file.write_text(f"{FIRST}\n{SECOND}\n{FIRST}\n")
    done = solve(str(file), "--halt", "rules", "-q")
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == [FIRST_SOLVED, SECOND_SOLVED, FIRST_SOLVED]
    assert lines[3] == (
        "3 puzzles: 3 right (100.0 %), 3 accepted by the rules, 4.0 steps and 1.0 rollouts on "
        "average"
    )


@pytest.mark.parametrize(
    "words, message",
    [
        (["--show", "steps", "--halt", "q"], "are for one plain run"),
        (["--stop-when-halted", "--rollouts", "2"], "are for one plain run"),
        (["--rollouts", "2"], "no latent but the answer's"),
        (["--select", "first_halt"], "first_halt needs rollouts that halt"),
        (["--rollouts", "0"], "not a whole number of at least 1"),
    ],
)
def test_several_runs_that_cannot_be(solve: Any, words: List[str], message: str) -> None:
    """In one line, with exit code 2."""
    done = solve(FIRST, *words)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1


# Without a RUN ----------------------------------------------------------------------------------


def test_a_puzzle_alone_is_given_to_weights_of_the_package(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As an argument, with options before it and behind, and through standard input."""
    puzzle, answer = "4.21 1... 3.4. ..1.", "4321123431422413"
    for words in ([puzzle], ["-q", puzzle], [puzzle, "--rollouts", "2"], ["--halt", "q", puzzle]):
        assert main(words) == 0
        printed = capsys.readouterr().out
        assert answer in printed or "3 1 │ 4 2" in printed
        assert "right" in printed
    assert "accepted by the rules" in printed or "q " in printed


def test_a_puzzle_alone_passes_folders_of_ones_own_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No RUN was named, so a folder that is called as the weights are is not meant."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sudoku-4x4").mkdir()
    assert main(["-q", "4.21 1... 3.4. ..1."]) == 0
    assert capsys.readouterr().out.startswith("4321123431422413  ")


def test_a_puzzle_alone_through_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard input is read once, whichever task it is for."""
    data = io.TextIOWrapper(io.BytesIO(b"4.21 1... 3.4. ..1.\n.... .... 3.4. ..1.\n"))
    monkeypatch.setattr(sys, "stdin", data)
    assert main(["-q", "-"]) == 2  # the second has several solutions
    assert "standard input:2" in capsys.readouterr().err


def test_options_between_run_and_puzzle(capsys: pytest.CaptureFixture[str]) -> None:
    """RUN may be left out, so words are counted when the options have been taken."""
    assert main(["sudoku-4x4", "--halt", "rules", "4.21 1... 3.4. ..1.", "-q"]) == 0
    assert "accepted by the rules" in capsys.readouterr().out


def test_weights_by_name_are_solved_as_those_that_are_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The settings that suit weights hold by name and by path; an option asks for a plain run."""
    puzzle, said = "4.21 1... 3.4. ..1.", []
    path = str(find_pretrained("sudoku-4x4").folder)
    for words in ([puzzle], ["sudoku-4x4", puzzle], [path, puzzle]):
        assert main(["-q", *words]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2]
    assert "accepted by the rules" in said[0]
    assert main(["-q", "sudoku-4x4", puzzle, "--steps", "2"]) == 0
    assert "halt probability" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, says",
    [
        (["4.21 1..."], "sudoku-4x4: the puzzle has 8 cells, 4x4 needs 16"),
        (["."], "is a folder, and PUZZLE is missing: solve RUN PUZZLE"),
        ([], "PUZZLE is missing, such as '1... ..2. .3.. ...4'; solve PUZZLE takes the weights"),
        (["sudoku-4x4"], "sudoku-4x4: names weights, and PUZZLE is missing, such as '1"),
        (["--halt", "rules"], "run folder, which train makes (--config sudoku_tiny.yaml"),
        (["none.txt"], "none.txt: no such file"),
    ],
)
def test_what_no_weights_of_the_package_solve(
    words: List[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that says what each of them lacks, or what is missing."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "puzzle, says, silent",
    [
        ("55" + 79 * ".", "(sudoku: contradictory givens: 5 stands twice in row 1); mend", "maze"),
        (9 * "12345678", "(sudoku: the puzzle has 72 cells, 9x9 needs 81); mend", "4x4"),
        (80 * "." + "x", "(sudoku: the puzzle has 'x' in row 9 column 9", "maze"),
        (144 * "9", "(sudoku: the puzzle has 144 cells", "maze"),
        ("S.#/..#/..G", "maze-7x7: the maze has 3 rows", "sudoku"),
        (" ", "PUZZLE is missing, such as", "cells"),
    ],
)
def test_a_wrong_puzzle_is_told_what_it_lacks_as_what_it_seems_to_be(
    puzzle: str, says: str, silent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not as a maze or at other sizes."""
    assert main([puzzle]) == 2
    said = capsys.readouterr().err
    assert says in said and silent not in said.partition("; mend")[0].partition("suit it")[0]


def test_what_is_wrong_with_a_file_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Not for each of the weights."""
    assert main(["none.csv"]) == 2
    assert capsys.readouterr().err == "none.csv: no such file, and not a puzzle either\n"


@pytest.mark.slow
def test_a_hard_puzzle_is_solved_by_weights_of_the_package(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """9x9, said to be the hardest: a quarter of a minute with MLX's own products."""
    puzzle = "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."
    assert main(["-q", puzzle]) == 0
    answer, _, how = capsys.readouterr().out.partition("  ")
    assert sorted(answer) == sorted("123456789" * 9) and "accepted by the rules" in how
    assert all(given in (".", cell) for given, cell in zip(puzzle, answer))


def test_where_the_model_fails_the_rules_say_what_is_right(
    run_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below a wrong answer, said not to be the model's; a right one has nothing below it."""
    assert main([run_dir, FIRST, "--steps", "2"]) == 0
    above, _, below = capsys.readouterr().out.partition("after 2 steps: wrong")
    assert FIRST_SOLVED not in above
    assert f"not the model's, but what the rules give: {FIRST_SOLVED}\n{SOLVED}" in below
    assert main([run_dir, FIRST]) == 0
    assert "not the model's" not in capsys.readouterr().out
    assert main([run_dir, FIRST, "--steps", "2", "--halt", "fixed"]) == 0
    assert "not the model's, but what the rules give" in capsys.readouterr().out


def test_a_drawing_of_the_program_is_a_puzzle(
    run_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a terminal showed is pasted back: as a word, and as a file."""
    assert main([run_dir, FIRST, SECOND]) == 2  # two words too many
    capsys.readouterr()
    assert main([run_dir, FIRST]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "pasted.txt").write_text(printed, encoding="utf-8")
    for source in (printed, str(tmp_path / "pasted.txt"), GIVEN.replace(".", "_")):
        assert main([run_dir, source, "-q"]) == 0
        assert capsys.readouterr().out.startswith(f"{FIRST_SOLVED}  after 4 steps: right"), source
