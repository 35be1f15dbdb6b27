"""Make one HDF5 file of other people's data: `python -m medusa_cl.prepare path=... out=FILE.h5`.

Training reads either; the same samples come out of both, to the bit. The file is read faster, can be verified, and
holds normals in our camera frame.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medusa_cl import shell
from medusa_cl.errors import ConfigError, DataError, unknown

if TYPE_CHECKING:
    from medusa_cl.data.hdf5 import Array, HDF5Data, HDF5Writer
    from medusa_cl.data.pack import Pack
    from medusa_cl.data.split import StoredData

CHUNK = 8


def _targets(text: str) -> tuple[str, ...]:
    return () if text == "[]" else shell.names(text)


FORMATS = "auto, nyud_mat, nyud_mt, pascal_mt or folder"
USAGE = shell.Usage(
    "prepare",
    "Make one verified HDF5 file of a dataset as you have it: read faster, and the same samples, to the bit. "
    "A second call goes on where the first one stopped.",
    {
        "path": shell.Option("PATH", "the data as you have it: its folder, or a raw .mat file; not with --check", None),
        "out": shell.Option("FILE.h5", "the file to make, or to verify"),
        "source": shell.Option("FORMAT", f"what the data is: {FORMATS}; by default auto", "auto"),
        "derive": shell.Option("[NAMES]", "further targets to make and keep: curvature, keypoints2d", (), _targets),
        "normals_frame": shell.Option(
            "AXES", "axes of stored normals: rdf is right, down, forward; by default auto, which finds out", "auto"
        ),
        "on_bad_sample": shell.Option(
            "stop|skip", "stop at a damaged image (default), or skip it and go on", "stop", shell.one_of("stop", "skip")
        ),
        "workers": shell.Option("N", "processes; by default as many as there are processors", None, shell.count),
    },
    (
        "path=data/NYUD_MT out=data/NYUD_MT.h5",
        "path=nyu_depth_v2_labeled.mat out=data/nyud.h5   # the raw labelled .mat",
        "path=my_images out=my_images.h5 derive=[curvature] on_bad_sample=skip",
        "out=data/NYUD_MT.h5 --check                      # only verify a file",
    ),
    {"--check": "only verify the file out=: every byte, and what its values are"},
)

Advance = Callable[[int, int], None]


@dataclass
class Found:
    """What verifying a field found: its values' range and the share of labelled pixels."""

    low: float = math.inf
    high: float = -math.inf
    labelled: float = 0.0
    images: int = 0


@dataclass
class Prepared:
    """A finished file.

    Attributes:
        found: For each group and target the range of its labelled values.
        left_out: What is wrong with the images that are not in it, by name.
    """

    found: dict[str, dict[str, Found]]
    left_out: dict[str, str]


@dataclass
class Rows:
    """Some images as our format stores them, and what is wrong with those left out."""

    arrays: dict[str, Array]
    present: dict[str, list[bool]]
    extents: Array
    ids: list[str]
    faults: dict[str, str]


def prepare(
    path: str | Path,
    out: str | Path,
    source: str = "auto",
    *,
    derive: Sequence[str] = (),
    normals_frame: str = "auto",
    on_bad_sample: str = "stop",
    workers: int | None = None,
    progress: Advance | None = None,
    check: Advance | None = None,
) -> Prepared:
    """Make a file of a pack, or go on making it; what stands there in the end has been verified.

    Args:
        path: The pack.
        out: The file. Until it is whole and verified it is called `out`.part.
        source: The pack's format, one of `data.sources.SOURCES`, or auto.
        derive: Targets of `data.derived.DERIVATIONS` to make and keep.
        normals_frame: The axes of stored normals as in `frames.Frame`, or auto.
        on_bad_sample: "stop" at a damaged image, or "skip" it.
        workers: Processes; None = the processors this process may use, 1 = none besides this one.
        progress: Called with (images done, images in all).
        check: The same, of what has been verified.

    Returns:
        What is in it, and what is wrong with the images left out.

    Raises:
        ConfigError: An option has no such value.
        MissingDataError: There is no such data.
        DataError: It is damaged, `out` holds something else, or cannot be written.
    """
    from filelock import FileLock

    from medusa_cl.data.sources import open_pack

    if on_bad_sample not in ("stop", "skip"):
        raise ConfigError(unknown("on_bad_sample", on_bad_sample, ("stop", "skip")))
    target = Path(out)
    if target.suffix not in (".h5", ".hdf5"):
        raise ConfigError(f"Expected out=FILE.h5, but got out={out}.")
    pack = open_pack(path, source, normals_frame)
    splits = _splits(pack, derive)
    part, lock = Path(f"{target}.part"), Path(f"{target}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            try:
                if target.exists():
                    _refuse_other(target, splits)
                    return Prepared(verify(target, check), {})
                faults = _write(part, splits, on_bad_sample, workers, progress)
                found = verify(part, check)
                os.replace(part, target)
                _left_out(part).unlink(missing_ok=True)
            finally:
                with suppress(OSError):  # not every system lets go of a file that is open
                    lock.unlink()
    except OSError as error:
        raise DataError(_cannot_write(target, error)) from error
    return Prepared(found, faults)


def _cannot_write(target: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"The disk is full: {target}.part holds what was done. Free some space and run the same command again."
    return f"Cannot write {target}: {error}. Choose another out=FILE.h5, in a folder that can be written."


def _splits(pack: Pack, derive: Sequence[str]) -> dict[str, StoredData]:
    from medusa_cl.data.derived import Derived
    from medusa_cl.data.pack import PackData

    whole: dict[str, StoredData] = {split: PackData(pack, split) for split in pack.splits}
    return {split: Derived(data, derive) for split, data in whole.items()} if derive else whole


def _about(splits: dict[str, StoredData]) -> dict[str, Any]:
    """The facts of the file, with a hash of all that it is made of: a changed pack is not mixed into what is there."""
    states = {split: [data.content_hash, data.written, data.fields] for split, data in splits.items()}
    state = hashlib.sha256(json.dumps(states, sort_keys=True).encode()).hexdigest()
    return next(iter(splits.values())).attrs | {"made_of": state}


def _refuse_other(path: Path, splits: dict[str, StoredData]) -> None:
    """A finished file must be of this pack as it is now, and have all that is asked for."""
    from medusa_cl.data.hdf5 import attrs_of

    if attrs_of(path) != json.loads(json.dumps(_about(splits))):
        raise DataError(
            f"{path} is there already and holds other data, or the files it was made of have changed since. "
            "Choose another out=FILE.h5, or delete it to make it anew."
        )


def _write(
    part: Path, splits: dict[str, StoredData], on_bad_sample: str, workers: int | None, progress: Advance | None
) -> dict[str, str]:
    from medusa_cl.data.hdf5 import HDF5Writer
    from medusa_cl.data.parallel import in_order

    about = _about(splits)
    described = {name: source.field(name) for source in splits.values() for name in source.fields}
    jobs: list[tuple[str, int, int]] = []
    faults = _taken_up(part, about)
    with HDF5Writer(part, about, fields=described) as writer:
        for split, source in splits.items():
            jobs += [
                (split, i, min(i + CHUNK, len(source))) for i in range(_done(writer, split, source), len(source), CHUNK)
            ]
        total = sum(len(source) for source in splits.values())
        done = total - sum(stop - start for _, start, stop in jobs)
        work = functools.partial(_work, on_bad_sample=on_bad_sample)
        read = in_order(jobs, work, workers, _start, (splits,))
        for (split, start, stop), rows in zip(jobs, read, strict=True):
            if rows.faults:
                faults |= rows.faults
                _left_out(part).write_text(json.dumps(faults), encoding="utf-8")
            if rows.ids:
                writer.append(split, rows.arrays, present=rows.present, extents=rows.extents, ids=rows.ids)
            done += stop - start
            if progress is not None:
                progress(done, total)
    return faults


def _left_out(part: Path) -> Path:
    """Where an unfinished file's faults are kept."""
    return part.with_name(part.name + ".left_out.json")


def _taken_up(part: Path, about: dict[str, Any]) -> dict[str, str]:
    """Look whether what an earlier call left can be gone on from, and return the images it left out."""
    from medusa_cl.data.hdf5 import HDF5Data, attrs_of, groups

    if not part.exists():
        _left_out(part).unlink(missing_ok=True)
        return {}
    try:
        if attrs_of(part) != json.loads(json.dumps(about)):
            raise DataError("it was begun of other data, or of files that have changed since")
        for group, count in groups(part).items():
            if count:
                HDF5Data(part, group, memory_limit=0).verify()
        faults: dict[str, str] = json.loads(_left_out(part).read_text()) if _left_out(part).exists() else {}
    except (DataError, OSError, RuntimeError, KeyError, ValueError) as error:
        warnings.warn(f"{part} is not gone on from, but begun anew: {error}", stacklevel=4)
        part.unlink()
        _left_out(part).unlink(missing_ok=True)
        return {}
    return faults


def _done(writer: HDF5Writer, split: str, source: StoredData) -> int:
    """How many images of the split an earlier call went through: up to the last one that it wrote."""
    last = writer.last_id(split)
    if last is None:
        return 0
    assert source.ids is not None
    return source.ids.index(last) + 1


_SPLITS: dict[str, StoredData] = {}
"""What a worker process reads from."""


def _start(splits: dict[str, StoredData]) -> None:
    _SPLITS.update(splits)


def _work(job: tuple[str, int, int], on_bad_sample: str) -> Rows:
    """The function that worker processes run."""
    split, start, stop = job
    return read_rows(_SPLITS[split], range(start, stop), on_bad_sample)


def read_rows(source: StoredData, indices: Sequence[int], on_bad_sample: str = "stop") -> Rows:
    """Read images as our format stores them, padded to the size of the largest.

    Raises:
        DataError: An image is damaged, and on_bad_sample is "stop".
    """
    import numpy as np

    assert source.ids is not None
    read: list[dict[str, Array | None]] = []
    ids, faults = [], {}
    for index in indices:
        try:
            read.append({name: source.stored(index, name) for name in ("image", *source.fields)})
            ids.append(source.ids[index])
        except DataError as error:
            if on_bad_sample == "stop":
                raise
            faults[source.ids[index]] = str(error)
    extents = np.array([image.shape[:2] for one in read if (image := one["image"]) is not None]).reshape(-1, 2)
    arrays = {name: np.stack([_padded(source, name, one[name]) for one in read]) for name in read[0]} if read else {}
    present = {name: [one[name] is not None for one in read] for name in arrays if name != "image"}
    return Rows(arrays, present, extents, ids, faults)


def _padded(source: StoredData, name: str, stored: Array | None) -> Array:
    import numpy as np

    field = source.field(name)
    whole = np.full((*source.image_size, *field.channels), field.ignore or 0, field.dtype)
    if stored is not None:
        whole[: stored.shape[0], : stored.shape[1]] = stored
    return whole


def verify(path: Path, progress: Advance | None = None) -> dict[str, dict[str, Found]]:
    """Read all of a file and compare it with its digests; look at what its values are.

    Returns:
        For each group and target the range of its labelled values.

    Raises:
        MissingDataError: There is no such file.
        DataError: A byte has changed, a class id is out of range, or a target has no label in a whole group.
    """
    from medusa_cl.data.hdf5 import HDF5Data, groups
    from medusa_cl.data.pack import require_labels

    found: dict[str, dict[str, Found]] = {}
    sizes = groups(path)
    if not sizes:
        raise DataError(f"{path} holds no images. Delete it and make it again.")
    total, done = sum(sizes.values()), 0
    for group in sizes:
        data = HDF5Data(path, group, memory_limit=0)
        require_labels(data, data.fields)
        found[group] = {}
        for index in range(len(data)):
            data.check(index)
            for name in data.fields:
                _look(data, index, name, found[group])
            done += 1
            if progress is not None:
                progress(done, total)
    return found


def _look(data: HDF5Data, index: int, name: str, found: dict[str, Found]) -> None:
    from medusa_cl.data.hdf5 import decode

    stored = data.stored(index, name)
    if stored is None:
        return
    field = data.field(name)
    there = field.labelled(stored)
    if not there.any():
        found.setdefault(name, Found()).images += 1
        return
    smallest, largest = field.range if field.kind != "vector" else (-127, 127)
    largest = min(largest, len(field.classes) - 1) if field.classes else largest
    inside = stored[there]
    if inside.min() < smallest or inside.max() > largest:
        raise DataError(
            f"{data.path}: `{name}` of image {index} of group {data.group} holds {inside.min()}..{inside.max()}, "
            f"but only {smallest}..{largest} has a meaning. Make the file again."
        )
    values = decode(field, stored)[there]
    one = found.setdefault(name, Found())
    one.low, one.high = min(one.low, float(values.min())), max(one.high, float(values.max()))
    one.labelled += (float(there.mean()) - one.labelled) / (one.images + 1)
    one.images += 1


def main(arguments: Sequence[str]) -> None:
    """Run the verb.

    Raises:
        MedusaError: Whatever is wrong with the options or the data.
    """
    if not arguments or shell.asks_for_help(arguments):
        print(USAGE.help())
        return
    options = USAGE.parse(arguments)
    out = Path(options.pop("out"))
    from medusa_cl.tracking.console import bars

    if options.pop("check"):
        with bars() as bar:
            found = verify(out, functools.partial(bar, "verifying"))
        _report(out, found)
    elif options["path"] is None:
        raise ConfigError(f"Expected path=PATH: {USAGE.options['path'].about}; or --check, to verify {out}.")
    else:
        _prepare(out, options)


def _prepare(out: Path, options: dict[str, Any]) -> None:
    from medusa_cl.tracking.console import bars

    with bars() as bar:
        told: dict[str, Any] = {
            "progress": functools.partial(bar, "images"),
            "check": functools.partial(bar, "verifying"),
        }
        made = prepare(options.pop("path"), out, **options, **told)
    for image, fault in made.left_out.items():
        print(f"left out {image}: {fault}")
    if made.left_out:
        print(f"{len(made.left_out)} images were left out.")
    _report(out, made.found)


def _report(out: Path, found: dict[str, dict[str, Found]]) -> None:
    from medusa_cl.data.hdf5 import HDF5Data

    for group, fields in found.items():
        data = HDF5Data(out, group)
        print(
            f"{out}: {group}, {len(data)} images of {'x'.join(map(str, data.image_size))}, sha256 {data.content_hash}"
        )
        for name, one in fields.items():
            field = data.field(name)
            derived = data.attrs.get("derived", {}).get(name)
            note = f"  derived by medusa_cl: {derived}" if derived else ""
            print(
                f"  {name:<12} {one.low:g} .. {one.high:g} {field.unit}  {100 * one.labelled:.1f} % labelled, "
                f"{one.images} images{note}"
            )


if __name__ == "__main__":
    shell.end(main, stopped="stopped: the same command goes on from here")
