"""The reference's names of parameters, models, settings and published files, and ours.

Parameter names are the reference's after its wrappers' prefix, so a state dict converts by
dropping that prefix. Trainers keep several sets of weights in one file: names tell them apart, and
from an optimiser's tensors (:func:`choose_weights`). Settings carry their reference names too; a
few that only describe the data or that the reference ignores are not part of a model configuration
here.

Reference: pretrain.py (the wrappers a checkpoint was saved through), config/arch/*.yaml.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Generic, List, Mapping, Optional, Sequence, Tuple, TypeVar

import mlx.core as mx

from mlx_trm.config.registry import MODELS
from mlx_trm.config.sections import ModelConfig, TaskSpec
from mlx_trm.datasets.hub import SIDE_FILES
from mlx_trm.errors import describe_error, listed, shown

# Segments that wrappers put before a name, or inside of it: torch.compile, parallel training,
# sharding, recomputation.
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Segments before a name: the loss head, the ACT wrapper, and the modules of common trainers.
_HOLDERS = {"", "model", "inner", "net", "network", "ema_model", "online_model"}
# Every model of the reference has these weights; they show where a set of weights is.
_ANCHOR = ["embed_tokens", "embedding_weight"]
# What no average of trained weights holds, since nothing trains it as it does weights.
_BUFFER = re.compile(r"puzzle_emb\.weights|[HL][1-6]?_init")
# Characters; what is longer is no name of a model, whatever its end.
_LONGEST_NAME = 1000
# What averages keep beside their weights: how often they were updated.
_COUNTERS = {"n_averaged", "initted", "step"}
T = TypeVar("T")
PRESETS = Path(__file__).with_name("presets.yaml")
# Keys of a reference configuration that are not settings of the model here: the task's dimensions,
# the batch, and what some of the reference's models ask for but read nowhere: causal, H_layers of
# TRM, H_cycles of the transformer.
_NOT_SETTINGS = (
    "batch_size",
    "causal",
    "H_cycles",
    "H_layers",
    "num_puzzle_identifiers",
    "seq_len",
    "vocab_size",
)


# Settings of models that the reference has not: those that change what a model computes, and those
# of training alone.
OWN_COMPUTATION = ("gate_norm", "register_tokens", "head_bias", "damping")
_OWN_TRAINING = ("start", "noise")


def strip_prefix(name: str) -> str:
    """Drop all that wrappers put into a parameter's name, in any order and number."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    first = next(
        (place for place, part in enumerate(parts) if part not in _HOLDERS), len(parts) - 1
    )
    return ".".join(parts[first:]) or name


@dataclass(frozen=True)
class Leaf(Generic[T]):
    """A tensor in a file.

    Attributes:
        container: keys of the dicts and lists that it is in; () for a plain state dict.
        name: its key there.
        value: an array, or what describes one.
    """

    container: Tuple[str, ...]
    name: str
    value: T

    @property
    def path(self) -> str:
        """All keys and the name, with dots between them."""
        return ".".join((*self.container, self.name))

    def home(self) -> Optional[Tuple[str, ...]]:
        """Give the keys and segments before a model's names, where this is its embedding."""
        if len(self.name) > _LONGEST_NAME:
            return None
        parts = self.name.split(".")
        if [part for part in parts if part not in _WRAPPERS][-2:] != _ANCHOR:
            return None
        last = len(parts) - 1 - parts[::-1].index(_ANCHOR[0])
        return (*self.container, *parts[:last])


@dataclass(frozen=True)
class Chosen(Generic[T]):
    """One set of weights of a file.

    Attributes:
        values: by the file's names.
        container: where they are; see :class:`Leaf`.
        notes: what was chosen, a line each.
    """

    values: Dict[str, T]
    container: Tuple[str, ...]
    notes: List[str]


def choose_weights(leaves: Sequence[Leaf[T]], entry: Optional[str] = None) -> Chosen[T]:
    """Choose one set of weights among the tensors of a file.

    Trainers keep a model's weights, an average of them and an optimiser's moments in one file.

    Args:
        leaves: all tensors of the file.
        entry: keys, and the beginnings of names, before the weights, such as ``ema.shadow``; None:
            the one set there is.

    Returns:
        The set. Where it is an average that lacks what is not averaged (puzzle table, initial
        states), these are taken from the weights beside it.

    Raises:
        ValueError: if there are several sets to choose from, or none.
    """
    within = [leaf for leaf in leaves if entry is None or leaf.path.startswith(entry + ".")]
    places = {leaf.home(): leaf.container for leaf in within}
    sets = {home: container for home, container in places.items() if home is not None}
    everywhere = [home for home in (leaf.home() for leaf in leaves) if home is not None]
    containers = list(dict.fromkeys(leaf.container for leaf in within))
    if len(sets) > 1:
        raise ValueError(
            f"it holds {len(sets)} sets of weights: {_labels(sets, everywhere)}; choose one with "
            "--entry NAME"
        )
    if not sets and (entry is not None or len(containers) > 1):
        where = f" in {shown(entry)!r}" if entry is not None else ""
        found: Dict[Tuple[str, ...], Tuple[str, ...]] = {home: () for home in everywhere}
        found = found or {each: each for each in containers if each}
        raise ValueError(
            f"it has no weights of such a model{where}: no {'.'.join(_ANCHOR)}; it has "
            f"{_labels(found, everywhere) or 'no other entry'}; choose with --entry NAME"
        )
    container = next(iter(sets.values()), next(iter(containers), ()))
    named = ".".join(container) if entry is None else entry
    start = max(len(".".join((*container, ""))), len(entry or "") + bool(entry))
    members = [
        leaf for leaf in within if leaf.container == container and leaf.name not in _COUNTERS
    ]
    values = {leaf.path[start:]: leaf.value for leaf in members}
    before = ".".join((*next(iter(sets), ()), ""))[start:]
    if set(before.split(".")) - _WRAPPERS - _HOLDERS:  # the name that somebody gave the model
        short = {name[len(before) * name.startswith(before) :]: values[name] for name in values}
        values = short if len(short) == len(values) else values
    notes = [f"the weights are those of its entry {shown(named)}"] if named else []
    if len(everywhere) > 1:
        have, own = {strip_prefix(name) for name in values}, {id(leaf) for leaf in members}
        for leaf in leaves:
            name = strip_prefix(leaf.name)
            if id(leaf) not in own and name not in have and _BUFFER.fullmatch(name):
                have.add(name)
                values[name] = leaf.value
                notes.append(f"{name}: not in {shown(named)}; taken from {shown(leaf.path)}")
    return Chosen(values, container, notes)


def _labels(
    sets: Mapping[Tuple[str, ...], Tuple[str, ...]], homes: Sequence[Tuple[str, ...]]
) -> str:
    """List the first of some sets, by what ``--entry`` takes."""
    first = [shown(_label(home, sets[home], homes)) for home in list(sets)[:6]]
    return listed(first + [""] * (len(sets) - len(first)), 6, ", ")


def _label(
    home: Tuple[str, ...], container: Tuple[str, ...], homes: Sequence[Tuple[str, ...]]
) -> str:
    """Give the shortest ``--entry`` that means one set: without wrappers that tell nothing.

    Args:
        home: keys and segments before the set's names.
        container: the first of them, which are keys of the file.
        homes: of all sets of the file.
    """
    short = home
    while len(short) > len(container) and short[-1] in _WRAPPERS | _HOLDERS:
        less = short[:-1]
        if sum(other[: len(less)] == less for other in homes) > 1:
            break
        short = less
    return ".".join(short)


def from_upstream_names(state: Mapping[str, mx.array]) -> Dict[str, mx.array]:
    """Rename a reference state dict's entries to ours and make them float32.

    Args:
        state: arrays by the reference's names, with any wrapper's prefix.

    Returns:
        float32 arrays by dotted names of :class:`mlx_trm.models.RecursiveModel`.
    """
    return {strip_prefix(name): value.astype(mx.float32) for name, value in state.items()}


def upstream_model_name(arch: str) -> str:
    """Give our name of a model that the reference names by module and class.

    Args:
        arch: such as ``recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1``, which its
            ``arch.name`` says; a name of ours is given back.
    """
    return arch.split("@")[0].rpartition(".")[2]


def upstream_model_config(
    model: str, settings: Mapping[str, Any]
) -> Tuple[ModelConfig, TaskSpec, List[str]]:
    """Turn a reference configuration into ours.

    Args:
        model: a registered model name, such as ``trm``, or the reference's ``arch.name``.
        settings: the reference's field names and values.

    Returns:
        The model configuration, the task's dimensions, and the names of settings left out.
    """
    spec = TaskSpec(
        vocab_size=settings["vocab_size"],
        seq_len=settings["seq_len"],
        num_puzzle_identifiers=settings["num_puzzle_identifiers"],
    )
    model = upstream_model_name(model)
    config_class = MODELS.get(model).config_class
    known = {name for name in config_class.__dataclass_fields__ if name != "name"}
    given = {name: value for name, value in settings.items() if name in known}
    left = sorted(set(settings) - known - set(_NOT_SETTINGS))
    return config_class(name=model, **given), spec, left


def upstream_settings(config: ModelConfig, spec: TaskSpec, batch_size: int = 1) -> Dict[str, Any]:
    """Turn a configuration into the reference's, with what it asks for and does not read.

    Args:
        config: of one of the reference's models.
        spec: the task's dimensions.
        batch_size: rows in a batch; the reference makes buffers of so many.

    Returns:
        The reference's field names and values, as its model classes take them.
    """
    settings = {"H_cycles": 1, "H_layers": 0, **vars(config)}
    for name in ("name", "swiglu_multiple", *OWN_COMPUTATION, *_OWN_TRAINING):
        settings.pop(name, None)
    if settings.get("puzzle_emb_ndim") is None:
        settings["puzzle_emb_ndim"] = settings["hidden_size"]
    if settings.get("forward_dtype") == "auto":
        settings["forward_dtype"] = "bfloat16"
    for name in ("vocab_size", "seq_len", "num_puzzle_identifiers"):
        settings[name] = getattr(spec, name)
    return {**settings, "batch_size": batch_size}


def read_presets() -> Dict[str, Dict[str, Any]]:
    """Read ``presets.yaml``: ``presets`` by name, and the ``repositories`` that they are for."""
    from mlx_trm.config.strict_yaml import parse_yaml

    content: Dict[str, Dict[str, Any]] = parse_yaml(PRESETS.read_text(encoding="utf-8"))[0]
    return content


def preset_of(repository: str, file: str) -> Optional[str]:
    """Give the preset of a published file; None where none is known."""
    for start, preset in read_presets()["repositories"].items():
        if f"{repository}:{file}".lower().startswith(start.lower()):
            return str(preset)
    return None


def read_settings_beside(checkpoint: Path) -> Tuple[str, Any]:
    """Read the settings of a model in a file beside its checkpoint.

    Args:
        checkpoint: the file that holds the weights.

    Returns:
        Which file it is, and what should be the settings; nothing where there is no such file.

    Raises:
        ValueError: if it cannot be read.
    """
    from mlx_trm.config.strict_yaml import parse_yaml

    for name in SIDE_FILES:
        side = checkpoint.parent / name
        if not side.is_file() or side.stat().st_size > 1 << 20:
            continue
        try:
            content = parse_yaml(side.read_text(encoding="utf-8"))[0] or {}
            # Only the first is the reference's own name; the others are anybody's.
            if name == SIDE_FILES[0] or "arch" in content:
                return str(side), content["arch"]
            if "H_cycles" in content:
                return str(side), content
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{name}: {describe_error(error)}") from error
    return "", {}
