"""Procedural indoor rooms: the data set that needs no download, the same bits on every machine.

An analytic ray caster in numpy alone. `render_room(index)` is a pure function; `rooms_file` keeps what it made on disk.
"""

from medusa_cl.data.rooms.cache import SPLITS, VERSION, cache_dir, rooms_file, rooms_path
from medusa_cl.data.rooms.golden import GOLDEN, golden_ok
from medusa_cl.data.rooms.render import render_room
from medusa_cl.data.rooms.scene import CLASSES, PALETTE

__all__ = [
    "CLASSES", "GOLDEN", "PALETTE", "SPLITS", "VERSION",
    "cache_dir", "golden_ok", "render_room", "rooms_file", "rooms_path",
]  # fmt: skip
