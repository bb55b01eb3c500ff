"""Puzzles being solved, to be kept: in a notebook, as a strip, an animation or a page."""

from pathlib import Path
from typing import Callable, Dict, Iterator, Sequence, Union

from mlx_trm.drawing.notebook import frame_page
from mlx_trm.drawing.page import save_page, write_page
from mlx_trm.drawing.raster import save_animation, save_strip, scene_panels
from mlx_trm.drawing.scenes import Scene
from mlx_trm.errors import ConfigError


class Film:
    """The steps of some puzzles.

    Attributes:
        scenes: a puzzle each, at least one.
    """

    def __init__(self, scenes: Sequence[Scene]) -> None:
        """Keep them.

        Args:
            scenes: a puzzle each, at least one.
        """
        self.scenes = list(scenes)

    def __iter__(self) -> Iterator[Scene]:
        """Go through the puzzles."""
        return iter(self.scenes)

    def __repr__(self) -> str:
        """Say how much it holds."""
        steps = sum(len(take.frames) for scene in self.scenes for take in scene.takes)
        return f"Film({len(self.scenes)} scenes, {steps} steps)"

    def save(self, path: Union[str, Path]) -> None:
        """Write it to a file, which is replaced if it is there.

        Args:
            path: its name ends in ``.png`` (a strip of the steps), ``.gif`` (an animation) or
                ``.html`` (a page with sliders over steps and rollouts). The first two show the
                rollout that gave the answer.

        Raises:
            ConfigError: for another name, if Pillow is missing, or if it cannot be written.
        """
        place = Path(path)
        savers: Dict[str, Callable[[], None]] = {
            ".png": lambda: save_strip(place, list(map(scene_panels, self.scenes)), "save"),
            ".gif": lambda: save_animation(place, self.scenes, "save"),
            ".html": lambda: save_page(place, self.scenes, "save"),
        }
        saver = savers.get(place.suffix.lower())
        if saver is None:
            raise ConfigError(f"{path}: its name must end in {', '.join(savers)}")
        saver()

    def html(self) -> str:
        """Give the page in a frame of its own, as a notebook shows it."""
        return frame_page(write_page(self.scenes))

    def _repr_html_(self) -> str:
        return self.html()
