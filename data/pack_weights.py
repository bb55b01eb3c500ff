"""Puts a run's averaged weights among those that come with the package, in bfloat16.

    python data/pack_weights.py runs/sudoku_tiny --name sudoku-4x4 --card card.md --summary "4x4"

Nothing of the machine goes along: no optimiser, no carry, and no names of files. The card is
Markdown, written by a person who has measured what it says.
"""

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import List, Optional

import mlx.core as mx
from mlx.utils import tree_map

from mlx_trm.inference.packaged import CARD, FOLDER, INDEX
from mlx_trm.models import named_arrays
from mlx_trm.runs.checkpoint import load_checkpoint, save_checkpoint
from mlx_trm.system.files import read_json, write_json

# Settings that name files of the machine on which a run was made.
OF_THE_MACHINE = ("data_dir", "train_file", "test_file")


def main(argv: Optional[List[str]] = None) -> int:
    """Pack the run that the arguments name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="a run folder or a checkpoint folder")
    parser.add_argument("--name", required=True, help="by which the weights will be loaded")
    parser.add_argument("--summary", required=True, help="what they are, in a line")
    parser.add_argument("--card", type=Path, required=True, help="the model card, Markdown")
    parser.add_argument("--default", action="store_true", help="for puzzles that the task reads")
    parser.add_argument("--search", type=json.loads, default={}, help="settings that suit, JSON")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="that holds all weights")
    args = parser.parse_args(argv)
    checkpoint = load_checkpoint(args.run)
    model = checkpoint.model
    model.update(tree_map(lambda array: array.astype(mx.bfloat16), model.parameters()))
    task = checkpoint.config.task
    task = dataclasses.replace(task, **dict.fromkeys(OF_THE_MACHINE))
    init = dataclasses.replace(checkpoint.config.init, run=None)  # a folder of that machine
    config = dataclasses.replace(
        checkpoint.config, task=task, init=init, run_dir=None, origin=args.name
    )
    target = args.folder / args.name
    with tempfile.TemporaryDirectory() as temporary:
        packed = save_checkpoint(temporary, model, config, checkpoint.step)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(packed, target)
    shutil.copyfile(args.card, target / CARD)
    index = read_json(args.folder / INDEX) if (args.folder / INDEX).exists() else {}
    index[args.name] = {
        "task": task.name,
        "summary": args.summary,
        "parameters": sum(array.size for _, array in named_arrays(model.weights())),
        "default": args.default,
        "search": args.search,
    }
    write_json(args.folder / INDEX, index)
    return 0


if __name__ == "__main__":
    sys.exit(main())
