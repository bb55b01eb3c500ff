"""The sizes that are measured: packaged configurations, cut to what a measurement needs."""

from dataclasses import asdict
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from mlx_trm.config.loading import load_config
from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.errors import ConfigError
from mlx_trm.tasks import build_task


class Size(NamedTuple):
    """One size.

    Attributes:
        config: a packaged configuration.
        overrides: settings of it.
        cpu, gpu: batch sizes where none is asked for.
        about: one line.
    """

    config: str
    overrides: List[str]
    cpu: int
    gpu: int
    about: str


# 81 cells and 7 learned positions, as the recipes of minutes have them.
REGISTERS = ["model.register_tokens=7", "model.puzzle_emb_ndim=0", "model.puzzle_emb_len=0"]

SIZES: Dict[str, Size] = {
    # The original's SwiGLU knows no other multiple than 256.
    "tiny": Size(
        "sudoku_tiny.yaml",
        ["model.swiglu_multiple=256", "task.train_puzzles=256", "task.test_puzzles=64"],
        8,
        64,
        "4x4 Sudoku, hidden 32; for tests",
    ),
    "sudoku_mlp": Size(
        "sudoku.yaml", [], 8, 768, "9x9 Sudoku, hidden 512, MLP over the cells, H3 L6"
    ),
    "sudoku_att": Size("sudoku_att.yaml", [], 8, 768, "9x9 Sudoku, hidden 512, attention, H3 L6"),
    "sudoku_registers": Size(
        "sudoku.yaml", REGISTERS, 8, 192, "as sudoku_mlp, 7 registers in place of the puzzle vector"
    ),
    "sudoku_gate": Size(
        "sudoku.yaml",
        ["model.gate_norm=true", *REGISTERS],
        8,
        192,
        "as sudoku_registers with the gate norm",
    ),
    "sudoku_symbols": Size(
        "sudoku_symbols.yaml",
        ["train.curriculum=[]"],
        8,
        192,
        "9x9 Sudoku, the model that does not know the digits' names, H3 L6",
    ),
    "maze_grid": Size(
        "maze_grid.yaml",
        ["train.curriculum=[]", "task.train_puzzles=64", "task.test_puzzles=16"],
        4,
        128,
        "20x20 mazes, the model whose cells see their neighbours, H3 L6",
    ),
    "maze": Size(
        "maze.yaml",
        ["task.train_puzzles=64", "task.test_puzzles=16", "train.epochs=5000"],
        1,
        128,
        "30x30 mazes, hidden 512, attention, H3 L4",
    ),
}


def experiment(job: Dict[str, Any]) -> ExperimentConfig:
    """Give a job's configuration."""
    size = SIZES[job["size"]]
    compiled = "always" if job["compiled"] else "never"
    settings = [
        f"train.batch_size={job['batch']}",
        f"train.compile={compiled}",
        f"model.forward_dtype={job['dtype']}",
        # A checkpoint's size does not limit what is measured here.
        "train.micro_batch_size=null",
    ]
    return load_config(size.config, size.overrides + settings + job.get("overrides", []))


def describe(
    size: str, batch: int, dtype: str, compiled: bool, overrides: Sequence[str] = ()
) -> Dict[str, Any]:
    """Give what both sides need to know: dimensions of the task, model and recipe.

    Args:
        size: of :data:`SIZES`.
        batch: B.
        dtype: of the activations.
        compiled: whether the step is.
        overrides: more settings.
    """
    job: Dict[str, Any] = {"size": size, "batch": batch, "dtype": dtype, "compiled": compiled}
    job["overrides"] = list(overrides)
    return describe_experiment(experiment(job), job)


def describe_experiment(config: ExperimentConfig, job: Dict[str, Any]) -> Dict[str, Any]:
    """Add to a job the dimensions of a configuration's task, its model and recipe."""
    spec = build_task(config.task, config.task_seed).spec
    model = asdict(config.model)
    if model.get("puzzle_emb_ndim", 0) is None:
        model["puzzle_emb_ndim"] = model["hidden_size"]
    train = config.train
    job.update(
        seq_len=spec.seq_len,
        vocab_size=spec.vocab_size,
        num_puzzle_identifiers=spec.num_puzzle_identifiers,
        model=model,
        loss=train.loss,
        recipe={
            "lr": train.lr,
            "lr_warmup_steps": train.lr_warmup_steps,
            "weight_decay": train.weight_decay,
            "betas": [train.beta1, train.beta2],
            "puzzle_emb_lr": train.puzzle_emb_lr,
            "puzzle_emb_weight_decay": train.puzzle_emb_weight_decay,
            "ema_rate": train.ema_rate if train.ema else None,
        },
    )
    return job


# What the original's model and training have, by its own names (which are ours).
THEIRS = {
    "model": "name L_layers H_cycles L_cycles hidden_size expansion num_heads pos_encodings "
    "puzzle_emb_ndim puzzle_emb_len mlp_t halt_max_steps halt_exploration_prob rms_norm_eps "
    "rope_theta no_ACT_continue forward_dtype",
    "train": "batch_size epochs lr lr_min_ratio lr_warmup_steps weight_decay beta1 beta2 "
    "puzzle_emb_lr puzzle_emb_weight_decay loss ema ema_rate log_interval compile "
    "micro_batch_size",
}


def check_original(config: ExperimentConfig, where: str, parts: Sequence[str] = ("model",)) -> None:
    """See that the original could be given this configuration.

    Args:
        config: of a size, or a recipe.
        where: for the message.
        parts: that matter: ``model``, ``train``.

    Raises:
        ConfigError: naming what it does not know.
    """
    if config.model.name != "trm":
        raise ConfigError(f"{where}: the original has no model {config.model.name}; leave it out")
    foreign = []
    for part in parts:
        values = asdict(getattr(config, part))
        usual = asdict(type(getattr(config, part))())
        known = THEIRS[part].split()
        foreign += [
            f"{part}.{name}={value}"
            for name, value in values.items()
            if name not in known and value != usual[name]
        ]
    if foreign:
        raise ConfigError(f"{where}: the original knows no {', '.join(foreign)}")


def default_batch(size: str, device: str) -> int:
    """Give the batch that is measured where none is asked for."""
    return SIZES[size].gpu if device == "gpu" else SIZES[size].cpu


def find(size: str) -> Optional[Size]:
    """Give a size by its name; None where there is none."""
    return SIZES.get(size)
