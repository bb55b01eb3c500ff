"""A task of one's own in a file: the answer is the row written backwards.

    python examples/05_own_task.py
    python examples/05_own_task.py train.max_steps=20 run_dir=runs/mirror

A task needs a configuration, a ``spec`` and ``groups``; the methods below those two make it
solvable from the command line. A configuration that names this file under ``plugins`` can be
trained, evaluated and solved with by the ordinary commands; a run of it wants ``--allow-plugins``.
"""

import sys
from dataclasses import dataclass, field
from typing import Iterator, List

import numpy as np

import mlx_trm as trm
from mlx_trm.config.loading import config_from_dict


@dataclass
class MirrorConfig(trm.TaskConfig):
    """Settings of the task."""

    name: str = "mirror"
    """Which task."""
    length: int = field(default=12, metadata={"min": 2})
    """S, letters in a row."""
    letters: int = field(default=5, metadata={"min": 2, "max": 26})
    """Different letters."""
    examples: int = field(default=2000, metadata={"min": 1})
    """Training rows; there are a quarter as many to test with."""


@trm.register_task("mirror", MirrorConfig)
class Mirror(trm.Task):
    """Rows of letters; token 0 is padding, 1 is ``a``."""

    @property
    def spec(self) -> trm.TaskSpec:
        """Dimensions of the data."""
        return trm.TaskSpec(vocab_size=self.config.letters + 1, seq_len=self.config.length)

    def groups(self, split: str, rng: np.random.Generator) -> Iterator[List[trm.Puzzle]]:
        """Yield one random row after the other, each a group of its own."""
        count = self.config.examples if split == "train" else max(1, self.config.examples // 4)
        shape = (count, self.config.length)
        rows = rng.integers(1, self.config.letters + 1, shape).astype(np.uint8)
        for row in rows:
            yield [trm.Puzzle(None, row[None], row[None, ::-1])]

    def parse(self, text: str) -> np.ndarray:
        """Read a row of letters."""
        tokens = np.array([ord(letter) - ord("a") + 1 for letter in text], dtype=np.int64)
        if (
            len(tokens) != self.config.length
            or ((tokens < 1) | (tokens > self.config.letters)).any()
        ):
            last = chr(ord("a") + self.config.letters - 1)
            raise trm.DataError(f"{text!r}: expected {self.config.length} letters from a to {last}")
        return tokens.astype(np.uint8)

    def format(self, tokens: np.ndarray) -> str:
        """Write a row of letters; ``?`` stands for padding."""
        return "".join(chr(ord("a") + int(token) - 1) if token else "?" for token in tokens)

    def check(self, inputs: np.ndarray, tokens: np.ndarray) -> bool:
        """Is it the row written backwards?"""
        return bool((np.asarray(tokens) == np.asarray(inputs)[::-1]).all())


def main() -> None:
    """Train for a minute or two and write one row backwards."""
    values = {
        "plugins": [__file__],
        "task": {"name": "mirror"},
        "model": {
            "name": "trm",
            "hidden_size": 32,
            "num_heads": 4,
            "expansion": 2,
            "swiglu_multiple": 16,
            "H_cycles": 2,
            "L_cycles": 2,
            "mlp_t": True,
            "pos_encodings": "none",
            "puzzle_emb_len": 1,
            "halt_max_steps": 2,
        },
        "train": {
            "batch_size": 64,
            "epochs": 10,
            "lr": 3e-3,
            "lr_warmup_steps": 20,
            "weight_decay": 0.1,
            "ema_rate": 0.95,
        },
    }
    config = config_from_dict(values, "05_own_task.py", sys.argv[1:])
    report = trm.Trainer(config).fit(on_eval=print)
    last = trm.Solver.from_checkpoint(report.run_dir).solve("abcdeabcdeab")
    print(f"abcdeabcdeab -> {last.answer} ({'right' if last.correct else 'wrong'})")


if __name__ == "__main__":
    main()
