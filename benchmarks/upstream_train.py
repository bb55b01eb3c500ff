"""Trains the original's model by its recipe, and evaluates it as its pretrain.py does.

    python benchmarks/upstream_train.py CHECKOUT JOB.json [--gpu]

Started by benchmarks/time_to_accuracy.py, with the variables of torchrun where several processes
train together. Model, losses, SignSGD and EMA are the original's own (benchmarks/upstream_worker.py
says what is replaced); batches are drawn from the built data set as its puzzle_dataset.py does: a
new order of the puzzles in each epoch, one of its copies each. An evaluation is of the averaged
weights, all halt_max_steps steps, the whole test set. Process 0 writes a line of JSON for each
log_interval steps and each evaluation, as mlx_trm's metrics.jsonl has them.
"""

# mypy: ignore-errors
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import upstream_worker
from upstream_worker import STATE, Training, facts, replace_missing, synchronize, to_device

IGNORED = -100  # of labels, by the original's losses
FIELDS = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")


class Puzzles:
    """A split of a built data set.

    Attributes:
        arrays: by the names of :data:`FIELDS`.
        about: its dataset.json.
    """

    def __init__(self, folder: Path) -> None:
        """Read it."""
        self.about = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        name = self.about["sets"][0]
        self.arrays = {
            field: np.load(folder / f"{name}__{field}.npy", mmap_mode="r") for field in FIELDS
        }

    def batch(self, rows: np.ndarray, puzzles: np.ndarray, size: int) -> Dict[str, np.ndarray]:
        """Give some rows as a batch of ``size``; those that are missing have no labels."""
        found = {
            "inputs": self.arrays["inputs"][rows],
            "labels": self.arrays["labels"][rows],
            "puzzle_identifiers": self.arrays["puzzle_identifiers"][puzzles],
        }
        found = {name: array.astype(np.int32) for name, array in found.items()}
        ignored = self.about["ignore_label_id"]
        if ignored is not None:
            found["labels"][found["labels"] == ignored] = IGNORED
        blank = {"labels": IGNORED, "inputs": self.about["pad_id"],
                 "puzzle_identifiers": self.about["blank_identifier_id"]}  # fmt: skip
        missing = size - len(rows)
        return {
            name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1),
                         constant_values=blank[name])
            for name, array in found.items()
        }  # fmt: skip

    def training(self, size: int, seed: int, share: slice) -> Iterator[Dict[str, np.ndarray]]:
        """Yield batches without an end.

        Args:
            size: rows of all processes together.
            seed: of the order.
            share: the rows of this process.
        """
        groups, starts = self.arrays["group_indices"], self.arrays["puzzle_indices"]
        rng = np.random.default_rng(seed)
        rows: List[int] = []
        puzzles: List[int] = []
        while True:
            for group in rng.permutation(len(groups) - 1):
                puzzle = rng.integers(groups[group], groups[group + 1])
                puzzles.append(puzzle)
                rows.append(rng.integers(starts[puzzle], starts[puzzle + 1]))
                if len(rows) == size:
                    yield self.batch(
                        np.array(rows[share]), np.array(puzzles[share]), share_size(share)
                    )
                    rows, puzzles = [], []

    def testing(self, size: int, share: slice) -> Iterator[Dict[str, np.ndarray]]:
        """Yield each row once, in batches whose last one is filled up."""
        total = len(self.arrays["inputs"])
        starts = self.arrays["puzzle_indices"]
        for first in range(0, total, size):
            rows = np.arange(first, min(first + size, total))[share]
            puzzles = np.searchsorted(starts, rows, side="right") - 1
            yield self.batch(rows, puzzles, share_size(share))


def share_size(share: slice) -> int:
    """Give the rows of a share."""
    return share.stop - share.start


def learning_factor(step: int, total: int, recipe: Dict[str, Any]) -> float:
    """Give the factor of the learning rates at a step, from 1 on: warm-up, and half a cosine."""
    warm, least = round(recipe["lr_warmup_steps"]), recipe["lr_min_ratio"]
    if step < warm:
        return step / max(1, warm)
    done = (step - warm) / max(1, total - warm)
    return least + max(0.0, (1 - least) * 0.5 * (1.0 + math.cos(math.pi * done)))


class Program:
    """One run."""

    def __init__(self, job: Dict[str, Any]) -> None:
        """Build everything."""
        import torch

        self.rank, self.size = (
            int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1))
        )
        if self.size > 1:
            backend = "nccl" if STATE["device"] == "cuda" else "gloo"
            torch.distributed.init_process_group(backend)
        self.job, self.batch = job, job["batch"]
        each = self.batch // self.size
        self.share = slice(self.rank * each, (self.rank + 1) * each)
        self.train_set, self.test_set = (Puzzles(Path(job["data"], n)) for n in ("train", "test"))
        about = self.train_set.about
        rows = job["epochs"] * about["total_groups"] * about["mean_puzzle_examples"]
        self.total = int(rows / self.batch)
        self.training = Training(job, self.size)
        with torch.no_grad():  # all begin with the weights of the first
            for tensor in [*self.training.plain.parameters(), *self.training.plain.buffers()]:
                if self.size > 1:
                    torch.distributed.broadcast(tensor, src=0)
        if self.training.average is not None:
            self.training.average.register(self.training.model)
        self.seconds, self.steps, self.since = 0.0, 0, time.perf_counter()

    def write(self, line: Dict[str, Any]) -> None:
        """Append a line."""
        if self.rank == 0:
            with open(self.job["metrics"], "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def go(self) -> None:
        """Train, and evaluate on the way and at the end."""
        about = facts(self.job)
        versions = {"torch": about.pop("torch"), "cuda": about.pop("cuda")}
        self.write({"kind": "about", "versions": versions, "facts": about})
        training, job = self.training, self.job
        batches = self.train_set.training(self.batch, job["seed"], self.share)
        training.model.train()
        self.since = time.perf_counter()
        for batch in batches:
            last = training.step + 1 >= self.total
            factor = learning_factor(training.step + 1, self.total, job["recipe"])
            metrics = training.take(to_device(batch), factor)
            now = time.perf_counter()
            self.seconds, self.steps, self.since = (
                self.seconds + now - self.since,
                self.steps + 1,
                now,
            )
            due = training.step % job["eval_interval"] == 0 or last
            if training.step % job["log_interval"] == 0 or due:
                self.report(metrics)
            if due:
                self.evaluate()
                self.since = time.perf_counter()
            if last:
                return

    def report(self, metrics: Dict[str, float]) -> None:
        """Write the line of some steps."""
        line = {"kind": "train", "step": self.training.step, "total": self.total,
                "lm_loss": float(metrics["lm_loss"]) / self.batch,
                "steps_per_second": self.steps / self.seconds,
                "peak_memory": upstream_worker.peak()}  # fmt: skip
        self.write(line)
        self.seconds, self.steps = 0.0, 0

    def evaluate(self) -> None:
        """Evaluate the average, and write the line."""
        import torch

        training, parameters = self.training, self.training.parameters
        kept = [parameter.detach().clone() for parameter in parameters]
        if training.average is not None:
            training.average.ema(training.model)
        training.model.eval()
        totals: Dict[str, float] = {}
        with torch.inference_mode():
            for arrays in self.test_set.testing(self.batch, self.share):
                for name, value in self.evaluate_batch(to_device(arrays)):
                    totals[name] = totals.get(name, 0.0) + value
        training.model.train()
        with torch.no_grad():
            for parameter, before in zip(parameters, kept):
                parameter.copy_(before)
        synchronize()
        count = totals.pop("count")
        means = {name: value / count for name, value in totals.items()}
        line = {"kind": "eval", "step": training.step, "set": "all", "count": count}
        self.write({**line, **means})

    def evaluate_batch(self, batch: Dict[str, Any]) -> List[Tuple[str, float]]:
        """Take steps until every row has halted; gives the metrics, summed over all processes."""
        import torch

        with torch.device(STATE["device"]):
            carry = self.training.plain.initial_carry(batch)
        finished = False
        while not finished:
            carry, _, metrics, _, finished = self.training.model(
                carry=carry, batch=batch, return_keys=[]
            )
        names = sorted(metrics)
        values = torch.stack([metrics[name] for name in names])
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return list(zip(names, (float(value) for value in values.cpu())))


def main() -> None:
    """Train."""
    sys.dont_write_bytecode = True
    # SIGTERM ends it at once, also where it waits for a process that has ended before it: there is
    # nothing to save, and a handler of Python's would not be called in that wait.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    STATE["device"] = "cuda" if "--gpu" in sys.argv else "cpu"
    replace_missing()
    sys.path.insert(1, os.path.abspath(sys.argv[1]))
    Program(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))).go()


if __name__ == "__main__":
    main()
