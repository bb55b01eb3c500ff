"""Files of results: a line of JSON for each measurement, one file a machine; only appended to."""

import datetime
import json
import re
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from mlx_trm.cli.tables import size
from mlx_trm.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(__file__).resolve().parent / "results"
OURS, THEIRS = "mlx_trm", "original"
ABOUT = ("case", "size", "batch", "dtype", "compiled")  # what a line says of a job


def now() -> str:
    """Give the time, UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def commit(folder: Path = ROOT, told: Optional[str] = None) -> Dict[str, Any]:
    """Give the commit of a checkout and whether files of it have changes; None where not known.

    Args:
        folder: that is a git checkout, or else
        told: the commit that it was made from.
    """

    def git(*words: str) -> Optional[str]:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False
            )
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("rev-parse", "--show-prefix") != "":  # no checkout, or a folder in another one
        return {"commit": told, "dirty": None}
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "--short=10", "HEAD"), "dirty": bool(changed)}


def machine_name(report: Dict[str, Any], device: str) -> str:
    """Name a machine by its GPU, or by its processor and cores, from a device report."""
    gpu = report["devices"].get("gpu") or {}
    if device == "gpu":
        name = gpu.get("device_name") or gpu.get("architecture") or "GPU"
    else:
        name = f"{report['platform']['processor']} {report['platform']['cores']} cores"
    return " ".join(str(name).split())


def file_name(machine: str) -> str:
    """Turn a machine's name into that of its file."""
    return re.sub(r"[^a-z0-9]+", "_", machine.lower()).strip("_") + ".jsonl"


def spread(seconds: Sequence[float]) -> Dict[str, Any]:
    """Give median, quartiles, least and number of measurements."""
    low, middle, high = (float(np.percentile(seconds, q)) for q in (25, 50, 75))
    return {"median": middle, "q1": low, "q3": high, "min": min(seconds), "blocks": len(seconds)}


def append(path: Path, line: Dict[str, Any]) -> None:
    """Add a line to a file of results.

    Raises:
        ConfigError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error


def read(source: Path) -> List[Dict[str, Any]]:
    """Read the lines of a file, or of all files of a folder.

    Raises:
        ConfigError: if there are none, or a line is not JSON; it names file and line.
    """
    files = sorted(source.glob("*.jsonl")) if source.is_dir() else [source]
    lines: List[Dict[str, Any]] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read; name a file of results") from error
        for number, row in enumerate(text.splitlines(), start=1):
            try:
                line = json.loads(row)
                if not isinstance(line, dict) or "kind" not in line:
                    raise ValueError("no kind")
            except ValueError as error:
                raise ConfigError(
                    f"{file}, line {number}: not a line of results; delete it, or run again"
                ) from error
            lines.append(line)
    if not lines:
        raise ConfigError(f"{source}: holds no results; python benchmarks/run.py makes some")
    return lines


def label(job: Dict[str, Any]) -> str:
    """Name a job in messages."""
    return " ".join(str(job[key]) for key in ("case", "size", "batch") if job.get(key) is not None)


def summary(line: Dict[str, Any]) -> str:
    """Say a result in a line."""
    times = line["seconds"]
    text = (
        f"{label(line):24} {line['implementation']:9} {1e3 * times['median']:10.4g} ms a "
        f"{line['unit']} ({1e3 * times['q1']:.4g} to {1e3 * times['q3']:.4g})"
    )
    for key, name in (("peak_memory", "peak"), ("resident_memory", "resident")):
        if line.get(key):
            text += f", {name} {size(line[key])}"
    if line.get("roofline"):
        note = line["roofline"]
        text += f", {100 * note['share']:.0f} % of the {note['bound']} floor"
    return text + "".join(f", {fact}" for fact in remarks(line, measured_only=True))


def remarks(line: Dict[str, Any], measured_only: bool = False) -> List[str]:
    """Say a result's facts, each in a few words.

    Args:
        line: of a result.
        measured_only: only those that are fractions: shares, means, seconds.
    """
    found = []
    for key, value in line["facts"].items():
        if isinstance(value, float):
            share = key.split("_", maxsplit=1)[0] == "share" or key.endswith("share")
            text = f"{100 * value:.3g} %" if share else f"{value:.3g}"
        elif measured_only:
            continue
        else:
            text = str(value)
        found.append(f"{key.replace('_', ' ')} {text}")
    return found
