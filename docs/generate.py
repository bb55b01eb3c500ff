"""Write the parts of the documents that are read out of the code.

``python docs/generate.py`` rewrites, between their markers, the field tables of
docs/configuration.md (from the configuration dataclasses), and the list of differences in
docs/migration_guide.md (from the paragraphs and comments that begin ``Differs from reference:``).
tests/policy/test_docs.py fails where a document and the code have drifted apart.
"""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
import tokenize
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

ROOT = Path(__file__).resolve().parents[1]
MARKER = "Differs from reference:"


def field_docstrings(cls: type) -> Dict[str, str]:
    """The one-line docstrings below the fields of a dataclass and of its bases."""
    found: Dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore
        for statement, following in zip(body, body[1:]):
            if not isinstance(statement, ast.AnnAssign) or not isinstance(following, ast.Expr):
                continue
            value = following.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[ast.unparse(statement.target)] = " ".join(value.value.split())
    return found


def type_name(annotation: Any) -> str:
    """A type as the table shows it: ``Optional[int]`` is `int or null`."""
    text = annotation if isinstance(annotation, str) else None
    if text is None:
        text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    text = text.replace("typing.", "").replace("NoneType", "null")
    text = re.sub(r"^Optional\[(.*)\]$", r"\1 or null", text)
    text = re.sub(r"Union\[(.*?)\]", lambda m: m.group(1).replace(", ", " or "), text)
    return re.sub(r"List\[(.*)\]", r"list of \1", text)


def default_of(field: "dataclasses.Field[Any]") -> str:
    """A field's default in YAML's spelling."""
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "(must be given)"
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return "`[" + ", ".join(str(item) for item in value) + "]`"
    return f"`{value}`"


def allowed(field: "dataclasses.Field[Any]") -> str:
    """The range or the choices that a field's metadata states."""
    meta = field.metadata
    if "choices" in meta:
        return ", ".join(f"`{choice}`" for choice in meta["choices"])
    parts = []
    for key, sign in (("min", "≥"), ("above", ">"), ("max", "≤"), ("below", "<")):
        if key in meta:
            parts.append(f"{sign} {meta[key]}")
    return " and ".join(parts)


def field_table(cls: type, skip: Tuple[str, ...] = ()) -> str:
    """A Markdown table of a dataclass's settings."""
    from mlx_trm.config.checks import section_fields

    docs = field_docstrings(cls)
    rows = ["| field | type | default | allowed | meaning |", "|---|---|---|---|---|"]
    for field in section_fields(cls).values():
        if field.name in skip:
            continue
        meaning = docs.get(field.name)
        if not meaning:
            raise SystemExit(f"{cls.__name__}.{field.name} has no docstring below it")
        cells = [f"`{field.name}`", type_name(field.type), default_of(field), allowed(field)]
        rows.append("| " + " | ".join(cells + [meaning.replace("|", "\\|")]) + " |")
    return "\n".join(rows)


def configuration_sections() -> str:
    """Every section of a configuration, with its fields."""
    from mlx_trm.config import loading as config
    from mlx_trm.config.registry import MODELS, TASKS

    sections = ("task", "model", "train", "eval", "checkpoint", "init")
    parts = ["### Top level\n", field_table(config.ExperimentConfig, skip=sections)]
    for kind, registry in (("task", TASKS), ("model", MODELS)):
        for name in registry.names():
            if not registry.get(name).cls.__module__.startswith("mlx_trm."):
                continue  # a task or model of a test or a plugin
            parts += [f"\n### `{kind}` with `name: {name}`\n"]
            parts += [field_table(registry.get(name).config_class)]
    for name, cls in (
        ("train", config.TrainConfig),
        ("eval", config.EvalConfig),
        ("checkpoint", config.CheckpointConfig),
        ("init", config.InitConfig),
    ):
        parts += [f"\n### `{name}`\n", field_table(cls)]
    return "\n".join(parts)


def marked_differences(path: Path) -> Iterator[str]:
    """The texts that mark a difference: paragraphs of docstrings, and comments with the comment
    lines below them."""
    with tokenize.open(str(path)) as file:
        module = ast.parse(file.read())
    for node in ast.walk(module):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                if paragraph.lstrip().startswith(MARKER):
                    yield " ".join(paragraph.split())[len(MARKER) :].strip()
    with tokenize.open(str(path)) as file:
        tokens = [t for t in tokenize.generate_tokens(file.readline) if t.type == tokenize.COMMENT]
    for index, token in enumerate(tokens):
        text = token.string.lstrip("# ")
        if not text.startswith(MARKER):
            continue
        words = [text[len(MARKER) :].strip()]
        row, column = token.start
        for following in tokens[index + 1 :]:
            row += 1
            if following.start != (row, column) or MARKER in following.string:
                break
            words.append(following.string.lstrip("# ").strip())
        yield " ".join(words)


def difference_list() -> str:
    """Every marked difference, by module."""
    lines: List[str] = []
    for path in sorted((ROOT / "mlx_trm").rglob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        for text in marked_differences(path):
            lines.append(f"- [`{where}`](../{where}): {text}")
    return "\n".join(lines)


PARTS = {
    "docs/configuration.md": ("fields", configuration_sections),
    "docs/migration_guide.md": ("differences", difference_list),
}


def replaced(document: str, name: str, text: str) -> str:
    """The document with the part between the markers of ``name`` exchanged."""
    start, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
    if start not in document or end not in document:
        raise SystemExit(f"the markers {start} and {end} are missing")
    before, rest = document.split(start, 1)
    return before + start + "\n\n" + text + "\n\n" + end + rest.split(end, 1)[1]


def generated() -> Dict[Path, str]:
    """What each document with a generated part should contain."""
    result = {}
    for file, (name, make) in PARTS.items():
        path = ROOT / file
        result[path] = replaced(path.read_text(encoding="utf-8"), name, make())
    return result


def main() -> int:
    """Rewrite the documents; say which changed."""
    sys.path.insert(0, str(ROOT))
    for path, text in generated().items():
        changed = path.read_text(encoding="utf-8") != text
        if changed:
            path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {'rewritten' if changed else 'unchanged'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
