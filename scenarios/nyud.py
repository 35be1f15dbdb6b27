"""NYUD-v2 as a stream of dense tasks, read from our own HDF5 format."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from medusa_cl import tasks
from medusa_cl.data.hdf5 import HDF5Data, groups
from medusa_cl.data.loader import Augmentation, DenseData, as_augmentation
from medusa_cl.data.rooms import cache_dir
from medusa_cl.errors import MissingDataError
from medusa_cl.scenarios.dense import DenseScenario, check_stream, dense_scenario

FILE = "NYUD_MT.h5"


def nyud_tasks() -> list[tasks.DenseTask]:
    """Return the four tasks of NYUD-MT; edges are judged within .011 of the diagonal."""
    return [tasks.semseg(40), tasks.depth(), tasks.normals(), tasks.edges(tolerance=0.011)]


def find(root: str | None, file: str = FILE) -> Path:
    """Return the prepared file: `root`, else $MEDUSA_CL_DATA, ./data, the user's cache, each a file or its folder.

    Raises:
        MissingDataError: It is in none of these places; the message lists them.
    """
    places = [root] if root else [os.environ.get("MEDUSA_CL_DATA"), "data", str(cache_dir())]
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

    A group `val` is opened too where the file has one.

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
        TaskError: A task is unknown, named twice, or not in the file; or `base` is empty.
    """
    known = nyud_tasks()
    check_stream(known, base, stream)
    path = find(root)
    sizes = {"train": train_size, "test": test_size}
    if groups(path).get("val"):  # NYUD itself has none; a file with images set aside for choosing settings may
        sizes = {"train": train_size, "val": None, "test": test_size}
    data: dict[str, DenseData] = {split: HDF5Data(path, split, size=size) for split, size in sizes.items()}
    augmentation = Augmentation(zooms=(1.0, 1.2, 1.5)) if augment is None else as_augmentation(augment)
    return dense_scenario(known, data, base, stream, name=name, augmentation=augmentation)
