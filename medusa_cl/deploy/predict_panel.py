"""One picture with what every task makes of it, and what the colours mean, for people to look at."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medusa_cl.deploy.predictor import value_unit
from medusa_cl.errors import printable
from medusa_cl.tasks import DenseTask, drawn_up_to, palette, shown_range

Picture = NDArray[np.uint8]
INK, SOFT, LINE, PAPER = "#1d2733", "#6b7785", "#d5dbe1", "#ffffff"
TILE, NARROWEST = 420, 250
MARGIN, GAP, HEADING, TITLE = 28, 24, 30, 58
ROW, CLASS_ROWS, BALL = 22, 3, 52
_FAR = (0.4, 1, 2, 4, 8, 12, 20, 40, 80, 160)  # a quarter of each is a short number


@dataclass(frozen=True)
class _Cell:
    """A tile with its heading and its legend."""

    name: str
    about: str
    tile: Image.Image
    legend: Image.Image | None


def panel(
    image: Picture, answers: Mapping[str, NDArray[Any]], tasks: Mapping[str, DenseTask], caption: Sequence[str]
) -> Picture:
    """Draw the picture and beside it every answer with a legend.

    Args:
        image: H W 3 RGB.
        answers: The answers of a `Predictor` to it.
        tasks: The tasks by name, drawn in this order.
        caption: What stands above: a title, and a line about it.

    Returns:
        H W 3 RGB, of about the same size whatever the picture's.
    """
    height, width = image.shape[:2]
    tile = _tile_size(height, width)
    across = max(tile[0], NARROWEST)
    cells = [_Cell("image", "", _tile(image, tile), None)]
    cells += [_cell(task, answers[name], tile, across) for name, task in tasks.items()]
    return _put_together(cells, tile, across, caption)


def _cell(task: DenseTask, values: NDArray[Any], tile: tuple[int, int], across: int) -> _Cell:
    near = _thinned(values, (2 * tile[1], 2 * tile[0]))
    task = drawn_up_to(task, _far(near)) if task.kind == "depth" else task
    drawn = task.draw(near if task.output == "classes" else _planes(near))
    return _Cell(printable(task.name), _about(task), _tile(drawn, tile), _legend(task, near, across))


def _about(task: DenseTask) -> str:
    return "" if task.output == "classes" else value_unit(task).partition(":")[0]


def _far(depth: NDArray[Any]) -> float:
    """Return a round number that nearly all of the picture is nearer than: one colour for all of it says nothing."""
    most = float(np.quantile(depth, 0.98))
    return next((far for far in _FAR if most <= far), _FAR[-1])


def _planes(values: NDArray[Any]) -> NDArray[Any]:
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def _tile_size(height: int, width: int) -> tuple[int, int]:
    """Width and height of a tile: a small picture's pixels stay squares."""
    longer = max(height, width)
    if longer <= TILE:
        return width * (TILE // longer), height * (TILE // longer)
    return max(1, round(width * TILE / longer)), max(1, round(height * TILE / longer))


def _thinned(values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Leave pixels out where there are many more than will be seen."""
    rows, columns = (
        np.arange(known) if known <= most else (np.arange(most) * known + known // 2) // most
        for known, most in zip(values.shape[:2], size, strict=True)
    )
    return values[rows][:, columns]


def _tile(picture: Picture, tile: tuple[int, int]) -> Image.Image:
    enlarged = picture.shape[1] <= tile[0] and picture.shape[0] <= tile[1]
    method = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    return Image.fromarray(np.ascontiguousarray(picture)).resize(tile, method)


def _put_together(cells: Sequence[_Cell], tile: tuple[int, int], across: int, caption: Sequence[str]) -> Picture:
    columns = _columns(len(cells))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    below = [max((cell.legend.height for cell in row if cell.legend), default=0) for row in rows]
    heights = [HEADING + tile[1] + extra for extra in below]
    size = (
        2 * MARGIN + columns * across + (columns - 1) * GAP,
        2 * MARGIN + TITLE + sum(heights) + GAP * (len(rows) - 1),
    )
    canvas = Image.new("RGB", size, PAPER)
    _write_caption(canvas, caption)
    top = MARGIN + TITLE
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            _place(canvas, cell, (MARGIN + column * (across + GAP), top), across)
        top += height + GAP
    return np.asarray(canvas)


def _columns(cells: int) -> int:
    return cells if cells <= 3 else 2 if cells == 4 else min(4, math.ceil(cells / 2))


def _write_caption(canvas: Image.Image, caption: Sequence[str]) -> None:
    draw, width = ImageDraw.Draw(canvas), canvas.width - 2 * MARGIN
    title, about = _fitting(caption[0], letters(22, bold=True), width), _fitting(caption[1], letters(14), width)
    draw.text((MARGIN, MARGIN), title, INK, font=letters(22, bold=True), anchor="lt")
    draw.text((MARGIN, MARGIN + 29), about, SOFT, font=letters(14), anchor="lt")


def _place(canvas: Image.Image, cell: _Cell, corner: tuple[int, int], across: int) -> None:
    draw, (left, top) = ImageDraw.Draw(canvas), corner
    base = top + HEADING - 10
    draw.text((left, base), cell.name, INK, font=letters(17, bold=True), anchor="ls")
    start = left + letters(17, bold=True).getlength(cell.name) + 10
    about = _fitting(cell.about, letters(14), left + across - start)
    draw.text((start, base), about, SOFT, font=letters(14), anchor="ls")
    canvas.paste(cell.tile, (left, top + HEADING))
    if cell.legend:
        canvas.paste(cell.legend, (left, top + HEADING + cell.tile.height))


def _fitting(text: str, font: Any, width: float) -> str:
    """Cut a text in its middle until it fits."""
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    while kept > 2 and font.getlength(_cut(text, kept)) > width:
        kept -= 1
    return _cut(text, kept)


def _cut(text: str, kept: int) -> str:
    return f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"


# ---------------------------------------------------------------- legends


def _legend(task: DenseTask, values: NDArray[Any], across: int) -> Image.Image | None:
    if task.output == "classes":
        return _class_legend(task, values, across)
    if (ends := shown_range(task)) is not None:
        return _bar_legend(task, values, ends, across)
    return _ball_legend(task, across) if task.kind == "normals" else None


def _class_legend(task: DenseTask, labels: NDArray[Any], across: int) -> Image.Image:
    """Colours and names of the classes that are there, the largest first."""
    legend, draw = _sheet(across, 8 + CLASS_ROWS * ROW)
    counts = np.bincount(labels.reshape(-1), minlength=1)
    there = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    left, row = 0.0, 0
    for place, k in enumerate(there):
        text = _fitting(_class_name(task, k), letters(14), across - 24)
        wide = 18 + letters(14).getlength(text) + 14
        more = f"+ {len(there) - place} more"
        last = row == CLASS_ROWS - 1
        room = across - (letters(14).getlength(more) if last and place < len(there) - 1 else -14)
        if left and left + wide > room:
            if last:
                draw.text((left, 8 + ROW * row + ROW // 2), more, SOFT, font=letters(14), anchor="lm")
                return legend
            left, row = 0.0, row + 1
        top = 8 + ROW * row
        draw.rectangle((left, top + 5, left + 12, top + 17), fill=tuple(int(c) for c in palette()[k % 256]))
        draw.text((left + 18, top + ROW // 2), text, INK, font=letters(14), anchor="lm")
        left += wide
    return legend.crop((0, 0, across, 8 + (row + 1) * ROW))


def _class_name(task: DenseTask, k: int) -> str:
    return printable(task.classes[k]) if k < len(task.classes) else str(k)


def _bar_legend(task: DenseTask, values: NDArray[Any], ends: tuple[float, float], across: int) -> Image.Image:
    """The scale, and where on it this picture's values lie."""
    legend, draw = _sheet(across, 54)
    low, high = ends
    ramp = np.zeros((task.channels, 1, across), np.float32)
    ramp[0] = np.linspace(low + (high - low) * 1e-3, high, across)
    legend.paste(Image.fromarray(task.draw(ramp)).resize((across, 10), Image.Resampling.NEAREST), (0, 10))
    draw.rectangle((0, 10, across - 1, 19), outline=LINE)
    marks = [low + (high - low) * part / 4 for part in range(5)]
    for mark, anchor in zip(marks, ("ls", "ms", "ms", "ms", "rs"), strict=True):
        place = (mark - low) / (high - low) * (across - 1)
        draw.text((place, 36), _number(mark), INK, font=letters(13), anchor=anchor)
    first = values if values.ndim == 2 else values[..., 0]
    here = f"here {_number(float(first.min()))} to {_number(float(first.max()))} {_short_unit(task)}".rstrip()
    draw.text((0, 51), here, SOFT, font=letters(13), anchor="ls")
    return legend


def _short_unit(task: DenseTask) -> str:
    return "" if value_unit(task) in ("probability", "0..1") else value_unit(task)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) < 100 else f"{value:.0f}"


def _ball_legend(task: DenseTask, across: int) -> Image.Image:
    """The colours that a ball in front of the camera has."""
    legend, draw = _sheet(across, BALL + 10)
    side = np.linspace(-1, 1, 4 * BALL, dtype=np.float32)
    x, y = np.meshgrid(side, side)
    inside = x**2 + y**2 <= 1
    ball = np.stack([x, y, -np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))]) * inside
    shades = np.where(inside[..., None], task.draw(ball), np.uint8(255))
    legend.paste(Image.fromarray(shades).resize((BALL, BALL), Image.Resampling.BOX), (0, 10))
    draw.text((BALL + 12, 10 + BALL // 2), "a ball seen in these colours", SOFT, font=letters(13), anchor="lm")
    return legend


def _sheet(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", (width, height), PAPER)
    return sheet, ImageDraw.Draw(sheet)


@functools.cache
def letters(size: int, bold: bool = False) -> Any:
    """Return DejaVu Sans from where matplotlib keeps it, which is not imported for that; else PIL's own font."""
    found = importlib.util.find_spec("matplotlib")
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    try:
        return ImageFont.truetype(
            str(Path(str(found and found.origin)).parent / "mpl-data" / "fonts" / "ttf" / name), size
        )
    except OSError:
        return ImageFont.load_default(size)
