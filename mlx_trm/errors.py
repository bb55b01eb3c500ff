"""The errors a user can mend; ``str(error)`` is what the user sees."""

import difflib
from typing import Iterable, Sequence


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


class CheckpointError(TRMError):
    """A checkpoint or run folder that is missing, broken, or of another shape."""


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
