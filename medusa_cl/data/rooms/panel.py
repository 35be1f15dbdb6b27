"""One picture of some rooms and all their targets."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from medusa_cl import tasks
from medusa_cl.data.hdf5 import FIELDS, as_tensor
from medusa_cl.data.rooms.render import render_room
from medusa_cl.data.rooms.scene import PALETTE
from medusa_cl.data.rooms.splits import SPLITS

INDICES = (1, 6, 9, 13, SPLITS["confirm_style"])
GAP, TOP = 2, 14
_PAGE = 255


def panel(indices: Sequence[int] = INDICES, size: tuple[int, int] = (128, 160)) -> npt.NDArray[np.uint8]:
    """Draw each room's image and targets in one column.

    Args:
        indices: Which rooms.
        size: Height and width of each tile in pixels.

    Returns:
        h w 3, uint8: the image, then semseg, depth, normals, edges, reshading, albedo, curvature, keypoints2d and
        saliency from top to bottom, each under its name.
    """
    rooms = [render_room(index, size) for index in indices]
    names = [name for name in rooms[0] if name != "instances"]
    rows = []
    for name in names:
        tiles = [_drawn(name, room[name]) for room in rooms]
        gap = np.full((size[0], GAP, 3), _PAGE, np.uint8)
        row = np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)
        rows += [_title(name, row.shape[1]), row]
    return np.concatenate(rows)


def _drawn(name: str, stored: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    if name == "image":
        return stored.astype(np.uint8)
    if name == "semseg":
        return np.array(PALETTE, np.uint8)[stored.astype(np.uint8)]
    return tasks.BUILT_IN[name]().draw(as_tensor(FIELDS[name], stored).numpy())


def _title(name: str, width: int) -> npt.NDArray[np.uint8]:
    strip = Image.new("RGB", (width, TOP), (_PAGE,) * 3)
    ImageDraw.Draw(strip).text((1, 1), name, fill=(0, 0, 0))
    return np.asarray(strip)
