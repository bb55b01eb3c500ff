"""Measure mlx_trm on this machine, beside the original where it is there.

    python benchmarks/run.py                                   # everything, tiny
    python benchmarks/run.py --cases train eval --sizes sudoku_mlp:768 sudoku_mlp:64
    python benchmarks/run.py --cases train eval --sizes sudoku_mlp:8 --compare TinyRecursiveModels

Every result is one line of JSON, appended to benchmarks/results/ in the file of this machine;
benchmarks/plot.py makes tables and pictures of them. docs/benchmarks/README.md says how things are
measured. benchmarks/processes.py (training with several processes) and benchmarks/arc_build.py (the
ARC builder beside the original's) are programs of their own; the case `data` uses the latter.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import arc_build
import kernel_times
import results
import roofline
from launching import gpu_names, sigterm_as_ctrl_c
from machine import ask_machine, find_device, our_worker
from options import CASES, COMPARED, arguments, check_kernels, read_sizes
from protocol import Job, Worker, WorkerError, import_seconds
from results import ABOUT, OURS, THEIRS, commit, label, now, spread, summary
from sizes import check_original, describe, experiment

from mlx_trm.cli.running import console_messages, report_error
from mlx_trm.errors import ConfigError, did_you_mean
from mlx_trm.runs.layout import find_checkpoint

HERE = Path(__file__).resolve().parent


class Combination(NamedTuple):
    """A size with a batch size, and the workers that measure it, by implementation."""

    size: str
    batch: int
    workers: Dict[str, Worker]


class Suite:
    """One run: its options, and the file it appends to."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Check the options.

        Raises:
            ConfigError: for what they ask for and is not there.
        """
        for case in args.cases:
            if case not in CASES:
                raise ConfigError(
                    f"--cases: no case {case!r}{did_you_mean(case, CASES)} (there are "
                    f"{', '.join(CASES)})"
                )
        self.device = find_device(args.device)
        gpu = self.device == "gpu"
        self.args = args
        self.dtype = args.dtype or ("bfloat16" if gpu else "float32")
        theirs = args.upstream_compile
        self.upstream_compiled = gpu if theirs is None else theirs
        self.combinations = [
            Combination(size, batch, {}) for size, batch in read_sizes(args, self.device)
        ]
        if args.compare and not set(args.cases) & set(COMPARED):
            raise ConfigError(f"--compare: only {' and '.join(COMPARED)} can be compared; name one")
        for size in sorted({c.size for c in self.combinations}) if args.compare else []:
            job = {"size": size, "batch": 1, "dtype": self.dtype, "compiled": False}
            check_original(experiment(job), f"--compare, --sizes {size}")
        check_kernels(args)
        if args.checkpoint:
            find_checkpoint(args.checkpoint)
        self.started = now()
        self.made = commit(told=args.commit)
        self.failed: List[str] = []
        self.held: Dict[str, Any] = {}
        self.medians: Dict[Tuple, float] = {}

    # Processes -----------------------------------------------------------------------------------

    def ours(self, works: Sequence[str]) -> Worker:
        """Start a worker of mlx_trm that will do this."""
        return our_worker(self.device, works)

    def theirs(self) -> Worker:
        """Start a worker of the original.

        Raises:
            ConfigError: if the interpreter cannot be started.
        """
        script, where = str(HERE / "upstream_worker.py"), str(self.args.compare)
        command = [self.args.upstream_python, script, where]
        env = {"TORCHINDUCTOR_COMPILE_THREADS": "4"} if self.args.together else {}
        try:
            return Worker(THEIRS, command + (["--gpu"] if self.device == "gpu" else []), env)
        except OSError as error:
            raise ConfigError(
                f"--upstream-python {self.args.upstream_python}: {error.strerror}; name an "
                "interpreter that has PyTorch"
            ) from error

    def job(self, case: str, size: str, batch: int, side: str = OURS) -> Job:
        """Describe the work of a case for one side."""
        compiled = self.upstream_compiled
        if side == OURS:  # as train.compile=auto has it: on the CPU large models only
            chosen = self.args.compile
            compiled = self.device == "gpu" or size != "tiny" if chosen is None else chosen
        return {
            **describe(size, batch, self.dtype, compiled),
            "case": case,
            "checkpoint": self.args.checkpoint,
            "eval_steps": self.args.eval_steps,
            "warm_up": 3,
            "block_seconds": self.args.block_seconds,
        }

    # The run -------------------------------------------------------------------------------------

    def go(self) -> int:
        """Measure everything; gives the exit code."""
        if self.args.compare:
            self.look_at_original()
        self.look_at_machine()
        names = [case for case in CASES if case in self.args.cases]
        parts = [self.combinations] if self.args.together else [[c] for c in self.combinations]
        for part in parts:
            try:
                self.measure_batches(part, [c for c in names if CASES[c][1] == "batch"])
            finally:
                for combination in part:
                    for worker in combination.workers.values():
                        worker.close()
        for size, batch in {c.size: c.batch for c in self.combinations}.items():
            for name in (c for c in names if CASES[c][1] == "size"):
                self.guarded(name, lambda n=name, s=size, b=batch: self.measure_size(n, s, b))
        for name in (c for c in names if CASES[c][1] == "once"):
            self.guarded(name, lambda n=name: self.measure_once(n))
        print(f"appended to {self.path}")
        for text in self.failed:
            print(f"not measured: {text}", file=sys.stderr)
        return 1 if self.failed else 0

    def guarded(self, what: str, function: Callable[[], None]) -> None:
        """Go on with the next case where one fails."""
        try:
            function()
        except WorkerError as error:
            self.failed.append(f"{what}: {error}")

    def look_at_machine(self) -> None:
        """Ask for the device report and the rates that the floors come from."""
        report, self.held["rates"] = ask_machine(self.device, self.dtype)
        self.machine = results.machine_name(report, self.device)
        self.path = self.args.output / results.file_name(self.machine)
        self.held["versions"] = report["versions"]
        plain = {name: os.path.basename(text) for name, text in report["environment"].items()}
        report.update(environment=plain, blas=os.path.basename(report["blas"] or "") or None)
        load = os.getloadavg()[0]
        rates = self.held["rates"]
        self.write("machine", report=report, rates=rates, load=load)
        print(
            f"{self.machine}, {self.device}, {self.dtype}: {rates['flops'] / 1e12:.3g} TFLOP/s in "
            f"matrix products, {rates['bandwidth'] / 1e9:.3g} GB/s copying"
        )
        if load > 0.5 * (os.cpu_count() or 1):
            print(
                f"this machine is busy (load {load:.1f}): times will be too long", file=sys.stderr
            )

    def look_at_original(self) -> None:
        """See that the original can be imported, before anything is measured.

        Raises:
            ConfigError: if not.
        """
        worker = self.theirs()
        try:
            found = worker.call("ask", what="versions")["answer"]
        except WorkerError as error:
            raise ConfigError(
                f"--compare: {error}; --upstream-python names an interpreter with PyTorch 2.5 or "
                "newer and NumPy"
            ) from error
        finally:
            worker.close()
        self.held["original"] = commit(self.args.compare, self.args.upstream_commit)
        print(f"original: PyTorch {found['torch']}, replaced: {found['substituted'] or 'nothing'}")

    def write(self, kind: str, **more: Any) -> None:
        """Append a line."""
        about = {"kind": kind, "run": self.started, "date": now(), **self.made}
        results.append(self.path, {**about, "machine": self.machine, "device": self.device, **more})

    # Cases of a size and a batch size ------------------------------------------------------------

    def measure_batches(self, part: Sequence[Combination], names: Sequence[str]) -> None:
        """Warm everything up, then time one case after the other."""
        works = [work for name in names for work in CASES[name][0]]
        if not works:
            return
        sides = [(OURS, works)]
        if self.args.compare:
            sides.append((THEIRS, [work for work in works if work in COMPARED]))
        again: List[Tuple[Combination, Job, str, WorkerError]] = []

        def prepare(combination: Combination, side: str, works: Sequence[str]) -> None:
            for work in works:
                job = self.job(work, combination.size, combination.batch, side)
                try:
                    self.warm_up(combination, job, side)
                except WorkerError as error:
                    again.append((combination, job, side, error))

        threads = []
        for side, mine in reversed(sides):  # the original's side by side, ours one by one
            for combination in part if mine else []:
                worker = self.ours(works) if side == OURS else self.theirs()
                combination.workers[side] = worker
                work = threading.Thread(target=prepare, args=(combination, side, mine))
                work.start()
                if side == OURS or not self.args.together:
                    work.join()
                threads.append(work)
        for thread in threads:
            thread.join()
        for combination, job, side, error in again:
            out_of_memory = "memory" in str(error) or "alloc" in str(error)
            if out_of_memory and self.args.together:  # alone it may suffice
                self.guarded(label(job), lambda c=combination, j=job, s=side: self.warm_up(c, j, s))
            else:
                self.failed.append(f"{label(job)}: {error}")
        for combination in part:
            for name in works:
                what = f"{name} {combination.size} {combination.batch}"
                self.guarded(what, lambda w=name, c=combination: self.time_case(c, w))

    def warm_up(self, combination: Combination, job: Job, side: str = OURS) -> None:
        """Make the work of a job ready."""
        reply = combination.workers[side].call("prepare", job)
        self.held[(side, label(job))] = reply

    def time_case(self, combination: Combination, work: str) -> None:
        """Time blocks of each side in turns, and write their lines."""
        jobs = {
            side: self.job(work, combination.size, combination.batch, side)
            for side in (OURS, THEIRS)
            if (side, f"{work} {combination.size} {combination.batch}") in self.held
        }
        seconds: Dict[str, List[float]] = {side: [] for side in jobs}
        for number in range(self.args.repeats):
            for side in list(jobs):
                try:
                    reply = combination.workers[side].call("time", jobs[side], first=number == 0)
                    seconds[side].append(reply["seconds"])
                except WorkerError as error:
                    self.failed.append(f"{label(jobs.pop(side))}: {error}")
        medians = {}
        for side, job in jobs.items():
            found = combination.workers[side].call("finish", job, keep=self.args.kernels)
            medians[side] = self.keep(side, job, seconds[side], found, list(jobs))
        if len(medians) == 2:
            print(f"    {medians[THEIRS] / medians[OURS]:.2f} times as fast as the original")
        for side in jobs if self.args.kernels else ():
            record = partial(self.record_kernels, combination, side, jobs[side])
            self.guarded(f"kernels of {label(jobs[side])}, {side}", record)

    def record_kernels(self, where: Combination, side: str, job: Job) -> None:
        """Record the kernels of a step, and write a line."""
        note = where.workers[side].call("kernels", job, gpus=gpu_names(1))["kernels"]
        self.write("kernels", implementation=side, **{key: job[key] for key in ABOUT}, **note)
        print(f"    {side}: {kernel_times.summary(note)}", flush=True)

    def keep(
        self, side: str, job: Job, seconds: List[float], found: Dict[str, Any], order: List[str]
    ) -> float:
        """Write a result's line, and give its median."""
        facts = found.get("facts", {})
        unit = next(kind for works, _, kind in CASES.values() if job["case"] in works)
        if unit == "step":
            steps = facts.get("steps_in_unit", 1)
            seconds = [value / steps for value in seconds]
        times = spread(seconds)
        held = self.held.get((side, label(job)), {})
        more: Dict[str, Any] = {}
        if job["case"] in COMPARED:
            training = job["case"] == "train"
            more["roofline"] = roofline.note(job, training, self.held["rates"], times["median"])
            self.medians[(side, job["case"], job["size"], job["batch"])] = times["median"]
        step = self.medians.get((OURS, "train", job.get("size"), job.get("batch")))
        if job["case"] == "pipeline" and step:
            facts["share_of_step"] = times["median"] / step
        versions = self.held["versions"]
        if side == THEIRS:
            more["original"] = self.held["original"]
            versions = {name: facts.pop(name) for name in ("torch", "cuda")}
        line = {
            "implementation": side,
            **{key: job.get(key) for key in ABOUT},
            "unit": unit,
            "seconds": times,
            "first_seconds": held.get("first_seconds"),
            "units_in_block": held.get("units", 1),
            "order": order,
            "peak_memory": found.get("peak_memory"),
            "resident_memory": found.get("resident_memory"),
            "versions": versions,
            "facts": facts,
            **more,
        }
        self.write("result", **line)
        print(summary(line), flush=True)
        return float(times["median"])

    # Cases of a size, and of the machine ---------------------------------------------------------

    def measure_size(self, name: str, size: str, batch: int) -> None:
        """Measure what does not depend on the batch size."""
        for work in CASES[name][0]:
            job = self.job(work, size, batch if work == "startup" else 1)
            if work == "startup":
                self.measure_startup(job)
            else:
                self.measure_alone(job)

    def measure_alone(self, job: Job) -> None:
        """Measure one job of ours in a process of its own."""
        combination = Combination(job["size"], job["batch"], {OURS: self.ours([job["case"]])})
        try:
            self.warm_up(combination, job)
            self.time_case(combination, job["case"])
        finally:
            combination.workers[OURS].close()

    def measure_startup(self, job: Job) -> None:
        """Time from the start of a process to the end of its first training step."""
        seconds = []
        for _ in range(min(3, self.args.repeats) + 1):
            started = time.perf_counter()
            worker = self.ours([job["case"]])
            try:
                worker.call("ask", job, what="first_step")
                seconds.append(time.perf_counter() - started)
            finally:
                worker.close()
        # What the first one compiled is on disk for the others.
        self.keep(OURS, job, seconds[1:], {"facts": {"first_start": seconds[0]}}, [OURS])

    def measure_once(self, name: str) -> None:
        """Measure what depends on the machine only."""
        for work in CASES[name][0]:
            if work == "import":
                runs = [import_seconds() for _ in range(min(5, self.args.repeats) + 1)][1:]
                facts = {"first_name_seconds": statistics.median(named for _, named in runs)}
                self.keep(OURS, {"case": work}, [run[0] for run in runs], {"facts": facts}, [OURS])
            elif work == "data.arc":
                self.measure_arc()
            else:
                self.measure_alone(self.job(work, "tiny", 1))

    def measure_arc(self) -> None:
        """Build the bundled ARC-format tasks; benchmarks/arc_build.py does it for real ones."""
        import mlx_trm

        prefix = Path(mlx_trm.__file__).parent / "samples" / "arc_tiny"
        runs = []
        for _ in range(min(3, self.args.repeats)):
            with tempfile.TemporaryDirectory() as name:
                command = arc_build.our_command(
                    str(prefix), 50, ["training", "evaluation"], "evaluation", Path(name, "built")
                )
                runs.append(arc_build.timed(command))
        found = {
            "resident_memory": int(max(run.memory for run in runs) * (1 << 20)),
            "facts": {"tasks": 36, "augmentations": 50, "whole_command": True},
        }
        self.keep(OURS, {"case": "data.arc"}, [run.seconds for run in runs], found, [OURS])


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the suite; gives the exit code."""
    with console_messages(), sigterm_as_ctrl_c():
        try:
            args = arguments(__doc__).parse_args(argv)
            return Suite(args).go()
        except (Exception, KeyboardInterrupt) as error:  # pylint: disable=broad-exception-caught
            return report_error(error)


if __name__ == "__main__":
    sys.exit(main())
