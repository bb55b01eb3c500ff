"""``diagnose --try``: try this machine for some minutes, and write a file to send in.

Every check runs in a process of its own, because a GPU that runs out of memory or hangs may end
the process that uses it. What a check finds is JSON; the last line of a check that ends badly is
kept in place of it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import mlx.core as mx

from mlx_trm.cli import tables as display
from mlx_trm.cli.arguments import save_json
from mlx_trm.cli.running import DONE, NO
from mlx_trm.config.loading import load_config
from mlx_trm.config.sections import TaskSpec
from mlx_trm.errors import ConfigError
from mlx_trm.inference.packaged import load_pretrained
from mlx_trm.inference.solver import Solver
from mlx_trm.models import RecursiveModel, build_model, named_arrays
from mlx_trm.models.carry import random_batch
from mlx_trm.models.losses import act_loss
from mlx_trm.models.trm import TRMConfig
from mlx_trm.models.trm_symbols import TRMSymbolsConfig
from mlx_trm.nn import metal_kernels
from mlx_trm.system.device import on_gpu, on_metal
from mlx_trm.system.memory import GIB, device_memory
from mlx_trm.system.report import device_report
from mlx_trm.training.step import TrainStep
from mlx_trm.training.trainer import Trainer
from mlx_trm.upstream.recording import read_recordings
from mlx_trm.upstream.replay import compare

Found = Dict[str, Any]

OPTION = "--output"
RECORDINGS = Path("tests/reference/cuda")
# Recordings of the paper's size take minutes on a slow machine; the small ones show the same.
LARGE_CASES = "full_"
# Norm of the difference of two gradients over the norm of one, that rounding explains: numbers have
# 24, 11 or 8 bits. MLX's CPU is off by up to 2e-6, 8e-3 and 6e-2 in a first step with one H cycle;
# every step and cycle more multiplies that by up to ten, until nothing can be told from it.
GRADIENTS = {"float32": 1e-4, "float16": 4e-2, "bfloat16": 2.5e-1}
ROWS_TIMED = 32
LADDER = (1, 8, 32, 64, 128, 256, 512, 768)
# Share of the memory that the ladder may use: the machine has other work.
SHARE = 0.6
# The first puzzle of README, and one of the hardest known.
PUZZLES = (
    "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4..",
    "98.7..6....7.9..8......5.7.47.3....6..9...8......69...34.9...6...2...4......143..",
)


def check_machine(_: argparse.Namespace) -> Found:
    """Report the machine, and whether small products are right on each device."""
    report = device_report()
    wrong = [f"{each['device']} {each['dtype']}" for each in report["matmul"] if not each["right"]]
    gpu = report["devices"]["gpu"] if on_gpu() else {}
    name = gpu.get("device_name") or report["platform"]["processor"]
    says = f"wrong products: {', '.join(wrong)}" if wrong else f"{name}, products right"
    return {"good": not wrong, "says": says, "report": report}


def check_parity(args: argparse.Namespace) -> Found:
    """Replay the small recordings of the original."""
    names = sorted(path.stem for path in args.recordings.glob("*.safetensors"))
    small = [name for name in names if not name.startswith(LARGE_CASES)]  # the others stay unread
    if not small or not (args.recordings / "manifest.json").exists():
        return {"good": None, "says": f"skipped: no recordings in {args.recordings}"}
    missed, count, worst = [], 0, 0.0
    for recording in read_recordings(args.recordings, small):
        for each in compare(recording):
            count += 1
            if each.error is not None and each.tolerance:
                worst = max(worst, each.error / each.tolerance)
            if not each.passed:
                missed.append({"case": each.case, "quantity": each.quantity, "error": each.error})
    says = f"{len(missed)} of {count} quantities missed, largest error/tolerance {worst:.2f}"
    return {"good": not missed, "says": says, "missed": missed, "count": count, "worst": worst}


def check_gradients(args: argparse.Namespace) -> Found:
    """Compare one step's gradients on the device with those of the CPU in float32."""
    del args
    device = mx.default_device()
    found: List[Found] = []
    far: List[str] = []
    for name in MODELS:
        mx.set_default_device(mx.cpu)
        want = _gradient(_build(name, "float32"))
        for dtype, allowed in GRADIENTS.items():
            mx.set_default_device(device)
            have = _gradient(_build(name, dtype))
            error = _distance(have, want)
            found.append({"model": name, "dtype": dtype, "error": error, "allowed": allowed})
            if not error <= allowed:
                far.append(f"{name} in {dtype} is off by {error:.2g}")
    mx.set_default_device(device)
    largest = max(each["error"] for each in found if each["dtype"] == "float32")
    says = "; ".join(far) or f"{len(found)} gradients, in float32 at most {largest:.1e} off"
    return {"good": not far, "says": says, "gradients": found}


def check_training(args: argparse.Namespace) -> Found:
    """Train a tiny model on 4x4 Sudoku, which learns in a minute."""
    del args
    with tempfile.TemporaryDirectory() as folder:
        settings = ["task.test_puzzles=200", f"run_dir={folder}/run"]
        began = time.monotonic()
        report = Trainer(load_config("sudoku_tiny.yaml", settings)).fit()
        seconds = time.monotonic() - began
    solved = report.evaluations[-1][1]["all"]["exact_accuracy"]
    says = f"{report.steps} steps in {seconds:.0f} s, {100 * solved:.0f} % of unseen 4x4 solved"
    return {"good": solved > 0.5, "says": says, "seconds": seconds, "exact_accuracy": solved}


def check_ladder(args: argparse.Namespace) -> Found:
    """Take steps of the paper's Sudoku model at growing batches, until time or memory ends."""
    rows: List[Found] = []
    room, until = SHARE * (device_memory() or 8 * GIB), time.monotonic() + args.seconds
    for batch in LADDER:
        if len(rows) > 1:  # what another row takes follows from the last two
            last, before = rows[-1], rows[-2]
            each = (last["peak"] - before["peak"]) / (last["batch"] - before["batch"])
            if last["peak"] + each * (batch - last["batch"]) > room:
                break
        needed = 8 * rows[-1]["ms"] / 1000 * batch / rows[-1]["batch"] if rows else 0.0
        if time.monotonic() + needed > until:
            break
        rows.append({"batch": batch, **_measure(batch)})
    says = ", ".join(f"batch {each['batch']}: {each['ms']:.0f} ms" for each in rows[-3:])
    return {"good": bool(rows), "says": says, "steps": rows}


def check_solving(args: argparse.Namespace) -> Found:
    """Solve two hard Sudokus with the weights of the package."""
    del args
    checkpoint = load_pretrained("sudoku")
    solver = Solver(checkpoint.model, checkpoint.config)
    began = time.monotonic()
    results = list(solver.search(list(PUZZLES), halt="rules", rollouts=8, steps=32))
    seconds = time.monotonic() - began
    solved = sum(bool(each.accepted) for each in results)
    says = f"{solved} of {len(results)} hard Sudokus in {seconds:.1f} s"
    steps = [each.steps for each in results]
    return {"good": solved == len(results), "says": says, "seconds": seconds, "steps": steps}


def check_kernels(args: argparse.Namespace) -> Found:
    """Compare the Metal kernels with plain operations, and time a step with them and without."""
    del args
    if not on_metal():
        return {"good": None, "says": "skipped: they are for a Mac's GPU"}
    wrong = metal_kernels.find_wrong()
    if wrong is not None:
        return {"good": False, "says": wrong}
    steps = []
    for choice in (False, True, False, True):  # in turn, as the machine may grow warm
        with metal_kernels.use(choice):
            steps.append({"kernels": choice, "batch": ROWS_TIMED, **_measure(ROWS_TIMED)})
    with_, without = (min(e["ms"] for e in steps if e["kernels"] is on) for on in (True, False))
    says = f"right; a step of {ROWS_TIMED} rows in {with_:.0f} ms, without them {without:.0f} ms"
    return {"good": True, "says": says, "steps": steps}


# Name, what does it, and its share of the time.
CHECKS: Dict[str, Tuple[Callable[[argparse.Namespace], Found], float]] = {
    "machine": (check_machine, 0.05),
    "parity": (check_parity, 0.25),
    "gradients": (check_gradients, 0.1),
    "kernels": (check_kernels, 0.15),
    "solving": (check_solving, 0.1),
    "training": (check_training, 0.15),
    "ladder": (check_ladder, 0.2),
}

_CYCLES: Dict[str, Any] = {"H_cycles": 1, "L_cycles": 2}
_SMALL: Dict[str, Any] = {"hidden_size": 64, "num_heads": 1, "puzzle_emb_len": 1, **_CYCLES}
MODELS: Dict[str, Callable[[str], Any]] = {
    "attention": lambda dtype: TRMConfig(forward_dtype=dtype, **_SMALL),
    "mlp": lambda dtype: TRMConfig(mlp_t=True, pos_encodings="none", forward_dtype=dtype, **_SMALL),
    "gate norm": lambda dtype: TRMConfig(
        mlp_t=True, pos_encodings="none", gate_norm=True, forward_dtype=dtype, **_SMALL
    ),
    "symbols": lambda dtype: TRMSymbolsConfig(
        symbol_size=16, token_inner=64, inner=48, forward_dtype=dtype, **_CYCLES
    ),
}


def _build(name: str, dtype: str) -> RecursiveModel:
    return build_model(MODELS[name](dtype), TaskSpec(11, 81), seed=0)


def _gradient(model: RecursiveModel) -> Any:
    """Give the gradient of the first step's loss for a batch of random puzzles."""
    batch = random_batch(model.spec, 4, seed=1)
    carry = model.begin(model.initial_carry(batch), batch)
    rows = model.puzzle_rows(carry)
    model.train()

    def loss(weights: Any) -> Any:
        with model.using(weights):
            left, outputs = model.step(carry, rows)
        return act_loss(outputs, left.current.labels, left.halted, left.steps)[0] / 4

    gradient = mx.grad(loss)(model.trained_weights())
    mx.eval(gradient)
    return gradient


def _distance(have: Any, want: Any) -> float:
    """Give the norm of the difference of two trees over the norm of the second."""
    above, below = mx.array(0.0), mx.array(0.0)
    for (_, one), (_, other) in zip(named_arrays(have), named_arrays(want)):
        above = above + mx.sum(mx.square(one.astype(mx.float32) - other))
        below = below + mx.sum(mx.square(other))
    distance: Any = mx.sqrt(above / below).item()
    return float(distance)


def _measure(batch: int) -> Found:
    """Give a training step's median milliseconds, and the peak memory in bytes."""
    settings = [f"train.batch_size={batch}", "train.micro_batch_size=null"]
    config = load_config("sudoku.yaml", settings)
    model = build_model(config.model, TaskSpec(11, 81), seed=0)
    step, puzzles = TrainStep(config, model, 1_000_000), random_batch(model.spec, batch)
    times = []
    for number in range(6):
        if number == 1:
            mx.reset_peak_memory()
        began = time.monotonic()
        mx.eval(step(puzzles))
        mx.synchronize()
        times.append(time.monotonic() - began)
    return {"ms": 1000 * sorted(times[1:])[2], "first": times[0], "peak": mx.get_peak_memory()}


# The command ------------------------------------------------------------------------------------


def add_selftest(parser: argparse.ArgumentParser) -> None:
    """Declare ``--try`` and what belongs to it."""
    group = parser.add_argument_group("trying the machine")
    group.add_argument(
        "--try",
        dest="trying",
        action="store_true",
        help="parity, gradients, learning, solving and a ladder of batch sizes, about ten minutes",
    )
    group.add_argument(
        "--output",
        type=Path,
        default=Path("mlx_trm_selftest.json"),
        metavar="FILE",
        help="what was found, to attach to an issue (default: mlx_trm_selftest.json)",
    )
    group.add_argument(
        "--minutes", type=float, default=10.0, metavar="M", help="for all checks (default: 10)"
    )
    group.add_argument(
        "--only", action="append", default=[], choices=list(CHECKS), help="this check (repeatable)"
    )
    group.add_argument(
        "--recordings",
        type=Path,
        default=RECORDINGS,
        metavar="DIR",
        help="recordings of the original for parity (default: tests/reference/cuda, in a clone)",
    )
    group.add_argument("--child", choices=list(CHECKS), help=argparse.SUPPRESS)
    group.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)


def try_machine(args: argparse.Namespace) -> int:
    """Run the checks, print a table, write the file; exit code 1 where one went wrong."""
    if args.child is not None:
        save_json(args.output, CHECKS[args.child][0](args), OPTION)
        return DONE
    if not 0 < args.minutes < float("inf"):
        raise ConfigError(f"--minutes {args.minutes:g}: must be more than 0")
    device = "gpu" if on_gpu() else "cpu"
    results: Dict[str, Found] = {"device": {"name": device}, "checks": {}}
    save_json(
        args.output, results, OPTION
    )  # before the minutes, so that a wrong path is known at once
    names = [name for name in CHECKS if not args.only or name in args.only]
    whole = sum(CHECKS[name][1] for name in names)
    for name in names:
        seconds = 60.0 * args.minutes * CHECKS[name][1] / whole
        if not args.quiet:
            print(f"{name} ... (at most {seconds:.0f} s)", file=sys.stderr, flush=True)
        results["checks"][name] = run_check(name, device, seconds, args.recordings)
        save_json(args.output, results, OPTION)
    table = [[name, _state(each), each["says"]] for name, each in results["checks"].items()]
    if not args.quiet:
        print(display.table(table, ("check", "", "on this machine's " + device.upper())))
    states = [each["good"] for each in results["checks"].values()]
    bad, open_ = states.count(False), states.count(None)
    print(f"{len(states)} checks: {bad} went wrong, {open_} not done; {args.output} has everything")
    return NO if bad else DONE


def run_check(name: str, device: str, seconds: float, recordings: Path = RECORDINGS) -> Found:
    """Run a check in a process of its own.

    Args:
        name: of :data:`CHECKS`.
        device: ``cpu`` or ``gpu``.
        seconds: after which it is ended.
        recordings: folder of the original's outputs.

    Returns:
        What it found: ``good``, True, False or None where it was skipped; ``says``, a line; and
        more by its kind.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        command = [sys.executable, "-m", "mlx_trm.diagnose", "--child", name, "--device", device]
        command += ["--output", str(file), "--seconds", str(0.8 * seconds), "-q"]
        command += ["--recordings", str(recordings)]
        found = _failure(command, seconds)
        if found is None:
            found = json.loads(file.read_text(encoding="utf-8"))
    return {**found, "wall_seconds": time.monotonic() - began}


def _failure(command: List[str], seconds: float) -> Optional[Found]:
    """Run a command to its end; give None, or how it failed."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds,
            errors="replace",
            check=False,
            # Float32 products are float32, as in the recordings.
            env={**os.environ, "MLX_ENABLE_TF32": "0"},
        )
    except subprocess.TimeoutExpired:
        says = f"not done after {seconds:.0f} s; a larger --minutes gives it more"
        return {"good": None, "says": says}
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).strip().splitlines()
    last = lines[-1] if lines else "it said nothing"
    return {"good": False, "says": f"ended with code {done.returncode}: {last}"}


def _state(found: Found) -> str:
    return {True: "good", False: "WRONG", None: "-"}[found["good"]]
