"""What a configuration calls by a name: tasks, models, losses, optimisers."""

import dataclasses
import inspect
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Type, TypeVar

from mlx_trm.errors import ConfigError, did_you_mean

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])


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


class FunctionRegistry:
    """A mapping from names in a configuration to functions; iterating gives the names.

    Attributes:
        kind: what is registered, in the words of messages: ``loss`` or ``optimizer``.
    """

    def __init__(self, kind: str) -> None:
        """Create an empty registry."""
        self.kind = kind
        self._functions: Dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[F], F]:
        """Register the decorated function under a name.

        Args:
            name: what a configuration says.

        Returns:
            A decorator that gives the function back unchanged.

        Raises:
            ValueError: if the name belongs to another function. One defined again, as a notebook
                cell does that is run twice, replaces itself.
        """

        def decorate(function: F) -> F:
            known = self._functions.get(name)
            if known is not None and _identity(known) != _identity(function):
                raise ValueError(
                    f"{self.kind} {name!r} is {'.'.join(_identity(known))} already; "
                    f"register {'.'.join(_identity(function))} under another name"
                )
            self._functions[name] = function
            return function

        return decorate

    def get(self, name: str) -> Callable[..., Any]:
        """Look up a name.

        Raises:
            ConfigError: if nothing has that name; it suggests the closest and lists all.
        """
        if name in self._functions:
            return self._functions[name]
        suggestion = did_you_mean(str(name), list(self))
        raise ConfigError(f"unknown {self.kind} {name!r}{suggestion} (known: {', '.join(self)})")

    def takes(self, name: str, argument: str) -> bool:
        """Whether a registered function has an argument of that name."""
        return argument in inspect.signature(self.get(name)).parameters

    def __iter__(self) -> Iterator[str]:
        """Give the names in the order in which they were registered."""
        return iter(self._functions)

    def __contains__(self, name: object) -> bool:
        """Whether something has that name."""
        return name in self._functions


def _identity(thing: Any) -> List[str]:
    """Where a class or function was defined; the same for one that was defined again."""
    return [thing.__module__, thing.__qualname__]


TASKS = Registry("task")
MODELS = Registry("model")
# A loss takes logits and labels, an optimiser is made from the train section and the model; see
# register_loss in models/losses.py and register_optimizer in training/optim.py.
LOSSES = FunctionRegistry("loss")
OPTIMIZERS = FunctionRegistry("optimizer")
