"""Runs commands in the test's own process, in a folder of their own."""

from pathlib import Path
from typing import Any, Callable, NamedTuple

from mlx_trm.__main__ import main


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


def in_empty_folder(folder: Path, monkeypatch: Any, capsys: Any) -> Callable[..., Result]:
    """Go to an empty folder below this one, with a cache beside it.

    Returns:
        What runs a command, given its words.
    """
    monkeypatch.setenv("MLX_TRM_CACHE", str(folder / "cache"))
    (folder / "work").mkdir()
    monkeypatch.chdir(folder / "work")

    def call(*words: str) -> Result:
        code = main(list(words))
        return Result(code, *capsys.readouterr())

    return call
