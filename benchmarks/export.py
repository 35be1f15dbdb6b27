"""Which backbones and heads can be exported: `python benchmarks/export.py` writes results/export.md.

Random weights, images of 64 x 96. Every file is checked against eager torch as `medusa_cl.export` does it.
"""

from __future__ import annotations

import argparse
import functools
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import timm
import torch

from medusa_cl import tasks
from medusa_cl.errors import MedusaError
from medusa_cl.export import export_onnx, export_pt2
from medusa_cl.models import AdaptedHead, Backbone, MedusaHead, MultiTaskModel, OwnNetHead, PlainHead
from medusa_cl.models.coupled import CoupledModel, MTINet, PADNet

RESULTS = Path(__file__).parent / "results" / "export.md"
SIZE = (64, 96)
BACKBONES = (
    "tf_efficientnet_lite0", "resnet50", "mobilenetv3_large_100", "convnext_atto", "hrnet_w18_small_v2",
    "vit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224",
)  # fmt: skip
KINDS = ("padnet", "mtinet", "adapters", "single_task")
ONCE = "test_efficientnet"  # on which kinds of heads are tried
FORMS = ("batch", "all", "pt2")
LIMIT = 120  # seconds of CPU for each


def of_backbone(name: str) -> MultiTaskModel:
    """Return a model with one narrow Medusa head."""
    model = MultiTaskModel(Backbone.create(name, pretrained=False), functools.partial(MedusaHead, width=8, mix_width=8))
    model.add_head(tasks.depth(), seed=0)
    return settled(model)


def of_kind(kind: str) -> MultiTaskModel:
    """Return a model with a decoder, or with heads of a kind, that brings along more than heads."""
    backbone, both = Backbone.create(ONCE, pretrained=False), [tasks.semseg(5), tasks.depth()]
    coupled = {"padnet": functools.partial(PADNet, features=16), "mtinet": MTINet}
    own = {"adapters": AdaptedHead, "single_task": OwnNetHead}
    if kind in own:
        backbone.freeze()
        head = functools.partial(own[kind], head=functools.partial(PlainHead, mix_width=8))
        model = MultiTaskModel(backbone, head)
    else:
        model = CoupledModel(backbone, coupled[kind])
    model.add_heads(both, seed=0)
    return settled(model)


def settled(model: MultiTaskModel) -> MultiTaskModel:
    """Give BatchNorm the statistics of random images, so that answers are no constants."""
    with torch.no_grad():
        model.train()(torch.rand(4, 3, *SIZE, generator=torch.Generator().manual_seed(0)))
    return model.eval()


def attempt(name: str, form: str) -> None:
    """Print "yes", or "refused" and why."""
    write, dynamic = (export_pt2, "batch") if form == "pt2" else (export_onnx, form)
    model = of_kind(name) if name in KINDS else of_backbone(name)
    with tempfile.TemporaryDirectory() as folder:
        try:
            write(model, Path(folder, f"model.{'pt2' if form == 'pt2' else 'onnx'}"), SIZE, dynamic=dynamic)
        except MedusaError as error:
            print(f"{error}\nrefused")
            return
    print("yes")


def tried(name: str, form: str) -> str:
    """Return what became of an attempt, in a process of its own with so much time."""
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_CPU, (LIMIT, LIMIT))
    command = [sys.executable, __file__, "--one", name, form]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, preexec_fn=limit)
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"not in {LIMIT // 60} CPU minutes"
    done.check_returncode()
    *why, verdict = done.stdout.strip().splitlines()
    print("\n".join(why), end="\n" if why else "", flush=True)
    return verdict


def rows(names: list[str]) -> Iterator[tuple[str, ...]]:
    """Go through all that is tried."""
    for name in names:
        label = f"`{name}` on `{ONCE}`" if name in KINDS else f"`{name}`"
        yield (label, *(tried(name, form) for form in FORMS))


def main() -> None:
    """Try, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", nargs="*", default=[*BACKBONES, *KINDS])
    parser.add_argument("--one", nargs=2, help="a network and a form, in this process")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.one:
        attempt(*options.one)
        return
    versions = (
        f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}, onnxruntime {onnxruntime.__version__}"
    )
    lines = [
        f"Made by benchmarks/export.py with {versions}.",
        f"Random weights, images of {SIZE[0]} x {SIZE[1]}; every answer was compared.",
        "",
        "| network | ONNX, `dynamic=batch` | ONNX, `dynamic=all` | .pt2, `dynamic=batch` |",
        "|---|---|---|---|",
    ]
    for row in rows(options.networks):
        lines.append(f"| {' | '.join(row)} |")
        print(lines[-1], flush=True)
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")  # it takes long


if __name__ == "__main__":
    main()
