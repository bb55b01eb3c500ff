"""Runs that end themselves before their n-th operation on a file; a program, for test_killed.py.

    python killing.py SCENARIO FOLDER try N     do it in FOLDER/N, and end before operation N
    python killing.py SCENARIO FOLDER mend N    what a user does next, and what is wrong then
    python killing.py SCENARIO FOLDER all N...  both for each N, in processes forked from this one

``whole`` instead of N does it without an end, and counts the operations. MLX has computed nothing
before a fork. Every answer is a line of JSON.
"""

import builtins
import io
import json
import logging
import os
import shutil
import signal
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import marks
import mlx.core as mx
import numpy as np
from marks import Marks, MarksConfig, experiment
from run_files import arrays_of, log_of

from mlx_trm.datasets.fetch import fetch
from mlx_trm.datasets.sources import SOURCES
from mlx_trm.inference.exporting import export_checkpoint
from mlx_trm.inference.portable import pack_checkpoint, unpack_checkpoint
from mlx_trm.runs.checkpoint import load_checkpoint, verify_checkpoint
from mlx_trm.runs.layout import find_checkpoint, follow_link, list_checkpoints
from mlx_trm.runs.metrics import check_metrics, count_lines
from mlx_trm.system.files import hash_file
from mlx_trm.tasks import PuzzleDataset
from mlx_trm.training import loop
from mlx_trm.training.trainer import Trainer
from mlx_trm.upstream.reading import convert_upstream
from mlx_trm.upstream.writing import export_upstream

CALLS = ("replace", "rename", "symlink", "unlink", "remove", "rmdir", "mkdir", "truncate", "fsync")


class Operations:
    """Counts operations on files, and ends the process before one of them."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.done = 0

    def count(self, what: str) -> None:
        """Count one."""
        self.done += 1
        if self.done == self.last:
            os.write(2, f"ends before operation {self.last}: {what}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Count from now on, whatever the package calls."""
        for name in CALLS:
            setattr(os, name, self._counted(name, getattr(os, name)))
        real_open, real_save = io.open, mx.save_safetensors

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if set(mode) & set("wax+"):
                self.count(f"open {file} {mode}")
                handle = real_open(file, mode, *args, **kwargs)
                if self.done + 1 == self.last and "b" not in mode:
                    handle.write('{"half a li')  # nothing is flushed but this
                    handle.flush()
                self.count(f"write {file}")
                return handle
            return real_open(file, mode, *args, **kwargs)

        def saved(file: str, *args: Any, **kwargs: Any) -> None:
            self.count(f"save {file}")
            real_save(file, *args, **kwargs)
            if self.done + 1 == self.last:
                with real_open(file, "r+b") as half:
                    half.truncate(os.path.getsize(file) // 2)
            self.count(f"save the other half of {file}")

        io.open = builtins.open = opened  # type: ignore[assignment]
        mx.save_safetensors = saved

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count(f"{name} {args[0]}")
            return real(*args, **kwargs)

        return call


# Scenarios: how each begins, what is killed, what a user does next, and what has to hold ---------


class Scenario:
    """Something that writes files."""

    def prepare(self, folder: Path) -> None:
        """Make what has to be there first; not killed."""

    def act(self, folder: Path) -> None:
        """Do it; killed."""
        raise NotImplementedError

    def look(self, folder: Path) -> List[str]:
        """Say what is wrong right after the kill."""
        del folder
        return []

    def mend(self, folder: Path) -> None:
        """Do what a user does next: by default the same."""
        self.act(folder)

    def compare(self, whole: Path, folder: Path) -> List[str]:
        """Say in what it is not what it would be without the kill."""
        raise NotImplementedError


SCORES = {8: 0.5, 16: 0.9, 24: 0.7, 32: 0.8}


def score_by_step() -> None:
    """Make the best checkpoint one in the middle, whatever the model learns."""
    note = loop._Loop._note_best  # pylint: disable=protected-access

    def note_best(self: Any, metrics: Dict[str, Dict[str, float]]) -> None:
        value = SCORES.get(self.train_step.step, 0.1)
        note(self, {name: {**m, "exact_accuracy": value} for name, m in metrics.items()})

    loop._Loop._note_best = note_best  # type: ignore[method-assign] # pylint: disable=W0212


def config_of(folder: Path, **changes: Any) -> Any:
    """Four iterations of 8 steps, saved between them too."""
    settings = {"train__epochs": 8, "eval__interval": 2, "checkpoint__every": 3,
                "checkpoint__keep": 1, "eval__max_examples": 6}  # fmt: skip
    return experiment(run_dir=str(folder / "run"), **{**settings, **changes})


def state_of(run: Path) -> Dict[str, Any]:
    """Everything that two runs are compared by but the arrays."""
    state = json.loads((run / "latest" / "state.json").read_text())
    progress = state["progress"]
    progress.pop("seconds")
    progress["log"].pop("seconds")
    links = {name: follow_link(run / name) for name in ("latest", "best")}
    config = [x for x in (run / "config.yaml").read_text().splitlines() if "run_dir" not in x]
    return {
        "step": state["step"],
        "progress": progress,
        "links": {name: path and path.name for name, path in links.items()},
        "files": sorted(str(p.relative_to(run)) for p in run.rglob("*") if ".lock" != p.name),
        "log": log_of(run),
        "config": config,
    }


def compare_runs(one: Path, other: Path) -> List[str]:
    """Say in what two runs differ."""
    want, have = state_of(one), state_of(other)
    found = [f"{key}: {have[key]}, not {want[key]}" for key in want if want[key] != have[key]]
    for folder in list_checkpoints(other):
        verify_checkpoint(folder)
        arrays, others = arrays_of(one / folder.name), arrays_of(folder)
        same = arrays.keys() == others.keys() and all(
            np.array_equal(a, others[k]) for k, a in arrays.items()
        )
        found += [] if same else [f"{folder.name}: other arrays"]
    return found


class Train(Scenario):
    """A run from nothing to its end, with everything that --resume auto does."""

    def act(self, folder: Path) -> None:
        if list_checkpoints(folder / "run"):
            self.go_on(Trainer.resume(folder / "run"))
        else:
            Trainer(config_of(folder), restart=True).fit()

    @staticmethod
    def go_on(trainer: Trainer) -> None:
        """As the command does."""
        if trainer.finished():
            trainer.settle()
        else:
            trainer.fit()

    def look(self, folder: Path) -> List[str]:
        found = []
        for checkpoint in (folder / "run").glob("*step_*"):
            if not checkpoint.name.startswith("."):
                state = verify_checkpoint(checkpoint)
                if checkpoint.name.startswith("step_"):
                    check_metrics(folder / "run/metrics.jsonl", state["progress"]["log"]["lines"])
        for step in (16, 24, 32):  # of those that are there, the best may never be missing
            state_file = folder / "run" / f"step_{step}" / "state.json"
            if state_file.exists():
                best = json.loads(state_file.read_text())["progress"]["best"]
                if best and not (folder / "run" / f"step_{best[1]}").exists():
                    found.append(f"the best, step {best[1]}, is lost")
        return found

    def compare(self, whole: Path, folder: Path) -> List[str]:
        left = [p.name for p in (folder / "cache").iterdir() if p.name.startswith(".")]
        return compare_runs(whole / "run", folder / "run") + [f"left: {name}" for name in left]


class Older(Train):
    """Going on from an older checkpoint of a finished run."""

    def prepare(self, folder: Path) -> None:
        Trainer(config_of(folder, checkpoint__keep=20)).fit()

    def act(self, folder: Path) -> None:
        self.go_on(Trainer.resume(folder / "run/step_15"))

    def look(self, folder: Path) -> List[str]:
        names = {p.name for p in (folder / "run").glob("*step_*") if not p.name.startswith(".")}
        wanted = {p.name for p in (folder.parent / "prepared/run").glob("step_*")}
        lost = {x for x in wanted if not names & {x, f"aside_{x}"}}
        found = [f"lost: {name}" for name in lost]
        if not (folder / "run/aside_step_16").exists():  # the last one to be put aside
            # Nothing is lost for whoever thinks better of it.
            before = count_lines(folder.parent / "prepared/run/metrics.jsonl")
            if count_lines(folder / "run/metrics.jsonl") != before:
                found.append("the log is cut, and newer checkpoints still in place")
            Trainer.resume(folder / "run")
        return found + super().look(folder)

    def mend(self, folder: Path) -> None:
        if (folder / "run/aside_step_16").exists():
            self.go_on(Trainer.resume(folder / "run"))
        else:
            self.act(folder)


class Build(Scenario):
    """A dataset built over an earlier one."""

    def prepare(self, folder: Path) -> None:
        Marks(MarksConfig(), 1).build(folder / "data/built")

    def act(self, folder: Path) -> None:
        Marks(MarksConfig(), 2).build(folder / "data/built")

    def look(self, folder: Path) -> List[str]:
        for path in [folder / "data/built", *(folder / "data").glob(".*/old")]:
            if path.exists():
                PuzzleDataset.load(path, "train")
                return []
        return ["neither the old nor the new is there"]

    def compare(self, whole: Path, folder: Path) -> List[str]:
        return compare_files(whole / "data", folder / "data")


class BuildNew(Build):
    """A dataset built into a new folder."""

    def prepare(self, folder: Path) -> None:
        (folder / "data").mkdir(parents=True)

    def look(self, folder: Path) -> List[str]:
        if (folder / "data/built").exists():
            PuzzleDataset.load(folder / "data/built", "train")
        return []


class Export(Scenario):
    """A model written as functions, over an earlier export."""

    def prepare(self, folder: Path) -> None:
        (folder / "out").mkdir(parents=True)
        Trainer(config_of(folder, train__max_steps=1)).fit()
        shutil.copytree(folder / "run", folder / "older", symlinks=True)
        Trainer.resume(folder / "run", ["train.max_steps=2"]).fit()
        export_checkpoint(load_checkpoint(folder / "older"), folder / "out/model.mlxfn")

    def act(self, folder: Path) -> None:
        export_checkpoint(load_checkpoint(folder / "run"), folder / "out/model.mlxfn")

    def look(self, folder: Path) -> List[str]:
        mx.import_function(str(folder / "out/model.mlxfn"))
        json.loads((folder / "out/model.mlxfn.json").read_text())
        return []

    def compare(self, whole: Path, folder: Path) -> List[str]:
        found = sorted(os.listdir(folder / "out"))
        wrong = [] if found == sorted(os.listdir(whole / "out")) else [f"other files: {found}"]
        about = json.loads((folder / "out/model.mlxfn.json").read_text())
        if about["function"]["sha256"] != hash_file(folder / "out/model.mlxfn"):
            wrong.append("the description is of another file")
        newest = load_checkpoint(folder / "run").step
        return wrong + ([] if newest == 2 and '"step": 2' in json.dumps(about) else ["not the new"])


class Convert(Scenario):
    """A run's weights written for the original."""

    def prepare(self, folder: Path) -> None:
        (folder / "out").mkdir(parents=True)
        config = config_of(folder, train__max_steps=1)
        config.model.swiglu_multiple = 256  # the only one that the original has
        Trainer(config).fit()
        (folder / "out/weights.safetensors").write_bytes(b"an earlier file")

    def act(self, folder: Path) -> None:
        export_upstream(folder / "run", folder / "out/weights.safetensors", "ema", "reference")

    def look(self, folder: Path) -> List[str]:
        size = (folder / "out/weights.safetensors").stat().st_size
        whole = (folder.parent / "whole/out/weights.safetensors").stat().st_size
        return [] if size in (15, whole) else ["half a file"]

    def compare(self, whole: Path, folder: Path) -> List[str]:
        return compare_files(whole / "out", folder / "out")


class Import(Convert):
    """Weights of the original made a run folder."""

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        super().act(folder)

    def act(self, folder: Path) -> None:
        if not (folder / "converted").exists():  # the same command again, unless it is done
            config = config_of(folder)
            config.model.swiglu_multiple = 256
            convert_upstream(folder / "out/weights.safetensors", config, folder / "converted", 7)

    def look(self, folder: Path) -> List[str]:
        return [] if not (folder / "converted").exists() else self.compare(folder, folder)

    def compare(self, whole: Path, folder: Path) -> List[str]:
        one, other = (each / "converted/step_7" for each in (whole, folder))
        verify_checkpoint(other)
        want, have = arrays_of(one), arrays_of(other)
        same = want.keys() == have.keys() and all((want[k] == have[k]).all() for k in want)
        assert find_checkpoint(folder / "converted").resolve() == other.resolve()
        found = [] if same and load_checkpoint(other).step == 7 else ["other weights"]
        names = [sorted(os.listdir(each)) for each in (whole, folder)]
        return found + ([] if names[0] == names[1] else [f"left: {names}"])


class Pack(Scenario):
    """A run written in pieces to carry it elsewhere."""

    def prepare(self, folder: Path) -> None:
        Trainer(config_of(folder, train__max_steps=1)).fit()

    def act(self, folder: Path) -> None:
        if not (folder / "pack").exists():
            pack_checkpoint(folder / "run", folder / "pack")

    def look(self, folder: Path) -> List[str]:
        if (folder / "pack").exists():
            unpack_checkpoint(folder / "pack", folder / "tried")
            shutil.rmtree(folder / "tried")
        return []

    def compare(self, whole: Path, folder: Path) -> List[str]:
        self.look(folder)
        names = [sorted(os.listdir(each)) for each in (whole, folder)]
        return [] if names[0] == names[1] else [f"left: {names}"]


class Unpack(Pack):
    """Such a folder made a run again."""

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        super().act(folder)

    def act(self, folder: Path) -> None:
        if not (folder / "unpacked").exists():
            unpack_checkpoint(folder / "pack", folder / "unpacked")

    def look(self, folder: Path) -> List[str]:
        if (folder / "unpacked").exists():
            load_checkpoint(folder / "unpacked")
            Trainer.resume(folder / "unpacked")
        return []


FETCHED = {
    f"concept_{kind}.json": json.dumps({"task": [kind] * 9}).encode()
    for kind in ("challenges", "solutions")
}


class Fetch(Scenario):
    """Files downloaded from the server that the environment names; it serves FETCHED."""

    def act(self, folder: Path) -> None:
        source = SOURCES["conceptarc"]
        files = tuple(
            file._replace(
                size=len(FETCHED[file.target]), sha256=sha256(FETCHED[file.target]).hexdigest()
            )
            for file in source.files
        )
        address = os.environ["KILLING_SERVER"]
        SOURCES["conceptarc"] = source._replace(files=files, base_url=f"{address}/")
        fetch("conceptarc")

    def look(self, folder: Path) -> List[str]:
        place = folder / "cache/fetched/arc-agi"
        there = {path.name: path.read_bytes() for path in place.glob("concept_*")}
        found = [name for name, content in there.items() if content != FETCHED[name]]
        if (place / "fetched.json").exists() and len(there) < 2:
            found.append("the record is there, and not all files")
        return found

    def compare(self, whole: Path, folder: Path) -> List[str]:
        return compare_files(whole / "cache", folder / "cache")


def compare_files(one: Path, other: Path) -> List[str]:
    """Say which files of two folders differ."""
    trees: List[Dict[str, bytes]] = []
    for root in (one, other):
        files = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")
        trees.append({str(path.relative_to(root)): path.read_bytes() for path in files})
    return [n for n in {**trees[0], **trees[1]} if trees[0].get(n) != trees[1].get(n)]


SCENARIOS: Dict[str, Scenario] = {
    "train": Train(),
    "older": Older(),
    "build": Build(),
    "build_new": BuildNew(),
    "export": Export(),
    "convert": Convert(),
    "import": Import(),
    "pack": Pack(),
    "unpack": Unpack(),
    "fetch": Fetch(),
}


# The program ------------------------------------------------------------------------------------


def begin(folder: Path) -> None:
    """Set up a process that is going to compute."""
    mx.set_default_device(mx.cpu)
    # What a killed process has written is there, flushed or not; flushing would only take time.
    os.fsync = lambda _handle: None
    os.environ["MLX_TRM_CACHE"] = str(folder / "cache")
    score_by_step()


def do_try(scenario: Scenario, root: Path, name: str) -> Dict[str, Any]:
    """Do it in a folder, to its end or to the operation of that number."""
    begin(root / name)
    if name in ("prepared", "whole"):
        if name == "prepared":
            scenario.prepare(root / name)
            return {}
    if (root / "prepared").exists() and not (root / name).exists():
        shutil.copytree(root / "prepared", root / name, symlinks=True)
        config = root / name / "run" / "config.yaml"
        if config.exists():
            config.write_text(config.read_text().replace("/prepared/", f"/{name}/"))
    operations = Operations(int(name) if name.isdigit() else -1)
    operations.watch()
    scenario.act(root / name)
    return {"operations": operations.done}


def do_mend(scenario: Scenario, root: Path, name: str) -> Dict[str, Any]:
    """Look at what a kill has left, go on, and compare with what was not killed."""
    begin(root / name)
    try:
        found = scenario.look(root / name)
        scenario.mend(root / name)
        found += scenario.compare(root / "whole", root / name)
    except Exception as error:  # pylint: disable=broad-exception-caught
        logging.exception("operation %s", name)
        found = [f"{type(error).__name__}: {error}"]
    return {"number": name, "wrong": found}


def forked(do: Callable[..., Dict[str, Any]], *args: Any) -> Tuple[int, Dict[str, Any]]:
    """Call a function in a forked process.

    Returns:
        How the process ended, and what the function gave; nothing if it was killed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(reader)
            os.write(writer, json.dumps(do(*args)).encode())
            code = 0
        except BaseException:  # pylint: disable=broad-exception-caught
            logging.exception("in %s", args)
        finally:
            os._exit(code)  # pylint: disable=protected-access
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return status, json.loads(answer) if answer else {}


def main(scenario_name: str, root_name: str, what: str, *names: str) -> None:
    """Do what the words say."""
    scenario, root = SCENARIOS[scenario_name], Path(root_name)
    root.mkdir(parents=True, exist_ok=True)
    if what == "all":
        for name in names:
            status, answer = forked(do_try, scenario, root, name)
            if name.isdigit():
                if status != signal.SIGKILL:
                    print(json.dumps({"number": name, "wrong": [f"ended with {status}"]}))
                    continue
                _, answer = forked(do_mend, scenario, root, name)
            print(json.dumps(answer), flush=True)
            if name.isdigit() and not answer.get("wrong", True):
                shutil.rmtree(root / name)
        return
    do = do_try if what == "try" else do_mend
    print(json.dumps(do(scenario, root, names[0])), flush=True)


if __name__ == "__main__":
    assert marks
    main(*sys.argv[1:])
