"""Going on with a run: which checkpoint, with which settings, and what is cleared away first."""

import logging
import os
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Union

from mlx_trm.config.loading import (
    config_from_dict,
    config_to_dict,
    flat_settings,
    load_config,
    save_config,
)
from mlx_trm.config.plugins import import_named, keep_copies
from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.errors import CheckpointError, ConfigError, UnreadableError
from mlx_trm.runs.checkpoint import newest_whole, verify_checkpoint
from mlx_trm.runs.history import free_name, remove_leftovers, restore_replaced, set_links
from mlx_trm.runs.layout import (
    CONFIG,
    METRICS,
    STATE,
    find_checkpoint,
    is_there,
    list_checkpoints,
    step_folders,
)
from mlx_trm.runs.metrics import check_metrics, count_lines, rewind_metrics
from mlx_trm.runs.progress import RunProgress
from mlx_trm.system.files import flush, write_bytes

LOG = logging.getLogger(__name__)

# Settings that a resumed run may change; all others decide its course, or what its log says.
CHANGEABLE = (
    "run_dir",
    "task.data_dir",
    "train.max_steps",
    "train.max_hours",
    "train.lr_schedule",
    "train.micro_batch_size",
    "train.checkpoint_activations",
    "train.memory_limit_gb",
    "train.cache_limit_gb",
    "train.wired_limit_gb",
    "train.report_to",
    "train.compile",
    "train.on_nonfinite",
    "eval.batch_size",
    "eval.memory_limit_gb",
    "eval.patience",
    "checkpoint.every",
    "checkpoint.keep",
)


def resumable_checkpoint(path: Union[str, Path], fall_back: bool = False) -> Path:
    """Find the checkpoint to go on from and check its files.

    Args:
        path: a run folder, whose newest checkpoint is taken, or a checkpoint folder.
        fall_back: where that one is damaged, take the newest whole one of the run.

    Raises:
        CheckpointError: if there is none, or it is damaged; it names the newest whole one.
        UnreadableError: if the machine cannot read one that is there; none is passed over for that.
    """
    try:
        with suppress(OSError):  # a folder that can only be read is read as it is
            restore_replaced(Path(path))
            restore_replaced(Path(path).parent)
        folder = find_checkpoint(path)
        if not re.fullmatch(r"step_\d+", folder.name):  # a link, or the working folder
            folder = folder.resolve()
        state = verify_checkpoint(folder)
        if folder.name != f"step_{state['step']}":
            raise CheckpointError(
                f"{folder}: is the checkpoint of step {state['step']} under another name; only "
                f"step_{state['step']} in a run folder can be resumed"
            )
        return folder
    except UnreadableError:  # the machine's fault, whatever else is there
        raise
    except CheckpointError as error:
        run = Path(path)
        if run.is_dir() and not list_checkpoints(run) and list_checkpoints(run.parent):
            run = run.parent  # a checkpoint folder whose state.json is gone
        elif run.is_dir() and is_there(run / STATE):
            run = run.parent
        whole = newest_whole(run) if run.is_dir() else None
        if whole is None:
            raise
        if fall_back:
            LOG.warning("%s; going on from %s", error, whole)
            return whole
        raise CheckpointError(f"{error}; the newest whole one is {whole}") from error


def resumed_config(
    folder: Path,
    overrides: Sequence[str] = (),
    config: Optional[ExperimentConfig] = None,
    allow_plugins: bool = False,
) -> ExperimentConfig:
    """Give the configuration of a resumed run.

    Args:
        folder: of the checkpoint.
        overrides: settings to change.
        config: a whole configuration to use instead of the run's own.
        allow_plugins: whether the code that the run's own configuration names may run.

    Raises:
        ConfigError: naming each setting that a resumed run has to keep.
    """
    import_named(overrides)
    own = load_config(folder / CONFIG, allow_plugins=allow_plugins, folder=folder)
    before = flat_settings(config_to_dict(own))
    if config is None:
        config = config_from_dict(config_to_dict(own), str(folder.parent), overrides, folder)
    wanted = flat_settings(config_to_dict(config))
    if [os.path.basename(name) for name in own.plugins] == [
        os.path.basename(name) for name in config.plugins
    ]:  # the same ones, seen from another folder
        wanted["plugins"] = before["plugins"]
    own_folder = folder.parent.resolve()
    if config.run_dir is not None and Path(config.run_dir).resolve() != own_folder:
        moved = before["run_dir"] == config.run_dir  # the run was moved or copied since
        if not moved:
            raise ConfigError(
                f"run_dir: a run goes on in its own folder {folder.parent}, not {config.run_dir}"
            )
    changed = sorted(
        key
        for key in set(before) | set(wanted)
        if before.get(key) != wanted.get(key) and key not in CHANGEABLE
    )
    if changed:
        kept = [
            f"{key}: the run has {before.get(key)!r}, not {wanted.get(key)!r}" for key in changed
        ]
        if len(changed) == 1:
            raise ConfigError(
                f"{kept[0]}; a resumed run keeps its settings but {', '.join(CHANGEABLE[1:])}; "
                "--init-from begins another run with its weights"
            )
        raise ConfigError.from_problems(str(folder.parent), kept)
    values: Dict[str, Any] = config_to_dict(config)
    values.update(run_dir=str(folder.parent), plugins=own.plugins)
    config = config_from_dict(values, str(folder.parent), folder=folder)
    return replace(config, origin=own.stem)


def _log_is_kept(run: Path, lines: int) -> bool:
    """Say whether a checkpoint that was put aside holds so many lines of the log already."""
    return any(count_lines(path / METRICS) >= lines > 0 for path in run.glob("aside_step_*"))


def prepare_resumed_run(
    run: Path,
    checkpoint: Path,
    config: ExperimentConfig,
    progress: RunProgress,
    owned: bool = True,
) -> None:
    """Make a run folder look as it did when a checkpoint of it was saved.

    Newer checkpoints, which can only be damaged or left aside on purpose, are renamed, the newest
    with a copy of the log in it. Only then the log's lines of later steps are taken out: they are
    about to be written again. So wherever this is cut off, the log holds at least what each
    checkpoint in place has counted.

    Args:
        run: the run folder.
        checkpoint: that the run goes on from.
        config: written into the folder.
        progress: of the checkpoint. Where there is no log any more, it counts from 0 again.
        owned: the run's lock is held.

    Raises:
        CheckpointError: if the log is shorter than the checkpoint says, or the folder cannot be
            written.
    """
    log, lines = run / METRICS, progress.log["lines"] if progress.log else 0
    there = check_metrics(log, lines)
    if progress.log is not None and lines and not there:
        LOG.warning("%s: there is no log any more, a new one is begun", log)
        progress.log["lines"] = 0
    try:
        remove_leftovers(run, owned)
        last = int(checkpoint.name[len("step_") :])
        newer = [folder for step, folder in step_folders(run) if step > last]
        if newer and there and not _log_is_kept(run, count_lines(log)):
            write_bytes(newer[-1] / METRICS, log.read_bytes())
        for folder in reversed(newer):  # so that the best of those still in place is in place
            aside = free_name(folder)
            LOG.warning("%s: newer than the checkpoint that is resumed, renamed %s", folder, aside)
            os.replace(folder, aside)
        set_links(run, checkpoint.name, progress.best_step)
        flush(run)
        rewind_metrics(log, progress.log["lines"] if progress.log else 0)
        save_config(config, run / CONFIG)
        keep_copies(config.plugins, run)
    except OSError as error:
        raise CheckpointError(
            f"{run}: cannot be written ({error.strerror or error}); the run cannot go on there"
        ) from error
