"""Heads with blocks beside a frozen backbone, and heads with a net of their own."""

import copy
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medusa_cl import tasks
from medusa_cl.checkpoint import load_model, save_model
from medusa_cl.errors import ConfigError, TaskError
from medusa_cl.models import AdaptedHead, Backbone, MedusaHead, MultiTaskModel, OwnNetHead, PlainHead
from medusa_cl.models.adapters import LowRankBlock, ParallelConv
from medusa_cl.models.heads import BUILT_IN, HeadFactory

INNER = partial(MedusaHead, width=8, mix_width=8)
LORA, RESIDUAL = (partial(AdaptedHead, head=INNER, kind=kind) for kind in ("lora", "residual"))
OWN = partial(OwnNetHead, head=INNER)


def make(head: HeadFactory, *names: str, backbone: str = "test_efficientnet", frozen: bool = True) -> MultiTaskModel:
    shared = Backbone.create(backbone, pretrained=False)
    if frozen:
        shared.freeze()
    model = MultiTaskModel(shared, head)
    model.add_heads([tasks.BUILT_IN[name]() for name in names], seed=0)
    return model


def shaken(module: nn.Module) -> None:
    """Give all parameters values that hide nothing."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter)


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def image() -> Tensor:
    return torch.rand(2, 3, 50, 70, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- adapters


def merged(backbone: Backbone, head: AdaptedHead) -> Backbone:
    """Return the one net that a backbone and a head's blocks stand for, its weights worked out from theirs."""
    net = copy.deepcopy(backbone)
    for key, block in head.blocks.items():
        layer = net.net.get_submodule(key.replace("/", "."))
        if isinstance(block, ParallelConv):
            size = layer.kernel_size[0]
            same_padding = layer.padding[0] == 0 and size > 1
            # Where TensorFlow's padding is odd the kernel's centre is not the pixel that a 1x1 kernel sees.
            at = (size - layer.stride[0]) // 2 if same_padding else size // 2
            layer.weight.data[:, :, at, at] += block.conv.weight.data[:, :, 0, 0]
        else:
            up, down = block.up.weight.data, block.down.weight.data
            product = up @ down if up.ndim == 2 else torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
            layer.weight.data += product
    return net


CASES = [(LORA, name) for name in ("test_resnet", "tf_efficientnet_lite0", "test_convnext", "test_vit")]
CASES += [(RESIDUAL, name) for name in ("test_resnet", "tf_efficientnet_lite0")]


@pytest.mark.parametrize(("head", "name"), CASES)
def test_blocks_are_a_change_of_the_layers_weights(head: HeadFactory, name: str, image: Tensor) -> None:
    model = make(head, "depth", backbone=name).double()
    adapted = model.heads["depth"]
    before = model.backbone(image.double())
    shaken(adapted.blocks)
    found = adapted.features(model.backbone, image.double())
    expected = merged(model.backbone, adapted)(image.double())
    for x, y, z in zip(found, expected, before, strict=True):
        torch.testing.assert_close(x, y)
        assert not torch.allclose(x, z)


@pytest.mark.parametrize("head", [LORA, RESIDUAL])
def test_a_fresh_adapted_head_answers_the_bits_of_one_without_blocks(head: HeadFactory, image: Tensor) -> None:
    adapted, plain = make(head, "depth").eval(), make(INNER, "depth").eval()
    assert torch.equal(adapted(image)["depth"][0], plain(image)["depth"][0])
    shaken(adapted.heads["depth"].blocks)
    assert not torch.equal(adapted(image)["depth"][0], plain(image)["depth"][0])


def layer(**geometry: object) -> dict[str, object]:
    plain = {"type": "conv", "in": 3, "out": 5, "groups": 1, "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}
    return {**plain, "kernel_size": [3, 3], "same": False, **geometry}


def test_blocks_have_the_size_of_their_rank() -> None:
    sizes = {
        LowRankBlock(layer(), 2): 2 * 3 * 9 + 2 * 5,
        LowRankBlock({"type": "linear", "in": 7, "out": 5}, 2): 2 * (7 + 5),
        ParallelConv(layer()): 3 * 5,
        ParallelConv(layer(**{"in": 6, "out": 6, "groups": 6})): 6,
    }
    for block, size in sizes.items():
        assert sum(p.numel() for p in block.parameters()) == size


@pytest.mark.parametrize(("n", "stride", "padding"), [(5, 2, (1, 1)), (6, 2, (0, 1)), (6, 1, (1, 1)), (7, 4, (0, 0))])
def test_same_padding_is_tensorflows(n: int, stride: int, padding: tuple[int, int]) -> None:
    block = LowRankBlock(layer(stride=[stride, stride], padding=[0, 0], same=True), 1)
    shaken(block)
    x = torch.rand(1, 3, n, n)
    expected = block.up(block.down(nn.functional.pad(x, padding * 2)))
    assert torch.equal(block(x), expected)
    assert expected.shape[-1] == -(-n // stride)


def test_depthwise_layers_have_no_low_rank_block() -> None:
    model = make(LORA, "depth", backbone="tf_efficientnet_lite0")
    standing = set(model.heads["depth"].config["layers"])
    groups = {n: m.groups for n, m in model.backbone.net.named_modules() if isinstance(m, nn.Conv2d)}
    assert standing == {name for name, count in groups.items() if count == 1}
    assert len(standing) < len(groups)


@pytest.mark.parametrize("head", [LORA, RESIDUAL])
def test_an_adapted_task_learns_and_nothing_else_moves(head: HeadFactory, image: Tensor) -> None:
    model = make(head, "depth")
    shaken(model.heads["depth"].blocks)
    model.freeze_head("depth")
    before, predicted = bits(model), model.predict(image)["depth"]
    model.add_head(tasks.normals(), 0)
    fresh = bits(model.heads["normals"].blocks)
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):  # a low-rank pair learns its second map first
        optimizer.zero_grad()
        model(image)["normals"][0].square().mean().backward()
        optimizer.step()
    assert same(before, {key: value for key, value in bits(model).items() if key in before})
    assert torch.equal(model.predict(image)["depth"], predicted)
    learnt = bits(model.heads["normals"].blocks)
    assert not any(torch.equal(learnt[key], fresh[key]) for key in fresh)
    assert all(p.grad is None for p in model.backbone.parameters())


def test_a_head_made_on_a_trainable_backbone_has_no_blocks(image: Tensor) -> None:
    model = make(LORA, "depth", frozen=False).eval()
    assert len(model.heads["depth"].blocks) == 0
    assert not model.needs_images()
    assert torch.equal(model(model.features(image))["depth"][0], model(image)["depth"][0])
    model.freeze_backbone()
    model.add_head(tasks.normals(), 0)
    assert model.needs_images()
    assert not model.needs_images(["depth"])
    with pytest.raises(TaskError, match="cache_features=off"):
        model(model.features(image))


def test_blocks_stand_beside_the_layers_given(image: Tensor) -> None:
    layers = make(LORA, "depth").heads["depth"].config["layers"]
    some = {name: layers[name] for name in list(layers)[:2]}
    model = make(partial(LORA, layers=some), "depth")
    assert model.heads["depth"].config["layers"] == some
    assert len(model.heads["depth"].blocks) == 2
    trainable = make(partial(LORA, layers=some), "depth", frozen=False)
    assert same(bits(trainable), bits(model))


def test_blocks_see_the_rows_of_their_task(image: Tensor) -> None:
    model = make(LORA, "depth").eval()
    shaken(model.heads["depth"].blocks)
    chosen = model(image, {"depth": torch.tensor([1])})["depth"][0]
    torch.testing.assert_close(chosen, model(image)["depth"][0][1:])


def test_adapters_of_a_head_cost_that_task_only() -> None:
    model, plain = make(LORA, "depth", "normals"), make(INNER, "depth", "normals")
    blocks = sum(p.numel() for p in model.heads["depth"].blocks.parameters())
    assert model.parameters_of("depth") == plain.parameters_of("depth") + blocks
    assert [id(p) for p in model.used_parameters()] == [id(p) for p in model.parameters()]
    assert [id(p) for p in model.head_parameters()] == [id(p) for p in model.heads.parameters()]


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'kind.*"lroa".*Did you mean "lora"'):
        make(partial(AdaptedHead, head=INNER, kind="lroa"), "depth")
    with pytest.raises(ConfigError, match=r"rank.*at least 1.*got 0"):
        make(partial(AdaptedHead, head=INNER, rank=0), "depth")
    with pytest.raises(ConfigError, match=r"test_vit has no layer.*'residual'; try 'lora'"):
        make(RESIDUAL, "depth", backbone="test_vit")
    with pytest.raises(ConfigError, match=r'kind of head "MedusaHaed".*Did you mean "MedusaHead"'):
        AdaptedHead([4, 4, 4, 4], 1, head={"class": "MedusaHaed", "config": {}})


# ---------------------------------------------------------------- own nets


def test_an_own_net_starts_as_a_copy_and_answers_as_a_single_task_model(image: Tensor) -> None:
    model, alone = make(OWN, "depth"), make(INNER, "depth", frozen=False)
    own = model.heads["depth"].backbone
    assert own is not model.backbone
    assert own.weights_hash() == model.backbone.weights_hash()
    assert all(p.requires_grad for p in own.parameters())
    for one in (model.train(), alone.train()):
        optimizer = torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.1)
        one(image)["depth"][0].square().mean().backward()
        optimizer.step()
    assert own.weights_hash() == alone.backbone.weights_hash() != model.backbone.weights_hash()
    assert torch.equal(model.predict(image)["depth"], alone.predict(image)["depth"])


def test_own_nets_are_found_among_the_backbones() -> None:
    model = make(OWN, "depth", "normals")
    names = {id(p): name for name, p in model.named_parameters()}
    backbones = [names[id(p)] for p in model.backbone_parameters()]
    heads = [names[id(p)] for p in model.head_parameters()]
    assert sorted(backbones + heads) == sorted(names.values())
    prefixes = ("backbone.", "heads.depth.backbone.", "heads.normals.backbone.")
    assert [sum(n.startswith(p) for n in backbones) for p in prefixes] == [len(backbones) // 3] * 3
    assert all(n.startswith(("heads.depth.head.", "heads.normals.head.")) for n in heads)


def test_a_shared_backbone_that_no_head_uses_does_not_count_or_run(image: Tensor) -> None:
    model = make(OWN, "depth").eval()
    runs: list[int] = []
    model.backbone.register_forward_hook(lambda *_: runs.append(1))
    model(image)
    assert runs == []
    assert [id(p) for p in model.used_parameters()] == [id(p) for p in model.heads.parameters()]
    model.add_head(tasks.normals(), 0, head=INNER)
    assert [id(p) for p in model.used_parameters()] == [id(p) for p in model.parameters()]


def test_a_frozen_head_holds_its_own_net_and_an_unfrozen_one_lets_it_learn(image: Tensor) -> None:
    model = make(OWN, "depth", "normals")
    model.freeze_head("depth")
    assert model.heads["depth"].backbone.frozen
    before = bits(model.heads["depth"])
    model.train()
    answers = model(image)
    assert answers["normals"][0].requires_grad
    assert not answers["depth"][0].requires_grad
    assert same(before, bits(model.heads["depth"]))  # no statistics moved
    assert not any(m.training for m in model.heads["depth"].modules())
    model.unfreeze_head("depth")
    own, held = model.heads["depth"].backbone, bits(model.heads["depth"].backbone)
    assert all(x.requires_grad for x in own.train()(image))
    assert not same(held, bits(own))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("head", [LORA, RESIDUAL, OWN], ids=["lora", "residual", "own"])
def test_heads_are_saved_and_loaded_with_their_part(head: HeadFactory, image: Tensor, tmp_path: Path) -> None:
    model = make(head, "depth")
    shaken(model.heads["depth"])
    before = model.predict(image)["depth"]
    model.save_head("depth", tmp_path / "depth.safetensors")
    for frozen in (True, False):
        other = make(INNER, "normals", frozen=frozen)
        other.load_head(tmp_path / "depth.safetensors")
        assert torch.equal(other.predict(image)["depth"], before)


@pytest.mark.parametrize("head", [LORA, RESIDUAL, OWN], ids=["lora", "residual", "own"])
def test_models_are_saved_and_loaded_with_their_heads_parts(head: HeadFactory, image: Tensor, tmp_path: Path) -> None:
    model = make(head, "depth", frozen=False)
    model.freeze_backbone()
    model.add_head(tasks.normals(), 0)
    shaken(model.heads)
    loaded = load_model(save_model(model, tmp_path))
    assert same(bits(model), bits(loaded))
    before, after = model.predict(image), loaded.predict(image)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_loaded_and_frozen_gives_its_next_task_blocks(tmp_path: Path) -> None:
    loaded = load_model(save_model(make(LORA, "depth", frozen=False), tmp_path))
    loaded.freeze_backbone()
    loaded.add_head(tasks.normals(), 0)
    assert same(bits(loaded.heads["normals"]), bits(make(LORA, "normals").heads["normals"]))


@pytest.mark.parametrize("head", [LORA, OWN], ids=["lora", "own"])
def test_what_remakes_a_head_is_plain_data(head: HeadFactory) -> None:
    model = make(partial(head, head=partial(PlainHead, mix_width=8)), "depth")
    made = model.heads["depth"]
    config = json.loads(json.dumps(made.config))
    assert config["head"] == {"class": "PlainHead", "config": {"mix_width": 8, "late_mix": True}}
    again = BUILT_IN[type(made).__name__](model.backbone.channels, 1, **config)
    assert again.config == made.config
    again.load_state_dict(made.state_dict())
