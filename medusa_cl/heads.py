"""Heads as files: list, add, remove, merge and pack them (`python -m medusa_cl.heads list run=...`)."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medusa_cl import shell, trained
from medusa_cl.deploy.packs import (
    BACKBONE,
    CONTENT,
    HEAD,
    fetch,
    is_address,
    load_backbone,
    new_folder,
    origin_of,
    origins,
    pack,
    read,
    refuse_existing,
    with_heads,
)
from medusa_cl.errors import ConfigError, TaskError, WeightsError, printable, unknown
from medusa_cl.shell import Option, Usage
from medusa_cl.trained import Trained

if TYPE_CHECKING:
    from medusa_cl.models.multitask import HeadFile, MultiTaskModel
    from medusa_cl.tasks import DenseTask

__all__ = ["add", "fetch", "listed", "merge", "pack", "remove", "save"]
Own = Mapping[str, "DenseTask"] | None
Reached = tuple[float | None, float | None, str | None, str | None]
HEADS = "heads"
PATIENCE = 30.0
"""Seconds to wait for another process that changes the same model."""
_log = logging.getLogger(__name__)


# ---------------------------------------------------------------- list


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known of a head.

    Attributes:
        task: The task's name.
        kind: Its kind, as `DenseTask.kind`.
        head: The class of its head; of a coupled model, that of the decoder that all tasks share.
        metric: The primary metric's name.
        unit: Its unit.
        learnt: Its test value just after the task was learnt; None where no summary says it.
        now: Its test value at the end of the run.
        parameters: Numbers learnt; None for a coupled decoder.
        size: Bytes of its weights.
        data: What it was learnt on.
        backbone: The name of the backbone that it fits.
        backbone_hash: `Backbone.weights_hash` of that.
        format: Of the file that it is in.
        place: That file, or the directory of the model.
        licence: Of the pack that it came from; None for heads that came from none.
    """

    task: str
    kind: str
    head: str
    metric: str
    unit: str
    learnt: float | None
    now: float | None
    parameters: int | None
    size: int
    data: str | None
    backbone: str
    backbone_hash: str
    format: str
    place: str
    licence: str | None = None


def listed(runs: Sequence[str | Path] = (), heads: Sequence[str | Path] = ()) -> list[Row]:
    """Say what heads there are, without making any: tasks and heads of one's own are listed too.

    Args:
        runs: Runs and models.
        heads: Files of heads, and packs by their folder or address.

    Raises:
        ConfigError: There is no such model.
        WeightsError: A file is missing or damaged.
        DataError: A summary is damaged, or a pack cannot be fetched.
    """
    rows = [row for run in runs for row in _of_model(trained.find(str(run)))]
    return rows + [_of_file(str(place)) for place in heads]


def _of_model(found: Trained) -> list[Row]:
    from medusa_cl.checkpoint import read_model, read_origins
    from medusa_cl.models.backbone import hash_of_weights

    description, state = read_model(found.model)
    name, net = description["backbone"], "backbone.net."
    digest = hash_of_weights(name, {k.removeprefix(net): v for k, v in state.items() if k.startswith(net)})
    common = (name, digest, description["format"], str(found.model))
    decoder = description.get("decoder")
    summary, came = found.summary(), read_origins(found.model)
    rows = []
    for task, entry in description["heads"].items():
        weights, origin = _weights(state, None if decoder else task), came.get(task)
        reached = _reached(summary, task) if origin is None else _came(origin)
        rows.append(_row(entry["task"], decoder or entry, weights, reached, common))
    return rows


def _weights(state: Mapping[str, Any], task: str | None) -> tuple[int | None, int]:
    """Return how many numbers a head, or the decoder for None, has learnt and the bytes that it takes."""
    from medusa_cl.models.multitask import count_learnt

    own = {k: v for k, v in state.items() if k.startswith(f"heads.{task or 'decoder'}.")}
    return None if task is None else count_learnt(own), sum(value.nbytes for value in own.values())


def _reached(summary: Mapping[str, Any] | None, task: str) -> Reached:
    if summary is None:
        return None, None, None, None
    values = [value for value in summary["matrix"]["values"].get(task, ()) if value is not None]
    return (values[0], values[-1], summary["scenario"], None) if values else (None, None, summary["scenario"], None)


def _came(origin: Mapping[str, Any]) -> Reached:
    metrics, learnt = origin.get("metrics") or {}, origin.get("learnt") or {}
    values = (metrics.get(key) for key in ("just_learnt", "value"))
    first, last = (float(value) if isinstance(value, int | float) else None for value in values)
    return first, last, learnt.get("scenario"), origin.get("licence")


def _row(
    task: Mapping[str, Any],
    head: Mapping[str, Any],
    weights: tuple[int | None, int],
    reached: Reached,
    where: tuple[str, str, str, str],
) -> Row:
    what = (task["name"], task["kind"], head["class"], task["primary"], task["unit"])
    return Row(*what, *reached[:2], *weights, reached[2], *where, reached[3])


def _of_file(place: str) -> Row:
    file, folder = _head_at(place)
    reached = _came(_origin(file, folder))
    weights = (file.parameters, file.path.stat().st_size)
    where = (file.backbone, file.backbone_hash, file.format, place)
    return _row(file.task, file.head, weights, reached, where)


def _origin(file: HeadFile, folder: Path | None) -> Mapping[str, Any]:
    """Return what is known of a head: from its pack, or from the model or run in whose folder it lies."""
    if folder is not None:
        return origin_of(read(folder).content)
    home = _home(file.path)
    return {} if home is None else origins(home, [str(file.task["name"])]).get(str(file.task["name"]), {})


def _home(path: Path) -> Trained | None:
    if path.resolve().parent.name != HEADS:
        return None
    try:
        return trained.find(str(path.resolve().parent.parent))
    except ConfigError:  # a folder of that name, and no model
        return None


def _head_at(place: str, *, backbone: bool = False, refresh: bool = False) -> tuple[HeadFile, Path | None]:
    """Return a head, and the folder of the pack that it is in, if it is in one."""
    from medusa_cl.models.multitask import describe_head

    path = Path(place)
    if not is_address(place) and not place.startswith("file://") and path.name != CONTENT:
        if path.is_file():
            return describe_head(path), None
        if not (path / CONTENT).is_file():
            raise ConfigError(
                f"Expected head= the file of a head (RUN/heads/TASK.safetensors), or a pack's folder or address, but "
                f"got {place}." + (" To take all heads of a run, use heads merge." if path.is_dir() else "")
            )
    folder = fetch(place, backbone=backbone, refresh=refresh)
    return describe_head(folder / HEAD), folder


# ---------------------------------------------------------------- add, remove, merge


def add(
    heads: Sequence[str | Path],
    run: str | Path | None = None,
    names: Sequence[str] = (),
    *,
    tasks: Own = None,
    refresh: bool = False,
) -> MultiTaskModel:
    """Return a model with more heads; each answers to the bit as in the model that it is from.

    Args:
        heads: Files of heads, and packs by their folder or address.
        run: The model to add them to; None to begin with the backbone that the first of them, a pack, brings along.
        names: Other names for their tasks, one for each head.
        tasks: Tasks by the name that a file has for them, where they are not built-in ones.
        refresh: Ask servers for packs anew.

    Raises:
        ConfigError: There is no such model or file, or there are not as many names as heads.
        TaskError: A task is there already, is unknown, or the model has a decoder instead of heads.
        WeightsError: A file is missing or damaged, or fits another backbone.
        DataError: A pack cannot be fetched.
    """
    if names and len(names) != len(heads):
        raise ConfigError(f"Expected as= as many names as head= has heads, {len(heads)}, but got {len(names)}.")
    model = None if run is None else with_heads(str(run), tasks)
    for place, name in itertools.zip_longest(map(str, heads), names):
        file, folder = _head_at(place, backbone=model is None, refresh=refresh)
        model = _begin(file, folder, place) if model is None else model
        _add_one(model, file, place, name, tasks, folder)
    if model is None:
        raise ConfigError("Expected head= at least one head.")
    return model.eval()


def _begin(file: HeadFile, folder: Path | None, place: str) -> MultiTaskModel:
    """Make a model without heads of a pack's backbone."""
    import functools

    from medusa_cl.models import heads as known
    from medusa_cl.models.multitask import MultiTaskModel

    if folder is None:
        raise ConfigError(
            f"Expected run= a model to add {place} to: a file of a head has no backbone. A pack made with "
            "backbone=true needs no run=."
        )
    if file.head["class"] not in known.BUILT_IN:
        raise ConfigError(unknown("kind of head", file.head["class"], known.BUILT_IN))
    factory = functools.partial(known.BUILT_IN[file.head["class"]], **file.head["config"])
    return MultiTaskModel(load_backbone(read(folder)), factory, file.precision or "32")


def _add_one(
    model: MultiTaskModel, file: HeadFile, place: str, name: str | None, tasks: Own, folder: Path | None
) -> None:
    described = str(file.task["name"])
    final = name or described
    if final in model.tasks:
        raise TaskError(
            f'The model has a task "{final}" already, so that of {place} needs another name: as={final}_2, or take the '
            f"old one out first (python -m medusa_cl.heads remove ... tasks=[{final}])."
        )
    if file.precision not in (None, model.precision):
        _log.warning(
            "%s answered in precision %s where it was learnt, but this model computes in %s: its answers differ in "
            "their last digits.", place, file.precision, model.precision,
        )  # fmt: skip
    _settle_size(model, _size(file, folder), place)
    try:
        model.origins[model.load_head(file.path, _task(file, tasks, name)).name] = _origin(file, folder)
    except TaskError as error:
        error.add_note(f"In Python: medusa_cl.heads.add([...], tasks={{{described!r}: task}}).")
        raise
    except WeightsError as error:
        if folder is not None and read(folder).has(BACKBONE):
            error.add_note(f"The pack has its backbone: leave run= out to make a model of that ({place}).")
        raise


def _size(file: HeadFile, folder: Path | None) -> tuple[int, int] | None:
    """Return H, W of the images that a head was learnt on, as far as the file or what lies around it says."""
    from medusa_cl.deploy.predictor import training_size
    from medusa_cl.models.multitask import sides

    if file.image_size is not None:
        return file.image_size
    if folder is None:
        home = _home(file.path)
        return None if home is None else training_size(home)
    try:
        return sides((read(folder).content["learnt"] or {}).get("image_size"))
    except ValueError as error:
        raise WeightsError(f"The pack in {folder} is damaged: image_size {error}.") from error


def _settle_size(model: MultiTaskModel, size: tuple[int, int] | None, place: str) -> None:
    """Give a model the size of images that a head was learnt on, unless it has one; say where they differ."""
    model.image_size = model.image_size or size
    if size not in (None, model.image_size):
        _log.warning(
            "%s was learnt on images of %s, but this model on %s, which predict and export go by: give size= there.",
            place, *("x".join(map(str, one or ())) for one in (size, model.image_size)),
        )  # fmt: skip


def _task(file: HeadFile, tasks: Own, name: str | None) -> DenseTask | None:
    from medusa_cl.tasks import from_description

    task = (tasks or {}).get(str(file.task["name"]))
    if name is None:
        return task
    return dataclasses.replace(task or from_description(file.task), name=name)


def remove(run: str | Path, names: Sequence[str], *, tasks: Own = None) -> MultiTaskModel:
    """Return a model without some of its heads.

    Args:
        run: The model.
        names: The tasks to leave out.
        tasks: Tasks by name, where they are not built-in ones.

    Raises:
        ConfigError: There is no such model, or nothing would be left of it.
        TaskError: It has no such task, or a decoder instead of heads.
    """
    model = with_heads(str(run), tasks)
    wanted = trained.chosen(list(model.tasks), names)
    if len(wanted) == len(model.tasks):
        raise ConfigError(f"Nothing would be left of {run} without {', '.join(wanted)}: keep one task at least.")
    for name in wanted:
        model.remove_head(name)
    return model


def merge(runs: Sequence[str | Path], *, tasks: Own = None) -> MultiTaskModel:
    """Return a model with all heads of several that have the same backbone.

    Tasks come in the order of the models, and in each in its own. Heads that are the same in several, such as those of
    the base tasks, are taken once.

    Args:
        runs: The models, two at least.
        tasks: Tasks by name, where they are not built-in ones.

    Raises:
        ConfigError: There is no such model, or there are fewer than two.
        TaskError: Two have different heads by the same name, or one has a decoder instead of heads.
        WeightsError: They have different backbones.
    """
    if len(runs) < 2:
        raise ConfigError(f"Expected runs= at least two runs or models, but got {len(runs)}.")
    first, *others = [str(run) for run in runs]
    model = with_heads(first, tasks)
    origins = dict.fromkeys(model.tasks, first)
    for run in others:
        other = with_heads(run, tasks)
        _refuse_other_backbone(model, other, first, run)
        _warn_of_precision(model, other, first, run)
        _settle_size(model, other.image_size, run)
        for name in other.tasks:
            if name in model.tasks:
                _refuse_different(model, other, name, origins[name], run)
            else:
                _take(model, other, name)
                origins[name] = run
    return model


def _refuse_other_backbone(model: MultiTaskModel, other: MultiTaskModel, first: str, run: str) -> None:
    one, two = ((m.backbone.name, m.backbone.weights_hash()) for m in (model, other))
    if one != two:
        raise WeightsError(
            f"{first} has backbone {one[0]} with weights {one[1][:12]}, but {run} has {two[0]} with weights "
            f"{two[1][:12]}: heads fit the backbone that they were learnt on alone. Merge runs that go on from one "
            "base (base=RUN) with a frozen backbone."
        )


def _warn_of_precision(model: MultiTaskModel, other: MultiTaskModel, first: str, run: str) -> None:
    if model.precision != other.precision:
        _log.warning(
            "%s computes in precision %s, and so will the merged model: the answers of %s, in %s, change in their last "
            "digits.", first, model.precision, run, other.precision,
        )  # fmt: skip


def _take(model: MultiTaskModel, other: MultiTaskModel, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.safetensors"
        other.save_head(name, path)
        model.load_head(path, other.tasks[name])
    if name in other.origins:
        model.origins[name] = other.origins[name]


def _refuse_different(model: MultiTaskModel, other: MultiTaskModel, name: str, one: str, two: str) -> None:
    if (difference := _difference(model, other, name)) is None:
        return
    found = trained.find(two)
    file = (found.run or found.model) / HEADS / f"{name}.safetensors"
    raise TaskError(
        f'"{name}" of {one} and "{name}" of {two} differ in their {difference}. Take the second out (python -m '
        f"medusa_cl.heads remove run={two} tasks=[{name}] out=DIR) and merge with DIR instead. To have both, then add "
        f"it by another name (python -m medusa_cl.heads add run=MERGED head={file} as={name}_2)."
    )


def _difference(model: MultiTaskModel, other: MultiTaskModel, name: str) -> str | None:
    import torch

    if model.tasks[name].describe() != other.tasks[name].describe():
        return "descriptions"
    kinds = [(type(m.heads[name]), getattr(m.heads[name], "config", None)) for m in (model, other)]
    states = [m.heads[name].state_dict() for m in (model, other)]
    if kinds[0] != kinds[1] or states[0].keys() != states[1].keys():
        return "kinds of heads"
    same = all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    return None if same else "weights"


# ---------------------------------------------------------------- writing models


def save(model: MultiTaskModel, out: str | Path) -> Path:
    """Write a model as a directory that predict, export and heads take as run=, with each head in a file of its own.

    Args:
        model: The model; a coupled one has no heads.
        out: The directory to make.

    Raises:
        ConfigError: There is something by that name.
        TaskError: The model has a decoder instead of heads.
    """
    from medusa_cl.checkpoint import save_model

    with new_folder(out) as folder:
        save_model(model, folder)
        _write_heads(model, folder)
    return Path(out)


def _write_heads(model: MultiTaskModel, folder: Path) -> None:
    for name in model.tasks:
        model.save_head(name, folder / HEADS / f"{name}.safetensors")


def _put(model: MultiTaskModel, run: str, out: str | None) -> Path:
    """Write a model where it is to be: a new directory, or that of the model it was made of."""
    if out is not None:
        return save(model, out)
    folder = trained.find(run).model
    _replace(model, folder)
    return folder


@contextmanager
def _changing(run: str | None, out: str | None) -> Iterator[None]:
    """Refuse what could not be written, then keep other processes off a model that is changed in place."""
    if out is not None:
        refuse_existing(out)
    elif run is None:
        raise ConfigError("Expected out=DIR: without run= there is no model to change in place.")
    _refuse_run(run, out)
    if out is not None or run is None:
        yield
        return
    from medusa_cl.rundir import locked

    folder = trained.find(run).model
    refusal = f"{folder} is being changed by another process. Run it again when that is done."
    lock = locked(folder / ".lock", refusal, PATIENCE)
    try:
        yield
    finally:
        lock.release()


def _refuse_run(run: str | None, out: str | None) -> None:
    """Keep runs as they are: what their summaries say is of the model that they have."""
    place = None if run is None or out is not None else trained.find(run).model.resolve()
    if place is not None and any((folder / "overrides.yaml").is_file() for folder in (place, *place.parents)):
        raise ConfigError(
            f"{run} is a run, or of one, and is never changed: its summary says what its own model reached. Give "
            "out=DIR for the changed model; that one can be changed in place."
        )


def _replace(model: MultiTaskModel, folder: Path) -> None:
    from medusa_cl.checkpoint import save_model

    save_model(model, folder)
    _write_heads(model, folder)
    for path in (folder / HEADS).glob("*.safetensors"):
        if path.stem not in model.tasks:
            path.unlink()


# ---------------------------------------------------------------- the verbs


def _list(run: Sequence[str], head: Sequence[str], format: str) -> None:
    if not run and not head:
        raise ConfigError("Expected run= a run or a model, or head= a file, a pack's folder or its address.")
    rows = listed(run, head)
    print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) if format == "json" else _table(rows))


def _table(rows: Sequence[Row]) -> str:
    """Return a table; one for each place under its name where there are several."""
    places = list(dict.fromkeys(row.place for row in rows))
    if len(places) > 1:
        tables = {place: _table([row for row in rows if row.place == place]) for place in places}
        return "\n\n".join(f"{printable(place)}\n{table}" for place, table in tables.items())
    titles = ("task", "kind", "metric", "just learnt", "now", "parameters", "size", "learnt on", "backbone",
              "format", "licence")  # fmt: skip
    return _aligned([titles, *(tuple(map(_shown, _cells(row))) for row in rows)])


def _cells(row: Row) -> tuple[str, ...]:
    values = ("-" if value is None else f"{value:.4g} {row.unit}".rstrip() for value in (row.learnt, row.now))
    parameters = f"{row.head} shared" if row.parameters is None else f"{row.parameters:,}"
    backbone = f"{row.backbone} {row.backbone_hash[:12]}"
    size = f"{row.size / 1e6:.1f} MB"
    data, licence = str(row.data or "-"), str(row.licence or "-")
    return row.task, row.kind, row.metric, *values, parameters, size, data, backbone, row.format, licence


def _shown(text: str) -> str:
    """Return a text that a stranger may have written as a terminal can take it."""
    return printable(text.encode("utf-8", "replace").decode())


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ((cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def _add(run: str | None, head: Sequence[str], out: str | None, names: Sequence[str], refresh: bool) -> None:
    with _changing(run, out):
        _tell(_put(add(head, run, names, refresh=refresh), run or "", out))


def _remove(run: str, tasks: Sequence[str], out: str | None) -> None:
    with _changing(run, out):
        _tell(_put(remove(run, tasks), run, out))


def _merge(runs: Sequence[str], out: str) -> None:
    refuse_existing(out)
    _tell(save(merge(runs), out))


def _tell(folder: Path) -> None:
    print(_table(listed([folder])))
    print(f"The model is in {folder}: give it to predict, export and heads as run={folder}.")


def _pack(run: str, task: str, out: str, licence: str, author: str, backbone: bool, picture: bool) -> None:
    folder = pack(run, task, out, licence, author=author, backbone=backbone, picture=picture)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"The pack is in {folder} ({size / 1e6:.1f} MB). Read its README.md, then publish the folder as it is.")


_RUN = Option("RUN", "a run directory, a directory with a model, or last")
_OUT = "a new directory for the model; may be left out where run= is a model by itself, which is changed then"
_WHERE = "heads: files, and packs by their folder or address, with commas between them"
USAGES: dict[str, tuple[Callable[..., None], Usage]] = {
    "list": (
        _list,
        Usage(
            "heads list",
            "Show the heads of runs, models, files and packs.",
            {
                "run": Option("[RUN,..]", "runs and models", (), shell.names),
                "head": Option("[FILE|PACK,..]", _WHERE, (), shell.names),
                "format": Option("table|json", "how to print it", "table", shell.one_of("table", "json")),
            },
            ("run=last", "run=[runs/nyud/medusa-0,models/kitchen]", "head=runs/nyud/medusa-0/heads/normals.safetensors",
             "run=last format=json"),
        ),
    ),
    "add": (
        _add,
        Usage(
            "heads add",
            "Add heads to a model with the same backbone: they answer to the bit as where they were learnt.",
            {
                "head": Option("[FILE|PACK,..]", _WHERE, form=shell.names),
                "run": Option("RUN", f"{_RUN.about}; without it the first pack brings its backbone", None),
                "out": Option("DIR", _OUT, None),
                "as": Option("[NAME,..]", "other names for their tasks", (), shell.names),
                "refresh": Option("true|false", "ask servers for packs that are kept here", False, shell.flag),
            },
            ("run=last head=runs/nyud/medusa-1/heads/edges.safetensors out=models/kitchen",
             "run=models/kitchen head=packs/normals as=normals_2",
             "run=models/kitchen head=https://example.org/packs/normals",
             "head=packs/normals out=models/hall    # a pack made with backbone=true"),
        ),
    ),
    "remove": (
        _remove,
        Usage(
            "heads remove",
            "Take tasks out of a model; nothing else of it changes.",
            {
                "run": _RUN,
                "tasks": Option("[TASK,..]", "the tasks to take out", form=shell.names),
                "out": Option("DIR", _OUT, None),
            },
            ("run=last tasks=[edges] out=models/kitchen", "run=models/kitchen tasks=[depth,normals]",
             "run=runs/nyud/medusa-0 tasks=semseg out=models/geometry"),
        ),
    ),
    "merge": (
        _merge,
        Usage(
            "heads merge",
            "Put all heads of runs with the same backbone into one model.",
            {
                "runs": Option("[RUN,RUN,..]", "runs and models", form=shell.names),
                "out": Option("DIR", "a new directory for the model"),
            },
            ("runs=[runs/nyud/normals-0,runs/nyud/edges-0] out=models/both",
             "runs=[last,models/kitchen] out=models/all",
             "runs=[machine_a/run,machine_b/run,machine_c/run] out=models/all"),
        ),
    ),
    "pack": (
        _pack,
        Usage(
            "heads pack",
            "Write a head as a folder to publish: weights, a sealed description and a model card.",
            {
                "run": _RUN,
                "task": Option("TASK", "whose head"),
                "out": Option("DIR", "the folder to make"),
                "licence": Option("ID", "licence of the weights, by its SPDX identifier: CC-BY-4.0, Apache-2.0, ..."),
                "author": Option("NAME", "who publishes it", ""),
                "backbone": Option("true|false", "bring the backbone too, for strangers", False, shell.flag),
                "picture": Option("true|false", "bring a picture of test images", True, shell.flag),
            },
            ("run=last task=normals out=packs/normals licence=CC-BY-4.0",
             'run=last task=normals out=packs/normals licence=Apache-2.0 author="Ada Lovelace" backbone=true',
             "run=models/kitchen task=edges out=packs/edges licence=MIT picture=false"),
        ),
    ),
}  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Run the verb.

    Raises:
        MedusaError: Whatever is wrong with the options or the files.
    """
    verb, *rest = [*arguments] or ["--help"]
    if shell.asks_for_help([verb]):
        print(_overview())
        return
    if verb not in USAGES:
        raise ConfigError(f"{unknown('verb of heads', verb, USAGES)} See python -m medusa_cl.heads --help.")
    do, usage = USAGES[verb]
    if shell.asks_for_help(rest):
        print(usage.help())
        return
    given = usage.parse(rest)
    do(**{"names" if key == "as" else key: value for key, value in given.items()})


def _overview() -> str:
    lines = ["usage: python -m medusa_cl.heads VERB [key=value ...]", ""]
    lines += [f"  {verb:<8}{usage.about}" for verb, (_, usage) in USAGES.items()]
    return "\n".join([*lines, "", "python -m medusa_cl.heads VERB --help says more."])


if __name__ == "__main__":
    shell.end(main)
