"""The page in a browser, where there is one: it draws, and its policy lets its script run."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from scripted import FIRST, FIRST_SOLVED, experiment, scripted_model

from mlx_trm.inference.solver import Solver

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium here"),
]


@pytest.mark.parametrize("step", [0, 2, 4])
def test_a_page_draws_its_steps(tmp_path: Path, step: int) -> None:
    """The step that its address asks for, with what it reached, and nothing on the console."""
    file = tmp_path / "a.html"
    Solver(scripted_model(), experiment()).film(FIRST, rollouts=2, symmetries=True).save(file)
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    words += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run(
        [str(BROWSER), *words, f"{file.as_uri()}#rollout=1&step={step}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    board = re.findall('<div id="board">(.*?)</div>', done.stdout, flags=re.DOTALL)[0]
    said = re.findall('<p id="said"[^>]*>(.*?)</p>', done.stdout)[0]
    assert f">{step} of 4</output>" in done.stdout and ">1 of 2" in done.stdout
    if step == 0:
        assert f"puzzle: {FIRST}" in board and said == "The puzzle as it was given."
    if step == 2:
        assert board.count("wrong-ring") == 6 and board.count("changed-cell") == 3
        assert "wrong</b>, Q 0.622, 3 cells changed, 6 cells wrong" in said
    if step == 4:
        assert f"answer after step 4: {FIRST_SOLVED}" in board and "right</b>" in said
