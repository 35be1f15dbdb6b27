"""What multitask networks cost: single-task nets, the multitask baseline, PAD-Net, MTI-Net and Medusa on like work.

python benchmarks/efficiency.py [--time WORK ...] [--rounds N] [--threads N]      (--time none counts only)

Counts need no computation (meta device), so all of them are taken; times only of the works named. Random weights,
batch 1. Writes benchmarks/results/efficiency.json and efficiency.md; exits with 1 where something is missed.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from learns import machine, table
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from medusa_cl import tasks
from medusa_cl.data import rooms
from medusa_cl.losses import at_size
from medusa_cl.models import Backbone, MedusaHead, PlainHead
from medusa_cl.models.coupled import MTINet, PADNet
from medusa_cl.randomness import generator, seeded
from medusa_cl.summary import git_commit, packages
from medusa_cl.tasks import DenseTask

RESULTS = Path(__file__).resolve().parent / "results"
Work = tuple[tuple[int, int], tuple[DenseTask, ...]]

PASCAL = (tasks.semseg(21), tasks.human_parts(), tasks.saliency(), tasks.normals(), tasks.edges())
ROOMS = (
    tasks.semseg(rooms.CLASSES),
    tasks.depth(),
    tasks.normals(),
    tasks.edges(),
    tasks.reshading(),
    tasks.regression(3, name="albedo"),
    tasks.curvature(),
    tasks.keypoints2d(),
)
WORKS: dict[str, Work] = {
    "NYUD-2": ((448, 576), (tasks.semseg(40), tasks.depth())),
    "NYUD-4": ((448, 576), (tasks.semseg(40), tasks.depth(), tasks.normals(), tasks.edges())),
    "PASCAL-5": ((512, 512), PASCAL),
    "rooms-8": ((128, 160), ROOMS),
}
BACKBONES = ("hrnet_w18_small_v2", "hrnet_w18", "resnet50", "convnext_tiny")
TIMED = ("NYUD-4", "PASCAL-5")
TIMED_BACKBONE = BACKBONES[0]
GROWTH_WORK, GROWTH = "NYUD-4", (1, 2, 4, 8, 16)
WIDTH = 32  # to which wide backbones are projected
BUDGET = 20.0  # seconds of one row of one work after which it is not repeated
AGAINST = "MTI-Net, tricks"
UNTIMED = ("PAD-Net",)

# What the public implementations cost on hrnet_w18_small_v2: millions of parameters, GFLOPs (2 x MAC).
PUBLISHED: Mapping[tuple[str, str], tuple[float, float]] = {
    ("NYUD-4", "single-task nets"): (15.75, 75.4),
    ("NYUD-4", "multitask baseline"): (4.17, 26.2),
    ("NYUD-4", "PAD-Net"): (19.52, 521),
    ("NYUD-4", "MTI-Net"): (17.96, 47.7),
    ("PASCAL-5", "single-task nets"): (19.68, 95.5),
    ("PASCAL-5", "multitask baseline"): (4.24, 28.9),
    ("PASCAL-5", "PAD-Net"): (29.31, 850),
    ("PASCAL-5", "MTI-Net"): (24.49, 60.6),
}
AGREE = 0.02


class Heads(nn.Module):
    """A head for each task, as one decoder."""

    def __init__(self, make: Callable[..., nn.Module], channels: Sequence[int], outputs: Mapping[str, int]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: make(channels, k) for name, k in outputs.items()})

    def forward(self, features: Sequence[Tensor]) -> dict[str, Any]:
        """Return each task's answer."""
        return {name: head(features) for name, head in self.heads.items()}


class Net(nn.Module):
    """A backbone and what decodes its features."""

    def __init__(self, backbone: Backbone, decoder: nn.Module) -> None:
        super().__init__()
        self.backbone, self.decoder = backbone, decoder

    def forward(self, image: Tensor) -> dict[str, Any]:
        """Return each task's answer to images B 3 H W."""
        answers: dict[str, Any] = self.decoder(self.backbone(image))
        return answers


class Apart(nn.Module):
    """Several nets, each for tasks of its own."""

    def __init__(self, nets: Sequence[Net]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, image: Tensor) -> dict[str, Any]:
        """Return each task's answer to images B 3 H W."""
        return {name: answer for net in self.nets for name, answer in net(image).items()}


def width_of(backbone: str) -> int | None:
    """Return to how many channels the scales of a backbone are projected; HRNet's are narrow as they are."""
    return None if backbone.startswith("hrnet") else WIDTH


def plain(width: int | None, tricks: bool) -> Callable[..., nn.Module]:
    """Return the factory of plain heads; with tricks a wide backbone is merged into four projected scales' channels."""
    return functools.partial(PlainHead, late_mix=tricks, mix_width=4 * width if tricks and width else None)


def medusa(width: int | None, full: bool) -> Callable[..., nn.Module]:
    """Return the factory of Medusa heads: the light form, or the full one."""
    mode, mixed = ("gated", None) if full else ("mask", 64)
    return functools.partial(MedusaHead, sfa=mode, msa=mode, mix_width=mixed, width=width)


def decoders(width: int | None) -> dict[str, Callable[..., nn.Module]]:
    """Return the rows: by name, what makes a decoder from channels and outputs."""

    def heads(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return functools.partial(Heads, make)

    return {
        "single-task nets": heads(plain(width, tricks=False)),
        "single-task nets, tricks": heads(plain(width, tricks=True)),
        "multitask baseline": heads(plain(width, tricks=False)),
        "multitask baseline, tricks": heads(plain(width, tricks=True)),
        "PAD-Net": PADNet,
        "PAD-Net, tricks": functools.partial(PADNet, tricks=True, width=width),
        "MTI-Net": MTINet,
        "MTI-Net, tricks": functools.partial(MTINet, tricks=True, width=width),
        "Medusa, light": heads(medusa(width, full=False)),
        "Medusa, full": heads(medusa(width, full=True)),
    }


MODELS = tuple(decoders(None))
INDEPENDENT = tuple(name for name in MODELS if not name.startswith(("PAD", "MTI")))


def is_apart(model: str) -> bool:
    """Whether a row has a backbone for each task."""
    return model.startswith("single-task")


def build(model: str, backbone: str, outputs: Mapping[str, int]) -> Net | Apart:
    """Put a row's network together for tasks with so many output channels."""
    groups = [{name: k} for name, k in outputs.items()] if is_apart(model) else [outputs]
    nets = []
    for group in groups:
        shared = Backbone.create(backbone, pretrained=False)
        with seeded("efficiency"):
            nets.append(Net(shared, decoders(width_of(backbone))[model](shared.channels, group)))
    return Apart(nets) if is_apart(model) else nets[0]


@functools.cache
def shapes_only(backbone: str) -> Backbone:
    """Return a backbone on the meta device: everything is counted there and nothing computed."""
    return Backbone.create(backbone, pretrained=False).to("meta")


@contextmanager
def noting(kept: dict[int, int], owned: Iterable[Tensor]) -> Iterator[None]:
    """Note the bytes of each storage that is kept for the backward pass, but of those that tensors `owned` have."""
    known = {tensor.untyped_storage()._cdata for tensor in owned}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage.nbytes()
        return x.detach()  # itself it would hold the step that made it, which holds it

    with saved_tensors_hooks(pack, lambda x: x):
        yield


def kept_for_backward(forward: Callable[[], Any], *modules: nn.Module) -> tuple[Any, dict[int, int]]:
    """Run a forward pass; return its result and the bytes of each storage that it keeps for the backward pass.

    Parameters and buffers of `modules` do not count. While the result lives, no other storage takes a number of these.
    """
    kept: dict[int, int] = {}
    with noting(kept, (t for m in modules for t in (*m.parameters(), *m.buffers()))):
        return forward(), kept


def flops(module: nn.Module, *inputs: Any) -> float:
    """Return GFLOPs (2 x MAC) of a forward pass in eval mode."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(*inputs)
    return float(counter.get_total_flops()) / 1e9


def parameters(*modules: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for module in modules for p in module.parameters())


@functools.cache
def of_backbone(backbone: str, size: tuple[int, int]) -> tuple[tuple[Tensor, ...], float, dict[int, int]]:
    """Return the features (meta) of an image, the GFLOPs to get them and what is kept for the backward pass."""
    net, image = shapes_only(backbone), torch.empty(1, 3, *size, device="meta")
    operations = flops(net, image)
    features, kept = kept_for_backward(lambda: net.train()(image), net)
    return features, operations, kept


def count(model: str, backbone: str, size: tuple[int, int], outputs: Sequence[int]) -> dict[str, float]:
    """Count a row: parameters and GFLOPs; what is independent is counted one by one and summed."""
    _, operations, _ = of_backbone(backbone, size)
    each = [count_decoder(model, backbone, size, group) for group in groups_of(model, outputs)]
    times = len(outputs) if is_apart(model) else 1
    return {
        "params": times * parameters(shapes_only(backbone)) + sum(params for params, _ in each),
        "gflops": times * operations + sum(gflops for _, gflops in each),
    }


def activations(model: str, backbone: str, size: tuple[int, int], outputs: Sequence[int]) -> int:
    """Return the bytes that a row keeps for the backward pass, without its losses."""
    _, _, shared = of_backbone(backbone, size)
    each = [kept_by_decoder(model, backbone, size, group) for group in groups_of(model, outputs)]
    return (len(outputs) if is_apart(model) else 1) * sum(shared.values()) + sum(each)


def groups_of(model: str, outputs: Sequence[int]) -> list[tuple[int, ...]]:
    """Return which outputs need to be counted together."""
    return [(k,) for k in outputs] if model in INDEPENDENT else [tuple(outputs)]


@functools.cache
def count_decoder(model: str, backbone: str, size: tuple[int, int], outputs: tuple[int, ...]) -> tuple[int, float]:
    """Return parameters and GFLOPs of what decodes the features for tasks with so many output channels."""
    features, _, _ = of_backbone(backbone, size)
    decoder = _decoder(model, backbone, outputs)
    return parameters(decoder), flops(decoder, features)


@functools.cache
def kept_by_decoder(model: str, backbone: str, size: tuple[int, int], outputs: tuple[int, ...]) -> int:
    """Return the bytes that it keeps for the backward pass, besides what the backbone keeps."""
    features, _, shared = of_backbone(backbone, size)
    decoder = _decoder(model, backbone, outputs)
    alive, kept = kept_for_backward(lambda: decoder.train()(features), decoder)
    del alive
    return sum(number for storage, number in kept.items() if storage not in shared)


def _decoder(model: str, backbone: str, outputs: Sequence[int]) -> nn.Module:
    with torch.device("meta"), seeded("efficiency"):
        return decoders(width_of(backbone))[model](shapes_only(backbone).channels, _named(outputs))


def _named(outputs: Sequence[int]) -> dict[str, int]:
    return {f"task{i}": k for i, k in enumerate(outputs)}


def counts(works: Mapping[str, Work], backbones: Sequence[str]) -> list[dict[str, Any]]:
    """Count every row of every work on every backbone; what is kept for the backward pass on the timed one."""
    rows = []
    for work, (size, needed) in works.items():
        log(f"counting {work}")
        outputs = [task.channels for task in needed]
        for backbone in backbones:
            for model in MODELS:
                row = {"work": work, "backbone": backbone, "model": model, **count(model, backbone, size, outputs)}
                if backbone == TIMED_BACKBONE:
                    row["activation_bytes"] = activations(model, backbone, size, outputs)
                rows.append(row)
    return rows


def one_more(size: tuple[int, int], backbone: str, numbers: Sequence[int]) -> dict[str, dict[int, dict[str, float]]]:
    """Return what one more task of one channel adds to a network of so many."""

    def total(model: str, number: int) -> dict[str, float]:
        return count(model, backbone, size, [1] * number)

    return {
        model: {
            t: {key: total(model, t + 1)[key] - total(model, t)[key] for key in ("params", "gflops")} for t in numbers
        }
        for model in MODELS
        if model in INDEPENDENT or model.endswith("tricks")
    }


def targets_of(needed: Sequence[DenseTask], size: tuple[int, int]) -> dict[str, Tensor]:
    """Return a target for each task that its loss takes, all of it valid."""
    draw = generator("efficiency", "targets")
    found = {}
    for task in needed:
        if task.classes:
            found[task.name] = torch.randint(len(task.classes), (1, *size), generator=draw)
        else:
            values = torch.rand(1, task.channels, *size, generator=draw)
            binary = task.kind in ("edges", "saliency")
            found[task.name] = (values > 0.8).float() if binary else values + 0.1 * (task.kind == "depth")
    normals = [name for name in found if name == "normals"]
    return found | {name: nn.functional.normalize(found[name], dim=1) for name in normals}


def loss_of(answers: Mapping[str, Any], needed: Mapping[str, DenseTask], targets: Mapping[str, Tensor]) -> Tensor:
    """Return the training loss: each task's own on its final and initial predictions at the size of the target."""
    terms = []
    for name, (logits, initial) in answers.items():
        target = targets[name]
        for x in (logits, *initial):
            loss, valid = needed[name].loss(at_size(x, (int(target.shape[-2]), int(target.shape[-1]))), target)
            terms.append(needed[name].loss_weight * loss / valid.clamp(min=1))
    return torch.stack(terms).sum()


class Timed:
    """One row of one work, ready to be run.

    Args:
        model: The row.
        backbone: The backbone's name.
        work: Size of the image and tasks.
    """

    def __init__(self, model: str, backbone: str, work: Work) -> None:
        self.size, needed = work
        self.tasks = {task.name: task for task in needed}
        self.image = torch.rand(1, 3, *self.size, generator=generator("efficiency", "image"))
        self.targets = targets_of(needed, self.size)
        outputs = {task.name: task.channels for task in needed}
        self.net = build(model, backbone, outputs)
        self.last = needed[-1].name
        self.independent = model in INDEPENDENT

    def forward(self) -> object:
        """Answer all tasks, in eval mode."""
        with torch.inference_mode():
            return self.net.eval()(self.image)

    def train(self) -> None:
        """Take the gradients of a training step of all tasks."""
        self.net.train().zero_grad()
        loss_of(self.net(self.image), self.tasks, self.targets).backward()  # type: ignore[no-untyped-call]

    def new_task(self) -> None:
        """Take the gradients of a training step that learns the last task, given the others."""
        self.net.train().zero_grad()
        self._new_task_loss().backward()  # type: ignore[no-untyped-call]

    def _new_task_loss(self) -> Tensor:
        if not self.independent:
            return loss_of(self.net(self.image), self.tasks, self.targets)
        if isinstance(self.net, Apart):
            return loss_of(self.net.nets[-1](self.image), self.tasks, self.targets)
        with torch.no_grad():
            features = self.net.backbone.eval()(self.image)
        answer = self.net.decoder.get_submodule(f"heads.{self.last}")(features)
        return loss_of({self.last: answer}, self.tasks, self.targets)

    def memory(self) -> dict[str, int]:
        """Return the bytes kept for the backward pass, losses included, of both kinds of steps."""
        self.net.train()
        everything = self._kept(lambda: loss_of(self.net(self.image), self.tasks, self.targets))
        alone = self._kept(self._new_task_loss) if self.independent else everything
        return {"train_bytes": everything, "new_task_bytes": alone}

    def _kept(self, loss: Callable[[], Tensor]) -> int:
        return sum(kept_for_backward(loss, self.net)[1].values())

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each kind of step; what is the same step is not run twice."""
        found = {"forward": _clocked(self.forward), "train": _clocked(self.train)}
        return found | {"new_task": _clocked(self.new_task) if self.independent else found["train"]}


def _clocked(step: Callable[[], object]) -> float:
    """CPU seconds: what else the machine does changes them little."""
    started = time.process_time()
    step()
    return time.process_time() - started


def timed_rows(work: Work, backbone: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Time rows, interleaved so that a machine's moods fall on all of them; the least of the rounds counts."""
    log(f"timing {', '.join(task.name for task in work[1])}")
    rows = {model: Timed(model, backbone, work) for model in MODELS if model not in UNTIMED}
    memory = {model: row.memory() for model, row in rows.items()}  # also warms up
    taken: dict[str, list[dict[str, float]]] = {model: [] for model in rows}
    for _ in range(rounds):
        for model, row in rows.items():
            if model == AGAINST or sum(sum(seconds.values()) for seconds in taken[model]) <= BUDGET:
                taken[model].append(row.seconds())
    return {
        model: {f"{kind}_ms": 1000 * min(seconds[kind] for seconds in found) for kind in found[0]}
        | memory[model]
        | {"rounds": len(found)}
        for model, found in taken.items()
    }


def failures(found: Mapping[str, Any]) -> list[str]:
    """Return what is missed, in words."""
    rows = {(r["work"], r["model"]): r for r in found["counts"] if r["backbone"] == TIMED_BACKBONE}
    missed = []
    for (work, model), (millions, operations) in PUBLISHED.items():
        row = rows.get((work, model))
        pairs = [] if row is None else [(row["params"] / 1e6, millions, "M"), (row["gflops"], operations, "GFLOPs")]
        missed += [
            f"{model} on {work}: {ours:.4g} {unit}, published {theirs:g}"
            for ours, theirs, unit in pairs
            if abs(ours / theirs - 1) > AGREE
        ]
    for model in (name for name in found["one_more"] if name in INDEPENDENT):
        if len({round(cost["gflops"], 9) for cost in found["one_more"][model].values()}) > 1:
            missed.append(f"{model}: one more task does not always cost the same")
    for work, times in found["times"].items():
        for key in ("forward_ms", "train_ms", "new_task_ms"):
            ratio = times["Medusa, light"][key] / times[AGAINST][key]
            if ratio >= 1:
                missed.append(f"Medusa, light on {work}: {key} {ratio:.2f} of that of {AGAINST}")
    return missed


def counts_table(rows: Sequence[Mapping[str, Any]], work: str) -> str:
    """Return the counts of one work in Markdown: a row a model, a column a backbone."""
    here = [row for row in rows if row["work"] == work]
    backbones = list(dict.fromkeys(row["backbone"] for row in here))
    cells = {(row["model"], row["backbone"]): row for row in here}
    return table(
        ["model", *backbones],
        ([model, *(_counted(cells[model, backbone]) for backbone in backbones)] for model in MODELS),
    )


def _counted(row: Mapping[str, float]) -> str:
    kept = f" / {row['activation_bytes'] / 2**20:.0f}" if "activation_bytes" in row else ""
    return f"{row['params'] / 1e6:.2f} / {row['gflops']:.4g}{kept}"


def growth_table(found: Mapping[str, Mapping[Any, Mapping[str, float]]]) -> str:
    """Return what one more task costs in Markdown."""
    numbers = list(next(iter(found.values())))
    return table(
        ["model", *(f"T = {t}" for t in numbers)],
        (
            [model, *(f"{cost['params'] / 1e6:.3g} / {cost['gflops']:.3g}" for cost in by_number.values())]
            for model, by_number in found.items()
        ),
    )


def times_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the times of one work in Markdown, with the ratio to MTI-Net with tricks."""
    base = rows[AGAINST]

    def cell(row: Mapping[str, Any], key: str) -> str:
        return f"{row[key]:.0f} ({row[key] / base[key]:.2f})"

    def mebibytes(row: Mapping[str, Any], key: str) -> str:
        return f"{row[key] / 2**20:.0f} ({row[key] / base[key]:.2f})"

    head = ["model", "forward, ms", "train step, ms", "MiB", "step of one new task, ms", "MiB", "rounds"]
    return table(
        head,
        (
            [model, cell(row, "forward_ms"), cell(row, "train_ms"), mebibytes(row, "train_bytes"),
             cell(row, "new_task_ms"), mebibytes(row, "new_task_bytes"), str(row["rounds"])]
            for model, row in rows.items()
        ),
    )  # fmt: skip


def page(found: Mapping[str, Any]) -> str:
    """Return the result in Markdown."""
    where, missed = found["machine"], found["failures"]
    versions = ", ".join(f"{name} {found['packages'][name]}" for name in ("torch", "timm"))
    parts = [
        "# Efficiency",
        f"Random weights, batch 1, logits at stride 4. {versions}; {where['cpu']}, {where['cores']} cores, "
        f"{found['threads']} of them used, {found['date']}.",
        "Single-task nets and the multitask baseline have plain heads. *Tricks*: scales are merged at their own sizes "
        f"(the same function); on other backbones than HRNet the scales are also projected to {WIDTH} channels first, "
        "as they are for Medusa, and plain heads merge into as many channels (not the same function, but "
        "the same means). Rows without tricks are as published, at the backbone's own widths.",
        "## Counts",
        f"Parameters in millions / GFLOPs (2 x MAC) of a forward pass / on {TIMED_BACKBONE}: MiB that the net, without "
        "its losses, keeps for the backward pass.",
    ]
    for work in dict.fromkeys(row["work"] for row in found["counts"]):
        about = found["works"][work]
        parts += [f"### {work}: {about}", counts_table(found["counts"], work)]
    parts += [
        "## One more task",
        f"What a task of one channel adds to a network of T such tasks, on {found['growth_on']}: parameters in "
        "millions / GFLOPs. Adding it to PAD-Net or MTI-Net also means to retrain the others.",
        growth_table(found["one_more"]),
    ]
    for work, rows in found["times"].items():
        parts += [
            f"## Times: {work}, {TIMED_BACKBONE}",
            "Forward pass in eval mode; training step with losses, without the optimizer's; the step that "
            "learns the last task given the others: its head on a frozen backbone, its own net (single-task), or "
            "everything again (PAD-Net, MTI-Net). MiB kept for the backward pass, losses included. In brackets the "
            f"ratio to {AGAINST}. CPU time, least of the rounds; a row that has taken {BUDGET:g} s is not repeated.",
            times_table(rows),
        ]
    parts += [found["not_timed"], "Missed: " + "; ".join(missed) + "." if missed else "Nothing is missed."]
    return "\n\n".join(part for part in parts if part) + "\n"


def log(what: str) -> None:
    """Say on stderr what is being done."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def measure(timed: Sequence[str], rounds: int, growth: Sequence[int] = GROWTH) -> dict[str, Any]:
    """Count everything, time what is named."""
    size, _ = WORKS[GROWTH_WORK]
    rows = counts(WORKS, BACKBONES)
    log("counting one more task")
    added = one_more(size, TIMED_BACKBONE, growth)
    left_out = [work for work in WORKS if work not in timed]
    return {
        "works": {work: _about(*of) for work, of in WORKS.items()},
        "counts": rows,
        "one_more": added,
        "growth_on": f"{TIMED_BACKBONE}, {size[0]}x{size[1]}",
        "times": {work: timed_rows(WORKS[work], TIMED_BACKBONE, rounds) for work in timed},
        "not_timed": f"Not timed: {', '.join([*left_out, *UNTIMED])} (within 1 % of the operations of the "
        f"same with tricks); other backbones than {TIMED_BACKBONE}.",
    }


def _about(size: tuple[int, int], needed: Sequence[DenseTask]) -> str:
    return f"{size[0]}x{size[1]}, " + ", ".join(f"{task.name} {task.channels}" for task in needed)


def main() -> int:
    """Count, time and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", nargs="*", default=list(TIMED), choices=[*WORKS, "none"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    started = time.perf_counter()
    found = measure([work for work in chosen.time if work != "none"], chosen.rounds)
    found |= {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "packages": packages(), "git": git_commit()}
    found |= {"threads": chosen.threads, "seconds": time.perf_counter() - started}
    found["failures"] = failures(found)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "efficiency.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "efficiency.md").write_text(page(found))
    print(page(found))
    return bool(found["failures"])


if __name__ == "__main__":
    raise SystemExit(main())
