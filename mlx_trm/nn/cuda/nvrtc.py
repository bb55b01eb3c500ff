"""Compiles the kernels of this folder with NVRTC, the compiler that MLX's CUDA backend brings.

``mx.fast.cuda_kernel`` would compile them in every process anew, with headers that take seconds;
here a kernel is compiled once a machine and kept in the cache folder.
"""

import ctypes
import hashlib
import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Mapping, Optional, Tuple, Union

from mlx_trm.system.files import cache_folder, write_bytes

LOG = logging.getLogger(__name__)
_FOLDER = Path(__file__).parent
# Constants that are compiled in, by name, in order.
Defines = Tuple[Tuple[str, Union[int, str]], ...]


class NvrtcError(RuntimeError):
    """A kernel does not compile; the message is the compiler's."""


@lru_cache(maxsize=1)
def library() -> Optional[Any]:
    """Load NVRTC, which is in the process already where MLX runs on CUDA; None without it."""
    loaded = getattr(os, "RTLD_NOLOAD", 0) | getattr(os, "RTLD_NOW", 0)
    for mode in (loaded, ctypes.DEFAULT_MODE):  # first the one that MLX has loaded
        for version in (13, 12):
            try:
                return ctypes.CDLL(f"libnvrtc.so.{version}", mode=mode)
            except OSError:
                continue
    return None


def _source(name: str, defines: Defines) -> str:
    path = _FOLDER / name
    folders = dict.fromkeys((_FOLDER, path.parent))  # one where it is in this folder itself
    headers = [header for folder in folders for header in sorted(folder.glob("*.cuh"))]
    parts = [f"#define {key} {value}\n" for key, value in defines]
    return "".join(parts + [file.read_text(encoding="utf-8") for file in [*headers, path]])


def _compile(nvrtc: Any, source: bytes, architecture: str) -> bytes:
    def check(status: int, what: str) -> None:
        if status != 0:
            raise NvrtcError(f"{what} failed with status {status}")

    program = ctypes.c_void_p()
    check(
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernel.cu", 0, None, None),
        "nvrtcCreateProgram",
    )
    try:
        options = (ctypes.c_char_p * 1)(f"--gpu-architecture={architecture}".encode())
        status = nvrtc.nvrtcCompileProgram(program, 1, options)
        size = ctypes.c_size_t()
        if status != 0:
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value + 1)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise NvrtcError(log.value.decode("utf-8", "replace"))
        check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)), "nvrtcGetCUBINSize")
        code = ctypes.create_string_buffer(size.value)
        check(nvrtc.nvrtcGetCUBIN(program, code), "nvrtcGetCUBIN")
        return code.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


@lru_cache(maxsize=None)
def _binary(name: str, architecture: str, defines: Defines) -> bytes:
    source = _source(name, defines).encode()
    nvrtc = library()
    if nvrtc is None:
        raise NvrtcError("NVRTC is not installed")
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    version = f"{architecture} {major.value}.{minor.value} ".encode()
    digest = hashlib.sha256(version + source).hexdigest()[:20]
    path = cache_folder() / "cuda" / f"{Path(name).stem}-{architecture}-{digest}.cubin"
    try:
        kept = path.read_bytes()
        if kept[-32:] == hashlib.sha256(kept[:-32]).digest():
            return kept[:-32]
    except OSError:
        pass
    code = _compile(nvrtc, source, architecture)
    try:  # a folder that cannot be written costs the next process a second, no more
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, code + hashlib.sha256(code).digest())
    except OSError:
        pass
    return code


def binary(name: str, architecture: str, defines: Mapping[str, Union[int, str]]) -> bytes:
    """Give the machine code of a file of kernels.

    Args:
        name: of the file in this folder.
        architecture: for example ``sm_90``.
        defines: constants that are compiled in.

    Raises:
        NvrtcError: if it does not compile.
    """
    return _binary(name, architecture, tuple(sorted(defines.items())))


@lru_cache(maxsize=None)
def compiles(name: str, architecture: str, defines: Defines) -> bool:
    """Whether a file of kernels compiles; if not, that is said once, and plain operations are used.

    Args:
        name: of the file in this folder.
        architecture: for example ``sm_90a``.
        defines: constants that are compiled in, by name.
    """
    try:
        binary(name, architecture, dict(defines))
    except NvrtcError as error:
        LOG.warning("%s for %s does not compile, it is done without: %s", name, architecture, error)
        return False
    return True
