"""The documents as a site: mkdocs.yml, its hooks, the pages of the API."""

import importlib.util
import logging
import re
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest
import yaml
from child_processes import run
from paths import ROOT

import mlx_trm

DOCS = ROOT / "docs"


class Loader(yaml.SafeLoader):  # pylint: disable=too-many-ancestors
    """Reads ``!ENV [NAME, default]`` as its default."""


Loader.add_constructor("!ENV", lambda loader, node: loader.construct_sequence(node)[-1])


def settings() -> Any:
    """What mkdocs.yml says."""
    return yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)


def named(entry: Any) -> Iterator[str]:
    """The files of a navigation."""
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from named(part)


def hooks() -> Any:
    """The module docs/site_links.py."""
    spec = importlib.util.spec_from_file_location("site_links", DOCS / "site_links.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_navigation_is_the_pages() -> None:
    """Every page is in the navigation once, and nothing else is."""
    pages = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert sorted(named(settings()["nav"])) == pages


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.name))
def test_an_empty_line_follows_code(page: Path) -> None:
    """Without it the items of a list after a block of code become one paragraph on the site."""
    inside = False
    lines = page.read_text(encoding="utf-8").split("\n")
    for number, (line, after) in enumerate(zip(lines, lines[1:] + [""]), 1):
        if line.lstrip().startswith("```"):
            inside = not inside
            assert inside or not after.strip(), f"{page}:{number}"


CASES = [
    ("[x](faq.md#it)", "[x](faq.md#it)", "[x](faq.md#it)"),
    ("[`a.b`](../README.md#start)", "`a.b`", "[`a.b`](A/blob/HEAD/README.md#start)"),
    ("see [models](../mlx_trm/models)", "see models", "see [models](A/tree/HEAD/mlx_trm/models)"),
    ("[g](generate.py)", "g", "[g](A/blob/HEAD/docs/generate.py)"),
    ("[out](https://x.y)", "[out](https://x.y)", "[out](https://x.y)"),
    ("`[x](../README.md)`", "`[x](../README.md)`", "`[x](../README.md)`"),
    ("```\n[x](../README.md)\n```", "```\n[x](../README.md)\n```", "```\n[x](../README.md)\n```"),
    ("![p](images/p.png)", "![p](images/p.png)", "![p](images/p.png)"),
]


@pytest.mark.parametrize("text, alone, published", CASES)
def test_links_out_of_the_site(text: str, alone: str, published: str) -> None:
    """They lead into the repository where its address is known, and are plain text elsewhere."""
    rewrite = hooks().rewrite_links
    assert rewrite(text, DOCS / "index.md", DOCS, "") == alone
    assert rewrite(text, DOCS / "index.md", DOCS, "A") == published


@pytest.mark.parametrize("target", ["../no_such.md", "no_such.py", "../../outside.md"])
def test_a_link_to_nothing_is_a_warning(target: str, caplog: pytest.LogCaptureFixture) -> None:
    """A strict build stops at a warning."""
    with caplog.at_level(logging.WARNING):
        hooks().rewrite_links(f"[x]({target})", DOCS / "index.md", DOCS, "A")
    assert target in caplog.text


def test_every_public_name_has_its_place() -> None:
    """Each name of ``mlx_trm.__all__`` is on one page of the API."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    shown = re.findall(r"^::: mlx_trm\.(\w+)$", text, flags=re.MULTILINE)
    assert sorted(shown) == sorted(set(mlx_trm.__all__) - {"__version__"})


def test_nothing_is_loaded_from_elsewhere() -> None:
    """No fonts, and no host's figures, are fetched when a page is read."""
    assert settings()["theme"]["font"] is False
    assert "repo_url" not in settings()  # the theme would ask the host for stars
    assert not settings().get("extra_javascript")


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("material", "mkdocstrings")),
    reason="the extra docs is not installed",
)
@pytest.mark.parametrize("address", ["", "https://example.org/owner/name"])
def test_the_site_is_built_strictly(address: str, tmp_path: Path) -> None:
    """Without a warning, and no page loads anything from elsewhere."""
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = run(words, env={"REPOSITORY_URL": address}, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(script|img|iframe)[^>]* src=\"?(https?:)?//", text), page
        assert not re.search(r"<link[^>]*stylesheet[^>]* href=\"?(https?:)?//", text), page
