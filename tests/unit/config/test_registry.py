"""Names of tasks and models."""

import dataclasses
from typing import Any, Callable

import pytest

from mlx_trm.config.registry import MODELS, TASKS, FunctionRegistry, Registry
from mlx_trm.errors import ConfigError, did_you_mean


@dataclasses.dataclass
class Settings:
    """A throw-away section."""

    name: str = "copy"


def make_class(qualname: str = "Copy", module: str = "somewhere") -> Any:
    """A new class that says it was defined as ``module.qualname``."""
    return type(qualname, (), {"__module__": module, "__qualname__": qualname})


@pytest.fixture(name="registry")
def registry_fixture() -> Registry:
    """A registry of its own for each test."""
    return Registry("task")


def test_registers_and_finds(registry: Registry) -> None:
    """The decorator gives the class back, and the name leads to both classes."""
    cls = make_class()
    assert registry.register("copy", Settings)(cls) is cls
    entry = registry.get("copy")
    assert entry.cls is cls and entry.config_class is Settings
    registry.register("a", Settings)(make_class("A"))
    assert registry.names() == ["a", "copy"]


def test_one_name_one_class(registry: Registry) -> None:
    """Another class cannot take a name, and the first one stays."""
    first = registry.register("copy", Settings)(make_class())
    with pytest.raises(
        ValueError, match="'copy' is somewhere.Copy already; register elsewhere.Copy"
    ):
        registry.register("copy", Settings)(make_class(module="elsewhere"))
    assert registry.get("copy").cls is first


def test_a_class_defined_again_replaces_itself(registry: Registry) -> None:
    """A notebook cell can be run twice."""
    registry.register("copy", Settings)(make_class())
    again = registry.register("copy", Settings)(make_class())
    assert registry.get("copy").cls is again


@pytest.mark.parametrize("settings", [dict, Settings(), "Settings"])
def test_settings_must_be_a_dataclass(registry: Registry, settings: Any) -> None:
    """A class without fields would make every key unknown."""
    with pytest.raises(ValueError, match="task 'copy': .* is not a dataclass"):
        registry.register("copy", settings)
    assert registry.names() == []


def test_unknown_names_are_explained(registry: Registry) -> None:
    """One line: what was given, what is close, what there is."""
    for name in ("sudoku", "maze", "arc"):
        registry.register(name, Settings)(make_class(name))
    with pytest.raises(ConfigError) as error:
        registry.get("sudoko")
    expected = "unknown task 'sudoko'; did you mean 'sudoku'? (known: arc, maze, sudoku)"
    assert str(error.value) == expected
    with pytest.raises(ConfigError) as error:
        registry.get("zzz")
    assert str(error.value) == "unknown task 'zzz' (known: arc, maze, sudoku)"
    with pytest.raises(ConfigError) as error:
        Registry("model").get("trm")
    assert str(error.value) == "unknown model 'trm' (known: none)"


def test_the_two_registries() -> None:
    """Tasks and models are apart, and say which they are."""
    assert (TASKS.kind, MODELS.kind) == ("task", "model")
    assert TASKS is not MODELS


def test_from_problems() -> None:
    """One problem is one line; several have a heading and are indented."""
    assert str(ConfigError.from_problems("a.yaml", ["x: bad"])) == "a.yaml: x: bad"
    several = ConfigError.from_problems("a.yaml", ["x: bad", "y: worse"])
    assert str(several) == "a.yaml has 2 problems:\n  x: bad\n  y: worse"
    assert isinstance(several, ConfigError)


@pytest.mark.parametrize(
    "word, known, expected",
    [
        ("batchsize", ["batch_size", "epochs"], "; did you mean 'batch_size'?"),
        ("h_cycles", ["H_cycles"], "; did you mean 'H_cycles'?"),
        ("zebra", ["batch_size", "epochs"], ""),
        ("x", [], ""),
    ],
)
def test_did_you_mean(word: str, known: Any, expected: str) -> None:
    """The closest word, whatever its case, or nothing."""
    assert did_you_mean(word, known) == expected


def test_functions_are_registered_and_found() -> None:
    """Names in the order of registration; one defined again replaces itself, no other one does."""
    registry = FunctionRegistry("loss")

    def make(version: int) -> Callable[..., int]:
        @registry.register("squares")
        def squares(logits: int, label_smoothing: float = 0.0) -> int:
            return logits + version

        return squares

    make(1)
    function = make(2)
    registry.register("absolute")(abs)
    assert list(registry) == ["squares", "absolute"] and registry.get("squares") is function
    assert "squares" in registry and "cubes" not in registry
    assert registry.takes("squares", "label_smoothing") and not registry.takes("squares", "labels")
    with pytest.raises(ValueError, match="loss 'squares' is .*squares already; register builtins"):
        registry.register("squares")(abs)
    with pytest.raises(ConfigError, match=r"unknown loss 'sqares'.*'squares'.*absolute\)"):
        registry.get("sqares")
