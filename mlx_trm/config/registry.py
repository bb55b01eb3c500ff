"""Names of tasks and models, and the classes behind them: ``task.name`` and ``model.name``."""

import dataclasses
from typing import Any, Callable, Dict, List, NamedTuple, Type, TypeVar

from mlx_trm.errors import ConfigError, did_you_mean

C = TypeVar("C", bound=type)


class Entry(NamedTuple):
    """What a name stands for: the dataclass of its settings, and the class that takes them."""

    config_class: Type[Any]
    cls: Type[Any]


class Registry:
    """A mapping from names in a configuration to classes.

    Attributes:
        kind: what is registered, in the words of messages: ``task`` or ``model``.
    """

    def __init__(self, kind: str) -> None:
        """Create an empty registry."""
        self.kind = kind
        self._entries: Dict[str, Entry] = {}

    def register(self, name: str, config_class: Type[Any]) -> Callable[[C], C]:
        """Register the decorated class under a name.

        Args:
            name: what a configuration says.
            config_class: dataclass of the section in which the name stands.

        Returns:
            A decorator that gives the class back unchanged.

        Raises:
            ValueError: if ``config_class`` is no dataclass, or the name belongs to another class. A
                class defined again, as a notebook cell does that is run twice, replaces itself.
        """
        if not (isinstance(config_class, type) and dataclasses.is_dataclass(config_class)):
            raise ValueError(f"{self.kind} {name!r}: {config_class!r} is not a dataclass")

        def decorate(cls: C) -> C:
            known = self._entries.get(name)
            if known is not None and _identity(known.cls) != _identity(cls):
                raise ValueError(
                    f"{self.kind} {name!r} is {'.'.join(_identity(known.cls))} already; "
                    f"register {'.'.join(_identity(cls))} under another name"
                )
            self._entries[name] = Entry(config_class, cls)
            return cls

        return decorate

    def get(self, name: str) -> Entry:
        """Look up a name.

        Raises:
            ConfigError: if nothing has that name; it suggests the closest and lists all.
        """
        if isinstance(name, str) and name in self._entries:
            return self._entries[name]
        suggestion = did_you_mean(str(name), self._entries)
        known = ", ".join(self.names()) or "none"
        raise ConfigError(f"unknown {self.kind} {name!r}{suggestion} (known: {known})")

    def names(self) -> List[str]:
        """List the registered names in alphabetical order."""
        return sorted(self._entries)


def _identity(cls: type) -> List[str]:
    """Where a class was defined; the same for a class that was defined again."""
    return [cls.__module__, cls.__qualname__]


TASKS = Registry("task")
MODELS = Registry("model")
