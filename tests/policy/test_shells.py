"""What documents show can be pasted into a shell: bash, and zsh, for which brackets are globs."""

import re
import shutil
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest
from child_processes import run
from paths import ROOT
from test_docs import documents, ident

SHELLS = ("", "bash", "sh", "zsh", "console", "shell")
OURS = re.compile(r"\b(python3? |pip install|mlx-trm |git clone)")
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|\$\([^)]*\)|\\\n")
# A comment is a word of the command in an interactive zsh; brackets, stars and question marks are
# patterns that match no file; a placeholder in angle brackets is a redirection.
UNFIT = re.compile(r"(^|\s)#|[\[\]*?]|<[\w ]|!")
# Settings with a list, which people put behind a command.
LIST = re.compile(r"[\w.]+=\[")


def shell_blocks(path: Path) -> Iterator[str]:
    """The code blocks that are pasted into a shell: those marked so, and others with commands."""
    text = path.read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S):
        if language in SHELLS and (language or OURS.match(block)):
            yield block


def inline_commands(path: Path) -> Iterator[str]:
    """The commands, and the settings with lists, in the prose and tables of a document."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for code in re.findall(r"`([^`\n]+)`", text):
        if OURS.match(code) or LIST.match(code):
            yield code.replace("...", "")


def unfit(text: str) -> List[str]:
    """Give the lines of which a shell would make something else."""
    bare = QUOTED.sub(lambda match: "\n" if match.group() == "\\\n" else "Q", text)
    return [line for line in bare.splitlines() if UNFIT.search(line)]


def pages() -> List[Path]:
    """The documents, and the cards of the weights; the log of changes tells what was."""
    cards = sorted((ROOT / "mlx_trm" / "weights").rglob("*.md"))
    return [path for path in documents() if path.name != "CHANGELOG.md"] + cards


@pytest.mark.parametrize("path", pages(), ids=ident)
def test_documented_commands_can_be_pasted(path: Path) -> None:
    """No comments, and nothing that a shell takes for a pattern, a redirection or the history."""
    for block in shell_blocks(path):
        assert not unfit(block), block
    for code in inline_commands(path):
        assert not unfit(code), code


def test_there_is_something_to_paste() -> None:
    """The search above finds blocks and commands in the places where people look first."""
    assert len(list(shell_blocks(ROOT / "README.md"))) >= 3
    assert len(list(inline_commands(ROOT / "README.md"))) >= 10
    assert list(shell_blocks(ROOT / "docs" / "finetuning.md"))


WRONG: List[Tuple[str, bool]] = [
    ("python -m mlx_trm.train a=[b]", True),
    ("python -m mlx_trm.train 'a=[b]' \"c=[d]\"", False),
    ("pip install .[dev]", True),
    ("python x.py  # a comment", True),
    ("# a comment\npython x.py", True),
    ("git clone <your fork>", True),
    ("python x.py --only trm_*", True),
    ("python x.py --only 'trm_*' \\\n    --more", False),
    ("python -m mlx_trm.solve RUN ...#", False),
    ("MLX=$(python -m mlx --cmake-dir)", False),
]


@pytest.mark.parametrize("text, wrong", WRONG)
def test_what_cannot_be_pasted_is_seen(text: str, wrong: bool) -> None:
    """The check above stands on this."""
    assert bool(unfit(text)) == wrong


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh here")
def test_zsh_parses_every_block(tmp_path: Path) -> None:
    """``zsh -n`` reads each block without running it."""
    for path in pages():
        for block in shell_blocks(path):
            (tmp_path / "block.zsh").write_text(block, encoding="utf-8")
            done = run(["zsh", "-f", "-n", tmp_path / "block.zsh"])
            assert (done.returncode, done.stderr) == (0, ""), f"{ident(path)}: {block}"
