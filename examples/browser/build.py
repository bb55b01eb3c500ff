"""Build the page that solves Sudoku in a browser, as a folder that any web server can serve.

    python examples/browser/build.py --output site
    python -m http.server --directory site --bind 127.0.0.1

It needs `pip install -e ".[onnx]"`, and npm to fetch onnxruntime-web; `--runtime` takes a tarball
that was fetched before (`npm pack onnxruntime-web@VERSION`) instead.
"""

import argparse
import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Optional

import mlx_trm as trm

HERE = Path(__file__).parent
PAGE = ("index.html", "style.css", "solve.js", "worker.js", "rules.js", "offline.js")
PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
# Of the tarball: what is served is what was tested.
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# What a page needs that computes in WebAssembly on the CPU alone.
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def main() -> int:
    """Build the folder; 2 and one line where that cannot be."""
    parser = argparse.ArgumentParser(description="Build a page that solves Sudoku in a browser.")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="to write")
    parser.add_argument(
        "--weights",
        default="sudoku",
        metavar="NAME",
        help="Sudoku weights of the package (default: %(default)s)",
    )
    parser.add_argument(
        "--runtime",
        type=Path,
        metavar="TGZ",
        help=f"the npm package {PACKAGE} {VERSION} as a tarball (default: npm fetches it)",
    )
    args = parser.parse_args()
    try:
        build(args.output, args.weights, args.runtime)
    except (trm.TRMError, OSError, tarfile.TarError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in args.output.rglob("*") if path.is_file())
    print(f"written: {args.output} ({size / 1e6:.1f} MB); serve it with")
    print(f"  python -m http.server --directory {args.output} --bind 127.0.0.1")
    return 0


def build(output: Path, weights: str, tarball: Optional[Path]) -> None:
    """Write page, network and runtime into a folder.

    Args:
        output: the folder; files of these names in it are replaced.
        weights: of the package.
        tarball: of the runtime; None lets npm fetch it.

    Raises:
        ConfigError: if there are no such weights, they are no Sudoku's, or `onnx` is missing.
        OSError: if something cannot be fetched, read or written.
    """
    checkpoint = trm.load_pretrained(weights)
    if checkpoint.config.task.name != "sudoku":
        raise trm.ConfigError(f"--weights {weights}: are for {checkpoint.config.task.name}")
    (output / "ort").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        take_runtime(tarball or fetch_runtime(Path(folder)), output / "ort")
    trm.export_onnx(checkpoint, output / "model.onnx")
    for name in PAGE:
        shutil.copyfile(HERE / name, output / name)


def fetch_runtime(folder: Path) -> Path:
    """Let npm fetch the runtime's tarball into a folder."""
    npm = shutil.which("npm")
    if npm is None:
        raise OSError(f"npm is not here; install it, or give {PACKAGE} {VERSION} as --runtime TGZ")
    done = subprocess.run(
        [npm, "pack", "--silent", "--ignore-scripts", f"{PACKAGE}@{VERSION}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    found = list(folder.glob("*.tgz"))
    if done.returncode or not found:
        why = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise OSError(f"npm pack {PACKAGE}@{VERSION}: {why}")
    return found[0]


def take_runtime(tarball: Path, target: Path) -> None:
    """Check a tarball, and copy what the page needs out of it."""
    digest = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if digest != SHA512:
        raise OSError(f"{tarball}: is not {PACKAGE} {VERSION} (SHA-512 {digest}); fetch it again")
    with tarfile.open(tarball) as archive:
        for name in RUNTIME:
            member = archive.extractfile(f"package/dist/{name}")
            if member is None:
                raise OSError(f"{tarball}: has no file {name}")
            (target / name).write_bytes(member.read())


if __name__ == "__main__":
    sys.exit(main())
