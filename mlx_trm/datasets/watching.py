"""A download that is watched: it ends where hardly anything comes, or far more than promised.

A library's time limit is for a server that sends nothing. One that sends a byte now and then, or
never stops, would keep a command for days, or fill the disk.
"""

import hashlib
import threading
import time
from pathlib import Path
from typing import Callable, List, Optional

from mlx_trm.system.files import hash_file

# Seconds in which something has to arrive on the disk; huggingface_hub writes 10 MB at a time, so
# that is 17 kB a second.
STALLED_AFTER = 600.0
# Bytes beyond what was promised: notes that the libraries make.
_SPARE = 1 << 24
# Seconds between looks at the disk.
_PAUSE = 0.5


def watch(work: Callable[[], object], folder: Path, size: Optional[int] = None) -> None:
    """Do something that downloads into a folder, until it ends or is given up.

    What is given up goes on in a thread of its own, which ends with the process at the latest.

    Args:
        work: what is done; its error is raised here.
        folder: that grows.
        size: bytes that it may grow by; None: any number.

    Raises:
        ValueError: if it has stalled, or brings more than ``size``.
    """
    failed: List[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # pylint: disable=broad-exception-caught
            failed.append(error)

    start = seen = _size(folder)
    last = time.monotonic()
    thread = threading.Thread(target=run, name="download", daemon=True)
    thread.start()
    while True:
        thread.join(_PAUSE)
        if not thread.is_alive():
            break
        now = _size(folder)
        if size is not None and now - start > size + _SPARE:
            raise ValueError(f"it is larger than the {size:,} bytes that were promised")
        if now != seen:
            seen, last = now, time.monotonic()
        elif time.monotonic() - last > STALLED_AFTER:
            raise ValueError(f"nothing has come for {STALLED_AFTER:.0f} seconds")
    if failed:
        raise failed[0]


def _size(folder: Path) -> int:
    """Add up the bytes of the files in a folder; they may vanish meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def hash_blob(path: Path) -> str:
    """Give the name that git has for a file's content: a SHA-1, in hexadecimal.

    Raises:
        OSError: if it is not there.
        DataError: if it cannot be read.
    """
    return hash_file(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False))
