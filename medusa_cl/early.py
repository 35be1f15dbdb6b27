"""Being asked to stop while a verb still loads what it needs: it ends at once, for nothing can be lost yet.

An exception would do at most other times (`medusa_cl.stopping`). Here it may rise in the middle of the import of a
compiled library, which can lose it, or be left in pieces that a second import fails on. This module imports next to
nothing itself, so that it comes first.
"""

import os
import signal
from typing import Any

SAID = b"Stopped. Nothing was begun yet: the same command can be given again.\n"
_before: dict[int, Any] = {}


def listen() -> None:
    """End this process where Ctrl-C, SIGTERM or SIGUSR1 asks for it, from now on until `enough`."""
    for number in (getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)):
        try:
            _before.setdefault(number, signal.signal(number, _leave))
        except ValueError:  # only the main thread can hear any
            return


def enough() -> None:
    """Give the signals back to whoever had them before."""
    while _before:
        signal.signal(*_before.popitem())


def _leave(number: int, frame: Any) -> None:
    try:
        os.write(1, SAID)
    except OSError:  # nobody reads
        pass
    finally:
        os._exit(128 + number)
