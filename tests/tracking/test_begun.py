"""What a run says of what it went on from: the same where its bits would be the same, and else another hash."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from medusa_cl.begun import begun
from medusa_cl.continuing import extended
from medusa_cl.job import run
from medusa_cl.kept import read_summary, write_summary
from medusa_cl.start import Start, from_base
from medusa_cl.tracking.rows import run_of
from small_run import config, miniature, small, without_pictures

OWN = ("references=none", "scenario.stream=[normals]")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where "first" has learnt its base and normals in 3 steps each, and two runs went on from it otherwise."""
    folder = tmp_path_factory.mktemp("begun")
    data, before = miniature(folder), Path.cwd()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        run(small(data, "out=first", *OWN))
        run(small(data, "out=shorter", *OWN, "base=first", "trainer.base_steps=2"))
        given = ["out=more", "tracking=off", "references=none", "extend=first", "scenario.stream=[edges]"]
        given += ["trainer.max_steps=1"]
        run(config(*given), given)
    yield data
    os.chdir(before)


@pytest.fixture(autouse=True)
def _there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.parent)


def from_a_base(data: Path, base: str, *overrides: str, of: str = "first") -> str | None:
    """What a run would say that goes on from a base."""
    return begun(small(data, *OWN, f"base={base}", *overrides), from_base(base), data_of(of))


def data_of(folder: str) -> dict[str, str]:
    found: dict[str, str] = read_summary(Path(folder))["provenance"]["data_hash"]
    return found


def after(parent: str, *overrides: str) -> str | None:
    given = [f"extend={parent}", *overrides]
    cfg, start = extended(config(*given), given)
    return begun(cfg, start, data_of(parent))


def noted(folder: str) -> str | None:
    found: str | None = read_summary(Path(folder))["provenance"]["begun"]
    return found


def rewritten(folder: str, to: str, **provenance: Any) -> None:
    """Copy a run, with other provenance; None takes an entry away."""
    shutil.copytree(folder, to)
    summary = read_summary(Path(to))
    changed = {**summary["provenance"], **provenance}
    kept = {key: value for key, value in changed.items() if value is not None or key == "base"}
    write_summary(Path(to), json.dumps({**summary, "provenance": kept}))


def test_what_learns_all_by_its_settings_says_none(home: Path) -> None:
    assert noted("first") is None
    assert begun(small(home, *OWN), None, {}) is None
    kept = Start(Path("first/checkpoints/experience_0"), 1, "as learnt before")
    assert begun(small(home, *OWN), kept, {}) is None, "base=auto: an equal run's"


def test_the_base_of_a_run_that_begins_alike_is_as_good_as_its_own(home: Path) -> None:
    assert from_a_base(home, "first") is None
    assert from_a_base(home, "first", "strategy=finetune") is None, "as compare= does"
    assert from_a_base(home, "first", "trainer.base_steps=3", "trainer.max_steps=9") is None
    assert from_a_base(home, "first", "strategy=finetune", "plugins=[replay]") is None


@pytest.mark.parametrize(
    "other",
    [
        "trainer.base_steps=2",
        "trainer.lr_backbone=5e-4",
        "head_width=16",
        "seed=1",
        "plugins=[si]",
    ],
)
def test_a_base_learnt_otherwise_is_told(home: Path, other: str) -> None:
    assert from_a_base(home, "first", "strategy=finetune", other) is not None


def test_bases_of_other_data_weights_or_seeds_are_told_apart(home: Path) -> None:
    rewritten("first", "other-data", data_hash={"train": "x", "test": "y"})
    shutil.copytree("first/model", "bare")
    found = [
        from_a_base(home, "first", "seed=1"),
        from_a_base(home, "other-data"),
        from_a_base(home, "bare"),
        noted("shorter"),
    ]
    assert None not in found and len(set(found)) == 4
    assert from_a_base(home, "first", "seed=2") == found[0], "one base for several seeds is one configuration"


def test_bases_of_one_configuration_and_several_seeds_are_one(home: Path) -> None:
    shutil.copytree("first", "second")
    theirs = OmegaConf.load("second/config.yaml")
    theirs["seed"] = 1
    OmegaConf.save(theirs, "second/config.yaml")
    assert from_a_base(home, "first", "trainer.base_steps=2") == noted("shorter")
    assert from_a_base(home, "second", "trainer.base_steps=2", "seed=1") == noted("shorter")


def test_an_extended_run_with_equal_settings_is_the_whole_stream() -> None:
    assert after("first", "scenario.stream=[edges]") is None
    assert after("first", "remove=[normals]") is None


def test_an_extension_with_other_settings_tells_its_parents() -> None:
    assert noted("more") is not None
    assert after("first", "scenario.stream=[edges]", "trainer.max_steps=1") == noted("more")
    assert after("first", "remove=[normals]", "scenario.stream=[normals,edges]", "trainer.max_steps=1") != noted("more")
    assert after("more", "remove=[edges]", "scenario.stream=[edges]") == noted("more"), "handed on"
    again = after("more", "remove=[edges]", "scenario.stream=[edges]", "trainer.max_steps=2")
    assert again not in (None, noted("more"))


def test_a_parent_that_does_not_say_is_told_by_its_weights() -> None:
    rewritten("more", "older", begun=None)
    same = after("older", "remove=[edges]")
    assert same is not None and same != noted("more")


def test_rows_take_it_up(home: Path) -> None:
    """With the same settings: the stream learnt in one step a task, and its last task only."""
    summary = read_summary(Path("more"))
    whole = {**summary, "provenance": {**summary["provenance"], "begun": None}}
    cfg = OmegaConf.to_container(OmegaConf.load("more/config.yaml"))
    assert isinstance(cfg, dict)
    anew = {str(key): value for key, value in {**cfg, "extend": None, "base": "auto"}.items()}
    one, other = run_of(summary, anew), run_of(whole, anew)
    assert one.settings == other.settings and one.identity != other.identity
