"""Three ARC tasks of small grids and a model for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

YAML = """
task: {name: arc, input_file_prefix: p, subsets: [a, b], test_set_name: b, num_aug: 2,
       max_grid_size: 6}
model: {name: trm, hidden_size: 16, num_heads: 2, swiglu_multiple: 16, L_layers: 1, H_cycles: 1,
        L_cycles: 1, puzzle_emb_len: 1, halt_max_steps: 2}
train: {batch_size: 4, epochs: 4, max_steps: 2}
"""


def pair(seed: int) -> Any:
    """An input of 2 x 3 and an output of 3 x 2."""
    rng = np.random.default_rng(seed)
    return {"input": rng.integers(0, 10, (2, 3)).tolist(),
            "output": rng.integers(0, 10, (3, 2)).tolist()}  # fmt: skip


TASKS = {
    "a": {"t1": {"train": [pair(1), pair(2)], "test": [pair(3)]}},
    "b": {"e1": {"train": [pair(4)], "test": [pair(5), pair(6)]},
          "e2": {"train": [pair(7)], "test": [pair(8)]}},
}  # fmt: skip


def write_tasks() -> None:
    """Write Kaggle's files of the subsets ``a`` and ``b``, and ``c.yaml``, into this folder."""
    for subset, tasks in TASKS.items():
        Path(f"p_{subset}_challenges.json").write_text(json.dumps(tasks))
    Path("c.yaml").write_text(YAML)
