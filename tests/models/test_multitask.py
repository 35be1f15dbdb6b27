import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medusa_cl import tasks
from medusa_cl.errors import ConfigError, TaskError, WeightsError
from medusa_cl.models import Backbone, ControlHead, MedusaHead, MultiTaskModel, PlainHead
from medusa_cl.models.multitask import _hash_of, describe_head, sides

HEAD = partial(MedusaHead, width=8, mix_width=8)


class FourthWall(nn.Module):
    """A head of the user's own, with nothing but the contract."""

    def __init__(self, channels: object, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels[0], out_channels, 1)  # type: ignore[index]

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.conv(features[0]), ()


def make(*names: str, seed: int = 0, weights_seed: int = 0, precision: str = "32") -> MultiTaskModel:
    backbone = Backbone.create("test_resnet", pretrained=False, weights_seed=weights_seed)
    model = MultiTaskModel(backbone, HEAD, precision=precision)
    for name in names:
        model.add_head(tasks.BUILT_IN[name](), seed)
    return model


@pytest.fixture
def image() -> Tensor:
    return torch.rand(4, 3, 48, 64, generator=torch.Generator().manual_seed(0))


def same(x: nn.Module, y: nn.Module) -> bool:
    mine, yours = x.state_dict(), y.state_dict()
    return mine.keys() == yours.keys() and all(torch.equal(mine[key], yours[key]) for key in mine)


def test_all_heads_answer_at_stride_4_of_the_padded_image(image: Tensor) -> None:
    model = make("semseg", "depth")
    answers = model(image)
    assert list(answers) == ["semseg", "depth"]
    assert answers["semseg"][0].shape == (4, 40, 16, 16)
    assert answers["depth"][0].shape == (4, 1, 16, 16)
    assert [len(initial) for _, initial in answers.values()] == [4, 4]


def test_only_the_heads_asked_for_run(image: Tensor) -> None:
    model = make("semseg", "depth", "normals").eval()
    ran: list[str] = []
    for name, head in model.heads.items():
        head.register_forward_hook(lambda *_, name=name: ran.append(name))
    assert list(model(image, ["normals"])) == ran == ["normals"]


def test_rows_choose_each_heads_images(image: Tensor) -> None:
    model = make("depth", "normals", "edges").eval()
    everything = model(image)
    rows = {"depth": torch.tensor([2, 0]), "normals": torch.arange(4), "edges": torch.tensor([], dtype=torch.int64)}
    some = model(image, rows)
    assert list(some) == ["depth", "normals"]
    torch.testing.assert_close(some["depth"][0], everything["depth"][0][[2, 0]])
    assert torch.equal(some["normals"][0], everything["normals"][0])


def test_features_stand_in_for_their_images(image: Tensor) -> None:
    model = make("depth").eval()
    assert torch.equal(model(model.features(image))["depth"][0], model(image)["depth"][0])


def test_an_unknown_task_comes_with_the_nearest(image: Tensor) -> None:
    model = make("depth")
    with pytest.raises(TaskError, match=r'"deph".*Did you mean "depth"'):
        model(image, ["deph"])
    for verb in (model.remove_head, model.freeze_head, model.parameters_of):
        with pytest.raises(TaskError):
            verb("normals")


def test_a_task_is_not_added_twice() -> None:
    with pytest.raises(TaskError, match=r'"depth" already'):
        make("depth", "depth")


def test_a_head_is_the_same_bits_whatever_came_before() -> None:
    torch.manual_seed(0)
    first = make("depth", "normals")
    before = torch.get_rng_state()
    second = make("normals", "edges", "depth")
    assert torch.equal(before, torch.get_rng_state())
    assert same(first.heads["depth"], second.heads["depth"])
    assert same(first.heads["normals"], second.heads["normals"])
    assert not same(make("depth", seed=1).heads["depth"], first.heads["depth"])
    assert not same(make("edges").heads["edges"], first.heads["depth"])  # as large, but another name


def test_a_head_may_come_from_another_factory() -> None:
    model = make()
    model.add_head(tasks.depth(), 0, head=PlainHead)
    assert isinstance(model.heads["depth"], PlainHead)


def test_frozen_parts_stay_the_same_bits_while_another_task_learns(image: Tensor) -> None:
    model = make("semseg", "depth")
    model.freeze_backbone()
    model.freeze_head("semseg")
    model.freeze_head("depth")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    predictions = model.predict(image)
    model.add_head(tasks.normals(), 0)
    model.train()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        answers = model(image)
        sum(logits.square().mean() for logits, _ in answers.values()).backward()  # type: ignore[union-attr]
        optimiser.step()
    assert answers["semseg"][1] == ()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    after = model.predict(image)
    assert all(torch.equal(after[name], predictions[name]) for name in predictions)
    assert model.frozen_heads == {"semseg", "depth"}
    assert {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad} == {"normals"}


def test_prediction_is_in_the_tasks_own_form_at_the_images_size() -> None:
    model = make("semseg", "normals", "edges").train()
    model.freeze_head("edges")
    predicted = model.predict(torch.rand(2, 3, 50, 70))
    assert predicted["semseg"].shape == (2, 50, 70)
    assert predicted["semseg"].dtype == torch.int64
    torch.testing.assert_close(predicted["normals"].norm(dim=1), torch.ones(2, 50, 70))
    assert 0 <= predicted["edges"].min() <= predicted["edges"].max() <= 1
    assert model.heads["normals"].training  # modes are as before
    assert not model.heads["edges"].training
    assert list(model.predict(torch.rand(1, 3, 32, 32), ["edges"])) == ["edges"]


def test_a_head_removed_and_loaded_back_predicts_the_same(image: Tensor, tmp_path: Path) -> None:
    model = make("semseg", "depth")
    model(image)  # moves BatchNorm's statistics
    before = model.predict(image)
    model.save_head("depth", tmp_path / "heads" / "depth.safetensors")
    model.remove_head("depth")
    assert list(model.predict(image)) == ["semseg"]
    task = model.load_head(tmp_path / "heads" / "depth.safetensors")
    assert task.name == "depth"
    after = model.predict(image)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [p.name for p in (tmp_path / "heads").iterdir()] == ["depth.safetensors"]


def test_head_file_tells_what_it_is(tmp_path: Path) -> None:
    model = make("depth")
    model.save_head("depth", tmp_path / "depth.safetensors")
    with safe_open(tmp_path / "depth.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["task"])["name"] == "depth"
    assert json.loads(metadata["head"])["class"] == "MedusaHead"
    assert json.loads(metadata["head"])["config"]["width"] == 8
    assert json.loads(metadata["backbone"]) == {"name": "test_resnet", "hash": model.backbone.weights_hash()}


@pytest.mark.parametrize("factory", [ControlHead, PlainHead, partial(MedusaHead, sfa="gated", msa="scale_softmax")])
def test_every_kind_of_head_is_loaded_as_what_it_was(factory: type[nn.Module], tmp_path: Path, image: Tensor) -> None:
    model = make()
    model.add_head(tasks.normals(), 0, head=factory)
    model.save_head("normals", tmp_path / "head.safetensors")
    other = make()
    other.load_head(tmp_path / "head.safetensors")
    assert torch.equal(model.predict(image)["normals"], other.predict(image)["normals"])


def test_a_head_of_another_backbone_is_refused(tmp_path: Path) -> None:
    model, other = make("depth"), make(weights_seed=1)
    model.save_head("depth", tmp_path / "depth.safetensors")
    hashes = [m.backbone.weights_hash()[:12] for m in (model, other)]
    with pytest.raises(
        WeightsError, match=rf"test_resnet with weights {hashes[0]}.*test_resnet with weights {hashes[1]}"
    ):
        other.load_head(tmp_path / "depth.safetensors")


def test_ones_own_head_is_loaded_through_its_factory(tmp_path: Path, image: Tensor) -> None:
    model = make()
    model.add_head(tasks.depth(), 0, head=FourthWall)
    before = model.predict(image)["depth"]
    model.save_head("depth", tmp_path / "own.safetensors")
    model.remove_head("depth")
    with pytest.raises(WeightsError, match=r'kind of head "FourthWall".*Pass head='):
        model.load_head(tmp_path / "own.safetensors")
    model.load_head(tmp_path / "own.safetensors", head=FourthWall)
    assert torch.equal(before, model.predict(image)["depth"])


def test_unfit_head_files_are_refused(tmp_path: Path) -> None:
    model = make("depth")
    path = tmp_path / "depth.safetensors"
    model.save_head("depth", path)
    with pytest.raises(TaskError, match=r"already"):
        model.load_head(path)
    with pytest.raises(TaskError, match=r"1 channels.*got 3"):
        model.load_head(path, task=tasks.normals())
    with pytest.raises(WeightsError, match=r"no head file"):
        model.load_head(tmp_path / "absent.safetensors")
    path.write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match=r"Cannot read"):
        model.load_head(path)


@pytest.mark.parametrize("config", [{"width": 10**7}, {"mix_width": 10**7}, {"refine_blocks": 2}])
def test_a_file_cannot_ask_for_more_memory_than_it_has_weights(config: dict[str, int], tmp_path: Path) -> None:
    """A head 10 million wide would take terabytes, were it made before it is refused."""
    model = make("depth")
    own = {"width": 8, "mix_width": 8, "refine_blocks": 1}
    model.add_head(tasks.normals(), 0, head=partial(ControlHead, **own))
    path = tmp_path / "head.safetensors"
    model.save_head("normals", path)
    model.remove_head("normals")
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "sha256"}
    metadata["head"] = json.dumps({"class": "ControlHead", "config": own | config})
    save_file(tensors, path, metadata | {"sha256": _hash_of(tensors, metadata)})
    with pytest.raises(WeightsError, match=r"do not fit the head they are said to be of: .* is expected"):
        model.load_head(path)


def test_the_size_of_the_training_images_goes_with_a_head(tmp_path: Path) -> None:
    model, other = make("depth"), make()
    model.image_size = (48, 64)
    model.save_head("depth", tmp_path / "depth.safetensors")
    assert describe_head(tmp_path / "depth.safetensors").image_size == (48, 64)
    other.load_head(tmp_path / "depth.safetensors")
    assert other.image_size == (48, 64)
    with pytest.raises(ValueError, match="no height and width"):
        sides([48, "64"])


@pytest.mark.parametrize("name", ["depth\x1b[2J", "de\npth", "depth\u202e"])
def test_a_tasks_name_is_printable(name: str) -> None:
    with pytest.raises(TaskError, match="printable characters"):
        tasks.depth(name=name)


def test_a_loaded_head_may_take_another_name(tmp_path: Path) -> None:
    model = make("depth")
    model.save_head("depth", tmp_path / "depth.safetensors")
    model.load_head(tmp_path / "depth.safetensors", task=tasks.depth(name="depth_again"))
    assert same(model.heads["depth"], model.heads["depth_again"])


def test_a_task_costs_its_head() -> None:
    model = make("depth")
    before = sum(p.numel() for p in model.parameters())
    model.add_head(tasks.normals(), 0)
    assert model.parameters_of("normals") == sum(p.numel() for p in model.parameters()) - before


def test_a_head_step_in_bf16_is_near_one_in_float32(image: Tensor) -> None:
    """From frozen features to gradients, on the CPU: finite, of float32, and a few percent away."""
    found = {}
    for precision in ("32", "bf16"):
        model = make("normals", precision=precision).train()
        model.freeze_backbone()
        features = model.features(image)
        logits, initial = model(features)["normals"]
        torch.stack([x.square().mean() for x in (logits, *initial)]).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.head_parameters() if p.grad is not None])
        found[precision] = (*features, logits.detach(), gradient)
    assert not torch.equal(found["bf16"][-1], found["32"][-1])
    for half, full in zip(found["bf16"], found["32"], strict=True):
        assert half.dtype == torch.float32 and bool(half.isfinite().all())
        assert float((half - full).norm() / full.norm()) < 0.1


def test_bf16_answers_in_float32(image: Tensor) -> None:
    model, full = make("depth", precision="bf16").eval(), make("depth").eval()
    assert all(x.dtype == torch.float32 for x in model.features(image))
    rounded, exact = model(image)["depth"][0], full(image)["depth"][0]
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.05)
    with pytest.raises(ConfigError, match=r'"bf61".*Did you mean "bf16"'):
        make(precision="bf61")


class Seer(nn.Module):
    """A head of the user's own that looks at the images themselves."""

    takes_image = True

    def __init__(self, channels: object, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels

    def features(self, backbone: Backbone, image: Tensor) -> tuple[Tensor, ...]:
        return (nn.functional.avg_pool2d(image, 4),)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        return features[0].sum(1, keepdim=True).expand(-1, self.out_channels, -1, -1), ()


def runs_of(module: nn.Module) -> list[int]:
    sizes: list[int] = []
    module.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    return sizes


def test_a_head_may_look_at_the_images_of_its_rows(image: Tensor) -> None:
    model = make("depth").eval()
    model.add_head(tasks.normals(), 0, head=Seer)
    answers = model(image, {"normals": torch.tensor([3, 1]), "depth": torch.tensor([0])})
    pooled = image.double().reshape(4, 3, 12, 4, 16, 4).mean((3, 5)).sum(1)[[3, 1]]
    torch.testing.assert_close(answers["normals"][0].double(), pooled[:, None].expand(-1, 3, -1, -1))
    torch.testing.assert_close(answers["depth"][0], model(image[:1], ["depth"])["depth"][0])


def test_the_backbone_runs_only_for_heads_that_share_it(image: Tensor) -> None:
    model = make("depth").eval()
    model.add_head(tasks.normals(), 0, head=Seer)
    runs = runs_of(model.backbone)
    model(image, ["normals"])
    assert runs == []
    model(image, {"normals": torch.arange(4), "depth": torch.tensor([], dtype=torch.int64)})
    assert runs == []
    model(image)
    assert runs == [4]


def test_features_are_extracted_as_told(image: Tensor) -> None:
    model = make("depth").eval()
    doubled = model(image, extract=lambda x: tuple(2 * f for f in model.features(x)))["depth"][0]
    assert torch.equal(doubled, model([2 * f for f in model.features(image)])["depth"][0])
    assert not torch.equal(doubled, model(image)["depth"][0])


def test_kept_features_cannot_serve_a_head_that_needs_images(image: Tensor) -> None:
    model = make("depth").eval()
    model.add_head(tasks.normals(), 0, head=Seer)
    assert [model.needs_images(names) for names in (None, ["depth"], ["normals"], [])] == [True, False, True, False]
    features = model.features(image)
    assert list(model(features, ["depth"])) == ["depth"]
    with pytest.raises(TaskError, match=r'features for "normals".*cache_features=off'):
        model(features)
    with pytest.raises(TaskError, match=r'"nromals".*Did you mean "normals"'):
        model.needs_images(["nromals"])


def test_heads_added_at_once_are_those_added_in_turn() -> None:
    model, other = make(), make("depth", "normals", seed=3)
    model.add_heads([tasks.depth(), tasks.normals()], 3)
    assert list(model.tasks) == ["depth", "normals"]
    assert same(model.heads, other.heads)
    with pytest.raises(TaskError, match=r"already"):
        model.add_heads([tasks.edges(), tasks.depth()], 3)


def test_an_unfrozen_head_learns_again(image: Tensor) -> None:
    model = make("depth")
    model.freeze_head("depth")
    model.unfreeze_head("depth")
    assert model.train().heads["depth"].training
    assert model.frozen_heads == set()
    model(image)["depth"][0].mean().backward()
    assert all(p.grad is not None for n, p in model.heads.named_parameters() if ".initial." not in n)
    with pytest.raises(TaskError):
        model.unfreeze_head("normals")


def test_parameters_are_the_backbones_or_the_heads() -> None:
    model = make("depth", "normals")
    backbone, heads = [*model.backbone_parameters()], [*model.head_parameters()]
    assert [id(p) for p in backbone] == [id(p) for p in model.backbone.parameters()]
    assert [id(p) for p in heads] == [id(p) for p in model.heads.parameters()]
    assert [id(p) for p in model.used_parameters()] == [id(p) for p in model.parameters()]
