"""rooms-v1: procedural indoor rooms with nine exact targets, the same bits on every machine, with nothing to download.

An analytic ray caster in numpy alone. `render_room(index)` is a pure function; `rooms_file` keeps what it made on disk.
What is in rooms-v1 is never changed: another look, target or split is rooms-v2. docs/rooms.md is its datasheet.
"""

from medusa_cl.data.rooms.cache import cache_dir, rooms_file, rooms_path
from medusa_cl.data.rooms.golden import GOLDEN, VERSION, golden_hash, golden_ok
from medusa_cl.data.rooms.render import render_room
from medusa_cl.data.rooms.scene import CLASSES, PALETTE
from medusa_cl.data.rooms.splits import SPLITS

__all__ = [
    "CLASSES", "GOLDEN", "PALETTE", "SPLITS", "VERSION",
    "cache_dir", "golden_hash", "golden_ok", "render_room", "rooms_file", "rooms_path",
]  # fmt: skip
