"""Builds ARC datasets, byte for byte as the reference does at the same seed, but streaming.

Identifier numbers are rows of a trained puzzle table, so every random draw is made in the
reference's order, by NumPy's legacy generator, whose stream never changes. The reference first
augments all puzzles, then translates all grids, and holds everything. Here the first pass keeps
only what was drawn, ten numbers an augmentation, and the second one makes the grids again, a
puzzle at a time.

Reference: dataset/build_arc_dataset.py ``convert_single_arc_puzzle``, ``convert_dataset``.
"""

from typing import Dict, Iterable, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np

from mlx_trm.datasets.writing import PuzzleBlock
from mlx_trm.errors import DataError, shown
from mlx_trm.tasks.arc.files import ArcTask, Pair
from mlx_trm.tasks.arc.grids import CANVAS, COLORS, END, FIRST_COLOR, TURNED, augmented_name
from mlx_trm.tasks.symmetries import dihedral_transform

# For each augmentation wanted, so many are tried at most.
RETRIES = 5

# Colours are looked up by number; this one stands for the end mark.
_END_COLOR = COLORS
_CHUNK = 256


# Puzzles with all augmentations: rows of the puzzle table, each of which has a name. ARC-AGI-1
# has 876,406, and so many take 500 MB before anything is written.
MOST_PUZZLES = 3_000_000
# Bytes of the grids of a task with all augmentations; ARC's largest has 20 MB.
MOST_BYTES = 1 << 28


def check_amount(tasks: Sequence[ArcTask], more: int, num_aug: int, size: int, where: str) -> int:
    """Refuse tasks that would become too many puzzles, or too large ones.

    Args:
        tasks: of a subset.
        more: tasks of the subsets before.
        num_aug: augmentations of each.
        size: of the canvas.
        where: file or folder to name in an error.

    Returns:
        How many tasks there are with these.

    Raises:
        DataError: naming what can be lowered.
    """
    count = len(tasks) + more
    advice = "lower task.num_aug, or leave something out"
    if count * (num_aug + 1) > MOST_PUZZLES:
        raise DataError(
            f"{where}: with it there are {count:,} tasks with {num_aug:,} augmentations each, more "
            f"than {MOST_PUZZLES:,} puzzles; {advice}"
        )
    for task in tasks:
        pairs = sum(map(len, task.pairs.values()))
        if pairs * (num_aug + 1) * 2 * size * size > MOST_BYTES:
            raise DataError(
                f"{where}: task {shown(task.name)}: {pairs:,} pairs with {num_aug:,} augmentations "
                f"are too many; {advice}"
            )
    return count


class Plan(NamedTuple):
    """A puzzle and its augmentations, drawn but not made.

    Attributes:
        task: the puzzle.
        to_test: whether its test pairs are for testing.
        transforms: (A,) uint8, 0 first: the puzzle itself.
        colors: (A, 10) uint8, what each colour becomes.
    """

    task: ArcTask
    to_test: bool
    transforms: np.ndarray
    colors: np.ndarray

    def pairs(self, split: str) -> List[Pair]:
        """Return the pairs of the puzzle that a split gets, in the order of its file."""
        mine = split == "test"
        return [
            pair
            for part, pairs in self.task.pairs.items()
            if (part == "test" and self.to_test) == mine
            for pair in pairs
        ]

    def names(self) -> List[str]:
        """Name the puzzle and its augmentations."""
        return [self.task.name] + [
            augmented_name(self.task.name, transform, colors)
            for transform, colors in zip(self.transforms[1:].tolist(), self.colors[1:].tolist())
        ]


def draw_plans(
    subsets: Iterable[Tuple[List[ArcTask], bool]], num_aug: int, rng: np.random.RandomState
) -> Iterator[Plan]:
    """Shuffle the tasks of each subset and draw their augmentations.

    Args:
        subsets: the tasks of each, and whether their test pairs are for testing; read one by one.
        num_aug: augmentations wanted of each task.
        rng: is left as the reference's generator is then.
    """
    for tasks, to_test in subsets:
        rng.shuffle(tasks)  # type: ignore[arg-type]
        for task in tasks:
            transforms, colors = draw_augmentations(task, num_aug, rng)
            yield Plan(task, to_test, transforms, colors)


def number_plans(plans: Iterable[Plan]) -> Dict[str, int]:
    """Number puzzles and augmentations by name, from 1, as the rows of a built dataset's table."""
    numbers: Dict[str, int] = {}
    for plan in plans:
        # Every puzzle has pairs for training, and the train split is written first.
        for name in plan.names():
            numbers.setdefault(name, len(numbers) + 1)
    return numbers


def draw_augmentations(
    task: ArcTask, num_aug: int, rng: np.random.RandomState
) -> Tuple[np.ndarray, np.ndarray]:
    """Draw augmentations until ``num_aug`` different ones are found, or five times as many tried.

    Two are the same if they turn the puzzle into the same set of pairs.

    Returns:
        (A,) uint8 transforms and (A, 10) uint8 colours, the identity first.
    """
    transforms, colors = [0], [np.arange(COLORS, dtype=np.uint8)]
    pairs = [pair for part in task.pairs.values() for pair in part]
    turned = [_pair_bytes(pairs, number) for number in range(8)]
    seen = {_key(turned[0], bytes(range(256)))}
    others = np.arange(1, COLORS, dtype=np.uint8)
    for _ in range(RETRIES * num_aug):
        if len(transforms) > num_aug:
            break
        number = int(rng.randint(0, 8))
        permuted = rng.permutation(others)
        key = _key(turned[number], b"\0" + permuted.tobytes() + bytes(range(COLORS, 256)))
        if key not in seen:
            seen.add(key)
            transforms.append(number)
            colors.append(np.concatenate([others[:1] * 0, permuted]))
    return np.array(transforms, dtype=np.uint8), np.stack(colors)


def _pair_bytes(pairs: Sequence[Pair], number: int) -> List[Tuple[bytes, bytes]]:
    """Return for each pair the shapes and the cells of its transformed grids."""
    found = []
    for pair in pairs:
        grids = [dihedral_transform(grid, number) for grid in pair]
        shapes = bytes(side for grid in grids for side in grid.shape)
        found.append((shapes, b"".join(grid.tobytes() for grid in grids)))
    return found


def _key(pairs: Sequence[Tuple[bytes, bytes]], colors: bytes) -> bytes:
    """Return what two augmented puzzles share only if they are the same set of pairs.

    Args:
        pairs: shapes and cells.
        colors: 256 bytes, what each colour becomes.
    """
    return b"".join(sorted([shapes + cells.translate(colors) for shapes, cells in pairs]))


class Writer:
    """Makes the arrays of planned puzzles; the draws continue those of the plans."""

    def __init__(self, rng: np.random.RandomState, size: int = CANVAS) -> None:
        """Begin where the plans have left the generator.

        Args:
            rng: is drawn from in the reference's order.
            size: of the canvas.
        """
        self.rng = rng
        self.size = size

    def blocks(self, plans: Sequence[Plan], split: str) -> Iterator[PuzzleBlock]:
        """Yield one group for each puzzle that the split has pairs of.

        The splits have to be taken in the order ``train``, ``test``.
        """
        for plan in plans:
            pairs = plan.pairs(split)
            if not pairs:
                continue
            if split == "train":
                offsets = self._offsets(pairs, plan.transforms)
            else:
                for _ in plan.transforms:  # drawn in the test split too, for nothing
                    self.rng.randint(0, len(pairs))
                offsets = np.zeros((len(plan.transforms), len(pairs), 2), dtype=np.int64)
            yield self._block(plan, pairs, offsets)

    def _offsets(self, pairs: Sequence[Pair], transforms: np.ndarray) -> np.ndarray:
        """Draw where on the canvas pairs go, (A, E, 2) int64; one of the E stays in the corner."""
        count = len(pairs)
        sides = np.array([np.maximum(a.shape, b.shape) for a, b in pairs])
        room = self.size - sides + 1
        rooms = (room, room[:, ::-1])
        # What is drawn when pair k stays, as one array: one call draws what the reference draws
        # one by one.
        moving = [[np.delete(r, k, axis=0).ravel() for k in range(count)] for r in rooms]
        others = [np.delete(np.arange(count), k) for k in range(count)]
        offsets = np.zeros((len(transforms), count, 2), dtype=np.int64)
        randint = self.rng.randint
        for number, turned in enumerate(TURNED[transforms].tolist()):
            stays = int(randint(0, count))
            if count > 1:
                drawn = np.asarray(randint(0, moving[turned][stays]))
                offsets[number, others[stays]] = drawn.reshape(-1, 2)
        return offsets

    def _block(self, plan: Plan, pairs: Sequence[Pair], offsets: np.ndarray) -> PuzzleBlock:
        """Make the (A * E, S) arrays of a group."""
        count, wide = len(pairs), self.size + 1
        cells, places, owners = self._cells(pairs)
        colors = np.zeros((len(plan.transforms), COLORS + 1), dtype=np.uint8)
        colors[:, :COLORS] = plan.colors + FIRST_COLOR
        colors[:, _END_COLOR] = END
        shifts = (offsets[..., 0] * wide + offsets[..., 1]).astype(np.int32)
        parts = []
        for start in range(0, len(shifts), _CHUNK):
            chosen = slice(start, start + _CHUNK)
            which = plan.transforms[chosen]
            rows = np.arange(len(which), dtype=np.int32)[:, None]
            canvas = np.zeros((len(which), count, 2, wide, wide), dtype=np.uint8)
            each = count * 2 * wide * wide
            values = colors[chosen].ravel().take(cells[which] + rows * (COLORS + 1))
            where = places[which] + shifts[chosen][:, owners] + rows * each
            canvas.ravel()[where] = values  # contiguous, so a view
            parts.append(canvas[..., :-1, :-1])
        grids = np.reshape(np.concatenate(parts), (-1, 2, self.size * self.size))
        return PuzzleBlock(
            np.ascontiguousarray(grids[:, 0]),
            np.ascontiguousarray(grids[:, 1]),
            len(plan.transforms),
            count,
            plan.names(),
        )

    def _cells(self, pairs: Sequence[Pair]) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """List the cells that are written, for each of the eight transforms.

        Returns:
            (8, K) colours; (8, K) places in the (E, 2, wide, wide) canvases of a puzzle, the grid
            in the upper left corner; and (K,) which of the E pairs each belongs to.
        """
        wide = self.size + 1
        colors: Dict[int, List[np.ndarray]] = {number: [] for number in range(8)}
        places: Dict[int, List[np.ndarray]] = {number: [] for number in range(8)}
        owners = []
        for at, grid in enumerate(grid for pair in pairs for grid in pair):
            for number in range(8):
                turned = dihedral_transform(grid, number)
                height, width = turned.shape
                rows, columns = np.indices((height, width))
                below = height * wide + np.arange(width)
                right = np.arange(height) * wide + width
                colors[number] += [turned.ravel(), np.full(height + width, _END_COLOR, np.uint8)]
                inside = np.concatenate([(rows * wide + columns).ravel(), below, right])
                places[number].append(inside + at * wide * wide)
            owners.append(np.full(grid.size + sum(grid.shape), at // 2))
        return (
            np.stack([np.concatenate(colors[number]) for number in range(8)]).astype(np.int32),
            np.stack([np.concatenate(places[number]) for number in range(8)]).astype(np.int32),
            np.concatenate(owners),
        )
