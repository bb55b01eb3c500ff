"""Answers found by several runs of a puzzle, in rows that pass from one puzzle to the next."""

from mlx_trm.inference.search.engine import Result, Search
from mlx_trm.inference.search.problems import Problem
from mlx_trm.inference.search.selection import Candidate
from mlx_trm.inference.search.settings import SearchSettings

__all__ = ["Candidate", "Problem", "Result", "Search", "SearchSettings"]
