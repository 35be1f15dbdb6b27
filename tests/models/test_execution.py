"""Layouts and compilation change how a model is run, not what it answers or what it is made of."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medusa_cl import tasks
from medusa_cl.build import layout_of
from medusa_cl.checkpoint import load_model, save_model
from medusa_cl.errors import ConfigError
from medusa_cl.models import Backbone, LinearHead, MedusaHead, MultiTaskModel
from medusa_cl.models.adapters import AdaptedHead, OwnNetHead
from medusa_cl.models.coupled import CoupledModel, PADNet
from medusa_cl.models.execution import channels_last_pays, lay_out

HEAD = partial(MedusaHead, width=8, mix_width=8)
LAST = torch.channels_last
Model = Callable[..., MultiTaskModel]


class Recorder:
    """A backend of `torch.compile` that compiles nothing and counts the graphs it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    logging.disable(logging.INFO)  # pytest would have torch write down every step of its tracing
    yield
    logging.disable(logging.NOTSET)
    torch.compiler.reset()


@pytest.fixture
def image() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def is_last(module: nn.Module) -> bool:
    """Whether the kernels that tell are channels last; a 1x1 one is both."""
    kernels = [p for p in module.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    found = {p.is_contiguous(memory_format=LAST) for p in kernels}
    assert len(found) == 1
    return found.pop()


# ---- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [False, True])
@pytest.mark.parametrize("heads", [False, True])
def test_backbone_and_heads_have_layouts_of_their_own(
    tiny_model: Model, image: Tensor, backbone: bool, heads: bool
) -> None:
    plain, model = tiny_model("depth", "normals").eval(), tiny_model("depth").eval()
    model.use_channels_last(backbone=backbone, heads=heads)
    model.add_head(tasks.normals(), seed=0)
    assert (is_last(model.backbone), is_last(model.heads)) == (backbone, heads)
    with torch.no_grad():
        for name, (logits, _) in plain(image).items():
            torch.testing.assert_close(model(image)[name][0], logits, rtol=1e-3, atol=1e-4)
    model.use_channels_last(backbone=False, heads=False)
    assert not is_last(model.backbone) and not is_last(model.heads)


def test_a_net_of_its_own_is_laid_out_as_the_backbone(tiny_model: Model) -> None:
    model = tiny_model()
    model.use_channels_last(backbone=True, heads=False)
    model.add_head(tasks.depth(), seed=0, head=partial(OwnNetHead, head=HEAD))
    head = model.heads["depth"]
    assert isinstance(head, OwnNetHead) and head.backbone is not None
    assert is_last(head.backbone) and not is_last(head.head)


def test_auto_takes_what_pays_and_true_and_false_are_obeyed() -> None:
    assert layout_of("auto", "convnext_tiny", "cuda") == layout_of(True, "convnext_tiny", "cpu")
    assert layout_of("auto", "convnext_tiny", "cpu") == channels_last_pays("convnext_tiny", "cpu")
    assert layout_of("auto", "tf_efficientnet_lite0", "cpu") == {"backbone": True, "heads": True}
    assert layout_of(False, "tf_efficientnet_lite0", "cuda") == {"backbone": False, "heads": False}
    with pytest.raises(ConfigError, match=r'trainer.channels_last "atuo".*Did you mean "auto"'):
        layout_of("atuo", "resnet18", "cpu")


# ---- compilation -----------------------------------------------------------------------------------------------------


def test_a_compiled_model_is_the_same_model(tiny_model: Model, image: Tensor, tmp_path: Path) -> None:
    """Answers, gradients, names, files, copies and freezing are as without it; later heads are compiled too."""
    plain, model, backend = tiny_model("depth", "normals"), tiny_model("depth"), Recorder()
    model.compile_parts(backend=backend)
    model.add_head(tasks.normals(), seed=0)
    gradients = []
    for each in (plain, model):
        each.freeze_backbone()
        each.freeze_head("depth")
        each.train()
        logits, initial = each(image, ["normals"])["normals"]
        torch.stack([x.square().mean() for x in (logits, *initial)]).sum().backward()
        gradients.append({name: p.grad for name, p in each.named_parameters()})
    assert backend.graphs == 2  # of the backbone and of the new head
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
        assert (gradient is None) == name.startswith(("backbone.", "heads.depth."))
    expected = plain.predict(image)
    for same in (model, copy.deepcopy(model), load_model(save_model(model, tmp_path))):
        assert same.state_dict().keys() == plain.state_dict().keys()
        for name, prediction in same.predict(image).items():
            torch.testing.assert_close(prediction, expected[name])
    assert backend.graphs == 4  # the two heads in eval mode; nothing of copies


@pytest.mark.skipif("isolate_recompiles" not in inspect.signature(torch.compile).parameters, reason="of later torch")
def test_any_number_of_heads_is_compiled(tiny_model: Model) -> None:
    """Each has its own limit of compilations: together they would be over it (8) with the fifth."""
    model, backend = tiny_model(head=LinearHead), Recorder()
    model.compile_parts(backend=backend)
    features = [torch.rand(2, c, 16 // 2**s, 16 // 2**s) for s, c in enumerate(model.backbone.channels)]
    for k in range(5):
        model.add_head(tasks.semseg(k + 2, name=f"task_{k}"), seed=0)
        for mode in (True, False):
            before = backend.graphs
            model.train(mode)(features, [f"task_{k}"])
            assert backend.graphs == before + 1


def test_blocks_beside_a_compiled_backbone_are_not_passed_by(tiny_model: Model, image: Tensor) -> None:
    found = []
    for compiled in (False, True):
        model = tiny_model("depth").eval()
        model.freeze_backbone()
        if compiled:
            model.compile_parts(backend=Recorder())
            model(image)
        model.add_head(tasks.normals(), seed=0, head=partial(AdaptedHead, head=HEAD))
        for name, weight in model.heads["normals"].named_parameters():
            if ".up." in name:
                nn.init.constant_(weight, 0.01)
        found.append({name: logits for name, (logits, _) in model(image).items()})
    for name in ("normals", "depth"):
        torch.testing.assert_close(found[1][name], found[0][name])
    without = tiny_model("normals").eval()(image)["normals"][0]
    assert not torch.allclose(found[1]["normals"], without)


def test_nets_of_heads_and_coupled_decoders_are_compiled(tiny_model: Model, image: Tensor) -> None:
    model, own, backend = tiny_model(), partial(OwnNetHead, head=LinearHead), Recorder()
    model.compile_parts(backend=backend)
    model.add_head(tasks.depth(), seed=0, head=own)
    model.eval()(image)
    assert backend.graphs == 2  # its net and its head; the shared backbone does not run
    decoder = partial(PADNet, width=8, features=8, tricks=True)
    answers = []
    for compiled in (False, True):
        coupled = CoupledModel(Backbone.create("test_efficientnet", pretrained=False), decoder)
        if compiled:
            coupled.compile_parts(backend=backend)
        coupled.add_heads([tasks.depth(), tasks.normals()], seed=0)
        with torch.no_grad():
            answers.append(coupled.eval()(image))
    assert backend.graphs > 3  # the backbone and, in one part or several, the decoder
    for name in ("depth", "normals"):
        torch.testing.assert_close(answers[1][name][0], answers[0][name][0])


def test_without_a_compiler_it_is_said_at_once(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"C\+\+ compiler.*no-such-compiler.*trainer.compile=false"):
        tiny_model().compile_parts()


def test_weights_of_five_dimensions_are_left_as_they_are() -> None:
    cubes, planes = nn.Conv3d(2, 2, 3), nn.Conv2d(2, 2, 3)
    lay_out(nn.ModuleList([cubes, planes, nn.Linear(2, 2)]), torch.channels_last)
    assert cubes.weight.is_contiguous()
    assert planes.weight.is_contiguous(memory_format=torch.channels_last) and not planes.weight.is_contiguous()
    lay_out(planes, torch.contiguous_format)
    assert planes.weight.is_contiguous()
