"""What a run is asked to do: settings, their checks, presets; neither MLX nor NumPy."""

from mlx_trm.config.loading import (
    InitConfig,
    TrainConfig,
    config_from_dict,
    config_to_dict,
    dump_config,
    load_config,
    packaged_configs,
    save_config,
    validate_config,
)
from mlx_trm.config.sections import (
    CheckpointConfig,
    EvalConfig,
    ExperimentConfig,
    ModelConfig,
    TaskConfig,
    TaskSpec,
)

__all__ = [
    "CheckpointConfig",
    "EvalConfig",
    "ExperimentConfig",
    "InitConfig",
    "ModelConfig",
    "TaskConfig",
    "TaskSpec",
    "TrainConfig",
    "config_from_dict",
    "config_to_dict",
    "dump_config",
    "load_config",
    "packaged_configs",
    "save_config",
    "validate_config",
]
