"""A Mac's GPU, emulated: MLX's CPU takes the branches that Metal takes, with the same fusion.

What is computed, and what mx.compile makes one kernel of, is as on Metal; times are not, and MLX's
own norm and attention are made of several operations on the CPU.
"""

import sys
from contextlib import contextmanager
from typing import Any, Callable, Iterator

import mlx.core as mx
import pytest


@contextmanager
def emulated_metal(lean: bool = True) -> Iterator[None]:
    """Have every loaded module of the package believe that it runs on Metal, in this block.

    Args:
        lean: whether what is written for Metal is used; without, a GPU's plain operations are.
    """
    answers = {"on_gpu": True, "on_cuda": False, "on_metal": lean}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name == "mlx_trm" or name.startswith("mlx_trm."):
                for question, answer in answers.items():
                    if question in vars(module):
                        patch.setattr(module, question, lambda answer=answer: answer)
        yield


def allocated_bytes(function: Callable[..., Any], *arguments: mx.array) -> int:
    """Give the bytes that a call allocates at most at a time, beside its arguments.

    MLX's CPU frees what an operation has read when it has been computed, and allocates ahead of
    that: for a few operations on large arrays this is all that they write together.

    Args:
        function: compiled, so that its second call allocates nothing but arrays.
        arguments: evaluated.
    """
    mx.eval(function(*arguments))
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    results = function(*arguments)
    mx.eval(results)
    peak = mx.get_peak_memory() - before
    del results
    return int(peak)
