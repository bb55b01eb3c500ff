"""Where built data, fetched data and compiled kernels are kept between runs."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder for what can be made again: ``MLX_TRM_CACHE``, or the platform's place."""
    chosen = os.environ.get("MLX_TRM_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    home = Path(os.path.expanduser("~"))
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "mlx_trm"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "mlx_trm"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "mlx_trm"
