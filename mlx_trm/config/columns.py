"""The columns of a CSV of puzzles: which hold the puzzle and its answer, whatever their names."""

import csv
from typing import List, Optional, Sequence

from mlx_trm.errors import DataError, shown

# What others call the two columns that are needed; capitals make no difference.
SYNONYMS = {
    "question": tuple("question questions puzzle puzzles quiz quizzes input inputs".split()),
    "answer": tuple("answer answers solution solutions output outputs label labels".split()),
}


def check_names(where: str, header: Sequence[str], columns: Optional[Sequence[str]] = None) -> None:
    """Refuse a header in which two columns may be the question, or the answer, naming both.

    Args:
        where: put before the problem.
        header, columns: as of :func:`own_names`.

    Raises:
        DataError: where they may be, and ``columns`` does not say.
    """
    for own, others in () if columns and has_columns(header, columns) else SYNONYMS.items():
        found = [shown(name.strip()) for name in header if plain_name(name) in others]
        if len(found) > 1:
            raise DataError(
                f"{where}: the columns {found[0]} and {found[1]} may both be the {own}; rename "
                "one, or say which by task.columns=[PUZZLE,ANSWER]"
            )


def own_names(header: Sequence[str], columns: Optional[Sequence[str]] = None) -> List[str]:
    """Give the names of a header's columns, small, those of question and answer as we call them.

    Args:
        header: the names as they stand there.
        columns: which two they are, where the header has both; else they are known by name.
    """
    names = [plain_name(name) for name in header]
    if columns is not None and has_columns(header, columns):
        known = dict(zip(map(plain_name, columns), SYNONYMS))
        # What others call so is nothing that is asked for.
        return [known.get(name, f"other {name}" if name in SYNONYMS else name) for name in names]
    for own, others in SYNONYMS.items():
        if own not in names:
            names = [own if name in others else name for name in names]
    return names


def plain_name(name: str) -> str:
    """Give a column's name without capitals and white space around it."""
    return name.strip().lower()


def has_columns(header: Sequence[str], columns: Sequence[str]) -> bool:
    """Whether a header has each of these columns once."""
    names = [plain_name(name) for name in header]
    return all(names.count(plain_name(column)) == 1 for column in columns)


def split_fields(where: str, line: str) -> List[str]:
    """Split a line of a CSV at its commas.

    Args:
        where: put before the problem.
        line: without quotes, as most are, a field may be of any length.

    Raises:
        DataError: if quotes are not closed, say.
    """
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error as error:
        raise DataError(f"{where}: {error}") from error
