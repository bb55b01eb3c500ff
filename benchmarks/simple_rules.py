"""What simple rules reach on a test set of chess or Go, beside which a model's figures stand.

    python benchmarks/simple_rules.py --config chess_mate1.yaml
    python benchmarks/simple_rules.py --config go.yaml

The settings are those of ``train``, so the test set is the one that a run is measured on. Of mates:
a legal move drawn at random, and a check drawn at random. Of a piece's moves: as it moves, whatever
becomes of the king; and nowhere. Of captures: take what is in atari; of a
group with two liberties, an atari after which it cannot reach two again by stretching.
"""

import argparse
from typing import Dict, Iterator, List

import numpy as np

from mlx_trm.config.loading import load_config
from mlx_trm.tasks import build_task
from mlx_trm.tasks.go.positions import MOVE, decode
from mlx_trm.tasks.go.rules import Rules, count_points, points_of, rules_of


def rate_moves(inputs: np.ndarray, kind: str) -> Dict[str, float]:
    """Give how often a random move, and a random check, is right in (n, 64) positions."""
    from mlx_trm.tasks.chess.mates import find_mates, forces_mate
    from mlx_trm.tasks.chess.positions import decode_position

    of_moves: List[float] = []
    of_checks: List[float] = []
    for row in inputs:
        board = decode_position(row).board
        moves = list(board.legal_moves)
        right = find_mates(board, moves)
        if kind == "mate2":
            right = [move for move in moves if forces_mate(board, move)]
        checks = [move for move in moves if board.gives_check(move)]
        of_moves.append(len(right) / len(moves))
        of_checks.append(len(set(right) & set(checks)) / max(1, len(checks)))
    return {"a random legal move": np.mean(of_moves), "a random check": np.mean(of_checks)}


def rate_targets(inputs: np.ndarray, labels: np.ndarray) -> Dict[str, float]:
    """Give for how many (n, 64) positions squares found without a look at the king are right."""
    import chess

    from mlx_trm.tasks.chess.positions import decode_position, encode_targets

    plain = []
    for row in inputs:
        board, marked = decode_position(row)
        from_mask = chess.BB_EMPTY if marked is None else chess.BB_SQUARES[marked]
        moves = board.generate_pseudo_legal_moves(from_mask)
        plain.append(encode_targets([move.to_square for move in moves]))
    nowhere = np.stack([encode_targets([])] * len(plain))
    return {
        "as the piece moves": (np.stack(plain) == labels).all(axis=1).mean(),
        "nowhere": (nowhere == labels).all(axis=1).mean(),
    }


def ladders_begun(rules: Rules, own: int, other: int, group: int) -> Iterator[int]:
    """Yield the first moves that the rule for captures plays, sets of one point."""
    liberties = rules.around(group) & rules.full & ~(own | other)
    if count_points(liberties) == 1:
        yield liberties
        return
    for move in points_of(liberties):
        played = rules.play(own, other, move)
        if played is None:
            continue
        last = rules.around(group) & rules.full & ~(played.own | played.other)
        if count_points(last) != 1:
            continue
        answered = rules.play(played.other, played.own, last)
        if answered is not None:
            grown = rules.chain(group & -group, answered.own)
            free = rules.around(grown) & rules.full & ~(answered.own | answered.other)
            if count_points(free) > 1:
                continue
        yield move


def main() -> None:
    """Print the shares of right answers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a configuration of chess or Go")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="change a setting")
    given = parser.parse_args()
    config = load_config(given.config, given.settings)
    task = build_task(config.task, config.task_seed)
    data = task.dataset("test").arrays["all"]
    inputs, labels = np.array(data.inputs), np.array(data.labels)
    kind, size = getattr(config.task, "kind", ""), getattr(config.task, "size", 0)
    if config.task.name == "chess" and kind == "moves":
        rates = rate_targets(inputs, labels)
    elif config.task.name == "chess":
        rates = rate_moves(inputs, kind)
    elif config.task.name == "go" and kind == "capture":
        rules, right = rules_of(size), []
        for row in inputs:
            found = decode(row, kind, rules)
            moves = sum(ladders_begun(rules, found.attacker, found.defender, found.marked))
            right.append(task.check(row, np.where(rules.to_flags(moves), np.uint8(MOVE), row)))
        caught, flags = (labels == MOVE).any(axis=1), np.array(right)
        rates = {"all": flags.mean(), "caught": flags[caught].mean(), "safe": flags[~caught].mean()}
    else:
        raise SystemExit("there are rules for chess and for captures in Go")
    print(len(inputs), "puzzles:", ", ".join(f"{name} {rate:.3f}" for name, rate in rates.items()))


if __name__ == "__main__":
    main()
