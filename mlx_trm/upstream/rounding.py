"""How far two honest machines may be from each other in each quantity of a recording.

The rule: every recorded step is replayed on six machines that round differently
(:mod:`~mlx_trm.upstream.arithmetic`), each from the recorded state that enters it. How far they are
from each other is what rounding does to that very quantity of that very recording, and decides

* the largest error: at most ``FACTOR`` times the largest distance between two machines;
* the typical error: row by row, the distance from the recording over the machines' distance in that
  row; its median is at most ``TYPICAL``;
* in half precision, by how much a weight may seem to be scaled: ``DEVIATIONS`` standard deviations.

Nothing is taken from the numbers that are compared, which a fault would spoil, nor from a table.
docs/test_plan.md says why, and what was measured.
"""

from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

import mlx.core as mx
import numpy as np

from mlx_trm.models import RecursiveModel
from mlx_trm.upstream.arithmetic import Arithmetic, Value
from mlx_trm.upstream.plain_models import PlainModel, as_values, continue_target, plain_loss
from mlx_trm.upstream.recording import EXACT_INPUTS, Arrays, Recording

# (quantity, step, name of a latent or weight)
Key = Tuple[str, int, str]
Numbers = Dict[Key, np.ndarray]

MACHINES = 6
FACTOR = 4.0
TYPICAL = 2.0
DEVIATIONS = 6.0
# The largest error may be this many units in the last place of the largest number besides.
LAST_PLACES = 2.0
# Distance from 1 to the next number.
ULP = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
# By how much a weight is scaled to see what that does.
SCALED = 0.01


class _Step(NamedTuple):
    """A recorded step: what enters it, and what is to be known of it.

    Attributes:
        kind: ``eval`` or ``train``.
        number: of the step.
        weights: by our names.
        latents: after the refill, each (B, T, D).
        inputs: (B, S) tokens.
        labels: (B, S).
        rows: (B, puzzle_emb_ndim) puzzle vectors, or None.
        last: (B,) bool, rows in their last allowed step; None without a continue target.
        batch_size: what the loss is divided by for gradients; None where none are recorded.
    """

    kind: str
    number: int
    weights: Dict[str, Value]
    latents: List[np.ndarray]
    inputs: np.ndarray
    labels: np.ndarray
    rows: Optional[np.ndarray]
    last: Optional[np.ndarray]
    batch_size: Optional[int]


class Rounding:
    """What rounding does to the quantities of one recording, computed when first asked for."""

    def __init__(self, recording: Recording, model: RecursiveModel) -> None:
        """Prepare.

        Args:
            recording: of one of the reference's models.
            model: ours, whose configuration and names are used; not its arithmetic.
        """
        self._recording, self._model = recording, model
        self._machines = Arithmetic(recording.dtype, MACHINES)
        self._distances: Dict[str, float] = {}
        self._largest: Dict[str, float] = {}
        # For each array the root mean square, row by row, of the norm of machines' differences.
        self._spreads: Numbers = {}
        # What the machines have in the first evaluation step.
        self._machines_have: Numbers = {}
        # Weights before the first step: drawing those of a full-size recording takes long.
        self._initial: Dict[str, np.ndarray] = {}

    def tolerance(self, quantity: str) -> float:
        """Give the largest error allowed, in the measure of ``replay.py``.

        Logits, Q values and latents: largest absolute difference; loss: relative; gradients: norm
        of the difference over norm, of the worst weight.
        """
        self._measure()
        if quantity.endswith(".loss"):
            floor = EXACT_INPUTS  # the loss of equal logits may be off by that, too
        else:
            floor = LAST_PLACES * ULP[self._recording.dtype] * self._largest[quantity]
        return FACTOR * self._distances[quantity] + floor

    def typical(self, differences: Numbers) -> Dict[str, float]:
        """Give the typical error of each quantity, in distances of the machines.

        Args:
            differences: ours minus the recording's; gradients by weight, all else (B, ...).

        Returns:
            The median over rows, latents and steps (of gradients, weights and steps).
        """
        self._measure()
        found: Dict[str, List[float]] = {}
        for key, difference in differences.items():
            if key not in self._spreads:
                continue  # a gradient that only the recording has; its error is infinite
            spread = self._spreads[key]
            norms = np.linalg.norm(difference.reshape(len(spread), -1), axis=1)
            with np.errstate(divide="ignore"):
                ratios = np.divide(norms, spread, out=np.zeros_like(norms), where=norms != 0)
            found.setdefault(key[0], []).extend(ratios.tolist())
        return {quantity: float(np.median(ratios)) for quantity, ratios in found.items()}

    def weight_scale(self, differences: Numbers) -> Tuple[float, float]:
        """Tell by how much a weight seems to be scaled, judging from the first evaluation step.

        Half precision hides a weight that is wrong by 1 %: rounding moves each number by more than
        that does. But rounding moves thousands of numbers at random, and the weight moves all of
        them in its own direction. The projection on that direction finds it.

        Args:
            differences: ours minus the recording's, each (B, ...).

        Returns:
            Of the weight that stands out most: the scale minus 1, without sign, that explains most
            of the differences, and the most that rounding may look like.
        """
        self._measure()
        keys = [key for key in differences if key in self._machines_have]
        plain = self._numbers_scaled(None)
        worst = (0.0, 1.0)
        for name in self._weights("init"):
            changed = self._numbers_scaled(name)
            along = whole = variance = 0.0
            for key in keys:
                rows, count = len(differences[key]), differences[key].size
                # Arrays count by how exact they are: by the variance of a number.
                weight = count / (float(np.sum(np.square(self._spreads[key]))) or 1.0)
                direction = ((changed[key] - plain[key]) / SCALED).reshape(rows, -1)
                whole += weight * float(np.sum(np.square(direction)))
                along += weight * float(np.sum(direction * differences[key].reshape(rows, -1)))
                # Rows of a batch do not meet: the variance of the sum is the sum of variances, and
                # that of a difference is twice that of one machine.
                have = self._machines_have[key].reshape(MACHINES, rows, -1)
                projected = weight * np.sum(direction * have, axis=-1, dtype=np.float64)
                variance += 2 * float(np.sum(np.var(projected, axis=0, ddof=1)))
            if whole == 0 or variance == 0:
                continue
            scale, allowed = abs(along) / whole, DEVIATIONS * float(np.sqrt(variance)) / whole
            if not scale / allowed < worst[0] / worst[1]:  # what is not a number is the worst
                worst = (scale, allowed)
        return worst

    def replayed(self, machines: Arithmetic) -> Iterator[Numbers]:
        """Take every recorded step on other machines, each from the state recorded for it.

        Args:
            machines: of any dtype.

        Yields:
            For each step its logits, Q values, latents, loss and, where they are recorded,
            gradients; axis 0 of each array is the machine.
        """
        for kind in ("eval", "train"):
            for step in self._steps(kind):
                yield self._compute(step, machines)

    def _measure(self) -> None:
        """Replay all steps on the machines and keep how far they are from each other."""
        if self._distances:
            return
        for found in self.replayed(self._machines):
            for key, numbers in found.items():
                self._note(key, numbers.astype(np.float64), found)
                if key[1] == 0 and not key[0].endswith(".loss"):  # evaluation counts from 0
                    self._machines_have[key] = numbers

    def _note(self, key: Key, numbers: np.ndarray, found: Numbers) -> None:
        """Note the largest distance of two machines in an array, the typical one, and its size."""
        quantity, step, _ = key
        dtype = self._recording.dtype
        size, rows = float(np.max(np.abs(numbers), initial=0.0)), 1
        if quantity.endswith(".loss"):
            distance = float(np.ptp(numbers)) / (abs(float(found[quantity, step, ""][0])) or 1.0)
        elif quantity == "train.grad":
            one, other = np.triu_indices(MACHINES, 1)
            norms = np.linalg.norm((numbers[one] - numbers[other]).reshape(len(one), -1), axis=1)
            distance = float(np.max(norms)) / (float(np.linalg.norm(numbers[0])) or 1.0)
        else:
            distance, rows = float(np.max(np.ptp(numbers, axis=0), initial=0.0)), numbers.shape[1]
        self._distances[quantity] = max(self._distances.get(quantity, 0.0), distance)
        largest = 1.0 if quantity == "train.grad" else size
        self._largest[quantity] = max(self._largest.get(quantity, 0.0), largest)
        # Each number is rounded itself, if nothing else: by half a unit in its last place.
        variances = 2 * np.var(numbers, axis=0, ddof=1) + (ULP[dtype] / 2 * size) ** 2
        self._spreads[key] = np.sqrt(np.sum(variances.reshape(rows, -1), axis=1))

    # The steps, and the numbers of a step --------------------------------------------------------

    def _steps(self, kind: str, scaled: Optional[str] = None) -> Iterator[_Step]:
        """Give the recorded steps that can be replayed, with a weight scaled where one is named."""
        recording, model, trains = self._recording, self._model, kind == "train"
        if trains and not recording.hyperparameters:
            return
        weights: Dict[str, np.ndarray] = {}
        values: Dict[str, Value] = {}
        for number in recording.steps(kind):
            prefix = f"{kind}.step{number}."
            state = f"train.step{number - 1}.param" if trains and number > 1 else "init"
            if state != "init" and not recording.group(state + "."):
                continue
            if trains or not weights:
                weights = self._weights(state)
                if scaled is not None:
                    weights = {**weights, scaled: weights[scaled] * np.float32(1 + SCALED)}
                values = as_values(weights, np.float32)
            batch = recording.batch(prefix + "carry.current_data." if trains else "eval.batch.")
            inputs, labels, ids = (np.array(part) for part in batch)
            last, batch_size = None, None
            if trains and model.has_continue_target and recording.halt_max_steps > 1:
                last = np.array(recording[prefix + "carry.steps"]) >= recording.halt_max_steps
            if trains and recording.group(prefix + "grad."):
                batch_size = recording.hyperparameters["global_batch_size"]
            yield _Step(
                kind,
                number,
                values,
                self._latents(kind, number, weights, len(inputs)),
                inputs,
                labels,
                weights["puzzle_emb.weights"][ids] if "puzzle_emb.weights" in weights else None,
                last,
                batch_size,
            )

    def _weights(self, state: str) -> Dict[str, np.ndarray]:
        """Give the recorded weights of a state, by our names; nothing may be changed in place."""
        if state == "init" and self._initial:
            return self._initial
        weights = _hosts(self._recording.weights(state, self._model))
        if state == "init":
            self._initial = weights
        return weights

    def _latents(
        self, kind: str, number: int, weights: Dict[str, np.ndarray], rows: int
    ) -> List[np.ndarray]:
        """Give the latents of a step after the refill, as they are recorded."""
        recording, model = self._recording, self._model
        before, kept = f"{kind}.step{number - 1}.carry.", f"{kind}.step{number}.entering."
        halted = np.ones(rows, dtype=bool)
        if kind == "train" and number > 1:
            halted = np.array(recording[before + "halted"])
        elif kind == "eval" and number > 0:
            halted, kept = np.zeros(rows, dtype=bool), before
        latents = []
        for name, initial in zip(recording.latent_names(model), model.initial_names):
            shape = (rows, model.positions + model.spec.seq_len, 1)
            latent = np.tile(self._machines.round(weights[initial]), shape)
            if not halted.all():
                entered = self._machines.round(_host(recording[kept + name]))
                latent = np.where(halted[:, None, None], latent, entered)
            latents.append(latent)
        return latents

    def _compute(self, step: _Step, machines: Arithmetic) -> Numbers:
        """Take a step, with gradients where they are recorded; axis 0 of all is the machine."""
        model, recording = self._model, self._recording
        plain = PlainModel(model.config, model.spec.seq_len, machines)
        rows = None if step.rows is None else Value(step.rows)
        differentiated = step.batch_size is not None
        result = plain.reason(step.weights, step.latents, step.inputs, rows, differentiated)
        target = None
        if step.last is not None:
            latents = [latent.data for latent in result.latents]
            with machines.not_differentiating():
                after = plain.reason(step.weights, latents, step.inputs, rows)
            target = continue_target(after, step.last)
        loss = plain_loss(machines, result, step.labels, recording.loss, target)
        numbers: Numbers = {
            (f"{step.kind}.logits", step.number, ""): result.logits.data,
            (f"{step.kind}.q_halt_logits", step.number, ""): result.q.data[..., 0],
            (f"{step.kind}.q_continue_logits", step.number, ""): result.q.data[..., 1],
            (f"{step.kind}.loss", step.number, ""): loss.whole,
            (f"{step.kind}.loss", step.number, "q_continue"): loss.q_continue,
        }
        for name, latent in zip(recording.latent_names(model), result.latents):
            numbers[f"{step.kind}.carry", step.number, name] = latent.data
        if step.batch_size is not None:
            given = dict(step.weights)
            if rows is not None:
                given["puzzle_emb.local_weights"] = rows
            for value in given.values():
                value.grad = None
            result.logits.grad = machines.done(loss.to_logits / machines.work(step.batch_size))
            result.q.grad = machines.done(loss.to_q / machines.work(step.batch_size))
            machines.differentiate()
            for name, value in given.items():
                if value.grad is not None:
                    numbers["train.grad", step.number, name] = value.grad
        return numbers

    def _numbers_scaled(self, name: Optional[str]) -> Numbers:
        """Give the numbers of the first evaluation step in float32, with a weight scaled."""
        found = self._compute(next(self._steps("eval", name)), Arithmetic("float32"))
        return {key: value[0] for key, value in found.items()}


def _host(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32))


def _hosts(arrays: Arrays) -> Dict[str, np.ndarray]:
    return {name: _host(array) for name, array in arrays.items()}
