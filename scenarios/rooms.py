"""Procedural indoor rooms with exact labels: the scenario that needs no download."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

from medusa_cl import tasks
from medusa_cl.data import rooms
from medusa_cl.data.hdf5 import HDF5Data
from medusa_cl.data.loader import Augmentation, as_augmentation
from medusa_cl.scenarios.dense import DenseScenario, arrange, check_stream, dense_scenario
from medusa_cl.tasks import DenseTask


def rooms_tasks() -> list[DenseTask]:
    """Return the nine tasks rooms have targets of; edges are judged within 1 px at 128x160 (.005 of the diagonal)."""
    return [
        tasks.semseg(rooms.CLASSES),
        tasks.depth(),
        tasks.normals(),
        tasks.edges(tolerance=0.005),
        tasks.reshading(),
        tasks.albedo(),
        tasks.curvature(),
        tasks.keypoints2d(),
        tasks.saliency(),
    ]


def rooms_incremental(
    *,
    image_size: Sequence[int] = (128, 160),
    train_size: int = 400,
    val_size: int = 20,
    test_size: int = 100,
    confirm_size: int = 0,
    confirm_style_size: int = 0,
    base: Sequence[str] = ("semseg", "depth"),
    stream: Sequence[str] = ("normals", "edges", "reshading"),
    augment: Mapping[str, object] | Augmentation | None = None,
    name: str = "rooms_incremental",
    order: str = "listed",
    held_out: str | Sequence[str] | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> DenseScenario:
    """rooms-v1, generated on first use into the user's cache; the same bits wherever the golden hashes hold.

    Args:
        image_size: H, W in pixels.
        train_size: Images to train on.
        val_size: Images to choose settings by; 0 for none.
        test_size: Images to report on.
        confirm_size: Images of a split "confirm" besides, for one last look once every choice is made; 0 for none.
        confirm_style_size: Images of "confirm_style", whose rooms are in a style that no other room is; 0 for none.
        base: Tasks learnt together first.
        stream: Tasks learnt one at a time.
        augment: An `Augmentation`, or its options.
        name: The scenario's name.
        order: "listed", or "random": `stream` in an order drawn with `seed`.
        held_out: A task (or several) that alone makes the stream, with all others of `base` and `stream` as the base;
            it need not be among those.
        seed: Of the random order.
        progress: Called with (what is done, images done, images wanted) during generation.

    Raises:
        TaskError: A task is unknown or named twice, or `base` is empty; no room has been rendered then.
        DataError: The cache cannot be written.
    """
    known = rooms_tasks()
    base, stream = ([names] if isinstance(names, str) else list(names) for names in (base, stream))
    stream += _unlisted(held_out, known, (*base, *stream))
    base, stream = arrange(base, stream, order=order, held_out=held_out, seed=seed)
    check_stream(known, base, stream)  # a slip must not cost a minute of rendering first
    size = (int(image_size[0]), int(image_size[1]))
    counts = {"train": train_size, "val": val_size, "test": test_size}
    counts |= {"confirm": confirm_size, "confirm_style": confirm_style_size}
    counts = {split: count for split, count in counts.items() if count}
    told = None if progress is None else functools.partial(progress, "rooms (once)")
    path = rooms.rooms_file(size, counts, progress=told)
    data = {split: HDF5Data(path, split, size=count) for split, count in counts.items()}
    augmentation = as_augmentation(augment)
    return dense_scenario(known, data, base, stream, name=name, augmentation=augmentation)


def _unlisted(held_out: str | Sequence[str] | None, known: Sequence[DenseTask], listed: Sequence[str]) -> list[str]:
    """The tasks to hold out that rooms have, but neither base nor stream names."""
    names = [held_out] if isinstance(held_out, str) else held_out or ()
    return [name for name in names if name not in listed and name in {task.name for task in known}]
