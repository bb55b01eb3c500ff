"""Faults made by hand in model, loss, optimiser, sampler, halting and scorer are caught."""

from pathlib import Path

import pytest
from faults import AREAS, FAULTS, Fault, copy_package, main, run_tests, try_fault
from paths import ROOT


def test_each_fault_can_still_be_made() -> None:
    """Its text stands in its file once, its tests are there, and no area is left out."""
    assert len(FAULTS) >= 20 and {fault.area for fault in FAULTS} == set(AREAS)
    assert len({fault.what for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        text = (ROOT / "mlx_trm" / fault.file).read_text(encoding="utf-8")
        assert text.count(fault.right) == 1, fault.what
        assert fault.right != fault.wrong
        assert all((ROOT / test).is_file() for test in fault.tests.split()), fault.what


@pytest.mark.slow
def test_a_change_that_is_no_fault_is_not_caught(tmp_path: Path) -> None:
    """The copy's own package is tested, and what changes nothing passes."""
    copy_package(tmp_path)
    tests = "tests/unit/models/test_carry.py"
    text = "halted = steps >= halt_max_steps"
    harmless = Fault("halting", "nothing", "models/carry.py", text, f"{text}  # as before", tests)
    assert try_fault(harmless, tmp_path) == ""
    assert try_fault(harmless._replace(wrong="raise ValueError"), tmp_path).startswith(tests)
    assert run_tests(tmp_path, tests.split()) == ""


@pytest.mark.slow
def test_every_fault_is_caught() -> None:
    """Several minutes: ``python tests/helpers/faults.py`` says which test catches which."""
    assert main([]) == 0
