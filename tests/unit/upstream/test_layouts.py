"""Published checkpoints, in files of the same layout, scaled down."""

import json
import sys
import types
from pathlib import Path
from typing import Any, Dict, Optional

import numpy as np
import pytest
import torch_writer as tw
from child_processes import run_python
from paths import ROOT
from published import averaged, named, same, weights

import mlx_trm as trm
from mlx_trm.config.loading import config_from_dict
from mlx_trm.convert import main
from mlx_trm.models import named_arrays
from mlx_trm.runs.checkpoint import load_checkpoint
from mlx_trm.upstream.names import read_presets
from mlx_trm.upstream.reading import ReadOptions, open_upstream


def config_file(**arch: Any) -> str:
    """What the reference writes beside a checkpoint."""
    arch = {"name": "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1", **arch}
    return json.dumps({"arch": {"loss": {"name": "losses@ACTLossHead"}, **arch}, "lr": 1e-4})


def eqr_file(arrays: Dict[str, np.ndarray], ema: bool = True) -> Dict[str, Any]:
    """The dict that EqR's trainer saves, with what stands beside the weights.

    Its initial states are no part of a state dict. NumPy's random state is pickled as calls of
    NumPy's functions, of which none is looked up here.
    """
    kept = {name: array for name, array in arrays.items() if not name.endswith("_init")}
    moments = {0: {"step": 5.0, "exp_avg": np.ones(3, np.float32)}, 1: {"step": 5.0}}
    latin = tw.name("_codecs", "encode") + tw.several(tw.text("b"), tw.text("latin1")) + b"R"
    array = tw.name("numpy.core.multiarray", "_reconstruct")
    array += tw.several(tw.name("numpy", "ndarray"), tw.several(tw.number(0)), latin) + b"R"
    dtype = tw.name("numpy", "dtype") + tw.several(tw.text("u4"), b"\x89", b"\x88") + b"R"
    dtype += tw.several(tw.number(3), tw.text("<"), b"N", b"N", b"N") + b"b"
    array += tw.several(tw.number(1), tw.several(tw.number(624)), dtype, b"\x89", latin) + b"b"
    arch = {"name": "eqr@EqRModel", "H_cycles": 3, "L_cycles": 4, "num_heads": 4}
    arch.update(pos_encodings="rope", lambda_=0.9, noise_scale=0.02, loss={"name": "losses"})
    tree = {
        "step": 50000,
        "total_steps": 50000,
        "model": named(kept),
        "optimizers": [{"state": moments, "param_groups": [{"lr": 1e-4, "params": [0, 1]}]}],
        "optimizer_lrs": [1e-4],
        "carry": None,
        "rng": {"torch": np.zeros(16, np.uint8), "cuda": None},
        "numpy": (tw.text("MT19937"), array, 624, 0, 0.0),
        "python": (3, (2147483648, 4294967295, 624), None),
        "iteration": 10,
        "config": {"arch": arch, "data_paths": ["data/x"], "ema": True},
        "wandb_run_id": None,
    }
    return {**tree, "ema": {"mu": 0.999, "shadow": averaged(kept)}} if ema else tree


@pytest.fixture(name="hub")
def serve(monkeypatch, tmp_path):
    """Make ``hf:`` give files of a folder, by a library that is not there."""
    folder = tmp_path / "hub"

    class Api:
        """The two calls of the library that are used."""

        def __init__(self, endpoint=None):
            self.endpoint = endpoint

        def model_info(self, repo_id, *, revision=None, files_metadata=False, timeout=None):
            """List the files."""
            files = [path for path in (folder / repo_id).rglob("*") if path.is_file()]
            names = [str(path.relative_to(folder / repo_id)) for path in files]
            siblings = [types.SimpleNamespace(rfilename=name) for name in names]
            return types.SimpleNamespace(sha="5" * 40, siblings=siblings)

        def hf_hub_download(self, repo_id, filename, *, revision, **_):
            """Give a file's place."""
            return str(folder / repo_id / filename)

    module = types.ModuleType("huggingface_hub")
    module.HfApi = Api
    module.utils = types.SimpleNamespace(are_progress_bars_disabled=lambda: True)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return folder


def publish(hub: Path, name: str, file: str, tree: Any, side: Optional[str] = None) -> str:
    """Put a checkpoint, and settings beside it, into a repository; give what ``convert`` takes."""
    path = hub / name / file
    path.parent.mkdir(parents=True)
    tw.save_tree(path, tree)
    if side is not None:
        (path.parent / "all_config.yaml").write_text(side, encoding="utf-8")
    return f"hf:{name}"


def converted(source: str, folder: Path, *options: str) -> trm.Checkpoint:
    """Convert without any configuration; give the run."""
    assert main([source, str(folder / "run"), *options]) == 0
    return load_checkpoint(folder / "run")


# Published layouts -------------------------------------------------------------------------------


def test_trm_s_sudoku_by_its_repository_alone(hub, tmp_path):
    arrays = weights("sudoku", mlp_t=True, pos_encodings="none")
    name = "Sanjin2024/TinyRecursiveModels-Sudoku-Extreme-mlp"
    run = converted(publish(hub, name, "step_16275", named(arrays)), tmp_path)
    same(run, arrays)
    model = run.config.model
    assert run.step == 16275 and run.config.task.name == "sudoku" and run.config.task.size == 9
    assert (model.H_cycles, model.L_cycles, model.mlp_t, model.puzzle_emb_len) == (3, 6, True, 16)
    solver = trm.Solver.from_checkpoint(run.path)
    assert solver.model.spec.seq_len == 81


def test_trm_s_maze_and_its_settings_beside_it(hub, tmp_path):
    """What the file beside it says counts more than the preset."""
    arrays = weights("maze", num_heads=4)
    side = config_file(H_cycles=2, L_cycles=5, num_heads=4, pos_encodings="rope", puzzle_emb_len=16)
    source = publish(
        hub, "Sanjin2024/TinyRecursiveModel-Maze-Hard", "step_9765", named(arrays), side
    )
    (hub / source[3:] / "trm.py").write_text("raise SystemExit", encoding="utf-8")
    run = converted(source, tmp_path)
    same(run, arrays)
    model = run.config.model
    assert (model.H_cycles, model.L_cycles, model.num_heads, run.step) == (2, 5, 4, 9765)
    assert run.config.task.name == "maze" and run.spec.seq_len == 900


def test_arc_prize_s_two_checkpoints_are_listed_and_one_is_taken(hub, tmp_path, capsys):
    """A row for each of many puzzles; cycles are those beside the file."""
    name = "arcprize/trm_arc_prize_verification"
    arrays = weights("arc", rows=4000)
    side = config_file(H_cycles=3, L_cycles=4, num_heads=8, pos_encodings="rope", puzzle_emb_len=16)
    publish(hub, name, "arc_v1_public/step_518071", named(arrays), side)
    publish(hub, name, "arc_v2_public/step_723914", named(arrays), side)
    assert main([f"hf:{name}", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert "arc_v1_public/step_518071, arc_v2_public/step_723914" in message
    run = converted(f"hf:{name}:arc_v1_public/step_518071", tmp_path)
    same(run, arrays)
    assert run.config.model.L_cycles == 4 and run.spec.num_puzzle_identifiers == 4000
    assert run.step == 518071


def test_cgar_s_file_and_the_configuration_beside_it(hub, tmp_path):
    arrays = weights("sudoku", mlp_t=True)
    source = publish(hub, "Kaleemullah/trm-cgar-sudoku", "pytorch_model.bin", named(arrays))
    side = hub / source[3:] / "config.yaml"
    side.write_text(config_file(H_cycles=3, L_cycles=6, pos_encodings="none"), encoding="utf-8")
    run = converted(source, tmp_path)
    same(run, arrays)
    assert run.config.model.pos_encodings == "none" and run.step == 0


@pytest.mark.parametrize("entry, scale", [("model", 1.0), ("ema", 0.5), ("ema.shadow", 0.5)])
def test_eqr_s_two_sets_without_puzzle_prefix(hub, tmp_path, capsys, entry, scale):
    """No table, no initial states; one of two sets has to be named; its own settings count."""
    none = {"puzzle_emb_ndim": 0, "puzzle_emb_len": 0}
    arrays = weights("sudoku", num_heads=4, **none)
    source = publish(hub, "locuslab/EqR-model", "sudoku-extreme/eqr.pth", eqr_file(arrays))
    assert main([source, str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "2 sets of weights: model, ema.shadow; choose one with --entry NAME" in message
    assert not (tmp_path / "run").exists()
    run = converted(source, tmp_path, "--entry", entry)
    assert "has no H_init, L_init" in capsys.readouterr().err
    model = run.config.model
    assert (model.puzzle_emb_ndim, model.puzzle_emb_len, run.model.positions) == (0, 0, 0)
    assert (model.start, model.damping, model.noise) == ("random", 0.1, 0.02)
    assert (model.L_cycles, run.step) == (4, 50000)
    found = {name: np.array(array) for name, array in named_arrays(run.model.parameters())}
    for name, array in arrays.items():
        if not name.endswith("_init"):
            assert np.array_equal(found[name], array * np.float32(scale)), name
    assert np.std(found["H_init"]) > 0.3


def test_eqr_s_settings_come_from_its_preset_too(tmp_path):
    """Where the file says nothing: a state dict alone."""
    arrays = weights("sudoku", mlp_t=True, puzzle_emb_ndim=0, puzzle_emb_len=0)
    kept = {name: array for name, array in arrays.items() if not name.endswith("_init")}
    path = tw.save_tree(tmp_path / "eqr.pth", named(kept))
    model = open_upstream(path, None, ReadOptions(preset="eqr-sudoku")).config.model
    assert (model.start, model.damping, model.L_cycles, model.mlp_t) == ("random", 0.05, 6, True)
    with pytest.raises(trm.ConfigError, match="do not show what they are of.*eqr-sudoku"):
        open_upstream(path)


def test_an_average_without_its_table_is_not_taken_for_a_model_without_one(tmp_path):
    """Attention shows no number of positions: only the settings tell that a table is missing."""
    tree = {"ema": averaged(weights("sudoku")), "config": {"puzzle_emb_ndim": 16, "lambda_": 0.9}}
    path = tw.save_tree(tmp_path / "last.pt", tree)
    with pytest.raises(trm.CheckpointError, match="says that there is a puzzle table"):
        open_upstream(path, None, ReadOptions(preset="eqr-sudoku"))


def test_a_file_beside_it_that_cannot_be_read_is_said(tmp_path, caplog):
    path = tw.save_tree(tmp_path / "step_1", named(weights("sudoku", mlp_t=True)))
    (tmp_path / "config.yaml").write_text("model: {name: trm}\n", encoding="utf-8")  # a run's own
    open_upstream(path, None, ReadOptions(preset="trm-sudoku"))
    assert "cannot be read" not in caplog.text
    for name, text in (("config.json", "{"), ("all_config.yaml", "lr: 1\n")):
        caplog.clear()
        (tmp_path / name).write_text(text, encoding="utf-8")
        open_upstream(path, None, ReadOptions(preset="trm-sudoku"))
        assert "cannot be read" in caplog.text and name in caplog.text


def test_hrm_s_checkpoint(hub, tmp_path):
    arrays = weights("sudoku", name="hrm", num_heads=8)
    side = config_file(H_cycles=2, L_cycles=2, num_heads=8, pos_encodings="rope")
    source = publish(
        hub, "sapientinc/HRM-checkpoint-sudoku-extreme", "checkpoint", named(arrays), side
    )
    run = converted(source, tmp_path)
    same(run, arrays)
    assert run.config.model.name == "hrm" and run.model.positions == 1


def test_weights_of_a_repository_that_is_not_known_show_their_task(hub, tmp_path, capsys):
    source = publish(hub, "ann/model", "last.pt", named(weights("arc", rows=3)))
    run = converted(source, tmp_path, "train.lr=0.5")
    assert "taken as a checkpoint of trm-arc, by its weights" in capsys.readouterr().err
    assert run.config.task.name == "arc" and run.config.train.lr == 0.5
    unclear = publish(hub, "ann/maze", "last.pt", named(weights("maze")))
    assert main([unclear, str(tmp_path / "other")]) == 2
    assert "--preset NAME with NAME one of trm-sudoku" in capsys.readouterr().err
    assert main([unclear, str(tmp_path / "other"), "--preset", "trm-maze"]) == 0


def test_python_takes_a_published_checkpoint_without_a_configuration(hub):
    arrays = weights("sudoku", mlp_t=True)
    source = publish(hub, "alphaXiv/trm-model-sudoku", "step_32550_sudoku_epoch50k", named(arrays))
    model = trm.load_upstream_checkpoint(source)
    assert model.config.L_cycles == 6 and model.spec.seq_len == 81


def test_every_preset_is_a_configuration():
    content = read_presets()
    for name, values in content["presets"].items():
        config = config_from_dict(values, name)
        assert config.model.name in name.replace("cgar", "trm").replace("eqr", "trm")
    assert set(content["repositories"].values()) == set(content["presets"])


def test_every_published_file_is_in_the_guide_with_its_preset():
    rows = (ROOT / "docs" / "migration_guide.md").read_text(encoding="utf-8").splitlines()
    for start, preset in read_presets()["repositories"].items():
        (row,) = [
            row for row in rows if row.startswith("| `") and f"`{start.split(':')[0]}`" in row
        ]
        assert f"`{preset}`" in row and "http" not in row, start


def test_a_preset_that_is_none_and_two_answers_are_one_line(tmp_path, capsys):
    path = str(tw.save_tree(tmp_path / "step_1", named(weights("sudoku"))))
    out = str(tmp_path / "run")
    for line, part in (
        ([path, out, "--preset", "trm-sudok"], "did you mean 'trm-sudoku'"),
        ([path, out, "--preset", "trm-sudoku", "--config", "sudoku.yaml"], "name one of them"),
        ([path, out, "--output", out, "--preset", "trm-sudoku"], "name one run folder"),
        ([path, out], "or --preset NAME"),
    ):
        assert main(line) == 2
        message = capsys.readouterr().err
        assert len(message.splitlines()) == 1 and part in message, message
    assert not Path(out).exists()


# Memory ------------------------------------------------------------------------------------------

MEASURED = """
import resource, sys
from mlx_trm.convert import main
from mlx_trm.upstream import torch_files
unit = 1 if sys.platform == "darwin" else 1024
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
before = peak()
assert main([sys.argv[1], sys.argv[2], "--preset", "trm-arc", "--quiet"]) == 0
print('peak', peak() - before)
"""


def test_a_table_of_a_million_rows_is_held_once(tmp_path):
    """As ARC Prize's: its 2 GB are neither held as bytes too, nor copied."""
    rows, width = 1_045_829, 64
    wide = weights("arc", hidden_size=width)
    wide["puzzle_emb.weights"] = np.ones((rows, width), np.float32)
    size = rows * width * 4
    path = tw.save_tree(tmp_path / "step_723914", named(wide))
    del wide
    done = run_python("-c", MEASURED, path, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 1.4 * size
    assert load_checkpoint(tmp_path / "run").spec.num_puzzle_identifiers == rows
