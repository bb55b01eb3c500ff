"""Names and settings of the reference, and ours.

Parameter names are the reference's after its wrappers' prefix, so a state dict converts by
dropping that prefix. Settings carry their reference names too; a few that only describe the data or
that the reference ignores are not part of a model configuration here.

Reference: pretrain.py (the wrappers a checkpoint was saved through), config/arch/*.yaml.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

import mlx.core as mx
from mlx.utils import tree_unflatten

from mlx_trm.config.loading import ModelConfig, TaskSpec
from mlx_trm.config.registry import MODELS
from mlx_trm.errors import CheckpointError, listed, shown
from mlx_trm.models import RecursiveModel, named_arrays

# torch.compile, the loss head and the ACT wrapper each put their name before a parameter's.
_PREFIXES = ("_orig_mod.model.inner.", "model.inner.", "inner.")
# Bytes of a number, by safetensors' name of its dtype.
_ITEM_SIZES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2},
    **{"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "C64": 8},
}
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


def read_safetensors(path: Path) -> Tuple[Dict[str, mx.array], Dict[str, str]]:
    """Read a safetensors file whole; what is cut short or no such file is refused.

    Args:
        path: of the file.

    Returns:
        Its arrays and its metadata.

    Raises:
        ValueError: saying what is wrong in one line.
    """
    try:
        # MLX 0.29 reads what is missing at the end of a file as whatever the memory holds.
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError("it is cut short, or not such a file")
            header = json.loads(file.read(length).decode("utf-8"))
        _check_header(header, size - 8 - length)
        loaded: Any = mx.load(str(path), format="safetensors", return_metadata=True)
        mx.eval(loaded[0])
        return dict(loaded[0]), dict(loaded[1])
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("its header is malformed") from error
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _check_header(header: Mapping[str, Any], size: int) -> None:
    """Check that each array of a safetensors header has the bytes that its shape takes.

    Raises:
        ValueError: naming the array.
    """
    for name, entry in header.items():
        if name == "__metadata__":
            if not all(isinstance(text, str) for text in (entry or {}).values()):
                raise ValueError("its metadata are no text")
            continue
        begin, end = entry["data_offsets"]
        shape, dtype = entry["shape"], entry["dtype"]
        if dtype not in _ITEM_SIZES:
            raise ValueError(f"{shown(name)} has the dtype {shown(dtype)}, which MLX does not read")
        numbers = [begin, end, *shape]
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
            raise ValueError("its header is malformed")
        if end > size:
            raise ValueError("it is cut short")
        if math.prod(shape) * _ITEM_SIZES[dtype] != end - begin or max(shape, default=0) >= 2**31:
            raise ValueError(
                f"{shown(name)} of shape {shown(tuple(shape))} and {dtype} has {end - begin} bytes"
            )


def strip_prefix(name: str) -> str:
    """Drop the reference's wrapper prefix from a parameter name."""
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


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
    for name in ("name", "swiglu_multiple"):
        settings.pop(name, None)
    if settings.get("puzzle_emb_ndim") is None:
        settings["puzzle_emb_ndim"] = settings["hidden_size"]
    if settings.get("forward_dtype") == "auto":
        settings["forward_dtype"] = "bfloat16"
    for name in ("vocab_size", "seq_len", "num_puzzle_identifiers"):
        settings[name] = getattr(spec, name)
    return {**settings, "batch_size": batch_size}


def load_weights(
    model: RecursiveModel, arrays: Mapping[str, mx.array], where: str, partial: bool = False
) -> None:
    """Put arrays into a model after checking every name and shape.

    Args:
        model: changed in place; untouched where anything does not fit.
        arrays: by our dotted names.
        where: file or folder to name in an error.
        partial: whether names may be missing (the EMA holds trained weights only).

    Raises:
        CheckpointError: naming what is missing, unexpected or of another shape.
    """
    own = dict(named_arrays(model.parameters()))
    problems = []
    for name in sorted(set(own) - set(arrays)) if not partial else ():
        problems.append(f"missing {shown(name)} {tuple(own[name].shape)}")
    for name in sorted(set(arrays) - set(own)):
        problems.append(f"unexpected {shown(name)} {tuple(arrays[name].shape)}")
    for name in sorted(set(arrays) & set(own)):
        have, want = tuple(arrays[name].shape), tuple(own[name].shape)
        if have != want:
            problems.append(f"{name} is {have}, the model needs {want}")
    if problems:
        raise CheckpointError(
            f"{where}: {len(problems)} weights do not fit the model: {listed(problems)}; "
            "use the configuration the weights were trained with"
        )
    model.update(tree_unflatten(list(arrays.items())))
