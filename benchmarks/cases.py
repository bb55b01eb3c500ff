"""The measured work of mlx_trm, through its public API: one function a case.

A case takes a job (benchmarks/sizes.py) and gives the work to be timed (benchmarks/protocol.py).
"""

import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import mlx.core as mx
import numpy as np
from protocol import Job, Work, random_puzzles
from sizes import experiment

import mlx_trm as trm
from mlx_trm.datasets.reading import SetArrays
from mlx_trm.models.carry import Batch, SentBatch
from mlx_trm.training.prepare import make_one_ahead
from mlx_trm.training.step import TrainStep

STEPS = 1_000_000  # of the schedule; far from its end


def spec_of(job: Job) -> trm.TaskSpec:
    """Give the task's dimensions."""
    return trm.TaskSpec(
        vocab_size=job["vocab_size"],
        seq_len=job["seq_len"],
        num_puzzle_identifiers=job["num_puzzle_identifiers"],
    )


def build(job: Job) -> Any:
    """Build the job's model."""
    model = trm.build_model(experiment(job).model, spec_of(job), seed=0)
    mx.eval(model.parameters())
    return model


class RandomPuzzles(trm.Task):
    """A test split of random tokens in memory."""

    def __init__(self, job: Job) -> None:
        """Draw B puzzles."""
        super().__init__(experiment(job).task)
        self._spec = spec_of(job)
        arrays = random_puzzles(job, 1)[0]
        index = np.arange(job["batch"] + 1)
        self._set = SetArrays(
            arrays["inputs"], arrays["labels"], arrays["puzzle_identifiers"], index, index
        )

    @property
    def spec(self) -> trm.TaskSpec:
        """Dimensions of the job's task."""
        return self._spec

    def dataset(self, split: str, progress: bool = False) -> trm.PuzzleDataset:
        """Give the split; there is one."""
        del progress
        return trm.PuzzleDataset(Path("random") / split, self._spec, {"all": self._set})


# Training and evaluation -------------------------------------------------------------------------


def train(job: Job) -> Work:
    """Take supervision steps with everything that trains: gradients, AdamATan2, SignSGD, EMA.

    As in the trainer the next batch's arrays go to the device while a step is computed.
    """
    config = experiment(job)
    stepper = TrainStep(config, build(job), STEPS)
    batches = random_puzzles(job, 4)

    def run(count: int) -> None:
        drawn = (batches[number % len(batches)] for number in range(count))
        ready = (SentBatch.send(*(arrays[name] for name in Batch._fields)) for arrays in drawn)
        for sent in make_one_ahead(ready):
            metrics = stepper(sent.batch())
        mx.eval(metrics)
        mx.synchronize()

    return Work(run)


def evaluate(job: Job) -> Work:
    """Evaluate a batch of puzzles with the Evaluator: halt_max_steps steps and the metrics."""
    model = build(job)
    evaluator = trm.Evaluator(model, experiment(job), RandomPuzzles(job))
    steps = job.get("eval_steps") or model.config.halt_max_steps

    def run(count: int) -> None:
        for _ in range(count):
            evaluator.run("test", steps=steps)

    return Work(run, lambda: {"steps_in_unit": steps})


class Waiting:
    """Counts the time that MLX's waiting functions take, inside a ``with`` block.

    Attributes:
        seconds: spent in ``mx.eval``, ``mx.async_eval`` and ``mx.synchronize``.
    """

    NAMES = ("eval", "async_eval", "synchronize")

    def __init__(self) -> None:
        """Begin at nothing."""
        self.seconds = 0.0
        self._plain: Dict[str, Callable] = {}

    def __enter__(self) -> "Waiting":
        """Put clocks around the functions."""
        for name in self.NAMES:
            self._plain[name] = getattr(mx, name)
            setattr(mx, name, self._timed(self._plain[name]))
        return self

    def __exit__(self, *_: Any) -> None:
        """Take the clocks away."""
        for name, function in self._plain.items():
            setattr(mx, name, function)

    def _timed(self, function: Callable) -> Callable:
        def timed(*args: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


def overhead(job: Job) -> Work:
    """Training again, with the time apart in which Python does not wait for MLX.

    Two counts: what is outside MLX's waiting functions, and the processor time of the main thread.
    Both hold more than Python's share (reading a value waits too; a thread may spin while it
    waits), so the smaller one is given.
    """
    work = train(job)
    total = {"wall": 0.0, "outside": 0.0, "processor": 0.0}

    def run(count: int) -> None:
        wall, processor = time.perf_counter(), time.thread_time()
        with Waiting() as waiting:
            work.run(count)
        wall = time.perf_counter() - wall
        total["wall"] += wall
        total["outside"] += wall - waiting.seconds
        total["processor"] += time.thread_time() - processor

    def facts() -> Dict[str, Any]:
        outside, processor = (total[name] / total["wall"] for name in ("outside", "processor"))
        return {
            "python_share": min(outside, processor),
            "share_outside_waiting": outside,
            "share_of_main_thread": processor,
        }

    def clear() -> None:
        total.update(wall=0.0, outside=0.0, processor=0.0)

    timed = Work(run, facts)
    warm_up = timed.warm_up

    def warmed(runs: int, block_seconds: float) -> List[float]:
        seconds = warm_up(runs, block_seconds)
        clear()  # what was traced and compiled does not count
        return seconds

    timed.warm_up = warmed  # type: ignore[method-assign]
    return timed


# Inference ---------------------------------------------------------------------------------------


def solver_of(job: Job, varied: bool) -> Any:
    """Make a solver, and puzzles as text.

    Args:
        job: ``checkpoint`` names a trained run; without one the weights are random.
        varied: draw the Q head of random weights so that rows halt at different steps.
    """
    config = experiment(job)
    task = trm.build_task(config.task, config.task_seed)
    if job.get("checkpoint"):
        saved = trm.load_checkpoint(job["checkpoint"])
        saved.config.train.compile = config.train.compile
        solver = trm.Solver(saved.model, saved.config)
        task = solver.task
    else:
        model = build(job)
        if varied:
            shape = model.q_head.weight.shape
            model.q_head.weight = mx.random.normal(shape, key=mx.random.key(3)) / shape[1] ** 0.5
            model.q_head.bias = mx.zeros((2,))
        solver = trm.Solver(model, config, task)
    dataset = task.dataset("test")
    return solver, [task.format(dataset.example(i % len(dataset))[0]) for i in range(job["batch"])]


def solve(job: Job) -> Work:
    """Solve one puzzle after another, halt_max_steps steps each: latency."""
    solver, puzzles = solver_of({**job, "batch": 8}, varied=False)

    def run(count: int) -> None:
        for number in range(count):
            solver.solve(puzzles[number % len(puzzles)])

    return Work(run, lambda: {"steps_in_unit": solver.model.config.halt_max_steps})


def adaptive(job: Job) -> Work:
    """Solve a batch; rows end where the model halts, and the work ends with the last row."""
    return _solve_many(job, True)


def all_steps(job: Job) -> Work:
    """Solve the same batch with all steps, for comparison with :func:`adaptive`."""
    return _solve_many(job, False)


def _solve_many(job: Job, stop: bool) -> Work:
    solver, puzzles = solver_of(job, varied=True)
    steps: List[int] = []

    def run(count: int) -> None:
        for _ in range(count):
            found = solver.solve_many(puzzles, batch_size=len(puzzles), stop_when_halted=stop)
            steps[:] = [step.step for step in found]

    def facts() -> Dict[str, Any]:
        weights = "trained" if job.get("checkpoint") else "random, its Q head drawn to halt rows"
        return {"mean_steps": float(np.mean(steps)), "last_step": max(steps), "weights": weights}

    return Work(run, facts)
