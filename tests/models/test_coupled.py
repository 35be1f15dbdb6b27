from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medusa_cl import tasks
from medusa_cl.errors import TaskError
from medusa_cl.models import Backbone, MultiTaskModel, PlainHead
from medusa_cl.models.coupled import (
    DECODERS,
    BasicBlock,
    Bottleneck,
    CoupledModel,
    Distillation,
    MTINet,
    PADNet,
    Propagation,
    SqueezeExcitation,
)

CHANNELS = (4, 6, 8, 10)
OUTPUTS = {"semseg": 5, "depth": 1, "normals": 3}
NYUD = ((448, 576), {"semseg": 40, "depth": 1, "normals": 3, "edges": 1})
PASCAL = ((512, 512), {"semseg": 21, "human_parts": 7, "saliency": 1, "normals": 3, "edges": 1})

both = pytest.mark.parametrize("kind", DECODERS.values(), ids=DECODERS.keys())


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def gflops(module: nn.Module, *inputs: object) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() / 1e9


def maps(batch: int = 2, height: int = 16, width: int = 24) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(batch, c, height >> s, width >> s, generator=draw) for s, c in enumerate(CHANNELS)]


def scrambled(module: nn.Module) -> nn.Module:
    """Weights and statistics that hide nothing: no zeros, no ones, no unit that is always off."""
    draw = torch.Generator().manual_seed(2)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=draw) * 0.6 + 0.1)
            value.mul_(torch.randn(value.shape, generator=draw) if value.dim() == 4 else 1)
    return module


def total(answers: Mapping[str, tuple[Tensor, tuple[Tensor, ...]]]) -> Tensor:
    """Some number that all answers count in."""
    return torch.stack([x.sin().sum() for logits, initial in answers.values() for x in (logits, *initial)]).sum()


@pytest.fixture(scope="module")
def hrnet() -> Backbone:
    return Backbone.create("hrnet_w18_small_v2", pretrained=False).eval().to("meta")


@pytest.mark.parametrize(
    ("kind", "data", "operations", "parameters"),
    [
        (PADNet, NYUD, 521, 19.52),
        (PADNet, PASCAL, 850, 29.31),
        (MTINet, NYUD, 47.7, 17.96),
        (MTINet, PASCAL, 60.6, 24.49),
    ],
    ids=["PAD-Net NYUD", "PAD-Net PASCAL", "MTI-Net NYUD", "MTI-Net PASCAL"],
)  # fmt: skip
def test_they_cost_what_the_public_ones_do(
    hrnet: Backbone, kind: type[nn.Module], data: tuple[tuple[int, int], dict[str, int]], operations: float,
    parameters: float,
) -> None:  # fmt: skip
    size, outputs = data
    image = torch.empty(1, 3, *size, device="meta")
    with torch.device("meta"):
        decoder = kind(hrnet.channels, outputs).eval()
    found = gflops(nn.Sequential(hrnet, decoder), image)
    assert found == pytest.approx(operations, rel=0.005)
    assert count(hrnet, decoder) / 1e6 == pytest.approx(parameters, abs=0.01)


def test_the_multitask_baseline_costs_what_the_public_one_does(hrnet: Backbone) -> None:
    size, outputs = NYUD
    image = torch.empty(1, 3, *size, device="meta")
    heads = [PlainHead(hrnet.channels, k, late_mix=False).eval().to("meta") for k in outputs.values()]
    found = gflops(hrnet, image) + sum(gflops(head, hrnet(image)) for head in heads)
    assert found == pytest.approx(26.2, rel=0.02)
    assert count(hrnet, *heads) / 1e6 == pytest.approx(4.17, rel=0.02)


@both
def test_each_task_more_costs_more_than_the_last(hrnet: Backbone, kind: type[nn.Module]) -> None:
    features = hrnet(torch.empty(1, 3, 64, 64, device="meta"))
    with torch.device("meta"):
        made = [kind(hrnet.channels, {f"t{i}": 1 for i in range(t)}).eval() for t in range(1, 5)]
    for found in ([count(decoder) for decoder in made], [gflops(decoder, features) for decoder in made]):
        assert all(np.diff(np.diff(found)) > 0)


@both
def test_with_tricks_it_is_the_same_function_for_less(kind: type[nn.Module]) -> None:
    published, tricky = (kind(CHANNELS, OUTPUTS, tricks=tricks).double() for tricks in (False, True))
    tricky.load_state_dict(scrambled(published).state_dict())
    inputs = [x.double() for x in maps()]
    for training in (True, False):
        ours, theirs = published.train(training)(inputs), tricky.train(training)(inputs)
        for name in OUTPUTS:
            assert torch.allclose(ours[name][0], theirs[name][0], rtol=1e-9)
    assert gflops(tricky, inputs) < gflops(published, inputs)


@both
@pytest.mark.parametrize("width", [None, 8])
def test_shapes(kind: type[nn.Module], width: int | None) -> None:
    decoder = kind(CHANNELS, OUTPUTS, width=width)
    answers = decoder(maps())
    assert list(answers) == list(OUTPUTS)
    sizes = [(16, 24)] if kind is PADNet else [(16, 24), (8, 12), (4, 6), (2, 3)]
    for name, (logits, initial) in answers.items():
        assert logits.shape == (2, OUTPUTS[name], 16, 24)
        assert [tuple(x.shape) for x in initial] == [(2, OUTPUTS[name], *size) for size in sizes]
    assert all(initial == () for _, initial in decoder.eval()(maps()).values())
    assert decoder.config["width"] == width


@both
def test_every_parameter_learns(kind: type[nn.Module]) -> None:
    decoder = scrambled(kind(CHANNELS, OUTPUTS))
    answers = decoder(maps())
    total(answers).backward()
    still = [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


@both
def test_every_task_reads_every_other(kind: type[nn.Module]) -> None:
    """The gradient of one task's answer reaches what belongs to another: the coupling itself."""
    decoder = scrambled(kind(CHANNELS, OUTPUTS)).eval()
    for name in OUTPUTS:
        decoder.zero_grad()
        decoder(maps())[name][0].square().sum().backward()
        others = [other for other in OUTPUTS if other != name]
        for other in others:
            assert any(
                p.grad is not None and p.grad.any()
                for key, p in decoder.named_parameters()
                if key.startswith("refine") and other in key.split(".")
            )
            # The other's final prediction alone is nobody else's.
            assert all(p.grad is None for p in decoder.predict[other].parameters())


@both
def test_one_task_alone_is_possible(kind: type[nn.Module]) -> None:
    ((logits, _),) = kind(CHANNELS, {"depth": 1})(maps()).values()
    assert logits.shape == (2, 1, 16, 24)


def numpy_conv(x: NDArray[np.float64], weight: Tensor) -> NDArray[np.float64]:
    """Convolve C H W with K C 3 3, zeros outside."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("chwij,kcij->khw", windows, weight.detach().numpy())


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 1 / (1 + np.exp(-x))
    return found


def test_distillation_adds_the_gated_features_of_every_other_task() -> None:
    module = scrambled(Distillation(["a", "b", "c"], 3)).double()
    draw = np.random.default_rng(0)
    x = {name: draw.normal(size=(3, 4, 5)) for name in "abc"}
    found = module({name: torch.from_numpy(value)[None] for name, value in x.items()})
    weights = dict(module.named_parameters())
    assert len(weights) == 2 * 3 * 2
    for name in "abc":
        expected = x[name].copy()
        for other in set("abc") - {name}:
            mask, value = (weights[f"gates.{name}.{other}.{part}.weight"] for part in ("mask", "value"))
            expected += sigmoid(numpy_conv(x[other], mask)) * numpy_conv(x[other], value)
        assert np.allclose(found[name][0].detach().numpy(), expected)


def test_propagation_weighs_the_tasks_against_each_other() -> None:
    """Tasks with 2 channels each; the blocks replaced, so that mask and sum can be worked out."""
    module = Propagation(["a", "b"], 2).eval()
    logits = torch.tensor([0.0, 5.0, 0.0, 5.0 - math.log(3.0)])  # a0, a1, b0, b1

    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return logits.view(1, 4, 1, 1).expand_as(x)

    class SumOfTasks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2] + x[:, 2:]

    module.mask, module.shared = Fixed(), SumOfTasks()  # type: ignore[assignment]
    for excite in module.excite.values():
        nn.init.zeros_(excite.gate[2].weight)  # a gate of 1/2
    a, b = torch.tensor([2.0, 4.0]), torch.tensor([6.0, 8.0])
    found = module({name: x.view(1, 2, 1, 1).expand(1, 2, 2, 3) for name, x in (("a", a), ("b", b))})
    shared = torch.tensor([0.5 * 2 + 0.5 * 6, 0.75 * 4 + 0.25 * 8])
    for name, own in (("a", a), ("b", b)):
        assert torch.allclose(found[name], (own + shared / 2).view(1, 2, 1, 1).expand(1, 2, 2, 3))


def test_squeeze_and_excitation_by_hand() -> None:
    module = SqueezeExcitation(32)
    assert [tuple(p.shape) for p in module.parameters()] == [(2, 32), (32, 2)]
    x = torch.randn(2, 32, 3, 5, generator=torch.Generator().manual_seed(0))
    first, second = (p.detach().numpy() for p in module.parameters())
    mean = x.numpy().mean(axis=(2, 3))
    gate = sigmoid(np.maximum(mean @ first.T, 0) @ second.T)
    assert np.allclose(module(x).detach().numpy(), x.numpy() * gate[:, :, None, None], atol=1e-6)


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 8), (8, 12)])
def test_blocks_have_a_skip_of_their_own_only_where_widths_differ(inputs: int, outputs: int) -> None:
    skip = 0 if inputs == outputs else inputs * outputs + 2 * outputs
    inner = outputs // 4
    basic = 9 * inputs * outputs + 9 * outputs * outputs + 4 * outputs
    narrow = inputs * inner + 9 * inner * inner + inner * outputs + 4 * inner + 2 * outputs
    for block, expected in ((BasicBlock(inputs, outputs), basic), (Bottleneck(inputs, outputs), narrow)):
        assert count(block) == expected + skip
        x = torch.randn(2, inputs, 5, 6, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for key, p in block.named_parameters():
                if key.startswith("residual"):
                    p.zero_()
        assert torch.equal(block.eval()(x), torch.relu(block.skip(x)))


def test_coarse_scales_reach_fine_ones_and_not_back() -> None:
    decoder = scrambled(MTINet(CHANNELS, OUTPUTS)).eval()
    features = [x.requires_grad_() for x in maps()]
    refined = decoder._coarse_to_fine(features)
    for s, by_task in enumerate(refined):
        grads = torch.autograd.grad(by_task["depth"].sum(), features, retain_graph=True, allow_unused=True)
        assert [g is not None and bool(g.any()) for g in grads] == [scale >= s for scale in range(4)]


# --- the model ---

TASKS = [tasks.semseg(["wall", "floor", "lamp"]), tasks.depth(), tasks.normals()]
NAMES = ["semseg", "depth", "normals"]


@pytest.fixture(params=DECODERS.values(), ids=DECODERS.keys())
def decoder(request: pytest.FixtureRequest) -> Callable[..., nn.Module]:
    options = {"features": 8} if request.param is PADNet else {}
    return partial(request.param, width=4, tricks=True, **options)


@pytest.fixture
def backbone(tiny_model: Callable[..., MultiTaskModel]) -> Backbone:
    return tiny_model().backbone


@pytest.fixture
def model(backbone: Backbone, decoder: Callable[..., nn.Module]) -> CoupledModel:
    made = CoupledModel(backbone, decoder)
    made.add_heads(TASKS, seed=0)
    return made


@pytest.fixture
def image() -> Tensor:
    return torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))


def test_it_answers_as_a_model_of_heads_does(model: CoupledModel, image: Tensor) -> None:
    answers = model.train()(image)
    assert list(answers) == list(model.tasks) == NAMES
    for name, (logits, initial) in answers.items():
        assert logits.shape == (3, model.tasks[name].channels, 16, 16)
        assert initial
    assert set(model(image, ["depth"])) == {"depth"}
    predicted = model.predict(image)
    assert model.training
    assert predicted["semseg"].shape == (3, 40, 56) and predicted["semseg"].dtype == torch.int64
    assert torch.allclose(predicted["normals"].norm(dim=1), torch.ones(3, 40, 56), atol=1e-4)


def test_features_stand_for_the_image(model: CoupledModel, image: Tensor) -> None:
    model.eval()
    maps = model.features(image)
    seen: list[Tensor] = []
    extracted = model(image, extract=lambda x: (seen.append(x), maps)[1])
    for answers in (model(maps), extracted):
        assert all(torch.equal(answers[name][0], logits) for name, (logits, _) in model(image).items())
    assert len(seen) == 1 and seen[0] is image
    assert not model.needs_images() and not model.needs_images(["depth"])


def test_rows_are_those_of_the_answers(model: CoupledModel, image: Tensor) -> None:
    model.eval()
    everything = model(image)
    rows = {"depth": torch.tensor([0, 2]), "normals": torch.tensor([], dtype=torch.int64), "semseg": torch.tensor([1])}
    answers = model(image, rows)
    assert set(answers) == {"depth", "semseg"}
    for name, (logits, _) in answers.items():
        assert torch.equal(logits, everything[name][0][rows[name]])
    (kept,) = model.train()(image, {"depth": torch.tensor([0, 2])}).values()
    assert all(len(x) == 2 for x in (kept[0], *kept[1]))
    assert model(image, {"depth": torch.tensor([], dtype=torch.int64)}) == {}


def test_the_whole_batch_goes_through_whatever_rows_are_asked_for(model: CoupledModel, image: Tensor) -> None:
    """So statistics of batches do not depend on which task is labelled where."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()(image)
    after = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    model(image, {"depth": torch.tensor([1])})
    assert all(torch.equal(value, after[key]) for key, value in model.state_dict().items())
    assert any(not torch.equal(value, state[key]) for key, value in after.items() if key.startswith("heads"))


def test_the_decoder_depends_on_seed_and_names_alone(backbone: Backbone, decoder: Callable[..., nn.Module]) -> None:
    def weights(seed: int, chosen: list[tasks.DenseTask]) -> dict[str, Tensor]:
        made = CoupledModel(backbone, decoder)
        made.add_heads(chosen, seed)
        return {key: value for key, value in made.heads.state_dict().items() if value.dim() > 1}

    def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
        return all(torch.equal(value, other[key]) for key, value in one.items())

    before = torch.get_rng_state()
    first = weights(0, TASKS)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert same(first, weights(0, TASKS))
    assert not same(first, weights(1, TASKS))
    named = [list(weights(0, [tasks.depth(name=name)]).values()) for name in ("near", "far")]
    assert not all(torch.equal(x, y) for x, y in zip(*named, strict=True))


def test_parameters_are_found_where_those_of_heads_are(model: CoupledModel) -> None:
    assert list(model.heads) == ["decoder"]
    assert count(model.heads) == count(model) - count(model.backbone) > 0
    assert {id(p) for p in model.head_parameters()} == {id(p) for p in model.heads.parameters()}
    assert {id(p) for p in model.backbone_parameters()} == {id(p) for p in model.backbone.parameters()}
    assert count(model) == sum(p.numel() for p in model.used_parameters())


def test_a_task_costs_what_the_decoder_of_the_others_lacks(
    model: CoupledModel, backbone: Backbone, decoder: Callable[..., nn.Module]
) -> None:
    for name in NAMES:
        others = CoupledModel(backbone, decoder)
        others.add_heads([task for task in TASKS if task.name != name], seed=0)
        assert model.parameters_of(name) == count(model) - count(others)
    alone = CoupledModel(backbone, decoder)
    alone.add_heads(TASKS[:1], seed=0)
    assert alone.parameters_of("semseg") == count(alone.heads)
    with pytest.raises(TaskError, match=r'Unknown task "nromals"\. Did you mean "normals"'):
        model.parameters_of("nromals")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda model, folder: model.add_heads([tasks.edges()], seed=0), "adding edges to semseg, depth, normals"),
        (lambda model, folder: model.add_head(tasks.edges(), seed=0), "adding edges"),
        (lambda model, folder: model.remove_head("depth"), "removing depth"),
        (lambda model, folder: model.freeze_head("depth"), "freezing depth"),
        (lambda model, folder: model.save_head("depth", folder / "depth.safetensors"), "saving depth"),
        (lambda model, folder: model.load_head(folder / "depth.safetensors"), "loading a head from .*safetensors"),
    ],
)  # fmt: skip
def test_no_task_can_be_handled_by_itself(
    model: CoupledModel, change: Callable[[CoupledModel, Path], None], named: str, tmp_path: Path
) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(TaskError, match=rf"{named}.*retrain all tasks.*strategy=joint.*head=medusa_light"):
        change(model, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert list(model.tasks) == NAMES
    assert all(p.requires_grad for p in model.heads.parameters())
    assert not list(tmp_path.iterdir())


def test_names_must_be_there_and_differ(backbone: Backbone, decoder: Callable[..., nn.Module]) -> None:
    for chosen in ([], [tasks.depth(), tasks.depth()]):
        with pytest.raises(TaskError, match=r"names of their own"):
            CoupledModel(backbone, decoder).add_heads(chosen, seed=0)


def test_unknown_tasks_are_named(model: CoupledModel, image: Tensor) -> None:
    with pytest.raises(TaskError, match=r'"depht".*Did you mean "depth"'):
        model(image, ["depht"])


def test_a_frozen_backbone_stays_frozen_beside_it(model: CoupledModel, image: Tensor) -> None:
    model.freeze_backbone()
    before = model.backbone.weights_hash()
    total(model.train()(image)).backward()
    assert model.backbone.weights_hash() == before
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.heads.parameters() if p.requires_grad)


def test_bf16_answers_in_float32(backbone: Backbone, decoder: Callable[..., nn.Module], image: Tensor) -> None:
    model = CoupledModel(backbone, decoder, precision="bf16")
    model.add_heads(TASKS, seed=0)
    exact = CoupledModel(backbone, decoder)
    exact.add_heads(TASKS, seed=0)
    for name, (logits, initial) in model.train()(image).items():
        assert all(x.dtype == torch.float32 for x in (logits, *initial))
        assert not torch.equal(logits, exact.train()(image)[name][0])


def test_channels_last_is_kept_by_a_decoder_made_later(backbone: Backbone, decoder: Callable[..., nn.Module]) -> None:
    model = CoupledModel(backbone, decoder)
    model.use_channels_last()
    model.add_heads(TASKS, seed=0)
    kernels = [p for p in model.heads.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels and all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def test_it_learns(model: CoupledModel, image: Tensor) -> None:
    """Some steps on one batch bring every task's answer closer to a target."""
    target = {name: torch.full((3, task.channels, 16, 16), 0.7) for name, task in model.tasks.items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def losses() -> dict[str, Tensor]:
        return {name: (logits - target[name]).abs().mean() for name, (logits, _) in model(image).items()}

    first = {name: float(loss.detach()) for name, loss in losses().items()}
    for _ in range(10):
        optimizer.zero_grad()
        torch.stack(list(losses().values())).sum().backward()
        optimizer.step()
    assert all(float(loss.detach()) < 0.7 * first[name] for name, loss in losses().items())
