"""A model as files, nothing pickled: `model.json` says what it is made of, `model.safetensors` holds every weight.

`model.json` holds a SHA-256 of itself and one of the weights, so that damage is found whatever it hits. Models of the
format before, which have none, are loaded with a warning. `heads.json` is there where heads came from elsewhere: it
says their licence, author, data and metrics.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medusa_cl import kept
from medusa_cl.errors import MedusaError, WeightsError, unknown
from medusa_cl.models import heads as known_heads
from medusa_cl.models.backbone import Backbone
from medusa_cl.models.coupled import DECODERS, CoupledModel, DecoderFactory
from medusa_cl.models.heads import HeadFactory
from medusa_cl.models.multitask import MultiTaskModel, sides
from medusa_cl.tasks import DenseTask, from_description

Build = Callable[[Backbone, str, Mapping[str, DenseTask]], MultiTaskModel]

FORMAT, WITHOUT_HASHES = "medusa-cl model 2", "medusa-cl model 1"
ORIGINS_FORMAT = "medusa-cl heads 1"
DESCRIPTION, WEIGHTS, ORIGINS = "model.json", "model.safetensors", "heads.json"
NEXT = "model.json.part"
"""What describes weights that are being put into their place."""
_ANOTHER = "Take another checkpoint of the run."
_log = logging.getLogger(__name__)


def save_model(model: MultiTaskModel, directory: Path | str) -> Path:
    """Write a model into a directory, in which there is a whole one at any moment if there was one before.

    The weights come into their place first; should the process be killed then, `load_model` takes the description that
    had no time to do so.

    Args:
        model: The model; its heads, or its coupled decoder, must be of the built-in kinds to be loaded without further
            ado.
        directory: Made when missing.

    Returns:
        The directory.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if _whole_next(directory) is not None:
        os.replace(directory / NEXT, directory / DESCRIPTION)
    _write_origins(model, directory)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    part = directory / f"{WEIGHTS}.part"
    save_file(state, part, metadata={"format": FORMAT})
    kept.readable(part)
    description = _sealed(describe(model) | {"weights": kept.file_hash(part)})
    (directory / NEXT).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    for path in (part, directory / NEXT, directory):
        kept.flush(path)
    for path, name in ((part, WEIGHTS), (directory / NEXT, DESCRIPTION)):
        os.replace(path, directory / name)
        kept.flush(directory)
    return directory


def _write_origins(model: MultiTaskModel, directory: Path) -> None:
    known = {name: model.origins[name] for name in model.tasks if model.origins.get(name)}
    if not known:
        (directory / ORIGINS).unlink(missing_ok=True)
        return
    with kept.whole(directory / ORIGINS) as part:
        text = json.dumps(_sealed({"format": ORIGINS_FORMAT, "heads": known}), indent=2)
        part.write_text(text + "\n", encoding="utf-8")


def read_origins(directory: Path | str) -> dict[str, dict[str, Any]]:
    """Return what is known of a model's heads that came from elsewhere, by task; empty where there are none.

    Raises:
        WeightsError: The file is damaged.
    """
    path = Path(directory) / ORIGINS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        said = {key: value for key, value in content.items() if key != "sha256"}
        if said["format"] != ORIGINS_FORMAT or content.get("sha256") != kept.digest(said):
            raise ValueError("its content is not that of its SHA-256")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{path} is damaged, or was edited: {error}. It says licence and data of heads: put it back as it was."
        ) from error
    found: dict[str, dict[str, Any]] = said["heads"]
    return found


def _sealed(description: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(description))
    return plain | {"sha256": kept.digest(plain)}


def describe(model: MultiTaskModel, without: Collection[str] = ()) -> dict[str, Any]:
    """Return what a model is made of, as plain data: `build_model` makes one like it.

    Args:
        model: The model.
        without: Tasks to leave out.
    """
    heads: dict[str, Any] = {
        name: {"task": task.describe()} for name, task in model.tasks.items() if name not in without
    }
    size = {"image_size": list(model.image_size)} if model.image_size else {}
    found = {"format": FORMAT, "backbone": model.backbone.name, "precision": model.precision, "heads": heads} | size
    if isinstance(model, CoupledModel):
        return found | {"decoder": _kind(model.heads["decoder"]) if heads else None}
    for name, entry in heads.items():
        entry |= _kind(model.heads[name])
    return found


def _kind(module: nn.Module) -> dict[str, Any]:
    return {"class": type(module).__name__, "config": getattr(module, "config", {})}


def load_model(
    directory: Path | str,
    tasks: Mapping[str, DenseTask] | None = None,
    head: HeadFactory | DecoderFactory | None = None,
) -> MultiTaskModel:
    """Read what `save_model` wrote, on the CPU, in eval mode.

        model = load_model("runs/rooms_incremental/medusa-tf_efficientnet_lite0-s0-0/model")
        model.predict(images)["depth"]  # images: B 3 H W in [0, 1]; the answer: B 1 H W, metres

    Args:
        directory: The directory.
        tasks: Tasks by name, where they are not built-in ones.
        head: What makes further heads, and those of no built-in kind; by default heads like the last one. For a
            coupled model: what makes its decoder, where that is not of a built-in kind.

    Returns:
        A `CoupledModel` where one was saved, else a `MultiTaskModel` proper.

    Raises:
        WeightsError: A file is missing or damaged (by its hash), or of another format.
        TaskError: A task is none of the built-in ones, and `tasks` lacks it.
    """
    directory = Path(directory)
    description, state = read_model(directory)
    model = build_model(description, tasks, head, directory / DESCRIPTION)
    try:
        model.load_state_dict(state)
        model.origins.update({name: said for name, said in read_origins(directory).items() if name in model.tasks})
    except RuntimeError as error:
        raise WeightsError(f"Cannot load {directory / WEIGHTS}: {error}. {_ANOTHER}") from error
    return model.eval()


def read_model(directory: Path | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `save_model` wrote without making the model: also where a task or a head is of one's own.

    Returns:
        What it is made of (see `describe`), and its state dict.

    Raises:
        WeightsError: A file is missing or damaged (by its hash), or of another format.
    """
    directory = Path(directory)
    description = _read(directory)
    try:
        return description, load_file(directory / WEIGHTS)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise WeightsError(f"Cannot load {directory / WEIGHTS}: {error}. {_ANOTHER}") from error


def build_model(
    description: Mapping[str, Any],
    tasks: Mapping[str, DenseTask] | None = None,
    head: HeadFactory | DecoderFactory | None = None,
    where: Path | str = "The description",
) -> MultiTaskModel:
    """Make a model like the one described, whatever its weights.

    Args:
        description: What `describe` returned.
        tasks: See `load_model`.
        head: See `load_model`.
        where: Where the description is from, for messages.

    Raises:
        WeightsError: The description is damaged.
        TaskError: A task is none of the built-in ones, and `tasks` lacks it.
    """
    path = Path(where)
    make = _coupled if "decoder" in description else _independent
    try:
        described = {name: entry["task"] for name, entry in description["heads"].items()}
        build = make(description, head, path)
        known = {name: (tasks or {}).get(name) or from_description(entry) for name, entry in described.items()}
        backbone, precision = Backbone.create(description["backbone"], pretrained=False), description["precision"]
        model = build(backbone, precision, known)
        model.image_size = sides(description.get("image_size"))
        return model
    except MedusaError:
        raise
    except Exception as error:  # heads of an odd configuration raise anything
        raise WeightsError(f"{path} is damaged: {error!r}. {_ANOTHER}") from error


def _read(directory: Path) -> dict[str, Any]:
    """Return the description of the weights that are there."""
    description = _read_description(directory / DESCRIPTION)
    try:
        _check_weights(directory / WEIGHTS, description)
    except WeightsError:
        if (newer := _whole_next(directory)) is None:
            raise
        return newer
    return description


def _whole_next(directory: Path) -> dict[str, Any] | None:
    """Return what describes the weights that a killed process put into their place; None where there is no such."""
    if not (directory / NEXT).is_file():
        return None
    try:
        description = _read_description(directory / NEXT)
        _check_weights(directory / WEIGHTS, description)
    except WeightsError:
        return None
    return description


def _check_weights(path: Path, description: Mapping[str, Any]) -> None:
    """Compare the weights with the hash that the description has of them."""
    if description["format"] == WITHOUT_HASHES and "weights" not in description:
        _log.warning("%s was written without hashes, by an earlier version: damage to it would not be seen.", path)
        return
    try:
        found = kept.file_hash(path)
    except OSError as error:
        raise WeightsError(f"Cannot load {path}: {error}. {_ANOTHER}") from error
    if found != description.get("weights"):
        raise WeightsError(
            f"{path} is damaged, or not the file that {DESCRIPTION} beside it describes: its SHA-256 is {found[:12]}, "
            f"but {str(description.get('weights'))[:12]} is expected. {_ANOTHER}"
        )


def _independent(description: Mapping[str, Any], head: Any, path: Path) -> Build:
    factories = {name: _head(entry, head, path) for name, entry in description["heads"].items()}
    if head is None and not factories:
        raise WeightsError(f"{path} has no heads, so nothing says what further heads are like. Pass head=.")

    def build(backbone: Backbone, precision: str, tasks: Mapping[str, DenseTask]) -> MultiTaskModel:
        model = MultiTaskModel(backbone, head or list(factories.values())[-1], precision)
        for name, task in tasks.items():
            model.add_head(task, seed=0, head=factories[name])
        return model

    return build


def _head(entry: Mapping[str, Any], head: Any, path: Path) -> Any:
    """Return what makes a head as it was: of a built-in kind, or else by what is given."""
    if head is not None and entry["class"] not in known_heads.BUILT_IN:
        return head
    return _factory(entry, known_heads.BUILT_IN, path)


def _coupled(description: Mapping[str, Any], head: Any, path: Path) -> Build:
    if head is None and description["decoder"] is None:
        raise WeightsError(f"{path} has no decoder yet, so nothing says what it is to be like. Pass head=.")
    factory = head or _factory(description["decoder"], DECODERS, path)

    def build(backbone: Backbone, precision: str, tasks: Mapping[str, DenseTask]) -> MultiTaskModel:
        model = CoupledModel(backbone, factory, precision)
        if tasks:
            model.add_heads(list(tasks.values()), seed=0)
        return model

    return build


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no JSON, or no UTF-8
        raise WeightsError(f"Expected a model ({DESCRIPTION} and {WEIGHTS}) in {path.parent}, but: {error}.") from error
    found = description.get("format") if isinstance(description, dict) else None
    if found not in (FORMAT, WITHOUT_HASHES):
        raise WeightsError(f'Expected format "{FORMAT}" in {path}, but got {found!r}. {_ANOTHER}')
    plain = {key: value for key, value in description.items() if key != "sha256"}
    expected = kept.digest(plain) if found == FORMAT else None
    if description.get("sha256") != expected:
        raise WeightsError(f"{path} is damaged, or was edited: its content is not that of its SHA-256. {_ANOTHER}")
    return description


def _factory(entry: Mapping[str, Any], built_in: Mapping[str, Callable[..., nn.Module]], path: Path) -> Any:
    if entry["class"] not in built_in:
        raise WeightsError(f"{path}: {unknown('kind of head', entry['class'], built_in)} Pass head= to load your own.")
    return functools.partial(built_in[entry["class"]], **entry["config"])
