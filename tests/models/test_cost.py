"""What the model costs, counted: FLOPs are twice the multiply-adds of convolutions, batch 1, eval, 448x576."""

import contextlib
import itertools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medusa_cl import tasks
from medusa_cl.models import Backbone, MedusaHead, MultiTaskModel, PlainHead

NYUD = {"semseg": 40, "depth": 1, "normals": 3, "edges": 1}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    # Shapes are all that is counted, so nothing is computed.
    return Backbone.create("hrnet_w18_small_v2", pretrained=False).eval().to("meta")


def flops(module: nn.Module, *inputs: object) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops()


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_backbone_costs_what_is_published_for_it(backbone: Backbone) -> None:
    assert flops(backbone, torch.empty(1, 3, 448, 576, device="meta")) / 1e9 == pytest.approx(16.40, abs=0.01)


def test_nyud_with_four_light_heads_is_cheaper_than_the_plain_multitask_baseline(backbone: Backbone) -> None:
    image = torch.empty(1, 3, 448, 576, device="meta")
    features = backbone(image)
    heads = [MedusaHead(backbone.channels, k).eval().to("meta") for k in NYUD.values()]
    total = flops(backbone, image) + sum(flops(head, features) for head in heads)
    assert total <= 24e9
    assert parameters(backbone) + sum(map(parameters, heads)) <= 8.2e6


def test_one_more_task_costs_the_same_however_many_there_are(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Autocast does not know the meta device; in full precision it does nothing anyway.
    monkeypatch.setattr(MultiTaskModel, "_autocast", lambda *_: contextlib.nullcontext())
    model, image = MultiTaskModel(backbone, MedusaHead).eval(), torch.empty(1, 3, 448, 576, device="meta")
    sizes, operations = [parameters(model)], {}
    for number in range(1, 21):
        model.add_head(tasks.semseg(40, name=f"task_{number}"), seed=0)
        sizes.append(parameters(model))
        if number in (1, 2, 19, 20):  # counting takes a second
            operations[number] = flops(model, image)
    (size,) = {after - before for before, after in itertools.pairwise(sizes)}
    assert size <= 1.1e6
    assert operations[2] - operations[1] == operations[20] - operations[19] <= 2e9
    assert operations[20] - operations[1] == 19 * (operations[2] - operations[1])


def test_late_mix_saves_most_of_a_plain_head(backbone: Backbone) -> None:
    features = backbone(torch.empty(1, 3, 448, 576, device="meta"))
    late, plain = (PlainHead(backbone.channels, 1, late_mix=late).eval().to("meta") for late in (True, False))
    assert flops(plain, features) / flops(late, features) > 6
