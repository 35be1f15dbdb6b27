"""Cells: what each needs, that each is computed once, and that a lab gives what a run gives."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import small_run
from medusa_cl.claims.build import lab_of, plan_of
from medusa_cl.claims.cells import AS_IT_COMES, Cell, Pretraining, Probe, grouped
from medusa_cl.claims.lab import Lab, Share
from medusa_cl.claims.plan import Plan, Setting
from medusa_cl.errors import ConfigError

CLAIMS = [
    "+claims.hours=null", "+claims.known=null", "+claims.score_on=[test]", "+claims.init=random",
    "+claims.labels=1.0", "+claims.seeds=[0]", "+claims.steps={}",
    "+claims.heads=[plain,medusa_light]", "+claims.compared=[none,plain]", "+claims.settings=[{}]",
    "+claims.sources.plain.head=plain", "+claims.sources.medusa.head=medusa_light",
    "+claims.sources.mtinet.head=mtinet",
    "+claims.base=[semseg,depth]", "+claims.held_out=[normals]", "+claims.parity=[mtinet]", "+claims.ablations=[]",
    "+claims.single_task=false", "+claims.end_to_end=true",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.miniature(tmp_path_factory.mktemp("data"))


def lab_in(folder: Path, data: Path, *overrides: str) -> Lab:
    return lab_of(small_run.small(data, *CLAIMS, *overrides), folder)


PLAIN = Pretraining(source="plain", tasks=("semseg", "depth"), init="random")
PROBE = Probe(backbone=PLAIN, head="medusa_light", task="normals")


def test_a_cell_is_computed_once(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = lab_in(tmp_path, data)
    first = lab.compute(PROBE)
    assert set(lab.compute(PLAIN)["scores"]["test"]) == {"semseg", "depth"}
    assert set(first["scores"]["test"]) == {"normals"} and first["scores"]["test"]["normals"]["mean"] > 0
    monkeypatch.setattr(Lab, "_learn", lambda *given: pytest.fail("computed again"))
    assert lab_in(tmp_path, data).compute(PROBE) == first
    assert lab_in(tmp_path, data, "trainer.max_steps=2").known(PROBE) is None  # another trainer, another cell
    assert lab_in(tmp_path, data, "trainer.workers=1").known(PROBE) == first  # no matter to results


def test_a_task_may_take_more_steps_and_is_another_cell_then(tmp_path: Path, data: Path) -> None:
    lab, longer = lab_in(tmp_path, data), lab_in(tmp_path, data, "+claims.steps.normals=5")
    first = lab.compute(PROBE)
    assert longer.known(PROBE) is None and longer.compute(PROBE)["scores"] != first["scores"]
    as_long = lab_in(tmp_path, data, "trainer.max_steps=5")
    assert as_long.compute(PROBE)["scores"] == longer.compute(PROBE)["scores"]
    depth = Probe(backbone=PLAIN, head="plain", task="depth")
    assert lab.place(depth) == longer.place(depth) and lab.place(PLAIN) == longer.place(PLAIN)


def test_a_probe_leaves_its_backbone_as_it_was_pretrained(tmp_path: Path, data: Path) -> None:
    lab = lab_in(tmp_path, data)
    lab.compute(PROBE)
    before, after = lab._frozen(PLAIN).state_dict(), lab.backbone("random", 0).state_dict()
    lab.compute(dataclasses.replace(PROBE, head="plain"))
    assert all(torch.equal(value, before[name]) for name, value in lab._frozen(PLAIN).state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def test_lost_weights_are_trained_again_and_give_the_same(tmp_path: Path, data: Path) -> None:
    lab = lab_in(tmp_path, data)
    first = lab.compute(PROBE)
    for path in (tmp_path / "models").glob("*/model*"):
        path.unlink()
    lab.place(PROBE).unlink()
    assert lab_in(tmp_path, data).compute(PROBE)["scores"] == first["scores"]


def test_sources_seeds_shares_and_coupled_models(tmp_path: Path, data: Path) -> None:
    lab = lab_in(tmp_path, data)
    untrained = Pretraining(source=AS_IT_COMES, init="random")
    scores = [
        lab.compute(Probe(backbone=b, head="plain", task="normals", labels=labels))["scores"]["test"]["normals"]["mean"]
        for b, labels in ((untrained, 1.0), (dataclasses.replace(untrained, seed=1), 1.0), (untrained, 0.5))
    ]
    assert len(set(scores)) == 3
    joint = lab.compute(Pretraining(source="mtinet", tasks=("semseg", "depth", "normals"), init="random"))
    assert set(joint["scores"]["test"]) == {"semseg", "depth", "normals"}


def test_a_head_and_a_source_may_have_one_name(tmp_path: Path, data: Path) -> None:
    lab = lab_in(tmp_path, data, "claims.heads=[medusa,medusa_light]")
    assert lab.keys["sources"]["medusa"]["head"] == lab.keys["heads"]["medusa_light"] != lab.keys["heads"]["medusa"]
    bare = Pretraining(source=AS_IT_COMES, init="random")
    full, light = (lab.compute(Probe(backbone=bare, head=head, task="depth")) for head in ("medusa", "medusa_light"))
    assert full["parameters"] > light["parameters"] and full["scores"] != light["scores"]
    assert lab.compute(Pretraining(source="medusa", tasks=("depth",), init="random"))["scores"] != full["scores"]


def test_a_share_is_the_first_images(fake_splits: Any) -> None:
    whole = fake_splits["train"]
    share = Share(whole, 3)
    assert len(share) == 3 and torch.equal(share.image(2), whole.image(2))
    assert list(share.has("depth")) == list(whole.has("depth")[:3]) and share.content_hash != whole.content_hash
    assert torch.equal(share.target(1, "depth"), whole.target(1, "depth"))  # type: ignore[arg-type]


SETTING = Setting(
    init="imagenet", labels=1.0, seeds=(0, 1), heads=("plain", "medusa_light"), sources=("none", "plain", "medusa")
)
PLAN = Plan(tasks=("a", "b", "c"), base=("a",), held_out=("a", "b", "c"), settings=(SETTING,), parity=("medusa",))


def test_the_plan_counts_by_hand() -> None:
    sections = PLAN.sections()
    # A seed, under each of two heads: 3 oracle probes, 3 on plain features, 3 single-task nets (plain ones once).
    assert len(sections["headroom"]) == 2 * 2 * 9 - 3
    # A seed: 3 sources x 3 tasks x 2 heads, of which those on plain features are in headroom.
    assert len(sections["leave_one_out"]) == 2 * (18 - 6)
    # The joint net; its single-task nets are in headroom.
    assert len(sections["parity"]) == 2
    # A seed: 3 sources x (b, c) x 2 heads on the base (a); those on a backbone as it comes are in leave_one_out.
    assert len(sections["block"]) == 2 * 2 * 2 * 2
    assert not sections["ablations"]
    # On nets of one task: a, b, c for the other two each; those on (a) are in the block.
    assert len(sections["single_task"]) == 6 - 2
    every = [cell for cells in sections.values() for cell in cells]
    assert len(every) == len(set(every))


def test_a_plan_without_base_and_without_nets_of_one_task() -> None:
    plan = dataclasses.replace(PLAN, base=(), parity=(), single_task=False, end_to_end_too=False)
    # A seed, under each of two heads and for each of 3 tasks: all tasks', and 3 sources.
    assert len(plan.cells()) == 2 * 2 * 3 * 4 and plan.block == ()
    assert all(isinstance(cell, Probe) for cell in plan.cells())


def test_another_setting_holds_out_its_own_tasks_after_the_main_one() -> None:
    few = dataclasses.replace(SETTING, init="random", seeds=(0,), held_out=("b",))
    plan = dataclasses.replace(PLAN, settings=(SETTING, few), single_task=False)
    new = set(plan.cells()) - set(dataclasses.replace(plan, settings=(SETTING,)).cells())
    # Under each of two heads: all tasks', plain, medusa and as it comes. End to end is asked in the main setting only.
    assert len(new) == 2 * 4 and all(isinstance(cell, Probe) and cell.task == "b" for cell in new)
    first = [cell for cell in plan.cells() if _backbone(cell).seed == 0]
    assert set(first[-len(new) :]) == new and _backbone(plan.cells()[-1]).seed == 1


def _backbone(cell: Cell) -> Pretraining:
    return cell if isinstance(cell, Pretraining) else cell.backbone


def test_cells_are_grouped_by_backbone_pretrainings_first() -> None:
    bare = Probe(backbone=Pretraining(source=AS_IT_COMES), head="plain", task="a")
    assert grouped([PROBE, bare, PLAIN, PROBE]) == [[PLAIN, PROBE], [bare]]
    assert grouped([PROBE])[0][0] == PLAIN  # what a probe needs is computed before it


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("claims.compared=[plain,medusaa]", 'Did you mean "medusa"'),
        ("claims.held_out=[normal]", 'Did you mean "normals"'),
        ("claims.settings=[{held_out: [normal]}]", 'Did you mean "normals"'),
        ("claims.settings=[{init: randm}]", 'Did you mean "random"'),
        ("+claims.steps.normal=2", 'Did you mean "normals"'),
        ("claims.steps=3", "steps by task"),
        ("+claims.steps.normals=0", "at least 1 for claims.steps.normals"),
        ("claims.sources.plain.head=plane", 'Did you mean "plain"'),
    ],
)
def test_unknown_names(tmp_path: Path, data: Path, override: str, message: str) -> None:
    cfg = small_run.small(data, *CLAIMS, override)
    with pytest.raises(ConfigError, match=message):
        plan_of(cfg)
        lab_of(cfg, tmp_path)
