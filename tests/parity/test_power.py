"""What the parity rule finds: weights changed by 1 %, and other faults, quantity by quantity.

A weight *reaches* a quantity where changing it changes the quantity at all, in float64. In float32
every quantity that a changed weight reaches must be a miss. In bfloat16 rounding hides 1 % in each
single quantity (that is measured too); there ``eval.weights`` finds it.
"""

from contextlib import contextmanager
from typing import Callable, Dict, Iterator, List, Set, Tuple

import mlx.core as mx
import numpy as np
import pytest
from paths import REFERENCE

from mlx_trm.models import build_model, network
from mlx_trm.nn import layers
from mlx_trm.upstream import replay
from mlx_trm.upstream.arithmetic import Arithmetic
from mlx_trm.upstream.names import upstream_model_config
from mlx_trm.upstream.recording import Recording
from mlx_trm.upstream.replay import compare
from mlx_trm.upstream.rounding import Rounding

FOLDER = REFERENCE / "cuda"
CASES = [path.stem for path in sorted(FOLDER.glob("*.safetensors"))]
SMALL = [case for case in CASES if not case.startswith("full_")]
EVALUATION = {
    f"eval.{name}" for name in ("logits", "q_halt_logits", "q_continue_logits", "carry", "loss")
}
TRAINING = {name.replace("eval", "train") for name in EVALUATION} | {"train.grad"}


@pytest.fixture(autouse=True)
def on_the_cpu():
    """As in test_recordings.py: no hosted runner has a dependable GPU."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def recorded(case: str) -> Recording:
    """Read one of the recordings."""
    return Recording(FOLDER / f"{case}.safetensors")


def missed(recording: Recording) -> Set[str]:
    """The quantities that are misses."""
    return {entry.quantity for entry in compare(recording) if not entry.passed}


@contextmanager
def changed(recording: Recording, name: str, row: bool) -> Iterator[None]:
    """Multiply a weight, or its last row, by 1.01 before the first step."""
    own: Callable = Recording.weights

    def weights(self: Recording, prefix: str, model: object) -> Dict[str, mx.array]:
        found = own(self, prefix, model)
        if prefix == "init":
            value = np.array(found[name])
            value[-1 if row else ...] *= np.float32(1.01)
            found[name] = mx.array(value)
        return found

    setattr(Recording, "weights", weights)
    try:
        yield
    finally:
        setattr(Recording, "weights", own)


def reached(recording: Recording, name: str, row: bool) -> Set[str]:
    """The quantities that a changed weight changes, in float64."""
    config, spec, _ = upstream_model_config(recording.model, recording.settings)
    model = build_model(config, spec)
    model.train()

    def numbers() -> Dict:
        exact = Arithmetic("float64", work=np.float64)
        steps = Rounding(recording, model).replayed(exact)
        return {key: value for step in steps for key, value in step.items()}

    before = numbers()
    with changed(recording, name, row):
        after = numbers()
    return {
        key[0]
        for key, value in after.items()
        if np.max(np.abs(value - before[key])) > 1e-12 * np.max(np.abs(before[key]))
    }


@pytest.mark.parametrize("case", SMALL)
def test_one_row_of_one_weight_by_one_percent(case):
    """The weight of every model's last layer before the state; everything follows from it."""
    recording = recorded(case)
    level = "H_level" if case.startswith("transformers") else "L_level"
    name = f"{level}.layers.0.mlp.down_proj.weight"
    if case.endswith("_f32"):
        with changed(recording, name, row=True):
            assert missed(recording) >= EVALUATION | TRAINING
    else:
        with changed(recording, name, row=False):
            assert "eval.weights" in missed(recording)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_weight_by_one_percent(case):
    """All quantities that it reaches, for whole weights and single rows, find it."""
    recording = recorded(case)
    config, spec, _ = upstream_model_config(recording.model, recording.settings)
    names = list(recording.weights("init", build_model(config, spec)))
    hidden: List[Tuple[str, bool, str]] = []
    for name in names:
        for row in (False, True):
            expected = reached(recording, name, row)
            with changed(recording, name, row):
                found = missed(recording)
            if case.endswith("_f32"):
                hidden += [(name, row, quantity) for quantity in expected - found]
            elif not row and not name.startswith("q_head") and "eval.weights" not in found:
                hidden.append((name, row, "eval.weights"))
    assert not hidden


def off_by(factor: float) -> Callable:
    """A function of the package whose first result is multiplied."""

    def change(own: Callable) -> Callable:
        def function(*args, **kwargs):
            result = own(*args, **kwargs)
            if isinstance(result, tuple):
                return (result[0] * factor, *result[1:])
            return result * factor

        return function

    return change


def with_argument(place: int, change: Callable) -> Callable:
    """A function of the package that gets another argument."""

    def changed_function(own: Callable) -> Callable:
        def function(*args, **kwargs):
            given = list(args)
            given[place] = change(given[place])
            return own(*given, **kwargs)

        return function

    return changed_function


Q_VALUES = {"eval.q_halt_logits", "train.q_halt_logits", "eval.q_continue_logits", "eval.loss"}
# name -> (module, function, how it is wrong, what must find it)
FAULTS = {
    "eps of the norms 2e-5": (
        *(network, "rms_norm", with_argument(1, lambda eps: 2 * eps)),
        (EVALUATION | TRAINING) - {"eval.loss", "train.loss"},
    ),
    "rotary angles backwards": (
        *(layers, "apply_rope", with_argument(1, lambda angles: (angles[0], -angles[1]))),
        EVALUATION | TRAINING,
    ),
    "rotary base 1 % off": (
        *(network, "rope_tables", with_argument(2, lambda theta: 1.01 * theta)),
        EVALUATION | TRAINING,
    ),
    "scale of the scores 0.1 % off": (
        *(layers, "attend", with_argument(3, lambda scale: 1.001 * scale)),
        EVALUATION | TRAINING,
    ),
    "scale of the embedding 0.1 % off": (network, "embed_inputs", off_by(1.001), EVALUATION),
    "loss 0.1 % off": (
        *(replay, "act_loss", off_by(1.001)),
        {"eval.loss", "train.loss", "train.grad", "eval.loss_of_recorded"},
    ),
    "no bias of the Q head": (
        *(layers.mx, "addmm", lambda _: lambda bias, x, weight: x @ weight),
        Q_VALUES,
    ),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
@pytest.mark.parametrize(
    "case",
    [
        "trm_att_rope_f32",
        pytest.param("trm_hier6_f32", marks=pytest.mark.slow),
        pytest.param("hrm_f32", marks=pytest.mark.slow),
        pytest.param("transformers_baseline_f32", marks=pytest.mark.slow),
        pytest.param("trm_singlez_f32", marks=pytest.mark.slow),
    ],
)
def test_other_faults(monkeypatch, case, fault):
    module, name, wrong, expected = FAULTS[fault]
    monkeypatch.setattr(module, name, wrong(getattr(module, name)))
    assert missed(recorded(case)) >= expected


@pytest.mark.parametrize(
    "case", ["trm_mlp_f32", pytest.param("full_sudoku_mlp_f32", marks=pytest.mark.slow)]
)
def test_eps_of_the_norms_of_an_mlp(monkeypatch, case):
    own = network.rms_norm
    monkeypatch.setattr(network, "rms_norm", lambda x, _, axis=-1: own(x, 1e-6, axis))
    assert missed(recorded(case)) >= {"eval.carry", "eval.logits", "eval.q_halt_logits"}
