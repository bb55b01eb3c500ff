"""What notebooks and terminals show from Python: steps, results, films, reports, configurations."""

import io
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, List, Optional

import numpy as np
import pytest
from marks import experiment as marks_experiment
from PIL import Image
from scripted import FIRST, FIRST_SOLVED, experiment, scripted_model

from mlx_trm.errors import ConfigError
from mlx_trm.inference.solver import Solver, SolverStep
from mlx_trm.training.trainer import Trainer


@pytest.fixture(name="solver")
def fixture_solver() -> Solver:
    """A solver whose answers are known."""
    return Solver(scripted_model(), experiment())


class Displayed(List[str]):
    """Stands for IPython: what is displayed, and what it is replaced with."""

    def display(self, html: Any, display_id: bool = False) -> "Displayed":
        """Show HTML in a new place."""
        assert display_id
        self.append(html)
        return self

    def update(self, html: Any) -> None:
        """Replace it."""
        self.append(html)


@pytest.fixture(name="notebook")
def fixture_notebook(monkeypatch: pytest.MonkeyPatch) -> Displayed:
    """As if this were a notebook's kernel."""
    shown = Displayed()
    shell = SimpleNamespace(kernel=None)
    display = SimpleNamespace(HTML=str, display=shown.display)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


def test_a_step_shows_itself(solver: Solver) -> None:
    """The puzzle beside the answer; what is wrong is known from the rules."""
    steps = list(solver.steps(FIRST))
    html = steps[1]._repr_html_()
    assert html is not None and html.count("<svg") == 2
    assert "wrong, Q 0.622, 3 cells changed (amber), 6 wrong (framed red)" in html
    last = steps[-1]._repr_html_()
    assert last is not None and "right, Q 0.924, 3 cells changed (amber)<" in last
    assert SolverStep(1, "", 0.5, None, 0, np.zeros(16))._repr_html_() is None


def test_a_result_shows_itself(solver: Solver) -> None:
    """With what it took."""
    (result,) = solver.search([FIRST], halt="rules")
    html = result._repr_html_()
    assert html is not None and html.count("<svg") == 2
    assert "right, Q 0.924, 4 steps in 1 rollouts" in html


def test_films(solver: Solver, tmp_path: Path) -> None:
    """A plain run and a search; saved by the ending of a name."""
    film = solver.film(FIRST)
    (scene,) = film
    assert repr(film) == "Film(1 scenes, 4 steps)" and scene.title == FIRST
    assert [frame.board.text for frame in scene.chosen.frames][-1] == FIRST_SOLVED
    (scene,) = solver.film(FIRST, steps=2, rollouts=2, noise=1e-3)
    assert [(take.rollout, len(take.frames)) for take in scene.takes] == [(0, 2), (1, 2)]
    assert sum(take.chosen for take in scene.takes) == 1
    for name in ("a.png", "a.gif", "a.html"):
        film.save(tmp_path / name)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 5
    assert (tmp_path / "a.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    with pytest.raises(ConfigError, match="a.jpg: its name must end in .png, .gif, .html"):
        film.save(tmp_path / "a.jpg")
    frame = film._repr_html_()
    assert frame.startswith('<div><iframe srcdoc="&lt;!DOCTYPE html&gt;') and frame.count("<") == 4


def test_a_search_that_is_watched_finds_the_same(solver: Solver) -> None:
    """Looking at every step changes nothing."""
    seen: List[int] = []
    plain = list(solver.search([FIRST] * 3))
    watched = list(solver.search([FIRST] * 3, on_answer=lambda place, *_: seen.append(place)))
    assert sorted(seen) == [place for place in range(3) for _ in range(4)]
    for one, other in zip(plain, watched):
        assert one.answer == other.answer and one.probability == other.probability
        assert (one.confidence == other.confidence).all() and one.steps == other.steps


def test_each_step_knows_how_sure_the_model_is(solver: Solver) -> None:
    """By plain steps and by a search alike; on a symmetric copy in the puzzle's own cells."""
    steps = [step.confidence for step in solver.steps(FIRST)]
    seen: List[np.ndarray] = []
    asked = {"rollouts": 2, "symmetries": True}
    for result in solver.search([FIRST], on_answer=lambda *a: seen.append(a[4].copy()), **asked):
        last = {each.rollout: each.confidence for each in result.candidates}
    assert len(steps) == 4 and len(seen) == 8
    for one in (*steps, *seen):
        assert one.shape == (16,) and one.dtype == np.float32 and 0 < one.min() <= one.max() <= 1
    assert any((one == last[1]).all() for one in seen) and any(
        (one == last[0]).all() for one in seen
    )
    film = solver.film(FIRST)
    frames = film.scenes[0].takes[0].frames
    assert [frame.confidence.ravel().tolist() for frame in frames] == [s.tolist() for s in steps]


def test_watching_in_a_notebook(solver: Solver, notebook: Displayed) -> None:
    """One place, replaced after each step, and in the end by a page with a slider."""
    assert solver.watch(FIRST) is None
    assert len(notebook) == 5
    assert all(html.count("<svg") == 2 for html in notebook[:4])
    assert "Q 0.622" in notebook[1] and notebook[4].startswith("<div><iframe")


@pytest.mark.parametrize("terminal", [True, False])
def test_watching_in_a_terminal(
    solver: Solver, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is written over the one before; elsewhere below it, without codes."""
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("NO_COLOR", "1")
    solver.watch(FIRST, steps=2)
    text = out.getvalue()
    assert re.findall("^(?:\033.*J)?step .: .*$", text, flags=re.MULTILINE)[-1].endswith(
        "step 2: 3 cells changed, wrong"
    )
    assert "│+3+4 │+2 1 │      2  ██████▎··· 0.62" in text
    codes = re.findall("\033\\[[0-9]*[A-Z]", text)
    assert codes == (["\033[9F", "\033[J"] if terminal else [])
    assert text.count("* both") == 2


def test_what_does_not_fit_the_screen_is_not_written_over(
    solver: Solver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has scrolled out; lines that are broken count as several."""
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", out)
    size = os.terminal_size((50, 24))
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: size)
    solver.watch(FIRST, steps=2)
    assert "\033[10F" in out.getvalue()  # the legend takes two lines
    size = os.terminal_size((50, 8))
    out.truncate(0)
    solver.watch(FIRST, steps=2)
    assert "\033[J" not in out.getvalue()


def test_a_configuration_shows_itself() -> None:
    """Its sections, and nothing that looks like markup."""
    html = experiment(run_dir="<b>run</b>")._repr_html_()
    assert "<b>run</b>" not in html and "&lt;b&gt;run&lt;/b&gt;" in html
    assert "<summary><b>task: sudoku</b></summary>" in html and "origin" not in html
    assert "<td" in html and "lr_warmup_steps" in html


@pytest.fixture(name="trained")
def fixture_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Train the toy task for some steps."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def train(progress: Optional[bool] = None, **callbacks: Any) -> Any:
        config = marks_experiment(
            run_dir=f"run {len(list(tmp_path.iterdir()))}", train__max_steps=4
        )
        return Trainer(config).fit(progress=progress, **callbacks)

    return train


def test_a_report_shows_itself_and_draws(trained: Any, tmp_path: Path) -> None:
    """Tables of what the run did and reached; curves as a picture."""
    report = trained()
    html = report._repr_html_()
    assert "4 of 4, done" in html and "exact_accuracy" in html and html.count("<table") == 2
    chart = report.plot()
    assert chart._repr_png_().startswith(b"\x89PNG")
    chart.save(tmp_path / "run.svg")
    assert "<svg" in (tmp_path / "run.svg").read_text("utf-8")


def test_training_shows_a_bar(
    trained: Any, notebook: Displayed, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a notebook and in a terminal, or always, or never; callbacks are called all the same."""
    steps: List[int] = []
    trained(on_tick=steps.append)
    assert "4/4" in capsys.readouterr().out and steps == [1, 2, 3, 4]
    trained(progress=False, on_tick=steps.append)
    assert capsys.readouterr() == ("", "") and steps == [1, 2, 3, 4] * 2
    del notebook


def test_a_pipe_gets_no_bar(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Unless it is asked for."""
    trained()
    assert capsys.readouterr().err == ""
    trained(progress=True)
    assert "4/4" in capsys.readouterr().err
