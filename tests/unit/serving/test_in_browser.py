"""Both pages in Chromium: a puzzle solved, a run followed, twenty clients, bad input.

They need Debian's chromium and chromium-driver, and ``pip install -e ".[browser]"``. Where
MLX_TRM_SCREENSHOTS names a folder, each page is kept there as a picture.
"""

import base64
import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from child_processes import started
from logged import evaluation, train, write
from served import MAZE, SUDOKU, untrained

from mlx_trm.runs.checkpoint import save_checkpoint

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
try:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError:
    webdriver = None  # type: ignore[assignment]

MISSING = [
    name
    for name, there in (("chromium", BROWSER), ("chromium-driver", DRIVER), ("selenium", webdriver))
    if not there
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not here: {', '.join(MISSING)}"),
]
UNTRAINED = {
    "small-maze": ("maze_tiny.yaml", ["task.size=5"]),
    "capture": ("go_tiny.yaml", ["task.kind=capture"]),
    "territory": ("go_tiny.yaml", []),
}
if find_spec("chess") is not None:
    UNTRAINED["moves"] = ("chess_moves_tiny.yaml", [])
    UNTRAINED["mate"] = ("chess_moves_tiny.yaml", ["task.kind=mate1", "task.style=endings"])
HARD = "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."


@pytest.fixture(name="folder", scope="module")
def fixture_folder(tmp_path_factory: Any) -> Path:
    """Two runs to compare, and models of mazes, Go and chess that know nothing."""
    top: Path = tmp_path_factory.mktemp("served")
    for name, rate in (("first", 1), ("second", 2)):
        write(top / "runs" / name, [train(n, lm_loss=rate / n) for n in range(10, 60, 10)])
        (top / "runs" / name / "config.yaml").write_text(f"train: {{lr: {rate}e-4}}\nseed: 0\n")
    for name, (preset, changes) in UNTRAINED.items():
        served = untrained(name, preset, changes)
        save_checkpoint(top / name, served.solver.model, served.solver.config, 1)
    return top


@pytest.fixture(name="address", scope="module")
def fixture_address(folder: Path) -> Iterator[str]:
    """A server in a process of its own."""
    words = [
        *(folder / name for name in UNTRAINED),
        "--runs",
        folder / "runs",
        "--port",
        "0",
        "--queue",
        "8",
    ]
    with started([sys.executable, "-m", "mlx_trm.serve", *words]) as process:
        yield process.stdout.readline().split()[0]  # type: ignore[union-attr]


@pytest.fixture(name="page", scope="module")
def fixture_page(tmp_path_factory: Any) -> Iterator[Any]:
    """A browser."""
    with opened(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


class opened:  # pylint: disable=invalid-name
    """A browser, closed when the block is left."""

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(BROWSER)
        for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(word)
        options.add_argument(f"--user-data-dir={profile}")
        options.add_argument("--window-size=1200,1000")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.browser = webdriver.Chrome(options=options, service=Service(str(DRIVER)))

    def __enter__(self) -> Any:
        return self.browser

    def __exit__(self, *_: Any) -> None:
        self.browser.quit()


def by_id(page: Any, name: str) -> Any:
    return page.find_element(By.ID, name)


def wait(page: Any, condition: Any, seconds: float = 120) -> Any:
    return WebDriverWait(page, seconds, 0.05).until(lambda _: condition())


def text_of(page: Any, name: str) -> str:
    return str(by_id(page, name).text)


def keep(page: Any, name: str) -> None:
    """Keep a picture of the whole page, where that is asked for."""
    folder = os.environ.get("MLX_TRM_SCREENSHOTS")
    if not folder:
        return
    high, wide = page.execute_script("return [document.documentElement.scrollHeight, innerWidth]")
    clip = {"x": 0, "y": 0, "width": wide, "height": high, "scale": 1}
    asked = {"captureBeyondViewport": True, "clip": clip}
    found = page.execute_cdp_cmd("Page.captureScreenshot", asked)
    (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(found["data"]))


def open_model(page: Any, address: str, model: str) -> None:
    """Open the page that solves, with a model, when its example is there."""
    page.get("about:blank")
    page.get(f"{address}#model={model}")
    wait(page, lambda: by_id(page, "text").get_attribute("value"))


def type_puzzle(page: Any, puzzle: str) -> None:
    """Paste a puzzle into the text, and wait until the page has read it."""
    box = by_id(page, "text")
    box.clear()
    box.send_keys(puzzle)


def no_complaints(page: Any) -> None:
    """The browser's console has nothing that the policy or a script has complained of."""
    bad = [entry for entry in page.get_log("browser") if " 422 " not in entry["message"]]
    assert bad == []


def test_a_sudoku_is_pasted_and_solved(page: Any, address: str) -> None:
    """Pasted, shown in the grid, solved by the rules, each step there to go back to."""
    open_model(page, address, "sudoku")
    type_puzzle(page, HARD)
    cells = page.find_elements(By.CSS_SELECTOR, "#editor input")
    assert len(cells) == 81
    wait(page, lambda: [cell.get_attribute("value") for cell in cells[:2]] == ["8", ""])
    by_id(page, "solve").click()
    wait(page, lambda: text_of(page, "result"), 300)
    assert "Solved: accepted by the rules" in text_of(page, "result")
    assert "right, Q" in text_of(page, "said")
    last = int(by_id(page, "step").get_attribute("max"))
    assert last >= 2 and by_id(page, "step").get_attribute("value") == str(last)
    keep(page, "solved")
    by_id(page, "back").click()
    by_id(page, "shown").send_keys(Keys.HOME)
    assert text_of(page, "said") == "The puzzle as it was given."
    no_complaints(page)


def test_a_sudoku_is_typed_by_keys_alone(page: Any, address: str) -> None:
    """Digits go from cell to cell, arrows move, what is none is left out, return solves."""
    open_model(page, address, "sudoku-4x4")
    by_id(page, "clear").click()
    cells = page.find_elements(By.CSS_SELECTOR, "#editor input")
    cells[0].send_keys("1")
    assert page.switch_to.active_element == cells[1]
    for at, digit in ((6, "2"), (9, "3"), (15, "x"), (15, "4")):
        cells[at].send_keys(digit)
    cells[10].send_keys(Keys.ARROW_UP)
    assert page.switch_to.active_element == cells[6]
    shown = by_id(page, "text").get_attribute("value")
    assert shown.split() == ["1...", "..2.", ".3..", "...4"]
    cells[6].send_keys(Keys.ENTER)
    wait(page, lambda: "Solved" in text_of(page, "result"))
    no_complaints(page)


def test_a_maze_is_drawn(page: Any, address: str) -> None:
    """Clicks make walls and take them away, keys draw too; the untrained model has no answer."""
    open_model(page, address, "small-maze")
    type_puzzle(page, MAZE)
    cells = page.find_elements(By.CSS_SELECTOR, "#editor .cell")
    assert len(cells) == 25
    wait(page, lambda: cells[0].get_attribute("aria-label") == "row 1 column 1: start")
    cells[1].click()
    wait(page, lambda: by_id(page, "text").get_attribute("value").startswith("S#"))
    cells[1].click()
    cells[2].send_keys("w")
    assert by_id(page, "text").get_attribute("value").startswith("S.#")
    cells[2].send_keys("o")
    by_id(page, "solve").click()
    wait(page, lambda: text_of(page, "result"))
    assert text_of(page, "result").startswith(
        "Not solved: not accepted by the rules, no clean path"
    )
    keep(page, "maze")
    no_complaints(page)


def choose_tool(page: Any, name: str) -> None:
    """Choose what a click draws."""
    page.find_element(By.CSS_SELECTOR, f'#editor input[value="{name}"]').click()


def typed(page: Any) -> List[str]:
    """The puzzle as text, by lines."""
    return by_id(page, "text").get_attribute("value").split("\n")


def cells_of(page: Any) -> Dict[str, Any]:
    """The editor's cells by their names, such as e4."""
    found = page.find_elements(By.CSS_SELECTOR, "#editor .cell")
    return {cell.get_attribute("aria-label").split(":")[0]: cell for cell in found}


@pytest.mark.skipif("mate" not in UNTRAINED, reason="python-chess is not installed (extra chess)")
def test_a_chess_position_is_set_up(page: Any, address: str) -> None:
    """Pieces are picked and put down, by clicks and keys; whose move, castling, en passant."""
    open_model(page, address, "mate")
    wait(page, lambda: "/" in typed(page)[0])
    by_id(page, "clear").click()
    cells = cells_of(page)
    assert len(cells) == 64
    for tool, places in (("black king", "g8"), ("black pawn", "f7 g7 h7"), ("white king", "e1")):
        choose_tool(page, tool)
        for place in places.split():
            cells[place].click()
    cells["a1"].send_keys("R")
    cells["d5"].send_keys("q")
    assert cells["d5"].get_attribute("aria-label") == "d5: black queen"
    cells["d5"].send_keys(Keys.DELETE)
    wait(page, lambda: typed(page)[0] == "......k./")
    choices = page.find_elements(By.CSS_SELECTOR, "#editor select")
    choices[1].send_keys("Q")
    wait(page, lambda: typed(page)[7:] == ["R...K...", "w Q -"])
    wait(page, lambda: not by_id(page, "message").is_displayed())
    by_id(page, "solve").click()
    wait(page, lambda: text_of(page, "result").startswith("Not solved"))
    assert page.find_element(By.CSS_SELECTOR, "#board svg").get_attribute("aria-label")
    keep(page, "chess")
    choices[0].send_keys("Black")
    wait(page, lambda: "no mate in one" in text_of(page, "message"))
    type_puzzle(page, "3rk3/8/8/8/8/8/5PPP/6K1 b - - 0 1")
    wait(page, lambda: cells["d8"].get_attribute("aria-label") == "d8: black rook")
    assert choices[0].get_attribute("value") == "b"
    type_puzzle(page, "kk6/8/8/8/8/8/8/K7")
    wait(page, lambda: "more than one king" in text_of(page, "message"))
    no_complaints(page)


@pytest.mark.skipif("moves" not in UNTRAINED, reason="python-chess is not installed (extra chess)")
def test_a_piece_is_asked_about(page: Any, address: str) -> None:
    """It is clicked on; every example has one."""
    open_model(page, address, "moves")
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#editor .cell.asked"))
    type_puzzle(page, "4k3/8/8/8/8/8/8/R3K3 e1")
    cells = cells_of(page)
    wait(page, lambda: cells["e1"].get_attribute("aria-label") == "e1: white king, asked about")
    choose_tool(page, "the piece that is asked about")
    cells["a1"].click()
    wait(page, lambda: typed(page)[8:] == ["w - - a1"])
    cells["a1"].click()
    wait(page, lambda: "is missing" in text_of(page, "message"))
    cells["a1"].send_keys("?")
    by_id(page, "solve").click()
    wait(page, lambda: text_of(page, "result"))
    assert "square" in text_of(page, "result") or "no answer" in text_of(page, "result")
    keep(page, "chess-moves")
    no_complaints(page)


def test_a_go_board_is_set_up(page: Any, address: str) -> None:
    """Clicks go from empty to black, white and empty again; a group is marked; SGF is pasted."""
    open_model(page, address, "capture")
    wait(page, lambda: "/" in typed(page)[0])
    by_id(page, "clear").click()
    cells = cells_of(page)
    assert len(cells) == 49 and "J7" not in cells
    for place, clicks in (("C6", 1), ("D6", 1), ("B5", 1), ("C5", 2), ("G1", 3)):
        for _ in range(clicks):
            cells[place].click()
    wait(page, lambda: typed(page)[1:3] == ["..XX.../", ".XO..../"])
    wait(page, lambda: "no group is marked" in text_of(page, "message"))
    choose_tool(page, "the group to capture")
    cells["C6"].click()
    cells["C5"].click()  # one group is in question, no longer the other
    wait(page, lambda: typed(page)[1:3] == ["..XX.../", ".XW..../"])
    wait(page, lambda: not by_id(page, "message").is_displayed())
    by_id(page, "solve").click()
    wait(page, lambda: text_of(page, "result").startswith("Not solved"))
    keep(page, "go")
    type_puzzle(page, "(;GM[1]SZ[7]AB[cb][db][bc]AW[cc]TR[cc])")
    wait(page, lambda: "white stone of the group" in cells["C5"].get_attribute("aria-label"))
    cells["A1"].send_keys("x")
    wait(page, lambda: typed(page)[6] == "X......")
    open_model(page, address, "territory")
    wait(page, lambda: "/" in typed(page)[0])
    assert not page.find_elements(By.CSS_SELECTOR, '#editor input[value="the group to capture"]')
    no_complaints(page)


@pytest.mark.parametrize(
    "puzzle, said",
    [
        ("11..", "the puzzle has 4 cells, 4x4 needs 16"),
        ("11..............", "contradictory givens: 1 stands twice in row 1"),
        ("<img src=x onerror=alert(1)>", "cells, 4x4 needs 16"),
        ("................", "more than one solution"),
    ],
)
def test_bad_input_gives_a_message(page: Any, address: str, puzzle: str, said: str) -> None:
    """While it is typed, and again when it is sent."""
    open_model(page, address, "sudoku-4x4")
    type_puzzle(page, puzzle)
    wait(page, lambda: said in text_of(page, "message"))
    by_id(page, "solve").click()
    wait(page, lambda: said in text_of(page, "message") and by_id(page, "solve").is_enabled())
    assert not by_id(page, "shown").is_displayed()
    keep(page, "refused")
    no_complaints(page)


def test_a_run_is_followed_and_compared(page: Any, address: str, folder: Path) -> None:
    """What differs comes first; curves go on as the log grows; a new run appears in the list."""
    page.get(f"{address}runs")
    wait(page, lambda: len(page.find_elements(By.CSS_SELECTOR, "#list input")) == 2)
    for box in page.find_elements(By.CSS_SELECTOR, "#list input"):
        box.click()
    wait(page, lambda: "train.lr" in text_of(page, "differing"))
    assert "0.0001 0.0002" in text_of(page, "differing") and "seed" not in text_of(
        page, "differing"
    )
    wait(page, lambda: "train lm_loss 0.02 0.04" in text_of(page, "last"))
    figures = page.find_elements(By.CSS_SELECTOR, "#charts figure")
    titles = [figure.text.split("\n")[0] for figure in figures]
    assert titles[:2] == ["lm_loss", "q_halt_loss"] and "peak memory, GiB" in titles
    assert (
        "steps per second" in titles
        and len(figures[0].find_elements(By.CSS_SELECTOR, ".curve")) == 2
    )
    with (folder / "runs" / "first" / "metrics.jsonl").open("a") as file:
        for line in (train(60, lm_loss=0.0125), evaluation(60)):
            file.write(json.dumps(line) + "\n")
    wait(page, lambda: "train lm_loss 0.0125 0.04" in text_of(page, "last"))
    wait(page, lambda: "eval all exact_accuracy 0.2 -" in text_of(page, "last"))
    keep(page, "runs")
    write(folder / "runs" / "third", [train(10)])
    wait(page, lambda: len(page.find_elements(By.CSS_SELECTOR, "#list input")) == 3)
    no_complaints(page)


def test_twenty_pages_at_once(page: Any, address: str) -> None:
    """Twenty tabs of one browser ask at the same moment; each is answered or told to come again."""
    tabs: List[str] = []
    first = page.current_window_handle
    for _ in range(20):
        page.switch_to.new_window("tab")
        tabs.append(page.current_window_handle)
        page.get(f"{address}#model=sudoku-4x4")
        wait(page, lambda: by_id(page, "text").get_attribute("value"))
        type_puzzle(page, SUDOKU)
    for tab in tabs:
        page.switch_to.window(tab)
        page.execute_script("document.getElementById('ask').requestSubmit()")
    results = []
    for tab in tabs:
        page.switch_to.window(tab)
        wait(page, lambda: text_of(page, "result") or text_of(page, "message"), 300)
        results.append(text_of(page, "result") or text_of(page, "message"))
        page.close()
    page.switch_to.window(first)
    assert all("Solved" in each or "try again" in each for each in results), results
    assert sum("Solved" in each for each in results) >= 12  # four at work, eight wait


def test_under_load_the_page_says_so(page: Any, address: str) -> None:
    """Twelve long puzzles of others fill the server: a message says when to try again."""
    import http.client

    port = int(address.rstrip("/").rpartition(":")[2])
    body = {"model": "sudoku-4x4", "puzzle": SUDOKU, "steps": 2000, "halt": "fixed"}
    body.update(rollouts=1, symmetries=False)
    open_model(page, address, "sudoku-4x4")
    others = []
    for _ in range(12):
        other = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        head = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        other.request("POST", "/api/solve", json.dumps(body), head)
        others.append((other, other.getresponse()))
    by_id(page, "solve").click()
    wait(page, lambda: "try again in" in text_of(page, "message"))
    for other, response in others:
        response.close()
        other.close()
    wait(page, lambda: by_id(page, "solve").is_enabled())

    def solved() -> bool:
        by_id(page, "solve").click()
        wait(page, lambda: text_of(page, "result") or text_of(page, "message"))
        return "Solved" in text_of(page, "result")

    wait(page, solved)


def test_a_phone_in_the_dark(page: Any, address: str) -> None:
    """Nothing is wider than the screen, and the colours follow the system's."""
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    try:
        open_model(page, address, "sudoku")
        by_id(page, "solve").click()
        wait(page, lambda: text_of(page, "result"), 300)
        narrow = "return document.documentElement.scrollWidth <= innerWidth"
        colour = "return getComputedStyle(document.body).backgroundColor"
        assert page.execute_script(narrow) and page.execute_script(colour) == "rgb(22, 24, 27)"
        keep(page, "phone")
        page.get(f"{address}runs#run=first&run=second")
        wait(page, lambda: len(page.find_elements(By.CSS_SELECTOR, "#charts figure")) > 5)
        assert page.execute_script(narrow)
        keep(page, "runs_phone")
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
