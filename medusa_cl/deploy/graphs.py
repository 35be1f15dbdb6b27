"""A trained model as one graph for other runtimes: images in, every task's answer at the images' size out."""

from __future__ import annotations

import copy
import functools
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medusa_cl import __version__
from medusa_cl.deploy.predictor import value_unit
from medusa_cl.errors import ConfigError, unknown
from medusa_cl.losses import STRIDE, at_size
from medusa_cl.models.backbone import Backbone
from medusa_cl.models.coupled import CoupledModel
from medusa_cl.models.multitask import MultiTaskModel
from medusa_cl.tasks import DenseTask

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FORMAT = "medusa-cl graph 1"
INPUT = "image"
DYNAMIC, INPUTS, OUTPUTS = ("batch", "all"), ("float", "uint8"), ("decoded", "logits")
AXES = "x right, y down, z forward"
TRACED = 2  # images; torch takes a batch of one for one that is always so
_NOISY = ("torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")
Size = tuple[int, int]


@dataclass(frozen=True)
class Form:
    """What a graph takes and gives.

    Attributes:
        tasks: Names of the tasks, in the order of the outputs.
        size: H, W of the images; where sizes are dynamic, those it is made with.
        dynamic: "batch": any number of images of that size; "all": of any size.
        input: "float": B 3 H W float32 RGB in [0, 1]; "uint8": B H W 3 uint8 RGB.
        outputs: "decoded": as `MultiTaskModel.predict` answers; "logits": B K H W float32 at the image's size.

    Raises:
        ConfigError: A value is none of these.
    """

    tasks: tuple[str, ...]
    size: Size
    dynamic: str = "batch"
    input: str = "float"
    outputs: str = "decoded"

    def __post_init__(self) -> None:
        """Refuse unknown words and sizes, and a task whose output would have the input's name."""
        for key, known in (("dynamic", DYNAMIC), ("input", INPUTS), ("outputs", OUTPUTS)):
            if getattr(self, key) not in known:
                raise ConfigError(unknown(f"value of {key}", str(getattr(self, key)), known))
        if len(self.size) != 2 or min(self.size) < 1:
            raise ConfigError(f"Expected size to be H, W of at least 1 pixel, but got {self.size}.")
        if not self.tasks:
            raise ConfigError("The model has no task to export. Learn one first.")
        if INPUT in self.tasks:
            raise ConfigError(f'A task called "{INPUT}" has the name of the input. Leave it out with tasks=[...].')


class Graph(nn.Module):
    """Backbone and chosen heads, from images to answers; a copy of the model in float32 on the CPU.

    Args:
        model: The model; left as it is.
        form: What the graph takes and gives.

    Attributes:
        model: The copy, with none but the heads that are needed.
    """

    def __init__(self, model: MultiTaskModel, form: Form) -> None:
        super().__init__()
        self.form = form
        self.model = _plain(model, form.tasks)
        self._eager = (_plain(model, form.tasks),)  # no part of the graph, so not among its modules
        _pad_by_numbers(self.model.backbone)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Answer images as `form` has them, by task."""
        image = self.as_floats(image)
        size = (image.shape[-2], image.shape[-1])
        whole = (_whole(size[0]), _whole(size[1]))
        answers = self.model(self._filled(image, whole), self.form.tasks)
        return {name: self._given(name, _cropped(logits, whole, size)) for name, (logits, _) in answers.items()}

    @torch.no_grad()
    def reference(self, image: Tensor) -> dict[str, Tensor]:
        """Return logits B K H W float32 as `MultiTaskModel.predict` decodes them; images as `form` has them."""
        image = self.as_floats(image)
        size = (image.shape[-2], image.shape[-1])
        answers = self._eager[0](image, self.form.tasks)
        return {name: at_size(logits, size) for name, (logits, _) in answers.items()}

    def as_floats(self, image: Tensor) -> Tensor:
        """Return images B 3 H W float32 in [0, 1]."""
        return image.permute(0, 3, 1, 2).float() / 255 if self.form.input == "uint8" else image

    def example(self, batch: int = TRACED) -> Tensor:
        """Return grey images as `form` has them."""
        height, width = self.form.size
        if self.form.input == "uint8":
            return torch.full((batch, height, width, 3), 128, dtype=torch.uint8)
        return torch.full((batch, 3, height, width), 0.5)

    def _filled(self, image: Tensor, whole: Size) -> Tensor:
        # As the backbone pads, but by expressions that stay right where H and W are symbols and // rounds towards zero.
        mean = self.model.backbone.mean
        return F.pad(image - mean, (0, whole[1] - image.shape[-1], 0, whole[0] - image.shape[-2])) + mean

    def _given(self, name: str, logits: Tensor) -> Tensor:
        return self.model.tasks[name].decode(logits) if self.form.outputs == "decoded" else logits


def _whole(side: int) -> int:
    return (side + STRIDE - 1) // STRIDE * STRIDE


def _cropped(logits: Tensor, whole: Size, size: Size) -> Tensor:
    """Do what `losses.at_size` does, by the operation that runtimes have kernels for."""
    return F.interpolate(logits, size=whole, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]


def _plain(model: MultiTaskModel, tasks: Sequence[str]) -> MultiTaskModel:
    plain = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    plain.precision = "32"
    plain.__dict__["_autocast"] = lambda x: nullcontext()  # switched off it is, but exporters make subgraphs of it
    plain.use_channels_last(backbone=False, heads=False)
    if not isinstance(plain, CoupledModel):  # whose tasks read each other
        for name in set(plain.tasks) - set(tasks):
            plain.remove_head(name)
    return plain


def _pad_by_numbers(backbone: Backbone) -> None:
    """Let timm's "same" convolutions pad by numbers, where sides are whole multiples of 32 as behind `_filled`.

    They work out the padding from the sides: where those are symbols, one expression inside the other, torch's exporter
    is not done with them in ten minutes.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and type(module).__name__ == "Conv2dSame":
            module.forward = functools.partial(_same, module)  # type: ignore[method-assign]


def _same(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Do what a "same" convolution does to B C H W whose sides are multiples of its stride."""
    axes = list(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True))
    height, width = (max((kernel - 1) * dilation + 1 - stride, 0) for kernel, stride, dilation in axes)
    padded = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
    return F.conv2d(padded, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


def traced(graph: Graph) -> ExportedProgram:
    """Return the graph as torch.export sees it.

    Raises:
        ConfigError: The network cannot be exported in this form.
    """
    height, width = (1, 2) if graph.form.input == "uint8" else (2, 3)
    sides = (height, width) if graph.form.dynamic == "all" else ()
    free = dict.fromkeys((0, *sides), torch.export.Dim.DYNAMIC)
    with refused(graph, "torch.export"), torch.no_grad():
        return torch.export.export(graph, (graph.example(),), dynamic_shapes={INPUT: free}, strict=False)


@contextmanager
def refused(graph: Graph, by: str) -> Iterator[None]:
    """Keep exporters quiet, and turn whatever they raise into one message that says what to try.

    Raises:
        ConfigError: They raised something.
    """
    try:
        with quiet():
            yield
    except Exception as error:  # exporters raise anything
        other = "Try dynamic=batch, or another" if graph.form.dynamic == "all" else "Try another size= or"
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"Backbone {graph.model.backbone.name} with dynamic={graph.form.dynamic} cannot be exported: {by} "
            f"{torch.__version__} says: {said[:300]}. {other} backbone."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the notes of exporters on their own inner workings: what they made is checked by its numbers."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def described(graph: Graph, about: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return all that a user of the file must know, as texts by key; what is no plain text is JSON.

    Args:
        graph: The graph.
        about: Further entries, such as a licence.

    Raises:
        ConfigError: One of them would take the place of what is said here.
    """
    form, model = graph.form, graph.model
    tasks = [described_task(graph, name) | _own_backbone(model.heads, name) for name in form.tasks]
    said = {"tasks": tasks, "input": described_input(graph), "backbone": _backbone(model)}
    plain = {"format": FORMAT, "version": f"medusa_cl {__version__}", "torch": str(torch.__version__)}
    own = plain | {key: json.dumps(value) for key, value in said.items()}
    if taken := sorted({*own, "opset"} & set(about or {})):
        raise ConfigError(f"about= cannot say {', '.join(taken)}: the file does. Choose another key.")
    return own | dict(about or {})


def described_input(graph: Graph) -> dict[str, Any]:
    """Return what the graph takes, as plain data."""
    layout, values = ("B H W 3 uint8", "0..255") if graph.form.input == "uint8" else ("B 3 H W float32", "0..1")
    return {
        "name": INPUT,
        "layout": layout,
        "colours": "RGB",
        "values": values,
        "size": list(graph.form.size),
        "dynamic": ["batch"] if graph.form.dynamic == "batch" else ["batch", "height", "width"],
        "mean": [round(float(value), 6) for value in graph.model.backbone.mean.flatten()],
        "inside": "normalisation, and padding to a multiple of 32",
    }


def described_task(graph: Graph, name: str) -> dict[str, Any]:
    """Return what the graph answers for a task, as plain data."""
    task, outputs = graph.model.tasks[name], graph.form.outputs
    decoded = outputs == "decoded"
    shape = "B H W int64" if task.output == "classes" and decoded else f"B {task.channels} H W float32"
    return {
        "name": task.name,
        "kind": task.kind,
        "output": task.output,
        "gives": outputs,
        "layout": shape,
        "unit": value_unit(task),
        "decoding": _decoding(task, outputs),
        "axes": AXES if task.kind == "normals" else None,
        "classes": list(task.classes),
        "ignore": task.ignore,
    }


def _decoding(task: DenseTask, outputs: str) -> str:
    steps = {"classes": "argmax over the channels", "binary": "sigmoid"}
    step = steps.get(task.output) or ("unit length" if task.kind == "normals" else "none: logits are values")
    return f"{'inside' if outputs == 'decoded' else 'to be done'}: {step}"


def _own_backbone(heads: nn.ModuleDict, name: str) -> dict[str, str]:
    own = getattr(heads[name], "backbone", None) if name in heads else None
    return {"backbone_hash": own.weights_hash()} if isinstance(own, Backbone) else {}


def _backbone(model: MultiTaskModel) -> dict[str, Any]:
    shared = any(getattr(head, "uses_backbone", True) for head in model.heads.values())
    said = {"name": model.backbone.name, "hash": model.backbone.weights_hash() if shared else None}
    return said | {"published_licence": published_licence(model.backbone)}


def published_licence(backbone: Backbone) -> str | None:
    """Return the licence under which timm publishes weights of a backbone's name; None where it does not say."""
    net: Any = backbone.net
    configs = (getattr(part, "pretrained_cfg", None) or {} for part in (net, getattr(net, "model", None)))
    return next((str(config["license"]) for config in configs if config.get("license")), None)
