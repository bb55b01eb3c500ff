"""Replays recordings of the reference on this machine and measures how far it is from them.

Every step is replayed from the state that is recorded as entering it: the recursion amplifies
rounding, the reference's own included, so two free runs would drift apart and prove nothing.
"""

import logging
import math
from typing import Any, Callable, Dict, List, Optional, Tuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from mlx_trm.config.registry import MODELS
from mlx_trm.errors import DataError, TRMError
from mlx_trm.models import RecursiveModel, build_model, named_arrays
from mlx_trm.models.carry import Carry, Outputs, exploration_minimum
from mlx_trm.models.losses import act_loss
from mlx_trm.runs.weights import load_weights
from mlx_trm.training.optim import EMA, AdamATan2, scheduled_lr, sign_sgd_rows
from mlx_trm.upstream.comparison import (
    Comparison,
    count_differences,
    host,
    largest,
    relative,
    same_shape,
    share,
)
from mlx_trm.upstream.names import from_upstream_names, upstream_model_config
from mlx_trm.upstream.plain_models import PLAIN_MODELS
from mlx_trm.upstream.recording import Arrays, Recording
from mlx_trm.upstream.rounding import TYPICAL, Numbers, Rounding

LOGGER = logging.getLogger(__name__)

# Training steps whose gradients, weights and average are recorded.
FULL_STEPS = 3
CONTINUE_LOSS = "metric.q_continue_loss"
WEIGHTS = "eval.weights"
# Quantities that follow from a step's weights, so that rounding reaches them through the recursion.
FROM_OUR_WEIGHTS = ("logits", "q_halt_logits", "q_continue_logits", "carry", "loss", "grad")
_COUNTS = ("count", "exact_accuracy", "q_halt_accuracy", "steps")


def compare(recording: Recording) -> List[Comparison]:
    """Replay a recording on the default device and compare everything that it holds.

    Args:
        recording: of a model that is registered, with settings that it takes; else the result says
            "not supported" and is a miss.

    Returns:
        One comparison a quantity, in the order of their replay.

    Raises:
        DataError: if the recording lacks arrays that its kind has.
    """
    unsupported = [Comparison(recording.case, "not supported", None, None, None, False)]
    if recording.model not in MODELS.names():
        return unsupported
    try:
        config, spec, _ = upstream_model_config(recording.model, recording.settings)
        problems = config.problems()
        if problems:
            LOGGER.warning("%s: not supported here: %s", recording.path, "; ".join(problems))
            return unsupported
        return _Replay(recording, build_model(config, spec)).run()
    except DataError:
        raise
    except (TRMError, ValueError, KeyError, TypeError, RuntimeError) as problem:
        reason = " ".join(repr(problem).split())
        raise DataError(f"{recording.path}: does not hold what it should ({reason})") from problem


class _Replay:
    """Replays one recording and keeps the largest error of each quantity."""

    def __init__(self, recording: Recording, model: RecursiveModel) -> None:
        self.recording = recording
        self.model = model
        self.latent_names = recording.latent_names(model)
        self.errors: Dict[str, float] = {}
        # None for a model of somebody else's, which plain_models does not know.
        self.rounding = Rounding(recording, model) if recording.model in PLAIN_MODELS else None
        # Ours minus theirs, of what rounding reaches through the recursion.
        self.differences: Numbers = {}

    def run(self) -> List[Comparison]:
        """Replay everything that the recording holds and compare it."""
        self._load("init")
        self._evaluation()
        if self.recording.hyperparameters:
            self._training()
            self._optimisation()
        tolerances = {quantity: self._tolerance(quantity) for quantity in self.errors}
        typical: Dict[str, float] = {}
        if self.rounding is not None:
            typical = self.rounding.typical(self.differences)
            if self.recording.dtype != "float32":
                scale, allowed = self.rounding.weight_scale(self.differences)
                self._note(WEIGHTS, scale)
                tolerances[WEIGHTS] = allowed
        return [
            self._judge(quantity, error, tolerances[quantity], typical.get(quantity))
            for quantity, error in self.errors.items()
        ]

    def _judge(
        self, quantity: str, error: float, tolerance: float, typical: Optional[float]
    ) -> Comparison:
        passed = math.isfinite(error) and error <= tolerance
        if typical is not None:
            passed = passed and typical <= TYPICAL  # which NaN is not
        return Comparison(
            self.recording.case,
            quantity,
            error if math.isfinite(error) else None,
            tolerance,
            typical if typical is not None and math.isfinite(typical) else None,
            passed,
        )

    def _note(self, quantity: str, error: float) -> None:
        # NaN compares false with everything; as infinity it stays the largest.
        error = error if math.isfinite(error) else math.inf
        self.errors[quantity] = max(error, self.errors.get(quantity, 0.0))

    def _keep(self, quantity: str, step: int, name: str, ours: mx.array, theirs: mx.array) -> None:
        """Keep a difference for what is typical of a quantity."""
        if same_shape(ours, theirs):
            self.differences[quantity, step, name] = host(ours) - host(theirs)

    def _tolerance(self, quantity: str) -> float:
        if self.rounding is not None and quantity.split(".")[-1] in FROM_OUR_WEIGHTS:
            return self.rounding.tolerance(quantity)
        return self.recording.tolerance(quantity)

    def _load(self, prefix: str) -> None:
        weights = self.recording.weights(prefix, self.model)
        load_weights(self.model, weights, f"arrays {prefix}.*")

    def _latents(self, prefix: str) -> Tuple[mx.array, ...]:
        return tuple(
            self.recording[prefix + name].astype(self.model.dtype) for name in self.latent_names
        )

    def _compare_outputs(self, kind: str, step: int, carry: Carry, outputs: Outputs) -> None:
        """Compare logits, q values, loss and counts of a step replayed with our weights."""
        rec, prefix = self.recording, f"{kind}.step{step}."
        pairs = {
            "logits": outputs.logits,
            "q_halt_logits": outputs.q_halt,
            "q_continue_logits": outputs.q_continue,
        }
        for name, ours in pairs.items():
            self._note(f"{kind}.{name}", largest(ours, rec[prefix + name]))
            self._keep(f"{kind}.{name}", step, "", ours, rec[prefix + name])
        loss, metrics = self._loss(carry, outputs)
        self._note(f"{kind}.loss", relative(loss, rec[prefix + "loss"]))
        theirs = rec.arrays.get(prefix + CONTINUE_LOSS)
        if theirs is not None:
            ours = metrics.get("q_continue_loss", mx.array(math.nan))
            self._note(f"{kind}.loss", share(ours, theirs, rec[prefix + "loss"]))
        if rec.dtype == "float32" and self._decided(kind, prefix):
            # In half precision a near-tie of two logits may fall either way; there the counts are
            # compared from recorded logits only.
            self._compare_metrics(kind, prefix, metrics)

    def _compare_recorded(self, kind: str, prefix: str, carry: Carry) -> None:
        """Compare what follows from the recorded outputs alone: losses, answers and counts."""
        rec = self.recording
        outputs = self._recorded_outputs(prefix)
        loss, metrics = self._loss(carry, outputs)
        whole = rec[prefix + "loss"]
        if prefix + CONTINUE_LOSS in rec and self.model.has_continue_target:
            # It does not follow from the recorded outputs: the target is of a second forward pass,
            # which is not recorded. Our own pass is compared in _compare_outputs.
            metrics["q_continue_loss"] = rec[prefix + CONTINUE_LOSS]
            loss = loss + 0.5 * metrics["q_continue_loss"]
        self._note(f"{kind}.loss_of_recorded", relative(loss, whole))
        for name, theirs in rec.group(prefix + "metric.").items():
            if name.endswith("_loss"):
                ours = metrics.get(name, mx.array(math.nan))
                self._note(f"{kind}.loss_of_recorded", share(ours, theirs, whole))
        if prefix + "preds" in rec:
            # Of equal logits, either may be the answer.
            logits, answers = host(outputs.logits), np.array(rec[prefix + "preds"])
            best = logits == np.max(logits, axis=-1, keepdims=True)
            right = np.any(best & (answers[..., None] == np.arange(logits.shape[-1])), axis=-1)
            self._note(f"{kind}.preds", float(np.sum(~right)))
        self._compare_metrics(kind, prefix, metrics)

    def _recorded_outputs(self, prefix: str) -> Outputs:
        rec = self.recording
        return Outputs(
            rec[prefix + "logits"],
            rec[prefix + "q_halt_logits"],
            rec[prefix + "q_continue_logits"],
            rec.arrays.get(prefix + "target_q_continue"),
        )

    def _loss(self, carry: Carry, outputs: Outputs) -> Tuple[mx.array, Arrays]:
        loss = self.recording.loss
        return act_loss(outputs, carry.current.labels, carry.halted, carry.steps, loss)

    def _compare_metrics(self, kind: str, prefix: str, metrics: Arrays) -> None:
        for name, theirs in self.recording.group(prefix + "metric.").items():
            ours = metrics.get(name, mx.array(math.nan))
            if name in _COUNTS:
                self._note(f"{kind}.counts", largest(ours, theirs))
            elif name == "accuracy":
                self._note(f"{kind}.accuracy", largest(ours, theirs))

    def _evaluation(self) -> None:
        rec, model = self.recording, self.model
        model.eval()
        batch = rec.batch("eval.batch.")
        carry = model.initial_carry(batch)
        for step in rec.steps("eval"):
            prefix = f"eval.step{step}."
            left, outputs = model(carry, batch)
            carry = left
            # Full-size recordings leave out the last carry, which enters no further step.
            if rec.group(prefix + "carry.z_") or f"eval.step{step + 1}.logits" in rec:
                carry = left._replace(latents=self._latents(prefix + "carry."))
                for name, ours, theirs in zip(self.latent_names, left.latents, carry.latents):
                    self._note("eval.carry", largest(ours, theirs))
                    self._keep("eval.carry", step, name, ours, theirs)
            if prefix + "carry.steps" in rec:
                self._note("eval.steps", count_differences(left.steps, rec[prefix + "carry.steps"]))
                self._note(
                    "eval.halted", count_differences(left.halted, rec[prefix + "carry.halted"])
                )
            self._compare_outputs("eval", step, left, outputs)
            self._compare_recorded("eval", prefix, left)

    def _training(self) -> None:
        rec, model = self.recording, self.model
        model.train()
        carry = model.initial_carry(rec.batch("train.step1.batch."))
        for step in rec.steps("train"):
            prefix, before = f"train.step{step}.", f"train.step{step - 1}.param"
            if step > 1:
                carry = carry._replace(latents=self._latents(prefix + "entering."))
            begun = model.begin(carry, rec.batch(prefix + "batch."))
            recorded = Carry(
                begun.latents,
                rec[prefix + "carry.steps"],
                rec[prefix + "carry.halted"],
                rec.batch(prefix + "carry.current_data."),
            )
            for ours, theirs in zip(begun.current, recorded.current):
                self._note("train.refill", count_differences(ours, theirs))
            least = exploration_minimum(
                rec[prefix + "explore.uniform"],
                rec[prefix + "explore.randint"],
                model.config.halt_exploration_prob,
            )
            self._compare_halting(
                model.halt(begun, self._recorded_outputs(prefix), least), recorded
            )
            self._compare_recorded("train", prefix, recorded)
            if step == 1 or rec.group(before + "."):
                self._load("init" if step == 1 else before)
                self._replay_step(step, begun, least, recorded)
            carry = recorded

    def _compare_halting(
        self, ours: Carry, recorded: Carry, tied: Optional[np.ndarray] = None
    ) -> None:
        """Compare which rows halt; ``tied`` rows, (B,) bool, may as well not."""
        self._note("train.steps", count_differences(ours.steps, recorded.steps))
        halted = (
            ours.halted if tied is None else mx.where(mx.array(tied), recorded.halted, ours.halted)
        )
        self._note("train.halted", count_differences(halted, recorded.halted))

    def _tied(self, kind: str, prefix: str) -> np.ndarray:
        """Tell, (B,) bool, where rounding may decide whether a row halts."""
        halt, go_on = (
            host(self.recording[prefix + name]) for name in ("q_halt_logits", "q_continue_logits")
        )
        allowed = self._tolerance(f"{kind}.q_halt_logits")
        if self.model.compares_continue:
            halt = halt - go_on
            allowed += self._tolerance(f"{kind}.q_continue_logits")
        return np.abs(halt) <= allowed

    def _decided(self, kind: str, prefix: str) -> bool:
        """Whether no count of a step can depend on rounding."""
        best = np.sort(host(self.recording[prefix + "logits"]), axis=-1)
        halt = np.abs(host(self.recording[prefix + "q_halt_logits"]))
        near = 2 * self._tolerance(f"{kind}.logits")
        return bool(
            np.all(best[..., -1] > best[..., -2] + near)
            and np.all(halt > self._tolerance(f"{kind}.q_halt_logits"))
            and not np.any(self._tied(kind, prefix))
        )

    def _replay_step(self, step: int, begun: Carry, least: mx.array, recorded: Carry) -> None:
        """Replay a training step whose weights are recorded, gradients included."""
        rec, model, prefix = self.recording, self.model, f"train.step{step}."
        batch_size = rec.hyperparameters["global_batch_size"]

        def loss_fn(weights: Dict[str, Any], rows: Optional[mx.array]) -> Tuple:
            with model.using(weights):
                left, outputs = model.step(begun, rows, least)
            loss, _ = self._loss(left, outputs)
            return loss / batch_size, left.pack(), tuple(outputs)

        rows = model.puzzle_rows(begun)
        weights = model.trained_weights()
        differentiate: Callable = mx.value_and_grad(loss_fn, 0 if rows is None else (0, 1))
        (_, packed, outputs), gradients = differentiate(weights, rows)
        if rows is None:
            gradients = (gradients,)
        left = Carry.unpack(packed)
        self._compare_halting(left, recorded, self._tied("train", prefix))
        self._compare_outputs("train", step, left, Outputs(*outputs))
        entering_next = f"train.step{step + 1}.entering."
        if rec.group(entering_next):
            entered = self._latents(entering_next)
            for name, ours, theirs in zip(self.latent_names, left.latents, entered):
                self._note("train.carry", largest(ours, theirs))
                self._keep("train.carry", step, name, ours, theirs)
        theirs_by_name = from_upstream_names(rec.group(prefix + "grad."))
        if not theirs_by_name:
            return
        ours_by_name = dict(named_arrays(gradients[0]))
        if rows is not None:
            ours_by_name["puzzle_emb.local_weights"] = gradients[1]
        for name in set(ours_by_name) | set(theirs_by_name):
            error = math.inf  # for a gradient that only one side has
            if name in ours_by_name and name in theirs_by_name:
                ours, theirs = ours_by_name[name], theirs_by_name[name]
                error = relative(ours, theirs)
                self._keep("train.grad", step, name, ours, theirs)
            self._note("train.grad", error)

    def _optimisation(self) -> None:
        """Feed recorded gradients to the optimisers, from recorded weights."""
        rec, model, hyper = self.recording, self.model, self.recording.hyperparameters
        adam = AdamATan2(0.0, (hyper["beta1"], hyper["beta2"]), hyper["weight_decay"])
        self._load("init")
        average = EMA(model.trained_weights(), hyper["ema_rate"])
        for step in rec.steps("train"):
            prefix = f"train.step{step}."
            lr, puzzle_lr = (
                scheduled_lr(
                    hyper[name],
                    step,
                    hyper["lr_warmup_steps"],
                    hyper["total_steps"],
                    hyper["lr_min_ratio"],
                )
                for name in ("lr", "puzzle_emb_lr")
            )
            self._note("schedule", abs(lr - float(np.array(rec[prefix + "lr"]))))
            if step > FULL_STEPS:
                continue
            recorded_grads = self._required(prefix + "grad.")
            recorded_after = self._required(prefix + "param.")
            self._load("init" if step == 1 else f"train.step{step - 1}.param")
            row_grads = recorded_grads.pop("puzzle_emb.local_weights", None)
            adam.learning_rate = lr
            gradients = tree_unflatten(list(recorded_grads.items()))
            updated = dict(named_arrays(adam.apply_gradients(gradients, model.trained_weights())))
            for name, ours in updated.items():
                self._note("optimizer.param", largest(ours, recorded_after[name]))
            if row_grads is not None:
                ids = rec[prefix + "carry.current_data.puzzle_identifiers"]
                table = model.puzzle_emb.weights
                puzzle_decay = hyper["puzzle_emb_weight_decay"]
                rows = sign_sgd_rows(table[ids], row_grads, ids, mx.array(puzzle_lr), puzzle_decay)
                table[ids] = rows
                theirs = recorded_after["puzzle_emb.weights"]
                self._note("optimizer.puzzle_emb", largest(table, theirs))
            average.update(tree_unflatten([(n, recorded_after[n]) for n in updated]))
            averaged = dict(named_arrays(average.weights))
            recorded_average = self._required(prefix + "ema.")
            for name in set(averaged) | set(recorded_average):
                error = math.inf  # for a weight that only one side averages
                if name in averaged and name in recorded_average:
                    error = largest(averaged[name], recorded_average[name])
                self._note("ema", error)

    def _required(self, prefix: str) -> Arrays:
        """Give a group of arrays by our names; DataError where there are none."""
        found = from_upstream_names(self.recording.group(prefix))
        if not found:
            raise DataError(f"{self.recording.path}: the recording has no array {prefix}*")
        return found
