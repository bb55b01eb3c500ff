"""The measured work around the model: loading, building data, the input pipeline."""

import shutil
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from cases import build
from protocol import Job, Work
from sizes import experiment

import mlx_trm as trm
from mlx_trm.tasks.maze.generator import generate_sets


def load_model(job: Job) -> Work:
    """Build a model from its configuration, random weights drawn."""

    def run(count: int) -> None:
        for _ in range(count):
            build(job)

    return Work(run)


def load_checkpoint(job: Job) -> Work:
    """Read a checkpoint of weights from disk, its checksums checked."""
    folder = Path(tempfile.mkdtemp(prefix="mlx-trm-benchmark-"))
    path = trm.save_checkpoint(folder, build(job), experiment(job), 0)
    size = sum(file.stat().st_size for file in path.iterdir())

    def run(count: int) -> None:
        for _ in range(count):
            mx.eval(trm.load_checkpoint(path).model.parameters())

    return Work(run, lambda: {"bytes": size}, close=lambda: shutil.rmtree(folder))


def data_sudoku(job: Job) -> Work:
    """Relabel and rearrange 1,000 Sudokus of 9x9 cells, as a training batch is."""
    del job
    config = trm.load_config("sudoku.yaml")
    task = trm.build_task(config.task, 0)
    data = task.dataset("train")
    rows = [data.example(i % len(data)) for i in range(1000)]
    inputs, labels = (np.stack([row[i] for row in rows]) for i in range(2))
    rng = np.random.default_rng(0)

    def run(count: int) -> None:
        for _ in range(count):
            task.augment(inputs, labels, rng)

    return Work(run, lambda: {"puzzles_in_unit": 1000})


def data_build(job: Job) -> Work:
    """Build a Sudoku data set: every bundled puzzle with 10 augmentations, written to disk."""
    del job
    config = trm.load_config("sudoku.yaml", ["task.num_aug=10", "task.augment=none"])
    task = trm.build_task(config.task, 0)
    written = [0]

    def run(count: int) -> None:
        for _ in range(count):
            with tempfile.TemporaryDirectory() as name:
                about = task.build(Path(name) / "built", ("train",))
                written[0] = about["train"]["total_puzzles"]

    return Work(run, lambda: {"puzzles_in_unit": written[0]})


def data_maze(job: Job) -> Work:
    """Generate mazes of 30x30 cells with a path of more than 110 steps."""
    del job
    rng = np.random.default_rng(0)

    def run(count: int) -> None:
        for _ in range(count):
            generate_sets([20], 30, rng)

    return Work(run, lambda: {"puzzles_in_unit": 20})


def pipeline(job: Job) -> Work:
    """Take batches from the trainer's input pipeline: order, augmentation, conversion."""
    config = experiment(job)
    config.train.micro_batch_size = "auto"  # no step is taken
    # Enough puzzles for a batch whatever its size: the order goes over many epochs.
    config.eval.interval = None
    trainer = trm.Trainer(config)
    source = iter(())

    def run(count: int) -> None:
        nonlocal source
        for _ in range(count):
            batch = next(source, None)
            if batch is None:
                source = iter(trainer.run.batches(1, 0))
                batch = next(source)
            mx.eval(*batch[0])

    return Work(run, least=8)
