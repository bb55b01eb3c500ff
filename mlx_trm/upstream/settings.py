"""What a reference's weights tell about their model: which it is, its sizes, and the task's.

Heads, cycles and the number of supervision steps leave no trace in weights; the reference writes
them beside a checkpoint (``all_config.yaml``), others put them into it, and our own files in the
reference's names carry them in their metadata. For published checkpoints ``presets.yaml`` has them.

Reference: models/recursive_reasoning/*.py (names and shapes), pretrain.py ``save_code_and_config``.
"""

import json
import logging
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from mlx_trm.config.assembly import given_settings
from mlx_trm.config.loading import config_from_dict, config_to_dict
from mlx_trm.config.registry import MODELS
from mlx_trm.config.sections import ExperimentConfig, TaskSpec
from mlx_trm.errors import CheckpointError, ConfigError, did_you_mean, listed, shown
from mlx_trm.models.network import NetworkConfig
from mlx_trm.nn.layers import SwiGLU
from mlx_trm.runs.puzzle_rows import TABLE
from mlx_trm.tasks import build_task
from mlx_trm.upstream.names import read_presets, read_settings_beside

LOG = logging.getLogger(__name__)

Shape = Tuple[int, ...]
UPSTREAM_MODELS = ("hrm", "transformers_baseline", "trm", "trm_hier6", "trm_singlez")
# Models whose weights have the same names, but for the initial states.
_TOLD_BY_STATES = {"trm", "trm_hier6", "trm_singlez"}
# Which task has so many tokens; 6 are a maze's, and a 4x4 Sudoku's.
_TASKS = {11: "sudoku", 12: "arc"}
TOKENS = "embed_tokens.embedding_weight"
# Settings that no shape shows.
_DECLARED = (
    *("num_heads", "pos_encodings", "H_cycles", "L_cycles", "puzzle_emb_len"),
    *("rms_norm_eps", "rope_theta"),
)
_RARELY_CHANGED = ("rms_norm_eps", "rope_theta")
_EXPANSIONS = (4.0, 1.0, 2.0, 3.0, 1.5, 2.5, 6.0, 8.0)


class Completed(NamedTuple):
    """A configuration completed by what the weights say.

    Attributes:
        config: the whole.
        spec: the task's dimensions, with the rows of the puzzle table.
        taken: settings that came from the weights, or from what stands beside them.
        untold: settings, with their defaults, that weights do not show and nobody named.
    """

    config: ExperimentConfig
    spec: TaskSpec
    taken: Dict[str, Any]
    untold: List[str]


def model_of(shapes: Mapping[str, Shape]) -> Optional[str]:
    """Tell by its names which of the reference's models a state dict is of.

    Args:
        shapes: by our dotted names.

    Returns:
        Its name here, or None where the names are those of none.
    """
    levels = {name.split(".")[0] for name in shapes if name.split(".")[0] in ("H_level", "L_level")}
    if levels == {"H_level", "L_level"}:
        return "hrm"
    if levels == {"H_level"}:
        return "transformers_baseline"
    if levels == {"L_level"}:
        if "L1_init" in shapes:
            return "trm_hier6"
        return "trm" if "H_init" in shapes else "trm_singlez"
    return None


def model_sizes(shapes: Mapping[str, Shape], config: NetworkConfig) -> Dict[str, Any]:
    """Read settings of the model from the shapes of its weights.

    Args:
        shapes: by our dotted names.
        config: of the class that the model has; the expansion of SwiGLU is its, where that fits.

    Returns:
        Values by the settings' names; what cannot be told is left out.
    """
    found: Dict[str, Any] = {}
    width = _dimension(shapes, TOKENS, 1)
    if width is not None:
        found["hidden_size"] = width
    table = shapes.get(TABLE)
    if table is None or len(table) == 2:
        found["puzzle_emb_ndim"] = table[1] if table else 0
    for level in ("H", "L"):
        layers = _layers(shapes, level)
        if layers:
            found[f"{level}_layers"] = len(layers)
    found["mlp_t"] = any(".mlp_t." in name for name in shapes)
    if "embed_pos.embedding_weight" in shapes:
        found["pos_encodings"] = "learned"
    expansion = _expansion(shapes, config)
    if expansion is not None:
        found["expansion"] = expansion
    return {name: value for name, value in found.items() if hasattr(config, name)}


def _layers(shapes: Mapping[str, Shape], level: str) -> Dict[int, int]:
    """Count the numbers in each layer of a level, by the layer's number."""
    layers: Dict[int, int] = {}
    for name, shape in shapes.items():
        match = re.match(rf"{level}_level\.layers\.(0|[1-9][0-9]{{0,8}})\.", name)
        if match:
            layer = int(match.group(1))
            layers[layer] = layers.get(layer, 0) + math.prod(shape)
    return layers


def _check_layers(path: Path, shapes: Mapping[str, Shape], config: NetworkConfig) -> None:
    """Refuse layers that are none, before a model with so many is built.

    Attention or SwiGLU alone take about as many numbers as the square of the width, or more.
    """
    width = _dimension(shapes, TOKENS, 1) or config.hidden_size
    for level in ("H", "L"):
        layers, start = _layers(shapes, level), f"{level}_level.layers."
        gap = next(number for number in range(len(layers) + 1) if number not in layers)
        if gap < len(layers):
            raise CheckpointError(
                f"{path}: has {start}{max(layers)}, and no {start}{gap}; layers are numbered from "
                "0 without gaps, so use a whole checkpoint"
            )
        small = [start + str(layer) for layer in sorted(layers) if layers[layer] < width**2 // 8]
        if small:
            raise CheckpointError(
                f"{path}: {listed(small, 6, ', ')} are too small for layers of width {width}; use "
                "a whole checkpoint"
            )


def sequence_length(shapes: Mapping[str, Shape]) -> Optional[int]:
    """Read T, the positions of puzzle and vector together; None where no weight has them."""
    length = _dimension(shapes, "embed_pos.embedding_weight", 0)
    for name in shapes:
        if name.endswith(".mlp_t.down_proj.weight"):
            return _dimension(shapes, name, 0)
    return length


def declared_settings(path: Path, metadata: Mapping[str, str]) -> Tuple[str, Dict[str, Any]]:
    """Read what stands beside the weights about them.

    Args:
        path: of the checkpoint; ``all_config.yaml`` and the like in its folder are looked at.
        metadata: of the file.

    Returns:
        Where it stands, and settings by the reference's names; empty where there are none.
    """
    where, settings = "its metadata", {}
    try:
        if "config" in metadata:
            settings = json.loads(metadata["config"])
        else:
            where, settings = read_settings_beside(path)
        if not isinstance(settings, dict):
            raise ValueError("no settings")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        LOG.warning(
            "%s: the settings in %s cannot be read (%s); ignored", path, where, shown(error, 400)
        )
        return where, {}
    found = {
        name: settings[name]
        for name in (*_DECLARED, "puzzle_emb_ndim")
        if name in settings and _is_setting(settings[name])
    }
    if found.get("pos_encodings", "") is None:
        found["pos_encodings"] = "none"
    kept = settings.get("lambda_")
    if isinstance(kept, float) and 0 < kept <= 1:  # of EqR: the share of what is new
        found.update(start="random", damping=round(1 - kept, 12))
        noise = settings.get("noise_scale")
        found["noise"] = noise if isinstance(noise, (int, float)) else 0.0
    return where, found


def _is_setting(value: Any) -> bool:
    """Tell whether a value that stands in a file may be one of a setting, not a book."""
    small = isinstance(value, (int, float)) and abs(value) < 2**31
    return value is None or small or (isinstance(value, str) and len(value) <= 100)


def preset_config(
    path: Path,
    shapes: Mapping[str, Shape],
    declared: Mapping[str, Any],
    preset: Optional[str],
    overrides: Sequence[str],
    notes: List[str],
) -> ExperimentConfig:
    """Make the configuration of a published checkpoint.

    Args:
        path: of the checkpoint, for messages.
        shapes: of its weights, by our dotted names.
        declared: settings that stand beside the weights; they count more than a preset's.
        preset: a name in ``presets.yaml``; None: what the weights are like.
        overrides: such as ``task.data_dir=data/arc1``; they count most.
        notes: gets a line where the weights decided.

    Raises:
        ConfigError: if there is no such preset, or the weights do not show which one to take.
    """
    presets = read_presets()["presets"]
    if preset is None:
        kind, task = model_of(shapes), _TASKS.get(_dimension(shapes, TOKENS, 0) or 0)
        family = "eqr" if "damping" in declared else kind
        preset = f"{family}-{task}"
        if preset not in presets:
            raise ConfigError(
                f"{path}: the weights do not show what they are of; name --config FILE, or "
                f"--preset NAME with NAME one of {', '.join(presets)}"
            )
        notes.append(f"taken as a checkpoint of {preset}, by its weights (--preset)")
    elif preset not in presets:
        raise ConfigError(
            f"--preset {preset}: there is no such preset{did_you_mean(preset, presets)} (there "
            f"are: {', '.join(presets)})"
        )
    model = dict(presets[preset]["model"])
    if model["name"] == "trm" and TABLE in shapes:
        model["puzzle_emb_len"] = 16
    fields = MODELS.get(model["name"]).config_class.__dataclass_fields__
    known = set(fields) - {"puzzle_emb_ndim"}  # which the weights show
    model.update({name: value for name, value in declared.items() if name in known})
    values, where = {**presets[preset], "model": model}, f"{path} with the preset {preset}"
    return config_from_dict(values, where, overrides)


def completed_config(
    path: Path,
    config: ExperimentConfig,
    shapes: Mapping[str, Shape],
    declared: Tuple[str, Mapping[str, Any]] = ("", {}),
) -> Completed:
    """Complete a configuration by what the weights say.

    Args:
        path: of the checkpoint, for messages.
        config: settings that it does not name are taken from the weights.
        shapes: of the weights, by our dotted names.
        declared: from :func:`declared_settings`.

    Raises:
        CheckpointError: if the weights are of another model, if a layer is missing, or naming all
            that differs.
        ConfigError: if what the weights say makes no configuration.
    """
    given, model = given_settings(config), config.model
    kind = model_of(shapes)
    if model.name in UPSTREAM_MODELS and not _is_of(model.name, kind, shapes):
        raise CheckpointError(f"{path}: {_other_model(kind, model.name, shapes)}")
    if isinstance(model, NetworkConfig):
        _check_layers(path, shapes, model)
    spec = build_task(config.task, config.task_seed).spec
    sizes = model_sizes(shapes, model) if isinstance(model, NetworkConfig) else {}
    told = {name: (value, "the weights say") for name, value in sizes.items()}
    for name, value in declared[1].items():
        if hasattr(model, name) and name != "puzzle_emb_ndim":
            told.setdefault(name, (value, f"{declared[0]} says"))
    problems = _task_problems(config, spec, shapes, told)
    if sizes.get("puzzle_emb_ndim") == 0 and declared[1].get("puzzle_emb_ndim"):
        problems.append(f"{declared[0]} says that there is a puzzle table, the weights have none")
    taken: Dict[str, Any] = {}
    for name, (value, who) in told.items():
        mine, key = getattr(model, name), f"model.{name}"
        if mine is None:  # a puzzle_emb_ndim that is left open: as wide as the model
            mine = sizes.get("hidden_size")
        if mine != value and key in given:
            problems.append(f"{key} is {mine!r} in the configuration, {who} {shown(repr(value))}")
        elif mine != value:
            taken[key] = value
    if problems:
        raise CheckpointError(
            f"{path}: does not fit the configuration: {'; '.join(problems)}; leave such settings "
            "out, and they are taken from the weights, or use those it was trained with"
        )
    untold = [
        f"{name} {getattr(model, name)}"
        for name in _DECLARED
        if hasattr(model, name)
        and not (name in told or f"model.{name}" in given or name in _RARELY_CHANGED)
        and not (sizes.get("mlp_t") and name in ("num_heads", "pos_encodings"))
    ]
    if taken:
        settings = config_to_dict(config)
        settings["model"].update({key[len("model.") :]: value for key, value in taken.items()})
        config = config_from_dict(settings, f"{path} with the configuration")
    rows = _dimension(shapes, TABLE, 0) or spec.num_puzzle_identifiers
    return Completed(config, replace(spec, num_puzzle_identifiers=rows), taken, untold)


def _task_problems(
    config: ExperimentConfig,
    spec: TaskSpec,
    shapes: Mapping[str, Shape],
    told: Dict[str, Tuple[Any, str]],
) -> List[str]:
    """Compare the task with the weights; put P, which takes both to know, into ``told``."""
    task, problems = f"the task {config.task.name}", []
    vocabulary = _dimension(shapes, TOKENS, 0)
    if vocabulary is not None and vocabulary != spec.vocab_size:
        problems.append(f"{task} has {spec.vocab_size} tokens, the weights {vocabulary}")
    length = sequence_length(shapes)
    mine = getattr(config.model, "puzzle_emb_len", None)
    if mine is not None and TABLE not in shapes:
        told["puzzle_emb_len"] = (0, "the weights say")
    if mine is None or length is None:
        return problems
    numbers, width = (told.get(name, (1, ""))[0] for name in ("puzzle_emb_ndim", "hidden_size"))
    positions, filled = length - spec.seq_len, -(-numbers // width)
    if positions < filled or (positions and not numbers):
        problems.append(
            f"{task} has {spec.seq_len} cells, the weights {length} positions for cells and puzzle "
            "vector"
        )
    elif mine == 0 and positions == filled:
        told.pop("puzzle_emb_len", None)  # 0 says the same
    else:
        told["puzzle_emb_len"] = (positions, "the weights say")
    return problems


def _is_of(wanted: str, kind: Optional[str], shapes: Mapping[str, Shape]) -> bool:
    """Tell whether weights are a model's, even where initial states are missing."""
    if kind == wanted or not {kind, wanted} <= _TOLD_BY_STATES:
        return kind == wanted
    states = {name for name in shapes if re.fullmatch(r"[HL][1-6]?_init", name)}
    return states <= set(MODELS.get(wanted).cls.initial_names)


def _other_model(kind: Optional[str], wanted: str, shapes: Mapping[str, Shape]) -> str:
    if kind is None:
        names = ", ".join(shown(name) for name in list(shapes)[:3])
        return f"is no checkpoint of the reference: no L_level or H_level among {names}, ..."
    return (
        f"the weights are of the model {kind}, the configuration has model.name {wanted}; use a "
        f"configuration of {kind}"
    )


def _dimension(shapes: Mapping[str, Shape], name: str, axis: int) -> Optional[int]:
    shape = shapes.get(name, ())
    return shape[axis] if axis < len(shape) else None


def _expansion(shapes: Mapping[str, Shape], config: NetworkConfig) -> Optional[float]:
    """Give an expansion that makes the inner sizes of all SwiGLUs; None where none does.

    One of the model's width has to be among them: a SwiGLU of any other, where it is wrong, would
    make the whole model as wrong.
    """
    sizes: List[Tuple[int, int]] = []
    for name, shape in shapes.items():
        if name.endswith(".down_proj.weight") and len(shape) == 2:
            sizes.append((shape[0], shape[1]))
    width = _dimension(shapes, TOKENS, 1) or config.hidden_size
    if width not in dict(sizes):
        return None
    exact = dict(sizes)[width] * 3 / 2 / width
    tried: Sequence[float] = (config.expansion, *_EXPANSIONS, exact)
    for expansion in tried:
        if math.isfinite(expansion) and all(
            SwiGLU.inner_size(size, expansion, config.swiglu_multiple) == inner
            for size, inner in set(sizes)
        ):
            return expansion
    return None
