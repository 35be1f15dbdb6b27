from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_summary import fake_summary
from PIL import Image

from medusa_cl.tracking import numbers, panels


def picture(height: int = 12, width: int = 16, colour: tuple[int, int, int] = (10, 200, 30)) -> Any:
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3)).copy()


def has(canvas: Any, colour: tuple[int, int, int]) -> int:
    """How many pixels of the canvas have exactly this colour."""
    return int((canvas == np.array(colour)).all(-1).sum())


def test_a_panel_shows_image_target_and_prediction_whole() -> None:
    image, target, prediction = (picture(colour=c) for c in ((200, 0, 0), (0, 200, 0), (0, 0, 200)))
    canvas = panels.predictions_panel("depth", [(image, target, prediction)] * 3, "after 2 tasks")
    assert canvas.dtype == np.uint8 and canvas.ndim == 3
    tile = 320 * 240
    assert [has(canvas, c) for c in ((200, 0, 0), (0, 200, 0), (0, 0, 200))] == [3 * tile] * 3


def test_an_overview_has_target_above_prediction_per_task() -> None:
    rows = [("semseg", picture(colour=(1, 2, 3)), picture(colour=(4, 5, 6))), ("depth", None, picture())]
    one = panels.panel(picture(colour=(9, 9, 9)), rows)
    two = panels.overview([(picture(colour=(9, 9, 9)), rows)] * 2, "medusa")
    assert two.shape[1] == one.shape[1] and two.shape[0] > 1.9 * one.shape[0]
    assert has(one, (1, 2, 3)) == has(one, (4, 5, 6)) == 320 * 240
    top = np.argwhere((one == (1, 2, 3)).all(-1))[:, 0].min()
    assert top < np.argwhere((one == (4, 5, 6)).all(-1))[:, 0].min()


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (480, 640), (1000, 30)])
def test_any_size_of_picture_fits(size: tuple[int, int]) -> None:
    canvas = panels.predictions_panel("x", [(picture(*size), None, picture(*size))])
    assert canvas.shape[1] <= 3 * 320 + 100


def test_no_image_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        panels.predictions_panel("x", [])
    with pytest.raises(ValueError, match="at least one image"):
        panels.overview([])


def test_relative_loss_knows_the_direction() -> None:
    assert panels.relative_loss([50.0, 40.0], True) == [0.0, 20.0]
    rows = panels.relative_loss([None, 10.0, 12.0, None], False)
    assert rows[1:3] == [0.0, 20.0] and math.isnan(rows[0]) and math.isnan(rows[3])
    assert all(map(math.isnan, panels.relative_loss([0.0, 1.0], True)))
    assert all(map(math.isnan, panels.relative_loss([None, None], True)))


def test_the_heat_map_is_red_where_a_task_was_forgotten() -> None:
    kept, lost = (fake_summary(lost=share) for share in (0.0, 0.3))
    pictures = [panels.heatmap(s["matrix"], s["primary"], "x") for s in (kept, lost)]
    # The colour bar is red in both, so count.
    red = [int(((p[..., 0] > 150) & (p[..., 1] < 100) & (p[..., 2] < 100)).sum()) for p in pictures]
    assert red[1] > red[0] + 10_000


def test_an_unfinished_or_undefined_matrix_is_drawn() -> None:
    primary = {"a": {"metric": "m", "unit": "", "higher_is_better": True}}
    for values in ([None], [0.0], [float("nan")], [1.0]):
        assert panels.heatmap({"after": ["base"], "values": {"a": values}}, primary).ndim == 3


@pytest.mark.parametrize("summary", [fake_summary(), fake_summary(references={}), fake_summary("finetune", 0.1)])
def test_transfer_bars_are_drawn_whatever_is_null(summary: dict[str, Any]) -> None:
    assert panels.transfer_bars(summary).shape[1] == 1440


def test_transfer_bars_without_new_tasks() -> None:
    summary = fake_summary()
    assert panels.transfer_bars({**summary, "stream": []}).ndim == 3


def test_pictures_are_deterministic_and_saved_whole(tmp_path: Path) -> None:
    summary = fake_summary()
    first, second = (panels.heatmap(summary["matrix"], summary["primary"], "x") for _ in range(2))
    assert np.array_equal(first, second)
    path = panels.save(first, tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(path)), first)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.4401, "m", "0.440 m"), (14.314, "deg", "14.31°"), (77.7, "%", "77.70 %"), (123.45, "", "123.5"),
     (None, "m", "\N{EN DASH}")],
)  # fmt: skip
def test_numbers(value: float | None, unit: str, text: str) -> None:
    assert numbers.number(value, unit) == text


def test_percentages_never_show_minus_zero() -> None:
    assert numbers.percent(-0.01) == "+0.0 %" and numbers.percent(-1.26) == "-1.3 %"
