"""A backbone and one independent head for each task: a plain module, with nothing of any training framework in it."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medusa_cl import kept
from medusa_cl import tasks as known_tasks
from medusa_cl.batch import take
from medusa_cl.errors import ConfigError, TaskError, WeightsError, unknown
from medusa_cl.losses import at_size
from medusa_cl.models import heads as known_heads
from medusa_cl.models.backbone import Backbone
from medusa_cl.models.execution import FORMATS, compile_in_place, lay_out, require_compiler
from medusa_cl.models.heads import HeadFactory, HeadOutput
from medusa_cl.randomness import seeded
from medusa_cl.tasks import DenseTask

FILE_FORMAT, WITHOUT_HASH = "medusa-cl head 2", "medusa-cl head 1"
_log = logging.getLogger(__name__)
PRECISIONS = ("32", "bf16")
# What BatchNorm counts, and no gradient reaches.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class HeadFile:
    """What a file of a head says of it.

    Attributes:
        path: The file.
        task: Its task, as `DenseTask.describe` gave it.
        head: Its kind: `class` and `config`.
        backbone: Name of the backbone that it fits.
        backbone_hash: `Backbone.weights_hash` of that.
        precision: The precision it answered in; None where the file, of an earlier version, does not say.
        format: The file's format.
        parameters: How many numbers it has learnt.
        image_size: H, W of the images that it was learnt on; None where the file does not say.
    """

    path: Path
    task: Mapping[str, Any]
    head: Mapping[str, Any]
    backbone: str
    backbone_hash: str
    precision: str | None
    format: str
    parameters: int
    image_size: tuple[int, int] | None = None


def describe_head(path: str | Path) -> HeadFile:
    """Look at every byte of a file that `save_head` wrote, and say what it holds; no head is made of it.

    Raises:
        WeightsError: The file is missing, damaged or of another format.
    """
    tensors, found = _read_head(Path(path))
    with _described_by(path):
        task, head, backbone = ({**found[key]} for key in ("task", "head", "backbone"))
        told = (backbone["name"], backbone["hash"], found["precision"], found["format"])
        for text in (task["name"], task["kind"], head["class"], *told[:2]):
            if not isinstance(text, str) or not text.isprintable():
                raise TypeError(f"{text!r} is no name")
    return HeadFile(Path(path), task, head, *told, count_learnt(tensors), found["image_size"])


def sides(value: Any) -> tuple[int, int] | None:
    """Return H, W as a file says them; None for None.

    Raises:
        ValueError: These are no sides of an image.
    """
    if value is None:
        return None
    if not isinstance(value, Sequence) or len(value) != 2 or not all(type(n) is int and n > 0 for n in value):
        raise ValueError(f"{value!r} is no height and width")
    return value[0], value[1]


def count_learnt(state: Mapping[str, Tensor]) -> int:
    """Return the number of values in a state dict that are not statistics."""
    return sum(value.numel() for key, value in state.items() if key.rpartition(".")[2] not in STATISTICS)


class MultiTaskModel(nn.Module):
    """A shared backbone with a head for each task learnt so far; heads know nothing of each other.

    Args:
        backbone: Shared features.
        head: Makes a task's head from the backbone's channels and the task's number of output channels.
        precision: `32`, or `bf16` to run forward passes under autocast. Results are float32 either way.

    Attributes:
        heads: The heads by task name.
        tasks: The tasks by name, in the order they were added.
        frozen_heads: Names of the tasks whose heads are frozen.
        image_size: H, W of the images that it was trained on; None where that is not known.
        origins: What is known of heads that were learnt elsewhere, by task: `licence`, `author`, `metrics`, `learnt`.

    Raises:
        ConfigError: `precision` is neither.
    """

    def __init__(self, backbone: Backbone, head: HeadFactory, precision: str = "32") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ConfigError(unknown("precision", str(precision), PRECISIONS))
        self.backbone = backbone
        self.head = head
        self.precision = precision
        self.heads = nn.ModuleDict()
        self.tasks: dict[str, DenseTask] = {}
        self.frozen_heads: set[str] = set()
        self.image_size: tuple[int, int] | None = None
        self.origins: dict[str, Mapping[str, Any]] = {}
        self.memory_format = self._net_format = torch.contiguous_format
        self._compiled: dict[str, Any] | None = None

    def use_channels_last(self, *, backbone: bool = True, heads: bool = True) -> None:
        """Lay weights and features out channels last or contiguously; where that pays, `channels_last_pays` says.

        Args:
            backbone: Whether the backbone runs channels last, and nets that heads have of their own.
            heads: Whether the heads do, those added later too.
        """
        self.memory_format, self._net_format = FORMATS[heads], FORMATS[backbone]
        lay_out(self.heads, self.memory_format)
        for net in (self.backbone, *_own_nets(self.heads.values())):
            lay_out(net, self._net_format)

    def compile_parts(self, **options: Any) -> None:
        """Compile backbone and heads in place, heads added later too; off by default.

        The first steps, and the first with a batch of another size, take from seconds to minutes. Answers stay the same
        to rounding, and so do those of frozen heads: for other numbers of images other kernels may be compiled. Keys of
        the state dict stay; copies of the model are not compiled. Where a head has blocks beside the layers of the
        backbone (`AdaptedHead`), only the head is.

        Args:
            **options: Those of `torch.compile`.

        Raises:
            ConfigError: There is no C++ compiler.
        """
        if self._compiled == options:
            return
        if options.get("backend", "inductor") == "inductor":
            require_compiler()
        self._compiled = options
        for part in (self.backbone.net, *self.heads.values(), *(net.net for net in _own_nets(self.heads.values()))):
            compile_in_place(part, options)

    def add_head(self, task: DenseTask, seed: int, head: HeadFactory | None = None) -> None:
        """Add a fresh head, initialised as a pure function of (seed, task name), whatever came before.

        A head with a method `adapt(backbone)` is shown the shared backbone, as it is now, to make its own parts of it.

        Args:
            task: What the head is to predict.
            seed: Seed of the initialisation; the global random state is neither read nor changed.
            head: Another factory than the model's own.

        Raises:
            TaskError: A task of that name is already there.
        """
        self._refuse_twice(task.name)
        with seeded("head", seed, task.name):
            made = (head or self.head)(self.backbone.channels, task.channels)
            if (adapt := getattr(made, "adapt", None)) is not None:
                adapt(self.backbone)
        self._attach(task, made)

    def add_heads(self, tasks: Sequence[DenseTask], seed: int) -> None:
        """Add a fresh head for each task in turn, as `add_head` does.

        Raises:
            TaskError: A task of one of the names is already there.
        """
        for task in tasks:
            self.add_head(task, seed)

    def remove_head(self, name: str) -> None:
        """Forget a task; nothing else changes.

        Raises:
            TaskError: There is no such task.
        """
        self._known(name)
        del self.heads[name], self.tasks[name]
        self.frozen_heads.discard(name)
        self.origins.pop(name, None)

    def freeze_head(self, name: str) -> None:
        """Hold a head's parameters and statistics: no gradients, eval mode under any later `train()`.

        Raises:
            TaskError: There is no such task.
        """
        self._known(name)
        self.frozen_heads.add(name)
        head = self.heads[name].requires_grad_(False).eval()
        for net in _own_nets([head]):
            net.freeze()

    def unfreeze_head(self, name: str) -> None:
        """Undo `freeze_head`; the mode stays eval until the next `train()`.

        Raises:
            TaskError: There is no such task.
        """
        self._known(name)
        self.frozen_heads.discard(name)
        head = self.heads[name].requires_grad_(True)
        for net in _own_nets([head]):
            net.unfreeze()

    def freeze_backbone(self) -> None:
        """Hold the backbone in the same way."""
        self.backbone.freeze()

    def train(self, mode: bool = True) -> MultiTaskModel:
        """Set the mode of all that is not frozen."""
        super().train(mode)
        for name in self.frozen_heads:
            self.heads[name].eval()
        return self

    def parameters_of(self, name: str) -> int:
        """Return the number of parameters that a task costs: its head's.

        Raises:
            TaskError: There is no such task.
        """
        self._known(name)
        return sum(parameter.numel() for parameter in self.heads[name].parameters())

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Go through the parameters of backbones: the shared one's, then those of heads' own nets."""
        yield from self.backbone.parameters()
        for net in _own_nets(self.heads.values()):
            yield from net.parameters()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Go through all other parameters."""
        backbones = {id(parameter) for parameter in self.backbone_parameters()}
        yield from (parameter for parameter in self.parameters() if id(parameter) not in backbones)

    def used_parameters(self) -> Iterator[nn.Parameter]:
        """Go through the parameters that answers depend on: all, but the shared backbone's where no head uses it."""
        shared = any(getattr(head, "uses_backbone", True) for head in self.heads.values())
        yield from self.parameters() if shared else self.heads.parameters()

    def needs_images(self, names: Iterable[str] | None = None) -> bool:
        """Return whether a head is among these that shared features alone cannot serve.

        Args:
            names: Names of tasks; None for all.

        Raises:
            TaskError: There is no such task.
        """
        return any(self._takes_image(name) for name in (self.tasks if names is None else names))

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the shared features of images B 3 H W in [0, 1]: float32, B C_s H_s W_s at strides 4, 8, 16, 32."""
        with self._autocast(image):
            maps = self.backbone(image)
        return tuple(x.float() for x in maps)

    def forward(
        self,
        image: Tensor | Sequence[Tensor],
        tasks: Sequence[str] | Mapping[str, Tensor] | None = None,
        extract: Callable[[Tensor], tuple[Tensor, ...]] | None = None,
    ) -> dict[str, HeadOutput]:
        """Run the heads asked for, and no others; the shared backbone only where one of them uses its features.

        A head whose attribute `takes_image` is true makes its own features, in its method `features(backbone, image)`.

        Args:
            image: Images B 3 H W, float RGB in [0, 1], or the features that `features` returned for them.
            tasks: Names of tasks, or for each the rows (int64 n on the CPU) of the batch that it is to see; None for
                all tasks on all rows. A task with zero rows is left out of the result.
            extract: How shared features are made of the images; None for `features`.

        Returns:
            For each task its logits B K H/4 W/4 (of the padded image; n rows where rows were given) and the tuple of
            its deep-supervision predictions, all float32.

        Raises:
            TaskError: A task has no head, or features were given to a head that needs the images.
        """
        wanted = self._wanted(tasks)
        own = [name for name in wanted if self._takes_image(name)]
        features: tuple[Tensor, ...] = ()
        if not isinstance(image, Tensor):
            _refuse_features(own)
            features = self._laid_out(image)
        elif len(own) < len(wanted):
            features = self._laid_out((extract or self.features)(image))
        return {name: self._answer(name, image, features, chosen) for name, chosen in wanted.items()}

    @torch.no_grad()
    def predict(self, image: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Predict in each task's own form and unit, in eval mode.

        Args:
            image: Images B 3 H W, float RGB in [0, 1], any size.
            tasks: Names of tasks; None for all.

        Returns:
            What each task's `decode` gives at the size of the image: B H W int64 classes, or B C H W float.

        Raises:
            TaskError: A task has no head.
        """
        size = (image.shape[-2], image.shape[-1])
        with _evaluating(self):
            answers = self(image, tasks)
        return {name: self.tasks[name].decode(at_size(logits, size)) for name, (logits, _) in answers.items()}

    def save_head(self, name: str, path: str | Path) -> None:
        """Write a head to a safetensors file that also says its task, its kind and the backbone that it belongs to.

        A SHA-256 over all of this and the weights stands in the file, so that damage is found when it is loaded.

        Raises:
            TaskError: There is no such task.
        """
        from safetensors.torch import save_file

        self._known(name)
        head = self.heads[name]
        metadata = {
            "format": FILE_FORMAT,
            "task": json.dumps(self.tasks[name].describe()),
            "head": json.dumps({"class": type(head).__name__, "config": getattr(head, "config", {})}),
            "backbone": json.dumps({"name": self.backbone.name, "hash": self.backbone.weights_hash()}),
            "precision": self.precision,
            **({"image_size": json.dumps(self.image_size)} if self.image_size else {}),
        }
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.detach().cpu().contiguous() for key, value in head.state_dict().items()}
        with kept.whole(path) as part:
            save_file(tensors, part, metadata | {"sha256": _hash_of(tensors, metadata)})
            kept.readable(part)

    def load_head(self, path: str | Path, task: DenseTask | None = None, head: HeadFactory | None = None) -> DenseTask:
        """Add the head of a file that `save_head` wrote.

        Args:
            path: The file.
            task: Its task, where it is not a built-in one or is to have another name; by default the file says it.
            head: Makes the head, where it is not of a built-in kind; by default the file says its kind.

        Returns:
            The task.

        Raises:
            TaskError: A task of that name is already there, or the file's task is unknown or has other channels.
            WeightsError: The file is missing or damaged (by its hash; one of an earlier version has none, which is
                logged), of an unknown kind, or belongs to another backbone.
        """
        tensors, metadata = _read_head(Path(path))
        described = metadata["task"]
        with _described_by(path):
            self._check_backbone(metadata["backbone"], path)
            task = task or known_tasks.from_description(described)
            agree = task.channels == described["channels"]
        if not agree:
            raise TaskError(f"Expected a task of {described['channels']} channels for {path}, but got {task.channels}.")
        self._refuse_twice(task.name)
        with _described_by(path):
            made = _rebuild(metadata["head"], (self.backbone.channels, task.channels), head, tensors, path)
        try:
            made.load_state_dict(tensors)
        except RuntimeError as error:
            raise WeightsError(f"The weights in {path} do not fit the head they are said to be of: {error}") from error
        self._attach(task, made)
        self.image_size = self.image_size or metadata["image_size"]
        return task

    def _attach(self, task: DenseTask, head: nn.Module) -> None:
        self.heads[task.name] = self._settled(head)
        self.tasks[task.name] = task

    def _settled(self, head: nn.Module) -> nn.Module:
        """Bring a new head into the model's mode, to its device, into its layout, and compile it where that is."""
        head = head.train(self.training).to(self.backbone.mean.device)
        lay_out(head, self.memory_format)
        nets = list(_own_nets([head]))
        for net in nets:
            lay_out(net, self._net_format)
        if self._compiled is not None:
            for part in (head, *(net.net for net in nets)):
                compile_in_place(part, self._compiled)
        return head

    def _laid_out(self, maps: Iterable[Tensor]) -> tuple[Tensor, ...]:
        # One layout, wherever features come from: kernels, and so the last bits, depend on it.
        return tuple(x.contiguous(memory_format=self.memory_format) for x in maps)

    def _takes_image(self, name: str) -> bool:
        self._known(name)
        return bool(getattr(self.heads[name], "takes_image", False))

    def _answer(
        self, name: str, image: Tensor | Sequence[Tensor], shared: tuple[Tensor, ...], rows: Tensor | None
    ) -> HeadOutput:
        if isinstance(image, Tensor) and self._takes_image(name):
            return self._run(name, self._own_features(name, *_select((image,), rows)))
        return self._run(name, _select(shared, rows))

    def _own_features(self, name: str, image: Tensor) -> tuple[Tensor, ...]:
        head: Any = self.heads[name]
        with self._autocast(image):
            maps = head.features(self.backbone, image)
        return self._laid_out(x.float() for x in maps)

    def _run(self, name: str, features: tuple[Tensor, ...]) -> HeadOutput:
        with self._autocast(features[0]):
            logits, initial = self.heads[name](features)
        return logits.float(), tuple(x.float() for x in initial)

    def _wanted(self, tasks: Sequence[str] | Mapping[str, Tensor] | None) -> dict[str, Tensor | None]:
        """Return the rows (int64 n, or None for all) of every task that is to answer any."""
        rows: Mapping[str, Tensor | None]
        rows = tasks if isinstance(tasks, Mapping) else dict.fromkeys(self.tasks if tasks is None else tasks)
        for name in rows:
            self._known(name)
        return {name: None if n is None else n.cpu() for name, n in rows.items() if n is None or len(n)}

    def _autocast(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def _known(self, name: str) -> None:
        if name not in self.tasks:
            raise TaskError(unknown("task", name, self.tasks))

    def _refuse_twice(self, name: str) -> None:
        if name in self.tasks:
            raise TaskError(f'The model has a task "{name}" already; remove its head or rename the new task.')

    def _check_backbone(self, saved: Mapping[str, str], path: str | Path) -> None:
        here = self.backbone.weights_hash()
        if saved["hash"] != here:
            raise WeightsError(
                f"The head in {path} was learnt on backbone {saved['name']} with weights {saved['hash'][:12]}, but "
                f"this is {self.backbone.name} with weights {here[:12]}. Load it into a model with that backbone."
            )


def _own_nets(heads: Iterable[nn.Module]) -> Iterator[Backbone]:
    """Go through the backbones that heads have of their own."""
    yield from (module for head in heads for module in head.modules() if isinstance(module, Backbone))


def _refuse_features(names: Sequence[str]) -> None:
    if names:
        raise TaskError(
            f'Got kept features for "{names[0]}", whose head makes its own of the images. Give it the images '
            "(strategy.cache_features=off)."
        )


def _select(features: tuple[Tensor, ...], rows: Tensor | None) -> tuple[Tensor, ...]:
    return features if rows is None else tuple(take(x, rows) for x in features)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _read_head(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise WeightsError(f"There is no head file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"Cannot read a head from {path}: {error}. Save the head again.") from error
    if metadata.get("format") not in (FILE_FORMAT, WITHOUT_HASH):
        raise WeightsError(
            f"Expected a head file of format {FILE_FORMAT!r} in {path}, but got {metadata.get('format')!r}."
        )
    said = metadata.pop("sha256", None)
    if metadata["format"] == WITHOUT_HASH and said is None:
        _log.warning("%s has no hash, as it is of an earlier version: damage to it would not be seen.", path)
    elif said != _hash_of(tensors, metadata):
        raise WeightsError(f"{path} is damaged: its content is not that of its SHA-256. Save the head again.")
    with _described_by(path):
        found = {key: json.loads(metadata[key]) for key in ("task", "head", "backbone")}
        found["image_size"] = sides(json.loads(metadata.get("image_size", "null")))
        return tensors, found | {"precision": metadata.get("precision"), "format": metadata["format"]}


@contextmanager
def _described_by(path: str | Path) -> Iterator[None]:
    """Turn what a description that makes no sense leads to into a `WeightsError`."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
        raise WeightsError(f"{path} does not describe a head: {error!r}. Save the head again.") from error


def _hash_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of a head's names, types, shapes and numbers, and of what is said of it."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for key in sorted(tensors):
        digest.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}".encode())
        digest.update(tensors[key].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _rebuild(
    saved: Mapping[str, Any],
    form: tuple[Sequence[int], int],
    head: HeadFactory | None,
    tensors: Mapping[str, Tensor],
    path: str | Path,
) -> nn.Module:
    if head is None and saved["class"] not in known_heads.BUILT_IN:
        raise WeightsError(
            unknown("kind of head", saved["class"], known_heads.BUILT_IN) + " Pass head= to load your own."
        )
    factory = head or functools.partial(known_heads.BUILT_IN[saved["class"]], **saved["config"])
    with seeded("replaced"):  # the values are replaced; this only keeps the global random state as it was
        if head is None:
            with torch.device("meta"):  # takes no memory, whatever widths a stranger's file says
                _refuse_other_shapes(factory(*form), tensors, path)
        return factory(*form)


def _refuse_other_shapes(head: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    wanted = {key: tuple(value.shape) for key, value in head.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if wanted != found:
        key = next(key for key in (*wanted, *found) if wanted.get(key) != found.get(key))
        raise WeightsError(
            f"The weights in {path} do not fit the head they are said to be of: {key} is {found.get(key)}, but "
            f"{wanted.get(key)} is expected. Save the head again."
        )
