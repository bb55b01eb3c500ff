"""The configuration of an experiment: its sections, and how they are loaded, checked and saved.

Defaults come first, then the YAML file, then overrides such as ``train.lr=3e-4``. Everything is
checked before anything runs, and every problem is reported in one go.

Reference: ``PretrainConfig`` in pretrain.py, config/cfg_pretrain.yaml.
"""

import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from mlx_trm.config.assembly import Layout
from mlx_trm.config.checks import Section, section_fields, show
from mlx_trm.config.registry import MODELS, TASKS
from mlx_trm.config.sections import InitConfig, TrainConfig
from mlx_trm.errors import ConfigError, did_you_mean

MAX_SEED = 2**32 - 1
MINUTES = re.compile(r"\d+(\.\d+)?min")
PACKAGED = Path(__file__).resolve().parent / "presets"


@dataclass(frozen=True)
class TaskSpec:
    """Dimensions and special tokens of a task's data; a configuration never repeats them."""

    vocab_size: int
    """V, number of tokens."""
    seq_len: int
    """S, cells of a puzzle."""
    num_puzzle_identifiers: int = 1
    """N, rows of the puzzle table."""
    pad_id: int = 0
    """Token of cells that are not part of the puzzle."""
    blank_identifier_id: int = 0
    """Identifier of padding rows and of puzzles without a name."""
    ignore_label_id: Optional[int] = 0
    """Label on disk that means "not scored"; null where every label counts."""


@dataclass
class TaskConfig(Section):
    """Settings that every task has; a task adds its own in a subclass."""

    name: str
    """Which task."""
    data_dir: Optional[Union[str, List[str]]] = None
    """Folder of a built dataset to use as it is, or a list of several (reference: data_paths)."""
    train_file: Optional[str] = None
    """Raw training puzzles, a CSV or text file; what is built from it is cached."""
    test_file: Optional[str] = None
    """Raw test puzzles, a CSV or text file; what is built from it is cached."""
    seed: Optional[int] = field(default=None, metadata={"min": 0, "max": MAX_SEED})
    """Seed of generated or augmented data; unset for the top-level seed."""

    def problems(self) -> List[str]:
        """Check that no file is given that a built folder would hide."""
        if isinstance(self.data_dir, list) and len(set(self.data_dir)) < max(1, len(self.data_dir)):
            return [
                "data_dir: " + ("names a folder twice" if self.data_dir else "is an empty list")
            ]
        files = [name for name in ("train_file", "test_file") if getattr(self, name)]
        if self.data_dir is None or not files:
            return []
        hidden = " and ".join(files)
        return [f"data_dir: is used as it is, so {hidden} would be ignored; give only one"]


@dataclass
class ModelConfig(Section):
    """Settings that every model has; a model adds its own in a subclass."""

    name: str
    """Which model (reference: arch.name)."""


@dataclass
class EvalConfig(Section):
    """When and how much to evaluate."""

    interval: Optional[int] = field(default=None, metadata={"min": 1})
    """Epochs between evaluations, a divisor of train.epochs; unset: once, at the end."""
    batch_size: Optional[int] = field(default=None, metadata={"min": 1})
    """Puzzles evaluated at once; unset for train.batch_size."""
    max_examples: Optional[int] = field(default=None, metadata={"min": 1})
    """Evaluate a seeded sample of so many puzzles; unset for all."""
    steps: Optional[int] = field(default=None, metadata={"min": 1})
    """Supervision steps each puzzle gets; unset for model.halt_max_steps."""
    raw: bool = False
    """Also evaluate the raw weights beside their average; doubles the time."""
    best_metric: str = "exact_accuracy"
    """The metric of the first set that the link best goes by; of a loss the lowest is best."""
    patience: Optional[int] = field(default=None, metadata={"min": 1})
    """Stop after so many evaluations without a better best_metric; unset: never."""


@dataclass
class CheckpointConfig(Section):
    """When to save."""

    every: Optional[Union[int, str]] = None
    """Steps between checkpoints, or minutes as in 10min, besides those at evaluations."""
    keep: int = field(default=2, metadata={"min": 1})
    """Newest checkpoints that stay on disk."""

    def problems(self) -> List[str]:
        """Check that ``every`` is a number of steps or minutes."""
        every = self.every
        if isinstance(every, str):
            if MINUTES.fullmatch(every) and float(every[: -len("min")]) > 0:
                return []
        elif every is None or every > 0:
            return []
        return [f"every: {show(every)} is neither a number of steps nor minutes such as 10min"]


@dataclass
class ExperimentConfig(Section):
    """Everything that decides a run."""

    task: TaskConfig
    """What is learnt."""
    model: ModelConfig
    """By which network."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """With which recipe."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """When it is measured."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When it is saved."""
    init: InitConfig = field(default_factory=InitConfig)
    """With which weights it begins."""
    seed: int = field(default=0, metadata={"min": 0, "max": MAX_SEED})
    """Decides weights, batch order, augmentation and exploration."""
    run_dir: Optional[str] = None
    """Folder for the run's files; unset for runs/ and the configuration's name."""
    plugins: List[str] = field(default_factory=list)
    """Modules or .py files that register tasks and models; imported before the rest is read."""

    def problems(self) -> List[str]:
        """Check what takes more than one section to see."""
        found = []
        interval = self.eval.interval
        if interval is not None and self.train.epochs % interval:
            found.append(
                f"eval.interval: {interval} does not divide train.epochs {self.train.epochs}"
            )
        if self.train.freeze == "weights" and getattr(self.model, "puzzle_emb_ndim", None) == 0:
            found.append("train.freeze: nothing is left to train, model.puzzle_emb_ndim is 0")
        if self.eval.raw and getattr(self.task, "aggregated_voting", False):
            found.append("eval.raw: its votes would be mixed with those of task.aggregated_voting")
        if self.run_dir is not None and not self.run_dir.strip():
            found.append("run_dir: is empty; name a folder or leave it out")
        return found

    @property
    def task_seed(self) -> int:
        """Seed of the data: the task's own, or else the top-level one."""
        return self.seed if self.task.seed is None else self.task.seed

    @property
    def stem(self) -> str:
        """Name for the run's folder: that of the file it was loaded from, or else the task's."""
        return str(self.__dict__.get("_stem") or self.task.name)


LAYOUT = Layout(
    root=ExperimentConfig,
    sections={
        "task": TaskConfig,
        "model": ModelConfig,
        "train": TrainConfig,
        "eval": EvalConfig,
        "checkpoint": CheckpointConfig,
        "init": InitConfig,
    },
    registries={"task": TASKS, "model": MODELS},
    # The reference's names of settings that have another one here.
    renamed={
        "arch": "model.name",
        "checkpoint_path": "run_dir",
        "data_paths": "task.data_dir",
        "eval_interval": "eval.interval",
        "freeze_weights": "train.freeze",
        "global_batch_size": "train.batch_size",
        "load_checkpoint": "init.run",
        "loss_type": "train.loss",
        "run_name": "run_dir",
    },
)


def packaged_configs() -> List[str]:
    """List the names of the configurations that come with the package."""
    return sorted(path.name for path in PACKAGED.glob("*.yaml"))


def load_config(
    source: Union[str, "os.PathLike[str]"], overrides: Sequence[str] = ()
) -> ExperimentConfig:
    """Load a configuration from a YAML file.

    Args:
        source: a path, or the name of a packaged configuration; a path that exists wins.
        overrides: such as ``train.lr=3e-4``; the last one for a key counts.

    Returns:
        The resolved configuration.

    Raises:
        ConfigError: with every problem, one line each.
    """
    from mlx_trm.config.strict_yaml import parse_yaml

    where = os.fspath(source)
    path = _find(where)
    try:
        values, duplicates = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: is not UTF-8 text (byte {error.start})") from error
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if values is None:
        raise ConfigError(f"{where}: is empty; it needs at least task.name and model.name")
    config: ExperimentConfig = LAYOUT.resolve(values, where, overrides, duplicates)
    stem = path.absolute().parent.name if path.name == "config.yaml" else path.stem
    vars(config)["_stem"] = stem
    return config


def config_from_dict(
    values: Mapping[str, Any], where: str = "configuration", overrides: Sequence[str] = ()
) -> ExperimentConfig:
    """Build a configuration from nested dicts, checked as strictly as a file.

    Args:
        values: sections and top-level settings.
        where: what messages call it.
        overrides: such as ``train.lr=3e-4``.

    Raises:
        ConfigError: with every problem, one line each.
    """
    config: ExperimentConfig = LAYOUT.resolve(values, where, overrides)
    return config


def validate_config(config: ExperimentConfig) -> None:
    """Check a configuration that was built in Python, as strictly as one from a file.

    Raises:
        ConfigError: with every problem, one line each.
    """
    LAYOUT.validate(config)


def config_to_dict(config: ExperimentConfig) -> Dict[str, Any]:
    """Turn a configuration into nested dicts of plain values, every field included."""
    return {name: _plain(getattr(config, name)) for name in section_fields(type(config))}


def dump_config(config: ExperimentConfig) -> str:
    """Write a configuration as YAML; loading it gives an equal configuration."""
    from mlx_trm.config.strict_yaml import dump_yaml

    return dump_yaml(config_to_dict(config))


def save_config(config: ExperimentConfig, path: Union[str, "os.PathLike[str]"]) -> None:
    """Write a configuration to a file, which is replaced whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    write_text(path, dump_config(config))


def write_text(path: Union[str, "os.PathLike[str]"], text: str) -> None:
    """Write a text file, which is replaced whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Union[str, "os.PathLike[str]"], content: bytes) -> None:
    """Write a file, which is replaced whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        if temporary.exists():
            temporary.unlink()


def _find(source: str) -> Path:
    """Find a configuration file: a path first, then a packaged name."""
    if os.path.isdir(source):
        raise ConfigError(f"{source}: is a folder; name a YAML file in it")
    if os.path.exists(source):
        return Path(source)
    if source in packaged_configs():
        return PACKAGED / source
    names = packaged_configs()
    suggestion = did_you_mean(os.path.basename(source), names)
    raise ConfigError(
        f"{source or repr('')}: there is no such file{suggestion} (packaged: {', '.join(names)})"
    )


def _plain(value: Any) -> Any:
    """Turn dataclasses and sequences into dicts and lists, subclasses of scalars into scalars."""
    if dataclasses.is_dataclass(value):
        return {name: _plain(getattr(value, name)) for name in section_fields(type(value))}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value
