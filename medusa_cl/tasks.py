"""Dense tasks as values: what a pixel's answer is, how it is scored, drawn and ignored.

A `DenseTask` is everything the library knows about a task; nothing else asks "which task is this?".
To add one, make a value: the functions here are no more than that.
"""

from __future__ import annotations

import colorsys
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medusa_cl import losses
from medusa_cl.colours import coloured
from medusa_cl.errors import TaskError, unknown

if TYPE_CHECKING:
    from torchmetrics import Metric

Loss = Callable[..., tuple[Tensor, Tensor]]
Draw = Callable[[NDArray[Any]], NDArray[np.uint8]]
OUTPUTS = ("classes", "binary", "values")
FAR = 8.0  # metres, from which on depth is drawn alike


_MODULES = torch.nn.ModuleDict()  # refuses the names that it has itself, as "type" and "keys"


def _unmoved(target: Tensor) -> Tensor:
    return target


def _unzoomed(target: Tensor, factor: float) -> Tensor:
    return target


def _unrotated(target: Tensor, degrees: float) -> Tensor:
    return target


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseTask:
    """One dense prediction task.

    Most tasks are one of this module's under another name, or with a field changed:

        humidity = tasks.regression(name="humidity", unit="%", shown=(0, 100))
        inverse_depth = dataclasses.replace(tasks.depth(name="inverse_depth"), unit="1/m", on_zoom=torch.mul)

    Attributes:
        name: The task's name, unique in a stream; also the name of its field in the data.
        kind: The function of this module that makes such a task, or any word of your own.
        channels: Channels K of the head's output (B K H W).
        loss: `(logits B K H W at the target's size, target) -> (sum, count)`; ignored pixels are never read. The count
            depends on the target alone.
        decode: `logits B K H W -> prediction` in the target's form and unit.
        metric: Makes the task's dataset-level metric, a `torchmetrics.Metric` whose `compute` gives a dict.
        primary: The key of that dict by which the task is judged.
        unit: The primary metric's unit.
        higher_is_better: The primary metric's direction.
        ignore: The target value that marks a pixel without a label.
        loss_weight: The weight (lambda) of this task's loss where several tasks are learnt together.
        draw: `one target or prediction (no batch) -> H W 3 uint8` picture.
        on_flip: How the values of a target (C H W) change under a horizontal flip, besides their place.
        on_zoom: How the values of a target change under a zoom by a factor, besides their place.
        on_rotate: How the values of a target (C H W) change when the picture is rotated about its centre by some
            degrees, besides their place; positive is counter-clockwise as seen.
        output: What the logits are: "classes" (softmax over the channels), "binary" (a sigmoid for each channel) or
            "values" (what `decode` makes of them is compared as it is); distillation goes by it.
        classes: Names of the classes, for tasks that have some.
        options: What the function that made a built-in task was called with.
        frequencies: `target -> tensor` of counts that the loss needs of the whole batch, of which a process may hold a
            share only; their sum is handed to the loss as `frequencies=`. Zeros for an empty target. None for a loss of
            single pixels.

    Raises:
        TaskError: The name cannot be that of a file and of a module, or `output` is none of the three.
    """

    name: str
    kind: str
    channels: int
    loss: Loss
    decode: Callable[[Tensor], Tensor]
    metric: Callable[[], Metric]
    primary: str
    unit: str
    higher_is_better: bool
    ignore: float
    draw: Draw
    loss_weight: float = 1.0
    on_flip: Callable[[Tensor], Tensor] = _unmoved
    on_zoom: Callable[[Tensor, float], Tensor] = _unzoomed
    on_rotate: Callable[[Tensor, float], Tensor] = _unrotated
    output: str = "values"
    classes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    frequencies: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Refuse a name that could not be saved: heads are modules by their tasks' names, pictures are files."""
        if self.output not in OUTPUTS:
            raise TaskError(unknown("DenseTask.output", str(self.output), OUTPUTS))
        if not isinstance(self.name, str) or not self.name or set(self.name) & set("./\\"):
            raise TaskError(f'Expected a task\'s name without ".", "/" and "\\", but got {self.name!r}. Rename it.')
        if not self.name.isprintable():
            raise TaskError(f"Expected a task's name of printable characters, but got {self.name!r}. Rename it.")
        if hasattr(_MODULES, self.name):
            raise TaskError(f'A task cannot be called "{self.name}": torch\'s modules use that name. Rename it.')

    @property
    def sign(self) -> int:
        """+1 where a higher primary metric is better, -1 where a lower one is."""
        return 1 if self.higher_is_better else -1

    def describe(self) -> dict[str, Any]:
        """Return the task as plain data (JSON), enough for `from_description` to make a built-in one again."""
        keys = ("name", "kind", "channels", "primary", "unit", "higher_is_better", "loss_weight")
        return {key: getattr(self, key) for key in keys} | {"options": dict(self.options)}


def semseg(classes: int | Sequence[str] = 40, *, name: str = "semseg", loss_weight: float = 1.0) -> DenseTask:
    """Semantic segmentation: cross-entropy, mIoU in percent. Target: int64 H W, 255 ignored."""
    names = tuple(f"class_{i}" for i in range(classes)) if isinstance(classes, int) else tuple(classes)
    if len(names) < 2:
        raise TaskError(f"Expected at least 2 classes for task {name!r}, but got {len(names)}.")
    return DenseTask(
        name=name,
        kind="semseg",
        channels=len(names),
        classes=names,
        loss=losses.cross_entropy,
        decode=_argmax,
        output="classes",
        metric=functools.partial(_metric, "SegmentationMetric", num_classes=len(names)),
        primary="miou",
        unit="%",
        higher_is_better=True,
        ignore=255,
        loss_weight=loss_weight,
        draw=_draw_classes,
        options={"classes": list(names)},
    )


HUMAN_PARTS = ("background", "head", "torso", "upper_arm", "lower_arm", "upper_leg", "lower_leg")


def human_parts(*, name: str = "human_parts", loss_weight: float = 2.0) -> DenseTask:
    """Human parts: as `semseg` with the 7 classes of PASCAL-Part; an image without people is all ignored."""
    return dataclasses.replace(semseg(HUMAN_PARTS, name=name, loss_weight=loss_weight), kind="human_parts", options={})


def saliency(*, name: str = "saliency", loss_weight: float = 5.0) -> DenseTask:
    """Saliency: balanced binary cross-entropy, max-F (beta^2 = .3) in percent. Target: 1 H W in {0, 1}, 255 ignored."""
    return DenseTask(
        name=name,
        kind="saliency",
        channels=1,
        loss=losses.balanced_bce,
        frequencies=losses.class_frequencies,
        decode=torch.sigmoid,
        output="binary",
        metric=functools.partial(_metric, "SaliencyMetric"),
        primary="max_f",
        unit="%",
        higher_is_better=True,
        ignore=255,
        loss_weight=loss_weight,
        draw=_draw_grey,
    )


def edges(*, tolerance: float = 0.011, name: str = "edges", loss_weight: float = 50.0) -> DenseTask:
    """Edges: weighted binary cross-entropy, best F of thinned edges in percent. Target: 1 H W in {0, 1}, 255 ignored.

    Args:
        tolerance: How far a predicted edge may lie from a true one, as a fraction of the image's diagonal
            (NYUD .011, PASCAL .0075, rooms .005).
        name: The task's name.
        loss_weight: The task's weight in multitask training.
    """
    return DenseTask(
        name=name,
        kind="edges",
        channels=1,
        loss=losses.weighted_bce,
        decode=torch.sigmoid,
        output="binary",
        metric=functools.partial(_metric, "EdgeMetric", tolerance=tolerance),
        primary="edge_f",
        unit="%",
        higher_is_better=True,
        ignore=255,
        loss_weight=loss_weight,
        draw=_draw_grey,
        options={"tolerance": tolerance},
    )


def depth(*, name: str = "depth", loss_weight: float = 1.0) -> DenseTask:
    """Depth along the optical axis: L1 in metres, RMSE in metres. Target: 1 H W, 0 ignored."""
    return DenseTask(
        name=name,
        kind="depth",
        channels=1,
        loss=losses.l1_depth,
        decode=_identity,
        metric=functools.partial(_metric, "DepthMetric"),
        primary="rmse",
        unit="m",
        higher_is_better=False,
        ignore=0,
        loss_weight=loss_weight,
        draw=_draw_depth,
        on_zoom=_nearer,
    )


def normals(*, name: str = "normals", loss_weight: float = 10.0) -> DenseTask:
    """Surface normals in the camera frame (x right, y down, z forward): L1, mean angle in degrees.

    Target: 3 H W unit vectors, zero vector ignored.
    """
    return DenseTask(
        name=name,
        kind="normals",
        channels=3,
        loss=losses.l1_normals,
        decode=functools.partial(torch.nn.functional.normalize, dim=1),
        metric=functools.partial(_metric, "NormalsMetric"),
        primary="mean",
        unit="deg",
        higher_is_better=False,
        ignore=0,
        loss_weight=loss_weight,
        draw=_draw_normals,
        on_flip=_mirror_x,
        on_rotate=_rotate_xy,
    )


def reshading(*, name: str = "reshading", loss_weight: float = 1.0) -> DenseTask:
    """Reshading by a light at the camera: L1, RMSE. Target: 1 H W in [0, 1], 255 ignored."""
    return DenseTask(
        name=name,
        kind="reshading",
        channels=1,
        loss=losses.l1_reshading,
        decode=_identity,
        metric=functools.partial(_metric, "ErrorMetric"),
        primary="rmse",
        unit="",
        higher_is_better=False,
        ignore=255,
        loss_weight=loss_weight,
        draw=_draw_grey,
    )


def albedo(*, name: str = "albedo", loss_weight: float = 1.0) -> DenseTask:
    """Albedo, the colour without light: L1, RMSE. Target: 3 H W, display values (sRGB) in [0, 1], 255 ignored."""
    made = reshading(name=name, loss_weight=loss_weight)
    return dataclasses.replace(made, kind="albedo", channels=3, draw=_draw_colours)


def keypoints2d(*, name: str = "keypoints2d", loss_weight: float = 10.0) -> DenseTask:
    """2D keypoints (`geometry.keypoints2d`): as `reshading`. Target: 1 H W in [0, 1], 255 ignored."""
    return dataclasses.replace(reshading(name=name, loss_weight=loss_weight), kind="keypoints2d")


def curvature(*, name: str = "curvature", loss_weight: float = 0.1) -> DenseTask:
    """Principal curvatures: L1, mean absolute error in 1/m. Target: 2 H W, 1/m clipped to +-10, 255 ignored."""
    return DenseTask(
        name=name,
        kind="curvature",
        channels=2,
        loss=losses.l1_curvature,
        decode=_identity,
        metric=functools.partial(_metric, "ErrorMetric", valid=losses.valid_curvature, primary="mae"),
        primary="mae",
        unit="1/m",
        higher_is_better=False,
        ignore=255,
        loss_weight=loss_weight,
        draw=functools.partial(_draw_values, low=-losses.MAX_CURVATURE / 2, high=losses.MAX_CURVATURE / 2, ignore=255),
    )


def regression(
    channels: int = 1,
    *,
    unit: str = "",
    shown: Sequence[float] = (0.0, 1.0),
    name: str = "regression",
    loss_weight: float = 1.0,
) -> DenseTask:
    """Any quantity: L1, RMSE in its unit. Target: C H W float, -1e9 (`losses.UNKNOWN`) ignored.

    Args:
        channels: Numbers a pixel.
        unit: Their unit.
        shown: The range that pictures show.
        name: The task's name.
        loss_weight: The task's weight in multitask training.
    """
    low, high = (float(value) for value in shown)
    if channels < 1 or not low < high:
        raise TaskError(f"Expected channels of at least 1 and shown = low < high, but got {channels} and {shown}.")
    return DenseTask(
        name=name,
        kind="regression",
        channels=channels,
        loss=losses.l1_regression,
        decode=_identity,
        metric=functools.partial(_metric, "ErrorMetric", valid=losses.valid_values),
        primary="rmse",
        unit=unit,
        higher_is_better=False,
        ignore=losses.UNKNOWN,
        loss_weight=loss_weight,
        draw=functools.partial(_draw_values, low=low, high=high, ignore=losses.UNKNOWN),
        options={"channels": channels, "unit": unit, "shown": [low, high]},
    )


BUILT_IN: Mapping[str, Callable[..., DenseTask]] = {
    make.__name__: make
    for make in (
        semseg,
        human_parts,
        saliency,
        edges,
        depth,
        normals,
        reshading,
        albedo,
        keypoints2d,
        curvature,
        regression,
    )
}


def from_description(description: Mapping[str, Any]) -> DenseTask:
    """Make the built-in task that `DenseTask.describe` described.

    Raises:
        TaskError: The description is of a task that was not built in, or that was changed after it was made; pass the
            `DenseTask` itself instead.
    """
    kind = str(description.get("kind"))
    if kind not in BUILT_IN:
        raise TaskError(f"{unknown('kind of task', kind, BUILT_IN)} {_PASS_IT}")
    try:
        made = BUILT_IN[kind](
            name=description["name"], loss_weight=description["loss_weight"], **description["options"]
        )
    except (KeyError, TypeError) as error:
        raise TaskError(f"Expected a description of a task of kind {kind}, but got: {error}. {_PASS_IT}") from error
    _refuse_changed(made.describe(), description)
    return made


_PASS_IT = "Pass the DenseTask itself for a task of your own: load_model(tasks={name: task}) or load_head(task=task)."


def _refuse_changed(made: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """A built-in task changed by `dataclasses.replace` keeps its kind: it must not come back as the plain one."""
    changed = [key for key in made if made[key] != description.get(key)]
    if changed:
        was = ", ".join(f"{key} {description.get(key)!r} (built in: {made[key]!r})" for key in changed)
        raise TaskError(f'Task "{made["name"]}" is no built-in task of kind {made["kind"]}: {was}. {_PASS_IT}')


def _metric(metric_class: str, **options: Any) -> Metric:
    from medusa_cl import metrics  # torchmetrics is for training only; prediction must not pay for it

    made: Metric = getattr(metrics, metric_class)(**options)
    return made


def _identity(logits: Tensor) -> Tensor:
    return logits


def _argmax(logits: Tensor) -> Tensor:
    return logits.argmax(dim=1)


def _nearer(target: Tensor, factor: float) -> Tensor:
    return target / factor


def _mirror_x(target: Tensor) -> Tensor:
    return target * target.new_tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)


def _rotate_xy(target: Tensor, degrees: float) -> Tensor:
    """Roll vectors 3 H W about z with the picture: y points down, so counter-clockwise takes +x to -y."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = target.clone()
    turned[0].mul_(cos).add_(target[1], alpha=sin)
    turned[1].mul_(cos).sub_(target[0], alpha=sin)
    return turned


@functools.cache
def palette(classes: int = 256) -> NDArray[np.uint8]:
    """Return well separated colours, `classes` x 3 uint8, the same for every run; 255 (ignored) is black."""
    golden = 0.618033988749895
    shades = ((0.07 + i * golden, (0.45, 0.75, 0.6)[i % 3], (0.95, 0.8, 0.65)[i // 3 % 3]) for i in range(classes))
    colours = [colorsys.hsv_to_rgb(hue % 1, saturation, value) for hue, saturation, value in shades]
    table = (np.array(colours) * 255).astype(np.uint8)
    if classes > 255:
        table[255] = 0
    return table


def _draw_classes(labels: NDArray[Any]) -> NDArray[np.uint8]:
    return palette()[labels.astype(np.int64) % 256]


def _draw_grey(values: NDArray[Any]) -> NDArray[np.uint8]:
    shade = (np.clip(np.where(values > 1.5, 0.5, values)[0], 0, 1) * 255).astype(np.uint8)
    return np.repeat(shade[..., None], 3, axis=2)


def _draw_colours(values: NDArray[Any]) -> NDArray[np.uint8]:
    shades = np.clip(np.where(values > 1.5, 0.5, values), 0, 1) * 255
    return np.moveaxis(shades.astype(np.uint8), 0, -1)


def shown_range(task: DenseTask) -> tuple[float, float] | None:
    """Return the values that the two ends of a task's colours stand for; None where they are no scale."""
    drawn, given = getattr(task.draw, "func", task.draw), getattr(task.draw, "keywords", {})
    if drawn is _draw_values:
        return given["low"], given["high"]
    if drawn is _draw_depth:
        return 0.0, given.get("far", FAR)
    return (0.0, 1.0) if drawn is _draw_grey else None


def drawn_up_to(task: DenseTask, far: float) -> DenseTask:
    """Return a task of depth whose colours end at `far` metres; any other task as it is."""
    drawn = getattr(task.draw, "func", task.draw)
    return dataclasses.replace(task, draw=functools.partial(drawn, far=far)) if drawn is _draw_depth else task


def _draw_depth(metres: NDArray[Any], far: float = FAR) -> NDArray[np.uint8]:
    return np.where(metres[0][..., None] > 0, coloured("magma", metres[0] / far), np.uint8(0))


def _draw_values(values: NDArray[Any], low: float, high: float, ignore: float) -> NDArray[np.uint8]:
    shades = coloured("viridis", (values[0] - low) / (high - low))
    return np.where(values[0][..., None] != ignore, shades, np.uint8(0))


def _draw_normals(vectors: NDArray[Any]) -> NDArray[np.uint8]:
    up_and_near = np.stack([vectors[0], -vectors[1], -vectors[2]], axis=-1)  # the field's usual colours
    valid = np.linalg.norm(vectors, axis=0)[..., None] > 0
    return (np.where(valid, np.clip(up_and_near * 0.5 + 0.5, 0, 1), 0) * 255).astype(np.uint8)
