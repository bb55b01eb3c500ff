"""What changes while a run goes on: the rates, the cycles of a curriculum, when averaging begins.

All of it follows from the number of the step alone, so that a resumed run goes on to the bit; where
``train.lr_schedule: run`` and ``train.max_hours`` are set, from the time spent as well.
"""

from typing import List, Optional, Tuple

from mlx_trm.config.sections import Stage, TrainConfig
from mlx_trm.training.optim import scheduled_lr


class Schedule:
    """Says what holds in a step.

    Attributes:
        total_steps: over which everything runs: the recipe's, or those of this run.
        time_share: of its hours that a run has used, from 0 to 1; 0 where time does not count. What
            is further counts, steps or time.
    """

    def __init__(self, train: TrainConfig, total_steps: int) -> None:
        """Start a schedule.

        Args:
            train: the section of the configuration.
            total_steps: over which everything runs.
        """
        self.train = train
        self.total_steps = total_steps
        self.time_share = 0.0
        self._stages: List[Stage] = train.stages()

    def share(self, step: int) -> float:
        """Give the share of the run that is done before a step, counted from 1."""
        return max((step - 1) / max(1, self.total_steps), self.time_share)

    def rate(self, step: int, base: float) -> float:
        """Give the learning rate of a step, of which ``base`` is the rate after warm-up."""
        train = self.train
        warmup, least = train.lr_warmup_steps, train.lr_min_ratio
        return scheduled_lr(base, step, warmup, self.total_steps, least, self.time_share)

    def cycles(self, step: int) -> Optional[Tuple[int, int]]:
        """Give H_cycles and L_cycles of a step; None: the model's own."""
        share = self.share(step)
        begun = [stage for stage in self._stages if stage.start <= share]
        return (begun[-1].H_cycles, begun[-1].L_cycles) if begun else None

    def averages(self, step: int) -> bool:
        """Say whether the average of the weights runs in a step."""
        return self.share(step) >= self.train.ema_start
