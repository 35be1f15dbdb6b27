"""Which rooms make which split: ranges of the index, so that more images never change those that are there."""

from medusa_cl.data.rooms.layout import build
from medusa_cl.data.rooms.scene import Scene
from medusa_cl.data.rooms.style import HELD_OUT

SPLITS: dict[str, int] = {
    "train": 0,
    "val": 5_000_000,
    "test": 10_000_000,
    "confirm": 20_000_000,
    "confirm_style": 30_000_000,
}
"""First index of each split. Choices are made on val; confirm and confirm_style are for one last look."""
LARGEST_SPLIT = 5_000_000
"""So many rooms at most has a split."""


def scene_of(index: int) -> Scene:
    """The scene of an index: in the style held out of training where it lies in confirm_style, else in any other."""
    styled = 0 <= index - SPLITS["confirm_style"] < LARGEST_SPLIT
    return build(index, HELD_OUT) if styled else build(index)
