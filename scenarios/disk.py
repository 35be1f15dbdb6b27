"""What scenarios of data on disk share: where it is looked for, how it is opened, and what is said about it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np

from medusa_cl.data.derived import DERIVATIONS, Derived
from medusa_cl.data.hdf5 import MEMORY_LIMIT, HDF5Data, attrs_of, groups
from medusa_cl.data.loader import Augmentation, as_augmentation
from medusa_cl.data.pack import Pack, PackData, Subset, require_labels, usable
from medusa_cl.data.rooms import cache_dir
from medusa_cl.data.sources import HDF5, open_pack, sniff
from medusa_cl.data.split import StoredData
from medusa_cl.errors import ConfigError, DataError, MissingDataError, unknown
from medusa_cl.randomness import permutation
from medusa_cl.scenarios.dense import DenseScenario, arrange, check_stream, dense_scenario
from medusa_cl.tasks import DenseTask

Advance = Callable[[str, int, int], None]
"""Called with (what is done, how much of it, of how much)."""

ON_BAD_SAMPLE = ("stop", "skip")


@dataclass(frozen=True)
class Place:
    """Where a data set may lie.

    Attributes:
        title: Its name, for people.
        file: The name of the file that `prepare` makes of it.
        folders: The names of its packs' folders.
        inside: A folder that lies in such a folder, whatever it is called, and the name of the raw file.
        sizes: How many images the protocol has in each split.
        manual: How to get it.
    """

    title: str
    file: str
    folders: tuple[str, ...]
    inside: tuple[str, ...]
    sizes: Mapping[str, int]
    manual: str

    def find(self, root: str | Path | None) -> Path:
        """Return where the data is: `root`, else $MEDUSA_CL_DATA, ./data, the user's cache.

        Each may be the prepared file, the raw file, the pack's folder or the folder above it; a prepared file goes
        before the pack beside it, and this before the raw file.

        Raises:
            MissingDataError: It is in none of these places; the message lists them, and how to get it.
        """
        places = [root] if root is not None else [os.environ.get("MEDUSA_CL_DATA"), "data", cache_dir()]
        looked = [Path(place).expanduser() for place in places if place]
        for path in looked:
            if found := self._at(path):
                return found
        if root is not None and looked[0].is_dir() and any(looked[0].iterdir()):
            return looked[0]  # something else: the reader says what
        raise MissingDataError(
            f"{self.title} was not found. Looked for {', '.join((self.file, *self.folders, *self.inside))} in: "
            f"{', '.join(map(str, looked))}. Set scenario.root=DIR or $MEDUSA_CL_DATA. {self.manual} "
            "Nothing to download is needed for scenario=rooms_incremental."
        )

    def _at(self, path: Path) -> Path | None:
        if path.is_file():
            return path
        if (path / self.file).is_file():
            return path / self.file
        if any((path / name).is_dir() for name in self.inside):
            return path
        below = [path / name for name in (*self.folders, *self.inside)]
        return next((place for place in below if place.exists()), None)


class DiskOptions(TypedDict, total=False):
    """Options that every scenario of data on disk takes.

    Attributes:
        base: Tasks learnt together first.
        stream: Tasks learnt one at a time.
        order: "listed", or "random": `stream` in an order drawn with `seed`.
        held_out: A task (or several) that alone makes the stream, with all others as the base.
        seed: Of the random order.
        train_size: Take only the first so many training images.
        test_size: Take only the first so many test images.
        val_fraction: The share of the *training* images set aside to choose settings by, where the data has no val.
        image_size: H, W to which images are padded; None = those of the split's largest image.
        on_bad_sample: "stop" at a damaged image, or "skip": read all images once and leave those out that are damaged.
        augment: An `Augmentation`, or its options.
        name: The scenario's name.
        progress: Told how far reading all images is.
    """

    base: Sequence[str]
    stream: Sequence[str]
    order: str
    held_out: str | Sequence[str] | None
    seed: int
    train_size: int | None
    test_size: int | None
    val_fraction: float
    image_size: Sequence[int] | None
    on_bad_sample: str
    augment: Mapping[str, object] | Augmentation | None
    name: str
    progress: Advance | None


DEFAULTS: DiskOptions = {
    "order": "listed",
    "held_out": None,
    "seed": 0,
    "train_size": None,
    "test_size": None,
    "val_fraction": 0.0,
    "image_size": None,
    "on_bad_sample": "stop",
    "augment": None,
    "name": "disk",
    "progress": None,
}


def disk_scenario(
    where: Path | Pack,
    tasks: Sequence[DenseTask],
    protocol: Mapping[str, int] | None = None,
    **options: Unpack[DiskOptions],
) -> DenseScenario:
    """Make a scenario of a pack or of a prepared file.

    Args:
        where: A reader, or the path of a file in our format.
        tasks: The tasks there may be.
        protocol: How many images each split has in the literature, to be told where there are fewer.
        options: `base` and `stream`, and what else `DiskOptions` names.

    Raises:
        ConfigError: An option has no such value.
        TaskError: A task is unknown or named twice, or `base` is empty.
        DataError: The data lacks a target, holds other classes or another ignored value than its task, is damaged, or
            no image of a split has a label of some task.
    """
    chosen: DiskOptions = {**DEFAULTS, **options}
    base, stream = arrange(
        chosen["base"],
        chosen["stream"],
        order=chosen["order"],
        held_out=chosen["held_out"],
        seed=chosen["seed"],
    )
    check_stream(tasks, base, stream)
    _check_options(chosen)
    wanted = [*base, *stream]
    readers = {
        split: functools.partial(_opened, where, split, size, wanted) for split, size in _sizes(where, chosen).items()
    }
    splits = {split: opened() for split, opened in readers.items()}
    if chosen["on_bad_sample"] == "stop":
        _refuse_unreadable(splits.values())
    skipped = dict[str, Mapping[str, str]]()
    for split, opened in readers.items() if chosen["on_bad_sample"] == "skip" else ():
        good, faults = _checked(where, splits[split], split, chosen["progress"])
        if faults:  # held in memory, all images are read at once: the damaged ones too
            splits[split], skipped[split] = Subset(opened(memory_limit=0), good), faults
    if chosen["val_fraction"]:
        _set_aside(splits, chosen["val_fraction"])
    unlabelled = [task for task in wanted if "val" in splits and not _any_label(splits["val"], task)]
    if unlabelled:  # the user's own, perhaps for other tasks: nothing but trainer.select=val needs it
        del splits["val"]
    for source in splits.values():
        if chosen["image_size"] is not None:
            source.image_size = _canvas(source, chosen["image_size"])
        _check_meaning(source, [task for task in tasks if task.name in wanted])
        require_labels(source, wanted)
    augmentation = as_augmentation(chosen["augment"])
    made = dense_scenario(tasks, splits, base, stream, name=chosen["name"], augmentation=augmentation)
    made.label_notes = label_notes(splits["train"], wanted)
    made.skipped = skipped
    made.about = _about(where, splits, made.label_notes, protocol or {})
    if anew := _made_anew(where, splits["train"], wanted):
        made.about += f"; {', '.join(anew)} computed at every read: python -m medusa_cl.prepare keeps such labels"
    return made


def _made_anew(where: Path | Pack, source: StoredData, wanted: Sequence[str]) -> list[str]:
    """Which derived targets no file holds."""
    held = HDF5Data(where, "train").fields if isinstance(where, Path) else set(where.fields) - set(where.derived)
    return [task for task in wanted if task in source.attrs.get("derived", {}) and task not in held]


def _any_label(source: StoredData, task: str) -> bool:
    return bool(np.asarray(source.has(task)).any())


def _refuse_unreadable(splits: Iterable[StoredData]) -> None:
    """Stop at once where that is known already; other damage is met when an image is read."""
    for source in splits:
        for fault in source.unreadable.values():
            raise DataError(fault)


def _check_options(options: DiskOptions) -> None:
    if options["on_bad_sample"] not in ON_BAD_SAMPLE:
        raise ConfigError(unknown("scenario.on_bad_sample", options["on_bad_sample"], ON_BAD_SAMPLE))
    if not 0 <= options["val_fraction"] < 1:
        raise ConfigError(f"Expected scenario.val_fraction in [0, 1), but got {options['val_fraction']}.")


def _sizes(where: Path | Pack, options: DiskOptions) -> dict[str, int | None]:
    """How many images are used of each split there is; train and test must be there."""
    there = groups(where) if isinstance(where, Path) else {name: len(ids) for name, ids in where.splits.items()}
    sizes = {"train": options["train_size"], "val": None, "test": options["test_size"]}
    return {split: size for split, size in sizes.items() if split != "val" or there.get(split)}


def _opened(
    where: Path | Pack, split: str, size: int | None, wanted: Sequence[str], memory_limit: int = MEMORY_LIMIT
) -> StoredData:
    there = HDF5Data(where, split).fields if isinstance(where, Path) else where.fields
    made = [task for task in wanted if task in DERIVATIONS and task not in there]
    origins = {DERIVATIONS[task].of for task in made} - {"image"}
    read = list(dict.fromkeys([*(task for task in wanted if task not in made), *sorted(origins)]))
    source: StoredData = (
        HDF5Data(where, split, size, read, memory_limit=memory_limit)
        if isinstance(where, Path)
        else PackData(where, split, size, read)
    )
    return Derived(source, made) if made else source


def _checked(
    where: Path | Pack, source: StoredData, split: str, progress: Advance | None
) -> tuple[list[int], Mapping[str, str]]:
    """Return the images that are whole, and what is wrong with the others: remembered until a file changes."""
    note = cache_dir() / "checked" / f"{_state(where, source)[:32]}.json"
    try:
        good, faults = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        told = None if progress is None else lambda done, total: progress(f"checking {split} images", done, total)
        good, faults = usable(source, advance=told)
        with suppress(OSError):  # without a cache they are read each time
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps([good, faults]), encoding="utf-8")
    if not good:
        raise DataError(f"{source}: every image is damaged, the first one so: {next(iter(faults.values()))}")
    return good, faults


def _state(where: Path | Pack, source: StoredData) -> str:
    """Hash what is read and when it was written: a content hash is a prepared file's own word, or of a sample."""
    written = where.stat().st_mtime_ns if isinstance(where, Path) else source.written
    return hashlib.sha256(json.dumps([source.content_hash, written, source.fields]).encode()).hexdigest()


def _set_aside(splits: dict[str, StoredData], fraction: float) -> None:
    """Split val off train, the same images for every seed."""
    if "val" in splits:
        raise ConfigError(f"The data has a val split of {len(splits['val'])} images: leave scenario.val_fraction at 0.")
    train = splits["train"]
    count = round(fraction * len(train))
    if not 0 < count < len(train):
        raise ConfigError(
            f"scenario.val_fraction={fraction} of {len(train)} training images leaves no val or no train."
        )
    order = permutation(len(train), "val")
    splits["val"], splits["train"] = Subset(train, sorted(order[:count])), Subset(train, sorted(order[count:]))


def _canvas(source: StoredData, image_size: Sequence[int]) -> tuple[int, int]:
    height, width = (int(side) for side in image_size)
    if height < source.image_size[0] or width < source.image_size[1]:
        raise ConfigError(
            f"Expected scenario.image_size of at least {list(source.image_size)}, the largest image of {source}, but "
            f"got {[height, width]}. Images are padded to it, never cut; scenario.augment.crop cuts training images."
        )
    return height, width


def _check_meaning(source: StoredData, tasks: Sequence[DenseTask]) -> None:
    """Refuse targets that are stored otherwise than their task takes them."""
    for task in tasks:
        field = source.field(task.name)
        if field.ignore != task.ignore:
            raise DataError(
                f"{source}: `{task.name}` is stored with {field.ignore} for no label, but its task takes "
                f"{task.ignore:g}: unlabelled pixels would be learnt. Give the task and the data one ignored value."
            )
        if field.classes and len(field.classes) != task.channels:
            raise DataError(
                f"{source}: `{task.name}` has {len(field.classes)} classes, but its task {task.channels}. "
                "Check that it is the data meant."
            )


def label_notes(source: StoredData, tasks: Sequence[str]) -> dict[str, str]:
    """Say of each task whose labels are no measurements what they are."""
    derived = source.attrs.get("derived", {})
    notes = {name: f"labels derived by medusa_cl: {derived[name]}" for name in tasks if name in derived}
    distilled = (name for name in source.attrs.get("distilled", ()) if name in tasks)
    return notes | {name: "labels distilled: agreement with a network's answers" for name in distilled}


def _about(
    where: Path | Pack, splits: Mapping[str, StoredData], notes: Mapping[str, str], protocol: Mapping[str, int]
) -> str:
    """Say in one line what was found."""
    train = splits["train"]
    what = (
        f"prepared file {where} ({train.attrs.get('source', 'own')})"
        if isinstance(where, Path)
        else (f"{where.name} at {where.root}")
    )
    counts = ", ".join(f"{len(data)}{_of(len(data), protocol.get(split))} {split}" for split, data in splits.items())
    frame = train.attrs.get("source_frame")
    targets = [f"normals (stored as {frame})" if task == "normals" and frame else task for task in train.fields]
    marked = "; ".join(f"{task}: {note}" for task, note in notes.items())
    size = "x".join(map(str, train.image_size))
    return f"{what}: {counts} images of {size}; {', '.join(targets)}" + (f"; {marked}" if marked else "")


def _of(count: int, expected: int | None) -> str:
    return "" if expected in (None, count) else f" of {expected}"


SCENARIO_OF = {
    "rooms": "rooms_incremental",
    "nyud": "nyud_incremental",
    "pascal": "pascal_incremental",
    "folder": "folder_incremental",
}


def open_data(path: Path, family: str, normals_frame: str = "auto") -> Path | Pack:
    """Return the reader of a pack, or the path of a prepared file, after a look at whether it is of the family meant.

    Raises:
        DataError: It is other data.
    """
    prepared = path.suffix in HDF5
    source = str(attrs_of(path).get("source", "")) if prepared else _sniffed(path)
    refuse_other(path, source, family)
    return path if prepared else open_pack(path, source, normals_frame)


def refuse_other(path: Path, source: str, family: str) -> None:
    """Refuse data of another family, and name its scenario.

    Args:
        path: Where the data is.
        source: Its format.
        family: One of `SCENARIO_OF`.

    Raises:
        DataError: It is other data.
    """
    theirs = source.replace("/", "_").split("_")[0]  # nyud/survey and nyud_mt are both nyud
    if theirs in SCENARIO_OF and theirs != family:
        raise DataError(f"{path} holds {source} data: use scenario={SCENARIO_OF[theirs]} for it.")


def _sniffed(path: Path) -> str:
    try:
        return sniff(path)
    except DataError as error:
        prepared = sorted(str(file) for suffix in HDF5 for file in path.glob(f"*{suffix}"))
        advice = f" For a prepared file, name the file: scenario.root={prepared[0]}." if prepared else ""
        raise type(error)(f"{error}{advice}") from error
