"""Python imports this before anything else where its folder is on PYTHONPATH.

It has MLX, when it is loaded, compute on the device that MLX_TRM_TEST_DEVICE names, as conftest.py
does for the tests themselves: processes that tests start would take a GPU where there is one, and
be compared with what the tests computed on the CPU. MLX has no variable for that.
"""

import importlib.util
import os
import sys


class DeviceChooser:
    """Finds ``mlx.core`` as Python does, and chooses the device when it has been loaded."""

    def __init__(self, device):
        self.device = device

    def find_spec(self, name, path=None, target=None):
        """Give the module's own way to be loaded, with the choice behind it."""
        if name != "mlx.core":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_choose(module):
            load(module)
            module.set_default_device(getattr(module, self.device))

        spec.loader.exec_module = load_and_choose
        return spec


def pass_on():
    """Import the ``sitecustomize`` that this one hides, where there is one."""
    here = os.path.dirname(os.path.abspath(__file__))
    before = list(sys.path)
    sys.path[:] = [entry for entry in before if os.path.abspath(entry or ".") != here]
    mine = sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize  # noqa: F401
    except ImportError:
        pass
    finally:
        sys.path[:] = before
        if mine is not None:
            sys.modules["sitecustomize"] = mine


if os.environ.get("MLX_TRM_TEST_DEVICE") in ("cpu", "gpu"):
    sys.meta_path.insert(0, DeviceChooser(os.environ["MLX_TRM_TEST_DEVICE"]))
pass_on()
