"""Which backbones and heads can be exported: `python benchmarks/export.py` writes results/export.md.

Random weights, images of 64 x 96. Every file is checked against eager torch as `medusa_cl.export` does it.
"""

from __future__ import annotations

import argparse
import functools
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


def attempt(model: MultiTaskModel, form: str) -> str:
    """Return "yes", or what was said."""
    write, dynamic = (export_pt2, "batch") if form == "pt2" else (export_onnx, form)
    suffix = "pt2" if form == "pt2" else "onnx"
    with tempfile.TemporaryDirectory() as folder:
        try:
            write(model, Path(folder, f"model.{suffix}"), SIZE, dynamic=dynamic)
        except MedusaError as error:
            print(f"  {form}: {error}", flush=True)
            return "refused"
    return "yes"


def rows(backbones: list[str], kinds: list[str]) -> Iterator[tuple[str, ...]]:
    """Go through all that is tried."""
    forms = ("batch", "all", "pt2")
    for name in backbones:
        yield (f"`{name}`", *(attempt(of_backbone(name), form) for form in forms))
    for kind in kinds:
        yield (f"`{kind}` on `{ONCE}`", *(attempt(of_kind(kind), form) for form in forms))


def main() -> None:
    """Try, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbones", nargs="*", default=list(BACKBONES))
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
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
    for row in rows(options.backbones, options.kinds):
        lines.append(f"| {' | '.join(row)} |")
        print(lines[-1], flush=True)
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")  # it takes long


if __name__ == "__main__":
    main()
