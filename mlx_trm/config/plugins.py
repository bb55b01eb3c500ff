"""Imports the modules that a configuration names under ``plugins``."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Sequence

from mlx_trm.errors import ConfigError


def import_plugins(names: Sequence[str]) -> None:
    """Import each plugin once.

    Args:
        names: names of modules, or paths of ``.py`` files relative to the working directory.

    Raises:
        ConfigError: if one cannot be imported; its cause is the original error.
    """
    for name in names:
        try:
            if name.endswith(".py"):
                _import_file(Path(name))
            else:
                importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if not name.endswith(".py") and (name == missing or name.startswith(missing + ".")):
                raise ConfigError(
                    f"plugins: no module {name!r}; install it, or give the path of its .py file"
                ) from error
            raise ConfigError(f"plugins: {name} needs the module {missing!r}") from error
        except OSError as error:
            raise ConfigError(f"plugins: {name}: {error.strerror or error}") from error
        except Exception as error:  # pylint: disable=broad-exception-caught
            # Whatever somebody's file raises while it is imported is theirs to mend.
            lines = str(error).splitlines() or [""]
            raise ConfigError(f"plugins: {name}: {type(error).__name__}: {lines[0]}") from error


def _import_file(path: Path) -> None:
    """Import a file, unless it is imported already, be it as ``__main__``."""
    path = path.resolve(strict=True)
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and os.path.abspath(file) == str(path):
            return
    import hashlib  # not needed by whoever has no plugins

    digest = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    name = f"mlx_trm_plugin_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
