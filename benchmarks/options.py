"""What benchmarks/run.py can be asked for."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from results import FOLDER
from sizes import SIZES, default_batch

from mlx_trm.cli.arguments import Parser
from mlx_trm.cli.running import default_device
from mlx_trm.errors import ConfigError, did_you_mean
from mlx_trm.system.device import on_cuda

# Case: (what is measured for it, how often: for each batch size, each size, or once, unit)
CASES: Dict[str, Tuple[Tuple[str, ...], str, str]] = {
    "train": (("train",), "batch", "step"),
    "eval": (("eval",), "batch", "step"),
    "overhead": (("overhead",), "batch", "step"),
    "pipeline": (("pipeline",), "batch", "batch"),
    "adaptive": (("adaptive.all", "adaptive"), "batch", "batch"),
    "solve": (("solve",), "size", "puzzle"),
    "load": (("load.model", "load.checkpoint"), "size", "load"),
    "startup": (("startup",), "size", "start"),
    "data": (("data.sudoku", "data.build", "data.maze", "data.arc"), "once", "run"),
    "import": (("import",), "once", "import"),
}
COMPARED = ("train", "eval")


def add_results(parser: argparse.ArgumentParser) -> None:
    """Declare where a program of this folder measures, and where it writes what it found."""
    add = parser.add_argument
    add("--device", choices=("cpu", "gpu"), help="default: the GPU, where MLX finds one")
    add("--output", type=Path, default=FOLDER, metavar="FOLDER",
        help="where the machine's file of results is (default: benchmarks/results)")  # fmt: skip
    add("--commit", metavar="ID", help="ours, for the results where this folder is no git checkout")


def arguments(description: Optional[str]) -> Parser:
    """Declare the command's arguments."""
    parser = Parser(
        prog="python benchmarks/run.py",
        description=description,
        epilog="Exit code: 0 done, 1 something could not be measured, 2 something you can mend.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--cases", nargs="+", default=list(CASES), metavar="CASE",
        help=f"what to measure: {' '.join(CASES)} (default: all)")  # fmt: skip
    add("--sizes", nargs="+", default=["tiny"], metavar="SIZE[:BATCH]",
        help="; ".join(f"{name}: {size.about}" for name, size in SIZES.items()))  # fmt: skip
    add("--batch", nargs="+", type=count, metavar="B",
        help="batch sizes of the sizes that name none (default: by size and device)")  # fmt: skip
    add_results(parser)
    add("--dtype", choices=("float32", "bfloat16", "float16"),
        help="default: bfloat16 on the GPU, float32 on the CPU")  # fmt: skip
    add("--compile", action=argparse.BooleanOptionalAction, default=None,
        help="use mx.compile (default: on the GPU, and on the CPU but for tiny)")  # fmt: skip
    add("--repeats", type=count, default=9, metavar="N", help="timed blocks (default: 9)")
    add("--block-seconds", type=positive, default=0.5, metavar="S",
        help="a block repeats its work for about so long (default: 0.5)")  # fmt: skip
    add("--eval-steps", type=count, metavar="N",
        help="supervision steps of an evaluated batch (default: halt_max_steps, 16)")  # fmt: skip
    add("--kernels", action="store_true",
        help="of train or eval on an NVIDIA GPU: what a step's kernels take by kind, how long "
        "the GPU waits, and its power; needs PyTorch with CUDA in this interpreter")  # fmt: skip
    add("--checkpoint", metavar="RUN", help="a trained run for `adaptive`, of the size named")
    add("--compare", type=checkout, metavar="UPSTREAM_DIR",
        help="time train and eval of this checkout of the original too, in turns")  # fmt: skip
    add("--upstream-python", default=sys.executable, metavar="PYTHON",
        help="an interpreter that has PyTorch (default: this one)")  # fmt: skip
    add("--upstream-compile", action=argparse.BooleanOptionalAction,
        help="use torch.compile there (default: on the GPU)")  # fmt: skip
    add("--upstream-commit", metavar="ID", help="the same of UPSTREAM_DIR")
    add("--together", action="store_true",
        help="warm up all sizes before any is timed, the original's side by side: torch.compile "
        "then takes as long as the slowest; needs memory for all of them")  # fmt: skip
    return parser


def check_kernels(args: argparse.Namespace) -> None:
    """See whether --kernels can be done, where it is asked for.

    Raises:
        ConfigError: if not.
    """
    if not args.kernels:
        return
    if len(args.cases) != 1 or args.cases[0] not in COMPARED:
        raise ConfigError(
            f"--kernels: name one case, {' or '.join(COMPARED)}: recording may slow others down"
        )
    with default_device(args.device):
        if not on_cuda():
            raise ConfigError("--kernels: needs an NVIDIA GPU, with MLX's CUDA backend")
    if find_spec("torch") is None:
        raise ConfigError(f"--kernels: needs PyTorch with CUDA; {sys.executable} has none")


def count(text: str) -> int:
    """Read a number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def positive(text: str) -> float:
    """Read a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def checkout(text: str) -> Path:
    """Read the folder of a checkout of the original."""
    wanted = Path("models", "recursive_reasoning", "trm.py")
    if not Path(text, wanted).is_file():
        raise argparse.ArgumentTypeError(
            f"{text}: no checkout of TinyRecursiveModels (there is no {wanted} in it)"
        )
    return Path(text).resolve()


def read_sizes(args: argparse.Namespace, device: str) -> List[Tuple[str, int]]:
    """Read --sizes and --batch.

    Raises:
        ConfigError: if a size or batch is unknown.
    """
    found = []
    for text in args.sizes:
        name, colon, batch = text.partition(":")
        if name not in SIZES:
            raise ConfigError(
                f"--sizes: no size {name!r}{did_you_mean(name, SIZES)} (there are "
                f"{', '.join(SIZES)})"
            )
        if colon:
            try:
                batches = [count(batch)]
            except argparse.ArgumentTypeError as error:
                raise ConfigError(f"--sizes {text}: {error}; write it as SIZE:BATCH") from error
        else:
            batches = args.batch or [default_batch(name, device)]
        found += [(name, each) for each in batches]
    return list(dict.fromkeys(found))
