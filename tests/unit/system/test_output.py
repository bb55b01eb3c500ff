"""What reaches the terminal: text of files without its control characters, whoever reads it."""

import io
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_trm.cli.running import console_messages, file_messages, report_error
from mlx_trm.cli.tables import table
from mlx_trm.config.loading import load_config
from mlx_trm.errors import (
    ConfigError,
    DataError,
    describe_device_problem,
    printable,
)
from mlx_trm.system.output import Output, shown_output

LOGGER = logging.getLogger("mlx_trm")
NASTY = "a\x1b]0;title\x07\x1b[2J\x9b31m\x1b[8mhidden\u202egnp\ud800\u2028\r\x00z"


def clean(text: str) -> bool:
    """Whether a text has nothing in it that a terminal would obey."""
    return all(char in "\n\t" or char.isprintable() for char in text)


def test_printable_text() -> None:
    """Control characters of seven and eight bits, directions, halves of characters; no others."""
    assert printable("Größe 数\n\t'x' \\x1b") == "Größe 数\n\t'x' \\x1b"
    assert printable("a\x1b[31mb\x9bc\x07\r\u202e\ud800") == (
        r"a\x1b[31mb\x9bc\x07\x0d\u202e\ud800"
    )
    assert clean(printable(NASTY)) and printable(NASTY).endswith("z")


@pytest.mark.parametrize("kind", [ConfigError, DataError])
def test_every_error_of_ours_is_printable(kind: Any) -> None:
    """In Python too, where a traceback shows it."""
    assert clean(str(kind(f"file {NASTY}: bad")))


def test_messages_and_log_files_are_printable(
    tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """Whatever a message quotes, and a traceback."""
    # pytest keeps messages for its report, which pytest-xdist cannot send with half a character.
    monkeypatch.setattr(LOGGER, "propagate", False)
    with console_messages(2), file_messages(str(tmp_path / "log")):
        LOGGER.warning("%s: odd", NASTY)
        try:
            raise ValueError(NASTY)
        except ValueError as error:
            assert report_error(error) == 1
    shown, logged = capsys.readouterr().err, (tmp_path / "log").read_text()
    for text in (shown, logged):
        assert clean(text) and r"\x1b]0;title" in text and "Traceback" in text


def test_what_commands_print_is_printable(capsys: Any) -> None:
    """Results too, but for the colours of our own drawings in a terminal."""
    with shown_output():
        print(NASTY)
        print(table([[NASTY, "1"]], ("name", "value")))
    assert clean(capsys.readouterr().out)
    inner = io.StringIO()
    inner.isatty = lambda: True  # type: ignore[method-assign]
    before, sys.stdout = sys.stdout, inner
    try:
        with shown_output():
            print("\x1b[31mred\x1b[0m\x1b]0;title\x07\x1b[1A")
    finally:
        sys.stdout = before
    assert inner.getvalue() == "\x1b[31mred\x1b[0m\\x1b]0;title\\x07\\x1b[1A\n"


def test_thousands_of_problems_are_a_few_lines(tmp_path: Path, capsys: Any) -> None:
    """Of a configuration, and of messages that repeat themselves."""
    config = tmp_path / "c.yaml"
    config.write_text("task: {name: sudoku}\n" + "".join(f"k{n}: 1\n" for n in range(5_000)))
    with pytest.raises(ConfigError) as error:
        load_config(config)
    assert str(error.value).count("\n") < 30 and "5001 problems" in str(error.value)
    with console_messages():
        for number in range(1000):
            LOGGER.warning("puzzle %d: odd", number)
        LOGGER.error("and an error")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 22 and "more such messages" in lines[-2] and lines[-1] == "and an error"


class Broken(io.StringIO):
    """A stream that takes so many writes."""

    def __init__(self, takes: int) -> None:
        """Say how many."""
        super().__init__()
        self.takes = takes

    def write(self, text: str) -> int:
        """Write, or fail as a pipe does whose reader has left."""
        self.takes -= 1
        if self.takes < 0:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


def test_a_lasting_stream_outlives_its_reader() -> None:
    """One that is not lasting says so."""
    lasting = Output(Broken(1), None, lasting=True)
    for _ in range(3):
        lasting.write("x")
        lasting.flush()
    assert isinstance(lasting.failure, BrokenPipeError)
    with pytest.raises(BrokenPipeError):
        Output(Broken(0), None, lasting=False).write("x")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_log_file_on_a_full_disk_is_one_line(capsys: Any) -> None:
    """The command goes on."""
    with console_messages(), file_messages("/dev/full"):
        for number in range(5):
            LOGGER.info("line %d", number)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6 and "Traceback" not in str(lines)
    assert [line for line in lines if line.startswith("--log-file /dev/full: cannot be written")]


@pytest.mark.parametrize(
    "text, says",
    [
        ("[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommand"
         "BufferCallbackErrorOutOfMemory)", "train.micro_batch_size"),
        ("[METAL] Command buffer execution failed: Caused GPU Timeout Error (00000002:kIOGPUCommand"
         "BufferCallbackErrorTimeout)", "train.micro_batch_size"),
        ("[METAL] Command buffer execution failed: Impacting Interactivity (0000000e:kIOGPUCommand"
         "BufferCallbackErrorImpactingInteractivity)", "train.micro_batch_size"),
        ("[metal::malloc] Attempting to allocate 34359738368 bytes which is greater than the "
         "maximum allowed buffer size of 28991029248 bytes.", "train.micro_batch_size"),
        ("[metal::malloc] Resource limit (499000) exceeded.", "train.micro_batch_size"),
        ("[METAL] Command buffer execution failed: Discarded (victim of GPU error/recovery) "
         "(00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)", "--resume"),
        ("[metal::Device] Unable to load kernel foo", "pip install"),
        ("Failed to load the default metallib. library not found", "pip install"),
        ("cudaMallocAsync(&data, size, stream) failed: out of memory", "train.micro_batch_size"),
        ("CUDA error (cudaErrorMemoryAllocation): out of memory", "train.micro_batch_size"),
        ("[malloc] Unable to allocate 9 bytes.", "train.micro_batch_size"),
        ("cudaLaunchKernel(...) failed: no kernel image is available for execution on the device",
         "driver"),
        ("cudaErrorNoKernelImageForDevice", "driver"),
        ("cudaGetDeviceCount(&n) failed: CUDA driver version is insufficient for CUDA runtime "
         "version", "driver"),
        ("cudaGetDevice failed: no CUDA-capable device is detected", "CUDA_VISIBLE_DEVICES"),
        ("cudaStreamSynchronize failed: an illegal memory access was encountered",
         "MLX_TRM_CUDA_KERNELS=0"),
        ("cudaEventSynchronize(e) failed: unspecified launch failure", "--resume"),
        ("cudaErrorXyz (719)", "diagnose"),
        ("cublasLtMatmul(...) failed with code 13", "diagnose"),
        ("NCCL Error: unhandled system error", "docs/distributed.md"),
        ("[Compile::eval_cpu] Failed to compile function: error code 1", "train.compile=never"),
    ],
)  # fmt: skip
def test_what_a_device_reports_is_the_users_to_mend(text: str, says: str, capsys: Any) -> None:
    """One line with the device's own words and what to change; no bug of ours."""
    with console_messages():
        assert report_error(RuntimeError(text + "\nmore")) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and says in line and "bug" not in line
    assert " ".join(text.split())[:40] in line


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[broadcast_shapes] Shapes (3,4) and (5) cannot be broadcast."),
        RuntimeError("[compile] Attempting to compile a function with uncaptured inputs"),
        ValueError("out of memory"),
        KeyError("cuda"),
    ],
)
def test_a_bug_is_still_called_one(error: BaseException) -> None:
    """What no device said is not excused."""
    assert describe_device_problem(error) == ""
