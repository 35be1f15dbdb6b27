"""PASCAL-Context as a stream of dense tasks, read from PASCAL_MT."""

from __future__ import annotations

from typing import Unpack

from medusa_cl import tasks
from medusa_cl.data.pascal import CLASSES
from medusa_cl.errors import MissingDataError
from medusa_cl.scenarios.dense import DenseScenario, arrange, check_stream
from medusa_cl.scenarios.disk import DiskOptions, Place, disk_scenario, open_data

PASCAL = Place(
    title="PASCAL-Context",
    file="PASCAL_MT.h5",
    folders=("PASCAL_MT",),
    inside=("JPEGImages",),
    sizes={"train": 4998, "test": 5105},
    manual="scenario.download=true says how to get it.",
)


def pascal_tasks() -> list[tasks.DenseTask]:
    """Return the five tasks of PASCAL_MT; edges are judged within .0075 of the diagonal."""
    return [
        tasks.semseg(CLASSES),
        tasks.human_parts(),
        tasks.saliency(),
        tasks.normals(),
        tasks.edges(tolerance=0.0075),
    ]


def pascal_incremental(
    *,
    root: str | None = None,
    download: bool = False,
    normals_frame: str = "auto",
    **options: Unpack[DiskOptions],
) -> DenseScenario:
    """PASCAL-Context (4998 train, 5105 test), base semseg, human_parts and saliency, then normals, then edges.

    Images without people are ignored in human_parts. Normals and saliency are distilled labels, and said to be.

    Args:
        root: The folder PASCAL_MT, the one above it, or a prepared file; None looks in the usual places (`Place.find`).
        download: There is no source to fetch it from: asked for, it is answered with the way to get it by hand.
        normals_frame: The axes of the pack's normals as in `frames.Frame`; auto = detected.
        options: See `DiskOptions`; by default images are flipped, rotated by up to 20 degrees and scaled by .75 to
            1.25.

    Raises:
        MissingDataError: It was not found.
        DataError: It is damaged, or of another kind.
        TaskError: A task is unknown, named twice, or not in the data; or `base` is empty.
    """
    given: DiskOptions = {
        "base": ("semseg", "human_parts", "saliency"),
        "stream": ("normals", "edges"),
        "augment": {"rotation": 20.0, "scale": (0.75, 1.25)},
        "name": "pascal_incremental",
        **options,
    }
    known = pascal_tasks()
    check_stream(known, *arrange(given["base"], given["stream"]))
    try:
        path = PASCAL.find(root)
    except MissingDataError as error:
        if not download:
            raise
        from medusa_cl.data.origins import PASCAL_MANUAL

        raise MissingDataError(f"{error} {PASCAL_MANUAL}") from None
    where = open_data(path, "pascal", normals_frame)
    return disk_scenario(where, known, protocol=PASCAL.sizes, **given)
