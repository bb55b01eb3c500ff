"""The errors a user can mend; ``str(error)`` is what the user sees."""

import difflib
from typing import Any, Iterable, Sequence


class TRMError(Exception):
    """Base of every error that the user can mend; commands turn it into exit code 2."""


class ConfigError(TRMError):
    """A configuration, an override or an argument that cannot be used."""

    @classmethod
    def from_problems(cls, where: str, problems: Sequence[str]) -> "ConfigError":
        """Put all problems of one place into one error.

        Args:
            where: what they were found in, such as a file's name.
            problems: one line each, at least one.

        Returns:
            The error: ``WHERE: problem``, or a heading line and one indented line per problem.
        """
        if len(problems) == 1:
            return cls(f"{where}: {problems[0]}")
        return cls("\n  ".join([f"{where} has {len(problems)} problems:", *problems]))


class DataError(TRMError):
    """Puzzles or data files that cannot be read or make no sense."""


class DamagedError(DataError):
    """A file that was read, and whose content is not what it should be.

    What can be made again is made again. A file that could not be read may be all right.
    """


class CheckpointError(TRMError):
    """A checkpoint or run folder that is missing, broken, or of another shape."""


class NonFiniteError(TRMError):
    """The loss or a gradient of a step is not finite; nothing has been updated.

    Attributes:
        step: the step that could not be taken.
        parts: what entered it, a list of :class:`mlx_trm.training.step.Part`.
    """

    def __init__(
        self, step: int, parts: Sequence[Any], replay: str = "", in_a_row: int = 0
    ) -> None:
        """Keep what entered the step, and name the file that holds it where it was saved.

        Args:
            step, parts: the attributes.
            replay: name of the file, where it was saved.
            in_a_row: steps that were skipped before the run gave up, this one included.
        """
        saved = f"; {replay} has what entered it, and the state before it is saved"
        what = "the loss or a gradient is not finite any more"
        advice = "or go on with train.on_nonfinite=skip"
        if in_a_row:
            what = f"the loss or a gradient was not finite in {in_a_row} steps in a row"
            advice = "or begin again from an earlier checkpoint"
        super().__init__(
            f"step {step}: {what}; lower train.lr, use model.forward_dtype=float32, {advice}"
            + (saved if replay else "")
        )
        self.step = step
        self.parts = list(parts)


def describe_error(error: BaseException) -> str:
    """Say in one line, of at most 200 characters, what an error says."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def shown(text: object, most: int = 80) -> str:
    """Make a text of a file fit to be printed: one line, no control characters, not too long.

    Args:
        text: such as a weight's name; what is no text is turned into one.
        most: characters, at least 4.

    Returns:
        ASCII, in which other characters are escaped; the end of what is too long becomes ``...``.
    """
    escaped = str(text).encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) <= most else escaped[: most - 3] + "..."


def listed(items: Sequence[str], most: int = 12, separator: str = "; ") -> str:
    """List the first of many.

    Args:
        items: of any number.
        most: so many are listed.
        separator: put between them.

    Returns:
        Such as ``a; b; and 3 more``.
    """
    rest = [f"and {len(items) - most} more"] if len(items) > most else []
    return separator.join([*items[:most], *rest])


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Suggest the known word that is closest to a mistyped one.

    Args:
        word: what was given.
        known: what would have been right.
        prefix: put before the suggestion, such as a section and a dot.

    Returns:
        ``"; did you mean 'X'?"``, or an empty string where nothing is close.
    """
    by_case = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), list(by_case), n=1)
    return f"; did you mean {prefix + by_case[close[0]]!r}?" if close else ""
