"""YAML as a configuration means it, read strictly and written so that it reads back the same.

Scalars follow YAML 1.2: ``1e-4`` is a number, ``yes`` and ``2026-11-20`` are text. Duplicate keys,
aliases and tags are refused. PyYAML by itself follows YAML 1.1 and keeps the last of equal keys.
"""

import re
from typing import Any, Callable, Dict, List, Tuple

import yaml

TAG = "tag:yaml.org,2002:"
BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
NUMBER = r"[-+]?(?:[0-9](?:_?[0-9])*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"


def _float(text: str) -> float:
    """Read a number; YAML writes ``.inf`` and ``.nan`` for Python's ``inf`` and ``nan``."""
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


# Each kind of scalar: how it looks without quotes, and what it becomes.
SCALARS: Dict[str, Tuple[str, Callable[[str], Any]]] = {
    "null": ("~|null|Null|NULL|", lambda text: None),
    "bool": ("|".join(BOOLS), BOOLS.__getitem__),
    "int": (r"[-+]?[0-9](?:_?[0-9])*", int),
    "float": (rf"{NUMBER}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", _float),
}


class _Loader(yaml.SafeLoader):  # pylint: disable=too-many-ancestors
    """Makes dicts with text keys, lists and scalars of one document, and nothing else.

    Attributes:
        path: keys of the sections that are being read.
        duplicates: a line about each key that is there twice, by its dotted name.
    """

    yaml_implicit_resolvers: Dict[str, Any] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.path: List[str] = []
        self.duplicates: Dict[str, str] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases; nothing in a configuration needs them."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = f"the alias '*{event.anchor}' is not supported; write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Make the value of a node, by its tag; only the tags of plain values are known."""
        kind = node.tag[len(TAG) :] if node.tag.startswith(TAG) else ""
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self.construct_mapping(node)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return self.construct_sequence(node)
        if not isinstance(node, yaml.ScalarNode) or kind not in (*SCALARS, "str"):
            raise _marked(f"the tag {node.tag.replace(TAG, '!!')!r} is not supported", node)
        try:
            return SCALARS[kind][1](node.value) if kind in SCALARS else str(node.value)
        except (KeyError, ValueError) as error:
            shown = node.value if len(node.value) <= 40 else node.value[:40] + "..."
            raise _marked(f"{shown!r} is not a usable {kind}", node) from error

    def construct_mapping(self, node: Any, deep: bool = False) -> Dict[Any, Any]:
        """Make a dict, whose keys are text as it is written; note those that are there twice."""
        result: Dict[Any, Any] = {}
        lines: Dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _marked("a key must be a word", key_node)
            key, line = str(key_node.value), key_node.start_mark.line + 1
            self.path.append(key)
            if key in result:
                name = ".".join(self.path)
                text = f"line {line}: duplicate key {name!r}, first in line {lines[key]}"
                self.duplicates.setdefault(name, text)
            lines.setdefault(key, line)
            result[key] = self.construct_object(value_node)
            self.path.pop()
        return result


class _Dumper(yaml.SafeDumper):  # pylint: disable=too-many-ancestors
    """Quotes text that would be something else to YAML 1.1 or to YAML 1.2."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent list items below their key."""
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quote and escape text with line breaks that only Unicode knows; YAML would fold them."""
    style = '"' if set(text) & set("\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar(TAG + "str", text, style=style)


for _kind, (_pattern, _) in SCALARS.items():
    for _tool in (_Loader, _Dumper):
        _tool.add_implicit_resolver(TAG + _kind, re.compile(f"^(?:{_pattern})$"), None)
_Dumper.add_representer(str, _represent_text)


def parse_yaml(text: str) -> Tuple[Any, List[str]]:
    """Read one document.

    Args:
        text: the document.

    Returns:
        Its value, of dicts with text keys, lists, and scalars; and one line for each duplicate key.

    Raises:
        ValueError: if it is not one document of that kind; the message is one line with the place.
    """
    try:
        loader = _Loader(text)
        return loader.get_single_data(), list(loader.duplicates.values())
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = chr(error.character)
        raise ValueError(f"line {line}: the character {character!r} is not allowed") from error
    except yaml.MarkedYAMLError as error:
        raise ValueError(_one_line(error)) from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


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
        loader = _Loader("")
        node = yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text)
        return loader.construct_object(node)
    except (ValueError, yaml.MarkedYAMLError):
        return text


def dump_yaml(value: Any) -> str:
    """Write a value of dicts, lists and scalars so that :func:`parse_yaml` gives it back."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000
    )
    return text


def _marked(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
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
    return place + " ".join(problem.split())
