"""NYUD-v2 as a stream of dense tasks, read from our own HDF5 format."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from medusa_cl import tasks
from medusa_cl.data.hdf5 import HDF5Data
from medusa_cl.data.loader import Augmentation, DenseData
from medusa_cl.errors import MissingDataError
from medusa_cl.scenarios.dense import DenseScenario, dense_scenario
from medusa_cl.scenarios.rooms import as_augmentation

FILE = "NYUD_MT.h5"


def nyud_tasks() -> list[tasks.DenseTask]:
    """Return the four tasks of NYUD-MT; edges are judged within .011 of the diagonal."""
    return [tasks.semseg(40), tasks.depth(), tasks.normals(), tasks.edges(tolerance=0.011)]


def find(root: str | None, file: str = FILE) -> Path:
    """Return the prepared file: `root`, else $MEDUSA_CL_DATA, ./data, the user's cache, each a file or its folder.

    Raises:
        MissingDataError: It is in none of these places; the message lists them.
    """
    cache = os.environ.get("MEDUSA_CL_CACHE", str(Path.home() / ".cache" / "medusa_cl"))
    places = [root] if root else [os.environ.get("MEDUSA_CL_DATA"), "data", cache]
    looked = []
    for place in filter(None, places):
        path = Path(place)
        path = path if path.suffix in (".h5", ".hdf5") else path / file
        looked.append(str(path))
        if path.is_file():
            return path
    raise MissingDataError(
        f"NYUD-v2 was not found. Looked for: {', '.join(looked)}. "
        "Expected NYUD-v2 in this project's HDF5 format (medusa_cl.data.hdf5 documents and writes it): set "
        "scenario.root=FILE.h5 or $MEDUSA_CL_DATA. Nothing to download is needed for scenario=rooms_incremental."
    )


def nyud_incremental(
    *,
    root: str | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    base: Sequence[str] = ("semseg", "depth"),
    stream: Sequence[str] = ("normals", "edges"),
    augment: Mapping[str, object] | Augmentation | None = None,
    name: str = "nyud_incremental",
) -> DenseScenario:
    """NYUD-v2 (795 train, 654 test), base semseg and depth, then normals, then edges.

    Args:
        root: The prepared HDF5 file or its folder; None looks in the usual places.
        train_size: Take only the first so many training images.
        test_size: Take only the first so many test images.
        base: Tasks learnt together first.
        stream: Tasks learnt one at a time.
        augment: An `Augmentation`, or its options; by default flip and zoom by 1, 1.2 or 1.5.
        name: The scenario's name.

    Raises:
        MissingDataError: The file was not found.
        DataError: The file is damaged or foreign.
        TaskError: A task is unknown, named twice, or not in the file.
    """
    path = find(root)
    data: dict[str, DenseData] = {
        "train": HDF5Data(path, "train", size=train_size),
        "test": HDF5Data(path, "test", size=test_size),
    }
    augmentation = Augmentation(zooms=(1.0, 1.2, 1.5)) if augment is None else as_augmentation(augment)
    return dense_scenario(nyud_tasks(), data, base, stream, name=name, augmentation=augmentation)
