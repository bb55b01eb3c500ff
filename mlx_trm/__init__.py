"""Tiny Recursive Models on Apple's MLX.

Build and run a model, train it, evaluate it, watch its answer evolve; README.md has an example of
each. The paper is "Less is More: Recursive Reasoning with Tiny Networks" (arXiv 2510.04871).
"""

import importlib
from typing import TYPE_CHECKING, Any, List

from mlx_trm.system.backend import check_platform

# An import loads MLX; all else, the public names and their modules, comes when the first of them is
# asked for. So a command loads what it needs, and no script waits for what it does not use.
if TYPE_CHECKING:  # whoever checks types sees the names, and that there are no others
    # pylint: disable=wildcard-import, unused-wildcard-import
    from mlx_trm.public import *  # noqa: F401, F403
else:
    from mlx_trm.version import __version__  # noqa: F401

    def __getattr__(name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # what tools ask every module for
            raise AttributeError(f"module 'mlx_trm' has no attribute {name!r}")
        public = importlib.import_module("mlx_trm.public")
        for each in ("__all__", *public.__all__):
            globals().setdefault(each, getattr(public, each))  # what a script has put there stays
        if name not in globals():
            raise AttributeError(f"module 'mlx_trm' has no attribute {name!r}")
        return globals()[name]

    def __dir__() -> List[str]:
        __getattr__("__all__")
        return sorted(set(globals()) - {"Any", "List", "TYPE_CHECKING", "importlib"})


check_platform()
