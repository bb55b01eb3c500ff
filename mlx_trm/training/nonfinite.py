"""Whether a step is finite, and what one that is not leaves behind: its inputs, to replay it."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Dict, Sequence

import mlx.core as mx

from mlx_trm.errors import CheckpointError, NonFiniteError
from mlx_trm.models import named_arrays
from mlx_trm.nn.cuda import kernels as cuda
from mlx_trm.system.files import replace_file

# Files that are kept, the newest ones: at the paper's size each has 150 to 300 MB.
REPLAYS = 4
# Arrays that one kernel looks at: beyond some 160 the compiler keeps their addresses in memory that
# each thread has for itself, in all a gigabyte. Blocks of 256 threads that keep a GPU busy.
MOST_ARRAYS, BLOCKS = 128, 512
# With ``train.on_nonfinite: skip``, so many steps in a row end the run: it will not recover.
GIVE_UP = 20


def all_finite(arrays: Sequence[mx.array]) -> mx.array:
    """Give whether arrays hold no NaN and no infinity, a bool scalar.

    On an NVIDIA GPU one kernel reads all of them: a sum of each would be launched two or three
    times, and such small steps are what a small batch waits for. A sum tells as well: NaN and
    infinity stay in it, and finite numbers of which it overflows are no gradients to go on with.

    Args:
        arrays: of any shape and float dtype.
    """
    fits = 0 < len(arrays) <= MOST_ARRAYS and all(a.dtype == mx.float32 for a in arrays)
    if not (fits and cuda.usable(mx.bfloat16)):
        return mx.isfinite(sum((mx.sum(array) for array in arrays), mx.array(0.0)))
    numbers = range(len(arrays))
    defines = {
        "ARRAYS": ", ".join(f"const float* a{k}" for k in numbers),
        "NAMES": ", ".join(f"a{k}" for k in numbers),
        "SIZES": ", ".join(str(array.size) for array in arrays),
    }
    launched = cuda.launch(
        "finite.cu", "find_nonfinite", list(arrays), [()], [], (BLOCKS, 1),
        defines=defines, dtypes=[mx.float32], init_value=0.0,
    )  # fmt: skip
    return launched[0] == 0.0


def save_replay(folder: Path, error: NonFiniteError, rank: int = 0) -> Path:
    """Save what entered a step that was not finite: carry, incoming batch and exploration.

    Of several processes number 0 saves its share. The oldest of more than REPLAYS files go.

    Returns:
        The file, ``nonfinite_step_N.safetensors``.

    Raises:
        CheckpointError: if it cannot be written.
    """
    path = folder / f"nonfinite_step_{error.step}.safetensors"
    if rank:
        return path
    arrays: Dict[str, mx.array] = {}
    for number, part in enumerate(error.parts):
        tree = {
            "carry": list(part.carry.pack()[0]),
            "steps": part.carry.steps,
            "halted": part.carry.halted,
            "current": part.carry.current._asdict(),
            "batch": part.batch._asdict(),
            "min_steps": part.min_steps,
        }
        if part.keys is not None:
            tree["keys"] = part.keys
        arrays.update({f"part{number}.{name}": array for name, array in named_arrays(tree)})
    try:
        with replace_file(path) as temporary:
            mx.save_safetensors(str(temporary), arrays, {"step": str(error.step)})
    except (OSError, RuntimeError) as problem:
        raise CheckpointError(f"{path}: cannot be written ({problem})") from problem
    _remove_oldest(folder)
    return path


def _remove_oldest(folder: Path) -> None:
    """Keep the newest replay files only."""
    found = []
    for path in folder.glob("nonfinite_step_*.safetensors"):
        match = re.fullmatch(r"nonfinite_step_(\d+)\.safetensors", path.name)
        if match:
            found.append((int(match[1]), path))
    for _, path in sorted(found)[:-REPLAYS]:
        with suppress(OSError):
            path.unlink()
