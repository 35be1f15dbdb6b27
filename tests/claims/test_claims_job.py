"""mode=claims as typed: what it leaves, that the same command goes on, and that it can be stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import small_run
from fake_pascal import write_pascal
from medusa_cl.claims.lab import Lab
from medusa_cl.claims.record import Results
from medusa_cl.stopping import Stopped

SMALL = [
    "backbone.name=test_efficientnet", "backbone.pretrained=false", "head_width=8", "trainer.epochs=2",
    "trainer.batch_size=4", "trainer.threads=1", "trainer.device=cpu", "tracking=off", "claims.heads=[medusa_light]",
    "claims.seeds=[0]", "claims.settings=[{init: random}]", "claims.held_out=[normals]", "claims.parity=[]",
    "claims.ablations=[]", "claims.single_task=false", "claims.compared=[plain]",
]  # fmt: skip
NYUD = ["experiment=nyud_claims", "scenario.augment.zooms=[1.0]", *SMALL]
PASCAL = ["experiment=pascal_claims", "scenario.image_size=[64,64]", *SMALL]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.miniature(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_claims_on_a_miniature_of_real_data_and_once_more(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert small_run.typed(*NYUD, f"scenario.root={data}", "out=here") == 0
    said = capsys.readouterr().out
    results = Results.from_json(Path("here/claims.json").read_text(), "claims.json")
    assert set(results.plan.cells()) <= set(results.cells)
    assert results.about["lr_head"] == results.about["lr_backbone"] == 1e-4
    assert results.about["backbone"] == "test_efficientnet" and results.about["score_on"] == ["test"]
    assert all(content["seconds"] > 0 for content in results.cells.values())
    assert "6 of 6 cells are computed" in said and "published" in Path("here/claims.md").read_text()
    cells = {path: path.stat().st_mtime_ns for path in Path("here/cells").iterdir()}
    assert small_run.typed(*NYUD, f"scenario.root={data}", "out=here") == 0  # all is kept
    assert {path: path.stat().st_mtime_ns for path in Path("here/cells").iterdir()} == cells


def test_claims_on_a_miniature_of_pascal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pascal(tmp_path)
    assert small_run.typed(*PASCAL, f"scenario.root={tmp_path}", "out=here", "claims.parity=[medusa]") == 0
    results = Results.from_json(Path("here/claims.json").read_text(), "claims.json")
    assert results.plan.tasks == ("semseg", "human_parts", "saliency", "normals", "edges")
    assert set(results.plan.cells()) <= set(results.cells)
    said = capsys.readouterr().out
    assert "11 of 11 cells are computed" in said and "not computed yet" not in said
    assert "InvPT" in Path("here/claims.md").read_text()


def test_a_stopped_study_goes_on_and_says_what_is_missing(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compute, done = Lab.compute, []

    def stopping(self: Lab, cell: object) -> dict[str, object]:
        if len(done) == 2:
            raise Stopped(2)
        done.append(cell)
        return compute(self, cell)  # type: ignore[arg-type]

    monkeypatch.setattr(Lab, "compute", stopping)
    assert small_run.typed(*NYUD, f"scenario.root={data}", "out=here", "claims.held_out=[normals]") == 130
    assert "The same command goes on" in capsys.readouterr().out
    known = Results.from_json(Path("here/claims.json").read_text(), "claims.json").cells
    assert 0 < len(known) < 8 and "missing" in Path("here/claims.md").read_text()
    monkeypatch.setattr(Lab, "compute", compute)
    assert small_run.typed(*NYUD, f"scenario.root={data}", "out=here") == 0
    again = Results.from_json(Path("here/claims.json").read_text(), "claims.json").cells
    assert all(again[cell] == content for cell, content in known.items()) and len(again) > len(known)


def test_cells_of_another_machine_are_taken_where_they_were_computed_alike(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small_run.typed(*NYUD, f"scenario.root={data}", "out=there") == 0
    cells = Results.from_json(Path("there/claims.json").read_text(), "claims.json").cells
    known = ["claims.known=there/claims.json", "claims.hours=1e-9"]
    assert small_run.typed(*NYUD, f"scenario.root={data}", "out=here", *known) == 0
    assert Results.from_json(Path("here/claims.json").read_text(), "claims.json").cells == cells
    assert small_run.typed(*NYUD, f"scenario.root={data}", "out=other", "trainer.weight_decay=0.1", *known) == 0
    assert not Results.from_json(Path("other/claims.json").read_text(), "claims.json").cells
    assert "known     0 cells" in capsys.readouterr().out
    assert small_run.typed(*NYUD, f"scenario.root={data}", "out=here", "claims.known=nowhere.json") == 1
    assert "claims.json of another run" in " ".join(capsys.readouterr().err.split())


def test_processes_share_the_work(data: Path) -> None:
    assert small_run.typed(*NYUD, f"scenario.root={data}", "out=here", "trainer.processes=2") == 0
    results = Results.from_json(Path("here/claims.json").read_text(), "claims.json")
    assert set(results.plan.cells()) <= set(results.cells)


def test_no_time_leaves_a_table_that_says_so(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["out=here", "claims.hours=1e-9", "+claims.steps.normals=2"]
    assert small_run.typed(*NYUD, f"scenario.root={data}", *given) == 0
    found = json.loads(Path("here/claims.json").read_text())
    assert not found["cells"] and found["about"]["steps"] == {"normals": 2}
    assert "missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mode=claims"], "experiment=rooms_claims has one"),
        (["experiment=rooms_claims", "claims.hours=0"], "claims.hours above 0"),
        (["experiment=rooms_claims", "claims.compared=[medus]"], 'Did you mean "medusa"'),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert small_run.typed(*arguments, "backbone.pretrained=false", "tracking=off") == 1
    assert message in " ".join(capsys.readouterr().err.split())
