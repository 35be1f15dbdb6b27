"""What the browser tests know of the server they look at."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
UNSET = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "MLFLOW_BACKEND_STORE_URI")


class Served(NamedTuple):
    """What `track ui` has said."""

    home: Path
    said: str

    def page(self, label: str) -> str:
        """Return the address after a label."""
        found = re.search(rf"^ *{label} +(http\S+)$", self.said, re.MULTILINE)
        assert found, self.said
        return found[1]

    @property
    def uri(self) -> str:
        """The server's tracking URI."""
        return self.page("charts").partition("/#")[0]


def environment(folder: Path) -> dict[str, str]:
    """A user's, with a cache of its own."""
    kept = {key: value for key, value in os.environ.items() if key not in UNSET}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"MEDUSA_CL_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return kept | own | {"PYTHONWARNINGS": "ignore"}
