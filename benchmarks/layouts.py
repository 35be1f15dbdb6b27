"""Which memory layout pays: contiguous against channels last, for backbones and for heads, measured on this machine.

python benchmarks/layouts.py [BACKBONE ...] [--rounds N]

Batch 8 at 128x160, random weights, normals. CPU seconds of one thread, rounds interleaved, the least of them. This is
what `trainer.channels_last=auto` goes by (`execution.channels_last_pays`). Writes benchmarks/results/layouts.json and
layouts.md; exits with 1 where auto is slower than the best layout by more than a tenth.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from learns import machine, table
from torch import Tensor

from medusa_cl import tasks
from medusa_cl.losses import at_size
from medusa_cl.models import Backbone, MedusaHead, MultiTaskModel
from medusa_cl.models.execution import channels_last_pays
from medusa_cl.randomness import generator
from medusa_cl.summary import git_commit, packages

RESULTS = Path(__file__).resolve().parent / "results"
BACKBONES = (
    "tf_efficientnet_lite0",
    "mobilenetv3_large_100",
    "resnet18",
    "resnet50",
    "hrnet_w18_small_v2",
    "hrnet_w18",
    "convnext_tiny",
    "vit_small_patch16_224",
)
BATCH, SIZE = 8, (128, 160)
PRECISIONS = ("32", "bf16")
LAYOUTS: Mapping[str, Mapping[str, bool]] = {
    "contiguous": {"backbone": False, "heads": False},
    "heads": {"backbone": False, "heads": True},
    "channels last": {"backbone": True, "heads": True},
}
WORKS = ("frozen forward", "train step", "head step")
ROUNDS = 3
SLOWER = 1.1

Work = Callable[[], object]


def width_of(backbone: str) -> int | None:
    """Return to how many channels the scales of a backbone are projected; HRNet's are narrow as they are."""
    return None if backbone.startswith("hrnet") else 32


def works_of(backbone: str, precision: str, layout: str) -> dict[str, Work]:
    """Return what is timed, on models of their own: one learns as a whole, the other has a frozen backbone."""
    draw = generator("layouts")
    images = torch.rand(BATCH, 3, *SIZE, generator=draw)
    target = torch.nn.functional.normalize(torch.randn(BATCH, 3, *SIZE, generator=draw), dim=1)
    frozen, learning = (model_of(backbone, precision, layout) for _ in range(2))
    frozen.freeze_backbone()
    features = frozen.features(images)
    kept = tuple(scale.contiguous() for scale in features)  # as a cache hands them out
    return {
        "frozen forward": lambda: frozen.features(images),
        "train step": stepper(learning, images, target),
        "head step": stepper(frozen, kept, target),
    }


def model_of(backbone: str, precision: str, layout: str) -> MultiTaskModel:
    """Return a model with a head for normals, in training."""
    head = functools.partial(MedusaHead, width=width_of(backbone))
    model = MultiTaskModel(Backbone.create(backbone, pretrained=False), head, precision)
    model.use_channels_last(**LAYOUTS[layout])
    model.add_head(tasks.normals(), seed=0)
    return model.train()


def stepper(model: MultiTaskModel, given: Tensor | tuple[Tensor, ...], target: Tensor) -> Work:
    """Return one step of training on always the same batch."""
    task = model.tasks["normals"]
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learnt, lr=1e-4, weight_decay=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        logits, initial = model(given)["normals"]
        found = [task.loss(at_size(x, SIZE), target) for x in (logits, *initial)]
        torch.stack([loss / count.clamp(min=1) for loss, count in found]).sum().backward()
        optimizer.step()

    return step


def measure(backbone: str, precision: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return CPU milliseconds by work and layout; the backbone's own forward has two layouts, not three."""
    made = {layout: works_of(backbone, precision, layout) for layout in LAYOUTS}
    best: dict[str, dict[str, float]] = {work: {} for work in WORKS}
    for turn in range(rounds + 1):
        for layout, works in made.items():
            for work, do in works.items():
                if needed(work, layout):
                    spent = seconds(do)
                    if turn:  # the first is for warming up
                        best[work][layout] = min(best[work].get(layout, spent), spent)
    return {work: {layout: 1000 * spent for layout, spent in row.items()} for work, row in best.items()}


def needed(work: str, layout: str) -> bool:
    """Whether a layout is not the same as another one for this work."""
    return {"frozen forward": layout != "heads", "head step": layout != "channels last"}.get(work, True)


def seconds(work: Work) -> float:
    """Return the CPU seconds of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def auto(backbone: str, work: str) -> str:
    """Return the layout that `trainer.channels_last=auto` takes on the CPU, as far as it matters to a work."""
    pays = channels_last_pays(backbone, "cpu")
    if work == "frozen forward":
        return "channels last" if pays["backbone"] else "contiguous"
    if work == "head step":
        return "heads" if pays["heads"] else "contiguous"
    return next(layout for layout, parts in LAYOUTS.items() if parts == pays)


def failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return where auto does not take the best layout, in words; in full precision, the default."""
    missed = []
    for row in rows:
        for work, by_layout in row["ms"].items():
            taken, best = auto(row["backbone"], work), min(by_layout, key=lambda layout: by_layout[layout])
            ratio = by_layout[taken] / by_layout[best]
            if row["precision"] == "32" and ratio > SLOWER:
                missed.append(f"{row['backbone']}, {work}: auto takes {taken}, {best} is {ratio:.2f}x as fast")
    return missed


def page(found: Mapping[str, Any]) -> str:
    """Return the result in Markdown."""
    where = found["machine"]
    parts = [
        "# Memory layouts",
        f"CPU milliseconds of one thread, batch {BATCH} at {SIZE[0]}x{SIZE[1]}, normals, random weights, the least of "
        f"{found['rounds']} interleaved rounds. contiguous / heads channels last / all channels last, as far as they "
        f"differ; bold is what `trainer.channels_last=auto` takes. {where['cpu']}, torch "
        f"{found['packages']['torch']}, {found['date']}.",
    ]
    for precision in dict.fromkeys(row["precision"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["precision"] == precision]
        cells = [[row["backbone"], *(cell(row["backbone"], work, row["ms"][work]) for work in WORKS)] for row in rows]
        parts += [f"## precision {precision}", table(["backbone", *WORKS], cells)]
    missed = found["failures"]
    parts.append("Missed: " + "; ".join(missed) + "." if missed else "Nothing is missed.")
    return "\n\n".join(parts) + "\n"


def cell(backbone: str, work: str, by_layout: Mapping[str, float]) -> str:
    """Return one cell of the table."""
    taken = auto(backbone, work)
    shown = {layout: f"{spent:.0f}" for layout, spent in by_layout.items()}
    return " / ".join(f"**{text}**" if layout == taken else text for layout, text in shown.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="*", metavar="BACKBONE")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for backbone in given.backbones or BACKBONES:
        for precision in PRECISIONS:
            rows.append(
                {"backbone": backbone, "precision": precision, "ms": measure(backbone, precision, given.rounds)}
            )
            print(backbone, precision, rows[-1]["ms"], flush=True)
    found: dict[str, Any] = {"rounds": given.rounds, "rows": rows, "failures": failures(rows)}
    found |= {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "git": git_commit(), "packages": packages()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "layouts.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "layouts.md").write_text(page(found))
    print(page(found))
    return bool(found["failures"])


if __name__ == "__main__":
    raise SystemExit(main())
