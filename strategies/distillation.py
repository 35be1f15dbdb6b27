"""Plugins that hold a trainable network to what it answered before: LwF, dark experience replay, feature distillation.

They follow the papers, brought to dense tasks of unlike kinds. What is kept (a teacher, a buffer) is never part of the
model that is trained. All compare answers as heads give them, at stride 4. Where nothing old is trainable they add
nothing, and a step costs no more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from medusa_cl.batch import TaskBatch, collate
from medusa_cl.data.loader import DenseDataset
from medusa_cl.errors import ConfigError
from medusa_cl.models.multitask import MultiTaskModel
from medusa_cl.randomness import permutation, stream
from medusa_cl.scenarios.dense import EVERYTHING
from medusa_cl.strategies.template import DenseModule
from medusa_cl.tasks import DenseTask

__all__ = ["DenseDER", "DenseLwF", "FeatureDistillation", "distance", "teachable"]


def teachable(model: DenseModule) -> tuple[str, ...]:
    """Return the learnt tasks whose answers can still change: the backbone or their head has trainable weights."""
    if _trainable(model.backbone):
        return tuple(model.tasks)
    return tuple(name for name in model.tasks if _trainable(model.heads[name]))


def _trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _frozen_copy(module: nn.Module) -> Any:
    """Return a copy in eval mode without gradients."""
    return copy.deepcopy(module).requires_grad_(False).eval()


def distance(task: DenseTask, student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Return how far a student's answer is from a teacher's; 0 where they are equal, unlabelled pixels included.

    Classes: temperature^2 KL(teacher || student) of the two softmaxes at the temperature, in nats. Binary: the same of
    the two sigmoids of each channel. Values: the absolute difference of what the task decodes, which for normals is
    that of unit vectors. (Hinton, Vinyals, Dean 2015 for the temperature and its square, which keeps the size of the
    gradient.)

    Args:
        task: Says what the logits are.
        student: B K h w, float logits.
        teacher: The same of the teacher; without a graph.
        temperature: Above 0; higher ones let small probabilities count.

    Returns:
        A scalar: the mean over images and pixels, and over channels for all but classes.
    """
    return _DISTANCE[task.output](task, student, teacher, temperature)


def _of_classes(task: DenseTask, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    ours, theirs = ((logits / temperature).log_softmax(1) for logits in (student, teacher))
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(1).mean()


def _of_binary(task: DenseTask, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    ours, theirs = student / temperature, teacher / temperature
    ones = theirs.sigmoid() * (F.logsigmoid(theirs) - F.logsigmoid(ours))
    zeros = (-theirs).sigmoid() * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
    return temperature**2 * (ones + zeros).mean()


def _of_values(task: DenseTask, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return (task.decode(student) - task.decode(teacher)).abs().mean()


_DISTANCE: Mapping[str, Callable[[DenseTask, Tensor, Tensor, float], Tensor]] = {
    "classes": _of_classes,
    "binary": _of_binary,
    "values": _of_values,
}


class DenseLwF(SupervisedPlugin):
    """Learning without forgetting on dense tasks: old tasks' answers on the new task's images stay as they were.

    Li and Hoiem, "Learning without Forgetting", TPAMI 2017. Added to the loss is alpha times the sum over old tasks of
    the task's loss weight times `distance` to the answer of the model as it was after the last experience. Old tasks
    are answered in the same forward pass as the new one, in the mode (train or eval) that the model is in; the teacher
    is always in eval mode. So with BatchNorm in training the distance is not 0 at the first step.

    Args:
        alpha: The weight of the sum.
        temperature: See `distance`.

    Attributes:
        teacher: The model after the last experience; None before.

    Raises:
        ConfigError: alpha is negative, or the temperature is not above 0.
    """

    def __init__(self, alpha: float = 1.0, temperature: float = 2.0) -> None:
        super().__init__()
        _require(alpha >= 0, "alpha", "of at least 0", alpha)
        _require(temperature > 0, "temperature", "above 0", temperature)
        self.alpha, self.temperature = alpha, temperature
        self.teacher: MultiTaskModel | None = None
        self._names: tuple[str, ...] = ()
        self._labels: Any = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Find the tasks to be distilled: the teacher knows them, and they can still change."""
        known = self.teacher.tasks if self.teacher is not None else {}
        learning = strategy.experience.tasks
        self._names = tuple(name for name in teachable(strategy.model) if name in known and name not in learning)

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Have every task answered in the one pass there is."""
        if self._names:
            self._labels = strategy.mb_task_id
            strategy.mbatch[-1] = torch.full_like(self._labels, EVERYTHING)

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Put the labels back."""
        if self._names:
            strategy.mbatch[-1] = self._labels

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the distances of the batch to the loss."""
        if self._names:
            strategy.loss = strategy.loss + self.alpha * self.penalty(strategy)

    def penalty(self, strategy: Any) -> Tensor:
        """Return the weighted sum of distances on the current batch, a scalar."""
        assert self.teacher is not None
        with torch.no_grad():
            answers = self.teacher(strategy.mb_x, self._names)
        terms = []
        for name, (wanted, _) in answers.items():
            task, given = strategy.model.tasks[name], strategy.mb_output.entries[name].value
            terms.append(task.loss_weight * distance(task, given, wanted, self.temperature))
        return torch.stack(terms).sum()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Let the model as it is now be the teacher."""
        self.teacher = _frozen_copy(strategy.model.model)

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher's tasks and weights."""
        if self.teacher is None:
            return {}
        return {"tasks": list(self.teacher.tasks), "weights": self.teacher.state_dict()}

    def restore(self, state: Mapping[str, Any], strategy: Any, experiences: Sequence[Any]) -> None:
        """Take what `state_dict` returned for a teacher like the strategy's model, which may have newer heads too."""
        self.teacher = _frozen_copy(strategy.model.model) if state else None
        if self.teacher is not None:
            for name in self.teacher.tasks.keys() - state["tasks"]:
                self.teacher.remove_head(name)
            self.teacher.load_state_dict(state["weights"])


class FeatureDistillation(SupervisedPlugin):
    """Feature distillation: the backbone's features of the new task's images stay near those of the last experience.

    Jung et al., "Less-forgetting Learning in Deep Neural Networks", 2016 (equation 3), on every scale: added to the
    loss is alpha times the mean over scales of the mean squared difference.

    Args:
        alpha: The weight.

    Attributes:
        teacher: The backbone after the last experience, without heads; None before.

    Raises:
        ConfigError: alpha is negative.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        _require(alpha >= 0, "alpha", "of at least 0", alpha)
        self.alpha = alpha
        self.teacher: MultiTaskModel | None = None
        self._active = False
        self._maps: Sequence[Tensor] | None = None
        self._hook: Any = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """A frozen backbone, or one that has learnt nothing yet, has nothing to be held to."""
        self._active = self.teacher is not None and _trainable(strategy.model.backbone)

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Listen to the backbone: a second pass would cost, and move its batch statistics, twice."""
        self._maps = None
        if self._active:
            self._hook = strategy.model.backbone.register_forward_hook(self._hear)

    def _hear(self, module: nn.Module, inputs: Any, maps: Sequence[Tensor]) -> None:
        self._maps = maps

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Listen no more: plugins run the model on other images too."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the distance to the loss."""
        if self._active and self._maps is not None:
            strategy.loss = strategy.loss + self.alpha * self.penalty(strategy)
            self._maps = None

    def penalty(self, strategy: Any) -> Tensor:
        """Return the mean over scales of the mean squared difference on the current batch, a scalar."""
        assert self._maps is not None
        assert self.teacher is not None
        with torch.no_grad():
            wanted = self.teacher.features(strategy.mb_x)
        pairs = zip(self._maps, wanted, strict=True)
        return torch.stack([F.mse_loss(ours.float(), theirs) for ours, theirs in pairs]).mean()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Let the backbone as it is now be the teacher."""
        self.teacher = _featurizer(strategy.model.model)

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher's weights."""
        return {} if self.teacher is None else {"weights": self.teacher.state_dict()}

    def restore(self, state: Mapping[str, Any], strategy: Any, experiences: Sequence[Any]) -> None:
        """Take the weights of `state_dict` for a teacher like the strategy's backbone."""
        self.teacher = _featurizer(strategy.model.model) if state else None
        if self.teacher is not None:
            self.teacher.load_state_dict(state["weights"])


def _featurizer(model: MultiTaskModel) -> MultiTaskModel:
    """Return a frozen copy of a model's backbone, in its precision."""
    return MultiTaskModel(_frozen_copy(model.backbone), model.head, model.precision).eval()


class Remembered(NamedTuple):
    """A sample of the buffer.

    Attributes:
        draw: The number in [0, 1) by which the reservoir keeps it.
        label: The label of its experience.
        position: Its place in the experience's dataset.
        logits: What the model answered when it was stored, K h w on the CPU, by task.
    """

    draw: float
    label: int
    position: int
    logits: dict[str, Tensor]


class DenseDER(SupervisedPlugin):
    """Dark experience replay on dense logits, and DER++ where beta is above 0.

    Buzzega et al., "Dark Experience for General Continual Learning", NeurIPS 2020 (equations 4 and 6). Each step, a
    batch from the buffer is answered with its own labels; added to the loss are alpha times the squared distance to
    the logits given when it was stored, and beta times the tasks' loss on its targets (both on the same batch).

    The squared distance is the mean over a task's channels and pixels, divided by the variance of that task's stored
    logits about their means by channel: 1 is what a model costs that always answers the mean, whatever the task. It is
    summed over a sample's tasks and averaged over the batch.

    The buffer is a reservoir: each sample of all experiences has the same chance. It takes samples in when their
    experience is over, as seen without augmentation, with the logits of what was learnt (the paper: while it is being
    learnt), so that it can also follow tasks that were loaded. What it keeps and draws depends on the model's seed,
    the experience and the step alone.

    Args:
        mem_size: Samples the buffer holds.
        alpha: Weight of the distance of logits.
        beta: Weight of the loss on targets; 0 is DER.
        batch_size: Samples drawn each step; None for as many as the strategy trains on.
        half: Keep logits in half precision: half the memory, about three digits.

    Attributes:
        buffer: The samples kept.
        variance: The variance of the stored logits by task.

    Raises:
        ConfigError: A number is out of its range.
    """

    def __init__(
        self,
        mem_size: int = 200,
        alpha: float = 0.3,
        beta: float = 0.0,
        *,
        batch_size: int | None = None,
        half: bool = False,
    ) -> None:
        super().__init__()
        _require(mem_size >= 1, "mem_size", "of at least 1", mem_size)
        _require(alpha >= 0 and beta >= 0, "alpha and beta", "of at least 0", (alpha, beta))
        _require(batch_size is None or batch_size >= 1, "batch_size", "of at least 1, or null", batch_size)
        self.mem_size, self.alpha, self.beta, self.batch_size, self.half = mem_size, alpha, beta, batch_size, half
        self.buffer: list[Remembered] = []
        self.variance: dict[str, float] = {}
        self._datasets: dict[int, DenseDataset] = {}
        self._usable: list[Remembered] = []
        self._step = 0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Find the samples that can still teach something."""
        self._step, able = 0, set(teachable(strategy.model))
        old = strategy.model.tasks.keys() - strategy.experience.tasks.keys()
        self._usable = [kept for kept in self.buffer if kept.logits.keys() <= old and kept.logits.keys() & able]

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add what a batch from the buffer costs to the loss."""
        if not self._usable:
            return
        drawn = self.draw(strategy)
        images, targets, labels = collate([self._datasets[kept.label][kept.position] for kept in drawn])
        output = strategy.model(images.to(strategy.device), labels)
        strategy.loss = strategy.loss + self.alpha * self.distance(output, drawn)
        if self.beta:
            strategy.loss = strategy.loss + self.beta * strategy._criterion(output, targets.to(strategy.device))

    def draw(self, strategy: Any) -> list[Remembered]:
        """Draw the next step's samples, none twice."""
        count = min(self.batch_size or strategy.train_mb_size, len(self._usable))
        key = ("replay", strategy.model.seed, strategy.experience.name, self._step)
        self._step += 1
        return [self._usable[i] for i in permutation(len(self._usable), *key)[:count]]

    def distance(self, output: TaskBatch, drawn: Sequence[Remembered]) -> Tensor:
        """Return the scaled squared distance of an answer to what was stored, a scalar (see the class)."""
        terms = []
        for name, entry in output.entries.items():
            wanted = torch.stack([drawn[row].logits[name] for row in entry.rows.tolist()]).to(entry.value)
            squared = (entry.value - wanted).square().mean((1, 2, 3)).sum()
            terms.append(squared / (self.variance[name] * len(drawn)))
        return torch.stack(terms).sum()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Take samples of the experience in."""
        experience = strategy.experience
        label = experience.task_label
        self._datasets[label] = DenseDataset(experience.source, experience.tasks, label)
        draws = stream("reservoir", strategy.model.seed, experience.name).random(len(self._datasets[label]))
        # The largest of as many numbers: a reservoir sample, whatever the order in which they come.
        new = [Remembered(float(draw), label, position, {}) for position, draw in enumerate(draws)]
        old = [kept for kept in self.buffer if kept.label != label]
        best = sorted([*old, *new], key=lambda kept: -kept.draw)[: self.mem_size]
        self._answer(strategy, [kept for kept in best if not kept.logits])
        self.buffer = best
        self.variance = {name: self._variance(name) for name in {n: None for kept in best for n in kept.logits}}

    def _answer(self, strategy: Any, new: Sequence[Remembered]) -> None:
        """Store the model's answers with samples of the experience that is over."""
        model, names = _frozen_copy(strategy.model.model), list(strategy.experience.tasks)
        for start in range(0, len(new), strategy.train_mb_size):
            part = new[start : start + strategy.train_mb_size]
            images = collate([self._datasets[kept.label][kept.position] for kept in part])[0]
            with torch.no_grad():
                answers = model(images.to(strategy.device), names)
            for name, (logits, _) in answers.items():
                stored = logits.to("cpu", torch.float16 if self.half else torch.float32)
                for kept, value in zip(part, stored, strict=True):
                    kept.logits[name] = value.clone()

    def _variance(self, name: str) -> float:
        logits = [kept.logits[name].float() for kept in self.buffer if name in kept.logits]
        mean = torch.stack([value.mean((1, 2)) for value in logits]).mean(0)[:, None, None]
        variance = sum(float((value - mean).square().mean()) for value in logits) / len(logits)
        return max(variance, SMALLEST_VARIANCE)

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, as plain data and tensors."""
        buffer = [kept._asdict() for kept in self.buffer]
        return {"buffer": buffer, "variance": dict(self.variance), "step": self._step}

    def restore(self, state: Mapping[str, Any], strategy: Any, experiences: Sequence[Any]) -> None:
        """Remember what `state_dict` returned; the images are those of the training experiences given."""
        self.variance, self._step = dict(state["variance"]), state["step"]
        usable = {(kept.label, kept.position) for kept in self._usable}
        self.buffer = [Remembered(**kept) for kept in state["buffer"]]
        self._usable = [kept for kept in self.buffer if (kept.label, kept.position) in usable]  # not to hold both
        for experience in experiences:
            label = experience.task_label
            self._datasets[label] = DenseDataset(experience.source, experience.tasks, label)


SMALLEST_VARIANCE = 1e-6
"""A task whose stored logits hardly vary is not weighted up beyond this."""


def _require(met: bool, option: str, expected: str, got: object) -> None:
    if not met:
        raise ConfigError(f"Expected {option} {expected}, but got {got}. Set it in the plugin's options.")
