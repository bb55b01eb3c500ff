"""What a run has written, for comparing one run with another."""

import json
from pathlib import Path
from typing import Any, Dict, List

import mlx.core as mx
import numpy as np

# What depends on the clock or the process.
TIMES = ("steps_per_second", "peak_memory")


def log_of(run: Path) -> List[Dict[str, Any]]:
    """The lines of a log without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def arrays_of(checkpoint: Path) -> Dict[str, np.ndarray]:
    """Every array of a checkpoint."""
    return {
        f"{path.stem}.{name}": np.array(array.astype(mx.float32))
        for path in sorted(checkpoint.glob("*.safetensors"))
        for name, array in dict(mx.load(str(path))).items()
    }
