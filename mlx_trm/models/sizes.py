"""How large a model may be, asked before it is made: a line of a stranger's file says anything.

Weights cost nothing before they are computed, and by then their shapes have been compared. What
costs at once are blocks, each an object of Python, and the tables of the rotary positions.
"""

from typing import Any, List

from mlx_trm.errors import ConfigError

# Of the paper's model 42; as objects and as a step's graph of operations so many take 300 MB.
MOST_BLOCKS = 4_000
# Numbers in a row's latent, (T, D): 128 MB; the largest of the paper has half a million.
MOST_LATENT = 1 << 25


def find_too_many_blocks(config: Any) -> List[str]:
    """Find layers and cycles that no machine would get through.

    Args:
        config: a model section; ``L_layers``, ``H_layers``, ``H_cycles``, ``L_cycles`` are read
            where it has them.

    Returns:
        A line, or nothing.
    """
    names = ("L_layers", "H_layers", "H_cycles", "L_cycles")
    given = {name: int(getattr(config, name)) for name in names if hasattr(config, name)}
    layers = given.get("L_layers", 0) + given.get("H_layers", 0)
    blocks = layers * given.get("H_cycles", 1) * (given.get("L_cycles", 0) + 1)
    if blocks <= MOST_BLOCKS:
        return []
    largest = max(given, key=given.__getitem__)
    return [
        f"{largest}: with {given[largest]} a step has {blocks:,} blocks, at most {MOST_BLOCKS:,} "
        "make sense; lower it"
    ]


def check_latent(length: int, size: int) -> None:
    """Refuse a latent that a single row cannot have.

    Args:
        length: T, positions.
        size: D, numbers of each.

    Raises:
        ConfigError: saying how large it would be.
    """
    if length * size > MOST_LATENT:
        raise ConfigError(
            f"model: latents of {length:,} positions with {size:,} numbers are too large (at most "
            f"{MOST_LATENT:,} numbers a row); lower hidden_size, or positions and puzzles"
        )
