"""A trained model for a robot's loop: a picture in, an array for every task out.

from medusa_cl import Predictor
predictor = Predictor("runs/rooms_incremental/medusa-tf_efficientnet_lite0-s0-0")
answers = predictor(image)        # image: H W 3 uint8 RGB; answers["depth"]: H W float32, metres
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from medusa_cl import kept, trained
from medusa_cl.errors import ConfigError, DataError, MedusaError, WeightsError, unknown
from medusa_cl.losses import STRIDE, at_size
from medusa_cl.memory import ran_out
from medusa_cl.trained import Trained

if TYPE_CHECKING:
    from medusa_cl.tasks import DenseTask

MAX_SIZE = 2048
_AT_ONCE = 2**25  # numbers that one strip of logits may have
Size = tuple[int, int]
_log = logging.getLogger(__name__)
Answers = dict[str, NDArray[Any]]


class OutOfMemoryError(MedusaError):
    """A picture is too large for this machine."""


class Predictor:
    """Predicts all tasks of a trained model, or some, in one pass of the backbone.

    Args:
        run: What `trained.find` finds: a run directory, a model's directory, "last", an MLflow run id.
        tasks: Names of the tasks to predict, whose heads alone run; None for all. Answers come in this order.
        size: At which scale the net sees a picture, whose answers come at the picture's own size: "train" brings its
            longer side to that of the training images (where nothing says what that was, a warning does, and the
            picture stays as it is), a number to so many pixels, "own" leaves it.
        max_size: The longest side that the net sees; larger pictures are made smaller for it.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1".
        own_tasks: Tasks of your own by name, where the model has such.

    Attributes:
        trained: Where the model is from.
        model: The model, in eval mode.
        tasks: The tasks predicted, by name.
        training_size: H, W of the training images; None where it is not known.
        longest: Pixels of the longer side that the net sees; None for the picture's own.
        device: The torch device.

    Raises:
        ConfigError: There is no such model, device or size.
        TaskError: The model has no such task.
        WeightsError: The model is damaged.
    """

    def __init__(
        self,
        run: str | Path | Trained,
        *,
        tasks: Sequence[str] | None = None,
        size: str | int = "train",
        max_size: int = MAX_SIZE,
        device: str = "auto",
        own_tasks: Mapping[str, DenseTask] | None = None,
    ) -> None:
        self.trained = run if isinstance(run, Trained) else trained.find(str(run))
        self.device = resolve_device(device)
        self.training_size = training_size(self.trained)
        self.longest, self.max_size = _longest(size, max_size, self.training_size), max_size
        self.model = self.trained.load(own_tasks).to(self.device)
        chosen = trained.chosen(list(self.model.tasks), tasks)
        self.tasks = {name: self.model.tasks[name] for name in chosen}

    def __call__(self, image: NDArray[np.uint8]) -> Answers:
        """Predict for one picture.

        Args:
            image: H W 3 uint8 RGB (what OpenCV reads is BGR: pass `image[..., ::-1]`).

        Returns:
            For each task, at the picture's size: classes H W (uint8; uint16 for more than 256), one channel H W
            float32, several channels H W C float32. `value_unit` says the unit.

        Raises:
            DataError: The image has another shape or type.
            OutOfMemoryError: Memory ran out.
        """
        return self.several([image])[0]

    def several(self, images: Sequence[NDArray[np.uint8]]) -> list[Answers]:
        """Predict for several pictures; those that the net sees at one size go through it together.

        What else is in a batch changes the last bits of an answer, and nothing more.

        Args:
            images: Each as in `__call__`.

        Returns:
            The answers in the order of the images.

        Raises:
            DataError: An image has another shape or type.
            OutOfMemoryError: Memory ran out.
        """
        groups: dict[Size, list[int]] = {}
        for index, image in enumerate(images):
            _check(image)
            groups.setdefault(self.seen_size(image.shape[0], image.shape[1]), []).append(index)
        answers: list[Answers] = [{} for _ in images]
        for seen, members in groups.items():
            for index, answer in zip(members, self._together([images[i] for i in members], seen), strict=True):
                answers[index] = answer
        return answers

    def seen_size(self, height: int, width: int) -> Size:
        """Return H, W at which the net sees a picture of this size."""
        longer = max(height, width)
        wanted = min(self.longest or longer, self.max_size)
        return _scaled(height, wanted, longer), _scaled(width, wanted, longer)

    @torch.inference_mode()
    def _together(self, images: Sequence[NDArray[np.uint8]], seen: Size) -> Iterator[Answers]:
        try:
            batch = torch.stack([_tensor(image, seen) for image in images]).to(self.device)
            logits = {name: answer[0] for name, answer in self.model(batch, list(self.tasks)).items()}
            return iter([self._restored(logits, i, seen, _size(image)) for i, image in enumerate(images)])
        except (MemoryError, RuntimeError) as error:
            if ran_out(error):
                raise OutOfMemoryError(_no_memory(len(images), seen, images, self.device)) from error
            raise

    def _restored(self, logits: Mapping[str, Tensor], index: int, seen: Size, size: Size) -> Answers:
        return {
            name: _array(_decoded(task, logits[name][index : index + 1], seen, size), task)
            for name, task in self.tasks.items()
        }


def resolve_device(name: str) -> torch.device:
    """Return the torch device meant; auto is CUDA where there is one.

    Raises:
        ConfigError: It is none of auto, cpu and cuda, or this machine has no such GPU.
    """
    kind, _, number = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and (kind != "cuda" or not number.isdecimal())):
        raise ConfigError(unknown("device", name, ("auto", "cpu", "cuda", "cuda:0")))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= gpus:
        raise ConfigError(
            f"device={name}, but torch finds {gpus or 'no'} GPU{'s' * (gpus > 1)}. Use device=auto or cpu."
        )
    return torch.device(name if kind != "auto" else "cuda" if gpus else "cpu")


def training_size(found: Trained) -> Size | None:
    """Return H, W of the images that a model was trained on; None where neither it nor its run says so."""
    try:
        said: Any = _own_size(found) or _configured_size(found)
        height, width = (int(side) for side in said)
    except (MedusaError, OSError, TypeError, ValueError, AttributeError):
        return None  # no run, or one of which only the model is whole
    return (height, width) if min(height, width) > 0 else None


def _own_size(found: Trained) -> Any:
    description = json.loads((found.model / trained.DESCRIPTION).read_text(encoding="utf-8"))
    return description.get("image_size")


def _configured_size(found: Trained) -> Any:
    import yaml

    if found.run is None:
        return None
    try:
        config = yaml.safe_load((found.run / "config.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return None
    return config["scenario"].get("image_size") if isinstance(config, dict) and "scenario" in config else None


def model_hashes(found: Trained) -> dict[str, str]:
    """Return the SHA-256 of the weights and of the description of a model.

    Raises:
        WeightsError: A file is missing.
    """
    try:
        names = {"weights": "model.safetensors", "description": trained.DESCRIPTION}
        return {what: kept.file_hash(found.model / name) for what, name in names.items()}
    except OSError as error:
        raise WeightsError(f"Cannot read the model in {found.model}: {error}.") from error


def value_unit(task: DenseTask) -> str:
    """Return the unit of a task's values, in words; `task.unit` is that of its metric."""
    maps = dict.fromkeys(("reshading", "albedo", "keypoints2d"), "0..1")
    by_kind = maps | {"normals": "unit vector: x right, y down, z forward"}
    by_output = {"classes": "class", "binary": "probability"}
    return by_output.get(task.output) or by_kind.get(task.kind) or task.unit


def shape_of(task: DenseTask) -> str:
    """Return shape and type of a task's array, in words."""
    if task.output == "classes":
        return f"H W {_class_type(task.channels)}"
    return "H W float32" if task.channels == 1 else f"H W {task.channels} float32"


def _class_type(classes: int) -> str:
    return "uint8" if classes <= 256 else "uint16"


def _longest(size: str | int, max_size: int, training: Size | None) -> int | None:
    if max_size < 1:
        raise ConfigError(f"Expected max_size to be at least 1, but got {max_size}.")
    if size == "train" and training is None:
        _log.warning(
            "Nothing says how large the training images were, so pictures are seen at their own size. Give size= the "
            "pixels of the longer side, or own."
        )
    if size == "own" or (size == "train" and training is None):
        return None
    if size == "train" and training is not None:
        return max(training)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError(f'Expected size to be "train", "own" or a number of pixels, but got {size!r}.')
    if size > max_size:
        raise ConfigError(f"size={size} is more than max_size={max_size}. Raise max_size= too.")
    return size


def _scaled(side: int, wanted: int, longer: int) -> int:
    return max(1, (2 * side * wanted + longer) // (2 * longer))


def _check(image: NDArray[Any]) -> None:
    known = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if not known or not image.size:
        got = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(f"Expected an image H W 3 uint8 RGB, but got {got}. Convert it: pictures.read reads files so.")


def _size(image: NDArray[Any]) -> Size:
    return image.shape[0], image.shape[1]


def _tensor(image: NDArray[np.uint8], seen: Size) -> Tensor:
    if _size(image) != seen:
        # Pillow's bilinear averages over all pixels that become one.
        resized = Image.fromarray(np.ascontiguousarray(image)).resize((seen[1], seen[0]), Image.Resampling.BILINEAR)
        image = np.asarray(resized)
    return torch.tensor(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255


def _decoded(task: DenseTask, logits: Tensor, seen: Size, size: Size) -> Tensor:
    """Bring a head's logits 1 K h w to the picture's size and only then decode them: labels are never resized."""
    if seen == size:
        return task.decode(at_size(logits, size))
    wide = logits.float() @ _interpolation(logits.shape[-1], seen[1], size[1]).to(logits.device).T
    rows = _interpolation(logits.shape[-2], seen[0], size[0]).to(logits.device)
    strip = max(1, _AT_ONCE // (logits.shape[1] * size[1]))
    return torch.cat([task.decode(part @ wide) for part in rows.split(strip)], dim=-2)


def _interpolation(known: int, seen: int, wanted: int) -> Tensor:
    """Return the matrix (wanted, known) of 1-d bilinear interpolation from logits to pixels of the picture.

    The logits are those of the seen picture, padded to a multiple of the stride, as in `losses.at_size`.
    """
    padded = -(-seen // STRIDE) * STRIDE
    place = (torch.arange(wanted, dtype=torch.float64) + 0.5) * (seen / wanted) * known / padded - 0.5
    place = place.clamp(0, known - 1)
    low = place.floor().long()
    matrix = torch.zeros(wanted, known)
    matrix[torch.arange(wanted), low] += (1 - (place - low)).float()
    matrix[torch.arange(wanted), (low + 1).clamp(max=known - 1)] += (place - low).float()
    return matrix


def _array(prediction: Tensor, task: DenseTask) -> NDArray[Any]:
    """Return H W, or H W C, of a prediction 1 H W or 1 C H W."""
    values: NDArray[Any] = prediction[0].cpu().numpy()
    if task.output == "classes":
        return values.astype(_class_type(task.channels))
    return values[0] if values.shape[0] == 1 else np.ascontiguousarray(values.transpose(1, 2, 0))


def _no_memory(count: int, seen: Size, images: Sequence[NDArray[Any]], device: torch.device) -> str:
    height, width = _size(images[0])
    sizes = f"{count} picture{'s' * (count > 1)} of {width} x {height} pixels, seen at {seen[1]} x {seen[0]}"
    return f"Out of memory on {device} ({sizes}). Choose a smaller size= or max_size=, or batch=1."
