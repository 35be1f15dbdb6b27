from __future__ import annotations

import functools
from typing import Any

import pytest

from medusa_cl.data.rooms import SPLITS, cache, render_room
from medusa_cl.errors import TaskError
from medusa_cl.scenarios import rooms as module
from medusa_cl.scenarios.rooms import rooms_incremental, rooms_tasks

NINE = ("semseg", "depth", "normals", "edges", "reshading", "albedo", "curvature", "keypoints2d", "saliency")
SMALL: dict[str, Any] = {"image_size": (16, 24), "train_size": 2, "val_size": 0, "test_size": 1}


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path_factory.getbasetemp() / "rooms"  # one for all tests: rooms are made once
    monkeypatch.setenv("MEDUSA_CL_CACHE", str(kept))
    monkeypatch.setattr(cache, "golden_ok", lambda: True)
    monkeypatch.setattr(module.rooms, "rooms_file", functools.partial(cache.rooms_file, workers=1))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"base": ["semsg"]}, r'"semsg".*Did you mean "semseg"\?'),
        ({"stream": ["depth"]}, r'"depth" would be learnt twice'),
        ({"base": []}, r"base is empty"),
        ({"held_out": "albdo"}, r'"albdo"'),
    ],
)
def test_names_are_checked_before_any_room_is_rendered(
    names: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.rooms, "rooms_file", lambda *_, **__: pytest.fail("rooms were asked for"))
    with pytest.raises(TaskError, match=message):
        rooms_incremental(**names)


def test_rooms_have_targets_of_nine_tasks() -> None:
    assert tuple(task.name for task in rooms_tasks()) == NINE
    scenario = rooms_incremental(**SMALL, base=NINE, stream=())
    (experience,) = scenario.train_stream
    targets = experience.dataset[0].targets
    assert set(targets) == set(NINE)
    for name, task in scenario.tasks.items():
        assert targets[name].shape[-2:] == (16, 24)
        assert targets[name].ndim == 2 or len(targets[name]) == task.channels


@pytest.mark.parametrize("name", NINE)
def test_any_of_the_nine_can_be_held_out(name: str) -> None:
    long = rooms_incremental(**SMALL, base=NINE[:2], stream=NINE[2:], held_out=name)
    assert long.groups == [tuple(other for other in NINE if other != name), (name,)]
    short = rooms_incremental(**SMALL, held_out=[name])
    assert short.groups == [tuple(other for other in NINE[:5] if other != name), (name,)]


def test_the_last_splits_are_there_where_they_are_asked_for() -> None:
    assert set(rooms_incremental(**SMALL).data) == {"train", "test"}
    scenario = rooms_incremental(**SMALL, confirm_size=1, confirm_style_size=2)
    sizes = {split: len(data) for split, data in scenario.data.items()}
    assert sizes == {"train": 2, "test": 1, "confirm": 1, "confirm_style": 2}
    for split in ("confirm", "confirm_style"):
        image = render_room(SPLITS[split], (16, 24))["image"]
        assert (scenario.data[split].image(0).numpy().transpose(1, 2, 0) == image).all()
