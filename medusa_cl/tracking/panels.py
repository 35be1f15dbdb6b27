"""Pictures of a run: predictions beside targets, the forgetting heat map, the transfer bars. numpy, Pillow, matplotlib.

Every function returns H W 3 uint8 RGB; `save` writes it as PNG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medusa_cl.tracking import finite, reference_values
from medusa_cl.tracking.numbers import UNKNOWN, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Picture = NDArray[np.uint8]
Sample = tuple[Picture, Picture | None, Picture]
Row = tuple[str, Picture | None, Picture]

INK, SOFT, FAINT, PAPER = "#1d2733", "#6b7785", "#e9edf1", "#ffffff"
TILE_WIDTH, GAP, MARGIN, LABEL = 320, 8, 22, 30
DPI = 150
BARS = (
    ("gain", "ufl gain: against plain features with a plain head", "#14506e"),
    ("head_gain", "head gain: plain features, Medusa head against plain head", "#8fa3b8"),
    ("feature_gain", "feature gain: Medusa head, Medusa features against plain features", "#e08a1e"),
    ("attention_gain", "attention gain: plain features, Medusa head against an ungated head of equal size", "#b5485d"),
    ("control_gain", "control gain: against plain features with an ungated head of equal size", "#7a9a3a"),
    ("delta", "ufl delta: against a single-task net trained end to end", "#9b6aa8"),
)


def panel(rgb: Picture, rows: Sequence[Row]) -> Picture:
    """One test image and what every task makes of it: see `overview`."""
    return overview([(rgb, rows)])


def overview(samples: Sequence[tuple[Picture, Sequence[Row]]], title: str = "") -> Picture:
    """Test images with all tasks: the image at the left, then a column per task, target above prediction.

    Args:
        samples: (image H W 3, [(task title, target H W 3 or None where there is none, prediction H W 3)]); the same
            tasks in the same order for every image.
        title: a line above.
    """
    if not samples:
        raise ValueError("Expected at least one image to draw, but got none.")
    names = [name for name, _, _ in samples[0][1]]
    bands = [
        [[rgb, *(target for _, target, _ in rows)], [None, *(prediction for _, _, prediction in rows)]]
        for rgb, rows in samples
    ]
    return _grid(["image", *names], bands, title)


def predictions_panel(title: str, samples: Sequence[Sample], subtitle: str = "") -> Picture:
    """One task on several test images: a row each of image, target, prediction.

    Args:
        title: the task.
        samples: (image H W 3, target H W 3 or None, prediction H W 3) per test image.
        subtitle: for instance "after 3 tasks".
    """
    if not samples:
        raise ValueError(f'Expected at least one image to draw for "{title}", but got none.')
    heading = f"{title}  ·  {subtitle}" if subtitle else title
    return _grid(["image", "target", "prediction"], [[sample] for sample in samples], heading)


def heatmap(matrix: Mapping[str, Any], primary: Mapping[str, Any], title: str = "") -> Picture:
    """The task matrix as a picture: a row per task, a column per stage of the stream.

    Colour is what was lost since the task was just learnt, in % of that value (0 = kept, red = forgotten, blue =
    better than before); the text is the raw value. Just-learnt cells are framed.

    Args:
        matrix: {"after": [stage...], "values": {task: [value or None, ...]}} as in summary.json.
        primary: {task: {"metric", "unit", "higher_is_better"}}.
        title: a line above, for instance strategy, scenario and seed.
    """
    stages, tasks = list(matrix["after"]), list(matrix["values"])
    figure = _figure(max(4.6, 2.65 + 1.3 * len(stages)), 1.15 + 0.62 * len(tasks))
    axes = _axes(figure, 1.25, 0.4, 1.4, 0.72)
    lost = np.array([relative_loss(matrix["values"][task], primary[task]["higher_is_better"]) for task in tasks])
    span = _colour_span(lost)
    image = axes.imshow(lost, cmap=_loss_colours(), aspect="auto", vmin=-span, vmax=span)
    for row, task in enumerate(tasks):
        _heat_row(axes, row, matrix["values"][task], lost[row], str(primary[task]["unit"]))
    axes.set_xticks(range(len(stages)), [f"after {stage}" for stage in stages])
    axes.set_yticks(range(len(tasks)), [_task_label(task, primary[task]) for task in tasks])
    axes.set_xticks(np.arange(-0.5, len(stages)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(tasks)), minor=True)
    axes.grid(which="minor", color=PAPER, linewidth=3)
    axes.tick_params(which="both", length=0, labelsize=9, labelcolor=INK)
    _title(figure, "What later tasks cost the earlier ones", title)
    _colour_bar(figure, axes, image)
    return _render(figure)


def transfer_bars(summary: Mapping[str, Any]) -> Picture:
    """Gains of each new task over its references in %, positive = better, with the raw values behind them.

    Args:
        summary: the dict of summary.json.
    """
    tasks = list(summary["stream"])
    entries = {task: summary["transfer"]["per_task"].get(task, {}) for task in tasks}
    shown = [bar for bar in BARS if any(finite(entries[task].get(bar[0])) is not None for task in tasks)]
    height = 0.26 * max(1, len(shown)) + 0.34
    figure = _figure(9.6, 1.3 + height * (len(tasks) if shown else 1) + 0.24 * len(shown))
    axes = _axes(figure, 1.95, 0.55 + 0.24 * len(shown), 0.3, 0.72)
    _title(figure, "What the new tasks gained", _subtitle(summary))
    if not shown:
        _say_nothing(axes, summary["transfer"].get("why_null"))
        return _render(figure)
    labels = [_transfer_label(task, summary) for task in tasks]
    _draw_bars(axes, [entries[task] for task in tasks], shown)
    axes.set_yticks(range(len(tasks)), labels, fontsize=9, color=INK, linespacing=1.5)
    axes.legend(
        loc="upper left", bbox_to_anchor=(0, -0.42 / _inches(axes)), fontsize=8.5, frameon=False, labelcolor=INK,
        borderaxespad=0, handlelength=1.2, borderpad=0,
    )  # fmt: skip
    return _render(figure)


def relative_loss(row: Sequence[float | None], higher_is_better: bool) -> list[float]:
    """What each cell lost since the task was just learnt, in %; NaN where there is no value."""
    values = [finite(value) for value in row]
    learnt = next((value for value in values if value is not None), None)
    if learnt is None or learnt == 0:
        return [float("nan")] * len(values)
    sign = 1.0 if higher_is_better else -1.0
    # "+ 0.0" turns -0.0, which would be printed with its sign, into 0.0.
    return [float("nan") if v is None else 100 * sign * (learnt - v) / abs(learnt) + 0.0 for v in values]


def save(picture: Picture, path: Path) -> Path:
    """Write H W 3 uint8 as PNG, whole or not at all."""
    partial = path.with_name(f".{path.name}.part")
    Image.fromarray(picture).save(partial, format="PNG", compress_level=4)
    return partial.replace(path)


# ---------------------------------------------------------------- grids of pictures


def _grid(columns: Sequence[str], bands: Sequence[Sequence[Sequence[Picture | None]]], title: str) -> Picture:
    """The image at the left and, for each image, a band of one or two rows of tiles; headings above.

    Args:
        columns: headings; the first stands above the image.
        bands: per image, its rows of tiles. The first tile of the first row is the image, which is set at the
            middle of its band; two rows are labelled target and prediction.
        title: a line above, or "".
    """
    tile = _tile_size(_first(bands))
    rows = len(bands[0])
    gutter = LABEL if rows > 1 else GAP
    lefts = [MARGIN, *(MARGIN + tile[0] + gutter + i * (tile[0] + GAP) for i in range(len(columns) - 1))]
    top = MARGIN + (LABEL + 12 if title else 0) + LABEL
    step = rows * (tile[1] + GAP) + (2 * GAP if rows > 1 else 0)
    size = (lefts[-1] + tile[0] + MARGIN, top + len(bands) * step - GAP * (3 if rows > 1 else 1) + MARGIN)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((MARGIN, MARGIN), title, INK, font=_font(23, bold=True), anchor="lt")
    for left, name in zip(lefts, columns, strict=True):
        draw.text((left, top - 9), name, INK, font=_font(18), anchor="ls")
    for index, band in enumerate(bands):
        _draw_band(canvas, band, lefts, top + index * step, tile)
    return np.asarray(canvas)


def _draw_band(
    canvas: Image.Image, band: Sequence[Sequence[Picture | None]], lefts: Sequence[int], top: int, tile: tuple[int, int]
) -> None:
    middle = top + (len(band) - 1) * (tile[1] + GAP) // 2
    _paste(canvas, band[0][0], (lefts[0], middle), tile, Image.Resampling.BICUBIC)
    for row, tiles in enumerate(band):
        height = top + row * (tile[1] + GAP)
        for left, picture in zip(lefts[1:], tiles[1:], strict=True):
            # Nearest where it enlarges: labels and edges stay what they are.
            _paste(canvas, picture, (left, height), tile, Image.Resampling.NEAREST)
        if len(band) > 1:
            _vertical(canvas, ("target", "prediction")[row], (lefts[1] - 23, height + tile[1] // 2))


def _paste(
    canvas: Image.Image,
    picture: Picture | None,
    place: tuple[int, int],
    tile: tuple[int, int],
    enlarge: Image.Resampling,
) -> None:
    if picture is None:
        draw = ImageDraw.Draw(canvas)
        draw.rectangle((*place, place[0] + tile[0] - 1, place[1] + tile[1] - 1), fill=FAINT)
        middle = (place[0] + tile[0] // 2, place[1] + tile[1] // 2)
        draw.text(middle, "no target", SOFT, font=_font(16), anchor="mm")
        return
    method = enlarge if picture.shape[1] <= tile[0] else Image.Resampling.LANCZOS
    canvas.paste(Image.fromarray(picture).resize(tile, method), place)


def _first(bands: Sequence[Sequence[Sequence[Picture | None]]]) -> Picture:
    image = bands[0][0][0]
    assert image is not None  # the image itself is never missing
    return image


def _tile_size(picture: Picture) -> tuple[int, int]:
    """Width and height of a tile: a whole multiple of a small picture, so that its pixels stay squares."""
    height, width = picture.shape[:2]
    drawn = width * (TILE_WIDTH // width) if width <= TILE_WIDTH else TILE_WIDTH
    return drawn, max(1, round(drawn * height / width))


def _vertical(canvas: Image.Image, text: str, place: tuple[int, int]) -> None:
    """Write `text` upwards, centred vertically at `place`."""
    font = _font(15)
    width = int(font.getlength(text)) + 4
    label = Image.new("RGB", (width, 20), PAPER)
    ImageDraw.Draw(label).text((2, 10), text, SOFT, font=font, anchor="lm")
    canvas.paste(label.rotate(90, expand=True), (place[0], place[1] - width // 2))


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: the same letters on every machine."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


# ---------------------------------------------------------------- figures


def _figure(width: float, height: float) -> Figure:
    """A figure in inches that belongs to no global state (pyplot is never imported)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
    """Axes with margins in inches."""
    width, height = figure.get_size_inches()
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    axes = figure.add_axes(box)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _title(figure: Figure, title: str, subtitle: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(0.15 / width, 1 - 0.14 / height, title, va="top", fontsize=12.5, weight="bold", color=INK)
    figure.text(0.15 / width, 1 - 0.41 / height, subtitle, va="top", fontsize=9, color=SOFT)


def _render(figure: Figure) -> Picture:
    figure.canvas.draw()
    return np.ascontiguousarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])  # type: ignore[attr-defined]


def _inches(axes: Axes) -> float:
    return axes.get_window_extent().height / DPI


def _loss_colours() -> Any:
    """Blue (better than when learnt), light grey-green (kept), red (forgotten); no value = white."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = ["#2f6db3", "#9cc3e6", "#e3efe4", "#f4a582", "#b2182b"]
    return LinearSegmentedColormap.from_list("loss", stops).with_extremes(bad=PAPER)


def _colour_span(lost: NDArray[np.float64]) -> float:
    """Symmetric around 0, and never so narrow that noise looks like forgetting, nor blown up by one lost task."""
    largest = float(np.nanmax(np.abs(lost))) if np.isfinite(lost).any() else 0.0
    return min(max(10.0, largest), 100.0)


def _heat_row(axes: Axes, row: int, values: Sequence[float | None], lost: NDArray[np.float64], unit: str) -> None:
    from matplotlib.patches import Rectangle

    learnt = next((column for column, value in enumerate(values) if value is not None), len(values))
    for column, value in enumerate(values):
        if value is None:
            if column > learnt:
                axes.text(column, row, UNKNOWN, ha="center", va="center", fontsize=10, color=SOFT)
            continue
        dark = abs(lost[column]) > 0.72 * axes.images[0].get_clim()[1]
        colour = PAPER if dark else INK
        axes.text(column, row - 0.13, number(value, unit), ha="center", va="center", fontsize=10, color=colour)
        note = "just learnt" if column == learnt else _loss_text(lost[column])
        axes.text(column, row + 0.24, note, ha="center", va="center", fontsize=7, color=colour)
    if learnt < len(values):
        frame = Rectangle((learnt - 0.47, row - 0.45), 0.94, 0.9, fill=False, edgecolor=INK, linewidth=1.1)
        axes.add_patch(frame)


def _loss_text(lost: float) -> str:
    if np.isnan(lost):
        return ""
    if lost == 0:
        return "kept"
    return f"{lost:.1f} % lost" if lost > 0 else f"{-lost:.1f} % better"


def _task_label(task: str, primary: Mapping[str, Any]) -> str:
    return f"{task}\n{primary['metric']} {'↑' if primary['higher_is_better'] else '↓'}"


def _colour_bar(figure: Figure, axes: Axes, image: Any) -> None:
    box, (width, _) = axes.get_position(), figure.get_size_inches()
    bar = figure.colorbar(image, cax=figure.add_axes((box.x1 + 0.18 / width, box.y0, 0.14 / width, box.height)))
    bar.outline.set_visible(False)
    span = image.get_clim()[1]
    bar.set_ticks([-span, 0, span], labels=[f"{span:.0f} % better", "0  kept", f"{span:.0f} % lost"])
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=SOFT)


def _subtitle(summary: Mapping[str, Any]) -> str:
    return f"{summary['strategy']} on {summary['scenario']}, seed {summary['seed']}  ·  differences under 1 % are noise"


def _transfer_label(task: str, summary: Mapping[str, Any]) -> str:
    """The task, its own value, and the plain reference's: a % never stands without them."""
    about, row = summary["primary"][task], summary["matrix"]["values"][task]
    mine = next((value for value in row if value is not None), None)
    lines = [f"{task}  {about['metric']} {'↑' if about['higher_is_better'] else '↓'}"]
    plain = reference_values(summary)[task].get("frozen_plain")
    lines.append(
        f"{number(mine, about['unit'])}" + (f"  (plain {number(plain, about['unit'])})" if plain is not None else "")
    )
    return "\n".join(lines)


def _draw_bars(axes: Axes, entries: Sequence[Mapping[str, Any]], shown: Sequence[tuple[str, str, str]]) -> None:
    thickness = 0.76 / len(shown)
    known = [finite(entry.get(key)) or 0.0 for entry in entries for key, _, _ in shown]
    span = max(max(known), -min(known), 1.0)
    for index, (key, label, colour) in enumerate(shown):
        for row, entry in enumerate(entries):
            place = row + (index - (len(shown) - 1) / 2) * thickness
            value = finite(entry.get(key))
            axes.barh(place, value or 0.0, thickness * 0.86, color=colour, label=label if row == 0 else None)
            text = UNKNOWN if value is None else percent(value)
            side = -1 if (value or 0) < 0 else 1
            axes.text(
                (value or 0) + side * 0.012 * span, place, text, va="center", fontsize=8, color=INK,
                ha="left" if side > 0 else "right",
            )  # fmt: skip
    axes.axvline(0, color=INK, linewidth=0.9)
    low = -span * 0.16 if min(known) >= 0 else min(known) - span * 0.16
    axes.set_xlim(low if min(known) < 0 else -span * 0.02, max(max(known), span * 0.1) + span * 0.16)
    axes.set_ylim(len(entries) - 0.45, -0.55)
    axes.xaxis.set_major_formatter(lambda value, _: "0" if value == 0 else f"{value:+g} %")
    axes.tick_params(length=0, labelsize=8, labelcolor=SOFT)
    axes.grid(axis="x", color=FAINT)
    axes.set_axisbelow(True)


def _say_nothing(axes: Axes, why: Mapping[str, Any] | None) -> None:
    axes.axis("off")
    whole = ("ufl_gain", "ufl_delta", "feature_gain", "head_gain", "attention_gain", "control_gain")
    given = why or {}
    reasons = [f"{key}: {str(given[key]).partition(';')[0]}" for key in whole if key in given]
    text = "\n".join(["No reference to compare with.", *reasons])
    axes.text(0, 1, text, fontsize=9, color=SOFT, va="top", transform=axes.transAxes)
