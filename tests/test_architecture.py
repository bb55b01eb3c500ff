"""The shape of the package: layers, sizes, names and what an import may do.

The layer table below and the one in docs/architecture.md are the same table; a test compares them.
"""

import ast
import json
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set, Tuple

import pytest
from pytest import MonkeyPatch

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mlx_trm"

# A module may import from lower layers, and from its own layer where that makes no cycle.
LAYERS: List[Tuple[str, ...]] = [
    ("errors", "_backend"),
    ("registry", "schema", "strict_yaml", "plugins", "assembly", "cache"),
    ("recipe", "config"),
    ("carry", "cuda", "layers", "fused", "losses", "optim", "parallel", "diagnostics", "tasks"),
    ("models",),
    ("conversion", "memory", "quantization", "streams", "torch_files", "torch_pickle"),
    ("checkpoint",),
    (
        *("inference", "evaluation", "recordings", "replay", "reporting", "runs", "resuming"),
        *("exporting", "surgery", "upstream", "upstream_sizes"),
    ),
    ("stepping",),
    ("fitting",),
    ("training",),
    ("cli",),
]
COMMANDS = (
    "__main__ train evaluate solve data convert parity plot export diagnose".split()  # top of all
)
LAYER_OF: Dict[str, int] = {name: i for i, names in enumerate(LAYERS) for name in names}
LAYER_OF.update({name: len(LAYERS) for name in COMMANDS})

# Outside packages that may be imported where the standard library does not suffice.
NUMPY_ONLY = {"numpy", "tqdm", "yaml"}
# Pairs in one layer that know nothing of each other: tasks are NumPy, the rest is MLX.
MLX_SIDE = {"carry", "cuda", "layers", "fused", "losses", "optim", "parallel", "diagnostics"}

MAX_COMMAND_LINES = 40
MAX_MODULE_LINES = 400


def modules() -> List[Path]:
    """Every Python file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def ident(path: Path) -> str:
    """A readable name for a test's parameter."""
    return path.relative_to(PACKAGE).as_posix()


def unit(path: Path) -> str:
    """The name in the layer table: the module, or the sub-package that holds it."""
    return path.relative_to(PACKAGE).parts[0].replace(".py", "")


@lru_cache(maxsize=None)
def tree(path: Path) -> ast.Module:
    """The parsed file, as Python 3.9 would parse it."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 9))


def dotted(path: Path) -> str:
    """The module's full dotted name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


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


def own_imports(path: Path) -> Iterator[str]:
    """Units of the package that a file imports ('' for the package's own ``__init__``)."""
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "mlx_trm" or name == "mlx_trm.__version__":
            continue
        target = parts[1] if len(parts) > 1 else ""
        yield target if target in LAYER_OF else ""


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


@pytest.mark.parametrize("path", modules(), ids=ident)
def test_every_module_has_a_layer(path: Path) -> None:
    """A new module is put in the layer table here and in docs/architecture.md."""
    if path != PACKAGE / "__init__.py":
        assert unit(path) in LAYER_OF, f"{unit(path)} is in no layer"


@pytest.mark.parametrize("path", modules(), ids=ident)
def test_imports_point_down(path: Path) -> None:
    """No module imports from a higher layer, nor the package's own ``__init__``."""
    if path == PACKAGE / "__init__.py":
        assert not set(own_imports(path)) & (set(COMMANDS) | {"cli"})
        return
    here = unit(path)
    for target in own_imports(path):
        if here in COMMANDS or here == "cli":
            assert target not in COMMANDS or here == "__main__", f"{here} imports command {target}"
            continue
        assert target, f"{ident(path)} imports the package itself; name the module instead"
        assert LAYER_OF[target] <= LAYER_OF[here], f"{ident(path)} imports upward: {target}"
        pair = {here, target}
        assert not ("tasks" in pair and pair & MLX_SIDE), f"{ident(path)} joins tasks and {target}"


def test_no_import_cycle() -> None:
    """Units of one layer may import each other, in one direction only."""
    graph: Dict[str, Set[str]] = {}
    for path in modules():
        if path.parent == PACKAGE and path.name == "__init__.py":
            continue
        graph.setdefault(unit(path), set()).update(set(own_imports(path)) - {unit(path), ""})
    done: Set[str] = set()

    def visit(name: str, trail: Tuple[str, ...]) -> None:
        assert name not in trail, "import cycle: " + " -> ".join(trail + (name,))
        if name not in done:
            for target in sorted(graph.get(name, ())):
                visit(target, trail + (name,))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_imports_are_seen_wherever_they_stand(tmp_path: Path, monkeypatch: Any) -> None:
    """The checks above stand on ``imports``: it sees those in functions and relative ones."""
    package = tmp_path / "mlx_trm"
    (package / "tasks").mkdir(parents=True)
    path = package / "tasks" / "toy.py"
    path.write_text(
        "def f():\n    from ..models import trm\n    from .base import Task\n    import torch.nn\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert sorted(imports(path)) == ["mlx_trm.models.trm", "mlx_trm.tasks.base.Task", "torch.nn"]
    assert sorted(own_imports(path)) == ["models", "tasks"]
    assert outside_imports(path) == {"torch"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "tasks").glob("*.py")), ids=ident)
def test_tasks_are_numpy_only(path: Path) -> None:
    """Task code imports the standard library and NumPy; arrays of MLX begin at the trainer."""
    assert outside_imports(path) - standard_library() <= NUMPY_ONLY


@pytest.mark.parametrize(
    "name",
    ["errors", "registry", "schema", "strict_yaml", "plugins", "assembly", "recipe", "config"],
)
def test_config_needs_no_arrays(name: str) -> None:
    """The configuration loads where neither MLX nor NumPy is installed."""
    path = PACKAGE / f"{name}.py"
    assert outside_imports(path) - standard_library() <= {"yaml"}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_modules_are_short(name: str) -> None:
    """A command module parses, calls one library object and returns an exit code."""
    path = PACKAGE / f"{name}.py"
    if path.exists():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_COMMAND_LINES


def test_the_commands_of_this_version_exist() -> None:
    """These are promised by README; the others of the table are planned."""
    for name in (
        "train",
        "evaluate",
        "solve",
        "plot",
        "data",
        "convert",
        "parity",
        "export",
        "diagnose",
    ):
        assert (PACKAGE / f"{name}.py").is_file(), name


@pytest.mark.parametrize("path", modules(), ids=ident)
def test_modules_are_readable_in_one_sitting(path: Path) -> None:
    """One idea a module."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_MODULE_LINES


@pytest.mark.parametrize("path", modules(), ids=ident)
def test_no_public_function_is_called_like_a_module(path: Path) -> None:
    """Importing a submodule binds its name on the package, so a function of that name would go."""
    names = {p.stem for p in PACKAGE.glob("*.py")} | set(COMMANDS) - {"__main__"}
    defined = {node.name for node in tree(path).body if isinstance(node, ast.FunctionDef)}
    assert not defined & names


@pytest.mark.parametrize("path", modules(), ids=ident)
def test_python_39_annotations(path: Path) -> None:
    """``X | Y`` in an annotation needs Python 3.10; ``tree`` refuses newer syntax by itself."""
    for node in ast.walk(tree(path)):
        for field in ("annotation", "returns"):
            annotation = getattr(node, field, None)
            if annotation is None:
                continue
            unions = [n for n in ast.walk(annotation) if isinstance(n, ast.BinOp)]
            assert not unions, f"{ident(path)}:{annotation.lineno}: write Optional or Union"


@pytest.mark.parametrize("path", modules(), ids=ident)
def test_library_code_manners(path: Path) -> None:
    """No bare except, no assert; printing is for the commands."""
    for node in ast.walk(tree(path)):
        where = f"{ident(path)}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Assert), f"{where}: raise an error of errors.py instead"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{where}: bare except"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "print":
                assert unit(path) == "cli" or unit(path) in COMMANDS, f"{where}: print in a library"


@pytest.mark.parametrize("path", modules(), ids=ident)
def test_no_other_program_and_no_code_from_data(path: Path) -> None:
    """The package starts no program, unpickles nothing and evaluates no text."""
    assert not outside_imports(path) & {"subprocess", "pickle", "shelve", "marshal"}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "os.system", "os.popen", "yaml.load"), called


@pytest.mark.parametrize("path", modules(), ids=ident)
def test_public_names_are_documented(path: Path) -> None:
    """Modules, public classes, functions and methods have a docstring."""
    module = tree(path)
    assert ast.get_docstring(module), f"{ident(path)} has no docstring"
    kinds = (ast.FunctionDef, ast.ClassDef)
    for node in module.body:
        if not isinstance(node, kinds) or node.name.startswith("_"):
            continue
        assert ast.get_docstring(node), f"{ident(path)}:{node.lineno} {node.name}"
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    assert ast.get_docstring(method), f"{ident(path)}:{method.lineno} {method.name}"


def in_fresh_python(code: str) -> str:
    """Standard output of a new interpreter that runs ``code`` from the repository's root."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_nothing_heavy() -> None:
    """``import mlx_trm`` loads no torch, plotting or network library, and no command module."""
    loaded = set(
        json.loads(
            in_fresh_python("import json, sys, mlx_trm; print(json.dumps(sorted(sys.modules)))")
        )
    )
    heavy = "torch matplotlib requests urllib3 httpx aiohttp huggingface_hub wandb tensorboard"
    network = ["urllib.request", "http.client", "socketserver", "ftplib"]
    assert not loaded & set(heavy.split() + network)
    ours = {name.split(".")[1] for name in loaded if name.startswith("mlx_trm.")}
    assert not ours & (set(COMMANDS) | {"cli"})
    assert {"config", "carry", "tasks", "models", "training"} <= ours


def test_import_takes_under_half_a_second(monkeypatch: MonkeyPatch, tmp_path: Path) -> None:
    """The best of six fresh interpreters, so that a busy machine does not decide.

    The first of them leaves its bytecode for the others, as every installation has it.
    """
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path))
    code = "import time; t = time.perf_counter(); import mlx_trm; print(time.perf_counter() - t)"
    assert min(float(in_fresh_python(code)) for _ in range(6)) < 0.5


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
    documented = [(int(number), set(re.findall(r"`([a-z_]+)", cell))) for number, cell in rows]
    expected = [(i, set(names)) for i, names in enumerate(LAYERS)]
    expected.append((len(LAYERS), {"__main__"} | {p.stem for p in _commands()}))
    assert documented == expected


def _commands() -> List[Path]:
    """The command modules that exist."""
    return [PACKAGE / f"{name}.py" for name in COMMANDS if (PACKAGE / f"{name}.py").exists()]
