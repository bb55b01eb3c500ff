"""Wrong command lines: a case, how its files are made and damaged, and what has to come of it."""

import json
import re
import shutil
from pathlib import Path
from types import MappingProxyType
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional

from mlx_trm.runs.state import write_state
from mlx_trm.system.files import hash_file


class Case(NamedTuple):
    """A wrong command line.

    Attributes:
        line: the words after ``python -m mlx_trm``; a word of a list may hold spaces.
        says: what the message has to contain, several separated by ``|``.
        files: written first, by name in the working folder; None makes a folder.
        prepare: called first, in the working folder, after that.
        stdin: what standard input holds.
        problems: lines below a heading; 0 for a message of one line.
        env: environment variables.
    """

    line: "str | List[str]"
    says: str
    files: Mapping[str, "str | bytes | None"] = MappingProxyType({})
    prepare: Optional[Callable[[], None]] = None
    stdin: str = ""
    problems: int = 0
    env: Mapping[str, str] = MappingProxyType({})


# Preparations: they run in the working folder.


def rewrite(path: str, change: Callable[[bytes], bytes], seal: bool = False) -> Callable[[], None]:
    """Change a file's bytes; with ``seal`` its checksum in ``state.json`` too."""

    def prepare() -> None:
        file = Path(path)
        file.write_bytes(change(file.read_bytes()))
        if seal:
            state = json.loads((file.parent / "state.json").read_text())
            state["sha256"][file.name] = hash_file(file)
            write_state(file.parent, state)

    return prepare


def edit_json(path: str, **values: object) -> Callable[[], None]:
    """Change entries of a JSON object; None removes one."""

    def change(content: bytes) -> bytes:
        held = {**json.loads(content), **values}
        return json.dumps({key: value for key, value in held.items() if value is not None}).encode()

    return rewrite(path, change)


def remove(*paths: str) -> Callable[[], None]:
    """Remove files, links and folders."""

    def prepare() -> None:
        for path in map(Path, paths):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    return prepare


def cut(content: bytes) -> bytes:
    """The first two thirds."""
    return content[: len(content) * 2 // 3]


# Checking.


def set_up(case: Case) -> List[str]:
    """Make a case's files; give its words."""
    for name, content in case.files.items():
        path = Path(name)
        if content is None:
            path.mkdir()
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    if case.prepare is not None:
        case.prepare()
    return case.line.split() if isinstance(case.line, str) else list(case.line)


def snapshot(folder: Path) -> Dict[str, Optional[bytes]]:
    """Every file's content, None for folders; Python's caches and lock files left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts and path.suffix != ".lock"
    }


def check(case: Case, code: int, out: str, err: str) -> None:
    """One line that says it, or a heading and a line for each problem; nothing else."""
    assert "Traceback" not in err and "a bug" not in err, err
    assert code == 2, err
    assert out == ""
    assert err.endswith("\n"), err
    lines = [line for line in err[:-1].split("\n") if not line.startswith("building ")]
    assert len(lines) == 1 + case.problems, err
    if case.problems:
        assert re.fullmatch(rf".+ has {case.problems} problems:", lines[0])
        assert all(re.match(r"  \S", line) for line in lines[1:])
    for part in case.says.split("|"):
        assert part in err, err
    assert len(max(lines, key=len)) < 700, "too long to read"
