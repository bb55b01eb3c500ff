"""The reference's names of parameters, models and settings, and ours.

Parameter names are the reference's after its wrappers' prefix, so a state dict converts by
dropping that prefix. Settings carry their reference names too; a few that only describe the data or
that the reference ignores are not part of a model configuration here.

Reference: pretrain.py (the wrappers a checkpoint was saved through), config/arch/*.yaml.
"""

from typing import Any, Dict, List, Mapping, Tuple

import mlx.core as mx

from mlx_trm.config.registry import MODELS
from mlx_trm.config.sections import ModelConfig, TaskSpec

# torch.compile, the loss head and the ACT wrapper each put their name before a parameter's.
_PREFIXES = ("_orig_mod.model.inner.", "model.inner.", "inner.")
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
    for name in ("name", "swiglu_multiple", *OWN_COMPUTATION, *_OWN_TRAINING):
        settings.pop(name, None)
    if settings.get("puzzle_emb_ndim") is None:
        settings["puzzle_emb_ndim"] = settings["hidden_size"]
    if settings.get("forward_dtype") == "auto":
        settings["forward_dtype"] = "bfloat16"
    for name in ("vocab_size", "seq_len", "num_puzzle_identifiers"):
        settings[name] = getattr(spec, name)
    return {**settings, "batch_size": batch_size}
