from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medusa_cl import kept, tasks
from medusa_cl.checkpoint import DESCRIPTION, WEIGHTS, load_model, save_model
from medusa_cl.errors import TaskError, WeightsError
from medusa_cl.models import (
    AdaptedHead,
    Backbone,
    ControlHead,
    LinearHead,
    MedusaHead,
    MultiTaskModel,
    OwnNetHead,
    PlainHead,
)
from medusa_cl.models.coupled import CoupledModel, MTINet, PADNet

NAMED = tasks.semseg(["wall", "floor", "lamp"], name="things")


@pytest.fixture
def image() -> Tensor:
    return torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(tiny_model: Callable[..., MultiTaskModel], image: Tensor) -> MultiTaskModel:
    made = tiny_model(NAMED, "depth", weights_seed=3)
    made.add_head(tasks.edges(tolerance=0.005), seed=1, head=partial(PlainHead, mix_width=8))
    made.add_head(tasks.normals(), seed=2, head=partial(ControlHead, width=8, mix_width=8, refine_blocks=2))
    made.train()(image)  # moves the statistics of BatchNorm away from their first values
    return made.eval()


@pytest.fixture
def saved(model: MultiTaskModel, tmp_path: Path) -> Path:
    return save_model(model, tmp_path / "deep" / "model")


def rewrite(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / DESCRIPTION
    description = json.loads(path.read_text())
    change(description)
    description["sha256"] = kept.digest({key: value for key, value in description.items() if key != "sha256"})
    path.write_text(json.dumps(description))


def test_a_loaded_model_predicts_the_same_bits(model: MultiTaskModel, saved: Path, image: Tensor) -> None:
    again = load_model(saved)
    assert list(again.tasks) == ["things", "depth", "edges", "normals"]
    assert not again.training
    ours, theirs = model.predict(image), again.predict(image)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    state = model.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert again.backbone.weights_hash() == model.backbone.weights_hash()


def test_tasks_and_kinds_of_heads_come_back(model: MultiTaskModel, saved: Path) -> None:
    again = load_model(saved)
    assert {name: task.describe() for name, task in again.tasks.items()} == {
        name: task.describe() for name, task in model.tasks.items()
    }
    assert again.tasks["things"].classes == NAMED.classes
    assert [type(head) for head in again.heads.values()] == [MedusaHead, MedusaHead, PlainHead, ControlHead]


def test_further_heads_are_made_like_the_last_or_as_asked(saved: Path) -> None:
    again = load_model(saved)
    again.add_head(tasks.saliency(), seed=0)
    assert type(again.heads["saliency"]) is ControlHead
    other = load_model(saved, head=partial(PlainHead, mix_width=8))
    other.add_head(tasks.saliency(), seed=0)
    assert type(other.heads["saliency"]) is PlainHead


def test_the_global_random_state_is_left_alone(saved: Path) -> None:
    before = torch.get_rng_state()
    load_model(saved)
    assert torch.equal(before, torch.get_rng_state())


def test_only_the_two_files_are_left(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [DESCRIPTION, WEIGHTS]


def test_saving_again_replaces_the_model(model: MultiTaskModel, saved: Path) -> None:
    model.remove_head("normals")
    save_model(model, saved)
    assert "normals" not in load_model(saved).tasks


def test_size_of_images_and_origins_of_heads_are_kept(model: MultiTaskModel, tmp_path: Path) -> None:
    model.image_size, model.origins = (48, 64), {"depth": {"licence": "MIT"}, "gone": {"licence": "MIT"}, "edges": {}}
    again = load_model(save_model(model, tmp_path / "model"))
    assert (again.image_size, again.origins) == ((48, 64), {"depth": {"licence": "MIT"}})
    again.remove_head("depth")
    save_model(again, tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [DESCRIPTION, WEIGHTS]
    rewrite(tmp_path / "model", lambda said: said.update(image_size=[48, "x"]))
    with pytest.raises(WeightsError, match="no height and width"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "medusa-cl heads 1", "heads": {}, "sha256": "x"}'])
def test_damaged_origins_are_refused(saved: Path, content: str) -> None:
    (saved / "heads.json").write_text(content)
    with pytest.raises(WeightsError, match=r"heads\.json is damaged, or was edited.*put it back"):
        load_model(saved)


def test_precision_is_kept(tiny_model: Callable[..., MultiTaskModel], tmp_path: Path) -> None:
    assert load_model(save_model(tiny_model("depth", precision="bf16"), tmp_path)).precision == "bf16"


def test_a_task_of_ones_own_is_passed(tiny_model: Callable[..., MultiTaskModel], tmp_path: Path, image: Tensor) -> None:
    import dataclasses

    own = dataclasses.replace(tasks.depth(), name="disparity", kind="disparity")
    model = tiny_model(own)
    save_model(model, tmp_path)
    with pytest.raises(TaskError, match=r'"disparity".*DenseTask itself'):
        load_model(tmp_path)
    again = load_model(tmp_path, tasks={"disparity": own})
    assert torch.equal(again.predict(image)["disparity"], model.predict(image)["disparity"])


def test_a_changed_built_in_task_is_passed_too(tiny_model: Callable[..., MultiTaskModel], tmp_path: Path) -> None:
    import dataclasses

    own = dataclasses.replace(tasks.depth(), unit="cm")
    model = tiny_model(own)
    save_model(model, tmp_path)
    model.save_head("depth", tmp_path / "head.safetensors")
    model.remove_head("depth")
    for load in (lambda: load_model(tmp_path), lambda: model.load_head(tmp_path / "head.safetensors")):
        with pytest.raises(TaskError, match=r'"depth" is no built-in.*DenseTask itself'):
            load()
    assert load_model(tmp_path, tasks={"depth": own}).tasks["depth"].unit == "cm"
    assert model.load_head(tmp_path / "head.safetensors", task=own) is own


@pytest.mark.parametrize("name", [DESCRIPTION, WEIGHTS])
@pytest.mark.parametrize("damage", ["absent", "empty", "cut", "noise"])
def test_damage_is_found_and_the_file_named(saved: Path, name: str, damage: str) -> None:
    path = saved / name
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "noise": b"\xff\xfe\x00" * 50}.get(damage, b""))
    if damage == "absent":
        path.unlink()
    with pytest.raises(WeightsError) as caught:
        load_model(saved)
    assert str(saved) in str(caught.value)
    assert name in str(caught.value)


def test_an_empty_directory_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"Expected a model"):
        load_model(tmp_path)
    with pytest.raises(WeightsError, match=r"Expected a model"):
        load_model(tmp_path / "absent")


def test_another_format_is_refused(saved: Path) -> None:
    rewrite(saved, lambda d: d.update(format="medusa-cl model 9"))
    with pytest.raises(WeightsError, match=r"model\.json.*medusa-cl model 9"):
        load_model(saved)


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"format": "medusa-cl model 1"}'])
def test_json_of_something_else_is_refused(saved: Path, content: str) -> None:
    (saved / DESCRIPTION).write_text(content)
    with pytest.raises(WeightsError, match=r"model\.json"):
        load_model(saved)


def test_an_unknown_kind_of_head_is_named_with_its_file(saved: Path) -> None:
    rewrite(saved, lambda d: d["heads"]["depth"].update({"class": "MedusaHed"}))
    with pytest.raises(WeightsError, match=r'"MedusaHed".*Did you mean "MedusaHead"\?') as caught:
        load_model(saved)
    assert str(saved) in str(caught.value)


def test_weights_of_another_model_are_refused(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS)
    key = next(key for key in tensors if key.startswith("heads.depth") and key.endswith("weight"))
    for changed in ({k: v for k, v in tensors.items() if k != key}, tensors | {key: torch.zeros(1, 2, 3)}):
        save_file(changed, saved / WEIGHTS)
        with pytest.raises(WeightsError, match=r"model\.safetensors"):
            load_model(saved)


class OwnHead(nn.Module):
    def __init__(self, channels: Any, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels[0], out_channels, 1)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.conv(features[0]), ()


def test_a_head_of_ones_own_is_refused_with_its_name(tiny_model: Callable[..., MultiTaskModel], tmp_path: Path) -> None:
    save_model(tiny_model("depth", head=OwnHead), tmp_path)
    with pytest.raises(WeightsError, match=r"OwnHead"):
        load_model(tmp_path)


def test_a_model_without_heads_needs_to_be_told_what_heads_are_like(
    tiny_model: Callable[..., MultiTaskModel], tmp_path: Path
) -> None:
    save_model(tiny_model(), tmp_path)
    with pytest.raises(WeightsError, match=r"Pass head="):
        load_model(tmp_path)
    assert list(load_model(tmp_path, head=PlainHead).tasks) == []


def scrambled(model: MultiTaskModel) -> MultiTaskModel:
    """The model with weights and statistics that no initialisation gives."""
    draw = torch.Generator().manual_seed(5)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand(value.shape, generator=draw) * 0.05)
    return model.eval()


def assert_the_same(again: MultiTaskModel, model: MultiTaskModel, image: Tensor) -> None:
    assert type(again) is type(model)
    assert list(again.tasks) == list(model.tasks)
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    ours, theirs = model(image), again(image)
    assert all(torch.equal(ours[name][0], theirs[name][0]) for name in model.tasks)


def coupled(tiny_model: Callable[..., MultiTaskModel], decoder: Callable[..., nn.Module]) -> CoupledModel:
    model = CoupledModel(tiny_model(weights_seed=3).backbone, decoder)
    model.add_heads([NAMED, tasks.depth(), tasks.normals()], seed=1)
    scrambled(model)
    return model


@pytest.mark.parametrize(
    "decoder",
    [partial(PADNet, features=8, width=4), partial(MTINet, tricks=True, width=4), partial(MTINet, width=4)],
    ids=["PADNet", "MTINet", "MTINet as published"],
)
def test_a_coupled_model_comes_back(
    tiny_model: Callable[..., MultiTaskModel], decoder: Any, image: Tensor, tmp_path: Path
) -> None:
    model = coupled(tiny_model, decoder)
    again = load_model(save_model(model, tmp_path))
    assert_the_same(again, model, image)
    assert type(again.heads["decoder"]) is decoder.func
    assert again.heads["decoder"].config == model.heads["decoder"].config
    assert again.parameters_of("depth") == model.parameters_of("depth")
    assert not again.training
    with pytest.raises(TaskError, match="retrain all tasks"):
        again.add_heads([tasks.edges()], seed=0)


class OwnDecoder(PADNet):
    pass


def test_a_decoder_of_ones_own_is_passed(
    tiny_model: Callable[..., MultiTaskModel], image: Tensor, tmp_path: Path
) -> None:
    own = partial(OwnDecoder, features=8, width=4)
    model = coupled(tiny_model, own)
    save_model(model, tmp_path)
    with pytest.raises(WeightsError, match=r'"OwnDecoder".*MTINet, PADNet.*Pass head='):
        load_model(tmp_path)
    assert_the_same(load_model(tmp_path, head=own), model, image)


def test_a_coupled_model_without_tasks_needs_to_be_told_its_decoder(
    tiny_model: Callable[..., MultiTaskModel], image: Tensor, tmp_path: Path
) -> None:
    save_model(CoupledModel(tiny_model().backbone, MTINet), tmp_path)
    with pytest.raises(WeightsError, match=r"no decoder yet.*Pass head="):
        load_model(tmp_path)
    again = load_model(tmp_path, head=partial(MTINet, width=4))
    again.add_heads([tasks.depth()], seed=0)
    assert again(image)["depth"][0].shape[1] == 1


@pytest.mark.parametrize("change", [lambda d: d.update(decoder=3), lambda d: d["decoder"].pop("config")])
def test_a_damaged_description_of_a_decoder_is_named(
    tiny_model: Callable[..., MultiTaskModel], change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    save_model(coupled(tiny_model, partial(MTINet, width=4)), tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(WeightsError, match=r"model\.json is damaged"):
        load_model(tmp_path)


def test_heads_that_bring_parts_of_the_network_come_back(
    tiny_model: Callable[..., MultiTaskModel], image: Tensor, tmp_path: Path
) -> None:
    inner = partial(MedusaHead, width=8, mix_width=8)
    model = tiny_model("depth", weights_seed=3)
    model.freeze_backbone()
    model.add_head(tasks.normals(), seed=1, head=partial(AdaptedHead, head=inner, kind="lora", rank=2))
    model.add_head(tasks.edges(), seed=1, head=partial(AdaptedHead, head=PlainHead, kind="residual"))
    model.add_head(NAMED, seed=1, head=partial(OwnNetHead, head=inner))
    model.add_head(tasks.reshading(), seed=1, head=LinearHead)
    again = load_model(save_model(scrambled(model), tmp_path))
    assert_the_same(again, model, image)
    kinds = [MedusaHead, AdaptedHead, AdaptedHead, OwnNetHead, LinearHead]
    assert [type(head) for head in again.heads.values()] == kinds
    assert again.needs_images(["normals"]) and again.needs_images(["things"]) and not again.needs_images(["depth"])


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_other_kinds_of_backbones_come_back(name: str, image: Tensor, tmp_path: Path) -> None:
    backbone = Backbone.create(name, pretrained=False, weights_seed=4)
    model = MultiTaskModel(backbone, partial(PlainHead, mix_width=8))
    model.add_heads([tasks.depth(), tasks.normals()], seed=1)
    again = load_model(save_model(scrambled(model), tmp_path))
    assert_the_same(again, model, image)
    assert again.backbone.weights_hash() == backbone.weights_hash()
    assert again.backbone.channels == backbone.channels
