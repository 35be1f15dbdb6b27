"""Images and targets that are in memory already, as a split of data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medusa_cl.errors import DataError, unknown

Array = NDArray[Any] | Tensor


class ArrayData:
    """A split made of arrays or tensors: what `dense_scenario` takes where nothing is to be read from a file.

        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (20, 3, 96, 128), np.uint8)
        data = ArrayData(images, {"depth": rng.uniform(1, 5, (20, 1, 96, 128))})
        len(data), data.image_size, data.fields  # (20, (96, 128), ('depth',))

    Arrays are held as they are given, copied only where they must be: do not write into them afterwards. For more than
    fits into memory write a file with `medusa_cl.data.hdf5.HDF5Writer` and read it with `HDF5Data`.

    Args:
        images: N 3 H W (one array, or a sequence of 3 H W that may differ in size), RGB: uint8, or float in [0, 1].
        targets: By name of the task, N of them as one array or a sequence, in the task's own form: integers H W for
            classes, C H W for all else (C = 1 for one value a pixel); None where an image has no such label. Pixels
            without a label hold the task's `ignore`.

    Attributes:
        fields: Names of the targets.
        image_size: H, W of the largest image, to which smaller ones are padded in batches.
        content_hash: SHA-256 over all images and targets.

    Raises:
        DataError: Shapes, types or numbers do not fit; it is said what was got and what to do.
    """

    def __init__(
        self, images: Array | Sequence[Array], targets: Mapping[str, Array | Sequence[Array | None]] | None = None
    ) -> None:
        if not hasattr(images, "__len__"):
            raise DataError(f"Expected images as one array, or a sequence of arrays, but got {_named(images)}.")
        self._images = [_image(image, index) for index, image in enumerate(images)]
        if not self._images:
            raise DataError("Expected at least one image, but got none.")
        if "image" in (targets or {}):
            raise DataError('A target cannot be called "image": the images have that name. Rename the task.')
        self._targets = {name: self._column(name, column) for name, column in (targets or {}).items()}
        self.fields = tuple(self._targets)
        self.image_size = (max(i.shape[1] for i in self._images), max(i.shape[2] for i in self._images))
        self.content_hash = self._hash()

    def __len__(self) -> int:
        return len(self._images)

    def __repr__(self) -> str:
        return f"{len(self)} images in memory with {', '.join(self.fields) or 'no targets'}"

    def image(self, index: int) -> Tensor:
        """Return image `index`: 3 H W, uint8 or float32 in [0, 1]."""
        return self._images[index]

    def target(self, index: int, name: str) -> Tensor | None:
        """Return its target: int64 H W or float32 C H W; None where the image has no such label."""
        return self._known(name)[index]

    def has(self, name: str) -> NDArray[np.bool_]:
        """Return which images have a label of a task: N bools."""
        return np.array([target is not None for target in self._known(name)])

    def _known(self, name: str) -> list[Tensor | None]:
        if name not in self._targets:
            raise DataError(unknown("target", name, self.fields))
        return self._targets[name]

    def _column(self, name: str, column: Array | Sequence[Array | None]) -> list[Tensor | None]:
        if not hasattr(column, "__len__"):
            raise DataError(
                f'Expected targets of "{name}" as one array, or a sequence of arrays, but got {_named(column)}. '
                "Leave the name out where no image has such a label."
            )
        if len(column) != len(self):
            raise DataError(
                f'Expected {len(self)} targets of "{name}", one an image, but got {len(column)}. '
                "Put None for an image without one."
            )
        pairs = zip(self._images, column, strict=True)
        return [None if one is None else _target(name, one, image) for image, one in pairs]

    def _hash(self) -> str:
        made = hashlib.sha256()
        columns: dict[str, Sequence[Tensor | None]] = {"image": self._images, **self._targets}
        for name, column in columns.items():
            for tensor in column:
                made.update(f"{name} {None if tensor is None else (tensor.dtype, *tensor.shape)}\n".encode())
                if tensor is not None:
                    made.update(tensor.contiguous().numpy().tobytes())
        return made.hexdigest()


def _tensor(array: Any, what: str) -> Tensor:
    """Return a tensor of the same memory where torch can hold that: not turned round, writable, of this machine."""
    if isinstance(array, Tensor):
        return array.detach().cpu()
    try:
        found = np.asarray(array)
    except ValueError as error:
        raise DataError(f"Expected {what} as an array of numbers, but got {_named(array)}: {error}.") from None
    if found.dtype.kind not in "buif":
        advice = " An image that could not be read is None in OpenCV: check its path." if array is None else ""
        raise DataError(f"Expected {what} as an array of numbers, but got {_named(array)}.{advice}")
    found = found.astype(found.dtype.newbyteorder("="), copy=False)
    if any(stride < 0 for stride in found.strides) or not found.flags.writeable:
        found = found.copy()
    return torch.from_numpy(found)


def _named(thing: Any) -> str:
    if thing is None:
        return "None"
    dtype = getattr(thing, "dtype", None)
    return type(thing).__name__ + ("" if dtype is None else f" of {dtype}")


def _image(image: Array, index: int) -> Tensor:
    tensor = _tensor(image, f"image {index}")
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        last = tensor.ndim == 3 and tensor.shape[-1] == 3
        advice = "Move the channels to the front: array.transpose(0, 3, 1, 2)." if last else "Images are RGB."
        raise DataError(f"Expected images as 3 H W, but got image {index} as {tuple(tensor.shape)}. {advice}")
    if tensor.dtype == torch.uint8:
        return tensor
    if not tensor.is_floating_point() or not bool(((tensor >= 0) & (tensor <= 1)).all()):
        found = f"{tensor.dtype}".removeprefix("torch.")
        raise DataError(
            f"Expected uint8 images, or floats in [0, 1], but image {index} is {found} in "
            f"[{tensor.numpy().min():g}, {tensor.numpy().max():g}]. Divide floats by 255, or convert to uint8."
        )
    return tensor.float()


def _target(name: str, target: Array, image: Tensor) -> Tensor:
    tensor, size = _tensor(target, f'a target of "{name}"'), tuple(image.shape[1:])
    classes = tensor.ndim == 2 and not tensor.is_floating_point() and tensor.dtype != torch.bool
    if tuple(tensor.shape[-2:]) != size or not (classes or tensor.ndim == 3):
        raise DataError(
            f'Expected targets of "{name}" as C H W, or as integers H W for classes, with H W = {size} of their image, '
            f"but got {str(tensor.dtype).removeprefix('torch.')} of {tuple(tensor.shape)}. "
            "One value a pixel still has a channel: array[:, None]."
        )
    return tensor.long() if classes else tensor.float()
