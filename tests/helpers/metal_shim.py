"""Metal's side of a kernel, by g++: the signature that MLX writes, and a loop over the grid.

MLX writes a kernel's signature around its body (``write_signature`` in metal_kernel.cpp, MLX 0.32);
:func:`signature` writes the same. ``device``, ``constant`` and ``metal::precise`` are given to g++
by a prelude, and float16 and bfloat16 as types that convert by a named conversion only, so that a
body that computes in them does not compile. One call of g++ makes all kernels of a dtype and flag.
"""

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import mlx.core as mx
import numpy as np

from mlx_trm.nn.metal_kernels import DTYPES, KERNELS, Kernel

# MLX's names of dtypes.
NAMES = {mx.float32: "float", mx.float16: "float16_t", mx.bfloat16: "bfloat16_t"}
# What MLX puts behind the arrays where a body names it: all that these kernels need.
ATTRIBUTES = {"thread_position_in_grid": "uint3", "threads_per_grid": "uint3"}
# Inputs of fewer numbers are put into another address space.
SMALL = 8

PRELUDE = """
#include <cmath>
#include <cstdint>
#include <cstring>
#define device
#define constant
typedef uint32_t uint;
struct uint3 { uint x, y, z; };
namespace metal { namespace precise {
inline float exp(float x) { return ::expf(x); }
inline float rsqrt(float x) { return 1.0f / ::sqrtf(x); }
} }
// A float of 8 or 5 bits of exponent, rounded to the nearest, ties to even.
template <int EXPONENT, int MANTISSA> struct Narrow {
  uint16_t bits;
  Narrow() = default;
  explicit Narrow(float x) {
    uint32_t whole;
    std::memcpy(&whole, &x, 4);
    const uint32_t sign = (whole >> 16) & 0x8000u;
    const int least = 2 - (1 << (EXPONENT - 1)) - MANTISSA;  // exponent of the smallest number
    const uint32_t infinity = ((1u << EXPONENT) - 1) << MANTISSA;
    if (x != x) { bits = uint16_t(sign | infinity | (1u << (MANTISSA - 1))); return; }
    const double size = std::fabs((double)x);
    int exponent = 0;
    std::frexp(size, &exponent);
    exponent = exponent - 1 - MANTISSA;  // of the last bit
    if (exponent < least || size == 0) exponent = least;
    const double units = std::nearbyint(std::ldexp(size, -exponent));
    const double rounded = std::ldexp(units, exponent);
    const double limit = std::ldexp(1.0, 1 << (EXPONENT - 1));
    if (!(rounded < limit)) { bits = uint16_t(sign | infinity); return; }
    uint32_t found = uint32_t(units);
    if (exponent > least) found += uint32_t(exponent - least) << MANTISSA;
    bits = uint16_t(sign | found);
  }
  explicit operator float() const {
    const int least = 2 - (1 << (EXPONENT - 1)) - MANTISSA;
    const uint32_t fields = bits & 0x7fffu;
    const int exponent = int(fields >> MANTISSA);
    const uint32_t mantissa = fields & ((1u << MANTISSA) - 1);
    double size;
    if (exponent == (1 << EXPONENT) - 1) size = mantissa ? NAN : INFINITY;
    else if (exponent == 0) size = std::ldexp((double)mantissa, least);
    else size = std::ldexp((double)(mantissa + (1u << MANTISSA)), least + exponent - 1);
    return (float)(bits & 0x8000u ? -size : size);
  }
};
typedef Narrow<5, 10> float16_t;
typedef Narrow<8, 7> bfloat16_t;
"""


def signature(
    kernel: Kernel, inputs: Sequence[Tuple[str, int, int]], outputs: Sequence[str]
) -> List[Tuple[str, str]]:
    """Give a kernel's parameters as MLX writes them: what stands before ``[[...]]``, and in it.

    Args:
        kernel: with names of arrays, and a body.
        inputs: of each the dtype's name, the number of axes and of numbers.
        outputs: of each the dtype's name.
    """
    found: List[str] = []
    for name, (dtype, axes, size) in zip(kernel.inputs, inputs):
        place = "constant" if size < SMALL else "device"
        found.append(f"const {place} {dtype}{'*' if axes else '&'} {name}")
        if axes:
            more = {"shape": "int*", "strides": "int64_t*", "ndim": "int&"}
            for what, kind in more.items():
                if f"{name}_{what}" in kernel.body:
                    found.append(f"const constant {kind} {name}_{what}")
    found += [f"device {dtype}* {name}" for name, dtype in zip(kernel.outputs, outputs)]
    parameters = [(text, f"buffer({place})") for place, text in enumerate(found)]
    parameters += [(f"{k} {n}", n) for n, k in ATTRIBUTES.items() if n in kernel.body]
    return parameters


def write_kernel(kernel: Kernel, number: int) -> str:
    """Give a kernel's C++ and, for each dtype and flag, a function that loops it over a grid."""
    inputs = ["float" if name == "eps" else "T" for name in kernel.inputs]
    # In these kernels an array is (B, T, D), or eps, of one number.
    described = [
        (d, 1 if n == "eps" else 3, 1 if n == "eps" else 99) for n, d in zip(kernel.inputs, inputs)
    ]
    parameters = signature(kernel, described, ["T"] * len(kernel.outputs))
    written = ",\n".join(f"  {text} [[{attribute}]]" for text, attribute in parameters)
    template = ", ".join(["typename T", *(f"bool {flag}" for flag in kernel.flags)])
    text = f"template <{template}>\nvoid {kernel.name}(\n{written}) {{{kernel.body}\n}}\n"
    for place, (dtype, flags) in enumerate(_variants(kernel)):
        words = [NAMES[dtype], *(str(flag).lower() for flag in flags)]
        passed = []
        for buffer, (parameter, attribute) in enumerate(parameters):
            kind, name = parameter.rsplit(" ", 1)
            if not attribute.startswith("buffer"):
                passed.append("at" if name == "thread_position_in_grid" else "grid")
                continue
            kind = kind.replace("T*", f"{NAMES[dtype]}*")
            assert kind.endswith("*"), parameter
            passed.append(f"({kind})buffers[{buffer}]")
        text += f"""extern "C" void run_{number}_{place}(void** buffers, const uint* sizes) {{
  const uint3 grid = {{sizes[0], sizes[1], sizes[2]}};
  for (uint z = 0; z < grid.z; ++z) for (uint y = 0; y < grid.y; ++y)
    for (uint x = 0; x < grid.x; ++x) {{
      const uint3 at = {{x, y, z}};
      {kernel.name}<{', '.join(words)}>({', '.join(passed)});
    }}
}}
"""
    return text


def _variants(kernel: Kernel) -> List[Tuple[Any, Tuple[bool, ...]]]:
    flags = list(itertools.product((False, True), repeat=len(kernel.flags)))
    return list(itertools.product(DTYPES, flags))


def compiler() -> Optional[str]:
    """Give g++, where it is there."""
    return shutil.which("g++")


class Shim:
    """Runs kernels by g++; called as :func:`mlx_trm.nn.metal_kernels.launch` is."""

    def __init__(self, folder: Path, kernels: Sequence[Kernel] = KERNELS) -> None:
        source, library = folder / "kernels.cpp", folder / "kernels.so"
        text = "".join(write_kernel(kernel, number) for number, kernel in enumerate(kernels))
        source.write_text(PRELUDE + text, encoding="utf-8")
        # A product and a sum stay two roundings, as in MLX's operations one after the other.
        options = ["-std=c++17", "-O0", "-ffp-contract=off", "-fPIC", "-shared"]
        options += ["-Wall", "-Werror", "-Wno-attributes"]
        words = [compiler() or "g++", *options, str(source), "-o", str(library)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ValueError(done.stderr)
        self._library = ctypes.CDLL(str(library))
        self._numbers = {kernel.name: number for number, kernel in enumerate(kernels)}
        self.calls: Dict[str, int] = {}

    def __call__(
        self,
        kernel: Kernel,
        arrays: List[mx.array],
        shapes: Sequence[Tuple[int, ...]],
        grid: Tuple[int, int, int],
        together: int,
        flags: Sequence[bool] = (),
    ) -> List[mx.array]:
        """Run a kernel on arrays that can be evaluated, which mx.compile's are not."""
        assert 0 < together <= 1024 and len(flags) == len(kernel.flags)
        self.calls[kernel.name] = self.calls.get(kernel.name, 0) + 1
        dtype = arrays[0].dtype
        kinds = [(NAMES[array.dtype], array.ndim, array.size) for array in arrays]
        parameters = signature(kernel, kinds, [NAMES[dtype]] * len(shapes))
        kept: Dict[str, Any] = {}
        for name, array in zip(kernel.inputs, arrays):
            kept[name] = bits_of(array)
            kept[f"{name}_shape"] = np.array(array.shape, np.int32)
        for name, shape in zip(kernel.outputs, shapes):
            kept[name] = np.full(shape, 0xAB, np.uint32 if dtype == mx.float32 else np.uint16)
        names = [text.rsplit(" ", 1)[1] for text, place in parameters if place[:6] == "buffer"]
        buffers = (ctypes.c_void_p * len(names))(*(kept[name].ctypes.data for name in names))
        variant = _variants(kernel).index((dtype, tuple(map(bool, flags))))
        function = getattr(self._library, f"run_{self._numbers[kernel.name]}_{variant}")
        function(buffers, (ctypes.c_uint * 3)(*grid))
        return [mx.array(kept[name]).view(dtype) for name in kernel.outputs]


def bits_of(array: mx.array) -> Any:
    """Give an array's bits as NumPy's, contiguous: it has no bfloat16."""
    whole = mx.contiguous(array)
    return np.array(whole.view(mx.uint32 if array.dtype == mx.float32 else mx.uint16))
