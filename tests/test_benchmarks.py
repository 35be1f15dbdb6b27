"""The yardsticks in benchmarks/: constants found by hand, and what they refuse."""

from __future__ import annotations

import functools
import importlib.util
import json
import mmap
import os
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from medusa_cl import tasks
from medusa_cl.losses import valid_depth, valid_map
from medusa_cl.scenarios.dense import DenseScenario, dense_scenario

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # data.py imports learns.py
    spec.loader.exec_module(module)
    return module


learns, data, efficiency, composition, speed = map(load, ("learns", "data", "efficiency", "composition", "speed"))


def test_the_most_frequent_class_ignores_what_is_not_labelled() -> None:
    found = [torch.tensor([[255, 255, 255], [2, 2, 7]]), torch.tensor([[2, 7, 255]])]
    assert int(learns.most_frequent(iter(found))) == 2


def test_the_miou_of_one_class() -> None:
    """Class 1 on 3 of 4 valid pixels: IoU 3/4 for it, 0 for class 0, and class 2 occurs nowhere."""
    target = torch.tensor([[1, 1], [1, 0], [255, 255]])
    assert learns.score(tasks.semseg(3), learns.same(torch.tensor(1)), [target]) == pytest.approx(37.5)


def test_the_mean_is_that_of_valid_pixels() -> None:
    depth = [torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[2.0, 6.0]]])]
    constant = learns.mean_value(iter(depth), valid_depth)
    assert constant.shape == (1, 1, 1)
    assert float(constant) == 3
    assert learns.score(tasks.depth(), learns.same(constant), depth) == pytest.approx(((4 + 1 + 9) / 3) ** 0.5)
    assert float(learns.mean_value([torch.tensor([[[0.25, 0.75, 255.0]]])], valid_map)) == 0.5


def test_the_best_direction_is_an_axis_or_the_mean() -> None:
    """Three views of a wall outvote two of the floor; their mean lies between and is wrong everywhere."""
    wall, floor, unknown = [0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0]
    mixed = torch.tensor([wall, wall, wall, floor, unknown]).T.reshape(3, 1, 5)
    assert learns.best_direction([mixed]).flatten().tolist() == wall
    # Far from every axis the mean is better.
    slanted = torch.nn.functional.normalize(torch.tensor([[1.0, 1.0, -1.0]]), dim=1)
    assert torch.allclose(learns.best_direction([slanted.T.reshape(3, 1, 1)]).flatten(), slanted[0])


def test_random_edges_are_the_same_each_time_and_as_dense_as_said() -> None:
    target = torch.zeros(1, 64, 64)
    guess = learns.random_edges(0.1)
    first = guess(0, target)
    assert first.shape == target.shape
    assert torch.equal(first, guess(0, target)) and not torch.equal(first, guess(1, target))
    assert float((first > 0).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert float(learns.random_edges(1.0)(0, target).mean()) == pytest.approx(0.5, abs=0.02)


def test_edges_are_guessed_at_several_densities_and_the_rest_once(fake_splits: dict[str, Any]) -> None:
    train, test = fake_splits["train"], fake_splits["test"]
    assert len(learns.guesses(tasks.edges(), [])) == len(learns.DENSITIES)
    for task in (tasks.semseg(19), tasks.depth(), tasks.normals(), tasks.edges(tolerance=0.02), tasks.reshading()):
        assert 0 < learns.constant_score(task, train, test) < 100


ROWS = {"semseg": {"better": 300.0}, "depth": {"better": 20.0}}


def summary(**changes: Any) -> dict[str, Any]:
    good = {
        "strategy": "medusa",
        "matrix": {"values": {"semseg": [45.0, 45.0]}},
        "forgetting": {"semseg": 0.0, "depth": 0.0, "mean": 0.0},
        "cost": {"peak_memory_bytes": 3 * 2**30},
        "stages": {"data": 100.0, "base": 440.0},
    }
    return good | changes


def test_a_good_run_misses_nothing() -> None:
    assert learns.failures(ROWS, summary()) == []


@pytest.mark.parametrize(
    ("rows", "changes", "named"),
    [
        (ROWS | {"depth": {"better": 19.9}}, {}, "depth: +19.9 %"),
        (ROWS | {"depth": {"better": None}}, {}, "depth: "),
        (ROWS, {"matrix": {"values": {"semseg": [30.0, 45.0]}}}, "semseg: 30.00 %"),
        (ROWS, {"forgetting": {"depth": 1e-9}}, "forgetting of depth"),
        (ROWS, {"forgetting": {"depth": None}}, "forgetting of depth"),
        (ROWS, {"cost": {"peak_memory_bytes": 4 * 2**30}}, "peak memory 4.00 GiB"),
        (ROWS, {"stages": {"data": 541.0}}, "541 s"),
    ],
)
def test_what_is_missed_is_named(rows: dict[str, Any], changes: dict[str, Any], named: str) -> None:
    (found,) = learns.failures(rows, summary(**changes))
    assert named in found


def test_the_newest_run_of_medusa_is_taken(tmp_path: Path) -> None:
    for age, (name, strategy) in enumerate((("new", "finetune"), ("newer", "medusa"), ("old", "medusa"))):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "summary.json"
        file.write_text(json.dumps(summary(strategy=strategy)))
        os.utime(file, (1000 - age, 1000 - age))
    assert learns.find_run([], tmp_path) == tmp_path / "newer"
    assert learns.find_run([str(tmp_path / "old")]) == tmp_path / "old"


def test_without_a_run_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        learns.find_run([], tmp_path)
    assert "make demo" in str(left.value)  # a message as exit status means 1


def test_reading_is_measured_on_a_pack_and_the_file_prepared_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "SIZE", (48, 64))
    monkeypatch.setattr(data, "ROUNDS", 1)
    monkeypatch.setattr(data, "AUGMENTATIONS", {"flip": data.Augmentation()})
    found = data.measure(tmp_path, 4)
    assert set(found["read_ms"]) == {*data.WAYS}
    assert all(spent > 0 for spent in found["read_ms"].values())
    machine = {"cpu": "some", "cores": 2, "python": "3"}
    page = data.page(found | {"machine": machine, "date": "2026-01-01", "failures": ["x"]})
    assert "48x64" in page and "Missed: x." in page


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"read_ms": {"survey pack": 20.0, "prepared file": 8.0}}, "2.5x"),
        ({"augment_ms": {"flip": 25.1}}, "25.1 ms"),
        ({"growth_bytes": {"prepared file": 2**26}}, "64 MiB"),
    ],
)
def test_what_reading_misses_is_named(changes: dict[str, Any], named: str) -> None:
    good = {
        "read_ms": {"survey pack": 24.0, "prepared file": 8.0},
        "augment_ms": {"flip": 25.0},
        "growth_bytes": {"prepared file": 0},
    }
    assert data.failures(good) == []
    (missed,) = data.failures(good | changes)
    assert named in missed


SMALL = ((64, 96), (tasks.semseg(5), tasks.normals()))
SOME = ("single-task nets", "multitask baseline, tricks", "MTI-Net, tricks", "Medusa, light")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    """One small work on one small backbone."""
    name = "test_efficientnet"
    monkeypatch.setattr(efficiency, "WORKS", {"small": SMALL})
    monkeypatch.setattr(efficiency, "BACKBONES", (name,))
    monkeypatch.setattr(efficiency, "TIMED_BACKBONE", name)
    monkeypatch.setattr(efficiency, "GROWTH_WORK", "small")
    monkeypatch.setattr(efficiency, "WIDTH", 8)
    monkeypatch.setattr(efficiency, "MODELS", SOME)
    return name


def test_what_is_kept_for_the_backward_pass_by_hand() -> None:
    """The input 5x3 for the first weight, the output 5x4 of the ReLU once for itself and for the second weight."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    for device in ("cpu", "meta"):
        net, x = net.to(device), torch.rand(5, 3, device=device)
        answer, kept = efficiency.kept_for_backward(functools.partial(net, x), net)
        assert sorted(kept.values()) == [5 * 3 * 4, 5 * 4 * 4]
        assert answer.shape == (5, 2)


def test_rows_are_counted_as_their_whole_nets_are(small: str) -> None:
    size, needed = SMALL
    outputs = {task.name: task.channels for task in needed}
    image = torch.zeros(1, 3, *size)
    for model in SOME:
        net = efficiency.build(model, small, outputs)
        assert set(net(image)) == set(outputs)
        found = efficiency.count(model, small, size, list(outputs.values()))
        assert found["params"] == sum(p.numel() for p in net.parameters())
        assert found["gflops"] == pytest.approx(efficiency.flops(net, image))
        _, kept = efficiency.kept_for_backward(functools.partial(net.train(), image), net)
        counted = efficiency.activations(model, small, size, list(outputs.values()))
        assert counted == pytest.approx(sum(kept.values()), rel=0.02)


def test_a_new_task_is_learnt_by_its_own_part_where_it_has_one(small: str) -> None:
    def moved(model: str) -> set[str]:
        row = efficiency.Timed(model, small, SMALL)
        row.new_task()
        return {key for key, p in row.net.named_parameters() if p.grad is not None}

    assert {key.split(".")[2] for key in moved("Medusa, light")} == {"normals"}
    assert {key.split(".")[1] for key in moved("single-task nets")} == {"1"}
    everything = moved("MTI-Net, tricks")
    assert any(key.startswith("backbone") for key in everything)
    assert {"semseg", "normals"} <= {part for key in everything for part in key.split(".")}


def test_efficiency_is_measured_and_written(small: str) -> None:
    found = efficiency.measure(["small"], 1, (1, 2))
    assert {row["model"] for row in found["counts"]} == set(SOME)
    for model, costs in found["one_more"].items():
        flat = costs[1] == pytest.approx(costs[2])
        assert flat is (model in efficiency.INDEPENDENT), model
    assert set(found["times"]["small"]) == set(SOME)
    assert all(row["train_ms"] > 0 and row["new_task_bytes"] > 0 for row in found["times"]["small"].values())
    machine = {"cpu": "some", "cores": 2, "python": "3"}
    facts = {"machine": machine, "date": "2026-01-01", "packages": {"torch": "2", "timm": "1"}, "threads": 1}
    page = efficiency.page(found | facts | {"failures": ["x"]})
    assert "64x96, semseg 5, normals 3" in page
    assert "Missed: x." in page
    assert json.loads(json.dumps(found))["times"] == found["times"]


def test_what_efficiency_misses_is_named() -> None:
    def found(params: float = 17.96e6, light: float = 90.0, growth: float = 1.5) -> dict[str, Any]:
        row = {"work": "NYUD-4", "backbone": "hrnet_w18_small_v2", "model": "MTI-Net", "params": params, "gflops": 47.0}
        keys = ("forward_ms", "train_ms", "new_task_ms")
        times = {"Medusa, light": dict.fromkeys(keys, light), "MTI-Net, tricks": dict.fromkeys(keys, 100.0)}
        one_more = {"Medusa, light": {1: {"gflops": 1.5}, 2: {"gflops": growth}}}
        return {"counts": [row], "one_more": one_more, "times": {"NYUD-4": times}}

    assert efficiency.failures(found()) == []
    assert efficiency.failures(found(params=18.4e6)) == ["MTI-Net on NYUD-4: 18.4 M, published 17.96"]
    assert efficiency.failures(found(growth=1.6)) == ["Medusa, light: one more task does not always cost the same"]
    missed = efficiency.failures(found(light=100.0))
    assert len(missed) == 3 and all("1.00 of that of MTI-Net, tricks" in line for line in missed)


def a_cell(freeze: str, plugin: str, lost: float, new: float, end: float, spread: float = 0.5) -> dict[str, Any]:
    entries = {"forgetting_percent": lost, "new": new, "all": end}
    spreads = {key: {"mean": value, "deviation": spread, "why": ""} for key, value in entries.items()}
    return {"freeze": freeze, "plugin": plugin, "choice": "0.001", **spreads}


def test_where_medusa_wins_and_loses_is_said() -> None:
    cells = [
        a_cell("none", "none", 20.0, 3.0, -8.0),
        a_cell("stages", "EWC", 5.0, -2.0, -3.0),
        a_cell("none", "replay", 2.0, 1.4, 0.2, spread=2.0),
        a_cell("all", "none", 0.0, 0.0, 0.0),
    ]
    assert composition.reading(cells) == [
        "Under the full freeze every cell forgets exactly 0; elsewhere 2.0 to 20.0 %.",
        "At the heads' rate of the others Medusa alone is +0.0 % on new tasks: at equal rates of the heads 2 of 3 "
        "cells learn new tasks better than it does.",
        "On new tasks Medusa loses (by more than the spread and 1 %) to: none + none (+3.0 %).",
        "On new tasks it wins against: stages + EWC (-2.0 %).",
        "Over all tasks, in the end, it loses to: none.",
        "Over all tasks, in the end, it wins against: none + none (-8.0 %), stages + EWC (-3.0 %).",
    ]
    assert composition.reading([*cells, a_cell("all", "SI", 0.25, 0.0, 0.0)])[0].startswith(
        "Under the full freeze every cell forgets at most 0.25 %"
    )


def test_strengths_are_tried_where_they_act() -> None:
    rates, strengths = len(composition.BACKBONE_RATES), len(composition.STRENGTHS["EWC"])
    assert len(composition.choices("none", "EWC")) == rates * strengths
    assert len(composition.choices("stages", "replay")) == rates
    assert [choice.rate for choice in composition.choices("all", "none")] == list(composition.HEAD_RATES)


@pytest.mark.filterwarnings("ignore")
def test_freeze_and_plugins_are_compared_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cells, quickly; a second look runs nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(composition, "FREEZE", ("none", "all"))
    monkeypatch.setattr(composition, "PLUGINS", ("none", "replay"))
    monkeypatch.setattr(composition, "BACKBONE_RATES", (1e-3,))
    monkeypatch.setattr(composition, "HEAD_RATES", (2e-3,))
    cells = list(composition.Comparison(composition.QUICK, (0, 1), lambda line: None).cells())
    assert [(cell["freeze"], cell["plugin"]) for cell in cells] == [
        ("none", "none"), ("none", "replay"), ("all", "none"), ("all", "replay"), ("all", "none"),
    ]  # fmt: skip
    assert [cell["forgetting_percent"]["mean"] for cell in cells[2:]] == [0.0, 0.0, 0.0]
    assert cells[0]["forgetting_percent"]["mean"] != 0
    assert (cells[2]["new"]["mean"], cells[2]["all"]["mean"]) == (0.0, 0.0)
    said: list[str] = []
    assert list(composition.Comparison(composition.QUICK, (0, 1), said.append).cells()) == cells
    assert said == []
    found = {"settings": vars(composition.QUICK), "seeds": [0, 1], "cells": cells, "date": "", "reading": ["x"]}
    page = composition.page({**found, "machine": {"cpu": "a machine", "cores": 2}})
    assert page.count("\n| none |") == 2
    assert "None" not in page


def test_what_a_step_keeps_by_hand() -> None:
    """As above: the input 5x3, and the ReLU's output 5x4 once; the gradients are those of a step nobody looks at."""
    net, x = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)), torch.rand(5, 3)
    kept: dict[int, int] = {}
    with speed.noting(kept, net.parameters()):
        answer = net(x)
    assert sorted(kept.values()) == [5 * 3 * 4, 5 * 4 * 4]
    answer.sum().backward()
    looked_at = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net(x).sum().backward()
    assert all(map(torch.equal, looked_at, (p.grad for p in net.parameters())))


def test_the_bytes_of_operations_by_hand() -> None:
    a, b = torch.ones(10, 4), torch.ones(4, 5)

    def moved(work: Any) -> int:
        with speed.Traffic() as traffic:
            work()
        return int(traffic.bytes)

    assert moved(lambda: a + a) == 3 * 160
    assert moved(lambda: a @ b) == 160 + 80 + 200
    assert moved(lambda: a.view(40)[3:].reshape(-1, 1)) == 0
    assert moved(lambda: a.mul_(2.0)) == 2 * 160
    assert moved(lambda: torch.cat([a, a])) == 4 * 160
    # Product, sum, a one like the sum, and the product that makes the gradient of that one, expanded.
    weight = torch.ones(4, 5, requires_grad=True)
    assert moved(lambda: (a @ weight).sum().backward()) == (160 + 80 + 200) + (200 + 4) + (4 + 4) + (160 + 4 + 80)


def test_the_least_of_rounds_and_other_sums() -> None:
    assert speed.least_of_each([[1.0, 4.0], [3.0, 2.0]]) == pytest.approx(1500)
    assert speed.least_of_each([[1.0, 4.0]]) == pytest.approx(2500)
    assert speed.spread([10.0, 11.0, 8.0]) == pytest.approx(0.2)
    assert speed.away([3.0, 5.0], [1.0, 3.0]) == pytest.approx((2.0, 2**0.5))


def test_memory_that_is_given_back_again_is_seen() -> None:
    fresh = mmap.mmap(-1, 2**26, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # torch may reuse what it has freed
    with speed.Peak() as peak, fresh:
        fresh.write(b"\x01" * 2**26)
        late = time.monotonic() + 60
        while peak.bytes - peak.before < 60 * 2**20 and time.monotonic() < late:
            time.sleep(0.01)
    assert 60 * 2**20 < peak.bytes - peak.before < 200 * 2**20
    assert speed.resident() < peak.bytes - 60 * 2**20


def test_drawn_pictures_are_the_same_each_time() -> None:
    pictures = speed.DrawnData("train", 3, (32, 48), ["task0", "task1"])
    speed.drawn.cache_clear()
    image = pictures.image(1)
    speed.drawn.cache_clear()
    assert image.shape == (3, 32, 48) and torch.equal(image, pictures.image(1))
    assert not torch.equal(image, pictures.image(2))
    one, two = (pictures.target(1, name) for name in pictures.fields)
    assert one.shape == (1, 32, 48) and not torch.equal(one, two)


def adding_found(**rows: dict[str, Any]) -> dict[str, Any]:
    """Rows that miss nothing, but for those given."""
    good = {
        "NAIVE": {"step_ms": 1200.0, "values": [20.0]},
        "CACHED": {"step_ms": 100.0, "values": [20.0, 21.0, 22.0]},
        "UNCACHED": {"step_ms": 400.0, "values": [20.0]},
    }
    half = {name: {"step_ms": 90.0, "values": [20.5, 21.5, 22.5]} for name in speed.HALF.values()}
    named = {getattr(speed, key): row | rows.get(key, {}) for key, row in good.items()}
    named |= {name: row | rows.get("half", {}) for name, row in half.items()}
    return {"nets": {"net": {"rows": named}}}


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ({}, []),
        ({"CACHED": {"step_ms": 110.0}}, ["10.9x as fast as Naive, expected 12x"]),
        ({"UNCACHED": {"step_ms": 500.0}}, ["2.4x as fast as Naive, expected 2.8x"]),
        ({"UNCACHED": {"values": [20.000001]}}, ["another result with kept features"]),
        ({"half": {"values": [22.0, 22.0, 22.1]}}, ["1.03 ° off, the seeds' noise is 1"] * 2),
    ],
)
def test_what_adding_a_task_misses_is_named(rows: dict[str, Any], named: list[str]) -> None:
    net = speed.Net("net", False, 8, {speed.CACHED: 12.0, speed.UNCACHED: 2.8})
    missed = speed.adding_missed(adding_found(**rows), speed.Plan(nets=(net,)))
    assert [part in line for part, line in zip(named, missed, strict=True)] == [True] * len(named)


@pytest.mark.parametrize(
    ("section", "good", "bad", "named"),
    [
        ("overhead", {"ours_ms": 104.0, "bare_ms": 100.0, "equal": True}, {"ours_ms": 106.0}, "1.060"),
        ("overhead", {"ours_ms": 104.0, "bare_ms": 100.0, "equal": True}, {"equal": False}, "other weights"),
        ("tasks", {"step_ms": [9.5, 10, 10.5], "kept_bytes": [4, 4, 4]}, {"step_ms": [10, 10, 12]}, "up to 20 %"),
        ("tasks", {"step_ms": [9.5, 10, 10.5], "kept_bytes": [4, 4, 4]}, {"kept_bytes": [4, 4, 5]}, "25 %"),
        (
            "inference",
            {"ms": {"net": {"Medusa, light": 69.0, "MTI-Net, tricks": 100.0}}},
            {"ms": {"net": {"Medusa, light": 71.0, "MTI-Net, tricks": 100.0}}},
            "0.71 of the time",
        ),
        (
            "evaluation",
            {"rows": {"4": {"together_s": 1.0, "apart_s": 2.0, "equal": True}}},
            {"rows": {"4": {"together_s": 2.0, "apart_s": 2.0, "equal": True}}},
            "4 tasks together take 1.00",
        ),
        (
            "evaluation",
            {"rows": {"4": {"together_s": 1.0, "apart_s": 2.0, "equal": True}}},
            {"rows": {"4": {"together_s": 1.0, "apart_s": 2.0, "equal": False}}},
            "other values",
        ),
    ],
)
def test_what_speed_misses_is_named(section: str, good: dict[str, Any], bad: dict[str, Any], named: str) -> None:
    missed = speed.SECTIONS[section].missed
    assert missed(good, speed.Plan()) == []
    (line,) = missed(good | bad, speed.Plan())
    assert named in line


@pytest.mark.parametrize(
    ("where", "key", "value", "named"),
    [
        ("memory", "build_ms", 1.3, "memory: 1.30 ms to compute"),
        ("disk", "epoch_ms", 2.6, "disk: 2.60 ms to learn"),
        ("memory", "peak_bytes", 2**30, None),
        ("disk", "peak_bytes", 2**30, "disk: 924 MiB more memory"),
    ],
)
def test_what_does_not_grow_as_it_should_is_named(where: str, key: str, value: float, named: str | None) -> None:
    row = {"build_ms": 1.0, "epoch_ms": 2.0, "peak_bytes": 100 * 2**20}
    found: dict[str, Any] = {"rows": {place: {str(n): dict(row) for n in (2, 20, 200)} for place in ("memory", "disk")}}
    assert speed.images_missed(found, speed.Plan()) == []
    found["rows"][where]["200"][key] = value
    assert [named in line for line in speed.images_missed(found, speed.Plan())] == ([] if named is None else [True])


@pytest.fixture
def quick_speed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_splits: dict[str, Any]) -> Path:
    """Where a quick run writes, on the miniature in place of rooms."""

    def miniature(plan: Any, images: int, base: list[str], stream: list[str]) -> DenseScenario:
        known = [tasks.semseg(19), tasks.depth(), tasks.normals()]
        return dense_scenario(known, {split: fake_splits[split] for split in ("train", "test")}, base, stream)

    monkeypatch.setattr(speed, "rooms", miniature)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.filterwarnings("ignore")
def test_speed_is_measured_section_by_section(quick_speed: Path) -> None:
    speed.main(["overhead", "evaluation", "tasks", "--quick"])
    speed.main(["profile", "inference", "--quick"])
    speed.main(["evaluation", "--quick"])
    sections = json.loads((quick_speed / "speed.json").read_text())
    assert list(sections) == ["overhead", "tasks", "inference", "evaluation", "profile"]
    found = {name: section["found"] for name, section in sections.items()}
    assert found["overhead"]["equal"] is True
    assert found["overhead"]["bare_ms"] > 0
    assert all(row["equal"] for row in found["evaluation"]["rows"].values())
    assert len(set(found["tasks"]["kept_bytes"])) == 1
    assert found["profile"]["rows"]["backward"]["flops"] > found["profile"]["rows"]["forward"]["flops"] > 0
    assert all(found["inference"]["ms"]["test_efficientnet"][name] > 0 for name in speed.DECODERS)
    text = (quick_speed / "speed.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Overhead", "## More tasks", "## Inference", "## Evaluation", "## A head step",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_adding_a_task_in_every_way_and_keeping_images(quick_speed: Path) -> None:
    speed.main(["adding", "images", "--quick"])
    sections = json.loads((quick_speed / "speed.json").read_text())
    (net,) = sections["adding"]["found"]["nets"].values()
    rows = net["rows"]
    assert rows[speed.CACHED]["values"][0] == rows[speed.UNCACHED]["values"][0]
    assert rows[speed.NAIVE]["values"] != rows[speed.UNCACHED]["values"]
    assert {row["steps"] for row in rows.values()} == {4}
    assert rows[speed.NAIVE]["kept_bytes"] > rows[speed.UNCACHED]["kept_bytes"] == rows[speed.CACHED]["kept_bytes"]
    by_place = sections["images"]["found"]["rows"]
    assert set(by_place) == {"memory", "disk"} and set(by_place["disk"]) == {"8", "16"}
    assert by_place["disk"]["16"]["disk_bytes"] > by_place["disk"]["8"]["disk_bytes"] > 0
    assert by_place["memory"]["16"]["disk_bytes"] == 0
    assert "With and without kept features" in (quick_speed / "speed.md").read_text()


def test_a_section_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.main(["overheads"])
    assert "no section overheads" in capsys.readouterr().err
