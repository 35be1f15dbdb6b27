"""Warnings of other packages that say nothing to whoever types a verb. `import medusa_cl` leaves all as they are."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True)
class Silenced:
    """One warning of another package, as narrow as it can be named.

    Attributes:
        message: What it begins with.
        category: Its class, or one above it where the class is in a package that may not be imported.
        place: Where it is given: the end of a file's path, with / between folders.
        why: Why nobody who runs a verb needs it.
    """

    message: str
    category: type[Warning]
    place: str
    why: str


# All that was heard of other packages with `-W default` in runs with every strategy and plugin, studies, sweeps,
# resumed and extended runs, prepare and track. What concerns data, weights, results or the machine is never put here.
SILENCED = (
    Silenced(
        "The ``noload`` loader strategy is deprecated",
        DeprecationWarning,
        "mlflow/store/tracking/sqlalchemy_store.py",
        "between MLflow and SQLAlchemy; it comes whenever a store is opened",
    ),
    Silenced(
        "Call to deprecated function update",
        DeprecationWarning,
        "avalanche/training/plugins/replay.py",
        "Avalanche to itself, after every experience with plugins=[replay]",
    ),
    Silenced(
        "__array_wrap__ must accept context",
        DeprecationWarning,
        "avalanche/training/plugins/synaptic_intelligence.py",
        "between Avalanche and NumPy, with plugins=[si]",
    ),
)
HIDDEN = (DeprecationWarning, PendingDeprecationWarning)
HERE = Path(__file__).parent
# Where this package's own files are, links followed or not: in a checkout three of its folders stand beside it.
OURS = tuple(
    f"{folder.as_posix()}/"
    for folder in (HERE, *((HERE / part).resolve() for part in ("", "configs", "scenarios", "strategies")))
)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave these warnings out while the block runs.

    Deprecations elsewhere are hidden too unless Python was asked for them (`-W`, `$PYTHONWARNINGS`), as it does by
    itself: Avalanche puts a filter before all others, again and again, that would show those of every package.
    """
    with warnings.catch_warnings():
        show = warnings.showwarning

        def heard(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not silenced(str(message), category, filename):
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = heard
        yield


def silenced(message: str, category: type[Warning], filename: str) -> bool:
    """Return whether a warning is left out."""
    place = re.sub(r"\\+", "/", filename)
    if issubclass(category, HIDDEN) and not sys.warnoptions and not place.startswith(OURS):
        return True
    return any(
        message.startswith(one.message) and issubclass(category, one.category) and place.endswith(f"/{one.place}")
        for one in SILENCED
    )
