from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import ModuleType
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


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("renamed", [False, True])
def test_a_narrow_terminal_folds_the_tables_and_cuts_nothing(width: int, renamed: bool) -> None:
    summary = rename(fake_summary(), {"semseg": "human_parts", "reshading": "keypoints2d"} if renamed else {})
    narrow, wide = (printed(console.report(summary, "runs/a"), columns) for columns in (width, 120))
    assert max(map(len, narrow.splitlines())) <= width
    assert "…" not in narrow
    # Every cell is there: what a row says in 120 columns, its parts say one below the other.
    for task in summary["primary"]:
        row, *_ = [re.split(r" {2,}", part.strip()) for part in wide.splitlines() if part.strip().startswith(task)]
        parts = [re.split(r" {2,}", p.strip())[2:] for p in narrow.splitlines() if p.strip().startswith(task)]
        cells = [cell for part in parts for cell in part]
        assert cells[: len(row) - 2] == row[2:]
    assert len(re.findall(r"medusa on rooms_incremental", narrow)) == 1


def test_a_table_with_room_is_not_folded() -> None:
    table = console.table(fake_summary())
    assert printed(console.Folded(table, keys=2)) == printed(table)


TERMINAL = """
import sys, time
from medusa_cl import shell
from medusa_cl.tracking.console import make_console, progress
def main(arguments):
    console = make_console()
    with progress("normals", 30, console) as bar:
        for step in range(30):
            time.sleep(0.02)
            bar.advance(images=8, loss=0.02778)
            if step == 20 and arguments:
                sys.exit(time.sleep(60))
    console.print(console.width)
shell.end(main)
"""


def in_terminal(columns: int, interrupt: bool = False, **environment: str) -> tuple[int, str]:
    """Run it in a terminal, or press Ctrl-C there when the bar has come: its status, and what the screen got."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    unset = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "PYTHONIOENCODING")
    env = {key: value for key, value in os.environ.items() if key not in unset}
    env |= {"TERM": "xterm-256color", "PYTHONPATH": str(Path(__file__).parents[2])} | environment
    command = [sys.executable, "-c", TERMINAL, *(["wait"] if interrupt else [])]
    running = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # closed at the other end
            break
        shown += piece
        if not piece:
            break
        if interrupt and b"21/30" in shown:
            os.killpg(running.pid, 2)
            interrupt = False
    os.close(master)
    return running.wait(60), shown.decode()


def frames(shown: str) -> list[str]:
    """Return what stood in the line of the bar, one after the other."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    return [frame.rstrip() for frame in re.split(r"[\r\n]+", plain) if frame.strip()]


@pytest.mark.parametrize(("columns", "bar", "remaining"), [(60, 0, False), (80, 9, True), (200, 30, True)])
def test_a_bar_fits_its_terminal_and_leaves_one_line(columns: int, bar: int, remaining: bool) -> None:
    status, shown = in_terminal(columns)
    *moving, last, width = frames(shown)
    assert status == 0 and int(width) == min(columns, 120)
    assert moving and max(map(len, moving)) < columns
    assert all("…" not in frame for frame in moving)
    assert max(frame.count("━") + frame.count("╸") + frame.count("╺") for frame in moving) == bar
    assert any("loss 0.02778" in frame for frame in moving)
    assert any("0:00:0" in frame for frame in moving) is remaining
    assert last.startswith("normals") and "30/30" in last
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") >= 0, "the cursor is shown again"


def test_ctrl_c_gives_the_cursor_back() -> None:
    status, shown = in_terminal(80, interrupt=True)
    assert status == 130
    assert frames(shown)[-1] == "stopped"
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") >= 0


def test_a_dumb_terminal_and_one_without_our_characters() -> None:
    status, shown = in_terminal(80, TERM="dumb")
    assert status == 0 and "\x1b" not in shown
    assert [frame.split()[:2] for frame in frames(shown)] == [["normals", "30/30"], ["80"]]
    status, shown = in_terminal(100, PYTHONIOENCODING="ascii", NO_COLOR="1")
    assert status == 0 and shown.isascii() and "?" not in "".join(frames(shown))
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", shown), "no colour"


def test_colours_may_be_forced_into_a_pipe_but_nothing_moves_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm-256color")
    shown = console.make_console()
    with console.progress("normals [0]", 2, shown) as bar:
        bar.advance(images=8)
        bar.advance(images=8)
    shown.print(console.header("title", {"a": 1}))
    out = capsys.readouterr().out
    assert shown.width == 120 and "\x1b[" in out
    assert not re.search(r"\r|\x1b\[\?|\x1b\[\d*[A-K]", out)
    assert [line for line in out.splitlines() if "normals [0]" in line] == [out.splitlines()[0]]


def test_progress_in_a_notebook_is_one_line_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            assert raw and shown
            shown.append(data["text/plain"])

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Handle:
        assert raw and display_id and not shown, "one line, however often it changes"
        shown.append(data["text/plain"])
        return Handle()

    ipython = ModuleType("IPython.display")
    ipython.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)
    now = [0.0]
    out = io.StringIO()
    notebook = Console(file=out, width=120, force_jupyter=True)
    with console.progress("normals", 4, notebook, clock=lambda: now[0]) as bar:
        for _ in range(4):
            now[0] += 0.3
            bar.advance(images=3)
    assert [line.split()[1] for line in shown] == ["2/4", "4/4"]
    assert shown[-1].endswith("1.2 s")
    assert out.getvalue() == ""


def test_progress_in_a_notebook_without_ipython_is_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", None)
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with console.progress("normals", 1, Console(file=io.StringIO(), force_jupyter=True)) as bar:
        bar.advance()
    assert bar.done == 1


def test_two_bars_at_once_both_end() -> None:
    out = io.StringIO()
    shown = Console(file=out, width=120, force_terminal=True)
    with console.progress("outer", 1, shown) as outer, console.progress("inner", 1, shown) as inner:
        inner.advance()
        outer.advance()
    found = re.findall(r"^(inner|outer) +1/1", "\n".join(frames(out.getvalue())), re.MULTILINE)
    assert found == ["inner", "outer"]


def test_a_console_whose_reader_has_gone_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medusa_cl.shell.unread", lambda: None)

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(SystemExit) as caught:
        console.make_console().print("more")
    assert caught.value.code == 141


def test_progress_lets_an_error_through() -> None:
    with pytest.raises(KeyError), console.progress("x", 1, Console(file=io.StringIO())):
        raise KeyError("x")


def test_the_header_lists_facts_and_skips_none() -> None:
    text = printed(console.header("medusa_cl", {"base": ["semseg", "depth"], "device": "cpu [2]", "gone": None}))
    assert "semseg, depth" in text and "cpu [2]" in text and "gone" not in text
