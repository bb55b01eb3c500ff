"""``python -m mlx_trm.parity``: compare this machine with recorded outputs of the reference."""

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import List

from mlx_trm.cli import tables as display
from mlx_trm.cli.arguments import add_json, save_json
from mlx_trm.cli.running import make_main
from mlx_trm.upstream.comparison import Comparison
from mlx_trm.upstream.recording import read_recordings
from mlx_trm.upstream.replay import compare

HEADER = ("case", "quantity", "largest error", "tolerance", "typical", "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="a folder of recordings")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="CASE",
        help="compare only this case, or those that match a pattern such as 'trm_*' (repeatable)",
    )
    add_json(parser, "also write the table there")


def run(args: argparse.Namespace) -> int:
    """Replay every recording; exit code 1 where one quantity is a miss."""
    # The recordings were made with TF32 off. MLX reads this when it first multiplies matrices.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")
    comparisons: List[Comparison] = []
    for recording in read_recordings(args.folder, args.only):
        if not args.quiet and sys.stderr.isatty():
            print(f"replaying {recording.case} ...", file=sys.stderr)
        comparisons += compare(recording)
    if args.json is not None:
        save_json(args.json, [asdict(entry) for entry in comparisons])
    missed = sum(not entry.passed for entry in comparisons)
    if not args.quiet:
        print(display.table([row(entry) for entry in comparisons], HEADER))
    cases = len({entry.case for entry in comparisons})
    print(f"{cases} cases, {len(comparisons)} quantities, {missed} missed")
    return 1 if missed else 0


def row(entry: Comparison) -> List[str]:
    """Lay out one comparison for the table."""
    error = "-" if entry.error is None else f"{entry.error:.3g}"
    tolerance = "-" if entry.tolerance is None else f"{entry.tolerance:.3g}"
    typical = "" if entry.typical is None else f"{entry.typical:.2f}"
    verdict = "pass" if entry.passed else "MISS"
    return [entry.case, entry.quantity, error, tolerance, typical, verdict]


main = make_main("parity", add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
