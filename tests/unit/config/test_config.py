"""Loading, checking and saving configurations."""

import dataclasses
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    Any,
    Dict,
    Iterator,
    List,
    Literal,
    Optional,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import pytest
import yaml
from child_processes import run_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import ROOT

from mlx_trm.config.assembly import given_settings
from mlx_trm.config.checks import check_fields
from mlx_trm.config.loading import (
    LAYOUT,
    TrainConfig,
    config_from_dict,
    config_to_dict,
    dump_config,
    load_config,
    packaged_configs,
    save_config,
    validate_config,
)
from mlx_trm.config.registry import MODELS, TASKS
from mlx_trm.config.sections import (
    CheckpointConfig,
    EvalConfig,
    ExperimentConfig,
    ModelConfig,
    TaskConfig,
)
from mlx_trm.config.strict_yaml import dump_yaml, parse_scalar, parse_yaml
from mlx_trm.errors import ConfigError


@dataclass
class GridConfig(TaskConfig):
    """A throw-away task with a field of every supported type."""

    size: int = field(default=9, metadata={"choices": (4, 6, 9)})
    share: float = field(default=0.5, metadata={"above": 0, "max": 1})
    moves: List[str] = field(default_factory=list, metadata={"choices": ("digits", "rows")})
    levels: Optional[List[float]] = None
    mode: Literal["soft", "hard"] = "soft"
    limit: Union[int, str, None] = None
    colours: bool = False
    note: str = ""

    def problems(self) -> List[str]:
        """A check of two fields, and one that names none."""
        found = []
        if self.colours and self.size == 4:
            found.append("colours: needs size 6 or more, not 4")
        if self.note == "contradiction":
            found.append("the note contradicts itself")
        return found


@dataclass
class PathConfig(TaskConfig):
    """Another task."""

    width: int = 30


@dataclass
class NetConfig(ModelConfig):
    """A throw-away model."""

    name: str = "net"
    hidden_size: int = field(default=512, metadata={"min": 1})
    num_heads: int = field(default=8, metadata={"min": 1})
    puzzle_emb_ndim: Optional[int] = None

    def __post_init__(self) -> None:
        """A dataclass may refuse its values in its own way."""
        if self.hidden_size == 13:
            raise ValueError("hidden_size 13 brings bad luck")

    def problems(self) -> List[str]:
        """A division that would fail if num_heads had not been checked before."""
        if self.hidden_size % self.num_heads:
            return [f"num_heads: {self.num_heads} does not divide hidden_size {self.hidden_size}"]
        return []


@pytest.fixture(autouse=True)
def throw_away_names(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks sudoku, maze, arc and models net, deep, unless a test wants the real ones."""
    if "real_names" in request.fixturenames:
        return
    monkeypatch.setattr(TASKS, "_entries", {})
    monkeypatch.setattr(MODELS, "_entries", {})
    for name, config_class in (("sudoku", GridConfig), ("maze", PathConfig), ("arc", TaskConfig)):
        TASKS.register(name, config_class)(type(name, (), {}))
    for name in ("net", "deep"):
        MODELS.register(name, NetConfig)(type(name, (), {}))


@pytest.fixture(name="real_names")
def real_names_fixture() -> None:
    """The package's own tasks and models instead of the throw-away ones."""
    import mlx_trm.models  # noqa: F401  pylint: disable=unused-import
    import mlx_trm.tasks  # noqa: F401  pylint: disable=unused-import


@pytest.fixture(name="write")
def write_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that writes a file, in a working directory of its own, and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: Union[str, bytes], name: str = "my.yaml") -> str:
        data = text if isinstance(text, bytes) else text.encode("utf-8")
        Path(name).write_bytes(data)
        return name

    return write


MINIMAL = "task: {name: sudoku}\nmodel: {name: net}\n"


def error_of(source: str, overrides: Any = ()) -> str:
    """The message that loading ends in."""
    with pytest.raises(ConfigError) as error:
        load_config(source, overrides)
    return str(error.value)


# Defaults, YAML, overrides ----------------------------------------------------------------------


def test_defaults_then_yaml_then_overrides(write: Any) -> None:
    """Each stage wins over the one before."""
    source = write(
        "task: {name: sudoku, size: 6}\nmodel: {name: net}\ntrain:\n  lr: 1e-3\n  epochs: 10\n"
    )
    config = load_config(source, ["train.lr=5e-4", "task.share=1", "seed=7", "train.lr=2e-4"])
    assert config.train == TrainConfig(lr=2e-4, epochs=10)
    assert config.task == GridConfig("sudoku", size=6, share=1.0)
    assert config.model == NetConfig()
    assert (config.eval, config.checkpoint) == (EvalConfig(), CheckpointConfig())
    assert (config.seed, config.run_dir, config.plugins) == (7, None, [])


def test_paper_defaults() -> None:
    """The defaults are those of the reference's recipe."""
    train = TrainConfig()
    assert (train.batch_size, train.epochs, train.lr, train.lr_warmup_steps) == (
        768,
        50000,
        1e-4,
        2000,
    )
    assert (train.weight_decay, train.puzzle_emb_weight_decay, train.puzzle_emb_lr) == (
        1.0,
        1.0,
        1e-4,
    )
    assert (train.beta1, train.beta2, train.ema, train.ema_rate) == (0.9, 0.95, True, 0.999)
    assert (train.loss, train.freeze, train.lr_min_ratio) == ("stablemax", "none", 1.0)


def test_task_seed_is_the_top_level_one_unless_set(write: Any) -> None:
    """A seed of 0 counts as set."""
    source = write(MINIMAL)
    assert load_config(source, ["seed=5"]).task_seed == 5
    assert load_config(source, ["seed=5", "task.seed=0"]).task_seed == 0


def test_empty_sections_have_their_defaults(write: Any) -> None:
    """A section whose lines are all commented out is null to YAML."""
    config = load_config(write(MINIMAL + "train:\n#  lr: 1\neval: null\n"))
    assert (config.train, config.eval) == (TrainConfig(), EvalConfig())


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        ("3", 3),
        ("50_000", 50000),
        ("010", 10),
        ("1.", 1.0),
        (".5", 0.5),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("2026-11-20", "2026-11-20"),
        ("none", "none"),
        ("1e", "1e"),
        ("0x1F", "0x1F"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("'3'", "3"),
        ('"a b"', "a b"),
        ("[a, 1]", ["a", 1]),
        ("[a", "[a"),
        ("a: b", "a: b"),
        ("#3", "#3"),
        ("@x", "@x"),
        ("*x", "*x"),
        pytest.param("9" * 5000, "9" * 5000, id="too many digits"),
        pytest.param("9" * 50000 + "x", "9" * 50000 + "x", id="quickly"),
    ],
)
def test_scalars_of_overrides(text: str, value: Any) -> None:
    """YAML 1.2's scalars; signs of YAML are plain text unless a list or a quotation begins."""
    result = parse_scalar(text)
    if text != "9" * 5000:  # older Pythons have no limit on digits
        assert result == value and type(result) is type(value)


def test_scalars_in_files_follow_the_same_rules() -> None:
    """Text stays text and numbers are numbers, in a file too."""
    text = "a: 1e-4\nb: yes\nc: 2026-11-20\nd: '1e-4'\ne: .inf\non: 1\n1: x\nnull: y\n"
    value, duplicates = parse_yaml(text)
    assert value == {
        "a": 1e-4,
        "b": "yes",
        "c": "2026-11-20",
        "d": "1e-4",
        "e": float("inf"),
        "on": 1,
        "1": "x",
        "null": "y",
    }
    assert duplicates == []


def test_override_chooses_another_task(write: Any) -> None:
    """``task.name`` switches the dataclass; keys only another task knows are explained."""
    source = write("task: {name: sudoku}\nmodel: {name: net}\n")
    config = load_config(source, ["task.name=maze", "task.width=5", "model.name=deep"])
    assert config.task == PathConfig("maze", width=5)
    assert config.model == NetConfig("deep")
    source = write("task: {name: sudoku, size: 4, widht: 3}\nmodel: {name: net}\n")
    assert error_of(source, ["task.name=maze"]) == (
        "my.yaml has 2 problems:\n"
        "  unknown key 'task.size'; task 'maze' has no such setting ('sudoku' has)\n"
        "  unknown key 'task.widht'; did you mean 'task.width'?"
    )


def test_one_override_may_come_without_a_list(write: Any) -> None:
    """A text is one override, not a sequence of letters."""
    assert load_config(write(MINIMAL), "seed=3").seed == 3  # type: ignore[arg-type]


# Problems ---------------------------------------------------------------------------------------


def test_every_problem_in_one_go(write: Any) -> None:
    """The example of the documentation, word for word; the order in the file does not matter."""
    expected = (
        "sudoku.yaml has 3 problems:\n"
        "  unknown key 'train.batchsize'; did you mean 'train.batch_size'?\n"
        "  train.loss: 'stable' is not one of 'stablemax', 'softmax'; did you mean 'stablemax'?\n"
        "  task.name: unknown task 'sudoko'; did you mean 'sudoku'? (known: arc, maze, sudoku)"
    )
    task, train = "task: {name: sudoko}\n", "train:\n  batchsize: 8\n  loss: stable\n"
    for text in (task + train, train + task):
        assert error_of(write(text + "model: {name: net}\n", "sudoku.yaml")) == expected


@pytest.mark.parametrize(
    "override, problem",
    [
        ("train.lr=fast", "train.lr: expected a number, not 'fast'"),
        ("train.lr=true", "train.lr: expected a number, not true"),
        ("train.lr=", "train.lr: expected a number, not null"),
        ("train.lr=.inf", "train.lr: must be a finite number, not inf"),
        ("train.lr=.nan", "train.lr: must be a finite number, not nan"),
        ("train.lr=1e400", "train.lr: must be a finite number, not inf"),
        ("train.lr=-1", "train.lr: must be at least 0, not -1.0"),
        ("train.beta2=1", "train.beta2: must be less than 1, not 1.0"),
        ("train.batch_size=0", "train.batch_size: must be at least 1, not 0"),
        ("train.batch_size=1.5", "train.batch_size: expected a whole number, not 1.5"),
        (
            "train.batch_size=1e3",
            "train.batch_size: expected a whole number, not 1000.0; write 1000",
        ),
        ("train.batch_size=true", "train.batch_size: expected a whole number, not true"),
        ("train.batch_size='8'", "train.batch_size: expected a whole number, not '8'"),
        ("train.batch_size=[8]", "train.batch_size: expected a whole number, not a list"),
        ("train.batch_size={a: 8}", "train.batch_size: expected a whole number, not a section"),
        ("train.batch_size=" + "9" * 20, "train.batch_size: the number is too large"),
        ("train.max_steps=x", "train.max_steps: expected a whole number or null, not 'x'"),
        ("train.ema=1", "train.ema: expected true or false, not 1"),
        ("train.ema=yes", "train.ema: expected true or false, not 'yes'; write true"),
        ("train.ema=Off", "train.ema: expected true or false, not 'Off'; write false"),
        (
            "run_dir=2026",
            "run_dir: expected text or null, not 2026; " "put it in quotes if it is meant as text",
        ),
        ("run_dir='  '", "run_dir: is empty; name a folder or leave it out"),
        ("seed=-1", "seed: must be at least 0, not -1"),
        ("seed=4294967296", "seed: must be at most 4294967295, not 4294967296"),
        ("plugins=", "plugins: expected a list of text, not null"),
        ("task.size=5", "task.size: 5 is not one of 4, 6, 9"),
        ("task.share=0", "task.share: must be more than 0, not 0.0"),
        ("task.share=1.5", "task.share: must be at most 1, not 1.5"),
        (
            "task.moves=digit",
            "task.moves: 'digit' is not one of 'digits', 'rows'; did you mean 'digits'?",
        ),
        ("task.moves=3", "task.moves: item 1: expected text, not 3"),
        ("task.moves=null", "task.moves: expected a list of text, not null"),
        (
            "task.moves=[digits, colums]",
            "task.moves: 'colums' is not one of 'digits', 'rows'",
        ),
        ("task.moves=[digits, 3]", "task.moves: item 2: expected text, not 3"),
        ("task.levels=[0.5, x]", "task.levels: item 2: expected a number, not 'x'"),
        (
            "task.mode=sof",
            "task.mode: 'sof' is not one of 'soft', 'hard'; did you mean 'soft'?",
        ),
        ("task.levels=x", "task.levels: item 1: expected a number, not 'x'"),
        ("task.levels=yes", "task.levels: item 1: expected a number, not 'yes'"),
        ("task.limit=1.5", "task.limit: expected a whole number or text or null, not 1.5"),
        ("task.note=null", "task.note: expected text, not null"),
        ("task.name=3", "task.name: expected text, not 3"),
        ("task.name=", "task.name: is missing (known: arc, maze, sudoku)"),
        (
            "model.name=nte",
            "model.name: unknown model 'nte'; did you mean 'net'? (known: deep, net)",
        ),
        ("model.num_heads=0", "model.num_heads: must be at least 1, not 0"),
        ("model.num_heads=3", "model.num_heads: 3 does not divide hidden_size 512"),
        ("model.hidden_size=13", "model: hidden_size 13 brings bad luck"),
        ("task.note=contradiction", "task: the note contradicts itself"),
        ("eval.interval=7", "eval.interval: 7 does not divide train.epochs 50000"),
        ("eval.steps=0", "eval.steps: must be at least 1, not 0"),
        (
            "checkpoint.every=10mn",
            "checkpoint.every: '10mn' is neither a number of steps nor minutes such as 10min",
        ),
        (
            "checkpoint.every=0",
            "checkpoint.every: 0 is neither a number of steps nor minutes such as 10min",
        ),
        (
            "checkpoint.every=0.0min",
            "checkpoint.every: '0.0min' is neither a number of steps nor minutes such as 10min",
        ),
        ("checkpoint.keep=0", "checkpoint.keep: must be at least 1, not 0"),
        ("train.batchsize=3", "unknown key 'train.batchsize'; did you mean 'train.batch_size'?"),
        ("trian.lr=3", "unknown key 'trian.lr'; did you mean 'train.lr'?"),
        ("lr=3", "unknown key 'lr'; did you mean 'train.lr'?"),
        ("train.num_heads=3", "unknown key 'train.num_heads'; did you mean 'model.num_heads'?"),
        ("sed=3", "unknown key 'sed'; did you mean 'seed'?"),
        (
            "global_batch_size=3",
            "unknown key 'global_batch_size'; did you mean 'train.batch_size'?",
        ),
        ("train.lr.x=3", "unknown key 'train.lr.x'; did you mean 'train.lr'?"),
        ("train.=3", "unknown key 'train.'; did you mean 'train'?"),
        ("zzz=3", "unknown key 'zzz'"),
        ("train=3", "train: is a section; set one of its fields, such as train.batch_size=..."),
        ("train", "train: is a section; set one of its fields, such as train.batch_size=..."),
        ("train.lr", "'train.lr': '=' is missing; write train.lr=VALUE"),
        ("=3", "'=3': the name before '=' is missing"),
        ("", "'': the name before '=' is missing"),
    ],
)
def test_problems_of_single_settings(write: Any, override: str, problem: str) -> None:
    """What, where, and how to mend it."""
    message = error_of(write(MINIMAL), [override])
    heading, _, line = message.partition(": ")
    assert line == problem
    assert heading in ("my.yaml (overrides)", "my.yaml (with overrides)")


@pytest.mark.parametrize(
    "text, value",
    [
        ("task.moves=digits", ["digits"]),
        ("task.moves=[digits, rows]", ["digits", "rows"]),
        ("task.levels=3", [3.0]),
        ("task.levels=1e-3", [1e-3]),
        ("task.levels=null", None),
        ("train.report_to=tensorboard", ["tensorboard"]),
        ("init.only=L_level.*", ["L_level.*"]),
        ("task.data_dir=some/where", "some/where"),
    ],
)
def test_one_value_is_a_list_of_one(write: Any, text: str, value: Any) -> None:
    """On the line and in a file: brackets are for several."""
    key, _, written = text.partition("=")
    section, _, name = key.partition(".")
    assert getattr(getattr(load_config(write(MINIMAL), [text]), section), name) == value
    values: Dict[str, Any] = {"task": {"name": "sudoku"}, "model": {"name": "net"}}
    values.setdefault(section, {})[name] = yaml.safe_load(written)
    assert getattr(getattr(config_from_dict(values), section), name) == value


@pytest.mark.usefixtures("real_names")
def test_every_list_setting_takes_one_value() -> None:
    """Of every task and model, too: what is refused is the value, not that it is no list."""
    classes = {*LAYOUT.sections.values()}
    for registry in LAYOUT.registries.values():
        classes |= {registry.get(name).config_class for name in registry.names()}
    seen = 0
    for cls in classes:
        for name, hint in get_type_hints(cls).items():
            arms = get_args(hint) if get_origin(hint) is Union else (hint,)
            if any(get_origin(arm) is list for arm in arms) and str not in arms:
                seen += 1
                built = check_fields(cls, {name: "word"}, "x", lenient=True)
                assert built[0].get(name, ["word"]) == ["word"], (cls, name)
                assert not any("expected a list" in problem.text for problem in built[1]), name
    assert seen >= 5


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "is empty; it needs at least task.name and model.name"),
        ("# nothing\n", "is empty; it needs at least task.name and model.name"),
        ("3\n", "expected sections such as 'train:', not 3"),
        ("[a, b]\n", "expected sections such as 'train:', not a list"),
        ("just words\n", "expected sections such as 'train:', not 'just words'"),
        (MINIMAL + "train: 3\n", "train: expected a section of settings, not 3"),
        (MINIMAL + "train: [1]\n", "train: expected a section of settings, not a list"),
        (MINIMAL + "null: 3\n", "unknown key 'null'"),
        (MINIMAL + "1: 3\n", "unknown key '1'"),
        ("task: {name: sudoku}\n", "model.name: is missing (known: deep, net)"),
        (
            MINIMAL + "train:\n  lr: 1\n  ema: true\n  lr: 2\n",
            "line 6: duplicate key 'train.lr', first in line 4",
        ),
        (MINIMAL + "seed: 1\nseed: 1\nseed: 1\n", "line 4: duplicate key 'seed', first in line 3"),
        (MINIMAL + "train:\n  lr: 1\ntrain:\n", "line 5: duplicate key 'train', first in line 3"),
        (
            "task:\n\tname: sudoku\n",
            "line 2, column 1: found character '\\t' that cannot start any token; "
            "indent with spaces instead of tabs",
        ),
        (
            "task:\n  name: a: b\n",
            "line 2, column 10: a second ':' in one line, or wrong indentation; "
            "quote text that contains ': '",
        ),
        (
            "task:\n  name: sudoku\n model:\n  name: net\n",
            "line 3, column 2: wrong indentation, or something left over from the lines before",
        ),
        ("task: {name: sudoku\n", "line 2, column 1: expected ',' or '}', but got '<stream end>'"),
        ("a: 'x\n", "line 2, column 1: found unexpected end of stream"),
        (MINIMAL + "---\n" + MINIMAL, "line 3, column 1: a second document begins; keep one"),
        (
            "task: &a {name: sudoku}\nmodel: *a\n",
            "line 2, column 8: the alias '*a' is not supported; write the value out",
        ),
        (
            "task: !!python/object:os.system {}\n",
            "line 1, column 7: the tag '!!python/object:os.system' is not supported",
        ),
        ("seed: !!int x\n", "line 1, column 7: 'x' is not a usable int"),
        ("seed: !!bool yes\n", "line 1, column 7: 'yes' is not a usable bool"),
        ("seed: !!set {a}\n", "line 1, column 7: the tag '!!set' is not supported"),
        ("seed: !!seq {a: 3}\n", "line 1, column 7: the tag '!!seq' is not supported"),
        ("seed: !!seq 3\n", "line 1, column 7: the tag '!!seq' is not supported"),
        ("? [a]\n: 3\n", "line 1, column 3: a key must be a word"),
        ("a: b\nc: \x00\n", "line 2: the character '\\x00' is not allowed"),
        pytest.param("a: " + "[" * 999, "is nested too deeply", id="nested"),
        (b"a: \xff\n", "is not UTF-8 text (byte 3)"),
        (MINIMAL.encode("utf-16"), "is not UTF-8 text (byte 0)"),
    ],
)
def test_problems_of_files(write: Any, text: Union[str, bytes], problem: str) -> None:
    """One line with the place, whatever is wrong with the file."""
    assert error_of(write(text)) == f"my.yaml: {problem}"


def test_a_byte_order_mark_and_windows_line_ends_are_fine(write: Any) -> None:
    """Editors on other systems leave them."""
    source = write(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode() + b"seed: 3\r\n")
    assert load_config(source).seed == 3


def test_heading_says_where_the_problems_are(write: Any) -> None:
    """In the file, in the overrides, or in both."""
    good, bad = write(MINIMAL), write(MINIMAL + "sed: 3\n", "bad.yaml")
    assert error_of(bad).startswith("bad.yaml: ")
    assert error_of(bad, ["seed=3"]).startswith("bad.yaml: ")
    assert error_of(good, ["sede=3"]).startswith("my.yaml (overrides): ")
    assert error_of(bad, ["sede=3"]).startswith("bad.yaml (with overrides) has 2 problems:\n")


@pytest.mark.parametrize(
    "source", ["sudok.yaml", "there/sudoku.yml", "", "a\0b", pytest.param("x" * 5000, id="long")]
)
def test_a_file_that_is_not_there(write: Any, source: str) -> None:
    """The message lists what comes with the package."""
    write(MINIMAL)
    message = error_of(source)
    assert "there is no such file" in message and "\n" not in message
    assert f"(packaged: {', '.join(packaged_configs())})" in message
    if source == "sudok.yaml":
        assert "; did you mean 'sudoku.yaml'?" in message


def test_a_folder_and_an_unreadable_file(write: Any, tmp_path: Path) -> None:
    """Neither is a configuration."""
    assert error_of(str(tmp_path)) == f"{tmp_path}: is a folder; name a YAML file in it"
    source = write(MINIMAL)
    os.chmod(source, 0)
    if not os.access(source, os.R_OK):  # root reads everything
        assert error_of(source) == "my.yaml: cannot be read (Permission denied)"


@given(st.text(alphabet=st.sampled_from(list("ab:[]{}-#&*!|>'\"%@`,? \n\t1.e~\\\x85\ufeff"))))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_value_or_one_line(text: str) -> None:
    """Reading ends in values or in a ValueError of one line, never in another exception."""
    try:
        value, _ = parse_yaml(text)
    except ValueError as error:
        assert "\n" not in str(error) and str(error)
    else:
        assert value is None or isinstance(value, (dict, list, str, int, float, bool))


# A path or a packaged name ----------------------------------------------------------------------


@pytest.mark.usefixtures("real_names")
def test_a_path_wins_over_a_packaged_name(write: Any) -> None:
    """``sudoku.yaml`` is the file in the working directory, where there is one."""
    packaged = load_config("sudoku.yaml")
    assert packaged.train.batch_size == 768
    text = (ROOT / "mlx_trm" / "config" / "presets" / "sudoku.yaml").read_text(encoding="utf-8")
    write(text.replace("batch_size: 768", "batch_size: 5"), "sudoku.yaml")
    assert load_config("sudoku.yaml").train.batch_size == 5
    assert load_config(Path("sudoku.yaml")).train.batch_size == 5


@pytest.mark.usefixtures("real_names")
@pytest.mark.parametrize("name", packaged_configs())
def test_packaged_configs(name: str) -> None:
    """They load, are valid, and dumping and loading them changes nothing."""
    config = load_config(name)
    validate_config(config)
    assert config.stem == Path(name).stem
    assert config_from_dict(parse_yaml(dump_config(config))[0]) == config


@pytest.mark.usefixtures("real_names")
def test_sudoku_presets_are_the_papers() -> None:
    """The recipe of the reference's README, and the two mixers."""
    mlp, attention = load_config("sudoku.yaml"), load_config("sudoku_att.yaml")
    assert mlp.train == TrainConfig()  # whose values test_paper_defaults checks
    assert mlp.train == attention.train and mlp.eval == attention.eval
    assert mlp.eval.interval == 5000 and mlp.task == attention.task
    have = {key: getattr(mlp.model, key) for key in ("hidden_size", "num_heads", "expansion")}
    assert have == {"hidden_size": 512, "num_heads": 8, "expansion": 4.0}
    cycles = [getattr(mlp.model, key) for key in ("L_layers", "H_cycles", "L_cycles")]
    assert cycles == [2, 3, 6]
    differing = {
        key for key, value in vars(mlp.model).items() if value != getattr(attention.model, key)
    }
    assert differing == {"mlp_t", "pos_encodings"}
    assert vars(mlp.model)["mlp_t"] is True and vars(attention.model)["pos_encodings"] == "rope"


def test_stem(write: Any) -> None:
    """Runs are named after the file, or the folder of a saved run, or the task."""
    assert load_config(write(MINIMAL, "copy.yaml")).stem == "copy"
    os.makedirs("runs/first")
    assert load_config(write(MINIMAL, "runs/first/config.yaml")).stem == "first"
    built = ExperimentConfig(GridConfig("sudoku"), NetConfig())
    assert built.stem == "sudoku"


def test_copies_know_where_they_came_from(write: Any) -> None:
    """``dataclasses.replace`` keeps the file's name and which settings it named."""
    config = load_config(write(MINIMAL, "copy.yaml"), ["train.lr=1e-3"])
    assert config.given == {"task.name", "model.name", "train.lr"} == given_settings(config)
    copied = dataclasses.replace(config, seed=7)
    assert (copied.stem, given_settings(copied)) == ("copy", given_settings(config))
    assert "task.size" in given_settings(ExperimentConfig(GridConfig("sudoku"), NetConfig()))


def test_what_is_no_setting_is_not_saved_compared_or_shown(write: Any) -> None:
    """Where a configuration came from does not decide a run."""
    config = load_config(write(MINIMAL, "copy.yaml"))
    built = ExperimentConfig(GridConfig("sudoku"), NetConfig())
    assert config == built and repr(config) == repr(built)
    assert dump_config(config) == dump_config(built)
    validate_config(config)
    for name in ("origin", "given"):
        assert name not in config_to_dict(config) and f"{name}:" not in dump_config(config)


@pytest.mark.parametrize("key", ["origin", "given"])
def test_what_is_no_setting_cannot_be_set(write: Any, key: str) -> None:
    """Neither by a file nor by an override: an unknown key, as any other."""
    path = write(f"{MINIMAL}{key}: copy\n")
    with pytest.raises(ConfigError, match=f"unknown key '{key}'"):
        load_config(path)
    with pytest.raises(ConfigError, match=f"unknown key '{key}'"):
        load_config(write(MINIMAL), [f"{key}=copy"])


# Saving -----------------------------------------------------------------------------------------

numbers = st.floats(min_value=0, allow_infinity=False, allow_nan=False)
characters = st.characters(exclude_characters="\0", codec="utf-8")
texts = st.text(characters, max_size=12) | st.sampled_from(
    [
        "1e-4",
        "yes",
        "no",
        "null",
        "~",
        "",
        " x ",
        "0x1F",
        "1_0",
        "2026-11-20",
        "1:30",
        "<<",
        "=",
        "-",
    ]
)
counts = st.integers(min_value=1, max_value=2**62)


@st.composite
def experiments(draw: Any) -> ExperimentConfig:
    """Any valid configuration."""
    epochs = draw(st.integers(min_value=1, max_value=10**6))
    return ExperimentConfig(
        task=GridConfig(
            "sudoku",
            data_dir=draw(st.none() | texts.filter(bool)),
            train_file=draw(st.none() | texts.filter(bool)),
            seed=draw(st.none() | st.integers(min_value=0, max_value=2**32 - 1)),
            size=draw(st.sampled_from([6, 9])),
            share=draw(st.floats(min_value=0, max_value=1, exclude_min=True)),
            moves=draw(st.lists(st.sampled_from(["digits", "rows"]))),
            levels=draw(st.none() | st.lists(numbers, max_size=3)),
            mode=draw(st.sampled_from(["soft", "hard"])),
            limit=draw(st.none() | counts | texts),
            colours=draw(st.booleans()),
            note=draw(texts.filter(lambda text: text != "contradiction")),
        ),
        model=NetConfig(
            draw(st.sampled_from(["net", "deep"])), puzzle_emb_ndim=draw(st.none() | counts)
        ),
        train=TrainConfig(
            batch_size=draw(counts),
            epochs=epochs,
            max_steps=draw(st.none() | counts),
            lr=draw(numbers),
            ema=draw(st.booleans()),
            ema_rate=draw(st.floats(min_value=0, max_value=1, exclude_max=True)),
            loss=draw(st.sampled_from(["stablemax", "softmax"])),
        ),
        eval=EvalConfig(interval=draw(st.none() | st.just(epochs)), steps=draw(st.none() | counts)),
        checkpoint=CheckpointConfig(
            draw(st.none() | counts | st.sampled_from(["10min", "0.5min"]))
        ),
        seed=draw(st.integers(min_value=0, max_value=2**32 - 1)),
        run_dir=draw(st.none() | texts.filter(str.strip)),
    )


@given(experiments())
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_saved_configurations_load_unchanged(tmp_path: Path, config: ExperimentConfig) -> None:
    """The resolved configuration is a configuration, equal in every value and type."""
    validate_config(config)
    path = tmp_path / "config.yaml"
    save_config(config, path)
    loaded = load_config(str(path))
    assert loaded == config
    assert repr(loaded) == repr(config)  # 1 and 1.0 are equal, but not the same
    assert dump_config(loaded) == path.read_text(encoding="utf-8")


@given(experiments())
@settings(max_examples=30, deadline=None)
def test_saved_configurations_mean_the_same_to_other_readers(config: ExperimentConfig) -> None:
    """A plain YAML 1.1 reader sees the same values."""
    assert yaml.safe_load(dump_config(config)) == config_to_dict(config)


@given(st.text() | st.floats(allow_nan=False) | st.integers() | st.booleans() | st.none())
@settings(max_examples=200, deadline=None)
def test_dumped_scalars_read_back(value: Any) -> None:
    """Text that looks like a number, say, is quoted."""
    back, _ = parse_yaml(dump_yaml({"key": value, "list": [value]}))
    assert repr(back) == repr({"key": value, "list": [value]})


def test_dump_is_complete_and_plain() -> None:
    """Every field is there, in order; subclasses of plain types are plain."""

    class Text(str):
        """A text of another class, as NumPy's is."""

    config = ExperimentConfig(GridConfig("sudoku", note=Text("a")), NetConfig())
    text = dump_config(config)
    assert text.startswith("task:\n  name: sudoku\n  data_dir: null\n")
    assert "  lr: 0.0001\n" in text and "plugins: []\n" in text
    names = [f.name for f in dataclasses.fields(ExperimentConfig)]
    assert [*config_to_dict(config), "origin", "given"] == names
    assert type(config_to_dict(config)["task"]["note"]) is str


def test_saving_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When writing fails, the old file is as it was and nothing is left beside it."""
    path = tmp_path / "config.yaml"
    config = ExperimentConfig(GridConfig("sudoku"), NetConfig())
    save_config(config, path)
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    config.seed = 1
    with pytest.raises(OSError, match="No space left"):
        save_config(config, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
    with pytest.raises(OSError):
        save_config(config, tmp_path / "missing" / "config.yaml")


# From Python ------------------------------------------------------------------------------------


def test_config_from_dict() -> None:
    """Dicts are checked as files are; what YAML 1.1 reads as text is a number where one is due."""
    values: Dict[str, Any] = {
        "task": {"name": "sudoku"},
        "model": {"name": "net"},
        "train": {"lr": "1e-4"},
    }
    config = config_from_dict(values, "here", ["train.epochs=3"])
    assert (config.train.lr, config.train.epochs) == (1e-4, 3)
    assert values["train"] == {"lr": "1e-4"}
    values["train"] = {"lr": "1"}
    with pytest.raises(ConfigError, match=r"^here: train.lr: expected a number, not '1'$"):
        config_from_dict(values, "here")


def test_validate_config_checks_what_python_built() -> None:
    """Direct construction is free; this is the check that the trainer makes."""
    good = ExperimentConfig(GridConfig("sudoku"), NetConfig(), train=TrainConfig(lr=1))
    validate_config(good)
    bad = ExperimentConfig(
        GridConfig("sudoko", size=5),
        NetConfig(num_heads=3),
        train=TrainConfig(lr="1e-4", batch_size=True),  # type: ignore[arg-type]
        seed=-1,
    )
    with pytest.raises(ConfigError) as error:
        validate_config(bad)
    assert str(error.value) == (
        "configuration has 6 problems:\n"
        "  task.size: 5 is not one of 4, 6, 9\n"
        "  train.batch_size: expected a whole number, not true\n"
        "  train.lr: expected a number, not '1e-4'\n"
        "  seed: must be at least 0, not -1\n"
        "  task.name: unknown task 'sudoko'; did you mean 'sudoku'? (known: arc, maze, sudoku)\n"
        "  model.num_heads: 3 does not divide hidden_size 512"
    )


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"train": {"lr": 1}}, "train: expected a TrainConfig, not dict"),
        ({"eval": EvalConfig(interval=7)}, "eval.interval: 7 does not divide train.epochs 50000"),
        (
            {
                "model": NetConfig(puzzle_emb_ndim=0),
                "train": TrainConfig(freeze="weights"),
            },
            "train.freeze: nothing is left to train, model.puzzle_emb_ndim is 0",
        ),
        (
            {"checkpoint": CheckpointConfig(every=1.5)},
            "checkpoint.every: expected a whole number or text or null, not 1.5",
        ),
        ({"run_dir": Path("x")}, "run_dir: expected text or null, not PosixPath('x')"),
        (
            {"task": PathConfig("maze", data_dir="a", test_file="b")},
            "task.data_dir: is used as it is, so test_file would be ignored; give only one",
        ),
        (
            {"task": GridConfig("sudoku", size=4, colours=True)},
            "task.colours: needs size 6 or more, not 4",
        ),
    ],
)
def test_validate_config_across_sections(change: Dict[str, Any], problem: str) -> None:
    """Settings that are fine by themselves and do not fit together."""
    config = ExperimentConfig(GridConfig("sudoku"), NetConfig())
    validate_config(dataclasses.replace(config))
    with pytest.raises(ConfigError) as error:
        validate_config(dataclasses.replace(config, **change))
    assert str(error.value) == f"configuration: {problem}"


# Plugins ----------------------------------------------------------------------------------------

PLUGIN = """
from dataclasses import dataclass
from mlx_trm.config.sections import TaskConfig
from mlx_trm.config.registry import TASKS

@dataclass
class CopyConfig(TaskConfig):
    length: int = 5

@TASKS.register("copy", CopyConfig)
class Copy:
    pass
"""


@pytest.fixture(name="modules")
def modules_fixture() -> Iterator[None]:
    """Forget the modules that a test imports."""
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("plugin", ["my_copy_plugin.py", "my_copy_plugin"])
def test_plugins_register_before_anything_is_checked(
    write: Any, plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file by its path, or a module by its name; loading twice imports once."""
    monkeypatch.syspath_prepend(os.getcwd())
    write(PLUGIN, "my_copy_plugin.py")
    source = write(f"plugins: [{plugin}]\ntask: {{name: copy, length: 7}}\nmodel: {{name: net}}\n")
    first = load_config(source)
    cls = TASKS.get("copy").cls
    assert vars(first.task)["length"] == 7
    again = load_config(source, ["task.length=8"])
    assert vars(again.task)["length"] == 8 and TASKS.get("copy").cls is cls
    assert config_from_dict(config_to_dict(first)) == first


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    "plugin, text, problem",
    [
        (
            "nowhere_to_be_found",
            "",
            "no module 'nowhere_to_be_found'; install it, or give the path of its .py file",
        ),
        ("missing.py", None, "missing.py: No such file or directory"),
        ("p.py", "import nowhere_to_be_found", "p.py needs the module 'nowhere_to_be_found'"),
        ("p.py", "x = undefined_name", "p.py: NameError: name 'undefined_name' is not defined"),
        ("p.py", "raise RuntimeError('one\\ntwo')", "p.py: RuntimeError: one (p.py, line 1)"),
        ("p.py", "\nraise SystemExit(3)", "p.py: SystemExit: 3 (p.py, line 2)"),
        ("p.py", "x = 1\nx = )", "p.py: SyntaxError: unmatched ')' (p.py, line 2)"),
        (
            "p.py",
            "from mlx_trm.config.loading import no_such_name",
            "p.py: ImportError: cannot import name 'no_such_name' from 'mlx_trm.config.loading'",
        ),
        (
            "p.py",
            "from mlx_trm.config.registry import TASKS\nfrom mlx_trm.config import TaskConfig\n"
            "@TASKS.register('maze', TaskConfig)\nclass A: pass",
            "p.py: ValueError: task 'maze' is",
        ),
    ],
)
def test_plugins_that_fail(write: Any, plugin: str, text: Optional[str], problem: str) -> None:
    """One line; the original error is its cause."""
    if text is not None and plugin.endswith(".py"):
        write(text, plugin)
    source = write(MINIMAL + f"plugins: [{plugin}]\n")
    with pytest.raises(ConfigError) as error:
        load_config(source)
    assert str(error.value).startswith(f"my.yaml: plugins: {problem}")
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is not None
    with pytest.raises(ConfigError):  # and it is not taken for imported the second time
        load_config(source)


def test_a_script_may_name_itself_as_plugin(tmp_path: Path) -> None:
    """The file that runs as ``__main__`` is not imported again under another name."""
    script = tmp_path / "script.py"
    script.write_text(PLUGIN + """
import mlx_trm.models
from mlx_trm.config.loading import load_config
config = load_config("c.yaml")
print(type(config.task) is CopyConfig)
""")
    (tmp_path / "c.yaml").write_text(
        "plugins: [script.py]\ntask: {name: copy}\nmodel: {name: trm}\n"
    )
    done = run_python(script, cwd=tmp_path)
    assert done.stdout == "True\n", done.stderr


def test_importing_the_configuration_brings_little() -> None:
    """Without the package around it: PyYAML is loaded when a file is read."""
    code = (
        "import sys, types\n"
        f"package = types.ModuleType('mlx_trm'); package.__path__ = [{str(ROOT / 'mlx_trm')!r}]\n"
        "sys.modules['mlx_trm'] = package\n"
        "import mlx_trm.config.loading\n"
        "print('yaml' in sys.modules, 'numpy' in sys.modules, 'mlx.core' in sys.modules)\n"
    )
    done = run_python("-c", code)
    assert done.stdout == "False False False\n", done.stderr
