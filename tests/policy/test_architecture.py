"""The shape of the package: folders, the order of imports, names, and what an import may do.

A *path segment* is a folder's or module's name in its folder. Imports go one way between segments,
at the top and inside every folder, so that each folder can be read from the bottom up.
"""

import ast
import importlib
import json
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set, Tuple

import pytest
from child_processes import run_python
from paths import ROOT

import mlx_trm

PACKAGE = ROOT / "mlx_trm"
COMMANDS = "train evaluate solve adapt plot serve data convert export parity diagnose".split()

# A segment may import from segments of earlier rows only; segments of one row know nothing of each
# other. docs/architecture.md says the same in its section "Layers".
LAYERS: List[Tuple[str, ...]] = [
    ("version", "errors"),
    ("system",),
    ("config",),
    ("nn", "datasets"),
    ("models", "tasks"),
    ("runs",),
    ("drawing",),
    ("inference",),
    ("training",),
    ("upstream",),
    ("public",),
    ("serving",),
    ("cli",),
    tuple(COMMANDS),
    ("__main__",),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Rows 3 and 4 are two towers: layers and models in MLX, puzzles and tasks in NumPy.
TOWERS = ({"nn", "models"}, {"datasets", "tasks"})
NUMPY_ONLY = {"numpy", "tqdm", "yaml"}
MOST_NAMES, MOST_LINES = 32, 400
FEWEST_MODULES, MOST_MODULES = 5, 12
# The three sorts of a maze's task are fewer, and kernels count as modules of nn/cuda.
SMALL = {"tasks/maze": 4}


def modules() -> List[Path]:
    """Every Python file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def folders() -> List[Path]:
    """Every folder of the package that holds modules, the package itself left out."""
    return sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)


def ident(path: Path) -> str:
    """A file's or folder's path in the package."""
    return path.relative_to(PACKAGE).as_posix()


def segments(path: Path) -> Tuple[str, ...]:
    """The path segments of a module; a package's ``__init__`` is the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


@lru_cache(maxsize=None)
def tree(path: Path) -> ast.Module:
    """The parsed file, as Python 3.9 would parse it."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 9))


def dotted(path: Path) -> str:
    """The module's full dotted name."""
    return ".".join(("mlx_trm", *segments(path)))


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, anywhere in it, relative ones resolved.

    ``from package import name`` yields ``package.name``.
    """
    name = dotted(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join(up + ([node.module] if node.module else []))
            for alias in node.names:
                yield f"{base}.{alias.name}"


def own_imports(path: Path) -> Set[Tuple[str, ...]]:
    """Segments of the package's modules and folders that a file imports from; () is the package."""
    found = set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "mlx_trm":
            continue
        place, kept = PACKAGE, []
        for part in parts[1:]:
            place = place / part
            if not place.is_dir() and not place.with_suffix(".py").is_file():
                break
            kept.append(part)
        found.add(tuple(kept))
    return found


def outside_imports(path: Path) -> Set[str]:
    """Top-level names of everything imported from outside the package."""
    return {name.split(".")[0] for name in imports(path)} - {"mlx_trm"}


def standard_library() -> Set[str]:
    """Names of the standard library's top-level modules."""
    if sys.version_info >= (3, 10):
        return set(sys.stdlib_module_names)
    library = Path(ast.__file__).parent
    names = {path.stem for path in library.iterdir()} | set(sys.builtin_module_names)
    return names | {path.name.split(".")[0] for path in (library / "lib-dynload").glob("*")}


def test_few_names_at_the_top() -> None:
    """A reader sees the whole package at a glance."""
    names = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(names) <= MOST_NAMES, sorted(names)
    top = {segments(path)[0] for path in modules() if segments(path)}
    assert top == set(RANK), f"not in the table of layers, or not there: {top ^ set(RANK)}"


def test_a_folder_is_a_handful_of_modules_and_one_sentence() -> None:
    """Its ``__init__`` says in one sentence what it holds, and otherwise hands names on."""
    wrong = []
    for folder in folders():
        held = [
            path
            for path in folder.iterdir()
            if path.suffix in (".py", ".cu", ".cuh") or (path / "__init__.py").exists()
        ]
        count = len(held) - 1
        if not SMALL.get(ident(folder), FEWEST_MODULES) <= count <= MOST_MODULES:
            wrong.append(f"{ident(folder)} has {count} modules")
        module = tree(folder / "__init__.py")
        text = ast.get_docstring(module) or ""
        if text.count("\n") or not text.endswith(".") or text.count(". "):
            wrong.append(f"{ident(folder)}/__init__.py: one sentence of one line, not {text!r}")
        for node in module.body[1:]:
            if not isinstance(node, (ast.ImportFrom, ast.Assign)):
                wrong.append(f"{ident(folder)}/__init__.py:{node.lineno} defines something")
    assert not wrong, "\n".join(wrong)


def test_modules_are_readable_in_one_sitting() -> None:
    """One idea a module."""
    lines = {ident(path): path.read_text(encoding="utf-8").count("\n") for path in modules()}
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}


def test_imports_point_down() -> None:
    """No module imports from a higher or an equal layer, nor from ``mlx_trm/__init__``."""
    wrong = []
    for path in modules():
        here = segments(path)
        if not here:  # the package hands names on; it starts no command
            targets = {target[0] for target in own_imports(path) if target}
            wrong += [
                f"the package imports {name}" for name in targets if RANK[name] >= RANK["serving"]
            ]
            continue
        for target in own_imports(path):
            if not target:
                wrong.append(f"{ident(path)} imports the package itself; name the module")
            elif target[0] != here[0] and RANK[target[0]] >= RANK[here[0]]:
                wrong.append(f"{ident(path)} imports upward: {'.'.join(target)}")
    assert not wrong, "\n".join(wrong)


def test_the_two_towers_know_nothing_of_each_other() -> None:
    """Layers and models are MLX and know no puzzle; datasets and tasks are NumPy and no model."""
    wrong = []
    for path in modules():
        here = segments(path)[:1]
        for tower, other in (TOWERS, TOWERS[::-1]):
            if set(here) & tower:
                seen = {target[0] for target in own_imports(path) if target} & other
                wrong += [f"{ident(path)} imports {name}" for name in seen]
    assert not wrong, "\n".join(wrong)


def circles(graph: Dict[str, Set[str]]) -> List[str]:
    """Give the circles of a graph that a walk from each node meets."""
    found: List[str] = []
    done: Set[str] = set()

    def visit(name: str, trail: Tuple[str, ...]) -> None:
        if name in trail:
            found.append(" -> ".join((*trail[trail.index(name) :], name)))
        elif name not in done:
            for target in sorted(graph.get(name, ())):
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
    return found


def segment_graph(folder: Path) -> Dict[str, Set[str]]:
    """Say which path segments of a folder import which; its ``__init__`` is left out."""
    depth = len(folder.relative_to(PACKAGE).parts)
    graph: Dict[str, Set[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        here = segments(path)
        if len(here) <= depth:
            continue
        targets = graph.setdefault(here[depth], set())
        for target in own_imports(path):
            if target[:depth] == here[:depth] and len(target) > depth:
                targets.add(target[depth])
    return {name: targets - {name} for name, targets in graph.items()}


def test_no_circle_between_path_segments() -> None:
    """At the top and in every folder imports go one way."""
    found = {
        ident(folder) or "mlx_trm": circles(segment_graph(folder))
        for folder in [PACKAGE, *folders()]
    }
    assert not {folder: each for folder, each in found.items() if each}


def test_a_circle_and_an_import_anywhere_are_seen(tmp_path: Path, monkeypatch: Any) -> None:
    """The checks above stand on these functions: imports in functions, relative ones, circles."""
    package = tmp_path / "mlx_trm"
    for name in ("tasks/toy.py", "tasks/base.py", "models/trm.py", "tasks/__init__.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("")
    path = package / "tasks" / "toy.py"
    path.write_text(
        "def f():\n    from ..models import trm\n    from .base import Task\n    import torch.nn\n"
    )
    (package / "tasks" / "base.py").write_text("from mlx_trm.tasks.toy import f\n")
    monkeypatch.setitem(globals(), "PACKAGE", package)
    assert sorted(imports(path)) == ["mlx_trm.models.trm", "mlx_trm.tasks.base.Task", "torch.nn"]
    assert own_imports(path) == {("models", "trm"), ("tasks", "base")}
    assert outside_imports(path) == {"torch"}
    assert circles(segment_graph(package / "tasks")) == ["base -> toy -> base"]


def test_tasks_are_numpy_only() -> None:
    """They import the standard library and NumPy; arrays of MLX begin at the trainer."""
    allowed = NUMPY_ONLY | standard_library() | {"pooch", "huggingface_hub", "filelock", "chess"}
    for folder in ("tasks", "datasets"):
        for path in (PACKAGE / folder).rglob("*.py"):
            assert outside_imports(path) <= allowed, ident(path)


GAMES = {"chess", "go", "baduk", "fen", "sgf", "pgn", "sudoku", "maze"}


def spoken(path: Path) -> Iterator[str]:
    """Words of a module's names and texts in small letters; docstrings and comments are left out.

    Of sentences "go" is left out, too.
    """
    prose = {id(node.value) for node in ast.walk(tree(path)) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            words = set(re.findall(r"[a-z]+", node.value.lower()))
            yield from words - {"go"} if " " in node.value else words
        for field in ("id", "attr", "name", "arg", "module"):
            text = getattr(node, field, None)
            if isinstance(text, str):
                yield from re.sub(r"([a-z])([A-Z])", r"\1_\2", text).lower().split("_")


@pytest.mark.parametrize("folder", ["nn", "models", "runs", "drawing", "inference", "training"])
def test_no_game_is_known_by_name(folder: str) -> None:
    """What a puzzle is, its task alone says: nothing here imports one, or asks for its name."""
    for path in (PACKAGE / folder).rglob("*.py"):
        assert not [each for each in own_imports(path) if each[0] == "tasks" and len(each) > 2]
        assert not GAMES & set(spoken(path)), (ident(path), GAMES & set(spoken(path)))


def test_the_pages_know_no_game() -> None:
    """Boards are clicked on and drawn as their task describes them."""
    for path in (PACKAGE / "serving").rglob("*.py"):
        assert not [each for each in own_imports(path) if each[0] == "tasks" and len(each) > 2]
    for path in [*(PACKAGE / "serving").glob("*.*"), *(PACKAGE / "drawing").glob("*.*")]:
        if path.suffix in (".js", ".css", ".html"):
            code = re.sub(r"/\*.*?\*/|//.*", "", path.read_text(encoding="utf-8"), flags=re.S)
            found = set(re.findall(r"[a-z]+", code.lower())) & (GAMES - {"go"})
            assert not found, (ident(path), found)


def test_config_needs_no_arrays() -> None:
    """The configuration loads where neither MLX nor NumPy is installed."""
    for path in [*(PACKAGE / "config").rglob("*.py"), PACKAGE / "errors.py"]:
        assert outside_imports(path) - standard_library() <= {"yaml"}, ident(path)


def test_commands_are_modules_with_a_main() -> None:
    """``mlx_trm/train.py`` is the command: arguments, one library object, printing."""
    for name in COMMANDS:
        body = tree(PACKAGE / f"{name}.py").body
        names = {getattr(node, "name", "") for node in body}
        names |= {ast.unparse(node.targets[0]) for node in body if isinstance(node, ast.Assign)}
        assert {"add_arguments", "run", "main"} <= names, name


def test_no_public_function_is_called_like_a_module() -> None:
    """Importing a submodule binds its name on the package, so a function of that name would go."""
    for path in modules():
        defined = {node.name for node in tree(path).body if isinstance(node, ast.FunctionDef)}
        assert not defined & set(RANK), ident(path)


def test_python_39_annotations() -> None:
    """``X | Y`` in an annotation needs Python 3.10; ``tree`` refuses newer syntax by itself."""
    for path in modules():
        for node in ast.walk(tree(path)):
            for field in ("annotation", "returns"):
                annotation = getattr(node, field, None)
                if annotation is not None:
                    unions = [n for n in ast.walk(annotation) if isinstance(n, ast.BinOp)]
                    assert not unions, f"{ident(path)}:{annotation.lineno}: write Optional or Union"


def test_library_code_manners() -> None:
    """No bare except, no assert; printing is for the commands."""
    for path in modules():
        prints = segments(path)[:1] and RANK[segments(path)[0]] >= RANK["cli"]
        where = ident(path)
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Assert):
                assert False, f"{where}:{node.lineno}: raise an error of errors.py instead"
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{where}:{node.lineno}: bare except"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                says = f"{where}:{node.lineno}: print in a library"
                assert node.func.id != "print" or prints, says


def test_no_other_program_and_no_code_from_data() -> None:
    """The package starts no program and evaluates no text; one module unpickles."""
    for path in modules():
        outside = outside_imports(path)
        # The self-test starts itself, so that a crash of the GPU is a line of its table.
        starts_itself = ident(path) == "cli/selftest.py" and "[sys.executable, " in path.read_text()
        assert "subprocess" not in outside or starts_itself, ident(path)
        assert not outside & {"shelve", "marshal"}, ident(path)
        # How it keeps an unpickler from importing anything is tested beside it.
        assert "pickle" not in outside or ident(path) == "upstream/torch_pickle.py", ident(path)
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "os.system", "os.popen", "yaml.load"), called
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
                assert node.attr in ("Unpickler", "UnpicklingError"), ast.unparse(node)


def test_public_names_are_documented() -> None:
    """Modules, public classes, functions and methods have a docstring."""
    missing = []
    for path in modules():
        missing += [ident(path)] if not ast.get_docstring(tree(path)) else []
        for node in tree(path).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            inner = node.body if isinstance(node, ast.ClassDef) else []
            for each in [node, *inner]:
                if isinstance(each, (ast.FunctionDef, ast.ClassDef)):
                    if not each.name.startswith("_") and not ast.get_docstring(each):
                        missing.append(f"{ident(path)}:{each.lineno} {each.name}")
    assert not missing


def test_no_hidden_switches() -> None:
    """No module steers others by a one-element list that it changes: contextvars do that."""
    wrong = []
    for path in modules():
        for node in tree(path).body:
            value = getattr(node, "value", None)
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(value, ast.List):
                if len(value.elts) <= 1 and not path.name == "__init__.py":
                    wrong.append(f"{ident(path)}:{node.lineno}")
    assert not wrong


def in_fresh_python(code: str) -> str:
    """Standard output of a new interpreter that runs ``code`` from the repository's root."""
    done = run_python("-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_nothing_heavy() -> None:
    """All public names together: no torch, plotting, network, bar, writer of ONNX, or command."""
    code = "import json, sys, mlx_trm; mlx_trm.TRM; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(in_fresh_python(code)))
    heavy = "torch matplotlib requests urllib3 httpx aiohttp huggingface_hub wandb tensorboard "
    heavy += "tensorboardX pooch filelock starlette uvicorn chess"
    heavy += " tqdm mlx_trm.datasets.fetch mlx_trm.inference.exporting.onnx_models"
    network = ["urllib.request", "http.client", "socketserver", "ftplib", "email.message"]
    assert not loaded & set(heavy.split() + network)
    ours = {name.split(".")[1] for name in loaded if name.startswith("mlx_trm.")}
    assert not ours & (set(COMMANDS) | {"cli", "serving"})
    assert {"config", "tasks", "models", "training"} <= ours


def test_import_changes_nothing() -> None:
    """No environment variable, seed, logging handler or device is set by the import."""
    code = """
import logging, os, random
import mlx.core as mx
import numpy as np
def state():
    numpy_state = np.random.get_state()
    return (dict(os.environ), random.getstate(), numpy_state[1].tolist(), numpy_state[2],
            list(logging.root.handlers), logging.root.level, str(mx.default_device()),
            [key.tolist() for key in mx.random.state])
before = state()
import mlx_trm
print(before == state(), len(logging.getLogger("mlx_trm").handlers))
"""
    same, handlers = in_fresh_python(code).split()
    assert same == "True"
    assert handlers in ("0", "1")  # one NullHandler at most


def test_an_import_alone_loads_mlx_and_hardly_anything_else() -> None:
    """What no script has asked for is not waited for; MLX is there with the BLAS of its choice."""
    code = "import json, sys, mlx_trm; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(in_fresh_python(code)))
    assert "mlx.core" in loaded and not loaded & {"numpy", "yaml", "mlx.nn", "mlx_trm.public"}
    ours = {name.split(".")[1] for name in loaded if name.startswith("mlx_trm.")}
    assert ours == {"version", "errors", "system"}


@pytest.mark.parametrize(
    "code",
    [
        "import mlx_trm; mlx_trm.TRM",
        "from mlx_trm import TRM",
        "from mlx_trm import *; TRM, load_config, __version__",
        "import mlx_trm; mlx_trm.runs.checkpoint.Checkpoint",
        "import mlx_trm; mlx_trm.TRM = 1; dir(mlx_trm); assert mlx_trm.TRM == 1",
        "import mlx_trm; assert {'TRM', 'runs', '__version__'} <= set(dir(mlx_trm))",
        "import mlx_trm, inspect; inspect.unwrap(mlx_trm); assert not hasattr(mlx_trm, 'TRN')",
        "from mlx_trm.config.loading import load_config; load_config('sudoku_tiny.yaml')",
        "from mlx_trm.config.registry import TASKS; assert 'go' in TASKS and TASKS.get('go').cls",
        "from mlx_trm.config.registry import LOSSES; assert LOSSES.names()[0]",
        "from mlx_trm.config.registry import MODELS; assert [*MODELS]",
        "from mlx_trm.config.registry import OPTIMIZERS; assert 'muon' in OPTIMIZERS",
    ],
)
def test_public_names_come_when_they_are_asked_for(code: str) -> None:
    """However that is done, and whichever module a script imports first."""
    in_fresh_python(code)


def test_exports_exist_and_hide_no_module() -> None:
    """Every name in ``__all__`` exists; none is the name of a module of the package."""
    names = json.loads(
        in_fresh_python(
            "import json, mlx_trm as t; "
            "print(json.dumps([[n, hasattr(t, n)] for n in t.__all__]))"
        )
    )
    assert [name for name, there in names if not there] == []
    submodules = {p.stem for p in PACKAGE.glob("*.py")} | {
        p.name for p in PACKAGE.iterdir() if p.is_dir()
    }
    assert not {name for name, _ in names} & submodules
    assert len(names) == len({name for name, _ in names})


def test_the_layer_table_is_the_documented_one() -> None:
    """docs/architecture.md lists the same layers in the same order."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split("## Layers", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", section, flags=re.MULTILINE)
    documented = [(int(rank), set(re.findall(r"`(\w+)/?`", cell))) for rank, cell in rows]
    assert documented == [(rank, set(names)) for rank, names in enumerate(LAYERS)]


def test_the_documented_tree_is_the_tree() -> None:
    """docs/architecture.md lists every file and folder of the package, with a phrase each."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = text.split("## The tree", 1)[1].split("```", 2)[1]
    documented, trail = {}, []
    for line in block.splitlines()[1:]:
        match = re.match(r"( *)(\S+)\s+(\S.*)", line)
        assert match, f"a name and a phrase: {line!r}"
        depth = len(match[1]) // 2
        trail = [*trail[:depth], match[2].rstrip("/")]
        documented["/".join(trail[1:])] = match[3]
    there = {ident(path) for path in [*modules(), *folders()] if path.name != "__init__.py"}
    there |= {ident(path) for path in PACKAGE.rglob("*.cu*")} | {"", "__init__.py"}
    assert set(documented) == there | {"config/presets", "py.typed", "samples", "weights"}


def test_names_of_the_first_version_are_still_exported() -> None:
    """What a script of version 0.1.0 imports is there."""
    first = """
    EMA HRM TRM AdamATan2 Batch Carry Checkpoint CheckpointConfig CheckpointError ConfigError
    DataError EvalConfig Evaluator ExperimentConfig HRMConfig InitConfig Maze MazeConfig ModelConfig
    Outputs Puzzle PuzzleDataset Quantized RecursiveModel Solver SolverStep Sudoku SudokuConfig
    TRMConfig TRMError TRMHier6 TRMHier6Config TRMSingleZ TRMSingleZConfig Task TaskConfig TaskSpec
    TrainConfig TrainReport Trainer TransferReport TransformersBaseline TransformersBaselineConfig
    __version__ act_loss build_model build_task device_report export_checkpoint export_step
    load_checkpoint load_config load_upstream_checkpoint quantize_model random_batch read_weights
    register_model register_task save_checkpoint save_config softmax_cross_entropy
    stablemax_cross_entropy transfer_weights
    """.split()
    assert set(first) <= set(mlx_trm.__all__)


def test_old_places_of_public_names_still_import() -> None:
    """``mlx_trm.config``, ``.training`` and others were modules; as folders they hand names on."""
    names = {
        "config": "ExperimentConfig load_config save_config dump_config",
        "training": "Trainer TrainReport",
        "models": "TRM TRMConfig build_model register_model RecursiveModel",
        "tasks": "Task Puzzle Sudoku Maze ARC PuzzleDataset build_task register_task",
        "errors": "TRMError ConfigError DataError CheckpointError",
        "runs": "StepReport load_checkpoint save_checkpoint",
        "inference": "Solver SolverStep Evaluator",
        "upstream": "load_upstream_checkpoint",
    }
    for module, wanted in names.items():
        found = importlib.import_module(f"mlx_trm.{module}")
        assert not [name for name in wanted.split() if not hasattr(found, name)], module
