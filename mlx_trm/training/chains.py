"""Winner takes all: several chains of latents a row, of which the one of lowest loss learns.

The chains of a row share its answer, and each has all other latents for itself, from a random start
of its own. In a step every chain thinks, without gradient. The best one thinks once more, is
differentiated, and its answer becomes that of all; the other latents each chain keeps. A carry
holds the answer first, then the other latents of each chain in turn.

From the description of winner-take-all training in arXiv 2601.19085.
"""

from typing import ContextManager, Optional, Tuple

import mlx.core as mx

from mlx_trm.config.sections import TrainConfig
from mlx_trm.models import RecursiveModel
from mlx_trm.models.carry import Batch, Carry, split_keys
from mlx_trm.models.losses import answer_losses


class Chains:
    """The chains of a row; with one of them everything is as without.

    Attributes:
        count: K, chains a row.
    """

    def __init__(self, train: TrainConfig, model: RecursiveModel) -> None:
        """Keep the number of chains, and how they are judged.

        Args:
            train: the recipe.
            model: that thinks.
        """
        self.count = train.chains
        self._train = train
        self._model = model
        self._own = len(model.initial_names) - 1  # latents that each chain has for itself

    @property
    def latents(self) -> int:
        """How many latents a carry has."""
        return 1 + self.count * self._own

    def initial_carry(self, batch: Batch) -> Carry:
        """Make the carry before the first step, every row halted and so about to be refilled."""
        carry = self._model.initial_carry(batch)
        return self._with(carry, carry.latents[0], carry.latents[1:] * self.count)

    def begin(self, carry: Carry, batch: Batch, keys: Optional[mx.array]) -> Carry:
        """Refill the halted rows from ``batch``, each chain from a start of its own.

        Args:
            carry: of the step before.
            batch: incoming puzzles.
            keys: (B, 2) uint32 of the rows; None where starts are fixed.
        """
        model = self._model
        if self.count == 1 or keys is None:
            return model.begin(carry, batch, model.starts(keys))
        # A row's first key is the answer's: noise is drawn from it. The second is that of a start.
        spare = split_keys(keys, 1 + self._own)[1]
        begun = [
            model.begin(self._chain(carry, number), batch, model.starts(own))
            for number, own in enumerate(split_keys(spare, self.count))
        ]
        others = tuple(latent for chain in begun for latent in chain.latents[1:])
        return self._with(begun[0], begun[0].latents[0], others)

    def race(
        self, carry: Carry, rows: Optional[mx.array], setting: ContextManager
    ) -> Tuple[Carry, Tuple[mx.array, ...]]:
        """Let all chains think, without gradient.

        Args:
            carry: after :meth:`begin`; B rows.
            rows: (B, puzzle_emb_ndim) puzzle vectors, or None.
            setting: in which the model computes, for the rows of all chains: see :meth:`repeat`.

        Returns:
            The carry that the best chain of each row began the step with, and the new latents of
            all chains but the answer.
        """
        starts = [self._chain(carry, number) for number in range(self.count)]
        many = carry._replace(
            latents=tuple(mx.concatenate(list(each)) for each in zip(*(s.latents for s in starts))),
            steps=self.repeat(carry.steps),
            halted=self.repeat(carry.halted),
            current=Batch(*(self.repeat(array) for array in carry.current)),
        )
        with setting:
            latents, outputs = self._model.reason(many, None if rows is None else self.repeat(rows))
        losses = answer_losses(
            outputs.logits, many.current.labels, self._train.loss, self._train.label_smoothing
        )
        best = mx.argmin(losses.reshape(self.count, -1), axis=0).astype(mx.int32)
        row = best * best.size + mx.arange(best.size)  # of the winner among many
        winner = carry._replace(latents=tuple(latent[row] for latent in many.latents))
        each = [mx.split(latent, self.count) for latent in latents[1:]]
        return winner, tuple(latent for chain in zip(*each) for latent in chain)

    def repeat(self, array: mx.array) -> mx.array:
        """Give an array of rows once for each chain, (B, ...) to (K * B, ...)."""
        return mx.concatenate([array] * self.count)

    def join(self, winner: Carry, others: Tuple[mx.array, ...]) -> Carry:
        """Give all chains the answer of the one that has learnt."""
        return self._with(winner, winner.latents[0], others)

    def _chain(self, carry: Carry, number: int) -> Carry:
        """Give the carry of one chain, as the model knows it."""
        at = 1 + number * self._own
        return self._with(carry, carry.latents[0], carry.latents[at : at + self._own])

    @staticmethod
    def _with(carry: Carry, answer: mx.array, others: Tuple[mx.array, ...]) -> Carry:
        return carry._replace(latents=(answer, *others))
