"""YAML as a configuration means it, read strictly and written so that it reads back the same.

Scalars follow YAML 1.2: ``1e-4`` is a number, ``yes`` and ``2026-11-20`` are text. Duplicate keys,
aliases and tags are refused. PyYAML by itself follows YAML 1.1 and keeps the last of equal keys.
"""

import re
from typing import Any, Dict, List, Pattern, Set, Tuple

import yaml

TAG = "tag:yaml.org,2002:"
NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
INT = re.compile(r"^[-+]?[0-9](?:_?[0-9])*$")
FLOAT = re.compile(
    r"^(?:[-+]?(?:[0-9](?:_?[0-9])*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
SCALARS: Tuple[Tuple[str, Pattern[str], str], ...] = (
    ("null", NULL, "~nN"),
    ("bool", BOOL, "tTfF"),
    ("int", INT, "-+0123456789"),
    ("float", FLOAT, "-+.0123456789"),
)


class _Loader(yaml.SafeLoader):  # pylint: disable=too-many-ancestors
    """Composes nodes whose plain scalars are resolved by YAML 1.2's rules."""

    yaml_implicit_resolvers: Dict[str, Any] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases; nothing in a configuration needs them."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"the alias '*{event.anchor}' is not supported; write the value out",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):  # pylint: disable=too-many-ancestors
    """Quotes text that would be something else to YAML 1.1 or to YAML 1.2."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent list items below their key."""
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quote and escape text with line breaks that only Unicode knows; YAML would fold them."""
    style = '"' if set(text) & set("\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
for _name, _pattern, _first in SCALARS:
    _Loader.add_implicit_resolver(TAG + _name, _pattern, list(_first))
    _Dumper.add_implicit_resolver(TAG + _name, _pattern, list(_first))
_Loader.add_implicit_resolver(TAG + "null", NULL, [""])


def parse_yaml(text: str) -> Tuple[Any, List[str]]:
    """Read one document.

    Args:
        text: the document.

    Returns:
        Its value, of dicts with text keys, lists, and scalars; and one line for each duplicate key.

    Raises:
        ValueError: if it is not one document of that kind; the message is one line with the place.
    """
    duplicates: List[str] = []
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            value = None if node is None else _value(node, "", duplicates)
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = chr(error.character)
        raise ValueError(f"line {line}: the character {character!r} is not allowed") from error
    except yaml.MarkedYAMLError as error:
        raise ValueError(_one_line(error)) from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    return value, duplicates


def parse_scalar(text: str) -> Any:
    """Read the value of an override: a scalar by YAML's rules, or a list such as ``[a, b]``.

    Args:
        text: what stands after the ``=``. Characters with a meaning in YAML stand for themselves
            unless the text begins with a bracket or a quotation mark.

    Returns:
        The value; the text itself where it is nothing else.
    """
    text = text.strip()
    try:
        if text[:1] in ("[", "{", '"', "'"):
            return parse_yaml(text)[0]
        return _scalar(_Loader("").resolve(yaml.ScalarNode, text, (True, False)), text)
    except ValueError:
        return text


def dump_yaml(value: Any) -> str:
    """Write a value of dicts, lists and scalars so that :func:`parse_yaml` gives it back."""
    text: str = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=1_000_000,
    )
    return text


def _value(node: Any, path: str, duplicates: List[str]) -> Any:
    """Turn a node into Python values; note duplicate keys."""
    kinds = ("null", "bool", "int", "float", "str", "seq", "map")
    kind = node.tag[len(TAG) :] if node.tag.startswith(TAG) else ""
    if kind not in kinds or isinstance(node, yaml.ScalarNode) != (kind not in ("seq", "map")):
        raise _marked(f"the tag {node.tag.replace(TAG, '!!')!r} is not supported", node)
    if isinstance(node, yaml.ScalarNode):
        try:
            return _scalar(node.tag, node.value)
        except ValueError as error:
            shown = node.value if len(node.value) <= 40 else node.value[:40] + "..."
            raise _marked(f"{shown!r} is not a usable {kind}", node) from error
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, path, duplicates) for item in node.value]
    result: Dict[str, Any] = {}
    lines: Dict[str, int] = {}
    reported: Set[str] = set()
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _marked("a key must be a word", key_node)
        key = str(key_node.value)
        full = f"{path}.{key}" if path else key
        line = key_node.start_mark.line + 1
        if key in result and key not in reported:
            duplicates.append(f"line {line}: duplicate key {full!r}, first in line {lines[key]}")
            reported.add(key)
        lines.setdefault(key, line)
        result[key] = _value(value_node, full, duplicates)
    return result


def _scalar(tag: str, text: str) -> Any:
    """Give the value of a scalar by its tag."""
    kind = tag[len(TAG) :]
    if kind == "null":
        return None
    if kind == "bool":
        if not BOOL.match(text):
            raise ValueError(text)
        return text.lower() == "true"
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.lower()))
    return text


def _marked(problem: str, node: Any) -> yaml.MarkedYAMLError:
    """An error that knows its place."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _one_line(error: yaml.MarkedYAMLError) -> str:
    """Say what is wrong in a YAML text, and where."""
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "is not YAML"
    if "'\\t'" in problem:
        problem += "; indent with spaces instead of tabs"
    elif "mapping values are not allowed" in problem:
        problem = "a second ':' in one line, or wrong indentation; quote text that contains ': '"
    elif "expected" in problem and ("<document start>" in problem or "<block end>" in problem):
        problem = "wrong indentation, or something left over from the lines before"
    elif "expected a single document" in (error.context or ""):
        problem = "a second document begins; keep one"
    place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    return place + " ".join(str(problem).split())
