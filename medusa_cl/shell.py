"""The manners that all verbs share: options as key=value, a page of help, errors as one message with an exit status."""

from __future__ import annotations

import codecs
import errno
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, TextIO

from medusa_cl import stopping
from medusa_cl.errors import ConfigError, MedusaError, printable, unknown
from medusa_cl.quiet import quiet

Form = Callable[[str], Any]
PIPE_CLOSED = 128 + signal.SIGPIPE
PAGE = 100  # columns of a page of help
_LEFT = 28  # columns before what an option is about
_MUST_BE_GIVEN: Any = object()
# What stands for a character that a terminal cannot show; one for one, so that tables stay straight.
_PLAIN = dict(
    zip("↑↓→…·±≥≤°²µΔ─━│┃╸╺\N{EN DASH}\N{MINUS SIGN}\N{MULTIPLICATION SIGN}", "^v>..+><o2uD--||----x", strict=True)
)
_HANDLER = "medusa_cl.plain"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ADVICE = {
    errno.EISDIR: "Name a file: this is a folder.",
    errno.ENOTDIR: "A part of this path is a file, not a folder. Choose another path.",
    errno.EEXIST: "Choose another path, or move away what is there.",
    errno.EACCES: "Choose a place where you may read and write, or change its permissions.",
    errno.EPERM: "Choose a place where you may read and write, or change its permissions.",
    errno.EROFS: "Choose a place that can be written to.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
} | dict.fromkeys(_FULL, "Make room there, or choose another place.")


@dataclass(frozen=True)
class Option:
    """One key=value of a verb.

    Attributes:
        shown: What the value is in the help, such as "DIR".
        about: One line of help.
        default: Its value where it is left out; without one it must be given.
        form: Makes the value of its text, or raises `ValueError` with what was expected.
    """

    shown: str
    about: str
    default: Any = _MUST_BE_GIVEN
    form: Form = str


@dataclass(frozen=True)
class Usage:
    """What can be said to a verb.

    Attributes:
        command: What it is called by, after `python -m medusa_cl.`: "predict", "heads add".
        about: What it does, in a line or two.
        options: Its options by key.
        examples: Lines to type, without what they all begin with; a comment may follow.
        switches: What may be said without a value, such as "--check", and what each does.
    """

    command: str
    about: str
    options: Mapping[str, Option]
    examples: Sequence[str] = ()
    switches: Mapping[str, str] = field(default_factory=dict)

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Return the value of every option, and of every switch, by its name without dashes, whether it was given.

        Raises:
            ConfigError: A key is unknown, comes twice or is missing, or its value has another form.
        """
        switches = {name.lstrip("-"): name in arguments for name in self.switches}
        rest = [argument for argument in arguments if argument not in self.switches]
        given = dict(self._pair(argument) for argument in rest)
        if len(given) < len(rest):
            raise ConfigError(f"An option of {self.command} was given twice: {' '.join(rest)}. Give each once.")
        return {key: self._value(key, option, given.get(key)) for key, option in self.options.items()} | switches

    def help(self) -> str:
        """Return the page that --help prints, at most `PAGE` columns wide where no example or word is wider."""
        must = [f"{key}={o.shown}" for key, o in self.options.items() if o.default is _MUST_BE_GIVEN]
        lines = [_filled(" ".join([f"usage: python -m medusa_cl.{self.command}", *must, "[key=value ...]"]), 7), ""]
        lines += [_filled(self.about), ""]
        lines += [row(f"{key}={option.shown}", option.about) for key, option in self.options.items()]
        lines += [row(name, about) for name, about in self.switches.items()]
        if self.examples:
            lines += ["", "examples:", *(f"  python -m medusa_cl.{self.command} {one}" for one in self.examples)]
        return "\n".join(lines)

    def _pair(self, argument: str) -> tuple[str, str]:
        key, sign, value = argument.partition("=")
        if key not in self.options:
            raise ConfigError(f"{self._no_option(argument)} {self._advice()}")
        if not sign or not value:
            raise ConfigError(
                f"Expected {key}={self.options[key].shown}, but got {argument!r} (no spaces beside the =). "
                f"{self._advice()}"
            )
        return key, os.path.expanduser(value) if value.startswith("~/") else value  # few shells do that after an =

    def _no_option(self, argument: str) -> str:
        key, sign, _ = argument.partition("=")
        if (bare := key.lstrip("-").replace("-", "_")) in self.options:
            return f"Expected {bare}={self.options[bare].shown}, without dashes, but got {argument!r}."
        if not sign and not key.startswith("-") and not key.isidentifier():
            return f"Expected key=value, but got {argument!r}."
        return unknown(f"option of {self.command}", key, [*self.options, *self.switches])

    def _value(self, key: str, option: Option, text: str | None) -> Any:
        if text is None:
            if option.default is _MUST_BE_GIVEN:
                raise ConfigError(f"Expected {key}={option.shown}: {option.about}. {self._advice()}")
            return option.default
        try:
            return option.form(text)
        except _NotAmongError as error:
            raise ConfigError(unknown(key, text, error.known)) from None
        except ValueError as error:
            raise ConfigError(f"Expected {key}={option.shown} to be {error}, but got {text!r}.") from None

    def _advice(self) -> str:
        return f"See python -m medusa_cl.{self.command} --help."


def row(name: str, about: str, left: int = _LEFT) -> str:
    """Return a line of a page of help, or as many as `PAGE` columns need: a name, and what it is about beside it."""
    indent = " " * left
    first = f"  {name}"
    said = _filled(about, left, left)
    return f"{first}{said[len(first) :]}" if len(first) < left - 1 else f"{first}\n{indent}{said.lstrip()}"


def _filled(text: str, indent: int = 0, first: int = 0) -> str:
    """Return a text in lines of `PAGE` columns, each paragraph by itself; names and paths are not broken."""
    lines = [
        textwrap.wrap(line, PAGE, initial_indent=" " * first, subsequent_indent=" " * indent,
                      break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    ]  # fmt: skip
    return "\n".join("\n".join(found) for found in lines)


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Return whether help is wanted."""
    return bool({"-h", "--help"} & set(arguments))


class _NotAmongError(ValueError):
    """A word is none of those known."""

    def __init__(self, known: Sequence[str]) -> None:
        super().__init__(f"one of {', '.join(known)}")
        self.known = known


def names(text: str) -> tuple[str, ...]:
    """Read `[a,b]`, `a,b` or `a`."""
    found = tuple(name.strip() for name in text.strip().removeprefix("[").removesuffix("]").split(","))
    if not all(found) or ("[" in text) != ("]" in text):
        raise ValueError("names with commas between them, as in [a,b]")
    return found


def flag(text: str) -> bool:
    """Read `true` or `false`."""
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


def count(text: str) -> int:
    """Read a whole number from 1 on."""
    if not text.isdecimal() or not int(text):
        raise ValueError("a whole number of at least 1")
    return int(text)


def one_of(*known: str) -> Form:
    """Return what reads one of these words."""

    def read(text: str) -> str:
        if text not in known:
            raise _NotAmongError(known)
        return text

    return read


def end(main: Callable[[Sequence[str]], None], stopped: str = "stopped") -> NoReturn:
    """Run a verb on the command line and leave.

    The exit status is 0, that of a `MedusaError`, 128 + the number of the signal that ended it, or `PIPE_CLOSED`.

    Args:
        main: The verb; it gets the arguments.
        stopped: What is said where Ctrl-C, SIGTERM or SIGUSR1 ends it.
    """
    with mannered(), stopping.listening(stopping.StopRequest()):
        try:
            with mending():
                main(sys.argv[1:])
        except MedusaError as error:
            fail(error)
        except (KeyboardInterrupt, stopping.Stopped) as stop:
            print(stopped, file=sys.stderr)
            raise SystemExit(getattr(stop, "code", 128 + signal.SIGINT)) from None
    raise SystemExit(0)


def fail(error: MedusaError) -> NoReturn:
    """Say what is wrong, with what was noted about it, and leave with the error's status."""
    print("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
    raise SystemExit(error.exit_code) from None


@contextmanager
def mending() -> Iterator[None]:
    """Turn what the system says of a file or a folder into an error that can be mended.

    Raises:
        MedusaError: It is said which file, and what to do.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if not isinstance(error.filename, str | bytes | os.PathLike):
            raise
        place = printable(os.fsdecode(error.filename if error.filename2 is None else error.filename2))
        advice = _ADVICE.get(error.errno or 0, "Check that the path is right, and that you may read and write there.")
        mended = MedusaError(f"{error.strerror}: {place}. {advice}")
        for note in getattr(error, "__notes__", []):
            mended.add_note(note)
        raise mended from error


@contextmanager
def mannered() -> Iterator[None]:
    """Speak so that the terminal can show it while the block runs, without other packages' warnings to developers.

    Where nobody reads any more, the process ends in silence.
    """
    for stream in (sys.stdout, sys.stderr):
        speak_plainly(stream)
    try:
        try:
            with quiet(), _leaving_in_silence(sys.stdout):
                yield
        finally:
            if sys.stdout is not None:  # as it is where it was closed from the start (`>&-`)
                sys.stdout.flush()  # while it can still be said how that went
    except BrokenPipeError:
        unread()
        raise SystemExit(PIPE_CLOSED) from None
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        unread()
        fail(MedusaError(f"The disk is full where this writes or prints to: {error.strerror}."))


@contextmanager
def _leaving_in_silence(stream: TextIO | None) -> Iterator[None]:
    """Leave at once where a stream's reader has gone: others, Hydra among them, would report an error of it."""
    if stream is None:
        yield
        return
    write: Callable[[str], int] = stream.write

    def careful(text: str) -> int:
        try:
            return write(text)
        except BrokenPipeError:
            unread()
            raise SystemExit(PIPE_CLOSED) from None

    stream.write = careful  # type: ignore[method-assign]
    try:
        yield
    finally:
        del stream.write


def unread() -> None:
    """Let what is still to be printed go nowhere: its reader, such as head, has seen enough."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def speak_plainly(stream: TextIO | None) -> None:
    """Have what a stream's encoding lacks replaced by the nearest plain characters; by default it is an error."""
    codecs.register_error(_HANDLER, _plainly)
    if stream is not None and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=_HANDLER)


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(letter: str) -> str:
    """Return what stands for a letter, or for a byte of a file's name that is no text."""
    if "\udc80" <= letter <= "\udcff":
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return _PLAIN.get(letter, "?")
