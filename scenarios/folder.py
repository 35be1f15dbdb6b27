"""Your own folder of images and targets as a stream of dense tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

from medusa_cl.data.folder import FolderPack
from medusa_cl.data.hdf5 import Field, attrs_of
from medusa_cl.data.sources import HDF5, sniff
from medusa_cl.errors import ConfigError, DataError
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.scenarios.disk import DiskOptions, disk_scenario, open_data, refuse_other
from medusa_cl.tasks import DenseTask, from_description


def folder_incremental(
    *,
    root: str | None = None,
    tasks: Mapping[str, DenseTask] | None = None,
    fields: Mapping[str, Field] | None = None,
    **options: Unpack[DiskOptions],
) -> DenseScenario:
    """A folder with `images/`, a folder of targets for each task, and `tasks.yaml` (see `data.folder`).

    By default the first task of tasks.yaml is the base, and the others make the stream in the order in which they
    stand there.

    Args:
        root: The folder, or a file prepared of it.
        tasks: Tasks made in Python, by name; they go before those of tasks.yaml.
        fields: How the targets of such tasks are stored, where they are of no built-in kind.
        options: See `DiskOptions`.

    Raises:
        ConfigError: No root is given, or tasks.yaml is wrong.
        MissingDataError: There is nothing.
        DataError: The data is damaged, or of another kind.
        TaskError: A task is unknown, named twice, or not in the data; or `base` is empty.
    """
    if root is None:
        raise ConfigError("Expected scenario.root=DIR, a folder with images/, tasks.yaml and a folder for each task.")
    path = Path(root).expanduser()
    if path.suffix in HDF5:
        where = open_data(path, "folder")
        described = attrs_of(path).get("tasks", {})
        known = {name: from_description(one) for name, one in described.items() if name not in (tasks or {})}
        known |= tasks or {}
    else:
        if tasks is None:
            _refuse_packs(path)
        where = FolderPack(path, tasks=tasks, fields=fields)
        known = where.tasks
    names = list(known)
    given: DiskOptions = {"name": "folder_incremental", **options}
    base, stream = given.get("base"), given.get("stream")
    if base is None:
        base = names[:1] if stream is None else [name for name in names if name not in stream]
    given["base"] = base
    given["stream"] = [name for name in names if name not in base] if stream is None else stream
    return disk_scenario(where, list(known.values()), **given)


def _refuse_packs(path: Path) -> None:
    """Refuse a known pack; of everything else, the reader says best what is wrong."""
    try:
        source = sniff(path)
    except DataError:
        return
    refuse_other(path, source, "folder")
