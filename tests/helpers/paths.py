"""Where things are in the repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "tests" / "helpers"
REFERENCE = ROOT / "tests" / "reference"
# Collections of puzzles that may lie beside the checkout; tests that need them skip without.
SHARED_DATA = ROOT.parent / "shared" / "data"
