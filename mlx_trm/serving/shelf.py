"""The models that a server has, by the names that it gives them."""

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Sequence

from mlx_trm.drawing.scenes import Subject
from mlx_trm.errors import ConfigError, DataError, did_you_mean, shown
from mlx_trm.inference.search import SearchSettings
from mlx_trm.inference.search.engine import Result, Search
from mlx_trm.inference.search.rows import Watcher
from mlx_trm.inference.search.settings import make_settings
from mlx_trm.inference.solver import Solver

MOST_STEPS = 2048  # of all rollouts of a puzzle together, where a request asks for more
MOST_NAMES = 2000  # of puzzles that are listed
MOST_TEXT = 20_000  # characters of a puzzle: twenty times a 30x30 grid


class PatientSolver(Solver):
    """A solver whose searches pause after each step, so that others get their turn."""

    def count_steps(self, settings: SearchSettings) -> int:
        """Give the steps that all rollouts of a puzzle may take together."""
        return self._count(settings.steps) * settings.rollouts

    def search_in_turns(
        self, puzzle: str, settings: SearchSettings, on_answer: Watcher
    ) -> Iterator[Iterator[Result]]:
        """Search an answer.

        Args:
            puzzle: as for :meth:`Solver.search`.
            settings: of the search.
            on_answer: as for :meth:`Solver.search`.

        Returns:
            What :meth:`Search.run_in_turns` gives.
        """
        steps = self._count(settings.steps)
        search = Search(self.model, self.task, settings, steps, self._reason, self._weights)
        return search.run_in_turns(self._reader.stream([puzzle]), on_answer=on_answer)


class Reading(NamedTuple):
    """A puzzle that was read.

    Attributes:
        text: by which the solver finds it.
        subject: the puzzle with its answer, where that is known.
        problem: that the task knows it has no answer, or several; empty: nothing is known.
    """

    text: str
    subject: Subject
    problem: str


@dataclass(frozen=True)
class Served:
    """A model that puzzles can be sent to.

    Attributes:
        name: by which it is asked for.
        summary: what it is, in a line.
        solver: holds it; used in the worker's thread only, its task anywhere.
        search: settings that a request begins with.
    """

    name: str
    summary: str
    solver: PatientSolver
    search: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, asked: Mapping[str, Any]) -> SearchSettings:
        """Give the settings of a request.

        Args:
            asked: by name; what is not asked for is as the model's own settings say.

        Raises:
            ConfigError: if they do not fit together, the model, or the server.
        """
        settings = make_settings(None, {**self.search, **asked, "batch_size": 32})
        settings.check_usable(self.solver.task, self.solver.model)
        steps = self.solver.count_steps(settings)
        if steps > MOST_STEPS:
            raise ConfigError(
                f"steps: {steps} in all rollouts together, at most {MOST_STEPS} are computed for "
                "a request; ask for fewer steps or rollouts"
            )
        return settings

    def read(self, text: str) -> "Reading":
        """Read the one puzzle that a text stands for.

        A puzzle may keep the rules busy for seconds, so this is not for the worker's thread.

        Raises:
            DataError: if it is malformed, or several puzzles.
        """
        task = self.solver.task
        puzzles = task.expand_puzzle(text)
        if len(puzzles) != 1:
            raise DataError(
                f"{shown(text)} is {len(puzzles)} puzzles, {shown(', '.join(puzzles))}; name one"
            )
        puzzle = puzzles[0]
        tokens = task.parse(puzzle)
        answers, problems = task.answers(tokens[None])
        problem = " ".join(problems.get(0, "").split())
        labels = None if answers is None or problem else answers[0]
        if labels is None and not problem:
            labels = task.known_answer(puzzle)
        return Reading(puzzle, Subject(task, tokens, labels), problem)

    def describe(self) -> Dict[str, Any]:
        """Say what it is, as JSON."""
        task = self.solver.task
        settings = self.settings({})
        return {
            "name": self.name,
            "summary": self.summary,
            "task": task.config.name,
            "rules": task.has_rules,
            "symmetries": task.has_symmetries,
            "settings": {
                "steps": self.solver.count_steps(settings) // settings.rollouts,
                **{name: getattr(settings, name) for name in ("halt", "rollouts", "select")},
                "symmetries": settings.symmetries,
            },
            "editor": task.describe_editor(),
            "names": task.list_names()[:MOST_NAMES],
        }


# Loads a model; called in the worker's thread.
Opener = Callable[[], Served]


class Shelf:
    """Models by name; loaded once, in the thread that computes with them."""

    def __init__(self, openers: Sequence[Opener]) -> None:
        """Keep how models are loaded.

        Args:
            openers: of each model, in the order in which they are listed.
        """
        self._openers = openers
        self._served: Dict[str, Served] = {}

    def load(self) -> None:
        """Load all models.

        Raises:
            TRMError: if one cannot be loaded.
        """
        for opener in self._openers:
            served = opener()
            self._served[served.name] = served

    def find(self, name: str) -> Served:
        """Give the model of a name.

        Raises:
            ConfigError: if there is none.
        """
        if name not in self._served:
            known = ", ".join(self._served)
            hint = did_you_mean(name, self._served)
            raise ConfigError(f"no model {name[:80]!r}{hint} (there are {known})")
        return self._served[name]

    def describe(self) -> List[Dict[str, Any]]:
        """Say what models there are, as JSON."""
        return [served.describe() for served in self._served.values()]
