"""Models as files of functions: what is in them; in Python and C++ they compute the same."""

import errno
import functools
import json
import os
import re
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any, Callable, Dict, List

import mlx.core as mx
import numpy as np
import pytest
from child_processes import run, run_python
from paths import ROOT

import mlx_trm as trm
from mlx_trm.config.loading import TrainConfig
from mlx_trm.config.sections import CheckpointConfig, EvalConfig, ExperimentConfig
from mlx_trm.export import main
from mlx_trm.inference.exporting import ANSWERS, export_checkpoint, export_step, step_function
from mlx_trm.inference.quantization import quantize_model, weight_bytes
from mlx_trm.inference.solver import Solver
from mlx_trm.nn import fused
from mlx_trm.runs.checkpoint import load_checkpoint, save_checkpoint
from mlx_trm.runs.layout import MODEL

SIZES = dict(hidden_size=32, num_heads=2, swiglu_multiple=32, halt_max_steps=3)
PUZZLES = ["1.....2..3.....4", "2.....1..3.....4", "...4..3.....1..."]
CLASSES: List[Any] = [trm.TRM, trm.TRMSingleZ, trm.TRMHier6, trm.HRM, trm.TransformersBaseline]
CONFIGS: List[Any] = [
    trm.TRMConfig,
    trm.TRMSingleZConfig,
    trm.TRMHier6Config,
    trm.HRMConfig,
    trm.TransformersBaselineConfig,
]


def save_run(folder: Path, model: Any, seed: int = 4) -> str:
    """A run of an untrained 4x4 model that halts after some steps and not after others."""
    task = trm.SudokuConfig(name="sudoku", size=4)
    config = ExperimentConfig(task, model, TrainConfig(), EvalConfig(), CheckpointConfig())
    built = trm.build_model(model, trm.build_task(task).spec, seed=seed)
    built.q_head.weight = mx.random.normal(built.q_head.weight.shape, key=mx.random.key(seed))
    built.q_head.bias = mx.zeros((2,))
    save_checkpoint(folder, built, config, 3)
    return str(folder)


@pytest.fixture(scope="module", name="run_dir")
def fixture_run_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small TRM with an MLP over the positions."""
    model = trm.TRMConfig(
        mlp_t=True, H_cycles=2, L_cycles=2, puzzle_emb_len=1, forward_dtype="float32", **SIZES
    )
    return save_run(tmp_path_factory.mktemp("runs") / "mlp", model)


def iterate(step: Callable, inputs: mx.array, rows: mx.array, count: int) -> List[List[np.ndarray]]:
    """Call a step as docs/export.md says; give all outputs of each call."""
    latents: List[mx.array] = []
    found = []
    for _ in range(count):
        outputs = list(step(inputs, rows, *latents))
        latents = outputs[len(ANSWERS) :]
        found.append([np.array(output.astype(mx.float32)) for output in outputs])
    return found


@pytest.mark.parametrize("model_class, config_class", list(zip(CLASSES, CONFIGS)))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_model_computes_the_same(
    model_class: Any, config_class: Any, dtype: str, tmp_path: Path
) -> None:
    """Imported again it gives the model's own numbers to the bit, over three steps."""
    spec = trm.TaskSpec(vocab_size=6, seq_len=16, num_puzzle_identifiers=5)
    config = config_class(forward_dtype=dtype, **SIZES)
    config.H_cycles, config.H_layers, config.L_layers = 2, 2, 1  # as far as a model has them
    model = model_class(config, spec, seed=1)
    model.q_head.weight = mx.random.normal(model.q_head.weight.shape, key=mx.random.key(1))
    model.q_head.bias = mx.full((2,), -1.0)  # so that both Q values are often less than 0
    model.puzzle_emb.weights = mx.random.normal((5, 32), key=mx.random.key(2))
    model.eval()
    export_step(model, tmp_path / "model.mlxfn", [2])
    batch = trm.random_batch(spec, 2, seed=5)
    carry = model.initial_carry(batch)
    imported = mx.import_function(str(tmp_path / "model.mlxfn"))
    for outputs in iterate(imported, batch.inputs, batch.puzzle_identifiers, 3):
        carry, expected = model(carry._replace(halted=carry.steps == 0), batch)
        for name, output in zip(ANSWERS, outputs):
            if name in ("logits", "q_halt", "q_continue"):
                wanted = np.array(getattr(expected, name).astype(mx.float32))
                np.testing.assert_array_equal(output, wanted, err_msg=name)
        np.testing.assert_array_equal(outputs[0], outputs[4].argmax(-1))
        threshold = outputs[3] if model.compares_continue else 0
        np.testing.assert_array_equal(outputs[1], outputs[2] > threshold)
        assert len(outputs) == len(ANSWERS) + len(carry.latents)
        for output, latent in zip(outputs[len(ANSWERS) :], carry.latents):
            np.testing.assert_array_equal(output, np.array(latent.astype(mx.float32)))


def test_rows_of_the_table_are_looked_up(tmp_path: Path) -> None:
    """The identifier decides; the table is in the file."""
    spec = trm.TaskSpec(vocab_size=6, seq_len=16, num_puzzle_identifiers=5)
    model = trm.TRM(trm.TRMConfig(mlp_t=True, H_cycles=1, L_cycles=1, **SIZES), spec)
    model.puzzle_emb.weights = mx.random.normal((5, 32), key=mx.random.key(2))
    model.eval()
    export_step(model, tmp_path / "model.mlxfn")
    step = mx.import_function(str(tmp_path / "model.mlxfn"))
    inputs = mx.ones((1, 16), dtype=mx.int32)
    logits = [np.array(step(inputs, mx.array([row], dtype=mx.int32))[4]) for row in (1, 2, 1)]
    assert np.array_equal(logits[0], logits[2]) and not np.array_equal(logits[0], logits[1])


def test_values_out_of_range_count_as_the_nearest(run_dir: str, tmp_path: Path) -> None:
    """A look-up behind the table's end would give nonsense, or end the process."""
    spec = trm.TaskSpec(vocab_size=6, seq_len=16, num_puzzle_identifiers=5)
    model = trm.TRM(trm.TRMConfig(mlp_t=True, H_cycles=1, L_cycles=1, **SIZES), spec)
    model.puzzle_emb.weights = mx.random.normal((5, 32), key=mx.random.key(2))
    model.eval()
    export_step(model, tmp_path / "model.mlxfn")
    for step in (step_function(model), mx.import_function(str(tmp_path / "model.mlxfn"))):
        for token, row, nearest, nearest_row in ((6, 5, 5, 4), (-1, -1, 0, 0), (9, 6, 5, 4)):
            inputs = (mx.full((1, 16), value, dtype=mx.int32) for value in (token, nearest))
            rows = (mx.array([value], dtype=mx.int32) for value in (row, nearest_row))
            found, wanted = (iterate(step, *pair, 1)[0] for pair in zip(inputs, rows))
            for output, other in zip(found, wanted):
                np.testing.assert_array_equal(output, other)
    beside = export_checkpoint(load_checkpoint(run_dir), tmp_path / "run.mlxfn")
    about = json.loads(beside.read_text(encoding="utf-8"))["inputs"]
    ranges = {entry["name"]: entry["range"] for entry in about}
    assert ranges == {"inputs": [0, 5], "puzzle_identifiers": [0, 0]}


def test_fused_blocks_are_written_plainly(run_dir: str, tmp_path: Path) -> None:
    """On a GPU blocks are functions of their own, with operations that no file can hold."""
    model = load_checkpoint(run_dir).model
    inputs = mx.ones((1, 16), dtype=mx.int32), mx.zeros((1,), dtype=mx.int32)
    expected = iterate(step_function(model), *inputs, 2)
    with fused.use(True):
        export_step(model, tmp_path / "model.mlxfn")
        found = iterate(mx.import_function(str(tmp_path / "model.mlxfn")), *inputs, 2)
    for mine, wanted in zip(found, expected):
        for output, other in zip(mine, wanted):
            np.testing.assert_array_equal(output, other)


def test_several_batch_sizes_in_one_file(run_dir: str, tmp_path: Path) -> None:
    """Each puzzle's answer is that of the solver; other batch sizes are refused by MLX."""
    path = tmp_path / "model.mlxfn"
    checkpoint = load_checkpoint(run_dir)
    export_checkpoint(checkpoint, path, [1, 3])
    step = mx.import_function(str(path))
    solver = Solver(checkpoint.model, checkpoint.config)
    tokens = np.stack([solver.task.parse(puzzle) for puzzle in PUZZLES]).astype(np.int32)
    rows = mx.zeros((3,), dtype=mx.int32)
    together = iterate(step, mx.array(tokens), rows, 3)
    for i, puzzle in enumerate(PUZZLES):
        alone = iterate(step, mx.array(tokens[i : i + 1]), rows[:1], 3)
        for number, wanted in enumerate(solver.steps(puzzle)):
            np.testing.assert_array_equal(alone[number][0][0], wanted.tokens)
        # Products of other shapes round otherwise, which random weights amplify from step to step.
        np.testing.assert_allclose(alone[0][4][0], together[0][4][i], atol=1e-3)
    with pytest.raises(ValueError, match="No imported function found"):
        step(mx.array(tokens[:2]), rows[:2])


def test_the_description_is_true(run_dir: str, tmp_path: Path) -> None:
    """Names, shapes, dtypes, tokens, hashes: everything a program needs that has no Python."""
    path = tmp_path / "model.mlxfn"
    checkpoint = load_checkpoint(run_dir)
    beside = export_checkpoint(checkpoint, path, [2])
    assert beside == tmp_path / "model.mlxfn.json"
    about: Dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
    step = mx.import_function(str(path))

    def zeros(entry: Dict[str, Any]) -> mx.array:
        shape = [2 if size == "B" else size for size in entry["shape"]]
        return mx.zeros(shape, dtype=getattr(mx, entry["dtype"] + "_" * (entry["dtype"] == "bool")))

    inputs = [zeros(entry) for entry in about["inputs"]]
    latents = [zeros(entry) for entry in about["latents"]]
    for outputs in (step(*inputs), step(*inputs, *latents)):
        wanted = [zeros(entry) for entry in about["outputs"]]
        assert [(o.shape, o.dtype) for o in outputs] == [(w.shape, w.dtype) for w in wanted]
    names = [entry["name"] for entry in about["outputs"]]
    assert names == [*ANSWERS, "latents.0", "latents.1"]
    assert about["latents"] == about["outputs"][len(ANSWERS) :]
    assert about["task"]["tokens"] == ["?", ".", "1", "2", "3", "4"]
    assert (about["task"]["name"], about["task"]["seq_len"]) == ("sudoku", 16)
    assert (about["batch_sizes"], about["steps"], about["halt"]) == ([2], 3, "q_halt > 0")
    assert (about["mlx_trm"], about["mlx"]) == (trm.__version__, mx.__version__)
    held = (checkpoint.path / "model.safetensors").read_bytes()
    weights = {"model.safetensors": sha256(held).hexdigest()}
    assert about["weights"] == {"step": 3, "kind": "raw", "sha256": weights, "quantized": None}
    digest = sha256(path.read_bytes()).hexdigest()
    assert about["function"] == {"file": "model.mlxfn", "sha256": digest}


def test_tokens_of_every_task_have_names() -> None:
    """As many as the vocabulary has, each its own; those of mazes are what they are drawn with."""
    for name in ("sudoku.yaml", "maze.yaml", "arc1.yaml"):
        config = trm.load_config(name)
        task = trm.build_task(config.task, config.task_seed)
        names = task.token_names
        assert len(names) == len(set(names)) == task.spec.vocab_size
    maze = trm.build_task(trm.load_config("maze_tiny.yaml").task)
    drawn = maze.format(np.arange(maze.spec.seq_len) % maze.spec.vocab_size)
    assert drawn.replace("/", "")[: maze.spec.vocab_size] == "".join(maze.token_names)


def test_a_quantized_model_is_exported(run_dir: str, tmp_path: Path) -> None:
    """It computes what the quantised model does, and its numbers are in the file packed."""
    checkpoint = load_checkpoint(run_dir)
    quantized = quantize_model(checkpoint.model, 4)
    beside = export_checkpoint(checkpoint, tmp_path / "four.mlxfn", [1], quantized)
    step = mx.import_function(str(tmp_path / "four.mlxfn"))
    inputs = mx.ones((1, 16), dtype=mx.int32), mx.zeros((1,), dtype=mx.int32)
    expected = iterate(step_function(checkpoint.model), *inputs, 2)
    for mine, wanted in zip(iterate(step, *inputs, 2), expected):
        for output, other in zip(mine, wanted):
            np.testing.assert_array_equal(output, other)
    about = json.loads(beside.read_text(encoding="utf-8"))["weights"]["quantized"]
    assert about["bits"] == 4 and about["group_sizes"]["lm_head"] == 32


def test_weights_are_in_the_file_once_and_packed(tmp_path: Path) -> None:
    """Two batch sizes and two calls of each; the rest of the file is its graphs."""
    spec = trm.TaskSpec(vocab_size=6, seq_len=16)
    config = trm.TRMConfig(**{**SIZES, "hidden_size": 256, "H_cycles": 1, "L_cycles": 1})
    model = trm.TRM(config, spec)
    model.eval()
    for bits in (32, 4):
        quantized = quantize_model(model, bits) if bits < 32 else None
        held = weight_bytes(model)
        export_step(model, tmp_path / "model.mlxfn", [1, 2])
        size = (tmp_path / "model.mlxfn").stat().st_size
        assert held < size < held + 400_000
    assert quantized is not None and quantized.bytes_before > 6_000_000


def test_an_export_is_whole_or_absent(
    run_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails leaves the file that was there, and nothing else."""
    path = tmp_path / "model.mlxfn"
    path.write_bytes(b"mine")
    checkpoint = load_checkpoint(run_dir)

    def cut_short(file: str) -> None:
        raise RuntimeError(f"[import_function] {file}\n ends too early")

    monkeypatch.setattr(mx, "import_function", cut_short)
    with pytest.raises(trm.ConfigError, match=r"model\.mlxfn: cannot be written \(.*too early\)"):
        export_checkpoint(checkpoint, path)
    assert path.read_bytes() == b"mine" and os.listdir(tmp_path) == ["model.mlxfn"]
    for sizes in ([], [0]):
        with pytest.raises(ValueError, match="batch_sizes must be numbers of at least 1"):
            export_step(checkpoint.model, path, sizes)


def test_both_files_are_replaced_or_none(
    run_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A description that cannot be written leaves the old functions; the error names it."""
    path, beside = tmp_path / "model.mlxfn", tmp_path / "model.mlxfn.json"
    checkpoint = load_checkpoint(run_dir)
    path.write_bytes(b"mine")
    beside.mkdir()
    with pytest.raises(trm.ConfigError, match=r"mlxfn\.json: cannot be written \(Is a directory"):
        export_checkpoint(checkpoint, path)
    beside.rmdir()
    beside.write_bytes(b"mine too")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mlx_trm.inference.exporting.functions.write_json", full)
    with pytest.raises(trm.ConfigError, match=r"mlxfn\.json: cannot be written \(No space"):
        export_checkpoint(checkpoint, path)
    assert (path.read_bytes(), beside.read_bytes()) == (b"mine", b"mine too")
    assert sorted(os.listdir(tmp_path)) == ["model.mlxfn", "model.mlxfn.json"]
    monkeypatch.undo()
    path.unlink()
    path.mkdir()
    with pytest.raises(trm.ConfigError, match=r"mlxfn: cannot be written \(Is a directory"):
        export_checkpoint(checkpoint, path)
    assert beside.read_bytes() == b"mine too"


def test_what_mlx_cannot_write_is_named(tmp_path: Path) -> None:
    """A model of one's own may have operations without a form in a file."""

    class Own(trm.TRM):
        """Its embedding is put in order."""

        def embed(self, inputs: mx.array, rows: Any) -> mx.array:
            """As before."""
            return mx.contiguous(super().embed(inputs, rows))

    spec = trm.TaskSpec(vocab_size=6, seq_len=16)
    model = Own(trm.TRMConfig(name="own", H_cycles=1, L_cycles=1, **SIZES), spec)
    with pytest.raises(trm.ConfigError, match="model own: MLX cannot export it .*Contiguous"):
        export_step(model, tmp_path / "model.mlxfn")
    assert not os.listdir(tmp_path)


def test_the_command(run_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It writes both files and says so; bad words are refused in one line."""
    path = tmp_path / "model.mlxfn"
    sizes = ["--batch-size", "1", "--batch-size", "2"]
    assert main(["--output", str(path), *sizes, "--quantize", "8", run_dir]) == 0
    said = capsys.readouterr()
    assert re.fullmatch(rf"written: {path} \(.*B\) and {path}\.json\n", said.out)
    assert "have 8-bit weights" in said.err
    about = json.loads((tmp_path / "model.mlxfn.json").read_text(encoding="utf-8"))
    assert about["batch_sizes"] == [1, 2] and about["weights"]["quantized"]["bits"] == 8
    other = str(tmp_path / "none" / "model.mlxfn")
    for words, complaint in (
        ([run_dir], "--output"),
        ([run_dir, "--output", other], "there is no folder"),
        ([run_dir, "--output", f"{run_dir}/step_3/{MODEL}"], "its folder is a checkpoint"),
        ([run_dir, "--output", f"{run_dir}/latest/new.mlxfn"], "its folder is a checkpoint"),
        ([run_dir, "--output", str(path), "--batch-size", "0"], "'0' is not a whole number"),
        ([str(tmp_path / "run"), "--output", str(path)], "no such run"),
    ):
        assert main(words) == 2
        assert re.fullmatch(f".*{complaint}.*\n", capsys.readouterr().err)
    assert sorted(os.listdir(tmp_path)) == ["model.mlxfn", "model.mlxfn.json"]
    load_checkpoint(run_dir)  # whole as before


# C++ ------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=None)
def mlx_folder() -> Path:
    """Where the installed MLX has headers and library; skips where they or a compiler lack."""
    folder = Path(mx.__file__).resolve().parent
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    if not (folder / "include" / "mlx" / "mlx.h").is_file():
        pytest.skip("MLX is installed without headers")
    if not list((folder / "lib").glob("libmlx.*")):
        pytest.skip("MLX is installed without its library")
    return folder


@pytest.fixture(scope="module", name="sudoku")
def fixture_sudoku(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, compiled as docs/export.md says."""
    mlx, program = mlx_folder(), tmp_path_factory.mktemp("cpp") / "sudoku"
    document = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    lines = re.findall(r"^g\+\+ .*$", document.replace("\\\n", " "), flags=re.MULTILINE)
    assert len(lines) == 1
    line = lines[0].replace("$MLX", str(mlx)).replace("-o sudoku", f"-o {program}")
    done = run(line.replace('"', "").split(), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return program


def test_cpp_prints_the_digits_that_python_prints(
    sudoku: Path, run_dir: str, tmp_path: Path
) -> None:
    """For several puzzles, numbers of steps, and the model's own wish to halt."""
    path = str(tmp_path / "model.mlxfn")
    assert main([run_dir, "--output", path]) == 0
    solver = Solver.from_checkpoint(run_dir)
    answers = set()
    for puzzle in PUZZLES:
        for steps in (1, 2, 3):
            answer = solver.solve(puzzle, steps).answer
            assert run([sudoku, path, puzzle, str(steps)]).stdout == answer + "\n"
            answers.add(answer)
        halted = solver.solve(puzzle, 16, stop_when_halted=True).answer
        assert run([sudoku, path, puzzle]).stdout == halted + "\n"
    assert len(answers) > len(PUZZLES)  # the steps matter


def test_cpp_refuses_in_a_line(sudoku: Path, run_dir: str, tmp_path: Path) -> None:
    """A puzzle of another size or with other characters, no file, no steps."""
    path = str(tmp_path / "model.mlxfn")
    assert main([run_dir, "--output", path]) == 0
    for words, complaint in (
        ((path, "1.."), "takes no single puzzle of 3 cells"),
        ((path, "x" * 16), "has digits and points, not 'x'"),
        ((str(tmp_path / "none.mlxfn"), PUZZLES[0]), "Failed to open"),
        ((path, "1.....2..3.....9"), "a puzzle of 16 cells has digits up to 4, not 9"),
        ((path, "3.."), "takes no single puzzle of 3 cells"),
        *(
            ((path, PUZZLES[0], steps), "STEPS must be a whole number from 1 to 1000")
            for steps in ("0", "-1", "4x", " 4", "", "1001", "99999999999")
        ),
        ((), "usage:"),
    ):
        done = run([sudoku, *words])
        assert (done.returncode, done.stdout) == (2, "")
        assert complaint in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_cmake_builds_the_example(run_dir: str, tmp_path: Path) -> None:
    """With the lines at the head of CMakeLists.txt."""
    mlx = mlx_folder()
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    root = run_python("-m", "mlx", "--cmake-dir").stdout.strip()
    assert Path(root).resolve() == mlx
    build = str(tmp_path / "build")
    for line in (
        ["cmake", "-S", str(ROOT / "examples" / "cpp"), "-B", build, f"-DMLX_ROOT={root}"],
        ["cmake", "--build", build],
    ):
        done = run(line)
        assert done.returncode == 0, done.stdout + done.stderr
    path = str(tmp_path / "model.mlxfn")
    assert main([run_dir, "--output", path]) == 0
    answer = Solver.from_checkpoint(run_dir).solve(PUZZLES[0], 2).answer
    assert run([Path(build) / "sudoku", path, PUZZLES[0], "2"]).stdout == answer + "\n"
