"""A model as files, nothing pickled: `model.json` says what it is made of, `model.safetensors` holds every weight."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medusa_cl.errors import WeightsError, unknown
from medusa_cl.models import heads as known_heads
from medusa_cl.models.backbone import Backbone
from medusa_cl.models.heads import HeadFactory
from medusa_cl.models.multitask import MultiTaskModel
from medusa_cl.tasks import DenseTask, from_description

FORMAT = "medusa-cl model 1"
DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"


def save_model(model: MultiTaskModel, directory: Path | str) -> Path:
    """Write a model into a directory; a file is renamed into its place only when it is whole.

    Args:
        model: The model; its heads must be of the built-in kinds to be loaded without further ado.
        directory: Made when missing.

    Returns:
        The directory.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    part = directory / f"{WEIGHTS}.part"
    save_file(state, part, metadata={"format": FORMAT})
    os.replace(part, directory / WEIGHTS)
    part = directory / f"{DESCRIPTION}.part"
    part.write_text(json.dumps(_describe(model), indent=2) + "\n", encoding="utf-8")
    os.replace(part, directory / DESCRIPTION)
    return directory


def _describe(model: MultiTaskModel) -> dict[str, Any]:
    heads = {
        name: {
            "task": task.describe(),
            "class": type(model.heads[name]).__name__,
            "config": getattr(model.heads[name], "config", {}),
        }
        for name, task in model.tasks.items()
    }
    return {"format": FORMAT, "backbone": model.backbone.name, "precision": model.precision, "heads": heads}


def load_model(
    directory: Path | str, tasks: Mapping[str, DenseTask] | None = None, head: HeadFactory | None = None
) -> MultiTaskModel:
    """Read what `save_model` wrote, on the CPU, in eval mode.

    Args:
        directory: The directory.
        tasks: Tasks by name, where they are not built-in ones.
        head: What makes further heads; by default heads like the last one.

    Raises:
        WeightsError: A file is missing or damaged, or of another format.
    """
    directory = Path(directory)
    path, description = directory / DESCRIPTION, _read_description(directory)
    try:
        factories = {name: _factory(entry, path) for name, entry in description["heads"].items()}
        backbone, precision = Backbone.create(description["backbone"], pretrained=False), description["precision"]
        described = {name: entry["task"] for name, entry in description["heads"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is damaged: {error!r}. Take another checkpoint of the run.") from error
    if head is None and not factories:
        raise WeightsError(f"{path} has no heads, so nothing says what further heads are like. Pass head=.")
    model = MultiTaskModel(backbone, head or list(factories.values())[-1], precision)
    for name, factory in factories.items():
        task = (tasks or {}).get(name) or from_description(described[name])
        model.add_head(task, seed=0, head=factory)
    try:
        model.load_state_dict(load_file(directory / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        where = directory / WEIGHTS
        raise WeightsError(f"Cannot load {where}: {error}. Take another checkpoint of the run.") from error
    return model.eval()


def _read_description(directory: Path) -> dict[str, Any]:
    path = directory / DESCRIPTION
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: no JSON, or no UTF-8
        raise WeightsError(f"Expected a model ({DESCRIPTION} and {WEIGHTS}) in {directory}, but: {error}.") from error
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        raise WeightsError(f'Expected format "{FORMAT}" in {path}, but got {found!r}.')
    return description


def _factory(entry: Mapping[str, Any], path: Path) -> HeadFactory:
    if entry["class"] not in known_heads.BUILT_IN:
        raise WeightsError(f"{path}: " + unknown("kind of head", entry["class"], known_heads.BUILT_IN))
    made, config = known_heads.BUILT_IN[entry["class"]], entry["config"]

    def make(channels: Any, out_channels: int) -> torch.nn.Module:
        return made(channels, out_channels, **config)

    return make
