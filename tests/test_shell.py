"""The manners of the command line: what can be typed, what is answered, and with which status a process ends."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fake_data import fake_dense_hdf5
from medusa_cl import __main__ as verbs
from medusa_cl import errors, quiet, shell
from medusa_cl.configs import page
from medusa_cl.configs.check import check_overrides, groups
from medusa_cl.errors import ConfigError
from medusa_cl.shell import Option, Usage

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "shell.md").read_text(encoding="utf-8")
USAGE = Usage(
    "toy",
    "What it does.",
    {
        "run": Option("DIR", "a run"),
        "tasks": Option("[a,b]", "tasks", None, shell.names),
        "batch": Option("N", "images", 1, shell.count),
        "all": Option("false", "whether all", False, shell.flag),
        "format": Option("FORMAT", "which", "onnx", shell.one_of("onnx", "pt2")),
        "max_size": Option("N", "pixels", 9, shell.count),
    },
    switches={"--check": "only look"},
)
DEFAULTS = {"tasks": None, "batch": 1, "all": False, "format": "onnx", "max_size": 9, "check": False}


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("run=a", {}),
        ("run=a=b", {"run": "a=b"}),
        ("'run=my runs/a b'", {"run": "my runs/a b"}),
        ("run=a 'tasks=[depth, normals]'", {"tasks": ("depth", "normals")}),
        ("run=a tasks=depth,normals", {"tasks": ("depth", "normals")}),
        ("run=a tasks=depth", {"tasks": ("depth",)}),
        ("batch=12 run=a all=True format=pt2", {"batch": 12, "all": True, "format": "pt2"}),
        ("--check run=a", {"check": True}),
        ("run=-1", {"run": "-1"}),
    ],
)
def test_what_is_typed_is_read(typed: str, read: dict[str, Any]) -> None:
    assert USAGE.parse(shlex.split(typed)) == DEFAULTS | {"run": "a"} | read


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("", "Expected run=DIR: a run. See python -m medusa_cl.toy --help."),
        ("rn=a", 'Unknown option of toy "rn". Did you mean "run"?'),
        ("run=a run=b", "given twice: run=a run=b"),
        ("run= a", "Expected run=DIR, but got 'run=' (no spaces beside the =)"),
        ("run", "Expected run=DIR, but got 'run'"),
        ("--run=a", "Expected run=DIR, without dashes, but got '--run=a'"),
        ("run=a --max-size 3", "Expected max_size=N, without dashes, but got '--max-size'"),
        ("photos/a.jpg", "Expected key=value, but got 'photos/a.jpg'"),
        ("--chek run=a", 'Did you mean "--check"?'),
        ("run=a batch=-3", "Expected batch=N to be a whole number of at least 1, but got '-3'"),
        ("run=a batch=0", "but got '0'"),
        ("run=a batch=1.5", "but got '1.5'"),
        ("run=a tasks=[]", "Expected tasks=[a,b] to be names with commas between them, as in [a,b], but got '[]'"),
        ("run=a tasks=a,,b", "but got 'a,,b'"),
        ("run=a tasks=[a", "but got '[a'"),
        ("run=a all=yes", "Expected all=false to be true or false, but got 'yes'"),
        ("run=a format=onx", 'Unknown format "onx". Did you mean "onnx"? Known: onnx, pt2.'),
    ],
)
def test_slips_are_answered(typed: str, answer: str) -> None:
    with pytest.raises(ConfigError) as caught:
        USAGE.parse(shlex.split(typed))
    assert answer in str(caught.value)


def test_home_is_found_behind_an_equals_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert USAGE.parse(["run=~/a", "tasks=~"])["run"] == "/somewhere/a"
    assert USAGE.parse(["run=a~/b"])["run"] == "a~/b"


def test_the_page_of_help_fits_and_loses_no_word() -> None:
    words = " ".join(f"word{k}" for k in range(60))
    usage = Usage("toy", words, {"a_rather_long_key_of_a_verb": Option("A|B|C", words), "b": Option("N", "short", 1)})
    lines = usage.help().splitlines()
    assert max(map(len, lines)) <= shell.PAGE
    assert " ".join(usage.help().split()).count("word59") == 2
    assert lines[0] == "usage: python -m medusa_cl.toy a_rather_long_key_of_a_verb=A|B|C [key=value ...]"
    assert f"{'  b=N':<28}short" in lines
    # A name that is too long for its column stands above what is said of it.
    above = lines.index("  a_rather_long_key_of_a_verb=A|B|C")
    assert lines[above + 1].startswith(" " * 28 + "word0 ")


def usages(value: Any) -> Iterator[Usage]:
    if isinstance(value, Usage):
        yield value
    for one in value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else ():
        yield from usages(one)


def all_usages() -> list[Usage]:
    modules = [importlib.import_module(f"medusa_cl.{verb}") for verb in verbs.VERBS if verb != "run"]
    return list({id(one): one for module in modules for one in usages(vars(module))}.values())


def test_every_page_of_help_fits_and_its_examples_can_be_typed() -> None:
    found = all_usages()
    assert {one.command.split()[0] for one in found} == set(verbs.VERBS) - {"run"}
    for one in found:
        text = one.help().split("\nexamples:")[0]
        assert max(map(len, text.splitlines())) <= shell.PAGE, one.command
        assert one.examples, one.command
        for example in one.examples:
            one.parse(shlex.split(example.split(" > ")[0], comments=True))


# ---------------------------------------------------------------- the page of run


def test_the_page_of_run_says_what_the_files_say() -> None:
    text = page.page()
    assert max(map(len, text.splitlines())) <= shell.PAGE
    for group, options in groups().items():
        assert f"  {group}=" in text
        assert all(re.search(rf"\b{option}\b", text) for option in options)
    for file, prefix, keys in page.SHOWN:
        source = (ROOT / "configs" / f"{file}.yaml").read_text(encoding="utf-8")
        for key in keys:
            value, about = page.comments(file)[key]
            assert f"{prefix}{key}={value}" in text or (len(value) > 20 and f"{prefix}{key}= " in text)
            assert about and about in source, key
            assert about.split()[-1] in text
    check_overrides([word for example in page.EXAMPLES for word in shlex.split(example, comments=True)])


def test_the_default_of_a_group_stands_first() -> None:
    row = next(line for line in page.page().splitlines() if line.startswith("  head="))
    assert row.split()[1] == "medusa_light,"
    assert "plugins=                    (none), agem" in page.page()


def test_comments_of_keys_within_keys_and_above_them() -> None:
    known = page.comments("config")
    assert known["study.orders"] == ("0", "so many random orders of the stream in place of the listed one")
    assert known["study.members"][1].startswith("strategies, with plugins")
    assert known["hydra.output_subdir"] == ("null", "")
    assert page.comments("scenario/rooms_incremental")["augment.rotation"][0] == "0.0"


def test_help_of_run_needs_neither_hydra_nor_torch() -> None:
    done = python("-X", "importtime", "-m", "medusa_cl.run", "strategy=medusa", "-h")
    assert done.returncode == 0 and done.stdout == f"{page.page()}\n"
    assert not re.search(r"\| +(hydra|omegaconf|torch|numpy|yaml)$", done.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("argument", "answer"),
    [
        ("--strategy=medusa", "Expected strategy=medusa, without dashes, but got '--strategy=medusa'"),
        ("--trainer.max_steps", "Expected trainer.max_steps=VALUE, without dashes"),
        ("help", "Expected key=value, but got 'help'. See"),
        ("trainer.max_steps", "Expected key=value, but got 'trainer.max_steps'"),
        ("--cfg=job help", "Expected key=value, but got 'help'"),
        ("-c job -m seed=0,1", "Expected one of -c, -m: each is another thing to do"),
        ("--cfg job --multi", "Expected one of --cfg, --multi"),
        ("--resolve", "add --cfg job"),
        ("--mulitrun", 'Unknown option "--mulitrun". Did you mean "--multirun"?'),
    ],
)
def test_slips_beside_keys_are_answered(argument: str, answer: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(answer)):
        check_overrides(shlex.split(argument))


def test_what_hydra_takes_with_dashes_passes() -> None:
    check_overrides(["--cfg", "job", "--resolve", "-cjob", "--config-dir=x", "--hydra-help", "-p", "trainer"])
    check_overrides(["--multi", "seed=0,1"])


def test_a_sweep_may_be_asked_for_anywhere() -> None:
    from medusa_cl.run import _sweep_first

    assert _sweep_first(["seed=0,1", "--cfg", "job", "-m", "a=1"]) == ["-m", "seed=0,1", "--cfg", "job", "a=1"]
    assert _sweep_first(["seed=0"]) == ["seed=0"]


# ---------------------------------------------------------------- one name for all verbs


def python(*arguments: str, code: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [sys.executable, *arguments, *(["-c", code] if code else [])]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, **options)


def test_the_entry_point_runs_a_verb_as_python_m_does() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"medusa": "medusa_cl.__main__:console"}
    # As the main module of its own name: that is what processes that are spawned look for.
    shown = "import sys, medusa_cl.__main__ as m; sys.argv = ['/bin/medusa', 'track', '--help']; m.console()"
    by_name, as_module = python(code=shown), python("-m", "medusa_cl.track", "--help")
    assert by_name.returncode == as_module.returncode == 0
    assert by_name.stdout == as_module.stdout != ""


def test_a_verb_gets_its_arguments_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "argv", ["medusa", "run", "-m", "seed=0,1"])
    monkeypatch.setattr("runpy.run_module", lambda *a, **k: seen.append((a, k, sys.argv[1:])))
    verbs.console()
    assert seen == [(("medusa_cl.run",), {"run_name": "__main__", "alter_sys": True}, ["-m", "seed=0,1"])]


def ended(monkeypatch: pytest.MonkeyPatch, main: Any, *arguments: str) -> Any:
    """Return the status a verb ends with."""
    monkeypatch.setattr(sys, "argv", ["medusa", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_verbs_are_listed_and_an_unknown_one_gets_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, verbs.console) == 0
    listed = re.findall(r"medusa_cl\.(\w+) ", capsys.readouterr().out)
    assert listed == list(verbs.VERBS)
    assert [*re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)] == list(verbs.VERBS)
    assert ended(monkeypatch, verbs.console, "prepar", "path=x") == 1
    said = capsys.readouterr()
    assert said.out == "" and 'Unknown verb "prepar". Did you mean "prepare"?' in said.err


# ---------------------------------------------------------------- how a process ends


def raising(error: BaseException) -> Any:
    def main(arguments: Any) -> None:
        raise error

    return lambda: shell.end(main, stopped="stopped: go on")


def killed(number: int) -> Any:
    return lambda: shell.end(lambda arguments: os.kill(os.getpid(), number), stopped="stopped: go on")


KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.MedusaError)]
ENDS: dict[str, tuple[Any, int, str]] = {
    "done": (lambda: shell.end(lambda arguments: None), 0, ""),
    **{kind.__name__: (raising(kind("what")), kind.exit_code, "error: what\n") for kind in KINDS},
    "KeyboardInterrupt": (raising(KeyboardInterrupt()), 130, "stopped: go on\n"),
    "SIGINT": (killed(signal.SIGINT), 130, "stopped: go on\n"),
    "SIGTERM": (killed(signal.SIGTERM), 143, "stopped: go on\n"),
    "SIGUSR1": (killed(signal.SIGUSR1), 138, "stopped: go on\n"),
}


@pytest.mark.parametrize(
    ("how", "answer"),
    [
        (lambda folder: folder.write_text(""), "Is a directory: {}. Name a file"),
        (lambda folder: (folder / "no" / "a").read_text(), "No such file or directory: {}/no/a. Check that"),
        (lambda folder: os.replace(folder / "a", folder / "b"), "No such file or directory: {}/b. Check that"),
    ],
)
def test_what_the_system_says_of_a_path_is_one_message(
    how: Any, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, lambda: shell.end(lambda arguments: how(tmp_path))) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {answer.format(tmp_path)}") and said.count("\n") == 1
    with pytest.raises(OSError, match="of ours"), shell.mending():
        raise OSError(5, "of ours")


@pytest.mark.parametrize("module", ["hydra", "numpy", "torch"])
def test_ctrl_c_while_run_still_loads_is_one_line(module: str, tmp_path: Path) -> None:
    """Sent by what is being imported, so that it comes when the import is under way."""
    code = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.startswith({module!r} + '.'):\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv = ['run', 'out=here']\n"
        "runpy.run_module('medusa_cl.run', run_name='__main__', alter_sys=True)"
    )
    done = python(code=code, cwd=tmp_path)
    said = "Stopped. Nothing was begun yet: the same command can be given again.\n"
    assert (done.returncode, done.stdout, done.stderr) == (130, said, "")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("how", ENDS)
def test_a_verb_ends_with_its_status(
    how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main, status, said = ENDS[how]
    before = signal.getsignal(signal.SIGTERM)
    assert ended(monkeypatch, main) == status
    assert capsys.readouterr().err == said
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_was_noted_of_an_error_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ConfigError("what")
    error.add_note("and where")
    assert ended(monkeypatch, raising(error)) == 1
    assert capsys.readouterr().err == "error: what\nand where\n"


def test_the_page_lists_every_status() -> None:
    table = PAGE.split("## Exit status")[1].split("##")[0]
    listed = {int(n) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for n in row.split(",")}
    assert listed == {status for _, status, _ in ENDS.values()} | {shell.PIPE_CLOSED}


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())()


@pytest.mark.parametrize("verb", ["prepare", "run", ""])
def test_a_reader_that_has_gone_ends_it_in_silence(verb: str, tmp_path: Path) -> None:
    """As `... | head -0` does: nothing is said, neither in the middle nor when the process ends."""
    typed = {
        "prepare": ["medusa_cl.prepare", f"out={fake_dense_hdf5(tmp_path / 'a.h5', {'train': 2})}", "--check"],
        "run": ["medusa_cl.run", "--cfg", "job"],
        "": ["medusa_cl"],
    }
    command = [sys.executable, "-m", *typed[verb]]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=ROOT, timeout=120)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (shell.PIPE_CLOSED, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_a_redirection_is_said_and_a_closed_stdout_is_not() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "medusa_cl"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "error: The disk is full where this writes or prints to: No space left on device.\n"
    closed = subprocess.run(["sh", "-c", f"{shlex.join(command)} >&-"], stderr=subprocess.PIPE, cwd=ROOT, timeout=60)
    assert (closed.returncode, closed.stderr) == (0, b"")


def test_a_terminal_without_our_characters_gets_plain_ones() -> None:
    code = "from medusa_cl import shell; shell.end(lambda a: print('°', '↑', '\\u2013', 'ü', '\\udcfc.png', '─' * 3))"
    assert python(code=code, env={"PYTHONIOENCODING": "ascii"}).stdout == "o ^ - ? \\xfc.png ---\n"
    utf8 = python(code=code, env={"PYTHONIOENCODING": "utf-8"}, encoding="utf-8")
    assert utf8.stdout == "° ↑ \N{EN DASH} ü \\xfc.png ───\n"


# ---------------------------------------------------------------- warnings of others


PLACE = "site-packages/avalanche/training/plugins/replay.py"
TEXT = "Call to deprecated function update (removal in version 0.7)"


def heard_of(*given: tuple[str, type[Warning], str]) -> list[str]:
    """Return which warnings come through where Avalanche asks for all deprecations, as it does each time."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet.quiet():
            for message, category, file in given:
                warnings.simplefilter("always", DeprecationWarning)
                warnings.warn_explicit(message, category, file, 1)
        warnings.warn_explicit("outside", DeprecationWarning, PLACE, 1)
    return [str(one.message) for one in heard]


def test_only_what_is_listed_is_silenced_and_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    assert heard_of((TEXT, DeprecationWarning, f"/x/{PLACE}")) == ["outside"]
    assert heard_of((TEXT, DeprecationWarning, r"C:\x\avalanche\training\plugins\replay.py")) == ["outside"]
    for other in (
        (TEXT, UserWarning, f"/x/{PLACE}"),
        (TEXT, DeprecationWarning, str(ROOT / "medusa_cl/run.py")),
        ("The memory is full", DeprecationWarning, f"/x/{PLACE}"),
    ):
        assert heard_of(other) == [other[0], "outside"]
    assert all(len(one.message) > 25 and one.place.count("/") >= 2 and one.why for one in quiet.SILENCED)


def test_deprecations_of_others_are_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", [])
    theirs = [
        ("theirs", DeprecationWarning, place)
        for place in ("/x/torch/a.py", "/x/medusa_cl/.venv/lib/python3.11/site-packages/torch/a.py")
    ]
    files = [inspect.getfile(module) for module in (shell, page, importlib.import_module("medusa_cl.scenarios"))]
    ours = [(file, DeprecationWarning, place) for file in files for place in sorted({file, str(Path(file).resolve())})]
    results = ("results differ", UserWarning, "/x/torch/a.py")
    assert heard_of(*theirs, *ours, results) == [*(name for name, _, _ in ours), "results differ", "outside"]


def test_an_import_filters_nothing() -> None:
    code = (
        "import warnings; before = list(warnings.filters)\n"
        "import medusa_cl, medusa_cl.shell, medusa_cl.quiet, medusa_cl.prepare, medusa_cl.track\n"
        "assert warnings.filters == before"
    )
    assert python(code=code).stderr == ""
