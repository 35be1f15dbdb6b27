"""NYUD-v2 as a stream of dense tasks, read from whichever of its packs is there."""

from __future__ import annotations

from typing import Unpack

from medusa_cl import tasks
from medusa_cl.data.nyud import CLASSES
from medusa_cl.data.rooms import cache_dir
from medusa_cl.data.sources import RAW_MAT
from medusa_cl.errors import MissingDataError
from medusa_cl.scenarios.dense import DenseScenario, arrange, check_stream
from medusa_cl.scenarios.disk import DiskOptions, Place, disk_scenario, open_data

NYUD = Place(
    title="NYUD-v2",
    file="NYUD_MT.h5",
    folders=("NYUD_MT", "NYUDv2"),
    inside=("gt_sets", RAW_MAT),
    sizes={"train": 795, "test": 654},
    manual="scenario.download=true tries to fetch it.",
)


def nyud_tasks() -> list[tasks.DenseTask]:
    """Return the four tasks of NYUD-MT and two derived ones; edges are judged within .011 of the diagonal."""
    return [
        tasks.semseg(CLASSES),
        tasks.depth(),
        tasks.normals(),
        tasks.edges(tolerance=0.011),
        tasks.curvature(),
        tasks.keypoints2d(),
    ]


def nyud_incremental(
    *,
    root: str | None = None,
    download: bool = False,
    normals_frame: str = "auto",
    **options: Unpack[DiskOptions],
) -> DenseScenario:
    """NYUD-v2 (795 train, 654 test), base semseg and depth, then normals, then edges.

    The packs called ASTMT, survey and ATRC here, the raw labelled .mat and prepared files are read; the raw file has
    neither normals nor edges, so they are derived, and said to be.

    Args:
        root: The data or the folder above it; None looks in the usual places (`Place.find`).
        download: Fetch it into the user's cache where it is not found.
        normals_frame: The axes of the pack's normals as in `frames.Frame`; auto = detected.
        options: See `DiskOptions`; by default images are flipped and zoomed by 1, 1.2 or 1.5.

    Raises:
        MissingDataError: It was not found, nor fetched.
        DataError: It is damaged, or of another kind.
        TaskError: A task is unknown, named twice, or not in the data; or `base` is empty.
    """
    given: DiskOptions = {
        "base": ("semseg", "depth"),
        "stream": ("normals", "edges"),
        "augment": {"zooms": (1.0, 1.2, 1.5)},
        "name": "nyud_incremental",
        **options,
    }
    known = nyud_tasks()
    check_stream(known, *arrange(given["base"], given["stream"]))  # a slip must not cost a look at all the data
    try:
        path = NYUD.find(root)
    except MissingDataError:
        if not download:
            raise
        from medusa_cl.data.origins import nyud

        told = options.get("progress")
        path = nyud(cache_dir(), None if told is None else lambda done, total: told("downloading", done, total or done))
    where = open_data(path, "nyud", normals_frame)
    return disk_scenario(where, known, protocol=NYUD.sizes, **given)
