"""The notebooks of examples/notebooks: whole, small, of nobody's machine, and they run."""

import ast
import importlib
import json
import re
from pathlib import Path
from typing import Any, Dict, List

import pytest
import yaml
from paths import ROOT

import mlx_trm

FOLDER = ROOT / "examples" / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [
    "01_first_steps",
    "02_watching_the_recursion",
    "03_test_time_scaling",
    "04_a_task_of_your_own",
    "05_arc_from_data_to_submission",
    "06_mlx_beside_cuda",
]
MOST_BYTES = 150 * 1024
# A folder of somebody's machine, or a time of day.
FOREIGN = re.compile(
    r"(?<![\w./:<])/(?:home|Users|root|tmp|work|var|opt|private)/|\b\d\d:\d\d:\d\d\b"
)
each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def load(path: Path) -> Dict[str, Any]:
    """Read a notebook."""
    notebook: Dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def code_cells(notebook: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Give its cells of code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def missing_names(source: str) -> List[str]:
    """Give the names of this package that code uses and that do not exist."""
    known: Dict[str, Any] = {}
    missing = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "mlx_trm":
                    module = importlib.import_module(alias.name)
                    known[alias.asname or "mlx_trm"] = module if alias.asname else mlx_trm
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlx_trm"):
            module = importlib.import_module(str(node.module))
            missing += [a.name for a in node.names if not hasattr(module, a.name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = known.get(node.value.id)
            if owner is not None and not hasattr(owner, node.attr):
                missing.append(f"{node.value.id}.{node.attr}")
    return missing


def problems_of(notebook: Dict[str, Any], size: int) -> List[str]:
    """Say what is wrong with a notebook, as it is stored in so many bytes."""
    found = []
    if (notebook.get("nbformat"), notebook.get("nbformat_minor", 0) >= 5) != (4, True):
        found.append("not nbformat 4.5")
    if size > MOST_BYTES:
        found.append(f"{size} bytes")
    cells = code_cells(notebook)
    if len({cell["id"] for cell in notebook["cells"]}) < len(notebook["cells"]):
        found.append("two cells have one id")
    if [cell["execution_count"] for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("not executed in order, once")
    if any("execution" in cell["metadata"] for cell in cells):
        found.append("says when it was executed")
    for output in (output for cell in cells for output in cell["outputs"]):
        if output["output_type"] == "error" or output.get("name") == "stderr":
            found.append(f"an error or a warning: {str(output)[:200]}")
    text = json.dumps(notebook)
    found += [f"a path or a time: {place.group()}" for place in FOREIGN.finditer(text)]
    source = "\n".join("".join(cell["source"]) for cell in cells)
    return found + [f"no name {name}" for name in missing_names(source)]


@each_notebook
def test_a_notebook_is_whole_small_and_of_no_machine(path: Path) -> None:
    """Executed, without errors, without paths or times; every name of the package exists."""
    assert not problems_of(load(path), path.stat().st_size)


@each_notebook
def test_a_notebook_shows_this_version(path: Path) -> None:
    """Where it asks for the version, its output is that of the package."""
    for cell in code_cells(load(path)):
        if "".join(cell["source"]).rstrip().endswith("trm.__version__"):
            (output,) = cell["outputs"]
            assert "".join(output["data"]["text/plain"]) == repr(mlx_trm.__version__)


def test_what_a_notebook_must_not_be() -> None:
    """Each fault is found."""

    def broken(**changes: Any) -> List[str]:
        cell: Dict[str, Any] = {"cell_type": "code", "id": "a", "execution_count": 1}
        cell.update({"metadata": {}, "source": ["import mlx_trm as trm"], "outputs": [], **changes})
        return problems_of({"nbformat": 4, "nbformat_minor": 5, "cells": [cell]}, 1000)

    def printed(text: str, name: str = "stdout") -> List[Dict[str, Any]]:
        return [{"output_type": "stream", "name": name, "text": [text]}]

    assert not broken()
    assert not broken(outputs=printed("runs/toy, http://example.org/home/x, 3:4"))
    assert broken(source=["import mlx_trm as trm\n", "trm.Solvr"]) == ["no name trm.Solvr"]
    assert broken(source=["from mlx_trm.errors import Oops"]) == ["no name Oops"]
    assert broken(outputs=printed("/home/me/x")) and broken(outputs=printed("at 12:30:01"))
    assert broken(outputs=printed("Warning", "stderr"))
    assert broken(outputs=[{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}])
    assert broken(metadata={"execution": {}})
    assert problems_of({"nbformat": 4, "nbformat_minor": 5, "cells": []}, MOST_BYTES + 1)


def test_every_notebook_is_listed() -> None:
    """Six pages, each named where people look; links in them lead to files."""
    assert [path.stem for path in PATHS] == NAMES
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in PATHS:
        assert f"({path.name})" in listed
        cells = load(path)["cells"]
        assert cells[0]["cell_type"] == "markdown" and cells[0]["source"][0].startswith("# ")
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            assert link.startswith("https://") or (FOLDER / link).exists(), link


def test_an_archive_and_the_nightly_run_have_them() -> None:
    """Notebooks and README's pictures are in the source archive; where they run is a kernel."""
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    assert re.search(r"^recursive-include examples .*\*\.ipynb", manifest, re.MULTILINE)
    assert re.search(r"^recursive-include docs .*\*\.png", manifest, re.MULTILINE)
    workflow = ROOT / ".github" / "workflows" / "nightly.yml"
    for job in yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values():
        assert any("notebooks" in step.get("run", "") for step in job["steps"])


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, offline, on a CPU; every cell that shows something stored shows something again."""
    missing = "pip install -e '.[notebooks]'"
    nbclient = pytest.importorskip("nbclient", reason=missing)
    nbformat = pytest.importorskip("nbformat", reason=missing)
    pytest.importorskip("ipykernel", reason=missing)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    shown = [bool(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    # The folder of the notebook, as for somebody who opens it there.
    resources = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [bool(cell.outputs) for cell in cells] == shown
