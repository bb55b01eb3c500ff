"""What a search for an answer may do: steps, halting, rollouts, and how they differ."""

from dataclasses import dataclass, field
from typing import Any, List, Mapping, Optional

from mlx_trm.config.checks import Section, check_fields, check_together, section_fields
from mlx_trm.errors import ConfigError
from mlx_trm.inference.search.draws import is_random
from mlx_trm.models import RecursiveModel
from mlx_trm.tasks import Task

HALTS = ("fixed", "q", "rules", "stable")
STARTS = ("model", "fixed", "random")
SELECTIONS = ("q", "vote", "rules", "residual", "first_halt")
# A stable answer has been the same for so many steps after the one that gave it.
STABLE_STEPS = 2


@dataclass(frozen=True)
class SearchSettings(Section):
    """How puzzles are solved; the default is one plain run of each.

    A *rollout* is one run of a puzzle, of at most ``steps`` supervision steps. Rollouts differ by
    their start, by noise, or by the symmetric copy that they work on.

    Raises:
        ConfigError: for values out of range, or that do not fit together; all of them at once.
    """

    steps: Optional[int] = field(default=None, metadata={"min": 1})
    """Supervision steps of a rollout, at most; unset: eval.steps, else the model's."""
    halt: str = field(default="fixed", metadata={"choices": HALTS})
    """A rollout ends after all steps; or where the model believes its answer, where the task's
    rules accept it, or where it has stayed the same for two steps."""
    rollouts: int = field(default=1, metadata={"min": 1})
    """Runs of a puzzle, at most."""
    noise: float = field(default=0.0, metadata={"min": 0.0})
    """Deviation of the normal noise that z_H gets before each step (PTRM)."""
    start: Optional[str] = field(default=None, metadata={"choices": STARTS})
    """Where latents start: as the model's configuration says; at its own initial states; or
    rollouts after the first from random z_L. Unset: random where nothing else tells rollouts
    apart, else model."""
    symmetries: bool = False
    """Rollouts after the first work on random symmetric copies."""
    select: str = field(default="q", metadata={"choices": SELECTIONS})
    """Whose answer is given: of the highest q, of most rollouts, of the first that the rules
    accept, of the smallest change in the last step, or of the first to halt."""
    seed: int = field(default=0, metadata={"min": 0})
    """Decides everything random, together with the puzzle's tokens."""
    batch_size: int = field(default=64, metadata={"min": 1})
    """Rows computed at a time, at most."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        found = check_fields(type(self), vars(self), "")[1] or check_together(self, "")
        if found:
            raise ConfigError.from_problems("search", [problem.text for problem in found])

    def problems(self) -> List[str]:
        """Find settings that do not fit together."""
        if self.select == "first_halt" and self.halt == "fixed":
            return ["select: first_halt needs rollouts that halt; use halt q, rules or stable"]
        return []

    @property
    def active_start(self) -> str:
        """The start where none is set, or the one that is."""
        if self.start is not None:
            return self.start
        alike = not self.noise and not self.symmetries
        return "random" if self.rollouts > 1 and alike else "model"

    @property
    def leaves_early(self) -> bool:
        """Whether a puzzle is done with the first rollout that the rules accept."""
        return "rules" in (self.halt, self.select) and self.select != "first_halt"

    def check_usable(self, task: Task, model: RecursiveModel) -> None:
        """Refuse what a task or a model does not have.

        Raises:
            ConfigError: in one line.
        """
        name = task.config.name
        for key in ("halt", "select"):
            if getattr(self, key) == "rules" and not task.has_rules:
                raise ConfigError(
                    f"{key}: the task {name} has no rules to check answers by; use {key} q"
                )
        if self.symmetries and not task.has_symmetries:
            raise ConfigError(f"symmetries: the task {name} names none; use start random or noise")
        if self.active_start == "random" and len(model.initial_names) < 2:
            raise ConfigError(
                f"start: {type(model).__name__} has no latent but the answer's, and none is drawn; "
                "use noise or symmetries"
            )
        if self.rollouts > 1 and not (self.noise or self.symmetries):
            if self.active_start == "fixed" or not draws_starts(self, model, 1):
                raise ConfigError(
                    f"rollouts: {self.rollouts} runs would all be the same; use start random, "
                    "noise or symmetries"
                )


def make_settings(settings: Optional[SearchSettings], changes: Mapping[str, Any]) -> SearchSettings:
    """Give settings with some of them changed.

    Args:
        settings: to begin with; None for the defaults.
        changes: by name.

    Raises:
        ConfigError: for a name or a value that cannot be used.
    """
    values = {} if settings is None else dict(vars(settings))
    known = section_fields(SearchSettings)
    unknown = [name for name in changes if name not in known]
    if unknown:
        raise ConfigError(f"search: no setting {unknown[0]!r} (there are {', '.join(known)})")
    return SearchSettings(**{**values, **changes})


def draws_starts(settings: SearchSettings, model: RecursiveModel, rollout: int) -> bool:
    """Say whether a rollout starts from random latents.

    The first one does only where the model itself always does.
    """
    own = is_random(model)
    if settings.active_start == "random":
        return own or rollout > 0
    return own and settings.active_start == "model"
