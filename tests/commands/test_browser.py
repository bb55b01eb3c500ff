"""The page that solves Sudoku in a browser: its rules, its build, and itself in Chromium."""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from child_processes import run, run_python
from paths import ROOT

PAGE = ROOT / "examples" / "browser"
PUZZLE = "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."
ANSWER = "812753649943682175675491283154237896369845721287169534521974368438526917796318452"
# What is not in the repository: onnxruntime-web, fetched before; without it npm fetches it.
TARBALL = os.environ.get("MLX_TRM_ONNXRUNTIME_WEB")

RULES = """
import assert from "node:assert";
import * as rules from "%s";
const puzzle = rules.parse("%s", 9);
const answer = rules.parse("%s", 9);
assert.equal(rules.format(puzzle), "%s");

// Pasted frames and other signs of a blank are read; what is no puzzle is told.
const framed = rules.format(puzzle).replace(/(.{9})/g, "|$1|\\n+---+\\n").replaceAll(".", "_");
assert.deepEqual(rules.parse(framed, 9), puzzle);
assert.throws(() => rules.parse("123", 9), /3 cells found, and a puzzle has 81/);
assert.throws(() => rules.parse("5".repeat(16), 4), /5 is no digit here/);

// Boxes: three by three, two by two, and two by three.
assert.deepEqual([9, 4, 6].map(rules.boxShape), [[3, 3], [2, 2], [2, 3]]);

// The answer is accepted; with one cell wrong, blank or another puzzle's it is not.
assert(rules.accepts(answer, puzzle, 9));
for (let cell = 0; cell < 81; cell += 1) {
  for (const digit of [0, (answer[cell] %% 9) + 1]) {
    const other = answer.with(cell, digit);
    assert(!rules.accepts(other, puzzle, 9));
  }
}
assert(!rules.accepts(answer, puzzle.with(1, 2), 9));
const double = Array(81).fill(0).with(30, 7).with(50, 7);
assert.deepEqual(rules.conflicts(double, 9).texts, ["box 5 has 7 more than once"]);
assert.deepEqual([...rules.conflicts(double, 9).cells], [30, 50]);

// A symmetric copy of an answer is an answer of the copied puzzle, and leads back to its own.
const seen = new Set();
for (const size of [9, 6, 4]) {
  const six = "123456456123231564564231312645645312", four = "1234341221434321";
  const full = { 9: answer, 6: rules.parse(six, 6), 4: rules.parse(four, 4) }[size];
  const given = full.map((digit, cell) => (cell %% 3 ? 0 : digit));
  for (let draw = 0; draw < 200; draw += 1) {
    const symmetry = rules.randomSymmetry(size);
    const copy = rules.apply(symmetry, full);
    assert(rules.accepts(copy, rules.apply(symmetry, given), size));
    assert.deepEqual(rules.undo(symmetry, copy), full);
    assert.deepEqual(rules.undoPlaces(symmetry, symmetry.cells), rules.identity(size).cells);
    seen.add(copy.join(""));
  }
}
assert(seen.size > 400);
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not here")
def test_the_pages_rules_are_sudokus(tmp_path: Path) -> None:
    """Reading, accepting, and symmetric copies and back, in JavaScript."""
    script = tmp_path / "test.mjs"
    module = (PAGE / "rules.js").read_text(encoding="utf-8")
    (tmp_path / "rules.mjs").write_text(module, encoding="utf-8")
    script.write_text(RULES % ("./rules.mjs", PUZZLE, ANSWER, PUZZLE), encoding="utf-8")
    done = run(["node", script])
    assert done.returncode == 0, done.stderr


def test_the_page_asks_for_nothing_but_its_own_files() -> None:
    """No address of another server is in it, and its policy would forbid one."""
    build = (PAGE / "build.py").read_text(encoding="utf-8")
    for path in PAGE.iterdir():
        if path.is_file():
            assert "://" not in path.read_text(encoding="utf-8"), path
            assert path.name == "build.py" or f'"{path.name}"' in build, path
    policy = (PAGE / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy


@pytest.mark.parametrize(
    "words, told",
    [
        (["--runtime", "nothing.tgz"], "nothing.tgz"),
        (["--runtime", str(PAGE / "build.py")], "is not onnxruntime-web"),
        (["--weights", "maze-7x7"], "are for maze"),
        (["--weights", "nothing"], "no weights named 'nothing'"),
    ],
)
def test_what_cannot_be_built_is_one_line(words: Any, told: str, tmp_path: Path) -> None:
    """Exit code 2; a runtime that is not the one that was tested is not served."""
    done = run_python(PAGE / "build.py", "--output", tmp_path / "site", *words, cwd=tmp_path)
    assert done.returncode == 2 and told in done.stderr
    assert done.stderr.startswith("build.py: ") and done.stderr.count("\n") == 1


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, *args: Any) -> None:  # pylint: disable=arguments-differ
        """Say nothing."""


@pytest.fixture(name="open_page")
def fixture_open_page(tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Build the page with weights, serve it, and open it in Chromium."""
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    webdriver: Any = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    places = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in places:
        pytest.skip("chromium and chromedriver are not here")
    if TARBALL is None and shutil.which("npm") is None:
        pytest.skip("npm is not here, and MLX_TRM_ONNXRUNTIME_WEB names no tarball")
    ends = []

    def open_page(weights: str) -> Any:
        words = ["--runtime", TARBALL] if TARBALL else []
        done = run_python(
            PAGE / "build.py", "--output", tmp_path / "site", "--weights", weights, *words
        )
        if "npm pack" in done.stderr:
            pytest.skip(f"no network: {done.stderr}")
        assert done.returncode == 0, done.stderr
        handler = functools.partial(Quiet, directory=str(tmp_path / "site"))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ends.append(server.server_close)
        ends.append(server.shutdown)
        options = webdriver.ChromeOptions()
        for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
            options.add_argument(word)
        options.binary_location = places[0]
        service = webdriver.chrome.service.Service(places[1])
        driver = webdriver.Chrome(options=options, service=service)
        ends.append(driver.quit)
        driver.server = server
        driver.get(f"http://127.0.0.1:{server.server_port}/")
        wait(driver, "Press Solve")
        return driver

    yield open_page
    for end in reversed(ends):
        end()


def wait(driver: Any, text: str) -> str:
    """Wait until the page says something, and give all that it says then."""
    ui: Any = pytest.importorskip("selenium.webdriver.support.ui")

    def said(page: Any) -> Any:
        return page.find_element("id", "status").text

    ui.WebDriverWait(driver, 300).until(lambda page: text in said(page))
    return str(said(driver))


def enter(driver: Any, puzzle: str) -> None:
    """Put a puzzle into the text field, and press Solve."""
    field = driver.find_element("id", "text")
    field.clear()
    field.send_keys(puzzle)
    driver.find_element("id", "solve").click()


def grid(driver: Any) -> str:
    """The digits of the grid."""
    cells = driver.find_elements("css selector", "#grid input")
    return "".join(cell.get_attribute("value") or "." for cell in cells)


@pytest.mark.slow
def test_the_page_solves_a_puzzle_without_its_server(open_page: Callable[[str], Any]) -> None:
    """README's puzzle, from the page alone once it is loaded; and again after it is loaded anew."""
    driver = open_page("sudoku")
    driver.server.shutdown()
    driver.server.server_close()
    enter(driver, PUZZLE)
    assert "every rule is kept" in wait(driver, "Solved in")
    assert grid(driver) == ANSWER
    chips = driver.find_elements("css selector", "#steps button")
    assert chips[-1].get_attribute("class") == "accepted"
    chips[0].click()
    wait(driver, "Step 1:")
    assert grid(driver) != ANSWER
    enter(driver, "11" + "." * 79)
    wait(driver, "These givens break a rule: row 1 has 1 more than once.")
    enter(driver, "123")
    wait(driver, "3 cells found")
    driver.refresh()
    wait(driver, "Press Solve")


@pytest.mark.slow
def test_runs_start_again_on_symmetric_copies(open_page: Callable[[str], Any]) -> None:
    """A puzzle without a solution gets every run; the page says so, and solves the next."""
    driver = open_page("sudoku-4x4")
    enter(driver, "123....4........")
    said = wait(driver, "No grid that keeps the rules after 8 runs")
    assert "may have no solution" in said
    assert "8:1" in driver.find_element("id", "steps").text.split()
    enter(driver, "1.....2..3.....4")
    wait(driver, "Solved in")
    assert grid(driver)[0] == "1" and sorted(grid(driver)) == sorted("1234" * 4)
