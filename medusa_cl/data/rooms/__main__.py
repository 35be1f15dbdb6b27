"""`python -m medusa_cl.data.rooms PICTURE`: draw some rooms with all their targets, the index of each as an argument.

python -m medusa_cl.data.rooms rooms.webp
python -m medusa_cl.data.rooms rooms.png 0 1 2 30000000
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from medusa_cl import shell
from medusa_cl.errors import ConfigError
from medusa_cl.kept import whole


def main(arguments: Sequence[str]) -> None:
    """Write the picture; without arguments, say how.

    Raises:
        ConfigError: An index is none, or the file's name says no kind of picture.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    out = Path(arguments[0])
    if not (all(word.isdigit() for word in arguments[1:])):
        raise ConfigError(f"Expected indices of rooms (0, 1, ...), but got {' '.join(arguments[1:])}.")
    if out.suffix.lower() not in Image.registered_extensions():
        raise ConfigError(f"Expected a file such as rooms.png or rooms.webp, but got {out}.")
    from medusa_cl.data.rooms.panel import INDICES, panel  # torch draws: not for a line of help

    picture = panel([int(word) for word in arguments[1:]] or INDICES)
    with whole(out) as partial:
        Image.fromarray(picture).save(partial, Image.registered_extensions()[out.suffix.lower()], quality=80)


if __name__ == "__main__":
    shell.end(main)
