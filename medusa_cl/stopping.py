"""Being asked to stop, by Ctrl-C, SIGTERM or SIGUSR1: a step under way is finished first, unless asked twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Stopped(SystemExit):
    """Somebody has asked this process to stop; its exit status is 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class StopRequest:
    """Whether this process is to stop, and whether it may finish what it is at.

    Attributes:
        asked: The number of the signal; None as long as nobody has asked.
        patient: Whether the first request is a note only, for whoever calls `obey` between two steps.
        say: Called with what is told to whoever has asked.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.patient = False
        self.say: Callable[[str], None] = lambda line: None

    def obey(self) -> None:
        """Stop, if that was asked for.

        Raises:
            Stopped: It was.
        """
        if self.asked is not None:
            raise Stopped(self.asked)

    def hear(self, number: int, frame: Any = None) -> None:
        """Take a request.

        Raises:
            Stopped: It is the second one, or nothing is under way that is worth waiting for.
        """
        again, self.asked = self.asked is not None, number
        if again or not self.patient:
            raise Stopped(number)
        self.say("Stopping when this step is over and saved. Once more stops at once.")


@contextmanager
def listening(request: StopRequest) -> Iterator[None]:
    """Turn the signals of this process into a request while the block runs; only the main thread can hear any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, request.hear) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


GRACE = 30
"""Seconds that a helper goes on after SIGTERM: it may have been meant for all, and a step may need it to the end."""


def deaf(worker: int = 0) -> None:
    """Let a helper process leave requests to whoever has started it: Ctrl-C in a terminal reaches all of them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)


def release() -> None:
    """Let the helpers of this process end as soon as they are told to: nothing needs them any more."""
    for helper in multiprocessing.active_children():
        with suppress(ProcessLookupError):
            os.kill(helper.pid or 0, signal.SIGTERM)


def end_with_parent() -> None:
    """Let a helper process end when the one that has started it is gone, which SIGKILL gives no time to say."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _end_later(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))  # the second one is meant for this process
    timer = threading.Timer(GRACE, os._exit, (0,))
    timer.daemon = True
    timer.start()
