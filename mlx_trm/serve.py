"""``python -m mlx_trm.serve``: pages that solve puzzles and follow runs, and an API."""

import argparse
import errno
import importlib
import logging
import os
import socket
import sys
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Tuple

import mlx.core as mx

from mlx_trm.cli.arguments import above_zero, positive
from mlx_trm.cli.checkpoints import add_model, load_run, locate_run
from mlx_trm.cli.running import make_main
from mlx_trm.errors import ConfigError
from mlx_trm.inference.packaged import pretrained
from mlx_trm.runs.layout import METRICS
from mlx_trm.runs.puzzle_rows import read_row_names
from mlx_trm.system.files import distinct_names

if TYPE_CHECKING:
    from mlx_trm.serving.shelf import Opener

LOGGER = logging.getLogger(__name__)
PORT, WAITING, SECONDS = 8765, 32, 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    parser.add_argument(
        "models",
        nargs="*",
        metavar="RUN",
        help="a run folder or a checkpoint folder, whose model solves puzzles beside those that "
        "come with the package",
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="run folders to follow, or folders that hold some; new ones are found",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default: 127.0.0.1, for this machine alone; 0.0.0.0 lets "
        "everybody in who reaches it: there are no passwords)",
    )
    parser.add_argument(
        "--port", type=port, default=PORT, help=f"0 takes any that is free (default: {PORT})"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which browsers may call it, such as this machine's; may be repeated",
    )
    parser.add_argument(
        "--queue",
        type=positive,
        default=WAITING,
        metavar="N",
        help=f"puzzles that may wait; more are told to come again (default: {WAITING})",
    )
    parser.add_argument(
        "--seconds",
        type=above_zero,
        default=SECONDS,
        metavar="S",
        help=f"that a puzzle is worked on, at most (default: {SECONDS:g})",
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    add_model(parser)


def port(text: str) -> int:
    """Read the number of a port."""
    if not (text.isascii() and text.isdigit()) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 65535")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Load the models and answer requests until Ctrl-C.

    Returns:
        Never, but for errors: Ctrl-C ends it as it ends every command.
    """
    check_packages()
    from mlx_trm.serving import app, handlers
    from mlx_trm.serving.following import Runs
    from mlx_trm.serving.pages import make_pages
    from mlx_trm.serving.shelf import Shelf
    from mlx_trm.serving.streams import Doorman
    from mlx_trm.serving.worker import Worker

    named = name_runs(args.models)
    folders = check_folders(args.runs)
    folders += [path for _, path in named if (path / METRICS).is_file()]
    bound = listen(args.host, args.port)
    with bound:
        worker = Worker(args.queue, args.seconds)
        shelf = Shelf(list_openers(args, named))
        device = mx.default_device()

        def prepare() -> None:
            mx.set_default_device(device)
            shelf.load()

        worker.start(prepare)
        server = handlers.Server(shelf, worker, Runs(folders), make_pages(), Doorman(args.seconds))
        address = url_of(args.host, bound.getsockname()[1])

        def ready() -> None:
            print(f"{address}  (Ctrl-C ends it)", flush=True)
            if args.open:  # a browser in a terminal would keep the server waiting
                threading.Thread(target=open_browser, args=(address,), daemon=True).start()

        if not is_local(args.host):
            LOGGER.warning(
                "--host %s: everybody who reaches this address can use it and see the runs; there "
                "are no passwords",
                args.host,
            )
        app.run_server(server, bound, [args.host, *args.allow_host], ready)
    return 0


def open_browser(address: str) -> None:
    """Open a page in a browser, or say that there is none."""
    if not webbrowser.open(address):
        LOGGER.warning("--open: there is no browser here; go to %s", address)


def check_packages() -> None:
    """Refuse to start where a package is missing.

    Raises:
        ConfigError: saying what to install.
    """
    for name in ("starlette", "uvicorn"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f'serve: needs {name}; pip install "mlx_trm[serve]"') from error


def name_runs(words: List[str]) -> List[Tuple[str, Path]]:
    """Give the models on the command line: the names that they get, and their folders.

    A run that is called like weights of the package gets the folder above it into its name.

    Args:
        words: each a RUN; one that is named twice counts once.

    Raises:
        ConfigError: if there is no such folder.
    """
    packaged = [each.folder.resolve() for each in pretrained()]
    found = list(dict.fromkeys(locate_run(word).resolve() for word in words))
    own = [path for path in found if path not in packaged]
    names = distinct_names([*own, *packaged])
    return list(zip(names, own))


def list_openers(args: argparse.Namespace, named: List[Tuple[str, Path]]) -> List["Opener"]:
    """Give what loads each model: those of the command line first, then those of the package.

    Args:
        args: of the command.
        named: names and folders of those on the command line.
    """
    from mlx_trm.serving.shelf import PatientSolver, Served

    def opener(name: str, path: Path, summary: str, search: Mapping[str, Any]) -> "Opener":
        def load() -> Served:
            checkpoint, _ = load_run(argparse.Namespace(**{**vars(args), "run": str(path)}))
            names = read_row_names(checkpoint.path)
            solver = PatientSolver(checkpoint.model, checkpoint.config, row_names=names)
            about = summary or f"{checkpoint.config.task.name}, step {checkpoint.step:,}"
            return Served(name, about, solver, search)

        return load

    nothing: Dict[str, Any] = {}
    found = [opener(name, path, "", nothing) for name, path in named]
    # The page opens with the first: the largest, of which there is most to see.
    packaged = sorted(pretrained(), key=lambda each: (not each.default, -each.parameters))
    return found + [opener(each.name, each.folder, each.summary, each.search) for each in packaged]


def check_folders(paths: List[Path]) -> List[Path]:
    """Refuse what is no folder.

    Raises:
        ConfigError: naming it.
    """
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"--runs {path}: is no folder; name a run, or a folder of runs")
    return list(paths)


def listen(host: str, number: int) -> socket.socket:
    """Give a socket that is bound.

    Raises:
        ConfigError: if the port is in use or may not be used, or the address is none of ours.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, number, 0, socket.SOCK_STREAM)[
            0
        ]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: is no address; use 127.0.0.1 or 0.0.0.0") from error
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name != "nt":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
        return bound
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port {number}: is in use; name another one, or 0 for any that is free"
            ) from error
        option = f"--port {number}" if error.errno == errno.EACCES else f"--host {host}"
        raise ConfigError(f"{option}: cannot be used ({error.strerror})") from error


def is_local(host: str) -> bool:
    """Whether an address is of this machine alone."""
    return host in ("localhost", "::1") or host.startswith("127.")


def url_of(host: str, number: int) -> str:
    """Give what to type into a browser."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    shown = f"[{shown}]" if ":" in shown and not shown.startswith("[") else shown
    return f"http://{shown}:{number}/"


main = make_main("serve", add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
