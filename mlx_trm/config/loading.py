"""How a configuration is found, put together with its overrides, checked and saved.

Defaults come first, then the YAML file, then overrides such as ``train.lr=3e-4``. Everything is
checked before anything runs, and every problem is reported in one go.

Reference: ``PretrainConfig`` in pretrain.py, config/cfg_pretrain.yaml.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from mlx_trm.config.assembly import Layout
from mlx_trm.config.checks import section_fields
from mlx_trm.config.plugins import FOLDER as PLUGINS
from mlx_trm.config.plugins import checkpoint_plugins, import_plugins
from mlx_trm.config.registry import MODELS, TASKS
from mlx_trm.config.sections import (
    CheckpointConfig,
    EvalConfig,
    ExperimentConfig,
    InitConfig,
    ModelConfig,
    TaskConfig,
    TrainConfig,
)
from mlx_trm.errors import ConfigError, did_you_mean
from mlx_trm.system.bounded import read_bytes
from mlx_trm.system.files import write_text

# Bytes of a configuration; one that names every setting has 5,000.
_MOST_BYTES = 1 << 20
PACKAGED = Path(__file__).resolve().parent / "presets"


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
    source: Union[str, "os.PathLike[str]"],
    overrides: Sequence[str] = (),
    allow_plugins: bool = False,
    folder: Optional[Path] = None,
) -> ExperimentConfig:
    """Load a configuration from a YAML file.

    Args:
        source: a path, or the name of a packaged configuration; a path that exists wins.
        overrides: such as ``train.lr=3e-4``; the last one for a key counts.
        allow_plugins: whether a file in a run or checkpoint folder may name code that is run. What
            any other file names, or an override, is the user's own and always imported.
        folder: of the run, checkpoint or pack that the file came with, wherever it lies now; None:
            the run or checkpoint folder in which it lies, if it does.

    Returns:
        The resolved configuration.

    Raises:
        ConfigError: with every problem, one line each.
    """
    from mlx_trm.config.strict_yaml import parse_yaml

    where = os.fspath(source)
    path = _find(where)
    try:
        values, duplicates = parse_yaml(read_bytes(path, _MOST_BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: is not UTF-8 text (byte {error.start})") from error
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if values is None:
        raise ConfigError(f"{where}: is empty; it needs at least task.name and model.name")
    folder = folder or _run_of(path)
    importer = import_plugins if folder is None else checkpoint_plugins(folder, allow_plugins)
    config: ExperimentConfig = LAYOUT.resolve(values, where, overrides, duplicates, importer)
    origin = path.absolute().parent.name if path.name == "config.yaml" else path.stem
    return dataclasses.replace(config, origin=origin)


def config_from_dict(
    values: Mapping[str, Any],
    where: str = "configuration",
    overrides: Sequence[str] = (),
    folder: Optional[Path] = None,
) -> ExperimentConfig:
    """Build a configuration from nested dicts, checked as strictly as a file.

    Args:
        values: sections and top-level settings.
        where: what messages call it.
        overrides: such as ``train.lr=3e-4``.
        folder: of the run or checkpoint that the values come from; plugins that they name are not
            imported then, they have been when its configuration was loaded.

    Raises:
        ConfigError: with every problem, one line each.
    """
    importer = import_plugins if folder is None else checkpoint_plugins(folder, allow=False)
    config: ExperimentConfig = LAYOUT.resolve(values, where, overrides, importer=importer)
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


def flat_settings(values: Mapping[str, Any], before: str = "") -> Dict[str, Any]:
    """Turn nested dicts of settings into one, by dotted names.

    Args:
        values: of :func:`config_to_dict`.
        before: put before each name.
    """
    flat: Dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flat_settings(value, f"{before}{name}."))
        else:
            flat[before + name] = value
    return flat


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


def _run_of(path: Path) -> Optional[Path]:
    """Give the run or checkpoint folder that a configuration file lies in; None: in neither.

    What lies there may be somebody else's: it came with weights.
    """
    folder = Path(os.path.realpath(path)).parent
    signs = ("state.json", f"{PLUGINS}/index.json")
    if any((folder / sign).exists() for sign in signs) or any(folder.glob("step_*/state.json")):
        return folder
    return None


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
