"""When a run is saved: at every boundary between tasks, and inside one every so many steps or minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medusa_cl import distributed, snapshot
from medusa_cl.errors import SnapshotError
from medusa_cl.stopping import StopRequest

AGREE_EVERY = 10
"""Steps between two moments at which processes that train together ask rank 0 what its clock says."""

LABEL_LENGTH = 80


class Keeper:
    """Saves a run, and ends it between two steps when that is asked for.

    A checkpoint that cannot be written, for the disk is full, is said and passed over: the last one stays, and training
    goes on.

    Args:
        folder: Where checkpoints lie.
        steps: Steps between two inside a task; None for none by steps.
        minutes: Minutes between two inside a task; None for none by the clock.
        stop: Whether the run is asked to stop.
        say: Called with a line on what could not be saved.
        clock: Seconds.

    Attributes:
        last: The newest checkpoint of this run; None before the first.
    """

    def __init__(
        self,
        folder: Path,
        *,
        steps: int | None = None,
        minutes: float | None = 10.0,
        stop: StopRequest | None = None,
        say: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.stop = folder, stop or StopRequest()
        self._steps, self._seconds, self._say, self._clock = steps, minutes and 60 * minutes, say, clock
        self._since, self._at, self._said = 0, clock(), set[str]()
        there = snapshot.every(folder)
        self.last: Path | None = there[-1] if there else None

    def step(self, state: Callable[[], Any], about: Mapping[str, Any]) -> None:
        """Take note that a step is over, and save the run where that is due or the run is to stop.

        Args:
            state: Returns what is to be saved.
            about: What it is; "at" says in words how far the run is.

        Raises:
            Stopped: The run was asked to stop; it is saved.
        """
        self._since += 1
        self.stop.patient = True
        if self._due():
            self._save(state, about)
        self.stop.obey()

    def pass_over(self, why: str) -> None:
        """Take note that a step is over from which the run could not go on.

        Raises:
            Stopped: The run was asked to stop; the last checkpoint stands.
        """
        if why not in self._said:
            self._said.add(why)
            self._say(f"No checkpoints inside this task: {why}.")
        self.stop.obey()

    def _due(self) -> bool:
        """Return whether to save now; processes that train together do so at the same step."""
        if self._steps is not None and self._since >= self._steps:
            return True
        by_clock = self._seconds is not None and self._clock() - self._at >= self._seconds
        if distributed.world() > 1:
            return self._since % AGREE_EVERY == 0 and distributed.agreed(by_clock)
        return by_clock or self.stop.asked is not None

    def boundary(self, state: Callable[[], Any], about: Mapping[str, Any]) -> None:
        """Save the run between two experiences; steps are over, and whoever asks to stop need not wait for one.

        Raises:
            Stopped: The run was asked to stop; it is saved.
        """
        self.stop.patient = False
        self._save(state, about)
        self.stop.obey()

    def _save(self, state: Callable[[], Any], about: Mapping[str, Any]) -> None:
        try:
            tree = state()
            if distributed.is_main():
                label = str(about["at"]).replace("/", "_").replace(" ", "-")[:LABEL_LENGTH]
                self.last = snapshot.write(snapshot.next_name(self.folder, label), tree, about)
                snapshot.drop_older(self.folder)
        except (OSError, SnapshotError) as error:
            kept = f"the last one is {self.last}" if self.last else "there is none yet"
            self._say(f"A checkpoint could not be written ({error}); {kept}. Training goes on.")
        self._since, self._at = 0, self._clock()
