from __future__ import annotations

import io
from typing import Any

import pytest
from fake_summary import REFERENCES, fake_summary
from rich.console import Console

from medusa_cl.tracking import console

DASH = "\N{EN DASH}"


def printed(what: Any, width: int = 120) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(what)
    return out.getvalue()


def line(text: str, start: str) -> str:
    return next(row for row in text.splitlines() if row.strip().startswith(start))


def test_the_table_carries_value_unit_direction_and_transfer() -> None:
    text = printed(console.report(fake_summary(), "runs/a", "mlflow ui\nhttp://127.0.0.1:5000"))
    row = line(text, "normals")
    for part in ("mean ° ↓", "14.31", "+30.4 % (20.57)", "+30.0 %", "+0.6 %", "+3.8 %", "+3.2 %", "981 k", "21.2"):
        assert part in row
    assert "miou % ↑" in line(text, "semseg")
    assert line(text, "reshading").split()[4 + 1] == DASH  # the last task cannot have been forgotten
    assert line(text, "semseg").index("miou") == line(text, "reshading").index("rmse")
    assert "mlflow ui" in text and "runs/a/panels" in text and "242 = rooms 61" in text.replace("241", "242")


@pytest.mark.parametrize(
    "summary", [fake_summary(), fake_summary("finetune", 0.3), fake_summary(lost=1e-9), fake_summary(references={})]
)
def test_it_fits_in_120_columns(summary: dict[str, Any]) -> None:
    long = {"semseg": "human_parts", "reshading": "keypoints2d"}
    renamed = rename(summary, long)
    for text in (printed(console.report(summary)), printed(console.report(renamed))):
        assert max(map(len, text.splitlines())) <= 120
        assert "…" not in text


def rename(node: Any, names: dict[str, str]) -> Any:
    if isinstance(node, dict):
        return {names.get(key, key): rename(value, names) for key, value in node.items()}
    if isinstance(node, list):
        return [rename(value, names) for value in node]
    return names.get(node, node) if isinstance(node, str) else node


def test_every_percentage_has_its_raw_reference() -> None:
    text = printed(console.reference_table(fake_summary()))
    for values in REFERENCES.values():
        for value in values.values():
            assert f"{value:.2f}" in text or f"{value:.3f}" in text


def test_what_is_null_is_a_dash_and_the_reason_is_said() -> None:
    text = printed(console.report(fake_summary(references={})))
    assert "+" not in line(text, "normals") and DASH in line(text, "normals")
    assert "there is no reference frozen_plain" in text
    assert "nan" not in text.lower() and "None" not in text


def gains(
    head: float | None,
    features: float | None,
    both: float | None = None,
    control: float | None = None,
    attention: float | None = None,
) -> str:
    summary = fake_summary()
    summary["transfer"] |= {"head_gain": head, "feature_gain": features, "ufl_gain": both}
    summary["transfer"] |= {"control_gain": control, "attention_gain": attention}
    return " ".join(console.reading(summary))


@pytest.mark.parametrize(
    ("head", "features", "says"),
    [
        (12.9, 0.3, "from the head, not from better features"),
        (12.9, -3.0, "which are worse than plain ones"),
        (0.2, 5.0, "from the features, not from the head"),
        (8.0, 3.0, "most of it comes from the head"),
        (3.0, 8.0, "most of it comes from the features"),
        (0.5, -0.4, "no gain beyond noise"),
    ],
)
def test_the_reading_follows_the_numbers(head: float, features: float, says: str) -> None:
    text = gains(head, features, 13.0)
    assert says in text and f"{head:+.1f} % (head)" in text and f"{features:+.1f} % (features)" in text


def test_the_reading_says_what_attention_adds() -> None:
    # The gain over control heads on plain features holds the features' share too: it must not decide.
    assert "attention adds nothing measurable" in gains(1, 1, 2, 9.0, 0.4)
    assert "share of attention" in gains(1, 1, 2, -9.0, 1.5)
    assert "attention costs" in gains(1, 1, 2, 9.0, -1.5)


def test_the_gain_over_control_heads_is_no_verdict_on_attention() -> None:
    text = gains(1, 1, 2, 1.5)
    assert "gainst an ungated head of equal size on plain features" in text and "+1.5 %" in text
    assert "attention" not in text


def test_the_reading_of_forgetting() -> None:
    assert "exactly 0" in " ".join(console.reading(fake_summary()))
    assert "lost 67.5 %" in " ".join(console.reading(fake_summary(lost=0.3)))
    tiny = " ".join(console.reading(fake_summary(lost=1e-9)))
    assert "exactly" not in tiny


def test_a_trained_backbone_gets_no_ufl_gain_but_its_transfer() -> None:
    text = " ".join(console.reading(fake_summary("finetune", 0.1, frozen=False)))
    assert "+13.2 % against plain heads" in text and "the backbone was not frozen" in text


def test_progress_without_a_terminal_is_sparse() -> None:
    now = [0.0]
    out = io.StringIO()
    with console.progress("normals", 100, Console(file=out, width=120), clock=lambda: now[0]) as bar:
        for _ in range(100):
            now[0] += 0.5
            bar.advance(images=8, loss=0.25)
        assert bar.images_per_second == pytest.approx(16)
    lines = out.getvalue().splitlines()
    assert len(lines) == 4 and all("16.0 images/s" in row and "loss 0.25" in row for row in lines)
    assert "100/100" in lines[-1] and "50.0 s" in lines[-1]


def test_progress_on_a_terminal_leaves_one_line() -> None:
    out = io.StringIO()
    with console.progress("base", 3, Console(file=out, width=120, force_terminal=True)) as bar:
        for loss in (1.0, float("nan"), None):
            bar.advance(images=8, loss=loss)
    assert "3/3" in out.getvalue().splitlines()[-1] and "loss 1" in out.getvalue().splitlines()[-1]


def test_progress_lets_an_error_through() -> None:
    with pytest.raises(KeyError), console.progress("x", 1, Console(file=io.StringIO())):
        raise KeyError("x")


def test_the_header_lists_facts_and_skips_none() -> None:
    text = printed(console.header("medusa_cl", {"base": ["semseg", "depth"], "device": "cpu [2]", "gone": None}))
    assert "semseg, depth" in text and "cpu [2]" in text and "gone" not in text
