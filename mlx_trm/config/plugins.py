"""Imports the modules that a configuration names under ``plugins``, and keeps their texts.

Whose code runs is decided here (docs/security.md). What the user's own configuration or command
line names is imported. What the configuration *of a checkpoint* names is imported where the user
allows it only, or where it is loaded already, so that nothing new would run.

A run keeps the text of each plugin in ``RUN/plugins/SHA256/FILE.py``; ``RUN/plugins/index.json``
says which text belongs to which name. From there it is found whatever the working directory is.
"""

import hashlib
import importlib
import importlib.util
import json
import logging
import os
import re
import sys
import traceback
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Set

from mlx_trm.errors import ConfigError, listed, shown
from mlx_trm.system.bounded import read_bytes
from mlx_trm.system.files import write_bytes, write_json

LOG = logging.getLogger(__name__)

FOLDER, INDEX = "plugins", "index.json"
LARGEST, LARGEST_INDEX = 10 << 20, 64 << 10  # bytes; far more than anybody writes
_DIGITS = 16  # of a text's SHA-256, as the name of its folder

Importer = Callable[[Sequence[str]], None]


class Loaded(NamedTuple):
    """A plugin that was imported here.

    Attributes:
        module: its name in ``sys.modules``.
        file: its text; None where it has none, such as a module that is compiled.
        text: what stood in the file then.
        own: whether the user named it, rather than a checkpoint that the user allowed.
    """

    module: str
    file: Optional[Path]
    text: bytes
    own: bool


# By the name that a configuration gave.
_LOADED: Dict[str, Loaded] = {}
# A configuration is put together several times on its way into a run; one warning is enough.
_WARNED: Set[str] = set()


def import_plugins(names: Sequence[str]) -> None:
    """Import each plugin that the user named, once.

    Args:
        names: names of modules, or paths of ``.py`` files relative to the working directory.

    Raises:
        ConfigError: if one cannot be imported; its cause is the original error.
    """
    for name in names:
        _import(name, None, own=True)


def import_named(overrides: Sequence[str]) -> None:
    """Import the plugins that a command line names, before a checkpoint's configuration is read.

    Args:
        overrides: such as ``plugins=my_task.py``; all others are passed over.

    Raises:
        ConfigError: as :func:`import_plugins`.
    """
    from mlx_trm.config.strict_yaml import parse_scalar

    for word in [overrides] if isinstance(overrides, str) else overrides:
        key, _, text = (part.strip() for part in word.partition("="))
        names = parse_scalar(text) if key == "plugins" else []
        names = [names] if isinstance(names, str) and names else names
        # Anything else is refused, and named, when the override is checked.
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            import_plugins(names)


def checkpoint_plugins(folder: Path, allow: bool) -> Importer:
    """Give what imports the plugins that a checkpoint's or a run's configuration names.

    Args:
        folder: of the checkpoint or the run.
        allow: whether the user allows its code to run; it is the run's own text that runs then.

    Returns:
        A function like :func:`import_plugins`. It refuses what is neither allowed nor loaded.
    """

    def import_them(names: Sequence[str]) -> None:
        refused = []
        for name in names:
            if _stands_for(name, folder, allow):
                continue
            if allow:
                _import(name, _find_copy(folder, name), own=False)
            else:
                refused.append(name)
        if refused:
            raise ConfigError(
                f"plugins: {listed([shown(name, 240) for name in refused], separator=', ')}: a "
                "checkpoint's plugins are code of whoever made it and are not run; where you trust "
                "it, use --allow-plugins (in Python allow_plugins=True), or name your own: "
                "plugins=FILE"
            )

    return import_them


def keep_copies(names: Sequence[str], run: Path) -> None:
    """Write the texts of imported plugins into a run folder; a text that is there stays.

    Args:
        names: of a configuration that was loaded in this process.
        run: the run's folder.

    Raises:
        OSError: if a file cannot be written.
    """
    index = {}
    for name in names:
        found = _find_loaded(name)
        if found is None or found.file is None:
            continue
        place = f"{_digest(found.text)}/{found.file.name}"
        index[name] = place
        target = run / FOLDER / place
        if not target.is_file() or target.read_bytes() != found.text:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target, found.text)
    if index:
        write_json(run / FOLDER / INDEX, index)


def locate_in_plugin(error: BaseException) -> str:
    """Say where in a plugin an error happened: `` (my_task.py, line 12)``; empty: in none."""
    for each in _LOADED.values():
        where = None if each.file is None else _line_in(error, each.file)
        if where:
            return where
    return ""


def loaded_plugins() -> List[str]:
    """Give the names of the plugins that were imported here."""
    return [name for name, each in _LOADED.items() if each.module in sys.modules]


def _line_in(error: BaseException, file: Path) -> str:
    """Say at which line of a file an error happened; empty: it did not pass there."""
    line: Optional[int] = None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if os.path.abspath(frame.f_code.co_filename) == str(file):
            line = number
    if isinstance(error, SyntaxError) and error.filename is not None:
        if os.path.abspath(error.filename) == str(file):
            line = error.lineno
    return "" if line is None else f" ({shown(file.name)}, line {line})"


def _stands_for(name: str, folder: Path, allow: bool) -> bool:
    """Whether what a checkpoint names is loaded already, so that there is nothing to run.

    Raises:
        ConfigError: if another run's plugin of that name is loaded.
    """
    loaded = _find_loaded(name)
    if loaded is None:
        if not name.endswith(".py"):
            return name in sys.modules
        try:
            copy = _find_copy(folder, name)
            return copy is not None and _module_of(copy, _read(copy), list(sys.modules)) is not None
        except (ConfigError, OSError):
            return False  # said where the file is needed
    try:
        copy = _find_copy(folder, name)
    except (ConfigError, OSError):
        return True
    if copy is None or loaded.file is None or _read(copy) == loaded.text:
        return True
    if loaded.own:
        if name in _WARNED:
            return True
        _WARNED.add(name)
        LOG.warning(
            "plugins: %s has changed since the run kept its text; yours is used (%s)",
            shown(name),
            shown(loaded.file, 200),
        )
        return True
    if not allow:
        return False
    raise ConfigError(
        f"plugins: {shown(name)}: another text of that name is loaded already, from "
        f"{shown(loaded.file, 200)}; use a process of its own for each"
    )


def _find_loaded(name: str) -> Optional[Loaded]:
    """Find what was imported under a name, or as a file of the same name in another folder."""
    base = os.path.basename(name)
    for known, loaded in reversed(list(_LOADED.items())):
        same = known == name or (name.endswith(".py") and os.path.basename(known) == base)
        if same and loaded.module in sys.modules:
            return loaded
    return None


def _find_copy(folder: Path, name: str) -> Optional[Path]:
    """Find the text that a run has kept of a plugin; None where it has kept none.

    Args:
        folder: of the run, or of one of its checkpoints.
        name: what its configuration calls it.

    Raises:
        ConfigError: if what is kept is damaged.
        OSError: if it cannot be read.
    """
    # A checkpoint's are in its run's folder; what lies beside a run is none of its.
    places = [folder, folder.parent] if (folder / "state.json").is_file() else [folder]
    for place in (each / FOLDER for each in places):
        if not (place / INDEX).is_file():
            continue
        try:
            index = json.loads(_read(place / INDEX, LARGEST_INDEX).decode("utf-8"))
            entry = index.get(name)
            if entry is None:
                continue
            if not re.fullmatch(rf"[0-9a-f]{{{_DIGITS}}}/[^/\\\0]+\.py", entry):
                raise ValueError("names no file of its own folder")
            if _digest(_read(place / entry)) != entry[:_DIGITS]:
                raise ValueError(f"{shown(entry)} is not the text that was kept")
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{place / INDEX}: damaged ({shown(error)}); name your own file: plugins=FILE"
            ) from error
        return Path(os.path.abspath(place / entry))
    return None


def _import(name: str, copy: Optional[Path], own: bool) -> None:
    """Import a plugin: the text that a run has kept, or what its name means here."""
    file = copy or (Path(name) if name.endswith(".py") else None)
    try:
        if copy is None and name.endswith(".py"):
            if not os.path.exists(name) and name in _LOADED and _find_loaded(name):
                return  # of a configuration that is checked once more in another folder
            loaded = _import_file(Path(name), own)
        elif copy is None or (not name.endswith(".py") and _suits(name, copy)):
            module = importlib.import_module(name)
            loaded = _describe(module, own)
        else:
            loaded = _import_file(copy, own, None if name.endswith(".py") else name)
        _LOADED.pop(name, None)  # the newest is the last
        _LOADED[name] = loaded
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not name.endswith(".py") and (name == missing or name.startswith(missing + ".")):
            raise ConfigError(
                f"plugins: no module {name!r}; install it, or give the path of its .py file"
            ) from error
        where = "" if file is None else _line_in(error, Path(os.path.abspath(file)))
        raise ConfigError(f"plugins: {shown(name)} needs the module {missing!r}{where}") from error
    except OSError as error:
        raise ConfigError(f"plugins: {shown(name)}: {error.strerror or error}") from error
    except (Exception, SystemExit) as error:  # pylint: disable=broad-exception-caught
        # Whatever somebody's file raises while it is imported is theirs to mend.
        text = shown((str(error).splitlines() or [""])[0], 200)
        where = _last_line(error, file)
        raise ConfigError(
            f"plugins: {shown(name)}: {type(error).__name__}: {text}{where}"
        ) from error


def _last_line(error: BaseException, file: Optional[Path]) -> str:
    """Say where a plugin failed while it was imported; a module's file is not known before."""
    if file is not None:
        return _line_in(error, Path(os.path.abspath(file)))
    here = os.path.abspath(__file__)
    lines = [
        Path(os.path.abspath(frame.f_code.co_filename))
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if os.path.abspath(frame.f_code.co_filename) != here and "<frozen" not in str(frame.f_code)
    ]
    if isinstance(error, SyntaxError) and error.filename is not None:
        lines.append(Path(os.path.abspath(error.filename)))
    own = [path for path in lines if Path(importlib.__file__).parent not in path.parents]
    return _line_in(error, own[-1]) if own else ""


def _suits(name: str, copy: Path) -> bool:
    """Whether a module that can be found here is the one of which a run has kept the text.

    Of a package one module would not be enough, so it is always taken from where it is installed.
    """
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        return False
    if spec is None or spec.origin is None:
        return False
    if "." in name or spec.submodule_search_locations is not None:
        return True
    return spec.has_location and _read(Path(spec.origin)) == _read(copy)


class _TextLoader(SourceFileLoader):
    """Runs a file's own text, never a compiled one that lies beside it; leaves none there either.

    What the user has read before allowing it has to be what runs.
    """

    def get_code(self, fullname: str) -> Optional[CodeType]:
        """Compile the text."""
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _import_file(path: Path, own: bool, called: Optional[str] = None) -> Loaded:
    """Import a file, unless it is loaded already, be it as ``__main__`` or as a run's copy."""
    path = path.resolve(strict=True)
    text = _read(path)
    copies = [each.module for each in _LOADED.values() if not each.own]
    loaded = _module_of(path, text, copies if own else list(sys.modules))
    if loaded is not None:
        return Loaded(loaded, path, text, own)
    digest = _digest(os.fsencode(path))[:8]
    name = called or f"mlx_trm_plugin_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_TextLoader(name, str(path)))
    if spec is None or spec.loader is None:
        raise ImportError("is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return Loaded(name, path, text, own)


def _module_of(path: Path, text: bytes, candidates: Sequence[str]) -> Optional[str]:
    """Give the name of the loaded module that is a file, or a candidate of the same text."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or os.path.basename(file) != path.name:
            continue
        if os.path.abspath(file) == str(path):
            return name
        try:
            if name in candidates and _read(Path(file)) == text:
                return name
        except (OSError, ValueError):
            continue
    return None


def _describe(module: ModuleType, own: bool) -> Loaded:
    """Note what is known of a module that was imported by its name."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return Loaded(module.__name__, None, b"", own)
    path = Path(os.path.abspath(file))
    return Loaded(module.__name__, path, _read(path), own)


def _read(path: Path, most: int = LARGEST) -> bytes:
    """Read a small regular file.

    Raises:
        ValueError: if it is something else, or larger.
        OSError: if it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("is no regular file")
    return read_bytes(path, most)


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:_DIGITS]
