"""A folder of one's own data, read as it stands; nothing is ever written into it.

    images/                 JPEG, PNG, ... of any sizes; in sub-folders as you like
    semseg/                 one folder a task: PNG (8 or 16 bits), NPY or TIFF, under the same names as the images
    depth/
    tasks.yaml              what their numbers mean: see `folder_tasks`
    splits/train.txt        ids of images one a line; test.txt, and val.txt if you like
                            (or `splits: {test: 0.2}` in tasks.yaml)

An image's id is its path below images/ without the suffix: images/kitchen/001.jpg is kitchen/001, and its depth is
depth/kitchen/001.png. An image may lack any target. A fraction splits by a hash of the id alone, so that images which
are added later move no others. Folders whose names start with "_" or "." are left alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from medusa_cl.data.files import image_size, looking_into, read_image, reading, same_size, splits_of
from medusa_cl.data.folder_tasks import EXAMPLE, FILE, FolderTask, folder_task, number, python_task
from medusa_cl.data.hdf5 import Field
from medusa_cl.errors import ConfigError, DataError, MissingDataError, nearest, unknown

if TYPE_CHECKING:  # torch: a reader must start fast
    from medusa_cl.tasks import DenseTask

Array = NDArray[Any]

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
TARGETS = (".png", ".npy", ".tif", ".tiff")
SPLITS = ("train", "val", "test")
_LITTER = ("thumbs.db", "desktop.ini")  # what file managers leave behind, besides dot files


class FolderPack:
    """A folder of one's own data.

    Args:
        root: The folder.
        tasks: Tasks made in Python, by name; they replace those of tasks.yaml, which still says how the files of the
            same name are read (scale, offset, ignore, frame, folder).
        fields: How the values of such tasks are stored, by name; needed for kinds that are not built in.

    Attributes:
        name: What it is, for people.
        root: The folder.
        splits: Image ids of `train`, `test` and perhaps `val`.
        fields: How each target is stored in our format.
        derived: Empty: all targets are the user's own.
        attrs: Facts to be recorded; among them `tasks`, descriptions for `tasks.from_description`, of those that
            tasks.yaml makes.
        tasks: The tasks of tasks.yaml and those given, in this order; not there in a copy that was pickled.

    Raises:
        MissingDataError: There is no such folder, or it is empty.
        DataError: Something is missing in it or does not fit together; the message says what.
        ConfigError: tasks.yaml says something that it cannot.
    """

    def __init__(
        self,
        root: str | Path,
        tasks: Mapping[str, DenseTask] | None = None,
        fields: Mapping[str, Field] | None = None,
    ) -> None:
        self.name = "folder of your own data"
        with looking_into(Path(root)):
            self.root = _laid_out(Path(root))
        entries, fractions = _read_tasks(self.root / FILE, needed=not tasks)
        named = {name: python_task(task, entries.get(name), (fields or {}).get(name)) for name, task in _named(tasks)}
        self._tasks: dict[str, FolderTask] = {**entries, **named}
        made = {name: entry.task() for name, entry in entries.items() if name not in named}
        with looking_into(self.root):
            self._images = _index(self.root / "images", IMAGES)
            self._labels = {name: self._index_labels(task) for name, task in self._tasks.items()}
            self._refuse_undescribed()
            self.splits: dict[str, tuple[str, ...]] = self._split(fractions)
        self.fields: dict[str, Field] = {name: task.field for name, task in self._tasks.items()}
        self.derived: dict[str, str] = {}
        self.tasks: dict[str, DenseTask] = {name: (tasks or {}).get(name) or made[name] for name in self._tasks}
        described = {name: task.describe() | {"stored": entries[name].stored()} for name, task in made.items()}
        self.attrs: dict[str, Any] = {"source": "folder", "tasks": described, **_frames(self._tasks)}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out `tasks`: those made in Python may hold what cannot be pickled, and readers need them not."""
        return {key: value for key, value in self.__dict__.items() if key != "tasks"}

    def size(self, image: str) -> tuple[int, int]:
        """Return an image's H, W."""
        return image_size(self._file("image", image))

    def image(self, image: str) -> Array:
        """Return an image: H W 3 uint8 RGB."""
        return read_image(self._file("image", image))

    def has(self, image: str, target: str) -> bool:
        """Return whether an image has a file of a target."""
        return image in self._labels.get(target, {})

    def files(self, image: str, target: str) -> tuple[Path, ...]:
        """Return the file that a target (or "image") is read from; none where the image has no such label."""
        return (self._file(target, image),) if target == "image" or self.has(image, target) else ()

    def target(self, image: str, target: str) -> Array | None:
        """Return a target's values as `FolderTask.values` reads them; None where the image has no such label.

        Raises:
            DataError: The file is damaged, holds something else than tasks.yaml says, or is not of the image's size.
        """
        if not self.has(image, target):
            return None
        path = self._file(target, image)
        return same_size(path, self._tasks[target].values(path), self.size(image))

    def _file(self, target: str, image: str) -> Path:
        folder, index = ("images", self._images) if target == "image" else self._place(target)
        if image not in index:
            raise DataError(f"{self.root / folder} has no {image}.")
        return self.root / folder / (image + index[image])

    def _place(self, target: str) -> tuple[str, dict[str, str]]:
        return self._tasks[target].folder, self._labels[target]

    def _index_labels(self, task: FolderTask) -> dict[str, str]:
        """List a task's files, and refuse files of images that there are not."""
        folder = self.root / task.folder
        if not folder.is_dir():
            raise DataError(
                f"{folder} does not exist, but task `{task.name}` is to be read from it. Make the folder, take the "
                f"task out of {FILE}, or name another folder there (folder:)."
            )
        index = _index(folder, TARGETS)
        alone = [name + suffix for name, suffix in index.items() if name not in self._images]
        if alone:
            raise DataError(
                f"{folder} holds files that belong to no image: {_shown(alone)}. A target has its image's name: "
                "images/kitchen/001.jpg goes with kitchen/001.png. Rename or remove them."
            )
        return index

    def _refuse_undescribed(self) -> None:
        known = {"images", "splits", *(task.folder for task in self._tasks.values())}
        there = [path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(("_", "."))]
        odd = sorted(set(there) - known)
        if odd:
            _refuse_unprintable(self.root, odd[0])
            raise DataError(
                f"{self.root / odd[0]} is in no entry of {self.root / FILE}.{nearest(odd[0], known)} Describe it "
                f'there, or start its name with "_" so that it is left alone.'
            )

    def _split(self, fractions: Mapping[str, float] | None) -> dict[str, tuple[str, ...]]:
        folder = self.root / "splits"
        if fractions is not None and folder.is_dir():
            raise DataError(f"{folder} and `splits:` of {self.root / FILE} both say how images are split. Keep one.")
        if fractions is None:
            splits = _listed(folder, self._images, self.root)
        else:
            chosen = {image: _drawn(image, fractions) for image in self._images}
            parts = [split for split in SPLITS if split in ("train", *fractions)]
            splits = {part: tuple(image for image in self._images if chosen[image] == part) for part in parts}
        for split, images in splits.items():
            if not images:
                raise DataError(
                    f"{self.root / FILE}: no image of {len(self._images)} fell into {split} by its fraction. Add "
                    "images, change the fraction, or write splits/train.txt and splits/test.txt."
                )
        return splits


def _named(tasks: Mapping[str, DenseTask] | None) -> Iterator[tuple[str, DenseTask]]:
    for name, task in (tasks or {}).items():
        if task.name != name:
            raise ConfigError(f'Expected tasks by their own names, but got task "{task.name}" under "{name}".')
        yield name, task


def _laid_out(root: Path) -> Path:
    """Return the root, if there are images in it."""
    if not root.exists():
        raise MissingDataError(f"{root} does not exist. Expected a folder with images/, a folder a task and {FILE}.")
    if not root.is_dir():
        raise DataError(f"{root} is a file. Expected a folder with images/, a folder a task and {FILE}.")
    if not any(root.iterdir()):
        raise MissingDataError(f"{root} is empty. Expected images/, a folder a task and {FILE}.")
    if not (root / "images").is_dir():
        found = _shown(sorted(path.name for path in root.iterdir()))
        raise DataError(f"{root / 'images'} does not exist: {root} holds {found}. Put the pictures into images/.")
    return root


def _read_tasks(path: Path, needed: bool) -> tuple[dict[str, FolderTask], dict[str, float] | None]:
    """Return the entries of tasks.yaml and the fractions of its `splits`, None where it has none."""
    if not path.is_file() and not needed:
        return {}, None
    if not path.is_file():
        raise DataError(f"{path} does not exist. Write it; for instance:\n\n{EXAMPLE}\n")
    found = _load_yaml(path)
    fractions = _fractions(f"{path}, splits", found.pop("splits")) if "splits" in found else None
    if needed and not found:
        raise ConfigError(f"{path} describes no task. For instance:\n\n{EXAMPLE}\n")
    return {name: folder_task(name, entry, str(path)) for name, entry in found.items()}, fractions


def _load_yaml(path: Path) -> dict[Any, Any]:
    import yaml

    with reading(path, sample=False):
        text = path.read_text(encoding="utf-8-sig")
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # 2024-13-01 is no date, a ValueError
        raise ConfigError(
            f"{path} is not YAML: {' '.join(str(error).split())}. For instance:\n\n{EXAMPLE}\n"
        ) from error
    if not isinstance(found or {}, dict):
        raise ConfigError(f"{path}: expected entries by task, but got {type(found).__name__}. Like:\n\n{EXAMPLE}\n")
    return dict(found or {})


def _fractions(where: str, value: Any) -> dict[str, float]:
    """Return the fractions of `test` and perhaps `val`."""
    entry = value if isinstance(value, Mapping) else {"test": value}
    for split in entry:
        if split not in ("test", "val"):
            raise ConfigError(f"{where}: {unknown('split', str(split), ('test', 'val'))} train is what is left.")
    fractions = {split: number(where, share) for split, share in entry.items()}
    if "test" not in fractions or min(fractions.values()) <= 0 or sum(fractions.values()) >= 1:
        raise ConfigError(
            f"{where}: expected fractions that leave something to train, as {{test: 0.2}}; got {value!r}."
        )
    return fractions


def _drawn(image: str, fractions: Mapping[str, float]) -> str:
    """Return the split of an image, a function of its id alone. `test` comes first: a `val` moves no test image."""
    place = int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big") / 2**64
    for split in ("test", "val"):
        place -= fractions.get(split, 0.0)
        if place < 0:
            return split
    return "train"


def _listed(folder: Path, images: Mapping[str, str], root: Path) -> dict[str, tuple[str, ...]]:
    """Read the split files."""
    if not folder.is_dir():
        raise DataError(
            f"{root}: nothing says which images are for training and which for testing. Write `splits: {{test: 0.2}}` "
            f"into {FILE}, or splits/train.txt and splits/test.txt with one image id a line."
        )
    for split in ("train", "test"):
        if not (folder / f"{split}.txt").is_file():
            found = _shown(sorted(path.name for path in folder.iterdir())) or "nothing"
            raise DataError(f"{folder / split}.txt does not exist; {folder} holds {found}. Write one image id a line.")
    lists = {split: folder / f"{split}.txt" for split in SPLITS if (folder / f"{split}.txt").is_file()}
    splits = splits_of(lists, blanks=True)
    for split, ids in splits.items():
        _require_images(lists[split], ids, images)
    return splits


def _require_images(path: Path, ids: Sequence[str], images: Mapping[str, str]) -> None:
    """Refuse a split file that lists what is no image."""
    missing = [image for image in ids if image not in images]
    if missing:
        raise DataError(
            f"{path} lists {len(missing)} images that are not in images/: {_shown(missing)}."
            f"{nearest(missing[0], images)} An id is the path below images/ without the suffix."
        )


def _index(folder: Path, suffixes: Sequence[str]) -> dict[str, str]:
    """Return the suffix of each id below a folder, sorted by id.

    Raises:
        DataError: There is no file, one of another suffix, or two of one id.
    """
    index: dict[str, str] = {}
    for name in sorted(_files_below(folder)):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in suffixes:
            raise DataError(
                f"{folder / name}: expected {', '.join(suffixes)}, but got {suffix!r}. Convert or remove it."
            )
        if stem in index:
            raise DataError(f"{folder / (stem + index[stem])} and {suffix} are of one id, {stem}. Keep one of them.")
        index[stem] = suffix
    if not index:
        raise DataError(f"{folder} holds no file. Expected {', '.join(suffixes)}.")
    return dict(sorted(index.items()))


def _files_below(folder: Path) -> Iterator[str]:
    """Give the files below a folder as paths from it, with "/" everywhere.

    Raises:
        DataError: A link leads back to a folder that holds it, or a name is not UTF-8.
        OSError: A folder cannot be listed.
    """
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        _refuse_loops(folder, Path(place), folders)
        below = Path(place).relative_to(folder)
        for name in names:
            if not name.startswith(".") and name.lower() not in _LITTER:
                _refuse_unprintable(Path(place), name)
                yield (below / name).as_posix()


def _raise(error: OSError) -> None:
    raise error


def _refuse_loops(folder: Path, place: Path, names: Sequence[str]) -> None:
    links = [place / name for name in names if (place / name).is_symlink()]
    if not links:
        return
    way = [place.parents[i] for i in range(len(place.relative_to(folder).parts))]  # from `place` up to `folder`
    above = {place.resolve(), *(step.resolve() for step in way), *folder.resolve().parents}
    for link in links:
        if link.resolve() in above:
            raise DataError(f"{link} links to {link.resolve()}, a folder that holds it. Remove the link.")


def _refuse_unprintable(place: Path, name: str) -> None:
    try:
        str(place / name).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{str(place / name)!r}: its name is not in UTF-8. Rename it.") from error


def _frames(tasks: Mapping[str, FolderTask]) -> dict[str, Any]:
    """Return `source_frame`, where there are normals: one name, or by task where they differ."""
    frames = {name: task.frame for name, task in tasks.items() if task.field.kind == "vector"}
    if not frames:
        return {}
    return {"source_frame": frames if len(set(frames.values())) > 1 else next(iter(frames.values()))}


def _shown(names: Sequence[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
