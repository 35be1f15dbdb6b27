"""What tests of scenarios on disk share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def nothing_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working directory and cache, and no $MEDUSA_CL_DATA: none of the usual places holds data."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("MEDUSA_CL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDUSA_CL_DATA", raising=False)
