"""What only a CUDA device can show: `make gpu` runs it; without such a device every test here is skipped."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fake_data import fake_dense_hdf5
from medusa_cl import tasks
from medusa_cl.batch import Features
from medusa_cl.data.features import FrozenFeatures
from medusa_cl.data.hdf5 import HDF5Data
from medusa_cl.data.loader import DenseDataset, DenseLoader, unit_image
from medusa_cl.losses import at_size
from medusa_cl.models import MultiTaskModel
from medusa_cl.randomness import generator
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.strategies.medusa import Medusa
from medusa_cl.tasks import DenseTask

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

Model = Callable[..., MultiTaskModel]
DEVICE = "cuda"
FUSED_ADAM = functools.partial(torch.optim.Adam, weight_decay=1e-4, fused=True)


@pytest.fixture(autouse=True)
def _full_float32() -> Iterator[None]:
    """Convolutions in float32 proper: by default CUDA rounds their inputs to TF32, 10 bits of mantissa."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture(scope="module")
def all_targets(tmp_path_factory: pytest.TempPathFactory) -> HDF5Data:
    """Two images with a target of every built-in task."""
    path = tmp_path_factory.mktemp("all") / "all.h5"
    return HDF5Data(fake_dense_hdf5(path, {"test": 2}, fields=tuple(tasks.BUILT_IN)), "test")


def built_in(name: str) -> DenseTask:
    return tasks.semseg(19) if name == "semseg" else tasks.BUILT_IN[name]()


def images(scenario: DenseScenario) -> Tensor:
    return torch.stack([unit_image(scenario.data["test"], i) for i in range(3)])


def medusa(model: MultiTaskModel, **options: Any) -> Medusa:
    steps = {"max_steps": 3, "base_steps": 3, "epochs": 100, "batch_size": 4}
    return Medusa(model=model, **({"device": DEVICE, "optimizer": FUSED_ADAM} | steps | options))


def state_of(model: MultiTaskModel, names: tuple[str, ...]) -> dict[str, Tensor]:
    kept = ("backbone.", *(f"heads.{name}." for name in names))
    return {key: value.clone() for key, value in model.state_dict().items() if key.startswith(kept)}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def assert_near(there: Tensor, here: Tensor, share: float = 1e-3) -> None:
    """Equal to within a share of the largest value: near zeros, sums in another order have no relative accuracy."""
    torch.testing.assert_close(there.cpu(), here, rtol=share, atol=share * float(here.abs().max()))


def test_auto_is_the_cuda_device() -> None:
    from medusa_cl.build import resolve_device

    assert resolve_device("auto") == "cuda"


def test_a_run_takes_place_on_the_cuda_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The settings of `make gpu`: bf16, workers, page-locked memory, channels last; the first line says where."""
    from hydra import compose, initialize_config_module

    from medusa_cl.job import run

    fields = ("semseg", "depth", "normals", "edges")
    data = fake_dense_hdf5(tmp_path / "NYUD_MT.h5", {"train": 8, "test": 4}, fields=fields, classes=40)
    monkeypatch.chdir(tmp_path)
    overrides = [
        "experiment=gpu", "scenario=nyud_incremental", f"scenario.root={data}", "scenario.augment.zooms=[1.0]",
        "backbone.name=test_efficientnet", "backbone.pretrained=false", "head.width=8", "head.mix_width=8",
        "trainer.base_steps=3", "trainer.max_steps=3", "trainer.batch_size=4", "trainer.workers=2", "tracking=off",
    ]  # fmt: skip
    with initialize_config_module("medusa_cl.configs", version_base="1.3"):
        summary = run(compose("config", overrides))
    assert summary["device"] == "cuda"
    assert set(summary["forgetting"].values()) == {0.0}
    assert torch.cuda.get_device_name() in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("precision", ["bf16", "32"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_old_tasks_keep_their_bits(
    tiny_model: Model, tiny_scenario: DenseScenario, precision: str, channels_last: bool
) -> None:
    """Invariant 1 on CUDA: parameters, buffers, predictions and metrics of everything old, after any later task."""
    model = tiny_model(precision=precision)
    if channels_last:
        model.use_channels_last()
    strategy, test_images = medusa(model), images(tiny_scenario).to(DEVICE)
    seen: list[tuple[tuple[str, ...], dict[str, Tensor], dict[str, Tensor], dict[str, Any]]] = []
    for k, experience in enumerate(tiny_scenario.train_stream):
        strategy.train(experience, eval_streams=[])
        strategy.eval(tiny_scenario.test_stream[: k + 1])
        for names, state, predictions, results in seen:
            assert equal(state, state_of(model, names))
            assert equal(predictions, model.predict(test_images, names))
            assert results == {name: strategy.results[name] for name in names}
        names = tuple(model.tasks)
        seen.append((names, state_of(model, names), model.predict(test_images, names), dict(strategy.results)))
    assert {value.device.type for value in model.state_dict().values()} == {torch.device(DEVICE).type}


@pytest.mark.parametrize("precision", ["bf16", "32"])
def test_heads_learn(tiny_model: Model, tiny_scenario: DenseScenario, precision: str) -> None:
    """Forty steps on one task lower its loss on what it saw; weights and logits stay float32 under autocast."""
    model = tiny_model(precision=precision)
    strategy = medusa(model, max_steps=40)
    for experience in tiny_scenario.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    fresh = tiny_model(precision=precision).to(DEVICE)
    fresh.add_head(tiny_scenario.tasks["normals"], seed=0)
    fresh.backbone.load_state_dict(model.backbone.state_dict())
    assert normals_loss(model, tiny_scenario) < 0.9 * normals_loss(fresh, tiny_scenario)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@torch.no_grad()
def normals_loss(model: MultiTaskModel, scenario: DenseScenario) -> float:
    data = scenario.data["train"]
    found = [data.target(i, "normals") for i in range(len(data))]
    target = torch.stack([t for t in found if t is not None]).to(DEVICE)
    x = torch.stack([unit_image(data, i) for i in range(len(data))]).to(DEVICE)
    logits, _ = model.eval()(x, ["normals"])["normals"]
    assert logits.dtype == torch.float32
    loss, count = scenario.tasks["normals"].loss(at_size(logits, tuple(target.shape[-2:])), target)
    return float(loss / count)


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_features_travel_through_page_locked_memory(
    tiny_model: Model, tiny_scenario: DenseScenario, workers: int
) -> None:
    """Batches of kept features arrive pinned and whole, and answer as the images would."""
    model = tiny_model("normals").to(DEVICE).eval()
    model.freeze_backbone()
    source = tiny_scenario.data["train"]
    kept = FrozenFeatures(model.backbone, source, batch_size=4, device=DEVICE, extract=model.features)
    dataset = DenseDataset(source, ["normals"], 1)
    options: dict[str, Any] = {"tasks": tiny_scenario.tasks, "workers": workers, "pin_memory": True}
    for k, (x, y, labels) in enumerate(DenseLoader(dataset, 4, features=kept, **options)):
        assert isinstance(x, Features)
        assert all(tensor.is_pinned() for tensor in (*x, y.entries["normals"].value, labels))
        pictures = torch.stack([unit_image(source, i) for i in range(4 * k, 4 * k + 4)]).to(DEVICE)
        with torch.no_grad():
            answer, expected = (model(given)["normals"][0] for given in (tuple(x.to(DEVICE)), pictures))
        torch.testing.assert_close(answer, expected)


@pytest.mark.parametrize("precision", ["bf16", "32"])
def test_training_from_kept_features(tiny_model: Model, tiny_scenario: DenseScenario, precision: str) -> None:
    """The same numbers with and without kept features, but for the order of atomic sums in backward passes."""
    found = {}
    for cache in ("memory", "off"):
        strategy = medusa(tiny_model("semseg", "depth", precision=precision), cache_features=cache)
        strategy.model.adopt(tiny_scenario.train_stream[0])
        strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
        strategy.eval(tiny_scenario.test_stream[1:2])
        found[cache] = strategy.results["normals"]["mean"]
    assert found["memory"] == pytest.approx(found["off"], rel=0.05)


def test_predictions_agree_with_the_cpu(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    names = ("semseg", "depth", "normals", "edges")
    model, x = tiny_model(*names).eval(), images(tiny_scenario)
    with torch.no_grad():
        here, predicted = model(x), model.predict(x)
        model.to(DEVICE)
        there, answered = model(x.to(DEVICE)), model.predict(x.to(DEVICE))
    for name in names:
        assert_near(there[name][0], here[name][0])
    assert (answered["semseg"].cpu() == predicted["semseg"]).float().mean() > 0.99
    for name in ("depth", "edges"):
        assert_near(answered[name], predicted[name])
    # Where the raw vector is short its direction is not well determined, so not pixel by pixel.
    assert (answered["normals"].cpu() - predicted["normals"]).abs().mean() < 1e-2


def test_bf16_is_near_float32(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Eight bits of mantissa through a deep net: a few percent, and never NaN."""
    x = images(tiny_scenario).to(DEVICE)
    with torch.no_grad():
        full, half = (tiny_model("depth", precision=p).to(DEVICE).eval()(x)["depth"][0] for p in ("32", "bf16"))
    assert half.dtype == torch.float32 and bool(half.isfinite().all())
    assert float((half - full).norm() / full.norm()) < 0.1


def test_compiled_parts_answer_as_they_do_uncompiled(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """A head added later is compiled too, and learns."""
    x, found = images(tiny_scenario).to(DEVICE), []
    for compiled in (False, True):
        model = tiny_model("depth").to(DEVICE)
        if compiled:
            model.compile_parts()
        model.freeze_backbone()
        model.add_head(tasks.normals(), seed=0)
        logits = model.train()(x, ["normals"])["normals"][0]
        logits.square().mean().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.heads["normals"].parameters() if p.grad is not None])
        found.append((logits.detach().cpu(), gradient.cpu(), model.predict(x)["depth"].cpu()))
    for there, here in zip(found[1], found[0], strict=True):
        assert_near(there, here, 1e-2)


def test_a_training_step_never_waits_for_the_device(tiny_model: Model, all_targets: HDF5Data) -> None:
    """Heads, losses and metrics of every task but edges, whose metric thins on the CPU."""
    names = [name for name in tasks.BUILT_IN if name != "edges"]
    model = tiny_model(*(built_in(name) for name in names)).to(DEVICE).train()
    model.freeze_backbone()
    features = model.features(torch.rand(2, 3, 32, 48, device=DEVICE))
    targets = {name: logits_and_target(all_targets, name)[1].to(DEVICE) for name in names}
    metrics = {name: model.tasks[name].metric().to(DEVICE) for name in names}
    for mode in ("default", "error"):  # the first round fills caches
        torch.cuda.set_sync_debug_mode(mode)
        try:
            for name, (logits, initial) in model(features, {name: torch.arange(2) for name in names}).items():
                for scale in (logits, *initial):
                    loss, count = model.tasks[name].loss(at_size(scale, (32, 48)), targets[name])
                    (loss / count.clamp(min=1)).backward(retain_graph=True)
                metrics[name].update(model.tasks[name].decode(at_size(logits.detach(), (32, 48))), targets[name])
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_wrong_class_is_named_when_it_is_computed() -> None:
    metric = tasks.semseg(19).metric().to(DEVICE)
    metric.update(torch.zeros(1, 2, 2, dtype=torch.int64, device=DEVICE), torch.full((1, 2, 2), 19, device=DEVICE))
    with pytest.raises(ValueError, match=r"classes in 0..18, but got others in 4 valid pixels"):
        metric.compute()


def test_fused_adam_steps_as_adam_does() -> None:
    start, steps = torch.randn(64, generator=generator("start")), torch.randn(5, 64, generator=generator("gradients"))
    reached = {}
    for device, fused in ((DEVICE, True), ("cpu", False)):
        weight = torch.nn.Parameter(start.to(device, copy=True))
        optimizer = torch.optim.Adam([weight], lr=2e-3, weight_decay=1e-4, fused=fused)
        for gradient in steps:
            weight.grad = gradient.to(device)
            optimizer.step()
        reached[fused] = weight.detach()
    assert_near(reached[True], reached[False], 1e-5)


@pytest.mark.parametrize("name", tasks.BUILT_IN)
def test_losses_agree_with_the_cpu(all_targets: HDF5Data, name: str) -> None:
    task, (logits, target) = built_in(name), logits_and_target(all_targets, name)
    found = {}
    for device in (DEVICE, "cpu"):
        given = logits.to(device, copy=True).requires_grad_()
        loss, count = task.loss(at_size(given, (32, 48)), target.to(device))
        (loss / count).backward()
        assert given.grad is not None
        found[device] = (loss.detach(), count, given.grad)
    for there, here in zip(found[DEVICE], found["cpu"], strict=True):
        assert_near(there, here, 1e-4)


@pytest.mark.parametrize("name", tasks.BUILT_IN)
def test_metrics_agree_with_the_cpu(all_targets: HDF5Data, name: str) -> None:
    task, (logits, target) = built_in(name), logits_and_target(all_targets, name)
    prediction = task.decode(at_size(logits, (32, 48)))
    found = {}
    for device in (DEVICE, "cpu"):
        metric = task.metric().to(device)
        metric.update(prediction.to(device), target.to(device))
        found[device] = {key: float(value) for key, value in metric.compute().items()}
    assert found[DEVICE] == pytest.approx(found["cpu"], rel=1e-5)


def logits_and_target(data: HDF5Data, name: str) -> tuple[Tensor, Tensor]:
    channels = built_in(name).channels
    found = [data.target(i, name) for i in range(len(data))]
    target = torch.stack([t for t in found if t is not None])
    # Images of 32 x 48 are padded to 32 x 64: logits of a quarter of that.
    return torch.randn(len(target), channels, 8, 16, generator=generator("logits", name)), target


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_features_are_kept_on_the_device(tiny_model: Model, tiny_scenario: DenseScenario, precision: str) -> None:
    said = list[str]()
    strategy = medusa(tiny_model("semseg", "depth"), cache_precision=precision)
    strategy.medusa.cache.notify = said.append
    strategy.model.adopt(tiny_scenario.train_stream[0])
    strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
    assert len(said) == 1 and "kept in the device's memory" in said[0]
    features = next(iter(strategy.medusa.cache._kept.values()))
    found = features.take(torch.tensor([0, 5]))
    assert {x.device.type for x in found} == {DEVICE}
    assert {x.dtype for x in found} == {torch.float32 if precision == "32" else torch.bfloat16}


@pytest.mark.parametrize("workers", [0, 2])
def test_features_on_disk_reach_the_device(
    tiny_model: Model, tiny_scenario: DenseScenario, tmp_path: Path, workers: int
) -> None:
    strategy = medusa(tiny_model("semseg", "depth"), cache_features="disk", cache_dir=tmp_path, workers=workers)
    strategy.model.adopt(tiny_scenario.train_stream[0])
    strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
    strategy.eval(tiny_scenario.test_stream[:2])
    assert strategy.results["normals"]["mean"] > 0


def test_one_rank_of_nccl(tmp_path: Path) -> None:
    """A whole run under torchrun, alone: nccl for the device, gloo for what lies on the CPU."""
    import json
    import os
    import subprocess
    import sys

    from small_run import SMALL, miniature

    root = Path(__file__).resolve().parents[1]
    given = [o for o in SMALL if o != "trainer.device=cpu"] + [f"scenario.root={miniature(tmp_path)}", "out=run"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", "-m"]
    command += ["medusa_cl.run", "trainer=ddp", "trainer.device=cuda", "references=none", *given]
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["device"].startswith("cuda")


EXCHANGES = """
import torch
from medusa_cl import distributed
device = distributed.start("cuda")
values = torch.arange(3.0, device=device)
distributed._call("all_reduce", values)
found = [torch.empty_like(values)]
distributed._call("all_gather", found, values)
box = [{"rank": 0}]
distributed._call("broadcast_object_list", box, src=0)
distributed._call("all_reduce", torch.zeros(1))  # from the CPU, by gloo
print(device, values.tolist(), found[0].tolist(), box)
distributed.stop()
"""


def test_nccl_exchanges(tmp_path: Path) -> None:
    """What ranks say to each other, said by one: with one process the library's own functions stay idle."""
    import os
    import subprocess
    import sys

    (tmp_path / "job.py").write_text(EXCHANGES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(
        [*command, str(tmp_path / "job.py")], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip() == "cuda:0 [0.0, 1.0, 2.0] [0.0, 1.0, 2.0] [{'rank': 0}]", done.stderr[-3000:]


def test_steps_with_numbers_that_are_not_finite(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Left out, each at its step; otherwise the end of training at the next look."""
    from avalanche.core import SupervisedPlugin

    from medusa_cl.errors import TrainingError

    class Poison(SupervisedPlugin):  # type: ignore[misc]
        def before_backward(self, strategy: Any, **kwargs: Any) -> None:
            if strategy._step == 1:
                weight = strategy.optimizer.param_groups[0]["params"][0]
                strategy.loss = strategy.loss + (0 * weight).sum().sqrt()

    skipping = medusa(tiny_model(), plugins=[Poison()], on_nan="skip")
    with pytest.warns(UserWarning, match=r"Step left out \(number 1\): A gradient is not finite"):
        skipping.train(tiny_scenario.train_stream[0], eval_streams=[])
    assert skipping.guard.skipped == 1
    assert all(torch.isfinite(value).all() for value in skipping.model.state_dict().values())
    with pytest.raises(TrainingError, match="at step 3, or up to 9 steps before"):
        medusa(tiny_model(), plugins=[Poison()]).train(tiny_scenario.train_stream[0], eval_streams=[])


def test_what_plugins_know_goes_back_to_the_device(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Stopped in the middle of the second experience; memories, importances and a teacher go on on the device."""
    import copy

    from avalanche.training.plugins import AGEMPlugin, EWCPlugin, ReplayPlugin

    from medusa_cl.strategies.distillation import DenseDER, DenseLwF
    from medusa_cl.strategies.rwalk import RWalk

    def strategy(*names: str) -> Medusa:
        plugins = [EWCPlugin(1.0), ReplayPlugin(4), AGEMPlugin(2, 2), DenseLwF(), DenseDER(3), RWalk(delta_t=2)]
        known = [tiny_scenario.tasks[name] for name in names]
        return medusa(tiny_model(*known), plugins=plugins, freeze="none", freeze_old_heads=False)

    whole, states = strategy(), list[dict[str, Any]]()
    whole.train(tiny_scenario.train_stream[0], eval_streams=[])
    whole.each_step = lambda: states.append(copy.deepcopy(whole.state())) if whole.steps_done == 1 else None
    whole.train(tiny_scenario.train_stream[1], eval_streams=[])
    again = strategy("semseg", "depth")
    again.resume(states[0], list(tiny_scenario.train_stream))
    again.train(tiny_scenario.train_stream[1], eval_streams=[])
    ewc = next(plugin for plugin in again.plugins if isinstance(plugin, EWCPlugin))
    assert {value.data.device.type for value in ewc.importances[0].values()} == {DEVICE}
    assert again.clock.train_exp_iterations == 3
    assert all(bool(value.isfinite().all()) for value in again.model.state_dict().values())
