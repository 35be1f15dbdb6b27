"""Fetching data sets: transfers that go on where they stopped, archives that cannot write elsewhere, sources in order.

Nothing is seen under its final name before it is whole and checked: a file grows as `NAME.part`, a tree is unpacked
beside its place, and both are renamed at the end.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit

from filelock import FileLock, Timeout

from medusa_cl import __version__
from medusa_cl.errors import DataError

Progress = Callable[[int, int | None], None]
"""Called with (bytes there, bytes in all or None where the server does not say)."""

TIMEOUT = 10.0
"""Seconds to wait for a connection, and for each next piece of an answer."""
WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each new try after a broken transfer."""
WORTH = 1 << 20
"""A transfer that gained this many bytes before it broke gets all its tries anew: 3 GB may break often."""
DRIVE = "gdrive:"

_CHUNK = 1 << 18
_HEAD = 64
FULL = (errno.ENOSPC, errno.EDQUOT)
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A file on the network.

    Attributes:
        url: An http or https address, which may hold a user and a password, or `gdrive:ID`.
        name: The file name to save it under.
        size: Its bytes; None = unknown, so unchecked.
        md5: Its MD5 in hexadecimal; None = unknown, so unchecked.
        check: Called with each address that a server redirects to; raises for one that may not be asked.

    Raises:
        DataError: The address is of another kind, the name is not a plain file name, or the MD5 is none.
    """

    url: str
    name: str
    size: int | None = None
    md5: str | None = None
    check: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if not self.name or self.name in (".", "..") or set(self.name) & set("/\\"):
            raise DataError(f'Expected a plain file name to save a download under, but got "{self.name}".')
        if self.md5 is not None and re.fullmatch(r"[0-9a-f]{32}", self.md5) is None:
            raise DataError(f'Expected 32 digits of 0-9a-f as the MD5 of {self.name}, but got "{self.md5}".')
        if not _is_address(self.url):
            # The address itself is not shown: of a malformed one nobody knows where its password ends.
            raise DataError(
                f"The address of {self.name} is none that can be fetched. "
                f"Expected http://, https:// or {DRIVE}ID, with blanks and other special characters percent-encoded."
            )


class _Dropped(Exception):
    """A transfer broke off.

    Attributes:
        reached: The server had answered, so that another try is worth its wait.
    """

    def __init__(self, reason: str, reached: bool = True) -> None:
        super().__init__(reason)
        self.reached = reached


# A file


def fetch(source: Source, folder: Path | str, progress: Progress | None = None, timeout: float = TIMEOUT) -> Path:
    """Download a file, or find it there already.

    What an interrupted call left in `NAME.part` is gone on from. Two processes that ask for one file fetch it once.

    Args:
        source: What to fetch.
        folder: Where to put it; made if it does not exist.
        progress: Called with (bytes there, bytes in all or None) after each piece.
        timeout: Seconds to wait for a connection and for each next piece.

    Returns:
        The file, whole: of the size and the MD5 that the source states.

    Raises:
        DataError: It cannot be reached, is not what was expected, or cannot be written; what came of it is kept unless
            it is wrong.
    """
    path = Path(folder) / source.name
    if _finished(path, source):
        return path
    with alone(path):
        if _finished(path, source):
            return path  # another process fetched it while this one waited
        _log.info("Fetching %s to %s", _where(source), path)
        part = path.with_name(path.name + ".part")
        (_fetch_drive if source.url.startswith(DRIVE) else _fetch_http)(source, part, progress, timeout)
        _verify(part, source)
        _publish(part, path, source)
    return path


def _is_address(url: str) -> bool:
    if url.startswith(DRIVE):
        return re.fullmatch(r"[\w-]+", url.removeprefix(DRIVE)) is not None
    try:
        parts = urlsplit(url)
        # Asking for the port checks it.
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return known and re.fullmatch(r"[!-~]+", url) is not None


def _masked(text: str) -> str:
    """Return an address, or a message that may quote one, without passwords and query values."""
    text = re.sub(r"(\w+://)?[^\s'\"]*@", r"\1***@", text)  # up to the last @: a password may hold one
    return re.sub(r"(?<=\S)([?#])[^\s'\")]+", r"\1***", text)


def _where(source: Source) -> str:
    if source.url.startswith(DRIVE):
        return f"Google Drive file {source.url.removeprefix(DRIVE)}"
    return _masked(source.url)


def _unwrapped(error: BaseException) -> BaseException:
    while isinstance(error, URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    return error


def reason_of(error: BaseException) -> str:
    """One line, without secrets."""
    return _one_line(str(_unwrapped(error))) or type(error).__name__


def _one_line(text: str) -> str:
    return _masked(" ".join(text.split()))[:300].rstrip(". ")


def _refuse(source: Source, reason: str, advice: str, cause: BaseException | None = None) -> NoReturn:
    raise DataError(f"Cannot fetch {_where(source)}: {reason}. {advice}") from cause


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the file system raises into a `DataError` that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(_cannot_write(path, error)) from error


def _cannot_write(path: Path, error: OSError) -> str:
    if error.errno in FULL:
        return f"Cannot write {path}: the disk is full. What is there is kept: make room and run it again to go on."
    return f"Cannot read or write {path}: {error}. Choose a folder that can be written."


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Make the folder of a file or tree and keep other processes off it; the lock goes with a killed process."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _log.warning("Another process is fetching %s: waiting for it.", path)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


# What is there


def _finished(path: Path, source: Source) -> bool:
    """Whether the file is there and is what the source says; hashing gigabytes takes seconds, so it is noted."""
    with disk_errors(path):
        if not path.exists():
            return False
        state = _state(path, source)
        if source.size is not None and path.stat().st_size != source.size:
            wrong = f"has {path.stat().st_size} bytes, not {source.size}"
        elif source.md5 is None or _text(_note(path)) == state:
            return True
        elif (found := _md5(path)) == source.md5:
            _remember(path, state)
            return True
        else:
            wrong = f"has the MD5 {found}, not {source.md5}"
    _log.warning("%s %s. It is fetched again.", path, wrong)
    return False


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".verified")


def _state(path: Path, source: Source) -> str:
    found = path.stat()
    return f"{found.st_size} bytes, changed at {found.st_mtime_ns} ns, md5 {source.md5}\n"


def _remember(path: Path, state: str) -> None:
    with contextlib.suppress(OSError):  # in a folder that can only be read the file is hashed anew each time
        _note(path).write_text(state, encoding="utf-8")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _verify(part: Path, source: Source) -> None:
    """Refuse a finished transfer that is not the file; what is wrong is deleted, as going on from it would not help."""
    with disk_errors(part):
        size = part.stat().st_size
        with part.open("rb") as file:
            head = file.read(_HEAD)
        reason = "a web page was sent instead of the file" if _is_html(head) else ""
        if not size:
            reason = "the server sent nothing"
        elif not reason and source.size not in (None, size):
            reason = f"the file has {size} bytes, but {source.size} are expected"
        elif not reason and source.md5 and (found := _md5(part)) != source.md5:
            reason = f"the file has the MD5 {found}, but {source.md5} is expected"
        if not reason:
            return
        _discard(part)
    _refuse(source, reason, "What came was deleted. Try again, or get the file elsewhere.")


def _publish(part: Path, path: Path, source: Source) -> None:
    with disk_errors(path):
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # a name that outlives a power cut must not stand for missing bytes
        os.replace(part, path)
        _origin(part).unlink(missing_ok=True)
    _remember(path, _state(path, source))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def require_space(path: Path, total: int | None, held: int) -> None:
    """Refuse to begin what will not fit: `total` bytes, of which `held` are there."""
    with disk_errors(path):
        needed, free = (total or 0) - held, shutil.disk_usage(path.parent).free
    if free < needed:
        raise DataError(
            f"Not enough space for {path}: {needed} bytes are needed, {free} are free. "
            "Make room, or choose a folder with more."
        )


def _is_html(head: bytes) -> bool:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype", b"<html"))


# A transfer


def _persevere(source: Source, attempt: Callable[[], None], held: Callable[[], int]) -> None:
    """Try again after a broken transfer, a few times without gain; not when nothing was reached at all."""
    waits, furthest, reached = list(WAITS), held(), False
    while True:
        try:
            return attempt()
        except _Dropped as error:
            reached = reached or error.reached
            if held() >= furthest + WORTH:
                waits, furthest = list(WAITS), held()
            if not reached:
                _refuse(source, str(error), "Check the network, and HTTPS_PROXY if there is a proxy.", error)
            if not waits:
                _refuse(source, str(error), "Run it again later: it goes on where it stopped.", error)
            _log.warning("%s: %s. Trying again in %g s.", _where(source), error, waits[0])
            time.sleep(waits.pop(0))


def _fetch_http(source: Source, part: Path, progress: Progress | None, timeout: float) -> None:
    _persevere(source, partial(_transfer, source, part, progress, timeout), partial(_size, part))


def _transfer(source: Source, part: Path, progress: Progress | None, timeout: float) -> None:
    """Fetch what the part lacks."""
    held = _resumable(part, source)
    if source.size is not None and held == source.size:
        return  # a process was killed between the last byte and the renaming
    require_space(part, source.size, held)
    response = _answer(source, part, held, timeout)
    if response is None:
        return
    with response:
        start, total = _extent(response, source, part, held)
        require_space(part, total, start)
        _receive(response, source, part, start, total, progress)


def _origin(part: Path) -> Path:
    """Beside a part: which address it came from and how the server marked the version."""
    return part.with_name(part.name + ".from")


def _address(source: Source) -> str:
    return hashlib.sha256(source.url.encode()).hexdigest()  # the address may hold a password


def _discard(part: Path) -> None:
    with disk_errors(part):
        part.unlink(missing_ok=True)
        _origin(part).unlink(missing_ok=True)


def _resumable(part: Path, source: Source) -> int:
    """How many bytes can be gone on from: none of another address's, unless the MD5 will tell."""
    known = source.md5 is not None or _text(_origin(part)).startswith(_address(source))
    return _size(part) if known else 0


def _request(source: Source, part: Path, held: int) -> urllib.request.Request:
    parts = urlsplit(source.url)
    user, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host, fragment="")))
    request.add_header("User-Agent", f"medusa_cl/{__version__}")
    request.add_header("Accept-Encoding", "identity")  # offsets count the bytes of the file
    if user:
        token = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")  # for this server alone
    if held:
        request.add_header("Range", f"bytes={held}-")
        address, _, version = _text(_origin(part)).strip().partition(" ")
        if version and address == _address(source):
            request.add_header("If-Range", version)  # a file changed meanwhile is sent whole
    return request


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to other addresses, each of which must pass the check that the first one did."""

    def __init__(self, check: Callable[[str], None] | None) -> None:
        self._check = check

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if self._check is not None:
            self._check(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _answer(source: Source, part: Path, held: int, timeout: float) -> HTTPResponse | None:
    """Ask for what is missing; None = nothing is."""
    try:
        # A new opener each time: the common one remembers the proxies of its first use.
        opener = urllib.request.build_opener(_Redirects(source.check))
        response: HTTPResponse = opener.open(_request(source, part, held), timeout=timeout)
        return response
    except HTTPError as error:
        with error:
            _check_whole(error, source, part, held)
        return None
    except (OSError, HTTPException, ValueError) as error:
        silent = isinstance(_unwrapped(error), TimeoutError)
        reached = not (silent or isinstance(error, URLError | ValueError))
        raise _Dropped(f"no answer within {timeout:g} s" if silent else reason_of(error), reached) from error


def _check_whole(error: HTTPError, source: Source, part: Path, held: int) -> None:
    """Return if a status of 400 or above says that nothing is missing; else refuse, or ask for another try."""
    said = _one_line(f"the server answered {error.code} {error.reason}")
    if error.code == 416 and held:
        if error.headers.get("Content-Range", "").replace(" ", "") == f"bytes*/{held}":
            return
        _discard(part)
        raise _Dropped("the server's file ends before what is there of it, so it is fetched from its start")
    if error.code in _TRANSIENT:
        raise _Dropped(said) from error
    denied = error.code in (401, 403, 407)
    advice = "It asks for a user and a password." if denied else "It may have moved: get it elsewhere."
    _refuse(source, said, advice, error)


def _extent(response: HTTPResponse, source: Source, part: Path, held: int) -> tuple[int, int | None]:
    """Where the bytes to come belong, and how long the whole file is."""
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        _refuse_html(source)
    start, total = 0, _number(response.headers.get("Content-Length"))
    if response.status == 206:
        given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if given is None or int(given[1]) != held:
            _discard(part)
            raise _Dropped("the server sent another piece than the one asked for, so it is fetched from its start")
        start, total = held, _number(given[2]) or (None if total is None else held + total)
    elif response.status != 200:
        _refuse(source, f"the server answered {response.status} {response.reason}", "Get the file elsewhere.")
    if None not in (total, source.size) and total != source.size:
        _refuse(source, f"the file has {total} bytes, but {source.size} are expected", "Get the file elsewhere.")
    return start, source.size if total is None else total


def _number(text: str | None) -> int | None:
    return int(text) if text and text.strip().isdecimal() else None


def _refuse_html(source: Source) -> NoReturn:
    _refuse(
        source,
        "a web page was sent instead of the file",
        "The address may ask for a login or a consent: open it in a browser.",
    )


def _receive(
    response: HTTPResponse, source: Source, part: Path, start: int, total: int | None, progress: Progress | None
) -> None:
    """Append what comes; unbuffered, so that all of it is there whatever ends this."""
    # Looked at before the part is emptied: a page of an unreachable server must not cost what is there.
    head = b"" if start else _read(response.read, _HEAD)
    if _is_html(head):
        _refuse_html(source)
    done = start
    with _opened(response, source, part, start) as file:
        while chunk := head or _read(response.read1, _CHUNK):
            head = b""
            with disk_errors(part):
                _write(file, chunk)
            done += len(chunk)
            if total is not None and done > total:
                break  # it may never end; refused below for its size
            if progress is not None:
                progress(done, total)
    if total is not None and done < total:
        raise _Dropped(f"the connection broke off after {done} of {total} bytes")


def _read(read: Callable[[int], bytes], count: int) -> bytes:
    try:
        return read(count)
    except (OSError, HTTPException, ValueError) as error:
        raise _Dropped(f"the connection broke off ({reason_of(error)})") from error


def _opened(response: HTTPResponse, source: Source, part: Path, start: int) -> IO[bytes]:
    with disk_errors(part):
        if not start:
            tag = response.headers.get("ETag", "")
            version = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
            _origin(part).write_text(f"{_address(source)} {version}\n", encoding="utf-8")
        return part.open("ab" if start else "wb", buffering=0)


def _write(file: IO[bytes], chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:  # an almost full disk takes a piece first
        view = view[file.write(view) :]


# Google Drive


def _fetch_drive(source: Source, part: Path, progress: Progress | None, timeout: float) -> None:
    require_space(part, source.size, 0)
    whole = part.with_name(source.name + ".drive")
    _persevere(source, partial(_from_drive, source, whole, progress, timeout), lambda: sum(map(_size, _begun(whole))))
    with disk_errors(part):
        os.replace(whole, part)


def _begun(whole: Path) -> list[Path]:
    """The unfinished files of gdown, which puts eight characters of its own into their names; the largest first."""
    pattern = re.compile(re.escape(whole.name) + r".{8}\.part")
    return sorted((path for path in whole.parent.iterdir() if pattern.fullmatch(path.name)), key=_size, reverse=True)


def _from_drive(source: Source, whole: Path, progress: Progress | None, timeout: float) -> None:
    try:
        import gdown
    except ImportError as error:
        _refuse(source, "the package gdown is not installed", "Install it: pip install gdown", error)
    with disk_errors(whole):
        for superfluous in _begun(whole)[1:]:
            superfluous.unlink()  # of several gdown takes none
        before = sum(map(_size, _begun(whole)))
    number = source.url.removeprefix(DRIVE)
    try:
        gdown.download(
            id=number,
            output=str(whole),
            quiet=True,
            resume=True,
            use_cookies=False,  # it would leave some in the user's cache
            progress=progress,
            timeout=timeout,
        )
    except Exception as error:  # gdown, requests and its parser of pages raise whatever they like
        if isinstance(error, OSError) and error.errno in FULL:
            raise DataError(_cannot_write(whole, error)) from error
        raise _Dropped(reason_of(error), reached=sum(map(_size, _begun(whole))) > before) from error
    if not whole.is_file():
        _refuse(source, "gdown brought no file", "Open the address in a browser.")
