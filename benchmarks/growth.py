"""How a step grows: milliseconds and memory against batch, positions, cycles and GPUs.

    python benchmarks/growth.py                          # the paper's models; tiny on a CPU
    python benchmarks/growth.py --series batch --sizes sudoku_mlp --batches 1 8 64
    python benchmarks/plot.py                             # tables with slopes, and a picture

Each point is a training or an evaluation step in the suite's worker, few repeats, their median.
`batch` changes the rows; `positions` changes T with as many rows as keep the positions of a batch
(--tokens) the same, without a puzzle vector; `cycles` changes H x L; `gpus` trains with several
processes of --rows rows each, by the command that users have. The slope is that of the logarithms,
from one point to the next: 1 is in proportion, 0 costs nothing; where it changes much the curve
bends. A point that does not fit the memory is said, and larger ones of its kind are left out. Each
is a line of JSON, appended to benchmarks/results/ in the file of this machine; Ctrl-C keeps what
was measured.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import results
import roofline
from curves import bends, growth_tables, in_series
from launching import Group, sigterm_as_ctrl_c, together, train_command, visible_gpus
from machine import ask_machine, find_device, our_worker
from options import add_results, count, positive
from protocol import Job, Worker, WorkerError
from results import OURS, spread
from sizes import SIZES, describe
from watched import later_lines

from mlx_trm.cli.arguments import Parser
from mlx_trm.cli.running import console_messages, report_error
from mlx_trm.config.loading import load_config
from mlx_trm.errors import ConfigError, TRMError, did_you_mean

SERIES = ("batch", "positions", "cycles", "gpus")
CASES = ("train", "eval")
# By device: sizes, batches, positions, H x L, tokens, rows.
DEFAULTS: Dict[str, Dict[str, Any]] = {
    "gpu": {
        "sizes": ["sudoku_mlp", "sudoku_att"],
        "batches": [1, 8, 64, 192, 768, 1536, 3072],
        "positions": [16, 97, 256, 400, 916],
        "tokens": 192 * 97,
        "rows": 192,
    },
    "cpu": {
        "sizes": ["tiny"],
        "batches": [1, 8, 64],
        "positions": [16, 81, 256],
        "tokens": 1024,
        "rows": 8,
    },
}
CYCLES = ["1x1", "1x2", "2x4", "3x6"]
NO_VECTOR = ("model.puzzle_emb_ndim=0", "model.puzzle_emb_len=0")


class Point(NamedTuple):
    """What is measured once.

    Attributes:
        series: one of :data:`SERIES`.
        size: of benchmarks/sizes.py.
        case: ``train`` or ``eval``.
        value: where it stands in its series: rows, positions, updates of a step, processes.
        label: the same as it is shown.
        batch: rows.
        overrides: settings.
        sized: whether ``value`` is T, and not what the task has.
    """

    series: str
    size: str
    case: str
    value: int
    label: str
    batch: int
    overrides: Tuple[str, ...] = ()
    sized: bool = False

    @property
    def name(self) -> str:
        """Say it in messages."""
        return f"{self.case} {self.size}, {self.series} {self.label}"


def cycles(text: str) -> str:
    """Read H x L."""
    high, _, low = text.partition("x")
    if not (high.isdigit() and low.isdigit() and int(high) and int(low)):
        raise argparse.ArgumentTypeError(f"{text!r} is no HxL such as 3x6")
    return text


def arguments() -> Parser:
    """Declare the command's arguments."""
    parser = Parser(
        prog="python benchmarks/growth.py",
        description=__doc__,
        epilog="Exit code: 0 done; 1 something could not be measured; 2 something you can mend.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--series", nargs="+", choices=SERIES, default=list(SERIES[:3]), metavar="SERIES",
        help=f"of {' '.join(SERIES)} (default: all but gpus)")  # fmt: skip
    add("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE",
        help="train, eval (default: both)")  # fmt: skip
    gpu, cpu = DEFAULTS["gpu"], DEFAULTS["cpu"]

    def default(name: str) -> str:
        shown = [d[name] if isinstance(d[name], list) else [d[name]] for d in (gpu, cpu)]
        large, small = (" ".join(map(str, values)) for values in shown)
        return f" (default: {large}; on a CPU {small})"

    add("--sizes", nargs="+", metavar="SIZE", help="of run.py" + default("sizes"))
    add("--batches", nargs="+", type=count, metavar="B", help="rows" + default("batches"))
    add("--positions", nargs="+", type=count, metavar="T", help="T" + default("positions"))
    add("--cycles", nargs="+", type=cycles, default=CYCLES, metavar="HxL",
        help=f"cycles of a step (default: {' '.join(CYCLES)})")  # fmt: skip
    add("--gpus", nargs="+", type=count, default=[1, 2, 4], metavar="N",
        help="processes of the series gpus (default: 1 2 4)")  # fmt: skip
    add("--tokens", type=count, metavar="N",
        help="positions of a batch in the series positions" + default("tokens"))  # fmt: skip
    add("--rows", type=count, metavar="B",
        help="rows in cycles, and of each process in gpus" + default("rows"))  # fmt: skip
    add("--steps", type=count, default=40, metavar="N",
        help="of a training in gpus, of which the later half counts (default: 40)")  # fmt: skip
    add("--dtype", choices=("float32", "bfloat16", "float16"),
        help="default: bfloat16 on the GPU, float32 on the CPU")  # fmt: skip
    add("--repeats", type=count, default=3, metavar="N", help="timed blocks (default: 3)")
    add("--block-seconds", type=positive, default=0.1, metavar="S",
        help="a block repeats its step for about so long (default: 0.1)")  # fmt: skip
    add("--eval-steps", type=count, default=4, metavar="N",
        help="supervision steps of an evaluated batch (default: 4)")  # fmt: skip
    add("--seconds", type=positive, default=1e5, metavar="LIMIT",
        help="begin no point after so long")  # fmt: skip
    add_results(parser)
    return parser


class Growth:
    """One call: its options, and the file it appends to."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Check the options.

        Raises:
            ConfigError: for what they ask for and is not there.
        """
        self.args, self.device = args, find_device(args.device)
        for name, value in DEFAULTS[self.device].items():
            if getattr(args, name) is None:
                setattr(args, name, value)
        for size in args.sizes:
            if size not in SIZES:
                raise ConfigError(
                    f"--sizes: no size {size!r}{did_you_mean(size, SIZES)} (there are "
                    f"{', '.join(SIZES)})"
                )
        known = visible_gpus()
        if self.device == "gpu" and known is not None and "gpus" in args.series:
            args.gpus = [number for number in args.gpus if number <= len(known)]
        self.dtype = args.dtype or ("bfloat16" if self.device == "gpu" else "float32")
        self.about = {"run": results.now(), **results.commit(told=args.commit)}
        self.points = self.list_points()
        self.jobs = [self.describe(point) for point in self.points]
        self.rates: Dict[str, float] = {}
        self.worker: Optional[Worker] = None
        self.full: Dict[Tuple[str, str, str], str] = {}
        self.missing: List[str] = []
        self.lines: List[Dict[str, Any]] = []

    def list_points(self) -> List[Point]:
        """List what is measured, the series one after the other."""
        args, found = self.args, []
        for series in SERIES:
            for size in args.sizes if series in args.series else []:
                for case in CASES:
                    if case in args.cases and (series != "gpus" or case == "train"):
                        found += self.list_series(series, size, case)
        return found

    def list_series(self, series: str, size: str, case: str) -> List[Point]:
        """List a series of a size and case, the smallest first."""
        args = self.args
        if series == "batch":
            return [Point(series, size, case, b, str(b), b) for b in sorted(set(args.batches))]
        if series == "positions":
            model = load_config(SIZES[size].config).model
            more = NO_VECTOR if hasattr(model, "puzzle_emb_len") else ()
            return [
                Point(series, size, case, t, str(t), max(1, round(args.tokens / t)), more, True)
                for t in sorted(set(args.positions))
            ]
        if series == "gpus":
            return [Point(series, size, case, n, str(n), n * args.rows) for n in sorted(args.gpus)]
        found = []
        for text in args.cycles:
            high, low = (int(part) for part in text.split("x"))
            words = (f"model.H_cycles={high}", f"model.L_cycles={low}")
            found.append(Point(series, size, case, high * (low + 1), text, args.rows, words))
        return sorted(found, key=lambda point: point.value)

    def describe(self, point: Point) -> Job:
        """Describe the work of a point.

        Raises:
            ConfigError: if the size has no such setting.
        """
        compiled = self.device == "gpu" or point.size != "tiny"
        job = describe(point.size, point.batch, self.dtype, compiled, point.overrides)
        if point.sized:
            own = roofline.shape_of(job).positions - job["seq_len"]
            job["seq_len"] = max(1, point.value - own)
        job.update(case=point.case, eval_steps=self.args.eval_steps, warm_up=2,
                   block_seconds=self.args.block_seconds)  # fmt: skip
        return job

    def go(self) -> int:
        """Measure everything; gives the exit code."""
        started = time.monotonic()
        report, self.rates = ask_machine(self.device, self.dtype)
        machine = results.machine_name(report, self.device)
        self.about.update(machine=machine, device=self.device, versions=report["versions"])
        path = self.args.output / results.file_name(machine)
        print(f"{machine}: {len(self.points)} points", flush=True)
        try:
            for point, job in zip(self.points, self.jobs):
                if time.monotonic() - started > self.args.seconds:
                    self.missing.append(f"{point.name}: --seconds {self.args.seconds:g} were over")
                else:
                    self.measure(point, job, path)
        finally:
            self.end_worker()
            if self.lines:
                print("\n" + growth_tables(self.lines))
                for key, points in in_series(self.lines).items():
                    for text in bends(key, points):
                        print(text)
                print(f"appended to {path}", flush=True)
        for text in self.missing:
            print(f"not measured: {text}", file=sys.stderr)
        return 1 if self.missing else 0

    def measure(self, point: Point, job: Job, path: Path) -> None:
        """Measure a point and write its line, or say why not."""
        kind = (point.series, point.size, point.case)
        if kind in self.full:
            self.missing.append(f"{point.name}: {self.full[kind]} did not fit the memory")
            return
        try:
            found = self.train_together(point) if point.series == "gpus" else self.time_step(job)
        except (WorkerError, TRMError) as error:
            self.end_worker()
            if "memory" in str(error) or "alloc" in str(error):
                self.full[kind] = f"{point.series} {point.label}"
            self.missing.append(f"{point.name}: {error}")
            print(f"    {point.name}: {error}", flush=True)
            return
        line = {
            "kind": "growth", **self.about, "date": results.now(), "implementation": OURS,
            **point._asdict(), "dtype": self.dtype, "compiled": job["compiled"], "unit": "step",
            "H_cycles": job["model"]["H_cycles"], "L_cycles": job["model"]["L_cycles"], **found,
        }  # fmt: skip
        median = line["seconds"]["median"]
        if point.series != "gpus":
            line["roofline"] = roofline.note(job, point.case == "train", self.rates, median)
        results.append(path, line)
        self.lines.append(line)
        memory = line["peak_memory"]
        print(f"    {point.name}, {point.batch} rows: {1e3 * median:.4g} ms"
              + (f", {memory / 2**30:.3g} GiB" if memory else ""), flush=True)  # fmt: skip

    def time_step(self, job: Job) -> Dict[str, Any]:
        """Time a step in the worker, which is started where none runs."""
        if self.worker is None:
            self.worker = our_worker(self.device)
        first = self.worker.call("prepare", job)["first_seconds"]
        seconds = [
            self.worker.call("time", job, first=number == 0)["seconds"]
            for number in range(self.args.repeats)
        ]
        found = self.worker.call("finish", job)
        steps = found["facts"].get("steps_in_unit", 1)
        return {
            "seconds": spread([each / steps for each in seconds]),
            "first_seconds": first,
            "peak_memory": found["peak_memory"],
            "resident_memory": found["resident_memory"],
        }

    def train_together(self, point: Point) -> Dict[str, Any]:
        """Train for some steps with several processes; the later half of the log counts."""
        size = SIZES[point.size]
        steps, interval = self.args.steps, max(1, self.args.steps // 8)
        words = ["--config", size.config, *size.overrides, "-q", "--device", self.device,
                 f"train.batch_size={point.batch}", f"train.max_steps={steps}",
                 f"train.log_interval={interval}", f"model.forward_dtype={self.dtype}",
                 "train.micro_batch_size=null", "eval.max_examples=1"]  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="growth") as name:
            folder = Path(name)
            command = train_command([*words, f"run_dir={folder / 'run'}"])
            environments = together(point.value, self.device == "gpu", folder)
            Group(command, environments, folder / "messages.txt").finish()
            later = later_lines(folder / "run")
        seconds = [1 / line["steps_per_second"] for line in later]
        return {"seconds": spread(seconds), "peak_memory": later[-1]["peak_memory"]}

    def end_worker(self) -> None:
        """End the worker; the next point starts another."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; gives the exit code."""
    with console_messages(), sigterm_as_ctrl_c():
        try:
            return Growth(arguments().parse_args(argv)).go()
        except (Exception, KeyboardInterrupt) as error:  # pylint: disable=broad-exception-caught
            return report_error(error)


if __name__ == "__main__":
    sys.exit(main())
