"""What a configuration calls by a name: tasks, models, losses, optimisers."""

import dataclasses
import importlib
import inspect
from typing import (
    Any,
    Callable,
    Dict,
    Generic,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
    Type,
    TypeVar,
)

from mlx_trm.errors import ConfigError, did_you_mean

C = TypeVar("C", bound=type)
E = TypeVar("E")
F = TypeVar("F", bound=Callable[..., Any])


class Entry(NamedTuple):
    """What a name stands for: the dataclass of its settings, and the class that takes them."""

    config_class: Type[Any]
    cls: Type[Any]


class Names(Generic[E]):
    """A mapping from names in a configuration to what they stand for; iterating gives the names.

    Attributes:
        kind: what is registered, in the words of messages: ``task``, ``loss``.
    """

    def __init__(self, kind: str, home: Optional[str] = None) -> None:
        """Begin without any name.

        Args:
            kind: what is registered.
            home: the module whose import registers the package's own. It is imported when a name
                is first looked up or added: what reads a configuration imports no task or model.
        """
        self.kind = kind
        self._home = home
        self._entries: Dict[str, Tuple[E, List[str]]] = {}  # with the place of the owner

    def add(self, name: str, entry: E, owner: Any) -> None:
        """Give a name.

        Args:
            name: what a configuration says.
            entry: what it stands for.
            owner: the class or function behind it.

        Raises:
            ValueError: if the name belongs to another owner. One that is defined again, as a
                notebook cell does that is run twice, replaces itself.
        """
        # Where it was defined; the same for one that was defined again.
        place = [owner.__module__, owner.__qualname__]
        entries = self._all()
        known = entries[name][1] if name in entries else place
        if known != place:
            raise ValueError(
                f"{self.kind} {name!r} is {'.'.join(known)} already; "
                f"register {'.'.join(place)} under another name"
            )
        entries[name] = (entry, place)

    def get(self, name: str) -> E:
        """Look up a name.

        Raises:
            ConfigError: if nothing has that name; it suggests the closest and lists all.
        """
        entries = self._all()
        if isinstance(name, str) and name in entries:
            return entries[name][0]
        suggestion = did_you_mean(str(name), entries)
        known = ", ".join(self.names()) or "none"
        raise ConfigError(f"unknown {self.kind} {name!r}{suggestion} (known: {known})")

    def names(self) -> List[str]:
        """List the names in alphabetical order."""
        return sorted(self._all())

    def __iter__(self) -> Iterator[str]:
        """Give the names in the order in which they were registered."""
        return iter(self._all())

    def __contains__(self, name: object) -> bool:
        """Whether something has that name."""
        return name in self._all()

    def _all(self) -> Dict[str, Tuple[E, List[str]]]:
        if self._home is not None:
            importlib.import_module(self._home)
        return self._entries


class Registry(Names[Entry]):
    """Names of classes, each with the dataclass of its settings: of tasks and models."""

    def register(self, name: str, config_class: Type[Any]) -> Callable[[C], C]:
        """Register the decorated class under a name.

        Args:
            name: what a configuration says.
            config_class: dataclass of the section in which the name stands.

        Returns:
            A decorator that gives the class back unchanged.

        Raises:
            ValueError: if ``config_class`` is no dataclass, or the name belongs to another class.
        """
        if not (isinstance(config_class, type) and dataclasses.is_dataclass(config_class)):
            raise ValueError(f"{self.kind} {name!r}: {config_class!r} is not a dataclass")

        def decorate(cls: C) -> C:
            self.add(name, Entry(config_class, cls), cls)
            return cls

        return decorate


class FunctionRegistry(Names[Callable[..., Any]]):
    """Names of functions: of losses and optimisers."""

    def register(self, name: str) -> Callable[[F], F]:
        """Register the decorated function under a name.

        Args:
            name: what a configuration says.

        Returns:
            A decorator that gives the function back unchanged.

        Raises:
            ValueError: if the name belongs to another function.
        """

        def decorate(function: F) -> F:
            self.add(name, function, function)
            return function

        return decorate

    def names(self) -> List[str]:
        """List the names in the order in which they were registered."""
        return list(self)

    def takes(self, name: str, argument: str) -> bool:
        """Whether a registered function has an argument of that name."""
        return argument in inspect.signature(self.get(name)).parameters


TASKS = Registry("task", "mlx_trm.tasks")
MODELS = Registry("model", "mlx_trm.models")
# A loss takes logits and labels, an optimiser is made from the train section and the model; see
# register_loss in models/losses.py and register_optimizer in training/optim.py.
LOSSES = FunctionRegistry("loss", "mlx_trm.models.losses")
OPTIMIZERS = FunctionRegistry("optimizer", "mlx_trm.training.optim")
