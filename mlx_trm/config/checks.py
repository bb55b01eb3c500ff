"""Strict checks of a dataclass's fields: types from the annotations, ranges from the metadata.

A field's metadata may hold ``min``, ``max`` (inclusive), ``above``, ``below`` (exclusive) and
``choices``, a tuple or a registry; for a list they hold for each item. :data:`NO_SETTING` marks a
field that says where a configuration came from: it is neither read, checked nor saved. :data:`PATH`
marks the name of a file or folder, which may not be empty. Supported types: bool, int, float, str,
Literal, and Optional, Union and List of them.
"""

import dataclasses
import math
import typing
from types import MappingProxyType
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Type

from mlx_trm.errors import did_you_mean

UNKNOWN, VALUE, NAME, JOINT = range(4)  # the order in which problems are reported
NUMBER_LIMIT = 2**63
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
WORDS[type(None)] = "null"
WORDS_FOR_MANY = {int: "whole numbers", float: "numbers", str: "text"}
NO_SETTING: Mapping[str, Any] = MappingProxyType({"setting": False})
PATH: Mapping[str, Any] = MappingProxyType({"path": True})
YES_NO = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


class Problem(NamedTuple):
    """One line of a report.

    Attributes:
        rank: its place in the report: UNKNOWN, VALUE, NAME or JOINT.
        key: dotted name of the setting; empty where it takes more than one to see the problem.
        text: the line.
    """

    rank: int
    key: str
    text: str


class Section:
    """Base of the parts of a configuration."""

    def problems(self) -> List[str]:
        """Find settings that do not fit together, given that each is in its own range.

        Returns:
            One line for each; a line that begins with a field's name gets the section's put
            before it.
        """
        return []


def section_fields(cls: Type[Any]) -> Dict[str, "dataclasses.Field[Any]"]:
    """Give the fields of a dataclass that a configuration can set, by name."""
    return {
        field.name: field
        for field in dataclasses.fields(cls)
        if field.init and field.metadata.get("setting", True)
    }


def check_fields(
    cls: Type[Any],
    values: Mapping[str, Any],
    section: str,
    lenient: bool = False,
    skip: Sequence[str] = (),
) -> Tuple[Dict[str, Any], List[Problem]]:
    """Check values for the fields of a dataclass.

    Args:
        cls: the dataclass.
        values: by field name; others are not looked at.
        section: put before the field's name in messages; empty at the top level.
        lenient: take a text such as ``1e-4`` for a number, as a plain YAML 1.1 reader gives it,
            and one value for a list of one.
        skip: fields that are not checked here.

    Returns:
        The values, a whole number turned into a float where the field is one; and the problems.
    """
    hints = typing.get_type_hints(cls)
    found: List[Problem] = []
    result: Dict[str, Any] = {}
    for name, field in section_fields(cls).items():
        if name in skip:
            continue
        key = f"{section}.{name}" if section else name
        if name in values:
            value = values[name]
            try:
                result[name] = _convert(value, hints[name], lenient)
                text = _range_problem(result[name], field.metadata)
            except _Mismatch as mismatch:
                text = str(mismatch) or f"expected {_describe(hints[name])}, not {show(value)}"
                text += _advice(value, hints[name])
            if text:
                found.append(Problem(VALUE, key, f"{key}: {text}"))
        elif dataclasses.MISSING is field.default is field.default_factory:
            found.append(Problem(VALUE, key, f"{key}: is missing; it has no default"))
    return result, found


def check_together(instance: Any, section: str) -> List[Problem]:
    """Collect what a dataclass's own ``problems()`` finds.

    Args:
        instance: with fields that passed :func:`check_fields`.
        section: put before each line.
    """
    found = []
    for line in getattr(instance, "problems", list)():
        first = line.replace(":", " ").split(" ", 1)[0]
        named = first in section_fields(type(instance))
        if section:
            line = f"{section}.{line}" if named else f"{section}: {line}"
        found.append(Problem(JOINT, "", line))
    return found


def show(value: Any) -> str:
    """Show a value in a message as YAML spells it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _Mismatch(Exception):
    """A value is not of the type wanted; the message, where there is one, says more."""


def _convert(value: Any, hint: Any, lenient: bool) -> Any:
    """Give a value as the type that an annotation asks for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if _is_union(hint):
        return _convert_union(value, arguments, lenient)
    if hint is Any:
        return value
    if origin is typing.Literal:
        if not any(value == item and type(value) is type(item) for item in arguments):
            raise _Mismatch(_choice_problem(value, arguments))
        return value
    if hint in (list, List) or origin is list:
        if lenient and isinstance(value, (str, int, float)) and value != "":
            value = [value]  # brackets are characters of their own to a shell
        if not isinstance(value, (list, tuple)):
            raise _Mismatch
        item_hint = arguments[0] if arguments else Any
        return [_convert_item(item, item_hint, i + 1, lenient) for i, item in enumerate(value)]
    if hint is float:
        return _convert_float(value, lenient)
    if hint not in WORDS:
        raise TypeError(f"a configuration field cannot have the type {hint}")
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise _Mismatch
    if hint is int and abs(value) >= NUMBER_LIMIT:
        raise _Mismatch("the number is too large")
    if isinstance(value, str) and ("\0" in value or not is_unicode(value)):
        raise _Mismatch("has a character that no file name or text may have")
    return value


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; the bytes of a foreign encoding cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _convert_item(value: Any, hint: Any, number: int, lenient: bool) -> Any:
    """Give an item of a list as the type wanted, or say which item does not fit."""
    try:
        return _convert(value, hint, lenient)
    except _Mismatch as mismatch:
        text = str(mismatch) or f"expected {_describe(hint)}, not {show(value)}"
        raise _Mismatch(f"item {number}: {text}") from None


def _convert_union(value: Any, arms: Tuple[Any, ...], lenient: bool) -> Any:
    """Give a value as the first type that it fits, or say why the only real one does not fit."""
    reasons = []
    for arm in arms:
        try:
            return _convert(value, arm, lenient)
        except _Mismatch as mismatch:
            reasons.append(str(mismatch))
    raise _Mismatch(next((reason for reason in reasons if reason), ""))


def _convert_float(value: Any, lenient: bool) -> float:
    """Give a number as a finite float."""
    if lenient and isinstance(value, str) and value[-1:].isdigit() and "e" in value.lower():
        try:
            value = float(value)
        except ValueError:
            pass
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Mismatch
    if isinstance(value, int) and abs(value) >= NUMBER_LIMIT:
        raise _Mismatch("the number is too large")
    if not math.isfinite(value):
        raise _Mismatch(f"must be a finite number, not {float(value)}")
    return float(value)


def _is_union(hint: Any) -> bool:
    """Whether an annotation is ``Optional``, ``Union`` or, on newer Python, ``X | Y``."""
    return typing.get_origin(hint) is typing.Union or type(hint).__name__ == "UnionType"


def _describe(hint: Any) -> str:
    """Say what an annotation asks for."""
    arguments = typing.get_args(hint)
    if _is_union(hint):
        return " or ".join(_describe(arm) for arm in arguments)
    if typing.get_origin(hint) is list or hint in (list, List):
        item = WORDS_FOR_MANY.get(arguments[0], "values") if arguments else "values"
        return f"a list of {item}"
    return WORDS.get(hint, "another value")


def _advice(value: Any, hint: Any) -> str:
    """Say how to mend a frequent slip."""
    kinds = set(typing.get_args(hint)) if _is_union(hint) else {hint}
    if bool in kinds and isinstance(value, str) and value.lower() in YES_NO:
        return f"; write {YES_NO[value.lower()]}"
    if isinstance(value, float) and int in kinds and math.isfinite(value) and value == int(value):
        return f"; write {int(value)}"
    if str in kinds and not kinds & {int, float} and isinstance(value, (bool, int, float)):
        return "; put it in quotes if it is meant as text"
    if List[str] in kinds and isinstance(value, str):
        return f"; write [{value}]" if value.isidentifier() else "; write it in brackets"
    return ""


def _range_problem(value: Any, metadata: Mapping[str, Any]) -> Optional[str]:
    """Check a value, or each item of a list, against the metadata."""
    if isinstance(value, list):
        for item in value:
            text = _range_problem(item, metadata)
            if text:
                return text
        return None
    if value is None:
        return None
    if "path" in metadata and value == "":
        return "is empty text; name a path, or null for none"
    if "choices" in metadata and value not in metadata["choices"]:
        return _choice_problem(value, metadata["choices"])
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        for rule, words, fails in (
            ("min", "at least", lambda limit: value < limit),
            ("above", "more than", lambda limit: value <= limit),
            ("max", "at most", lambda limit: value > limit),
            ("below", "less than", lambda limit: value >= limit),
        ):
            if rule in metadata and fails(metadata[rule]):
                return f"must be {words} {metadata[rule]}, not {value}"
    return None


def _choice_problem(value: Any, choices: Iterable[Any]) -> str:
    """Say that a value is none of those allowed."""
    text = f"{show(value)} is not one of {', '.join(repr(choice) for choice in choices)}"
    if isinstance(value, str):
        text += did_you_mean(value, [choice for choice in choices if isinstance(choice, str)])
    return text
