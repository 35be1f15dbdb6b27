"""What dense training changes in Avalanche's supervised template, and nothing else of it.

The model is a thin `MultiTaskModule` around ours, the criterion is routed by the batch, batches come from our loader,
and the optimizer is rebuilt over the trainable parameters for every experience.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from avalanche.models import MultiTaskModule
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from medusa_cl.batch import Entry, Features, TaskBatch
from medusa_cl.data.features import at_a_time, in_batches_of
from medusa_cl.data.loader import DenseDataset, DenseLoader, FeatureSource, without_images
from medusa_cl.distributed import average_gradients, each_ones, rank, shard, summed, world
from medusa_cl.errors import TaskError, TrainingError
from medusa_cl.losses import at_size
from medusa_cl.models.backbone import Backbone
from medusa_cl.models.heads import HeadFactory, MedusaHead
from medusa_cl.models.multitask import MultiTaskModel
from medusa_cl.randomness import seeded
from medusa_cl.results import TaskMatrix
from medusa_cl.scenarios.dense import EVERYTHING, DenseExperience
from medusa_cl.strategies.evaluation import OURS, TaskMatrixMetric, TrainingMetrics, dense_evaluator
from medusa_cl.strategies.finite import StepGuard, all_finite
from medusa_cl.strategies.ranks import statistics
from medusa_cl.strategies.state import restore, state_of
from medusa_cl.tasks import DenseTask

LOOK_EVERY = 10
"""Steps between two looks at a loss on a device, for each makes this process wait; one that is not finite stays so."""


class DenseModule(MultiTaskModule):
    """A `MultiTaskModel` as Avalanche drives it: task labels in, `TaskBatch` out, heads made in training only.

    Args:
        model: The model; its parameters keep their names here.
        seed: What the initialisation of new heads depends on, besides the task's name.
        batch_size: A backbone in eval mode is always run on batches of exactly this size; None runs it as it comes.

    Attributes:
        tasks_of: Names of the tasks of each label.
        rounding: The type to which features of a frozen backbone are rounded, whether they are kept or not.
    """

    def __init__(self, model: MultiTaskModel, *, seed: int = 0, batch_size: int | None = None) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)  # not a submodule: the state dict keeps the model's own keys
        self.backbone, self.heads = model.backbone, model.heads
        self.seed, self.batch_size = seed, batch_size
        self.rounding = torch.float32
        self.tasks_of: dict[int, tuple[str, ...]] = {}

    model: MultiTaskModel

    @property
    def tasks(self) -> Mapping[str, DenseTask]:
        """The tasks learnt so far."""
        return self.model.tasks

    def train(self, mode: bool = True) -> DenseModule:
        """Set the mode of what is not frozen."""
        self.training = mode
        self.model.train(mode)
        return self

    @functools.cached_property
    def criterion(self) -> DenseCriterion:
        """The loss of all tasks there are and will be, as Avalanche's strategies ask for it."""
        return DenseCriterion(self.tasks)

    def adopt(self, experience: DenseExperience) -> None:
        """Take note that an experience's tasks have their heads."""
        known = self.tasks_of.get(experience.task_label, ())
        self.tasks_of[experience.task_label] = tuple(dict.fromkeys((*known, *experience.tasks)))

    def adaptation(self, experience: DenseExperience) -> None:
        """Add a head for each task of the experience, in training; Avalanche also asks in evaluation.

        Raises:
            TaskError: In training, a task was learnt before; in evaluation, it never was.
        """
        label = experience.task_label
        if not self.training:
            if label not in self.tasks_of:
                raise TaskError(
                    f'Task "{experience.name}" was never learnt, so it has no head to evaluate. '
                    f"Learnt: {', '.join(self.tasks) or 'nothing yet'}. Evaluate only experiences trained on."
                )
            return
        for name in experience.tasks:
            if name in self.tasks:
                raise TaskError(
                    f'Task "{name}" was learnt already. To learn it anew, call remove_head("{name}") first.'
                )
        self.model.add_heads(list(experience.tasks.values()), seed=self.seed)
        self.adopt(experience)

    def forward(self, x: Tensor | Features, task_labels: Tensor | int | None = None) -> TaskBatch:
        """Answer each image for the tasks of its label.

        Args:
            x: B 3 H W float32 in [0, 1], or the features of B images.
            task_labels: int64 B, or one label for all; None, or the label EVERYTHING, answers every task learnt.

        Returns:
            Logits B K H/4 W/4 by task.
        """
        return self.answer(x, self._rows(task_labels, x.size(0)))

    def answer(self, x: Tensor | Features, rows: Mapping[str, Tensor]) -> TaskBatch:
        """Answer the tasks given, each for its rows (int64 n on the CPU) of the batch alone."""
        given = tuple(scale.float() for scale in x) if isinstance(x, Features) else x
        answers = self.model(given, rows, extract=self.features)
        return TaskBatch({task: Entry(rows[task], logits, aux) for task, (logits, aux) in answers.items()}, x.size(0))

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the features of images B 3 H W; batch by full batch where the backbone is frozen or evaluated."""
        if self.batch_size and not self.backbone.training:
            count = at_a_time(self.backbone, self.batch_size // world())
            return self._rounded(in_batches_of(self.model.features, images, count))
        return self._rounded(self.model.features(images))

    def _rounded(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not self.backbone.frozen or self.rounding == torch.float32:
            return maps
        return tuple(x.to(self.rounding).float() for x in maps)

    def _rows(self, labels: Tensor | int | None, count: int) -> dict[str, Tensor]:
        everything = torch.arange(count)
        if labels is None:
            return dict.fromkeys(self.tasks, everything)
        if isinstance(labels, int):
            return dict.fromkeys(self._tasks_of(labels), everything)
        found: dict[str, Tensor] = {}
        labels = labels.cpu()
        for label in labels.unique().tolist():
            for task in self._tasks_of(int(label)):
                mask = labels == label
                found[task] = found[task] | mask if task in found else mask
        return {task: mask.nonzero().flatten() for task, mask in found.items()}

    def _tasks_of(self, label: int) -> tuple[str, ...]:
        if label == EVERYTHING:
            return tuple(self.tasks)
        if label not in self.tasks_of:
            raise TaskError(f"Expected a label of what was learnt, {sorted(self.tasks_of)}, but got {label}.")
        return self.tasks_of[label]


def dense_model(
    backbone: str = "tf_efficientnet_lite0",
    head: HeadFactory | None = None,
    *,
    pretrained: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
) -> DenseModule:
    """Make a model for one of Avalanche's own strategies: `Naive(model=model, criterion=model.criterion, ...)`.

    Args:
        backbone: A timm name, see `Backbone.create`.
        head: Makes the heads; by default light Medusa heads of 32 channels a scale.
        pretrained: Whether the backbone takes learnt weights.
        seed: What the initialisation of heads depends on.
        batch_size: See `DenseModule`.

    Raises:
        ConfigError: There is no such backbone.
        WeightsError: Its weights are not to be had.
    """
    shared = Backbone.create(backbone, pretrained=pretrained)
    model = MultiTaskModel(shared, head or functools.partial(MedusaHead, width=32))
    return DenseModule(model, seed=seed, batch_size=batch_size)


class DenseCriterion(nn.Module):
    """The multitask loss, routed by the batch alone: sum over tasks of lambda (L(Y) + sum over scales of L(P)).

    Plugins call the criterion on other tasks' data, so it never asks which experience is running.

    Args:
        tasks: The tasks by name; a live mapping may grow later.
    """

    def __init__(self, tasks: Mapping[str, DenseTask]) -> None:
        super().__init__()
        self.tasks = tasks

    def terms(self, output: TaskBatch, target: TaskBatch) -> dict[str, Tensor]:
        """Return each task's weighted loss, a scalar: its mean over valid pixels, final plus deep supervision."""
        parts = self._parts(output, target, self._frequencies(target))
        return {task: self.tasks[task].loss_weight * _mean(sums) for task, sums in parts.items()}

    def pooled(self, output: TaskBatch, target: TaskBatch) -> dict[str, Tensor]:
        """Return each task's loss over the shares of all processes; the terms themselves where there is one process.

        Every process must call it for its share of the same batch. The values are those of the whole batch, the same
        everywhere, also for tasks that a share has no target of; the mean over processes of the gradients is its
        gradient.
        """
        if world() == 1:
            return self.terms(output, target)
        parts = self._parts(output, target, self._pooled_frequencies(target, output.device))
        none = torch.zeros((), device=output.device)
        mine = {task: sum((loss for loss, _ in sums), start=none) for task, sums in parts.items()}
        counts = {task: sums[0][1] for task, sums in parts.items()}
        rows = [torch.stack([mine.get(task, none).detach(), counts.get(task, none)]) for task in self.tasks]
        pooled = {}
        for task, (loss, count) in zip(self.tasks, summed(torch.stack(rows).double()), strict=True):
            share = world() * mine[task] if task in mine else none
            pooled[task] = (loss + (share - share.detach())) / count.clamp(min=1) * self.tasks[task].loss_weight
        return {task: term.float() for task, term in pooled.items()}

    def _parts(
        self, output: TaskBatch, target: TaskBatch, frequencies: Mapping[str, Tensor]
    ) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Return each task's (sum, count), of its answer and of those under deep supervision."""
        shared = [task for task in target.entries if task in output.entries]
        options = {task: {"frequencies": value} for task, value in frequencies.items()}
        return {
            task: _sums(self.tasks[task], output.entries[task], target.entries[task], **options.get(task, {}))
            for task in shared
        }

    def _frequencies(self, target: TaskBatch) -> dict[str, Tensor]:
        """Return what losses ask of a whole batch, by task."""
        return {task: count(target.entries[task].value) for task, count in self._counted() if task in target.entries}

    def _counted(self) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
        return [(name, task.frequencies) for name, task in self.tasks.items() if task.frequencies is not None]

    def _pooled_frequencies(self, target: TaskBatch, device: torch.device) -> dict[str, Tensor]:
        """Return the same, summed over the shares of all processes."""
        nothing, mine = torch.zeros(0, device=device), self._frequencies(target)
        parts = {name: mine[name] if name in mine else count(nothing) for name, count in self._counted()}
        if not parts:
            return {}
        whole = summed(torch.cat(list(parts.values()))).split([len(part) for part in parts.values()])
        return dict(zip(parts, whole, strict=True))

    def forward(self, output: TaskBatch, target: TaskBatch) -> Tensor:
        """Return the sum of the terms; a task without an answer or without a target adds nothing."""
        return self.sum(self.terms(output, target), output.device)

    @staticmethod
    def sum(terms: Mapping[str, Tensor], device: torch.device) -> Tensor:
        """Return the sum of terms, 0 of none."""
        return torch.stack(list(terms.values())).sum() if terms else torch.zeros((), device=device)


def _sums(task: DenseTask, output: Entry, target: Entry, **frequencies: Tensor) -> list[tuple[Tensor, Tensor]]:
    matched = output if torch.equal(output.rows, target.rows) else _matched(output, target.rows)
    size = (int(target.value.shape[-2]), int(target.value.shape[-1]))
    answers = (matched.value, *matched.aux)
    return [task.loss(at_size(logits, size), target.value, **frequencies) for logits in answers]


def _mean(sums: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    total = sums[0][0].new_zeros(())
    for loss, count in sums:
        total = total + loss / count.clamp(min=1)
    return total


def _matched(output: Entry, rows: Tensor) -> Entry:
    positions = torch.searchsorted(output.rows, rows).clamp(max=len(output.rows) - 1)
    if not torch.equal(output.rows[positions], rows):
        raise TaskError(f"Expected an answer for images {rows.tolist()}, but got some for {output.rows.tolist()}.")
    return output.pick(positions, rows)


def planned_steps(strategy: Any) -> int:
    """Return how many steps a strategy will take in the experience it is about to learn."""
    return getattr(strategy, "total_steps", 0) or len(strategy.dataloader) * strategy.train_epochs


def train_loader(strategy: Any, *, seed: int, workers: int = 0, features: FeatureSource | None = None) -> DenseLoader:
    """Make the loader of the experience a strategy is about to learn."""
    experience = strategy.experience
    return DenseLoader(
        strategy.adapted_dataset,
        strategy.train_mb_size,
        key=(seed, experience.name),
        tasks={**strategy.model.tasks, **experience.tasks},
        augmentation=experience.augmentation,
        features=features,
        train=True,
        workers=workers,
        pin_memory=strategy.device.type == "cuda",
        shard=shard(),
    )


def eval_loader(
    strategy: Any, *, workers: int = 0, features: FeatureSource | None = None, dataset: Any = None
) -> DenseLoader:
    """Make the loader of images to test on, in order, as they are: those of the experience, or of another dataset."""
    return DenseLoader(
        strategy.adapted_dataset if dataset is None else dataset,
        strategy.eval_mb_size,
        tasks=strategy.experience.tasks,
        features=features,
        workers=workers,
        pin_memory=strategy.device.type == "cuda",
        shard=shard(),
    )


def parameter_groups(model: DenseModule, lr_head: float | None, lr_backbone: float | None) -> list[dict[str, Any]]:
    """Return the trainable parameters, heads and backbones apart; a rate of None leaves the optimizer's own."""
    whole = model.model
    parts = {"heads": (whole.head_parameters(), lr_head), "backbone": (whole.backbone_parameters(), lr_backbone)}
    groups = []
    for name, (parameters, lr) in parts.items():
        trainable = [p for p in parameters if p.requires_grad]
        if trainable:
            groups.append({"params": trainable, "name": name} | ({} if lr is None else {"lr": lr}))
    return groups


def rebuild_optimizer(optimizer: Optimizer, groups: Iterable[dict[str, Any]]) -> None:
    """Give an optimizer new parameters and no memory of the old ones, in place: schedulers keep their reference.

    Stale moments would go on moving old weights whose gradients a plugin filled with zeros; stale gradients, of what is
    frozen by now, would count in what AGEM and GEM project.
    """
    optimizer.zero_grad()
    optimizer.state.clear()
    optimizer.param_groups.clear()
    for group in groups:
        optimizer.add_param_group(group)
        group.setdefault("initial_lr", optimizer.param_groups[-1]["lr"])


def optimizer_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return what an optimizer remembers by name of parameter, and the options of its groups in order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    memory = {names[id(parameter)]: dict(values) for parameter, values in optimizer.state.items()}
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return {"memory": memory, "groups": groups}


def restore_optimizer(optimizer: Optimizer, model: nn.Module, state: Mapping[str, Any]) -> None:
    """Let an optimizer with the same groups of the same parameters remember what `optimizer_state` returned."""
    known, on_device = dict(model.named_parameters()), set[int]()
    for group, options in zip(optimizer.param_groups, state["groups"], strict=True):
        group.update(options)
        if group.get("fused") or group.get("capturable"):  # their count of steps is where the parameter is
            on_device.update(map(id, group["params"]))
    for name, memory in state["memory"].items():
        parameter = known[name]
        remembered = {key: _memory_of(parameter, value, id(parameter) in on_device) for key, value in memory.items()}
        optimizer.state[parameter] = remembered


def _memory_of(parameter: nn.Parameter, value: Any, on_device: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.dim() and value.shape == parameter.shape:  # laid out as the parameter is, on which fused kernels rely
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    return value.to(parameter.device, copy=True) if on_device else value.clone()


class DenseTemplate(SupervisedTemplate):
    """Avalanche's `SupervisedTemplate` for dense tasks.

    Args:
        model: The model to train, or what `dense_model` made, of which the network alone is taken.
        optimizer: Makes the optimizer of parameters; its groups are rebuilt for each experience.
        lr_head: Learning rate of heads.
        lr_backbone: Learning rate of the backbone, where it is trainable.
        batch_size: Images a batch, in training and evaluation.
        epochs: Passes an experience, where `max_steps` does not end it sooner.
        max_steps: Steps an experience; None for all of `epochs`.
        base_steps: Steps of experience 0; None for `max_steps`.
        seed: What order, views and head initialisation depend on.
        workers: Processes that load.
        device: Where to train.
        plugins: Avalanche plugins, in the order in which they are called.
        evaluator: Metrics and loggers; by default every dense metric and no logger.
        eval_every: Epochs between two evaluations of the `eval_streams` given to `train`; -1 for none.
        on_nan: What becomes of a step whose loss or gradient is NaN or infinite: "stop" ends training, "skip" leaves
            the step out (see `finite`). On CUDA "skip" waits for the device at every step, "stop" at every tenth.

    Attributes:
        guard: The `StepGuard`; counts what was left out.
        done: Names of the experiences that have been learnt, or adopted.
        each_step: Called when a step is over, with all its plugins: `state` may be taken then.
    """

    model: DenseModule
    dataloader: Iterable[Any]

    def __init__(
        self,
        *,
        model: MultiTaskModel | DenseModule,
        optimizer: Callable[..., Optimizer] = Adam,
        lr_head: float = 2e-3,
        lr_backbone: float = 1e-3,
        batch_size: int = 8,
        epochs: int = 1,
        max_steps: int | None = None,
        base_steps: int | None = None,
        seed: int = 0,
        workers: int = 0,
        device: torch.device | str = "cpu",
        plugins: Sequence[Any] = (),
        evaluator: EvaluationPlugin | None = None,
        eval_every: int = -1,
        on_nan: str = "stop",
    ) -> None:
        model = model.model if isinstance(model, DenseModule) else model
        module = DenseModule(model, seed=seed, batch_size=batch_size)
        super().__init__(
            model=module,
            optimizer=optimizer(module.parameters(), lr=lr_head),
            criterion=DenseCriterion(model.tasks),
            train_mb_size=batch_size,
            train_epochs=epochs,
            eval_mb_size=batch_size,
            device=torch.device(device),
            plugins=list(plugins),
            evaluator=evaluator or dense_evaluator(),
            eval_every=eval_every,
        )
        self.epochs, self.max_steps, self.base_steps = epochs, max_steps, base_steps
        self.seed, self.workers, self.lr_head, self.lr_backbone = seed, workers, lr_head, lr_backbone
        self.guard = StepGuard(on_nan)
        self.mb_losses: dict[str, Tensor] = {}
        self.total_steps = 0
        self._step = self._adopted_steps = 0
        self._adopting = False
        self.done: list[str] = []
        self.each_step: Callable[[], None] = lambda: None
        self._resumed: Mapping[str, Any] | None = None
        self.model.to(self.device)

    @property
    def results(self) -> dict[str, dict[str, float]]:
        """Every metric of every task of the last evaluation."""
        found: dict[str, dict[str, float]] = self.evaluator.metrics[0].results
        return found

    @property
    def matrix(self) -> TaskMatrix:
        """The primary metric of every task after every experience that was evaluated on the test stream."""
        for metric in self.evaluator.metrics:
            if isinstance(metric, TaskMatrixMetric):
                return metric.matrix
        raise TrainingError("There is no task matrix without its metric. Make the evaluator with dense_evaluator().")

    def steps_of(self, experience: DenseExperience) -> int | None:
        """Return the step limit of an experience; None where only `epochs` ends it."""
        first = experience.task_label == 0 and self.base_steps is not None
        return self.base_steps if first else self.max_steps

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> Any:
        """Train; what plugins draw from the global random state (replay) depends on the seed and the place."""
        with seeded("plugins", self.seed, self.clock.train_exp_counter):
            return super().train(experiences, eval_streams, **kwargs)

    def adopt(self, experience: DenseExperience) -> None:
        """Go through an experience whose tasks were loaded: a training of no steps, so that plugins see it.

        What plugins make of an experience when it is over they make now (EWC its importances, replay its buffer);
        weights and statistics stay as they are.
        """
        self.model.adopt(experience)
        kept = {name: value.clone() for name, value in self.model.state_dict().items()}
        self._adopting = True
        try:
            self.train(experience, eval_streams=[])
        finally:
            self._adopting = False
        self.model.load_state_dict(kept)

    def recall(self, row: Mapping[str, float | None]) -> None:
        """Take note of what an earlier run reached after the experience just adopted, in place of an evaluation."""
        for metric in self.evaluator.metrics:
            if isinstance(metric, TaskMatrixMetric):
                metric.recall(self.model, row)

    def state(self) -> dict[str, Any]:
        """Return all that decides how training goes on: between two steps, two experiences, or before the first.

        Returns:
            Plain data and tensors, which are those in use: a later step changes them.
        """
        learning = self.experience if self.is_training else None
        return {
            "done": list(self.done),
            "learning": [] if learning is None else list(learning.tasks),
            "place": {} if learning is None else self._place(),
            "tasks_of": {label: list(names) for label, names in self.model.tasks_of.items()},
            "weights": self.model.state_dict(),
            "optimizer": optimizer_state(self.optimizer, self.model) if learning is not None else {},
            # What each process has of its own: plugins have seen its share of the batches.
            "ranks": each_ones({"plugins": state_of(self), "statistics": statistics(self.model)}),
            "guard": self.guard.state_dict(),
        }

    @property
    def resumable(self) -> bool:
        """Whether training can go on from the step just taken: batches come from a loader of ours, not a plugin's."""
        return isinstance(self.dataloader, DenseLoader)

    def _place(self) -> dict[str, Any]:
        loader: Any = self.dataloader
        epoch, batch = loader.position
        return {"epoch": epoch, "batch": batch, "step": self._step, "stopping": self._stop_training}

    def resume(self, state: Mapping[str, Any], experiences: Sequence[DenseExperience]) -> None:
        """Be where another strategy like this one was when its state was taken.

        The model must have the heads of what was learnt, with their weights. Where an experience was being learnt,
        `train` with it goes on after the last step taken.

        Args:
            state: What `state` returned.
            experiences: The stream it is trained on.
        """
        learning = state["learning"]
        self.done = list(state["done"])
        known = {label: [name for name in names if name not in learning] for label, names in state["tasks_of"].items()}
        self.model.tasks_of = {label: tuple(names) for label, names in known.items() if names}
        restore(self, state["ranks"][rank()]["plugins"], experiences)
        self.guard.load_state_dict(state["guard"])
        self._resumed, self._stream = (state if learning else None), experiences

    def _before_training_exp(self, **kwargs: Any) -> None:
        """Set the experience up; where it was begun already, put everything back to where it was after that."""
        super()._before_training_exp(**kwargs)
        state = self._resumed
        if state is None:
            return
        loader: Any = self.dataloader
        own = state["ranks"][rank()]
        self.model.load_state_dict({**state["weights"], **own["statistics"]})
        restore_optimizer(self.optimizer, self.model, state["optimizer"])
        restore(self, own["plugins"], self._stream)
        place = state["place"]
        loader.go_to(place["epoch"], place["batch"])
        self._step, self._stop_training = place["step"], place["stopping"]

    def _train_exp(self, experience: DenseExperience, eval_streams: Any = None, **kwargs: Any) -> None:
        """Go through the epochs, as Avalanche does; the first one may have been begun."""
        begun = self._resumed is not None
        first = self._resumed["place"]["epoch"] if self._resumed is not None else 0
        self._resumed = None
        for _ in range(first, self.train_epochs):
            if not begun:
                self._before_training_epoch(**kwargs)
                if self._stop_training:
                    self._stop_training = False
                    break
            begun = False
            self.training_epoch(**kwargs)
            self._after_training_epoch(**kwargs)

    @property
    def steps_done(self) -> int:
        """How many steps of the experience have been taken."""
        return self._step

    def _count(self, steps: int) -> None:
        """Number the steps of training over the whole stream, also over what was loaded."""
        for metric in self.evaluator.metrics:
            if isinstance(metric, TrainingMetrics):
                metric.step += steps

    def model_adaptation(self, model: Any = None) -> Any:
        """Add the experience's heads, unless they were loaded."""
        return self.model if self._adopting else super().model_adaptation(model)

    def _after_training_exp(self, **kwargs: Any) -> None:
        """Let what plugins draw now (buffers) depend on the seed and the experience alone."""
        self._count(self._adopted_steps)
        with seeded("buffers", self.seed, self.experience.task_label):
            super()._after_training_exp(**kwargs)
        self.done.append(self.experience.name)

    def make_train_dataloader(self, features: FeatureSource | None = None, **kwargs: Any) -> None:
        """Load by counters (see `medusa_cl.data.loader`); steps = min(max_steps, epochs x batches)."""
        loader = train_loader(self, seed=self.seed, workers=self.workers, features=features)
        possible = self.epochs * loader.batches_per_epoch
        steps = min(self.steps_of(self.experience) or possible, possible)
        self._adopted_steps = steps if self._adopting else 0
        self.total_steps = loader.max_steps = steps - self._adopted_steps
        self.train_epochs = loader.epochs or 0
        self._step, self._stop_training = 0, False
        self.dataloader = loader

    def _after_training_iteration(self, **kwargs: Any) -> None:
        """Count a step; a loader that a plugin has put in the place of ours is stopped at the limit too."""
        super()._after_training_iteration(**kwargs)
        self._step += 1
        if self._step >= self.total_steps:
            self.stop_training()
        self.each_step()

    @property
    def evaluated_together(self) -> dict[str, DenseTask]:
        """The tasks to be answered in the pass of the current experience; none where an earlier one has done so.

        All learnt tasks of the experiences under evaluation that have the same images go in one pass, with the first of
        them: the images are loaded once and their features made once. There is no training loss, and plugins see the
        batches of all these tasks in that experience. With metrics other than our own, which may look at one experience
        after the other, each has its own pass.
        """
        experience = self.experience
        if not self._only_ours:
            return dict(experience.tasks)
        alike = [other for other in self.current_eval_stream if other.source is experience.source]
        if alike[0].task_label != experience.task_label:
            return {}
        known = self.model.tasks
        return {name: task for other in alike for name, task in other.tasks.items() if name in known}

    @property
    def _only_ours(self) -> bool:
        return all(isinstance(metric, OURS) for metric in self.evaluator.metrics)

    def make_eval_dataloader(self, features: FeatureSource | None = None, **kwargs: Any) -> None:
        """Load images in order, as they are, with the targets of all tasks evaluated together."""
        loader: Any = []
        if tasks := self.evaluated_together:
            images = DenseDataset(self.experience.source, tasks, EVERYTHING)
            loader = eval_loader(self, workers=self.workers, features=features, dataset=images)
        self.dataloader = loader

    def eval_epoch(self, **kwargs: Any) -> None:
        """Answer every batch; the training loss is computed only for metrics that may ask for it."""
        if not self._only_ours:
            super().eval_epoch(**kwargs)
            return
        for batch in self.dataloader:
            self.mbatch = batch
            self._unpack_minibatch()
            self._before_eval_iteration(**kwargs)
            self._before_eval_forward(**kwargs)
            self.mb_output = self.forward()
            self._after_eval_forward(**kwargs)
            self._after_eval_iteration(**kwargs)

    def forward(self) -> TaskBatch:
        """Answer the batch; in evaluation only what can be scored: each task on the images that have its target."""
        if self.is_training:
            answers: TaskBatch = super().forward()
            return answers
        return self.model.answer(self.mb_x, {task: entry.rows for task, entry in self.mb_y.entries.items()})

    def _unpack_minibatch(self) -> None:
        """Move the batch to the device; labels stay, as rows are picked by them here."""
        x, y, labels = self.mbatch
        self.mbatch = [x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True), labels]

    def make_optimizer(self, **kwargs: Any) -> None:
        """Rebuild the optimizer over what is trainable, without any state."""
        self.optimized_param_id = dict(self.model.named_parameters())
        groups = parameter_groups(self.model, self.lr_head, self.lr_backbone)
        if not groups:
            raise TrainingError(f'Nothing is trainable for "{self.experience.name}".')
        rebuild_optimizer(self.optimizer, groups)

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Add the experience's heads, then rebuild the optimizer; every experience is a task boundary here."""
        self.model = self.model_adaptation()
        self.make_optimizer()

    def criterion(self) -> Tensor:
        """Return the loss and keep its terms by task for the loggers; in training, over the batches of all ranks."""
        find = self._criterion.pooled if self.is_training else self._criterion.terms
        terms: dict[str, Tensor] = find(self.mb_output, self.mb_y)
        self.mb_losses = {task: term for task, term in terms.items() if task in self.mb_y.entries}
        loss: Tensor = self._criterion.sum(terms, self.mb_output.device)
        return loss

    def _before_training_iteration(self, **kwargs: Any) -> None:
        """Keep what the step may change before its numbers are known to be finite."""
        self.guard.begin(self.model)
        super()._before_training_iteration(**kwargs)

    def backward(self) -> None:
        """Run the backward pass of a finite loss; gradients are then the mean over ranks, and finite.

        Raises:
            TrainingError: The loss or a gradient is NaN or infinite, and such steps are not left out.
        """
        last = self._step + 1 == self.total_steps
        due = self.guard.skips or self.device.type == "cpu" or last or self._step % LOOK_EVERY == 0
        if due and self._refuses(self.loss):
            return
        if self.loss.requires_grad or world() == 1:  # a rank whose share has no target has nothing to go back through
            super().backward()
        average_gradients(self._optimized)
        if due:
            self._refuses(*self._gradients)

    def optimizer_step(self) -> None:
        """Step, unless this one is left out; plugins may have made gradients infinite that were not.

        Raises:
            TrainingError: Too many were left out in a row.
        """
        if self.guard.skips and not self.guard.leaving_out:
            self._refuses(*self._gradients)
        if self.guard.leaving_out:
            self.guard.end(self._refused, self)
            return
        self.guard.in_a_row = 0
        super().optimizer_step()

    @property
    def _optimized(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @property
    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._optimized if parameter.grad is not None]

    def _refuses(self, *values: Tensor) -> bool:
        """Stop at numbers that are not finite, or leave the step out: on all ranks where one of them has such."""
        bad = not all_finite(values)
        if self.guard.skips and world() > 1:
            bad = bool(summed(torch.tensor(int(bad))))
        if not bad:
            return False
        self._refused = self._not_finite()
        if not self.guard.skips:
            raise TrainingError(f"{self._refused} trainer.on_nan=skip leaves such steps out.")
        self.guard.leave_out(self._optimized)
        return True

    def _check_distributed_training_compatibility(self) -> bool:
        """Ask `compose` instead, which knows each plugin: Avalanche would warn of all but a few."""
        return True

    def _not_finite(self) -> str:
        """Say what is not finite, where it is, and what to try."""
        near = "" if self.guard.skips or self.device.type == "cpu" else f", or up to {LOOK_EVERY - 1} steps before,"
        images = "" if near else self._images_of_step()
        return (
            f'{self._culprit()[0]} at step {self._step + 1}{near} of "{self.experience.name}" '
            f"(in: {self._culprit()[1]}{images}). "
            f"Try a lower trainer.lr_head (now {self.lr_head:g}) or trainer.lr_backbone (now {self.lr_backbone:g}), "
            "trainer.precision=32, or look at the targets of that task."
        )

    def _culprit(self) -> tuple[str, str]:
        """Return what is not finite, and in which task or parameter."""
        loss = float(self.loss.detach())
        if not math.isfinite(loss):
            bad = [task for task, term in self.mb_losses.items() if not torch.isfinite(term)]
            return f"The loss is {loss}", ", ".join(bad) or "a plugin"
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        bad = [names[id(p)] for p in self._optimized if p.grad is not None and not all_finite([p.grad])]
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        return f"A gradient is not finite (the loss is {loss:g})", f"{bad[0]}{more}" if bad else "another process"

    def _images_of_step(self) -> str:
        """Name the images of the batch where the loader knows them."""
        loader = self.dataloader
        if type(loader) is not DenseLoader:  # one that a plugin has put in its place has images of others, too
            return ""
        epoch, batch = loader.position
        with without_images():
            found = sorted(loader.dataset[position].index for position, _ in loader.batches(epoch)[batch - 1])
        return f"; images {', '.join(map(str, found))}"
