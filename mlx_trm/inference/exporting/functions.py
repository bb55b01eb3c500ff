"""A trained model as one file of MLX functions, which Python, C++ and Swift can call.

The file holds one supervision step. Called with puzzles alone it is the first step, from the
model's initial states; called with the latents that a step gave it is the next. Weights and puzzle
table are in the file. A JSON file beside it says what goes in and out, and what the tokens mean.
"""

import errno
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import mlx.core as mx

from mlx_trm.config.loading import config_to_dict
from mlx_trm.errors import ConfigError
from mlx_trm.inference.quantization import Quantized
from mlx_trm.models import RecursiveModel
from mlx_trm.models.carry import Batch
from mlx_trm.nn import fused
from mlx_trm.nn.functional import without_custom_functions
from mlx_trm.runs.checkpoint import Checkpoint, verify_checkpoint
from mlx_trm.runs.layout import AVERAGE, MODEL
from mlx_trm.system.device import on_gpu
from mlx_trm.system.files import hash_file, replace_file, write_json
from mlx_trm.tasks import build_task

FORMAT_VERSION = 1
# What a step gives before its latents.
ANSWERS = ("tokens", "halt", "q_halt", "q_continue", "logits")
Step = Callable[..., Tuple[mx.array, ...]]


def step_function(model: RecursiveModel) -> Step:
    """Give one supervision step in evaluation as a function of arrays alone.

    Args:
        model: in evaluation mode.

    Returns:
        ``step(inputs, puzzle_identifiers, *latents)``: (B, S) int32, (B,) int32, and nothing or the
        latents of the step before, each (B, T, D) in the model's dtype. Tokens are 0 to V - 1 and
        identifiers rows of the puzzle table; what is out of range counts as the nearest of them,
        since a look-up would read memory that is not the table's. It gives ``tokens`` (B, S)
        int32, the answer; ``halt`` (B,) bool, whether the model believes it; ``q_halt`` and
        ``q_continue`` (B,) float32; ``logits`` (B, S, V) in the model's dtype; then the latents.
    """
    ranges = _ranges(model)

    def step(
        inputs: mx.array, puzzle_identifiers: mx.array, *latents: mx.array
    ) -> Tuple[mx.array, ...]:
        inputs = mx.clip(inputs, *ranges["inputs"])
        puzzle_identifiers = mx.clip(puzzle_identifiers, *ranges["puzzle_identifiers"])
        batch = Batch(inputs, inputs, puzzle_identifiers)  # labels are not read
        carry = model.begin(model.initial_carry(batch), batch)
        if latents:
            carry = carry._replace(latents=latents)
        with fused.use(False), without_custom_functions():  # a file holds plain operations only
            new, outputs = model.reason(carry, model.puzzle_rows(carry))
        threshold = outputs.q_continue if model.compares_continue else mx.zeros(())
        answer = mx.argmax(outputs.logits, axis=-1).astype(mx.int32)
        halt = outputs.q_halt > threshold
        return (answer, halt, outputs.q_halt, outputs.q_continue, outputs.logits, *new)

    return step


def export_step(
    model: RecursiveModel, path: Union[str, Path], batch_sizes: Sequence[int] = (1,)
) -> None:
    """Write a model's supervision step to a file, which is replaced whole or not at all.

    It computes where MLX computes now: what was exported on the CPU runs on the CPU everywhere.

    Args:
        model: in evaluation mode, quantised or not.
        path: of the file.
        batch_sizes: numbers of puzzles B that it can be called with.

    Raises:
        ConfigError: if the model has an operation that MLX cannot write.
        OSError: if the file cannot be written.
        ValueError: if there is no batch size, or one is less than 1.
    """
    target = Path(path)
    with replace_file(target) as temporary:
        _write_functions(model, temporary, target, batch_sizes)


def export_checkpoint(
    checkpoint: Checkpoint,
    path: Union[str, Path],
    batch_sizes: Sequence[int] = (1,),
    quantized: Optional[Quantized] = None,
) -> Path:
    """Write a checkpoint's supervision step, and the JSON file that describes it.

    Args:
        checkpoint: its model, quantised or not, is written.
        path: of the file of functions, by custom ending in ``.mlxfn``.
        batch_sizes: see :func:`export_step`.
        quantized: what :func:`~mlx_trm.inference.quantization.quantize_model` gave, if called.

    Returns:
        The JSON file: the same name with ``.json`` after it.

    Raises:
        CheckpointError: if the checkpoint's files are no longer what they were.
        ConfigError: if a file cannot be written, or MLX cannot write the model; both files are
            then as they were.
        ValueError: if there is no batch size, or one is less than 1.
    """
    target = Path(path)
    about = describe_export(checkpoint, batch_sizes, quantized)

    def write(file: Path) -> None:
        _write_functions(checkpoint.model, file, target, batch_sizes)

    return write_described(target, "function", about, write)


def write_described(
    target: Path, what: str, about: Dict[str, Any], write: Callable[[Path], None]
) -> Path:
    """Write a model's file and the JSON file that describes it, both or none.

    Args:
        target: the file.
        what: it is called in the description, which gets its name and SHA-256 there.
        about: the description.
        write: writes a file of the name that it is given.

    Returns:
        The JSON file: the same name with ``.json`` after it.

    Raises:
        ConfigError: if one of them cannot be written.
    """
    beside = target.with_name(target.name + ".json")
    place = target
    try:
        for place in (beside, target):
            if place.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))
        # The description goes into place first: without its file it describes nothing, while a
        # file without its description could be called wrongly.
        with replace_file(target) as file:
            write(file)
            about[what] = {"file": target.name, "sha256": hash_file(file)}
            place = beside
            write_json(beside, about)
            place = target
    except OSError as error:
        raise ConfigError(f"{place}: cannot be written ({error.strerror or error})") from error
    return beside


def describe_export(
    checkpoint: Checkpoint, batch_sizes: Sequence[int], quantized: Optional[Quantized] = None
) -> Dict[str, Any]:
    """Give what the JSON file says, but for the hash of the file it lies beside.

    Args and errors are those of :func:`export_checkpoint`.
    """
    model = checkpoint.model
    return {
        "mlx": getattr(mx, "__version__", "unknown"),
        "device": "gpu" if on_gpu() else "cpu",
        "calls": "first step: inputs; each further step: inputs and the latents of the step before",
        "batch_sizes": list(dict.fromkeys(batch_sizes)),
        **describe_step(model),
        "halt": "q_halt > q_continue" if model.compares_continue else "q_halt > 0",
        **describe_checkpoint(checkpoint, quantized),
    }


def describe_checkpoint(
    checkpoint: Checkpoint, quantized: Optional[Quantized] = None
) -> Dict[str, Any]:
    """Give what the JSON files say of a checkpoint: its task, tokens, settings and weights.

    Args and errors are those of :func:`export_checkpoint`.
    """
    from mlx_trm.version import __version__

    model, config = checkpoint.model, checkpoint.config
    task = build_task(config.task, config.task_seed)
    files = verify_checkpoint(checkpoint.path)["sha256"]
    used = [MODEL, AVERAGE] if checkpoint.weights == "ema" else [MODEL]
    packed = None
    if quantized is not None:
        packed = {"bits": quantized.bits, "group_sizes": dict(quantized.layers)}
    return {
        "format": FORMAT_VERSION,
        "mlx_trm": __version__,
        "steps": config.eval.steps or int(model.config.halt_max_steps),
        "task": {"name": config.task.name, **asdict(model.spec), "tokens": task.token_names},
        "model": config_to_dict(config)["model"],
        "weights": {
            "step": checkpoint.step,
            "kind": checkpoint.weights,
            "sha256": {name: files[name] for name in used},
            "quantized": packed,
        },
    }


def describe_step(model: RecursiveModel) -> Dict[str, List[Dict[str, Any]]]:
    """Give names, shapes and dtypes of what a step takes and gives; B stands for the batch size.

    Inputs have a ``range`` too: the least and the greatest value.
    """
    first = _first_inputs(model, 1)
    outputs = step_function(model)(*first)
    latents = [f"latents.{i}" for i in range(len(model.initial_names))]
    inputs = _shapes(("inputs", "puzzle_identifiers"), first)
    return {
        "inputs": [{**entry, "range": _ranges(model)[entry["name"]]} for entry in inputs],
        "latents": _shapes(latents, outputs[len(ANSWERS) :]),
        "outputs": _shapes((*ANSWERS, *latents), outputs),
    }


def _write_functions(
    model: RecursiveModel, file: Path, target: Path, batch_sizes: Sequence[int]
) -> None:
    """Write a model's step to a file that will be renamed to ``target``, the one errors name."""
    if not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(f"batch_sizes must be numbers of at least 1, got {list(batch_sizes)}")
    mx.eval(model.parameters())  # what is not computed yet would be computed in every call
    step = step_function(model)
    # MLX's exporter knows arrays by where they are in memory. The outputs keep those of a traced
    # call there; freed, their places are taken by arrays of the next call, which are mistaken for
    # them: with MLX 0.29.3 files of several batch sizes gave other numbers, or crashed.
    traced: List[Any] = []

    def step_kept(*inputs: mx.array) -> Any:
        traced.append(step(*inputs))
        return traced[-1]

    try:
        file.touch()  # says why, where it cannot be written; MLX does not
        with mx.exporter(str(file), step_kept) as exporter:
            for size in dict.fromkeys(batch_sizes):
                first = _first_inputs(model, size)
                exporter(*first)
                exporter(*first, *step(*first)[len(ANSWERS) :])
        mx.import_function(str(file))  # a full disk is noticed here
    except ValueError as error:
        raise ConfigError(
            f"model {model.config.name}: MLX cannot export it ({error}); "
            "it can be used from Python only"
        ) from error
    except RuntimeError as error:
        raise OSError(errno.EIO, " ".join(str(error).split()), str(target)) from error


def _ranges(model: RecursiveModel) -> Dict[str, List[int]]:
    """Give the least and the greatest value of each input."""
    spec = model.spec
    return {
        "inputs": [0, spec.vocab_size - 1],
        "puzzle_identifiers": [0, spec.num_puzzle_identifiers - 1],
    }


def _first_inputs(model: RecursiveModel, size: int) -> Tuple[mx.array, mx.array]:
    """Give arrays of the shapes and dtypes that the first step takes."""
    identifiers = mx.full((size,), model.spec.blank_identifier_id, dtype=mx.int32)
    return mx.zeros((size, model.spec.seq_len), dtype=mx.int32), identifiers


def _shapes(names: Sequence[str], arrays: Sequence[mx.array]) -> List[Dict[str, Any]]:
    return [
        {
            "name": name,
            "shape": ["B", *array.shape[1:]],
            "dtype": str(array.dtype).rpartition(".")[2],
        }
        for name, array in zip(names, arrays)
    ]
