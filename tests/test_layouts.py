"""The script that measures layouts: what it times, and when it says that auto takes the wrong one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import layouts as module

    assert Path(str(module.__file__)).parent == FOLDER
    return sys.modules["layouts"]


def test_one_backbone_in_every_layout(
    layouts: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"BATCH": 1, "SIZE": (32, 64), "RESULTS": tmp_path, "PRECISIONS": ("32",), "SLOWER": 1e9}
    for name, value in options.items():
        monkeypatch.setattr(layouts, name, value)
    ran = []
    kept = layouts.MultiTaskModel.use_channels_last
    monkeypatch.setattr(
        layouts.MultiTaskModel, "use_channels_last", lambda model, **parts: ran.append(parts) or kept(model, **parts)
    )
    assert layouts.main(["test_efficientnet", "--rounds", "1"]) == 0
    assert [parts for parts in layouts.LAYOUTS.values() for _ in range(2)] == ran
    row = next(line for line in (tmp_path / "layouts.md").read_text().splitlines() if line.startswith("| test_eff"))
    assert [cell.count("/") for cell in row.split("|")[2:-1]] == [1, 2, 1]
    assert (tmp_path / "layouts.json").is_file() and "Nothing is missed." in capsys.readouterr().out


def test_a_step_learns_what_is_trainable(layouts: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "SIZE", (32, 64))
    model = layouts.model_of("test_efficientnet", "32", "channels last")
    model.freeze_backbone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    target = torch.nn.functional.normalize(torch.randn(1, 3, 32, 64), dim=1)
    layouts.stepper(model, torch.rand(1, 3, 32, 64), target)()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("heads.normals.") for name in changed)


def test_a_layout_that_is_too_slow_is_missed(layouts: ModuleType) -> None:
    fast = {"contiguous": 100.0, "heads": 95.0, "channels last": 91.0}
    rows = [{"backbone": "resnet18", "precision": p, "ms": {"train step": fast}} for p in ("32", "bf16")]
    assert layouts.failures(rows) == []
    slow = fast | {"channels last": 120.0}
    rows = [{"backbone": "resnet18", "precision": p, "ms": {"train step": slow}} for p in ("32", "bf16")]
    assert layouts.failures(rows) == ["resnet18, train step: auto takes channels last, heads is 1.26x as fast"]
