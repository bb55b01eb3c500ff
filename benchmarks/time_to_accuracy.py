"""How long a training run takes to an accuracy, and how much energy: seconds and joules.

    python benchmarks/time_to_accuracy.py --config sudoku_symbols.yaml --gpus 1 4 --seconds 600 \\
        task.train_file=train.csv task.test_file=test.csv eval.interval=125
    ... --compare TinyRecursiveModels --upstream-python torch-env/bin/python

Runs `python -m mlx_trm.train` as its user would, reads the evaluations of its metrics.jsonl, and
stops it at the highest accuracy asked for. With --compare the original's recipe is trained in the
original's code on the same puzzles, evaluated on the same test set. Seconds count from the start of
the process to the line of the evaluation: imports, compilation and evaluations included; beside
them stand those of the training steps alone, and the steps a second of the later half of the log.
The result is a line of JSON for each run, appended to benchmarks/results/ in the file of this
machine, and a Markdown table. Ctrl-C keeps what has been reached.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import results
from curves import accuracy_table, hms
from energy import Meter
from launching import (
    Group,
    gpu_names,
    sigterm_as_ctrl_c,
    together,
    torch_together,
    train_command,
    visible_gpus,
)
from machine import ask_machine, find_device
from options import add_results, checkout, count, positive
from results import OURS, THEIRS
from sizes import check_original, describe_experiment
from watched import Evaluation, Log, reached

from mlx_trm.cli.arguments import Parser, parse_line
from mlx_trm.cli.running import console_messages, report_error
from mlx_trm.config.loading import load_config
from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.errors import ConfigError, TRMError

HERE = Path(__file__).resolve().parent
POLL = 0.05


class Run(NamedTuple):
    """What is to be measured.

    Attributes:
        side: ``mlx_trm`` or ``original``.
        gpus: processes, with a GPU each where there are any.
        start: starts it in a folder, and gives its processes and the file of its metrics.
        about: what its line of results says besides.
    """

    side: str
    gpus: int
    start: Callable[[Path], "Started"]
    about: Dict[str, Any]


class Started(NamedTuple):
    """A run that was started: its processes, and where its metrics come."""

    group: Group
    metrics: Path


def percent(text: str) -> float:
    """Read an accuracy in percent."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 100")
    return value


def arguments() -> Parser:
    """Declare the command's arguments."""
    parser = Parser(
        prog="python benchmarks/time_to_accuracy.py",
        description=__doc__,
        epilog="Exit code: 0 done, reached or not; 2 a run failed, or something you can mend.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(takes_overrides=True)
    add = parser.add_argument
    add("overrides", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the run")
    add("--config", default="sudoku_symbols.yaml", metavar="FILE",
        help="what is trained (default: sudoku_symbols.yaml)")  # fmt: skip
    add("--to", nargs="+", type=percent, default=[50.0, 75.0], metavar="PERCENT",
        help="accuracies, of eval.best_metric (default: 50 75)")  # fmt: skip
    add("--gpus", nargs="+", type=count, default=[1], metavar="N",
        help="processes that train together, a GPU each, one run after the other (default: 1); on "
        "the CPU processes over MLX's ring")  # fmt: skip
    add("--seconds", type=positive, default=3600.0, metavar="LIMIT",
        help="of each run, at most (default: 3600)")  # fmt: skip
    add("--steps", type=count, metavar="N",
        help="of each run, at most: for the steps a second alone (default: the run's)")  # fmt: skip
    add_results(parser)
    add("--runs", type=Path, metavar="FOLDER",
        help="keep the runs' folders and messages here (default: they are removed)")  # fmt: skip
    group = parser.add_argument_group("the original")
    add = group.add_argument
    add("--compare", type=checkout, metavar="UPSTREAM_DIR", help="train this checkout's code too")
    add("--only-original", action="store_true", help="leave ours out")
    add("--upstream-python", default=sys.executable, metavar="PYTHON",
        help="an interpreter that has PyTorch (default: this one)")  # fmt: skip
    add("--upstream-commit", metavar="ID", help="that of UPSTREAM_DIR, where it is no git checkout")
    add(
        "--recipe",
        default="sudoku.yaml",
        metavar="FILE",
        help="its recipe as a configuration of ours (default: sudoku.yaml, the README's)",
    )
    add("--recipe-set", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of the recipe; the task's are taken from ours")  # fmt: skip
    add("--recipe-interval", type=count, default=500, metavar="STEPS",
        help="steps between its evaluations (default: 500)")  # fmt: skip
    add("--upstream-compile", action=argparse.BooleanOptionalAction,
        help="use torch.compile there (default: on the GPU)")  # fmt: skip
    return parser


class Comparison:
    """One call: its options, and the file it appends to."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Check the options.

        Raises:
            ConfigError: for what they ask for and is not there.
        """
        self.args, self.to = args, sorted(set(args.to))
        self.device = find_device(args.device)
        self.gpu = self.device == "gpu"
        self.config = load_config(args.config, args.overrides)
        if self.config.run_dir is not None:
            raise ConfigError("run_dir: is chosen here; --runs FOLDER keeps the runs")
        if self.config.eval.best_metric.endswith("loss"):
            raise ConfigError(
                "eval.best_metric: is a loss; set one that is a share, such as accuracy"
            )
        if args.runs is not None and args.runs.exists() and list(args.runs.iterdir()):
            raise ConfigError(f"--runs {args.runs}: is not empty; name a new folder")
        if args.only_original and not args.compare:
            raise ConfigError("--only-original: needs --compare UPSTREAM_DIR")
        known = visible_gpus()
        if self.gpu and known is not None and max(args.gpus) > len(known):
            raise ConfigError(
                f"--gpus {max(args.gpus)}: CUDA_VISIBLE_DEVICES shows {len(known)}; ask for fewer"
            )
        for number in args.gpus:
            if self.config.train.batch_size % number:
                raise ConfigError(
                    f"--gpus {number}: does not divide train.batch_size "
                    f"{self.config.train.batch_size}; set one that it divides"
                )
        self.recipe: Optional[ExperimentConfig] = None
        if args.compare:
            # As its README builds the data: a thousand copies of each puzzle.
            drawn = ["task.augment=none", "task.num_aug=1000"]
            task = [word for word in args.overrides if word.startswith("task.")]
            self.recipe_words = [*task, *drawn, *args.recipe_set]
            self.recipe = load_config(args.recipe, self.recipe_words)
            check_original(self.recipe, f"--recipe {args.recipe}", ("model", "train"))
        self.about = {"run": results.now(), **results.commit(told=args.commit)}

    def go(self, folder: Path) -> List[Dict[str, Any]]:
        """Measure everything, one run after the other; gives the lines of results."""
        report, _ = ask_machine(self.device)
        machine = results.machine_name(report, self.device)
        self.about.update(machine=machine, device=self.device)
        path = self.args.output / results.file_name(machine)
        lines: List[Dict[str, Any]] = []
        try:
            for run in self.runs(report["versions"], folder):
                self.measure(run, folder, path, lines)
        finally:
            if lines:
                print("\n" + accuracy_table(lines) + f"\nappended to {path}", flush=True)
        return lines

    def runs(self, versions: Dict[str, str], folder: Path) -> List[Run]:
        """List what is to be measured."""
        found, args = [], self.args
        settings = without_folders(args.overrides)
        about: Dict[str, Any] = {"config": args.config, "settings": settings,
                                 "batch": self.config.train.batch_size,
                                 "versions": versions}  # fmt: skip
        for number in args.gpus if not args.only_original else []:
            found.append(Run(OURS, number, partial(self.start_ours, number=number), about))
        if self.recipe is not None:
            job = self.describe_original(folder)
            made = results.commit(args.compare, args.upstream_commit)
            settings = without_folders(self.recipe_words)
            about = {"config": args.recipe, "settings": settings, "batch": job["batch"],
                     "original": made}  # fmt: skip
            for number in args.gpus:
                start = partial(self.start_theirs, number=number, job=job)
                found.append(Run(THEIRS, number, start, about))
        return found

    def start_ours(self, folder: Path, number: int) -> Started:
        """Start the command that trains."""
        words = ["--config", self.args.config, *self.args.overrides, f"run_dir={folder / 'run'}"]
        words += ["-q"] + (["--device", self.args.device] if self.args.device else [])
        environments = together(number, self.gpu, folder)
        group = Group(train_command(words), environments, folder / "messages.txt")
        return Started(group, folder / "run" / "metrics.jsonl")

    def describe_original(self, folder: Path) -> Dict[str, Any]:
        """Build the original's data, and give the job of benchmarks/upstream_train.py.

        Raises:
            ConfigError: if the data cannot be built.
        """
        assert self.recipe is not None
        data, train = folder / "data", self.recipe.train
        words = ["build", "--config", self.args.recipe, *self.recipe_words, "--output", str(data)]
        command = [sys.executable, "-m", "mlx_trm.data", *words, "-q"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError((done.stderr.splitlines() or ["the data cannot be built"])[-1])
        theirs = self.args.upstream_compile
        dtype = self.recipe.model.forward_dtype
        if dtype == "auto":
            dtype = "bfloat16" if self.gpu else "float32"
        job = {"size": self.args.recipe, "batch": train.batch_size, "dtype": dtype,
               "compiled": self.gpu if theirs is None else theirs, "data": str(data),
               "seed": self.recipe.seed, "epochs": train.epochs,
               "eval_interval": self.args.recipe_interval,
               "log_interval": train.log_interval}  # fmt: skip
        job = describe_experiment(self.recipe, job)
        job["recipe"]["lr_min_ratio"] = train.lr_min_ratio
        return job

    def start_theirs(self, folder: Path, number: int, job: Dict[str, Any]) -> Started:
        """Start the original's training."""
        metrics = folder / "metrics.jsonl"
        described = folder / "job.json"
        described.write_text(json.dumps({**job, "metrics": str(metrics)}))
        command = [self.args.upstream_python, str(HERE / "upstream_train.py"),
                   str(self.args.compare), str(described)] + ["--gpu"] * self.gpu  # fmt: skip
        group = Group(command, torch_together(number, self.gpu), folder / "messages.txt")
        return Started(group, metrics)

    def measure(self, run: Run, folder: Path, path: Path, lines: List[Dict[str, Any]]) -> None:
        """Let a run go until it has reached everything, and write its line."""
        name = f"{run.side}, {run.gpus} process{'es' * (run.gpus > 1)}"
        print(f"{name}: {run.about['config']}, batch {run.about['batch']}", flush=True)
        own = folder / f"{run.side}_{run.gpus}"
        own.mkdir(parents=True, exist_ok=True)
        metric = (self.config if run.side == OURS else self.recipe or self.config).eval.best_metric
        with Meter(gpu_names(run.gpus) if self.gpu else []) as meter:
            log, ended = Log(metric if run.side == OURS else "exact_accuracy"), "interrupted"
            started = run.start(own)
            try:
                ended = self.watch(started, log, meter)
            finally:
                spent = time.perf_counter() - started.group.started
                joules = meter.joules()
                started.group.stop()
                rate = log.steps_per_second()
                if log.evaluations or rate or ended == "interrupted":
                    found = self.line(run, log, meter.source, ended, spent, joules)
                    results.append(path, found)
                    lines.append(found)
                if rate:
                    print(f"    {rate:.3g} steps a second, later half of its log", flush=True)
        if ended == "failed":
            started.group.check()
            raise TRMError(f"{name}: a process has ended; {started.group.last_words()}")

    def watch(self, started: Started, log: Log, meter: Meter) -> str:
        """Follow a run's metrics; says why it ended."""
        while True:
            running = started.group.running()
            seconds = time.perf_counter() - started.group.started
            for evaluation in log.read(started.metrics, seconds, meter.joules()):
                self.tell(evaluation)
                if evaluation.accuracy >= self.to[-1]:
                    return "reached"
            if not running:
                return "failed" if started.group.failed() else "ended"
            if seconds >= self.args.seconds:
                return "limit"
            if self.args.steps and log.trained >= self.args.steps:
                return "steps"
            time.sleep(POLL)

    def tell(self, found: Evaluation) -> None:
        """Say an evaluation in a line."""
        text = (
            f"    {found.accuracy:6.2f} % at step {found.step:,} after {hms(found.seconds)}, "
            f"{hms(found.training_seconds)} of it training"
        )
        if found.joules is not None:
            text += f", {found.joules / 1000:.1f} kJ"
        print(text, flush=True)

    def line(
        self, run: Run, log: Log, source: Optional[str], ended: str, spent: float,
        joules: Optional[float],
    ) -> Dict[str, Any]:  # fmt: skip
        """Make a run's line of results."""
        return {
            "kind": "accuracy", **self.about, "date": results.now(), "implementation": run.side,
            "case": "time_to_accuracy", "gpus": run.gpus, **run.about, **log.facts,
            "metric": log.metric, "ended": ended, "limit": self.args.seconds, "seconds": spent,
            "joules": joules, "energy": source or "not measured",
            "steps_per_second": log.steps_per_second(),
            "reached": [reached(log.evaluations, each) for each in self.to],
            "evaluations": [evaluation._asdict() for evaluation in log.evaluations],
        }  # fmt: skip


def without_folders(words: Sequence[str]) -> List[str]:
    """Give settings as results have them: of files the names, and not where they are here."""
    found = []
    for word in words:
        key, _, value = word.partition("=")
        found.append(f"{key}={Path(value).name}" if os.sep in value else word)
    return found


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; gives the exit code."""
    with console_messages(), sigterm_as_ctrl_c():
        try:
            words = sys.argv[1:] if argv is None else list(argv)
            comparison = Comparison(parse_line(arguments(), words))
            with tempfile.TemporaryDirectory(prefix="time_to_accuracy") as name:
                comparison.go(comparison.args.runs or Path(name))
            return 0
        except (Exception, KeyboardInterrupt) as error:  # pylint: disable=broad-exception-caught
            return report_error(error)


if __name__ == "__main__":
    sys.exit(main())
