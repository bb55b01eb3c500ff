"""A checkpoint's supervision step as an ONNX file, and the JSON file beside it.

What the JSON says is in the ONNX file, too, as its metadata; runtimes in browsers do not read that.
"""

import json
from pathlib import Path
from typing import Any, Dict, Union

from mlx_trm.inference.exporting.functions import describe_checkpoint, write_described
from mlx_trm.inference.exporting.graph import OPSET
from mlx_trm.inference.packaged import FOLDER, find_pretrained
from mlx_trm.runs.checkpoint import Checkpoint

# Of the package, and so of the weights that come with it.
LICENCE = "MIT"


def export_onnx(checkpoint: Checkpoint, path: Union[str, Path]) -> Path:
    """Write a checkpoint's supervision step as an ONNX graph, and the JSON file that describes it.

    :mod:`mlx_trm.inference.exporting.onnx_models` says what goes in and out.

    Args:
        checkpoint: of ``trm``, ``trm_symbols`` or ``trm_grid``, not quantised.
        path: of the file, by custom ending in ``.onnx``.

    Returns:
        The JSON file: the same name with ``.json`` after it.

    Raises:
        CheckpointError: if the checkpoint's files are no longer what they were.
        ConfigError: if ``onnx`` is not installed, the model has no graph, or a file cannot be
            written; both files are then as they were.
    """
    # Here, so that importing the package does not read it.
    from mlx_trm.inference.exporting.onnx_models import build_graph

    about = describe_onnx(checkpoint)
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in about.items()
    }
    model = build_graph(checkpoint.model).build(checkpoint.config.model.name, texts)

    def write(file: Path) -> None:
        file.write_bytes(model.SerializeToString())

    return write_described(Path(path), "graph", about, write)


def describe_onnx(checkpoint: Checkpoint) -> Dict[str, Any]:
    """Give what the metadata say: what the step takes and gives, and of what it was made.

    Packaged weights have a licence and settings of a search; of others nothing is known.
    """
    model = checkpoint.model
    spec, size = model.spec, model.config.hidden_size
    latent = ["B", model.positions + spec.seq_len, size]
    inputs: Dict[str, Any] = {"tokens": {"shape": ["B", spec.seq_len], "dtype": "int32"}}
    if model.config.puzzle_emb_ndim > 0:
        inputs["identifiers"] = {"shape": ["B"], "dtype": "int32"}
    inputs["begin"] = {"shape": ["B"], "dtype": "bool"}
    about = {
        "opset": OPSET,
        "calls": "first step: begin is true and z_H and z_L are anything; each further step: begin "
        "is false, z_H is new_z_H and z_L is new_z_L of the step before",
        "inputs": {**inputs, **{z: {"shape": latent, "dtype": "float32"} for z in ("z_H", "z_L")}},
        "outputs": {
            **{f"new_{z}": {"shape": latent, "dtype": "float32"} for z in ("z_H", "z_L")},
            "logits": {"shape": ["B", spec.seq_len, spec.vocab_size], "dtype": "float32"},
            "q": {"shape": ["B", 2], "dtype": "float32"},
        },
        "halt": "q[0] > q[1]" if model.compares_continue else "q[0] > 0",
        **describe_checkpoint(checkpoint),
    }
    if checkpoint.path.parent.resolve() == FOLDER.resolve():
        about["licence"] = LICENCE
        about["search"] = find_pretrained(checkpoint.path.name).search
    return about
