"""Streams of dense tasks: experience 0 holds the base tasks together, each later one holds one new task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from avalanche.benchmarks.scenarios import CLScenario, DatasetExperience, EagerCLStream
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.flat_data import ConstantSequence

from medusa_cl import losses
from medusa_cl.batch import collate
from medusa_cl.data.arrays import ArrayData
from medusa_cl.data.loader import Augmentation, DenseDataset
from medusa_cl.data.split import DenseData
from medusa_cl.errors import ConfigError, DataError, TaskError, unknown
from medusa_cl.randomness import permutation
from medusa_cl.tasks import DenseTask

SPLITS = ("train", "val", "test")
ORDERS = ("listed", "random", "joint")
EVERYTHING = -1
"""The label of samples that are to be answered for every task learnt so far."""


class DenseExperience(DatasetExperience):
    """Some dense tasks to be learnt (or tested) together, and their data.

    Attributes:
        tasks: The tasks by name.
        task_label: The group's label: Avalanche's metric names allow one label an experience.
        source: The split the images come from.
        augmentation: How training images vary; None in other streams.
    """

    def __init__(
        self, source: DenseData, tasks: Sequence[DenseTask], label: int, augmentation: Augmentation | None = None
    ) -> None:
        self.tasks = {task.name: task for task in tasks}
        self.task_label, self.source, self.augmentation = label, source, augmentation
        samples = DenseDataset(source, self.tasks, label)
        if not len(samples):
            raise DataError(
                f"No image of {source} has a label of {', '.join(self.tasks)}, so experience {label} is empty. "
                "Take the task out of scenario.base or scenario.stream, or check the data."
            )
        super().__init__(dataset=avalanche_dataset(samples, label), current_experience=label)

    def alone(self, name: str) -> DenseExperience:
        """Return one of its tasks as an experience of the same stream, with the same label."""
        part = DenseExperience(self.source, [self.tasks[name]], self.task_label, self.augmentation)
        part._origin_stream = self._origin_stream
        return part

    @property
    def task_labels(self) -> list[int]:
        """Avalanche's name for the labels of an experience: here always one."""
        return [self.task_label]

    @property
    def name(self) -> str:
        """The tasks' names, joined by "+"."""
        return "+".join(self.tasks)


def avalanche_dataset(samples: DenseDataset, label: int) -> AvalancheDataset:
    """Return samples as Avalanche's strategies and buffers expect them, all of one label."""
    # Buffers that balance classes read `targets`; with the experience's label there they balance tasks.
    labels = ConstantSequence(label, len(samples))
    attributes = [
        DataAttribute(labels, name="targets"),
        DataAttribute(labels, name="targets_task_labels"),
    ]
    dataset = AvalancheDataset([samples], data_attributes=attributes, collate_fn=collate)
    dataset.task_set = {label: dataset}
    return dataset


class DenseScenario(CLScenario):
    """A task-incremental stream of dense tasks, with streams train, val and test.

    Attributes:
        name: The scenario's name.
        base: Names of the tasks learnt together first.
        stream: Names of the tasks learnt one at a time after them.
        tasks: All tasks by name, in the order in which they are learnt.
        data: The splits.
        augmentation: How training images vary.
        about: What the data is, in one line; may be empty.
        label_notes: What the labels of some tasks are, where they are no measurements.
        skipped: What is wrong with the images left out, by split and image.
    """

    def __init__(
        self,
        name: str,
        tasks: Mapping[str, DenseTask],
        data: Mapping[str, DenseData],
        base: Sequence[str],
        stream: Sequence[str],
        augmentation: Augmentation,
    ) -> None:
        groups = [tuple(base), *((task,) for task in stream)]
        self.name, self.base, self.stream = name, tuple(base), tuple(stream)
        self.tasks = {task: tasks[task] for group in groups for task in group}
        self.data, self.augmentation = dict(data), augmentation
        self.about, self.label_notes = "", dict[str, str]()
        self.skipped = dict[str, Mapping[str, str]]()
        streams = []
        for split, source in data.items():
            varied = augmentation if split == "train" else None
            experiences = [
                DenseExperience(source, [tasks[t] for t in group], k, varied) for k, group in enumerate(groups)
            ]
            streams.append(EagerCLStream(split, experiences))
        super().__init__(streams)
        for stream_ in streams:
            stream_.benchmark = self

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """Task names by experience."""
        return [self.base, *((task,) for task in self.stream)]

    @property
    def content_hash(self) -> dict[str, str]:
        """The hash of the data, by split."""
        return {split: source.content_hash for split, source in self.data.items()}


def arrange(
    base: Sequence[str],
    stream: Sequence[str],
    *,
    order: str = "listed",
    held_out: str | Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[list[str], list[str]]:
    """Return base and stream as they will be learnt; what comes out comes out again if it is put in.

    Args:
        base: Names of the tasks of experience 0.
        stream: Names of the tasks of experiences 1, 2, ...
        order: "listed"; "random": the stream in an order that depends on the names and `seed` alone; "joint": no
            stream, all tasks are learnt together.
        held_out: A task (or several) that alone makes the stream, with all others as the base: leave one out.
        seed: Of the random order.

    Raises:
        ConfigError: There is no such order.
        TaskError: A task held out is in neither.
    """
    if order not in ORDERS:
        raise ConfigError(unknown("scenario.order", order, ORDERS))
    base, stream = ([names] if isinstance(names, str) else list(names) for names in (base, stream))
    if held_out:
        alone = [held_out] if isinstance(held_out, str) else list(held_out)
        every = [*base, *stream]
        for name in alone:
            if name not in every:
                raise TaskError(unknown("task to hold out", name, every))
        base, stream = [name for name in every if name not in alone], alone
    if order == "joint":
        return [*base, *stream], []
    if order == "random":
        names = sorted(stream)
        stream = [names[i] for i in permutation(len(names), "stream", seed)]
    return base, stream


def check_stream(tasks: Sequence[DenseTask], base: Sequence[str], stream: Sequence[str]) -> None:
    """Refuse names that make no stream; needs no data, so it can come before any is made or read.

    Args:
        tasks: The tasks there are.
        base: Names of the tasks of experience 0.
        stream: Names of the tasks of experiences 1, 2, ...

    Raises:
        TaskError: A name is unknown or occurs twice, or `base` is empty.
    """
    known = [task.name for task in tasks]
    order = [*base, *stream]
    if not base:
        raise TaskError("scenario.base is empty: expected at least one task to pretrain the backbone on.")
    for name in order:
        if name not in known:
            raise TaskError(unknown("task", name, known))
        if order.count(name) > 1:
            raise TaskError(f'Task "{name}" would be learnt twice. Name it once in scenario.base or scenario.stream.')


def _check_form(task: DenseTask, split: str, source: ArrayData) -> None:
    """Refuse classes where values are learnt, and values where classes are: training would fail on them, later."""
    index = next(iter(source.has(task.name).nonzero()[0]), None)
    target = None if index is None else source.target(int(index), task.name)
    if target is None:
        return
    if target.ndim == 2 and task.channels == 1:
        raise DataError(
            f'Expected {split} targets of "{task.name}" as N C H W, but got integers N H W, which are taken for '
            "classes. One value a pixel still has a channel: array[:, None]."
        )
    if target.ndim == 3 and task.loss is losses.cross_entropy:
        raise DataError(
            f'Expected {split} targets of "{task.name}" as integers N H W, a class a pixel, but got N C H W with '
            f"C = {target.shape[0]}. Take the channel out: array[:, 0].astype(int)."
        )


def dense_scenario(
    tasks: Sequence[DenseTask],
    data: Mapping[str, DenseData],
    base: Sequence[str],
    stream: Sequence[str],
    *,
    name: str = "dense",
    augmentation: Augmentation | None = None,
) -> DenseScenario:
    """Bring dense tasks one at a time.

        data = {"train": ArrayData(images, targets), "test": ArrayData(test_images, test_targets)}
        known = [tasks.depth(), tasks.normals(), tasks.edges()]
        scenario = dense_scenario(known, data, base=["depth"], stream=["normals", "edges"])
        [experience.name for experience in scenario.train_stream]  # ['depth', 'normals', 'edges']

    Args:
        tasks: The tasks, in any order; those in neither `base` nor `stream` are left out.
        data: Splits: "train" and "test", and "val" where there is one.
        base: Names of the tasks of experience 0.
        stream: Names of the tasks of experiences 1, 2, ...
        name: The scenario's name.
        augmentation: How training images vary; by default a horizontal flip.

    Returns:
        The scenario with `train_stream`, `val_stream` (where there is one) and `test_stream`.

    Raises:
        TaskError: A task is unknown, occurs twice, or is in no field of the data; or `base` is empty.
        DataError: No image has a label of some experience, or labels in memory have another form than the task's.
    """
    check_stream(tasks, base, stream)
    known = {task.name: task for task in tasks}
    for split, source in data.items():
        for task in (*base, *stream):
            if task not in source.fields:
                raise TaskError(f'Task "{task}": ' + unknown(f"field of the {split} data", task, source.fields))
            if isinstance(source, ArrayData):
                _check_form(known[task], split, source)
    return DenseScenario(name, known, data, base, stream, augmentation or Augmentation())
