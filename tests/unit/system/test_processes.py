"""Several processes train, evaluate and vote as one does; over the ring backend on this machine.

With ``MLX_TRM_TEST_BACKEND=nccl`` (and ``MLX_TRM_TEST_DEVICE=gpu``) each process has an NVIDIA GPU
of its own and NCCL between them; tests of more processes than GPUs fail there.
"""

import json
import os
import random
import socket
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any, Dict, Iterator, List

import mlx.core as mx
import numpy as np
import pytest
from child_processes import LIMIT, run_python, started, wait_until
from marks import experiment
from paths import HELPERS
from run_files import arrays_of, log_of
from toy_arc import write_tasks

import mlx_trm as trm
from mlx_trm.errors import ConfigError
from mlx_trm.system.device import on_gpu
from mlx_trm.system.processes import LAUNCHED, Processes
from mlx_trm.training.trainer import Trainer


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing of these tests goes into the user's cache."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def ports(count: int) -> List[int]:
    """Free ports of this machine, below those that are given to whoever asks for any."""
    found: List[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1_000):
        with socket.socket() as each:
            try:
                each.bind(("127.0.0.1", port))
            except OSError:  # somebody has it
                continue
        found.append(port)
        if len(found) == count:
            break
    return found


def places(size: int) -> List[Dict[str, str]]:
    """The variables that ``mlx.launch`` sets for each process on one machine."""
    ranks = [{"MLX_RANK": str(rank)} for rank in range(size)]
    if os.environ.get("MLX_TRM_TEST_BACKEND") == "nccl":
        (port,) = ports(1)
        shared = {"NCCL_HOST_IP": "127.0.0.1", "NCCL_PORT": str(port), "MLX_WORLD_SIZE": str(size)}
        kernels = f"{tempfile.gettempdir()}/mlx-kernels-"  # see separate_kernel_caches
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")  # of this process, by their names
        gpus = seen.split(",") if seen else [str(rank) for rank in range(size)]
        assert len(gpus) >= size, f"{size} processes need {size} GPUs; there are {len(gpus)}"
        own = [
            {"CUDA_VISIBLE_DEVICES": gpus[rank], "MLX_PTX_CACHE_DIR": f"{kernels}{rank}"}
            for rank in range(size)
        ]
        return [{**each, **shared, **more} for each, more in zip(ranks, own)]
    Path("hosts.json").write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports(size)]))
    return [{**each, "MLX_HOSTFILE": "hosts.json"} for each in ranks]


@contextmanager
def launched(size: int, code: str, *words: str) -> "Iterator[List[Popen[str]]]":
    """Start processes as ``mlx.launch`` does on one machine."""
    start = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(HELPERS)!r})\n{code}"]
    with ExitStack() as stack:
        yield [stack.enter_context(started([*start, *words], place)) for place in places(size)]


def launch(size: int, code: str, *words: str, ends_with: int = 0) -> List[str]:
    """Start processes and wait for all; give what each printed on either stream."""
    texts = []
    with launched(size, code, *words) as processes:
        for process in processes:
            out, err = process.communicate(timeout=LIMIT)
            assert process.returncode == ends_with, err
            texts.append(out + err)
    return texts


TRAIN = """
import json, sys
from child_processes import LIMIT, run_python, started, wait_until
from marks import experiment
from mlx_trm.training.trainer import Trainer
changes = json.loads(sys.argv[1])
if sys.argv[2] == "resume":
    trainer = Trainer.resume(changes["run_dir"])
else:
    trainer = Trainer(experiment(**changes))
stop = int(sys.argv[3])
report = trainer.fit(on_tick=lambda step: trainer.stop() if step == stop else None)
assert trainer.train_step.processes.size == int(sys.argv[4])
print(trainer.train_step.processes.rank, report.steps)
"""


def train(size: int, stop: int = -1, how: str = "begin", **changes: Any) -> None:
    """Train with several processes."""
    launch(size, TRAIN, json.dumps(changes), how, str(stop), str(size))


def largest_difference(one: Path, other: Path) -> float:
    """Of two runs' arrays, the mean difference of the array where it is largest."""
    arrays, others = arrays_of(one / "latest"), arrays_of(other / "latest")
    return max(float(np.abs(array - others[name]).mean()) for name, array in arrays.items())


def assert_alike(one: Path, other: Path, rounding: float = 0.0) -> None:
    """The same run up to the rounding of sums in another order.

    Sums of 12 gradients in another order differ by some 1e-7; AdamATan2 and the signs of SignSGD
    amplify that where a gradient is nearly 0, so single weights may move by a few times the rate,
    3e-3 and 1e-2, before the next steps pull them together again. ``rounding`` is how far two runs
    of one process are apart that only differ in that order, where that is more.
    """
    want, have = log_of(one), log_of(other)
    assert [(w["kind"], w["step"]) for w in want] == [(h["kind"], h["step"]) for h in have]
    for mine, theirs in zip(want[:2], have[:2]):
        for name in ("lm_loss", "q_halt_loss", "accuracy", "steps", "count"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-3), name
    arrays, others = arrays_of(one / "latest"), arrays_of(other / "latest")
    assert {k: v.shape for k, v in arrays.items()} == {k: v.shape for k, v in others.items()}
    for name in ("carry.inputs", "carry.puzzle_identifiers", "carry.steps"):
        assert (arrays[name] == others[name]).all(), name
    for name, array in arrays.items():
        assert np.abs(array - others[name]).mean() < 2e-3 + 2.0 * rounding, name


SHORT = {"train__batch_size": 12, "train__max_steps": 12}


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_train_as_one(size: int) -> None:
    """The same rows, the same sums; process 0 writes the run."""
    Trainer(experiment(run_dir="one", **SHORT)).fit()
    train(size, run_dir="many", **SHORT)
    assert_alike(Path("one"), Path("many"))
    names = {path.name for path in Path("many").iterdir()}
    assert names == {".lock", "config.yaml", "metrics.jsonl", "latest", "best", "step_12"}


RECIPE = {
    **SHORT, "train__optimizer": "muon", "train__loss": "softmax", "train__label_smoothing": 0.1,
    "train__grad_clip": 0.5, "train__lr_schedule": "run", "train__ema_start": 0.4,
    "train__curriculum": ["0:1x1", "0.3:2x1"], "model__start": "random", "train__lr_min_ratio": 0.0,
    "model__noise": 0.01, "train__chains": 2, "train__late_rows": 0.25, "train__late_steps": 5,
}  # fmt: skip


def test_two_processes_train_as_one_by_any_recipe() -> None:
    """Clipping sees the sum of all, random starts are those of the row, stages begin together."""
    Trainer(experiment(run_dir="one", **RECIPE)).fit()
    train(2, run_dir="many", **RECIPE)
    rounding = 0.0
    if on_gpu():  # where Muon's products are of bfloat16, and each step may differ by its units
        Trainer(experiment(run_dir="halves", train__micro_batch_size=6, **RECIPE)).fit()
        rounding = largest_difference(Path("one"), Path("halves"))
    assert_alike(Path("one"), Path("many"), rounding)
    norms = [[line.get("grad_norm", 0.0) for line in log_of(Path(run))] for run in ("one", "many")]
    assert norms[1] == [pytest.approx(norm, rel=1e-2) for norm in norms[0]]


def test_all_processes_take_the_time_of_the_first() -> None:
    """The second one's clock runs backwards, and the rates are the same: so are the weights."""
    code = TRAIN.replace(
        "report =",
        "import time\nfrom mlx_trm.training import loop\n"
        "now = [0.0]\nsign = 1.0 if trainer.run.processes.leads else -1.0\n"
        "loop.time = type('Clock', (), {'monotonic': staticmethod(lambda: sign * now[0])})\n"
        "def tick(step):\n  now[0] += 360.0\n"
        "report = trainer.fit(on_tick=tick)\n"
        "print(trainer.model.lm_head.weight.sum().item(), trainer.train_step.learning_rate(10))\n"
        "never =",
    ).replace("never = trainer.fit", "never = (lambda **_: 0)")
    changes = {**RECIPE, "train__max_hours": 1.0, "train__max_steps": None, "run_dir": "run"}
    one, other = launch(2, code, json.dumps(changes), "begin", "-1", "2")
    assert one.splitlines()[0] == other.splitlines()[0]
    assert one.splitlines()[1] == "0 10" and other.splitlines()[1] == "1 10"


def test_a_run_may_go_on_with_another_number_of_processes() -> None:
    """One, then two, then three, with micro-batches; the carry is one in the checkpoint."""
    changes = {**SHORT, "train__micro_batch_size": 2, "run_dir": "many"}
    trainer = Trainer(experiment(**changes))
    trainer.fit(on_tick=lambda step: trainer.stop() if step == 3 else None)
    train(2, 7, "resume", **changes)
    assert Trainer.resume("many").step == 7
    train(3, -1, "resume", **changes)
    Trainer(experiment(run_dir="one", **SHORT)).fit()
    assert_alike(Path("one"), Path("many"))


def test_a_stopped_group_goes_on_to_the_bit() -> None:
    """Two processes in one go, and two with a stop: the same arrays."""
    train(2, run_dir="whole", **SHORT)
    train(2, 5, run_dir="parts", **SHORT)
    train(2, -1, "resume", run_dir="parts")
    whole, parts = (arrays_of(Path(name) / "latest") for name in ("whole", "parts"))
    assert all((array == parts[name]).all() for name, array in whole.items())
    assert log_of(Path("whole")) == log_of(Path("parts"))


@pytest.mark.parametrize("size", [12, 2], ids=["whole", "in parts"])
def test_messages_that_nobody_waits_for_are_the_same(size: int) -> None:
    """Over NCCL a step waits once (test_messages.py); here over the ring, to the bit."""
    changes = {**SHORT, "train__max_steps": 5, "train__micro_batch_size": size}
    unwaited = TRAIN.replace("report =", "trainer.run.processes.waits = False\nreport =")
    for run, code in (("waited", TRAIN), ("unwaited", unwaited)):
        launch(2, code, json.dumps({**changes, "run_dir": run}), "begin", "-1", "2")
    one, other = (arrays_of(Path(run) / "latest") for run in ("waited", "unwaited"))
    assert one.keys() == other.keys()
    assert all((array == other[name]).all() for name, array in one.items())
    assert log_of(Path("waited")) == log_of(Path("unwaited"))


PIECES = """
import json, numpy as np, mlx.core as mx
from mlx_trm.system.processes import Processes
p = Processes.start()
tree = {"a": [mx.array([1.0, 2.0]) * (p.rank + 1)], "b": mx.array(0.5)}
summed = p.sum(tree)
found = p.gather_arrays({"x": np.arange(p.rank + 1), "y": np.array(p.rank)})
print(json.dumps([
    summed["a"][0].tolist(), summed["b"].item(), p.any(p.rank == 1, False),
    p.first(p.rank + 2.5), p.gather(mx.array([[p.rank]], dtype=mx.bfloat16)).tolist(),
    [str(flag) for flag in p.gather(mx.array([p.rank == 1])).tolist()],
    [[each["x"].tolist(), each["y"].tolist()] for each in found],
    [p.share(6).start, p.share(6).stop], p.leads]))
try:
    p.agree("thing", str(p.rank > 1))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_the_pieces() -> None:
    """Sums, flags, arrays of different shapes, shares, and a difference that is named."""
    texts = launch(3, PIECES)
    for rank, text in enumerate(texts):
        first, second = text.splitlines()[:2]
        assert json.loads(first) == [
            [6.0, 12.0], 1.5, [True, False], 2.5, [[0.0], [1.0], [2.0]], ["False", "True", "False"],
            [[[0], 0], [[0, 1], 1], [[0, 1, 2], 2]], [2 * rank, 2 * rank + 2], rank == 0,
        ]  # fmt: skip
        assert second.startswith("ConfigError process 2 has another thing than process 0; start")


def test_alone_everything_is_as_it_was(monkeypatch: Any) -> None:
    """Nothing is started where nothing was launched."""
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    alone = Processes.start()
    tree = {"a": mx.array([1.0])}
    assert (alone.rank, alone.size, alone.leads) == (0, 1, True)
    assert alone.sum(tree) is tree and alone.gather(tree["a"]) is tree["a"]
    assert (
        alone.any(True, False) == [True, False]
        and alone.first(1 / 3) == 1 / 3
        and alone.share(5) == slice(0, 5)
    )
    alone.agree("thing", "x")


EVALUATE = """
import json
from mlx_trm import load_checkpoint
from mlx_trm.inference.evaluator import Evaluator
from mlx_trm.system.processes import Processes
import marks
loaded = load_checkpoint("run")
loaded.config.eval.batch_size = 5
evaluator = Evaluator(loaded.model, loaded.config, processes=Processes.start())
print(json.dumps([evaluator.run("test"), evaluator.files]))
"""


def evaluate_alone() -> Any:
    """What such a process prints, of this one."""
    loaded = trm.load_checkpoint("run")
    loaded.config.eval.batch_size = 5
    evaluator = trm.Evaluator(loaded.model, loaded.config)
    return json.loads(json.dumps([evaluator.run("test"), evaluator.files]))


@pytest.mark.parametrize("task", ["marks", "arc"])
def test_evaluation_is_shared(task: str) -> None:
    """Every process has the figures of all, and the submission of all votes."""
    if task == "marks":
        Trainer(experiment(run_dir="run", train__max_steps=5)).fit()
    else:
        write_tasks()
        Trainer(trm.load_config("c.yaml", ["run_dir=run"])).fit()
    metrics, files = evaluate_alone()
    for text in launch(3, EVALUATE):
        have, same_files = json.loads(text)
        assert same_files == files
        for name, value in metrics["all"].items():
            assert have["all"][name] == pytest.approx(value, rel=1e-5), name
    assert bool(files) == (task == "arc")


@pytest.mark.skipif(
    tuple(int(part) for part in mx.__version__.split(".")[:2]) < (0, 30),
    reason="MLX 0.29 does not notice that a neighbour in the ring is gone",
)
def test_a_process_that_dies_ends_the_others() -> None:
    """With one line that says so, instead of waiting for ever; the run can be resumed."""
    changes = {"run_dir": "run", "train__epochs": 30000, "checkpoint__every": 2}
    code = TRAIN.replace(
        "report =", "from mlx_trm.errors import TRMError\ntry:\n  report ="
    ).replace("\nassert", "\nexcept TRMError as error:\n  sys.exit(str(error))\nassert")
    with launched(2, code, json.dumps(changes), "begin", "-1", "2") as (first, second):
        wait_until(lambda: list(Path("run").glob("step_*")), first, second)
        second.kill()
        _, err = first.communicate(timeout=LIMIT)
    assert first.returncode == 1
    assert "process 0 of 2 has lost the others" in err.splitlines()[-1] and "--resume" in err
    assert Trainer.resume("run").step > 0


def test_shares_have_to_be_equal() -> None:
    """Refused with the next batch size that works; other settings are named."""
    changes = {"train__batch_size": 9, "run_dir": "run"}
    code = (
        "import json\nfrom marks import experiment\nfrom mlx_trm.training.trainer import Trainer\n"
        "try:\n  Trainer(experiment(**json.loads(sys.argv[1])))\n"
        "except Exception as error:\n  sys.exit(str(error))\n"
    )
    for text in launch(2, code, json.dumps(changes), ends_with=1):
        assert "9 rows cannot be shared by 2 processes equally; use 10" in text
    assert not Path("run").exists()


def test_launching_that_fails(monkeypatch: Any) -> None:
    """One line."""
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", "nowhere.json")
    code = "from mlx_trm.system.processes import Processes; Processes.start()"
    done = run_python("-c", code)
    assert "ConfigError: the processes that were launched together cannot reach" in done.stderr


def test_the_command_is_quiet_in_all_but_one() -> None:
    """``python -m mlx_trm.train``: process 0 talks."""
    code = "from mlx_trm.__main__ import main\nsys.exit(main(['train', *sys.argv[1:]]))"
    words = ["--config", "sudoku_tiny.yaml", "task.train_puzzles=64", "task.test_puzzles=16",
             "train.batch_size=8", "train.max_steps=4", "run_dir=run"]  # fmt: skip
    first, second = launch(2, code, *words)
    assert "processes   2" in first and "done: 4 of 4 steps" in first
    assert second == ""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_never_starts_ends_the_others(rank: int, tmp_path: Path) -> None:
    """With one line and code 2, after the time that was allowed."""
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports(2)]))
    line = "from mlx_trm.system.processes import Processes; Processes.start(); print('started')"
    env = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts), "MLX_TRM_WAIT_FOR_PEERS": "1"}
    done = run_python("-c", line, env=env)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.count("\n") == 1 and "have started within 1 s" in done.stderr


def test_how_long_to_wait_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line for what is no number of seconds."""
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "nowhere.json"))
    for text in ("soon", "-1", "nan"):
        monkeypatch.setenv("MLX_TRM_WAIT_FOR_PEERS", text)
        with pytest.raises(ConfigError, match="MLX_TRM_WAIT_FOR_PEERS: must be"):
            Processes.start()
