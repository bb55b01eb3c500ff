"""The ARC task as a person meets it: settings, grids as text, drawings, files."""

import json
from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.config.loading import load_config
from mlx_trm.errors import ConfigError, DataError
from mlx_trm.tasks import ARC, ARCConfig
from mlx_trm.tasks.arc.grids import (
    CANVAS_COLOR,
    PALETTE,
    crop,
    crop_sizes,
    cut_visible,
    encode,
    parse_name,
)

GRIDS = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1)).map(
    lambda t: np.random.default_rng(t[2]).integers(0, 10, t[:2]).astype(np.uint8)
)
TASK = ARC(ARCConfig("arc"))


# Grids -----------------------------------------------------------------------------------------


@given(grid=GRIDS)
@settings(max_examples=80, deadline=None)
def test_cropping_an_encoded_grid_gives_the_grid(grid: np.ndarray) -> None:
    """In the corner; and as text, back and forth."""
    tokens = encode(grid)
    assert tokens.shape == (900,) and tokens.dtype == np.uint8
    assert (crop(tokens) == grid).all() and crop(tokens).shape == grid.shape
    assert (TASK.parse(TASK.format(tokens)) == tokens).all()
    assert (TASK.parse(json.dumps(grid.tolist())) == tokens).all()


@given(grid=GRIDS, where=st.tuples(st.integers(0, 29), st.integers(0, 29)))
@settings(max_examples=60, deadline=None)
def test_what_is_seen_of_a_translated_grid(grid: np.ndarray, where: Any) -> None:
    """The grid, wherever it stands."""
    row, column = (min(w, 30 - side) for w, side in zip(where, grid.shape))
    tokens = encode(grid, 30, row, column)
    assert (cut_visible(tokens) == grid).all()
    cells = tokens.reshape(30, 30)
    assert (cells == 1).sum() == (
        grid.shape[1] * (row + grid.shape[0] < 30) + grid.shape[0] * (column + grid.shape[1] < 30)
    )


def slow_crop(cells: np.ndarray) -> tuple:
    """The largest rectangle in the corner by trying all of them."""
    best = (0, 0, 0)
    for height in range(1, cells.shape[0] + 1):
        for width in range(1, cells.shape[1] + 1):
            inside = cells[:height, :width]
            if ((inside >= 2) & (inside <= 11)).all() and height * width > best[0]:
                best = (height * width, height, width)
    return best[1:]


@given(st.integers(0, 2**32 - 1), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_cropping_anything(seed: int, holes: int) -> None:
    """Of any tokens: as trying every rectangle says."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(2, 12, (3, 6, 6))
    for grid in cells:
        grid.ravel()[rng.integers(0, 36, holes)] = rng.choice([0, 1, 12])
    found = crop_sizes(cells.reshape(3, 36), 6)
    assert found.tolist() == [list(slow_crop(grid)) for grid in cells]


def test_names_of_augmentations() -> None:
    """A plain name is the puzzle itself; a malformed one is refused."""
    plain = parse_name("007bbfb7")
    assert plain.original == "007bbfb7" and plain.transform == 0
    change = parse_name("x|||t6|||0592416378")
    assert (change.original, change.transform) == ("x", 6)
    assert change.colors.tolist() == [0, 5, 9, 2, 4, 1, 6, 3, 7, 8]
    for wrong in ("x|||t8|||0123456789", "x|||t1|||0123456788", "x|||1|||0123456789"):
        with pytest.raises(DataError, match="is not the name of an augmented puzzle"):
            parse_name(wrong)


@pytest.mark.parametrize(
    "text, says",
    [
        ("01/2", "row 2 has 1 cells, row 1 has 2"),
        ("0a", "a grid is written as rows of digits"),
        ("", "a grid is written as rows of digits"),
        ("[[0, 1], [2]]", "row 2 has 1 cells"),
        ("[[0, 10]]", "row 1 has 10, which is no colour 0 to 9"),
        ("[[0, true]]", "row 1 has True"),
        ("[[0, 1]", "is not JSON"),
        ("[]", "a grid is a list of rows"),
        ("[[]]", "is 1x0, allowed are 1x1 to 30x30"),
        ("/".join(["0"] * 31), "is 31x1, allowed are 1x1 to 30x30"),
    ],
)
def test_text_that_is_no_grid(text: str, says: str) -> None:
    """Refused with what is wrong."""
    with pytest.raises(DataError, match=says):
        TASK.parse(text)


def test_text_may_have_spaces_and_lines() -> None:
    """As people paste it."""
    assert (TASK.parse("0 1 2\n3 4 5\n") == TASK.parse("012/345")).all()


def test_drawings() -> None:
    """Plain with digits and marks, in colour on the right backgrounds, and as pixels."""
    tokens, answer = TASK.parse("01/23"), TASK.parse("01/24")
    assert TASK.render(tokens) == " 0 1 \n 2 3 "
    assert TASK.render(tokens, labels=answer) == " 0 1 \n 2!3 "
    assert TASK.render(tokens, labels=TASK.parse("01")).endswith("2x2 instead of 1x2")
    colored = TASK.render(tokens, color=True)
    assert "48;2;0;116;217m 1" in colored and "48;2;46;184;64m 3" in colored
    assert (TASK.image(tokens) == PALETTE[[[0, 1], [2, 3]]]).all()
    nothing = np.zeros(900, np.uint8)
    assert TASK.format(nothing) == "." and (TASK.image(nothing) == CANVAS_COLOR).all()
    holes = encode(np.ones((2, 2), np.uint8), 30, 3, 3)
    holes[3 * 30 + 3] = 0
    assert TASK.format(holes) == ".1/11"


# Settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, subsets, test_set",
    [
        ("arc1.yaml", ["training", "evaluation", "concept"], "evaluation"),
        ("arc2.yaml", ["training2", "evaluation2", "concept"], "evaluation2"),
    ],
)
def test_the_papers_recipes(name: str, subsets: Any, test_set: str) -> None:
    """Subsets, augmentations, depths, rates; the task's seed stays when the run's changes."""
    config = load_config(name, ["seed=7"])
    task, model, train = config.task, config.model, config.train
    assert isinstance(task, ARCConfig)
    assert (task.subsets, task.test_set_name, task.num_aug) == (subsets, test_set, 1000)
    assert config.seed == 7 and config.task_seed == 42
    assert load_config(name, ["task.seed=1"]).task_seed == 1
    have: Dict[str, Any] = {**vars(model), **vars(train)}
    want = {
        "hidden_size": 512, "num_heads": 8, "expansion": 4, "L_layers": 2, "H_cycles": 3,
        "L_cycles": 4, "halt_max_steps": 16, "halt_exploration_prob": 0.1, "puzzle_emb_ndim": 512,
        "puzzle_emb_len": 16, "mlp_t": False, "pos_encodings": "rope", "batch_size": 768,
        "epochs": 100000, "lr": 1e-4, "puzzle_emb_lr": 1e-2, "weight_decay": 0.1,
        "puzzle_emb_weight_decay": 0.1, "lr_warmup_steps": 2000, "ema_rate": 0.999, "ema": True,
        "loss": "stablemax",
    }  # fmt: skip
    assert {key: have[key] for key in want} == want
    assert config.eval.interval == 10000 and ARC(task, 42).spec.seq_len == 900


@pytest.mark.parametrize(
    "setting, says",
    [
        ("task.test_set_name=evaluaton", "'evaluaton' is not one of .*did you mean 'evaluation'"),
        ("task.subsets=[]", "subsets: is empty"),
        ("task.subsets=[evaluation, evaluation]", "subsets: names one twice"),
        ("task.subsets=[evaluation, ../x]", "without slashes"),
        ("task.train_file=a.csv", "train_file: ARC is read from input_file_prefix"),
        ("task.num_aug=-1", "num_aug: must be at least 0"),
        ("task.max_grid_size=31", "max_grid_size: must be at most 30"),
        ("task.data_dir=[a, a]", "data_dir: names a folder twice"),
        ("task.data_dir=[]", "data_dir: is an empty list"),
    ],
)
def test_settings_that_do_not_fit(setting: str, says: str) -> None:
    """One line for each."""
    with pytest.raises(ConfigError, match=says):
        load_config("arc1.yaml", [setting])


def test_where_the_files_are(tmp_path: Path, monkeypatch: Any) -> None:
    """Given, bundled, fetched, or nowhere; a path that exists wins."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def prefix(given_: Any) -> Path:
        return ARC(ARCConfig("arc", input_file_prefix=given_)).prefix()

    with pytest.raises(DataError, match="data fetch arc1 arc2 conceptarc"):
        prefix(None)
    (tmp_path / "fetched" / "arc-agi").mkdir(parents=True)
    assert prefix(None) == tmp_path / "fetched" / "arc-agi"
    assert prefix("nowhere/x") == Path("nowhere/x")
    with pytest.raises(DataError, match="'training': there is neither nowhere/x_training_chall"):
        ARC(ARCConfig("arc", input_file_prefix="nowhere/x")).subsets()
    (tmp_path / "here_training_challenges.json").write_text("{}")
    assert prefix("here") == Path("here")
