# ruff: noqa: D100, E402  # a notebook: its first cell says what it is, and imports stand where they are needed first
# %% [markdown]
# # Tutorial: a task of your own, learnt without forgetting
#
# A robot has learnt to tell objects apart (`semseg`) and to see how far away they are (`depth`). Now it is to learn two
# more things from the same camera: surface `normals`, and a task that nobody has defined yet: where something can be
# put down.
#
# Run this file with `python examples/tutorial.py` (a few minutes on two CPU cores; `--small` takes seconds and learns
# next to nothing), or open it as a notebook: cells begin with `# %%`.
#
# ## 1. Your data
#
# Images and targets may be arrays in memory. The stand-in for a camera is a procedural room with exact labels; put your
# own arrays in its place.

# %%
import sys
from typing import Any

import numpy as np

from medusa_cl import ArrayData
from medusa_cl.data.rooms import CLASSES, render_room

SMALL = "--small" in sys.argv
SIZE = (32, 64) if SMALL else (64, 80)


def photographs(first: int, count: int) -> ArrayData:
    """Take pictures of `count` rooms, and label them."""
    rooms = [render_room(index, SIZE) for index in range(first, first + count)]
    seen: dict[str, Any] = {name: np.stack([room[name] for room in rooms]) for name in rooms[0]}
    normals = seen["normals"].transpose(0, 3, 1, 2) / 127  # N 3 H W: x right, y down, z forward
    targets = {
        "semseg": seen["semseg"].astype(np.int64),  # N H W: a class a pixel
        "depth": seen["depth"][:, None] / 1000,  # N 1 H W: metres
        "normals": normals,
        "support": normals[:, 1:2] < -0.8,  # N 1 H W: the surface faces up
    }
    return ArrayData(seen["image"].transpose(0, 3, 1, 2), targets)


data = {"train": photographs(0, 8 if SMALL else 48), "test": photographs(10_000_000, 4 if SMALL else 16)}
print(data["train"])

# %% [markdown]
# ## 2. Your task
#
# A task is one value, a `DenseTask`: how many channels a head has, its loss, how its answer is decoded, measured and
# drawn. Many are one of those in `medusa_cl.tasks` under another name: `tasks.regression(name="humidity", unit="%")`.
# This one is written out in full.
#
# The loss returns a sum and the number of pixels in it, so that batches, processes and half-labelled images can be
# pooled. The metric is a `torchmetrics.Metric` whose `compute` returns a dictionary.

# %%
import torch
from torch import Tensor
from torchmetrics import Metric

from medusa_cl import DenseTask, tasks

IGNORED = 255.0


def support_loss(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy over labelled pixels; logits and target are B 1 H W."""
    known = target != IGNORED
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], target[known], reduction="sum")
    return loss, known.sum().float()


class SupportIoU(Metric):
    """Intersection over union of all test pixels, in percent."""

    both: Tensor
    either: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("both", "either"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count pixels; a prediction is a probability, B 1 H W."""
        known = target != IGNORED
        said, true = prediction[known] > 0.5, target[known] > 0.5
        self.both += (said & true).sum()
        self.either += (said | true).sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the score."""
        return {"iou": 100 * self.both / self.either}


support = DenseTask(
    name="support",  # also the name of its targets in the data
    kind="support",
    channels=1,
    loss=support_loss,
    decode=torch.sigmoid,
    metric=SupportIoU,
    primary="iou",
    unit="%",
    higher_is_better=True,
    ignore=IGNORED,
    draw=lambda target: np.where(np.stack([target[0] > 0.5] * 3, axis=-1), 255, 0).astype(np.uint8),  # H W 3
    output="binary",
)

# %% [markdown]
# ## 3. Your scenario
#
# Two tasks are learnt together first (the base), the others one at a time (the stream).

# %%
from medusa_cl import dense_scenario

known = [tasks.semseg(CLASSES), tasks.depth(), tasks.normals(), support]
scenario = dense_scenario(known, data, base=["semseg", "depth"], stream=["normals", "support"])

# %% [markdown]
# ## 4. Learn it
#
# `Medusa` is an Avalanche strategy. It trains the backbone on the base, freezes it, and gives each new task a head of
# its own. After each experience everything learnt so far is tested: one row of the task matrix.

# %%
from medusa_cl import Medusa, TaskMatrix, dense_model
from medusa_cl.scenarios.dense import DenseScenario

STEPS: dict[str, Any] = {"base_steps": 4, "max_steps": 2} if SMALL else {"base_steps": 40, "max_steps": 20}
BACKBONE = "test_efficientnet" if SMALL else "tf_efficientnet_lite0"


def learn(stream: DenseScenario, **options: Any) -> Medusa:
    """Bring one experience after the other."""
    model = dense_model(BACKBONE, pretrained=not SMALL)
    strategy = Medusa(model=model, batch_size=8, epochs=1000, **STEPS, **options)
    for k, experience in enumerate(stream.train_stream):
        strategy.train(experience)
        strategy.eval(stream.test_stream[: k + 1])
    return strategy


def cell(value: float | None, form: str = ".2f") -> str:
    """Write a number, no zero with a minus; what is undefined has none."""
    return "-" if value is None else format(value, form.replace(".", "z.", 1))


def show(title: str, matrix: TaskMatrix) -> None:
    """Print a row for each experience, and what became of each task since it was learnt."""
    rows = {name: [matrix.R(k, task) for task in matrix.tasks] for k, name in enumerate(matrix.after)}
    rows["forgotten, %"] = [matrix.forgetting_percent(task) for task in matrix.tasks]
    print(f"\n{title:<22}", *(f"{task:>9}" for task in matrix.tasks))
    for name, row in rows.items():
        print(f"{name:<22}", *(f"{cell(value):>9}" for value in row))


medusa = learn(scenario)
show("Medusa", medusa.matrix)
print(f"mean forgetting: {medusa.matrix.mean_forgetting():g}")

# %% [markdown]
# Forgetting is not small here, it is zero: nothing that the old tasks are answered with has changed.
#
# ## 5. Compose it
#
# The same strategy without its freeze is fine-tuning. Avalanche's plugins compose with it: here elastic weight
# consolidation, and a memory of old images.

# %%
from avalanche.training.plugins import EWCPlugin, ReplayPlugin

free = {"freeze": "none", "freeze_old_heads": False}
finetune = learn(scenario, **free)
show("fine-tuning", finetune.matrix)

protected = learn(scenario, **free, plugins=[EWCPlugin(ewc_lambda=1.0), ReplayPlugin(mem_size=40)])
show("fine-tuning, protected", protected.matrix)

# %% [markdown]
# ## 6. Read the matrix
#
# `forgetting` is in the unit of the task's metric and positive where the task became worse, whatever the direction of
# the metric. Zero forgetting is cheap if nothing new is learnt, so look at what was learnt beside it: `transfer`
# compares each new task with a net of its own, trained end to end on that task alone, in as many steps as the base.

# %%
from medusa_cl.results import transfer

alone = {task: learn(dense_scenario(known, data, base=[task], stream=[]), **free) for task in scenario.stream}
own = {task: strategy.matrix.final(task) for task, strategy in alone.items()}


def gains(matrix: TaskMatrix) -> dict[str, float | None]:
    """Return how much better each new task was learnt than by its own net, in percent."""
    return {task: transfer(matrix.just_learnt(task), own[task], matrix.higher_is_better[task]) for task in own}


print(f"\n{'':<22} {'forgetting, %':>14}", *(f"{f'{task}, % better':>18}" for task in own))
for title, strategy in (("Medusa", medusa), ("fine-tuning", finetune), ("fine-tuning, protected", protected)):
    matrix = strategy.matrix
    line = [f"{cell(gain, '+.1f'):>18}" for gain in gains(matrix).values()]
    print(f"{title:<22} {cell(matrix.mean_forgetting_percent(), '.1f'):>14}", *line)

# %% [markdown]
# ## 7. Keep it, and use it
#
# A model is two files, nothing pickled. A task of your own is code, so it is given again when the model is read.
# `Predictor` takes a picture of any size and gives back arrays; `load_model` gives back the network, to go on with.

# %%
from medusa_cl import Predictor, load_model, save_model

network = medusa.model.model  # a plain torch module: a backbone and four heads
folder = save_model(network, "tutorial_model")

predictor = Predictor(folder, size=max(SIZE), own_tasks={"support": support})  # seen as large as in training
photograph = render_room(20_000_000, (120, 160))["image"].astype(np.uint8)  # H W 3
answers = predictor(photograph)
for task, answer in answers.items():
    print(f"{task}: {answer.dtype} {answer.shape}")
print(f"room to put something down: {100 * (answers['support'] > 0.5).mean():.0f} % of the picture")

again = load_model(folder, tasks={"support": support})
assert all(torch.equal(value, again.state_dict()[key]) for key, value in network.state_dict().items())
