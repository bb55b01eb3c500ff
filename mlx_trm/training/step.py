"""One supervision step of training: what enters it, and where what it has computed goes.

The arithmetic is in :mod:`mlx_trm.training.update`. Touched puzzle rows go in and come out; a
scatter updates the table outside, in place.

Reference: ``train_batch`` in pretrain.py.
"""

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import mlx.core as mx
from mlx.utils import tree_unflatten

from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.errors import CheckpointError, NonFiniteError
from mlx_trm.inference.step import tell_of_slow_blas
from mlx_trm.models import RecursiveModel, named_arrays
from mlx_trm.models.base import Tree
from mlx_trm.models.carry import Batch, Carry, draw_exploration, late_minimum, row_keys
from mlx_trm.models.losses import Metrics
from mlx_trm.models.memory import limit_run_ahead
from mlx_trm.system.environment import note_computing
from mlx_trm.system.processes import Processes
from mlx_trm.system.streams import added, give_back_cores, share_cores
from mlx_trm.training.chains import Chains
from mlx_trm.training.optim import EMA, make_optimizer
from mlx_trm.training.schedule import Schedule
from mlx_trm.training.update import Rows, State, StepFunctions, make_step_functions


class Part(NamedTuple):
    """A micro-batch on its way through a step; arrays of its rows.

    Attributes:
        carry: the carry that enters.
        batch: the incoming puzzles.
        min_steps: (rows,) int32 exploration.
        keys: (rows, 2) uint32, from which starts and noise are drawn; None where nothing is.
    """

    carry: Carry
    batch: Batch
    min_steps: mx.array
    keys: Rows = None


class TrainStep:
    """Takes a supervision step with a model each time it is called, and updates what is trained.

    Attributes:
        config: the resolved configuration.
        model, optimizer, average: what is trained, with what; ``average`` is None without EMA.
        micro_batch_size: rows computed at once.
        processes: that train together; each takes its share of every batch.
        step: supervision steps done.
        schedule: says what holds in a step: rates, cycles, whether the average runs.
        carries: the carry between steps, in micro-batches; None before the first step.
        whole: whether all of this is of one step; it is not while an update is put in place.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        model: RecursiveModel,
        total_steps: int,
        processes: Optional[Processes] = None,
        micro_batch_size: Optional[int] = None,
    ) -> None:
        """Start with fresh moments and the average at the model's weights.

        Args:
            config: validated.
            model: is trained in place.
            total_steps: over which the schedule runs.
            processes: that train together; default this one alone.
            micro_batch_size: rows computed at once; default this process's share of the batch.
        """
        self.processes = processes or Processes()
        share = config.train.batch_size // self.processes.size
        self.micro_batch_size = min(share, micro_batch_size or share)
        train = config.train
        if train.memory_limit_gb is None:
            limit_run_ahead(model, self.micro_batch_size, train)
        self.config = config
        self.model = model
        model.train()
        self.schedule = Schedule(train, total_steps)
        self.optimizer = make_optimizer(train, model)
        self.average = EMA(model.trained_weights(), train.ema_rate) if train.ema else None
        self.step = 0
        self.carries: Optional[List[Carry]] = None
        self.whole = True
        self._chains = Chains(train, model)
        self._stage = self.schedule.cycles(1)
        self._functions = self._make_functions()
        tell_of_slow_blas(model)

    def _make_functions(self) -> StepFunctions:
        return make_step_functions(self.config.train, self.model, self.optimizer, self._stage)

    # A step ------------------------------------------------------------------------------------

    def __call__(self, batch: Batch) -> Metrics:
        """Take one supervision step and update everything that is trained.

        The puzzle table is updated in place, so a reference to it that was taken before changes
        too; copy it where its state is to be kept.

        Args:
            batch: incoming puzzles, (B, S), (B, S) and (B,) int32; only the rows that have halted
                take theirs. Among several processes it is this one's share of B.

        Returns:
            The step's metric sums (see :func:`mlx_trm.models.losses.act_loss`), evaluated.

        Raises:
            NonFiniteError: if the loss or a gradient is not finite; everything is as it was.
            TRMError: in a process that was forked from one that had computed.
        """
        note_computing()
        number = self.step + 1
        if self.schedule.cycles(number) != self._stage:  # a stage of the curriculum begins
            self._stage = self.schedule.cycles(number)
            self._functions = self._make_functions()
        parts = self._parts(batch, number)
        self._set_rates(number)
        state: State = {
            "weights": self.model.trained_weights(),
            "optimizer": self.optimizer.state,
        }
        averages = self.average is not None and self.schedule.averages(number)
        if self.average is not None and averages:
            state["average"] = self.average.weights
        rows = identifiers = None
        if self.model.config.puzzle_emb_ndim:
            identifiers = mx.concatenate(
                [
                    mx.where(
                        part.carry.halted,
                        part.batch.puzzle_identifiers,
                        part.carry.current.puzzle_identifiers,
                    )
                    for part in parts
                ]
            )
            identifiers = self.processes.gather(identifiers)
            rows = self.model.puzzle_emb(identifiers)
            mx.async_eval(rows)
        if not self.model.training:  # as after an evaluation; to say so takes 0.4 ms
            self.model.train()
        alone = len(parts) == 1 and self.processes.size == 1
        take = self._take_whole if alone else self._take_parts
        try:
            new, carries, rows, metrics, finite = take(parts, state, rows, identifiers)
        except BaseException:  # Ctrl-C, say: what was there is still there
            self.optimizer.state = state["optimizer"]
            raise
        if not finite.item():  # the same: nothing new has been put in place
            self.optimizer.state = state["optimizer"]
            raise NonFiniteError(number, parts)
        self.whole = False
        self.optimizer.state = new["optimizer"]
        self.model.update(new["weights"])
        if self.average is not None:
            self.average.weights = new["average"] if averages else self.model.trained_weights()
        if rows is not None and self.config.train.freeze != "puzzle_emb":
            # The rows were gathered before and have been computed, so the table has no other user
            # and the scatter works in place: 0.3 ms instead of copying 230 MB in 95 ms.
            self.model.puzzle_emb.weights[identifiers] = rows
            mx.async_eval(self.model.puzzle_emb.weights)
        give_back_cores()
        self.carries = carries
        self.step = number
        self.whole = True
        return metrics

    def skip(self) -> None:
        """Count a step that could not be taken; every row begins anew with the next batch."""
        self.step += 1
        if self.carries is not None:
            self.carries = [c._replace(halted=mx.ones_like(c.halted)) for c in self.carries]

    # Stopping and going on -------------------------------------------------------------------

    def state(self) -> Tuple[Dict[str, mx.array], Dict[str, mx.array]]:
        """Give the arrays of the optimiser and of the carry by name, the carry's rows as one."""
        optimizer = dict(named_arrays(self.optimizer.state))
        carry: Dict[str, mx.array] = {}
        if self.carries is not None:
            parts = [part.named() for part in self.carries]
            carry = {
                name: self.processes.gather(mx.concatenate([part[name] for part in parts]))
                for name in parts[0]
            }
        mx.eval(optimizer, carry)
        return optimizer, carry

    def restore(
        self,
        step: int,
        average: Optional[Dict[str, mx.array]],
        optimizer: Dict[str, mx.array],
        carry: Dict[str, mx.array],
    ) -> None:
        """Go on after ``step``; the model holds its weights already.

        Args:
            step: supervision steps done.
            average: the EMA's arrays by name, None without one.
            optimizer: as :meth:`state` gave it.
            carry: as :meth:`state` gave it; empty before the first step.

        Raises:
            CheckpointError: if arrays are missing or have other shapes.
        """
        self.optimizer.state = _like(self.optimizer.state, optimizer, "the optimiser's state")
        if self.average is not None:
            if average is None:
                raise CheckpointError("the checkpoint has no average, and train.ema is on")
            self.average.weights = _like(self.average.weights, average, "the average")
        self.step = step
        self.carries = None
        if carry:
            rows = self.config.train.batch_size
            share = self.processes.share(rows)
            size = self.micro_batch_size
            latents = self._chains.latents
            wanted = {"steps", "halted", *Batch._fields, *(f"latents.{i}" for i in range(latents))}
            shape = (rows, self.model.positions + self.model.spec.seq_len)
            if set(carry) != wanted or any(
                carry[f"latents.{i}"].shape[:2] != shape for i in range(latents)
            ):
                raise CheckpointError("the carry is not of this model and batch size")
            self.carries = [
                Carry.from_named({k: v[share][at : at + size] for k, v in carry.items()})
                for at in range(0, share.stop - share.start, size)
            ]

    # Parts of a step ---------------------------------------------------------------------------

    def _initial(self) -> Tree:
        return {name: self.model[name] for name in self.model.initial_names}

    def _puzzle_lr(self) -> mx.array:
        return mx.array(self.learning_rate(self.step + 1, self.config.train.puzzle_emb_lr))

    def _set_rates(self, number: int) -> None:
        """Give the optimiser the rates of a step."""
        self.optimizer.learning_rate = self.learning_rate(number)
        for name, base in getattr(self.optimizer, "other_rates", {}).items():
            self.optimizer.state[name] = mx.array(self.learning_rate(number, base))

    def _take_whole(self, parts: List[Part], state: State, rows: Rows, identifiers: Rows) -> Tuple:
        """Send the whole batch through at once."""
        del identifiers
        carry, batch, min_steps, keys = parts[0]
        share_cores(*carry.extent)
        new, packed, rows, metrics, finite = self._functions.whole(
            state, self._initial(), carry.pack(), tuple(batch), rows, min_steps, keys,
            self._puzzle_lr(),
        )  # fmt: skip
        mx.eval(new, packed, rows, metrics, finite)
        return new, [Carry.unpack(packed)], rows, metrics, finite

    def _take_parts(self, parts: List[Part], state: State, rows: Rows, identifiers: Rows) -> Tuple:
        """Sum the gradients of micro-batches and of all processes, then update once."""
        total: Optional[Tree] = None
        mine = None if rows is None else rows[self.processes.share(rows.shape[0])]
        row_gradients: List[mx.array] = []
        carries: List[Carry] = []
        metrics: Metrics = {}
        start = 0
        for carry, batch, min_steps, keys in parts:
            stop = start + batch.inputs.shape[0]
            share_cores(*carry.extent)
            gradients, of_rows, packed, found = self._functions.differentiate(
                state["weights"], self._initial(), carry.pack(), tuple(batch),
                None if mine is None else mine[start:stop], min_steps, keys,
            )  # fmt: skip
            total = gradients if total is None else added([total, gradients])
            metrics = {k: metrics[k] + v if k in metrics else v for k, v in found.items()}
            if self.processes.waits or len(parts) > 1:
                mx.eval(total, of_rows, packed, metrics)  # so that only one part's graph is held
            else:
                mx.async_eval(total, of_rows, packed, metrics)  # while Python makes the rest
            del gradients
            row_gradients += [] if of_rows is None else [of_rows]
            carries.append(Carry.unpack(packed))
            start = stop
        of_all = None
        if row_gradients:
            of_all = self.processes.gather(mx.concatenate(row_gradients))
        total, metrics = self.processes.sum((total, metrics))
        loss = metrics["lm_loss"] + metrics["q_halt_loss"]
        new, rows, finite, more = self._functions.update(
            state, total, rows, of_all, identifiers, self._puzzle_lr(), loss
        )
        mx.eval(new, rows, finite, metrics, more)
        return new, carries, rows, {**metrics, **more}, finite

    def _parts(self, batch: Batch, number: int) -> List[Part]:
        """Cut what enters a step into micro-batches."""
        count = batch.inputs.shape[0]
        size = self.micro_batch_size
        bounds = [(at, min(at + size, count)) for at in range(0, count, size)]
        pieces = [Batch(*(part[a:b] for part in batch)) for a, b in bounds]
        if len(bounds) == 1:
            pieces = [batch]
        if self.carries is None:
            self.carries = [self._chains.initial_carry(piece) for piece in pieces]
        model, seed, everyone = self.model.config, self.config.seed, count * self.processes.size
        share = self.processes.share(everyone)
        least = draw_exploration(
            seed, number, everyone, model.halt_exploration_prob, model.halt_max_steps
        )[share]
        train, most = self.config.train, model.halt_max_steps
        if train.late_rows:
            late = late_minimum(everyone, train.late_rows, most, train.late_steps)
            least = mx.maximum(least, late[share])
        keys: Rows = None
        if self.model.needs_keys:
            keys = row_keys(seed, number, everyone)[share]
        return [
            Part(carry, piece, least[a:b], None if keys is None else keys[a:b])
            for carry, piece, (a, b) in zip(self.carries, pieces, bounds)
        ]

    def learning_rate(self, step: int, base: Optional[float] = None) -> float:
        """Give the scheduled rate of a step (from 1), of ``train.lr`` or another base."""
        return self.schedule.rate(step, self.config.train.lr if base is None else base)


def _like(tree: Any, arrays: Dict[str, mx.array], what: str) -> Any:
    """Give a tree of the same structure with the arrays in its places."""
    names = dict(named_arrays(tree))
    if set(names) != set(arrays) or any(arrays[k].shape != v.shape for k, v in names.items()):
        raise CheckpointError(f"{what} is not of this model")
    return tree_unflatten([(name, arrays[name]) for name in names])
