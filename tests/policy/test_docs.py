"""The documents say what the code does: commands, options, names, links, tables."""

import ast
import hashlib
import importlib
import importlib.util
import io
import json
import re
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set, Tuple

import pytest
from child_processes import run
from paths import ROOT

import mlx_trm

README = ROOT / "README.md"
COMMANDS = "train evaluate solve adapt plot serve data convert parity export diagnose".split()

# Names that stand for a place the reader has: they need not exist in the repository.
READERS_OWN = {"my_task.yaml"}


def documents() -> List[Path]:
    """Every Markdown file of the repository."""
    found = list(ROOT.glob("*.md")) + list((ROOT / ".github").rglob("*.md"))
    for folder in ("docs", "data", "benchmarks", "examples", "tests"):
        found += (ROOT / folder).rglob("*.md")
    return sorted(found)


def text_files() -> List[Path]:
    """Every text file that git tracks, or that lies in the folders where it would."""
    listed = run(["git", "ls-files", "-z"], cwd=ROOT).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    if not paths:  # a source archive
        paths = [p for p in ROOT.rglob("*") if p.is_file() and ".git" not in p.parts]
    suffixes = {".py", ".md", ".toml", ".yaml", ".yml", ".cff", ".json", ".txt", ".cfg", ".csv", ""}
    return [p for p in paths if p.suffix in suffixes and p.is_file()]


def ident(path: Path) -> str:
    """A readable name for a test's parameter."""
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> List[str]:
    """The code blocks of one language in a document."""
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def command_lines(path: Path) -> Iterator[Tuple[str, str]]:
    """Pairs (command, rest of its line) of every use of one of our commands in a document."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    pattern = r"(?:python3? -m mlx_trm\.|(?<![\w/.-])mlx-trm )([a-z_]+)([^\n`]*)"
    for match in re.finditer(pattern, text):
        yield match.group(1), match.group(2).split(" # ")[0]


@lru_cache(maxsize=None)
def help_of(command: str) -> str:
    """What ``--help`` prints, that of the sub-commands of ``data`` included."""
    texts = []
    for extra in [[]] + (
        [[s] for s in ("list", "fetch", "build", "show", "generate")] if command == "data" else []
    ):
        out = io.StringIO()
        with redirect_stdout(out):
            assert importlib.import_module(f"mlx_trm.{command}").main([*extra, "--help"]) == 0
        texts.append(out.getvalue())
    return "\n".join(texts)


@pytest.mark.parametrize("path", documents(), ids=ident)
def test_documented_commands_exist(path: Path) -> None:
    """Every command and every option that a document shows is there."""
    for command, rest in command_lines(path):
        known = {*COMMANDS, "completion"}
        assert command in known, f"{ident(path)} shows the command {command}"
        if command == "completion":
            continue
        for option in re.findall(r"(?<![\w-])(--[a-z][a-z-]*)", rest):
            assert option in help_of(command), f"{ident(path)}: {command} has no {option}"


def test_readme_shows_every_command() -> None:
    """README leaves no command out."""
    assert set(COMMANDS) <= {command for command, _ in command_lines(README)}


@pytest.mark.parametrize("path", documents(), ids=ident)
def test_packaged_configs_exist(path: Path) -> None:
    """``--config NAME.yaml`` names a packaged configuration, or plainly the reader's own file."""
    packaged = {p.name for p in (ROOT / "mlx_trm" / "config" / "presets").glob("*.yaml")}
    named = set()
    for _, rest in command_lines(path):
        named |= set(re.findall(r"--config[ =]([\w.]+\.yaml)(?![\w/])", rest))
    named |= set(re.findall(r"load_config\(\"([\w.]+\.yaml)\"", path.read_text(encoding="utf-8")))
    assert named - packaged <= READERS_OWN


def test_every_packaged_config_is_documented() -> None:
    """docs/configuration.md names all of them."""
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for path in (ROOT / "mlx_trm" / "config" / "presets").glob("*.yaml"):
        assert f"`{path.name}`" in text


@pytest.mark.parametrize("path", documents(), ids=ident)
def test_python_snippets_are_true(path: Path) -> None:
    """Python blocks parse, and what they take from the package is exported."""
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id in ("trm", "mlx_trm"):
                    assert hasattr(mlx_trm, node.attr), f"{ident(path)}: trm.{node.attr}"
            if isinstance(node, ast.ImportFrom) and node.module == "mlx_trm":
                for alias in node.names:
                    assert alias.name in mlx_trm.__all__, f"{ident(path)}: {alias.name}"


@pytest.mark.parametrize("path", documents(), ids=ident)
def test_links_lead_somewhere(path: Path) -> None:
    """Links to files of the repository, and to headings in them, resolve."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{ident(path)} links to {target}"
        assert ROOT in there.parents or there == ROOT, f"{ident(path)} leads out of the repository"
        if anchor and there.suffix == ".md":
            assert anchor in headings(there), f"{ident(path)} links to {target}"


def headings(path: Path) -> Set[str]:
    """GitHub's anchors of a document's headings."""
    found = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in found}


def test_no_path_of_a_machine() -> None:
    """Nothing in the repository knows where it was written."""
    words = ["/" + "work/", "/" + "root/", "/" + "opt/wheels", "/tmp/" + "venvs", "/" + "Users/"]
    bad = []
    for path in text_files():
        text = path.read_text(encoding="utf-8", errors="replace")
        bad += [f"{ident(path)}: {word}" for word in words if word in text]
    assert bad == []


def test_versions_agree() -> None:
    """The package, CITATION.cff and CHANGELOG.md name one version."""
    version = mlx_trm.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, flags=re.M).group(1) == version  # type: ignore
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{version}]" in changes or f"Version {version}, not yet released." in changes
    assert "## [Unreleased]" in changes


def generator() -> Any:
    """The module docs/generate.py."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_up_to_date() -> None:
    """Field tables and the list of differences are those of the code."""
    for path, text in generator().generated().items():
        current = path.read_text(encoding="utf-8")
        assert current == text, f"{ident(path)}: run python docs/generate.py"


def test_marked_differences_are_read_whole(tmp_path: Path) -> None:
    """A comment goes on in the comment lines below, a docstring's mark to its paragraph's end."""
    mark = "Differs from" + " reference:"
    path = tmp_path / "toy.py"
    path.write_text(
        f'"""Toy.\n\n{mark} zero\nand more.\n\nNot this.\n"""\n'
        f"# {mark} one\n# two\nx = 1  # no\n# {mark} three\n# {mark} four\n"
    )
    assert list(generator().marked_differences(path)) == [
        "zero and more.",
        "one two",
        "three",
        "four",
    ]


def test_differences_are_marked_and_listed() -> None:
    """There are marked differences, and the migration guide has each of them."""
    listed = generator().difference_list().splitlines()
    guide = (ROOT / "docs" / "migration_guide.md").read_text(encoding="utf-8")
    assert len(listed) >= 5
    assert [line for line in listed if line not in guide] == []


def test_readme_commands_are_what_ci_runs() -> None:
    """README's two commands stand in code blocks, and .ci/run uses the second as written."""
    code = "\n".join(blocks(README, "bash"))
    assert 'pip install -e ".[cpu]"' in code
    assert "python -m mlx_trm.train --config sudoku_tiny.yaml" in code
    install, test = 'pip install -e ".[dev]"', "python -m pytest"
    assert f"{install} && {test}" in code
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert '-e ".[dev]"' in script and test in script


def names_in(path: Path) -> Dict[str, bool]:
    """The tests of a file, and whether each is slow."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    whole = any(
        isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "pytestmark"
        and "slow" in ast.unparse(node.value)
        for node in module.body
    )
    found = {}
    for holder in [module] + [node for node in module.body if isinstance(node, ast.ClassDef)]:
        for node in holder.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = " ".join(ast.unparse(mark) for mark in node.decorator_list)
                found[node.name] = whole or "mark.slow" in marks
    return found


@lru_cache(maxsize=None)
def every_test() -> Dict[str, bool]:
    """The tests of all files, and whether each is slow."""
    every: Dict[str, bool] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        every.update(names_in(path))
    return every


@pytest.mark.parametrize("path", documents(), ids=ident)
def test_named_tests_exist(path: Path) -> None:
    """A document that names a test as what holds a promise names one that is there."""
    named, settings = (
        set(re.findall(r"`(test_\w+)`", file.read_text(encoding="utf-8")))
        for file in (path, ROOT / "docs" / "configuration.md")
    )
    assert sorted(named - set(every_test()) - settings) == []


def test_every_kind_of_fault_has_a_promise_and_its_tests() -> None:
    """Each of the seventeen stands once in the tables, and names a test."""
    rows: List[Tuple[int, str]] = []
    for name in ("reliability", "security"):
        text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        rows += [(int(n), row) for n, row in re.findall(r"^\| (\d+) \|(.*)\|$", text, flags=re.M)]
    assert sorted(number for number, _ in rows) == list(range(1, 18))
    for number, row in rows:
        assert re.search(r"`test_\w+`$", row.strip()), number


def test_test_plan_is_complete() -> None:
    """The plan maps behaviours to tests and files that exist, and names every slow test."""
    plan = (ROOT / "docs" / "test_plan.md").read_text(encoding="utf-8")
    every = every_test()
    named = set(re.findall(r"`(test_\w+)`", plan))
    assert {name for name, slow in every.items() if slow} - named == set()
    for name in set(re.findall(r"`(tests/[\w/]+\.py)`", plan)):
        assert (ROOT / name).is_file(), name


def test_spec_names_only_what_is_there() -> None:
    """A line of SPEC.md marked done points to a file, and all of them exist (links are tested)."""
    rows = re.findall(
        r"^\| ([\d.]+) \|(.*)\| (done|part|planned) \|(.*)\|$",
        (ROOT / "SPEC.md").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    assert len(rows) >= 30
    for number, _, status, where in rows:
        if status == "done":
            assert "](" in where, f"SPEC {number} is done, but says not where"


def test_reference_numbers_are_those_recorded() -> None:
    """Documents that name the reference's commit name the one the recordings were made from."""
    manifest = json.loads((ROOT / "tests" / "reference" / "cuda" / "manifest.json").read_text())
    commits = set(re.findall(r'"upstream_commit": ?"(\w{7})', json.dumps(manifest)))
    guide = (ROOT / "docs" / "migration_guide.md").read_text(encoding="utf-8")
    for commit in commits:
        assert commit in guide


def test_bundled_data_are_described() -> None:
    """data/README.md has the checksum of every bundled file."""
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "mlx_trm" / "samples").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() in text, path.name
