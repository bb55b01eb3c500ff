"""Parity with the reference by the way that Metal goes, emulated on the CPU.

What is fused, written out and recomputed there is held to the recordings, with their tolerances;
how a Mac's GPU rounds is not. Not yet run on Metal.
"""

import mlx.core as mx
import pytest
from metal import emulated_metal
from paths import REFERENCE

from mlx_trm.upstream.recording import Recording
from mlx_trm.upstream.replay import compare

FOLDER = REFERENCE / "cuda"
CASES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))

pytestmark = pytest.mark.skipif(
    mx.default_device().type == mx.DeviceType.gpu, reason="emulates Metal on the CPU"
)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.slow) if case.startswith("full_") else case
        for case in CASES
    ],
)
def test_case(case):
    with emulated_metal():
        comparisons = compare(Recording(FOLDER / f"{case}.safetensors"))
    assert comparisons and not [entry for entry in comparisons if not entry.passed]
