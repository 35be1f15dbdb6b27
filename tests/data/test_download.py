"""Downloads: broken transfers go on, wrong files are refused, archives stay inside, and no failure is silent or slow.

All of it against a server on this machine; the name of any other host is refused.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import inspect
import io
import logging
import os
import shutil
import socket
import stat
import sys
import tarfile
import threading
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from medusa_cl.data import download, origins
from medusa_cl.data.archive import extract
from medusa_cl.data.download import Source, fetch
from medusa_cl.data.origins import NYUD, PASCAL_MANUAL, Alternative, nyud, nyud_manual, obtain
from medusa_cl.errors import DataError, MissingDataError

BODY = bytes(range(256)) * 1200  # 307 200 bytes, and no two places alike within 256
MD5 = hashlib.md5(BODY).hexdigest()
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's table says; every request is written down."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers.items())))
        self.close_connection = True
        answers = self.server.answers.get(self.path.partition("?")[0], [missing])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self)

    def reply(self, status: int, headers: dict[str, object], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answers: dict[str, list[Answer]] = {}
        self.stopped = threading.Event()

    def on(self, path: str, *answers: Answer) -> str:
        """Answer requests for a path one after the other, the last for all that follow; the address."""
        self.answers[path] = list(answers)
        return f"{self.root}{path}"

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.asked]

    def handle_error(self, *_: object) -> None:
        pass  # a client that hangs up


def missing(handler: Handler) -> None:
    handler.reply(404, {"Content-Type": "text/html", "Content-Length": 9}, b"<html>no.")


def sends(
    body: bytes = BODY, *, drop: int | None = None, ranges: bool = True, length: bool = True, etag: str = ""
) -> Answer:
    """Send a file; `drop` breaks the connection off after so many bytes."""

    def answer(handler: Handler) -> None:
        start, wanted = 0, handler.headers.get("Range")
        if ranges and wanted and handler.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        headers: dict[str, object] = {"Content-Type": "application/octet-stream"}
        if length:
            headers["Content-Length"] = len(body) - start
        if etag:
            headers["ETag"] = etag
        if start and start >= len(body):
            return handler.reply(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": 0})
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        rest = body[start:]
        return handler.reply(206 if start else 200, headers, rest if drop is None else rest[:drop])

    return answer


def says(status: int, headers: dict[str, object] | None = None, body: bytes = b"") -> Answer:
    return lambda handler: handler.reply(status, {"Content-Length": len(body), **(headers or {})}, body)


def hangs_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def stays_silent(handler: Handler) -> None:
    handler.server.stopped.wait(10)


def stalls(handler: Handler) -> None:
    sends(drop=1000)(handler)
    handler.wfile.flush()
    handler.server.stopped.wait(10)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield found
        found.stopped.set()
        found.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name but this machine's is looked up; proxies of the environment do not count for it."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    look_up = socket.getaddrinfo

    def local(host: Any, *arguments: Any, **options: Any) -> Any:
        assert host in ("127.0.0.1", "localhost"), f"a test asks for {host}"
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", local)
    monkeypatch.setattr(download, "WAITS", (0.0, 0.0, 0.0))


def source(url: str, name: str = "file.bin", size: int | None = len(BODY), md5: str | None = MD5) -> Source:
    return Source(url, name, size, md5)


def unchecked(url: str, name: str = "file.bin") -> Source:
    return Source(url, name)


def part(folder: Path, content: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "file.bin.part"
    path.write_bytes(content)
    return path


# A whole transfer


def test_a_file_is_fetched_and_nothing_half_done_has_its_name(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []

    def progress(done: int, total: int | None) -> None:
        assert not (tmp_path / "new" / "file.bin").exists()
        seen.append((done, total))

    path = fetch(source(server.on("/a", sends())), tmp_path / "new", progress)
    assert path == tmp_path / "new" / "file.bin"
    assert path.read_bytes() == BODY
    assert server.ranges == [None]
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert not list((tmp_path / "new").glob("*.part*"))


def test_a_server_that_does_not_say_the_length(server: Server, tmp_path: Path) -> None:
    totals: set[int | None] = set()
    path = fetch(unchecked(server.on("/a", sends(length=False))), tmp_path, lambda _, total: totals.add(total))
    assert path.read_bytes() == BODY
    assert totals == {None}


def test_a_chunked_answer_cut_short_is_not_taken_for_whole(server: Server, tmp_path: Path) -> None:
    def chunked(handler: Handler) -> None:
        handler.reply(200, {"Transfer-Encoding": "chunked"}, b"3e8\r\n" + BODY[:1000] + b"\r\n3e8\r\nabc")

    with pytest.raises(DataError, match="broke off"):
        fetch(unchecked(server.on("/a", chunked)), tmp_path)
    assert not (tmp_path / "file.bin").exists()


def test_a_finished_file_is_neither_fetched_nor_hashed_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = source(server.on("/a", sends()))
    fetch(wanted, tmp_path)
    monkeypatch.setattr(download, "_md5", lambda _: pytest.fail("hashed again"))
    assert fetch(wanted, tmp_path).read_bytes() == BODY
    assert len(server.asked) == 1


def test_a_file_put_there_by_hand_is_taken_if_it_is_right(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(BODY)
    assert fetch(source(server.on("/a", sends())), tmp_path).read_bytes() == BODY
    assert server.asked == []
    assert MD5 in (tmp_path / "file.bin.verified").read_text()


@pytest.mark.parametrize("wrong", [BODY[:-1], BODY[:-1] + b"!"], ids=["size", "content"])
def test_a_file_that_is_there_but_wrong_is_fetched_again(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: bytes
) -> None:
    wanted = source(server.on("/a", sends()))
    path = fetch(wanted, tmp_path)
    path.write_bytes(wrong)
    os.utime(path, ns=(0, 0))
    assert fetch(wanted, tmp_path).read_bytes() == BODY
    assert len(server.asked) == 2
    assert "It is fetched again" in caplog.text


def test_two_that_ask_at_once_fetch_once(server: Server, tmp_path: Path) -> None:
    go_on = threading.Event()

    def slow(handler: Handler) -> None:
        go_on.wait(5)
        sends()(handler)

    wanted = source(server.on("/a", slow))
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(fetch, wanted, tmp_path) for _ in range(2)]
        time.sleep(0.1)
        go_on.set()
        assert [each.result(5).read_bytes() == BODY for each in both] == [True, True]
    assert len(server.asked) == 1


# Broken transfers


def test_a_dropped_connection_goes_on_with_the_rest_alone(server: Server, tmp_path: Path) -> None:
    path = fetch(source(server.on("/a", sends(drop=1000), sends(drop=500), sends())), tmp_path)
    assert path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=1000-", "bytes=1500-"]


def test_a_later_call_goes_on_with_what_an_interrupted_one_left(server: Server, tmp_path: Path) -> None:
    wanted = unchecked(server.on("/a", sends()))

    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(wanted, tmp_path, interrupt)
    kept = (tmp_path / "file.bin.part").stat().st_size
    assert 0 < kept < len(BODY)
    assert fetch(wanted, tmp_path).read_bytes() == BODY
    assert server.ranges == [None, f"bytes={kept}-"]


def test_a_stall_counts_as_a_dropped_connection(server: Server, tmp_path: Path) -> None:
    path = fetch(source(server.on("/a", stalls, sends())), tmp_path, timeout=0.2)
    assert path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=1000-"]


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    assert fetch(source(server.on("/a", says(503), hangs_up, sends())), tmp_path).read_bytes() == BODY


def test_tries_without_gain_come_to_an_end_and_keep_the_part(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"broke off after 1000 of {len(BODY)} bytes.*goes on where it stopped"):
        fetch(source(server.on("/a", sends(drop=1000), sends(drop=0))), tmp_path)
    assert len(server.asked) == 1 + len(download.WAITS)
    assert (tmp_path / "file.bin.part").read_bytes() == BODY[:1000]


def test_a_transfer_that_gains_may_break_often(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WORTH", 30_000)
    assert fetch(source(server.on("/a", sends(drop=30_000))), tmp_path).read_bytes() == BODY
    assert len(server.asked) == 11


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    path = fetch(source(server.on("/a", sends(drop=1000), sends(ranges=False))), tmp_path)
    assert path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=1000-"]


@pytest.mark.parametrize("given", ["bytes 0-999/307200", "bytes 2000-307199/307200", "nonsense", None])
def test_another_piece_than_the_one_asked_for_is_not_appended(
    server: Server, tmp_path: Path, given: str | None
) -> None:
    liar = says(206, {"Content-Range": given} if given else {}, BODY[:1000])
    path = fetch(source(server.on("/a", sends(drop=1000), liar, sends())), tmp_path)
    assert path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=1000-", None]


def test_a_part_that_was_whole_needs_no_bytes(server: Server, tmp_path: Path) -> None:
    part(tmp_path, BODY)
    assert fetch(source(server.on("/a", sends())), tmp_path).read_bytes() == BODY
    assert server.asked == []
    part(tmp_path / "b", BODY)
    assert fetch(source(server.on("/b", sends()), size=None), tmp_path / "b").read_bytes() == BODY  # by its status 416
    assert server.ranges == [f"bytes={len(BODY)}-"]


@pytest.mark.parametrize("size", [len(BODY), None])
def test_a_part_that_is_too_long_is_fetched_anew(server: Server, tmp_path: Path, size: int | None) -> None:
    part(tmp_path, BODY + b"more")
    assert fetch(source(server.on("/a", sends()), size=size), tmp_path).read_bytes() == BODY
    assert server.ranges[-1] is None


def test_a_file_that_changed_on_the_server_is_not_patched_together(server: Server, tmp_path: Path) -> None:
    changed = BODY[::-1]
    path = fetch(unchecked(server.on("/a", sends(drop=1000, etag='"1"'), sends(changed, etag='"2"'))), tmp_path)
    assert path.read_bytes() == changed
    assert server.asked[1][1]["If-Range"] == '"1"'


def test_a_weak_mark_of_the_version_is_not_relied_on(server: Server, tmp_path: Path) -> None:
    path = fetch(source(server.on("/a", sends(drop=1000, etag='W/"1"'), sends())), tmp_path)
    assert path.read_bytes() == BODY
    assert "If-Range" not in server.asked[1][1]  # HTTP allows strong ones alone


def test_an_unchecked_part_of_another_address_is_not_gone_on_from(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="broke off"):
        fetch(unchecked(server.on("/a", sends(drop=1000), sends(drop=0))), tmp_path)
    other = BODY[::-1]
    assert fetch(unchecked(server.on("/b", sends(other))), tmp_path).read_bytes() == other
    assert server.ranges[-1] is None


# Refusals


def test_a_wrong_checksum_deletes_the_part(server: Server, tmp_path: Path) -> None:
    wrong = BODY[:-1] + b"!"
    with pytest.raises(DataError, match=rf"{hashlib.md5(wrong).hexdigest()}, but {MD5} is expected.*deleted"):
        fetch(source(server.on("/a", sends(wrong))), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin.lock"]


def test_a_wrong_size_is_seen_before_anything_is_fetched(server: Server, tmp_path: Path) -> None:
    kept = part(tmp_path, BODY[:1000])
    with pytest.raises(DataError, match=f"the file has 9 bytes, but {len(BODY)} are expected"):
        fetch(source(server.on("/a", sends(b"123456789", ranges=False))), tmp_path)
    assert kept.read_bytes() == BODY[:1000]


def test_an_unannounced_wrong_size_ends_the_transfer(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bytes, but 100 are expected"):
        fetch(source(server.on("/a", sends(length=False)), size=100), tmp_path)
    assert not (tmp_path / "file.bin.part").exists()


def test_an_answer_without_end_is_left_at_the_expected_size(server: Server, tmp_path: Path) -> None:
    hung_up = threading.Event()

    def endless(handler: Handler) -> None:
        handler.reply(200, {"Content-Type": "application/octet-stream"})
        try:
            for _ in range(1000):  # 300 MB
                handler.wfile.write(BODY)
        except OSError:
            hung_up.set()

    with pytest.raises(DataError, match=rf"but {len(BODY)} are expected"):
        fetch(source(server.on("/a", endless)), tmp_path)
    assert hung_up.wait(5)


def test_an_empty_answer_is_no_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sent nothing"):
        fetch(unchecked(server.on("/a", sends(b""))), tmp_path)


def test_404_is_said_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{server.root}/gone: the server answered 404 Not Found\. It may have moved"):
        fetch(source(f"{server.root}/gone"), tmp_path)
    assert len(server.asked) == 1
    assert not (tmp_path / "file.bin").exists()


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_not_taken_for_the_file(server: Server, tmp_path: Path, kind: str) -> None:
    body = b"binary" if kind.startswith("text") else b"\xef\xbb\xbf\n <!DocType html><p>Please log in" + b"." * 100
    kept = part(tmp_path, BODY[:1000])  # must not be lost to a page of the cafe's network
    with pytest.raises(DataError, match=r"a web page was sent instead of the file.*browser"):
        fetch(source(server.on("/a", says(200, {"Content-Type": kind}, body)), size=None), tmp_path)
    assert kept.read_bytes() == BODY[:1000]


def test_no_answer_is_a_quick_error(server: Server, tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"no answer within 0\.2 s.*Check the network"):
        fetch(source(server.on("/a", stays_silent)), tmp_path, timeout=0.2)
    assert time.monotonic() - begun < 9  # the server would be silent for 10
    assert len(server.asked) == 1


def test_nobody_there_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda _: pytest.fail("waits for nobody"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(DataError, match=r"refused.*Check the network"):
        fetch(source(f"http://127.0.0.1:{port}/a"), tmp_path)


def test_a_name_that_is_not_known_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(DataError, match=r"nowhere\.invalid/a: .*not known\. Check the network"):
        fetch(source("http://nowhere.invalid/a"), tmp_path)


def test_proxies_of_the_environment_are_used_where_they_should_be(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.on("http://elsewhere.invalid/a", sends())
    monkeypatch.setenv("http_proxy", server.root)
    assert fetch(source("http://elsewhere.invalid/a"), tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(
    "url", ["ftp://h/a", "file:///etc/passwd", "h/a", "http://:80/a", "http://h:x/a", "http://h/a b"]
)
def test_other_addresses_are_refused_unseen(url: str) -> None:
    with pytest.raises(DataError, match=r"address of a\.bin.*Expected http://") as caught:
        Source(url, "a.bin")
    assert url not in str(caught.value)


@pytest.mark.parametrize("name", ["", "..", "a/b", "..\\b"])
def test_names_that_are_paths_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="plain file name"):
        Source("http://h/a", name)


def test_md5s_are_checked_before_a_download_is_thrown_away_for_one() -> None:
    with pytest.raises(DataError, match=r'as the MD5 of a\.bin, but got "sha256:1"'):
        Source("http://h/a", "a.bin", md5="sha256:1")


def test_secrets_stay_out_of_messages(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.on("/a", says(503), says(404))
    url = server.root.replace("//", "//user:hu%40sh@") + "/a?token=whisper#tale"
    with pytest.raises(DataError, match=r"http://\*\*\*@127\.0\.0\.1:\d+/a\?\*\*\*: .*404") as caught:
        fetch(source(url), tmp_path)
    for secret in ("user", "hu%40sh", "hu@sh", "whisper", "tale"):
        assert secret not in str(caught.value) + caplog.text
    path, headers = server.asked[-1]
    assert path == "/a?token=whisper"
    assert headers["Authorization"] == "Basic " + base64.b64encode(b"user:hu@sh").decode()


def test_a_password_is_not_taken_along_to_another_address(server: Server, tmp_path: Path) -> None:
    server.on("/a", says(302, {"Location": "/b"}))
    server.on("/b", sends())
    fetch(source(server.root.replace("//", "//user:hush@") + "/a"), tmp_path)
    assert ["Authorization" in headers for _, headers in server.asked] == [True, False]


# Disks


def test_too_little_space_is_said_before_anything_is_asked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=len(BODY) - 1001))
    wanted = source(server.on("/a", sends()))
    with pytest.raises(DataError, match=rf"Not enough space for .*{len(BODY)} bytes are needed"):
        fetch(wanted, tmp_path)
    assert server.asked == []
    part(tmp_path, BODY[:1001])  # what is there needs no more room
    assert fetch(wanted, tmp_path).read_bytes() == BODY


def test_too_little_space_for_what_the_server_announces(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=len(BODY) - 1))
    with pytest.raises(DataError, match=rf"Not enough space for .*{len(BODY)} bytes are needed"):
        fetch(unchecked(server.on("/a", sends())), tmp_path)


def test_too_little_space_for_google_drive(
    drive: Callable[..., list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = drive(BODY)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=len(BODY) - 1))
    with pytest.raises(DataError, match="Not enough space"):
        fetch(source("gdrive:x1"), tmp_path)
    assert calls == []


def test_a_full_disk_keeps_the_part(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, write = source(server.on("/a", sends())), download._write

    def full(file: Any, chunk: bytes) -> None:
        if file.tell() >= 64:  # after the first piece
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, chunk)

    monkeypatch.setattr(download, "_write", full)
    with pytest.raises(DataError, match=r"file\.bin\.part: the disk is full\. What is there is kept"):
        fetch(wanted, tmp_path)
    kept = (tmp_path / "file.bin.part").stat().st_size
    assert kept >= 64
    assert len(server.asked) == 1  # asking again would not help
    monkeypatch.setattr(download, "_write", write)
    assert fetch(wanted, tmp_path).read_bytes() == BODY
    assert server.ranges == [None, f"bytes={kept}-"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_really_full_device(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match="the disk is full"):
        fetch(source(server.on("/a", sends())), tmp_path)


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError, match=r"Cannot read or write .*taken.*Choose a folder"):
        fetch(source(server.on("/a", sends())), tmp_path / "taken" / "deeper")


# Google Drive


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """`drive(*outcomes)`: each call of gdown raises the next of them, writes it, or what `(part, error)` says."""

    def install(*outcomes: Any) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def fake(**options: Any) -> str:
            outcome = outcomes[min(len(calls), len(outcomes) - 1)]
            calls.append(options)
            if isinstance(outcome, tuple):
                Path(options["output"] + "abcd_123.part").write_bytes(outcome[0])
                raise outcome[1]
            if isinstance(outcome, Exception):
                raise outcome
            Path(options["output"]).write_bytes(outcome)
            return str(options["output"])

        monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=fake))
        return calls

    return install


def test_google_drive_by_gdown(drive: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    calls = drive(BODY)
    wanted = source("gdrive:Some_id-1")
    assert fetch(wanted, tmp_path, timeout=3).read_bytes() == BODY
    assert (calls[0]["id"], calls[0]["timeout"], calls[0]["resume"]) == ("Some_id-1", 3, True)
    fetch(wanted, tmp_path)
    assert len(calls) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.bin", "file.bin.lock", "file.bin.verified"]


def test_gdown_takes_what_it_is_given(drive: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    import gdown

    options = drive(BODY)
    fetch(source("gdrive:id"), tmp_path)
    inspect.signature(gdown.download).bind(**options[0])


def test_what_gdown_leaves_behind_is_known_as_begun(server: Server, tmp_path: Path) -> None:
    import gdown

    url, whole = server.on("/a", sends(BODY * 4, drop=700_000)), tmp_path / "file.bin.drive"
    with pytest.raises(Exception, match=r"(?i)incomplete"):
        gdown.download(url=url, output=str(whole), quiet=True, resume=True, use_cookies=False, timeout=3)
    (kept,) = download._begun(whole)
    assert kept.read_bytes() == (BODY * 4)[: kept.stat().st_size] != b""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to retrieve file url:\n\n\tToo many users have viewed\n this file."),
        AssertionError("Failed to retrieve file url: Too many users have viewed this file"),
    ],
)
def test_what_gdown_raises_is_a_reason(
    drive: Callable[..., list[dict[str, Any]]], tmp_path: Path, error: Exception
) -> None:
    calls = drive(error)
    with pytest.raises(DataError, match=r"Google Drive file x1: Failed .* Too many users have viewed this file\. "):
        fetch(unchecked("gdrive:x1"), tmp_path)
    assert len(calls) == 1


def test_gdown_goes_on_after_a_break(drive: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    calls = drive((BODY[:9], OSError("Connection reset")), BODY)
    assert fetch(source("gdrive:x1"), tmp_path).read_bytes() == BODY
    assert len(calls) == 2


def test_of_several_begun_files_gdown_gets_the_largest(
    drive: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    drive(RuntimeError("no"))
    for name, size in (("aaaaaaaa", 5), ("bbbbbbbb", 7), ("cccccccc", 6)):
        (tmp_path / f"file.bin.drive{name}.part").write_bytes(b"." * size)
    with pytest.raises(DataError):
        fetch(source("gdrive:x1"), tmp_path)
    assert [path.name for path in tmp_path.glob("*.part")] == ["file.bin.drivebbbbbbbb.part"]


def test_a_page_from_google_drive_is_refused(drive: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    drive(b"<!DOCTYPE html><title>Quota exceeded</title>")
    with pytest.raises(DataError, match="a web page was sent"):
        fetch(unchecked("gdrive:x1"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin.lock"]


def test_a_full_disk_of_gdown(drive: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    calls = drive((BODY[:9], OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(DataError, match="the disk is full"):
        fetch(unchecked("gdrive:x1"), tmp_path)
    assert len(calls) == 1
    assert len(list(tmp_path.glob("*.part"))) == 1


def test_without_gdown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(DataError, match="pip install gdown"):
        fetch(unchecked("gdrive:x1"), tmp_path)


# Archives

FILES = {"NYUD_MT/gt_sets/val.txt": b"0001\n", "NYUD_MT/images/0001.png": os.urandom(30_000)}
KINDS = ("tar", "tar.gz", "tar.bz2", "tar.xz", "zip")


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def pack(kind: str, files: dict[str, bytes], *members: tarfile.TarInfo | zipfile.ZipInfo) -> bytes:
    """An archive of files, then of members without content (of a zip's link: its target)."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as packed:
            for name, content in files.items():
                packed.writestr(name, content)
            for entry in members:
                packed.writestr(entry, b"../../outside")
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w" if kind == "tar" else f"w:{kind.removeprefix('tar.')}") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for entry in members:
            tar.addfile(entry)
    return buffer.getvalue()


def archive(folder: Path, kind: str, content: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"NYUD_MT.{kind}"
    path.write_bytes(content)
    return path


def left(folder: Path) -> set[str]:
    """What is in a folder, at any depth, but for locks."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".lock"}


@pytest.mark.parametrize("kind", KINDS)
def test_archives_of_one_folder_become_that_folder(tmp_path: Path, kind: str) -> None:
    packed = archive(tmp_path, kind, pack(kind, FILES))
    tree = extract(packed, tmp_path / "NYUD_MT")
    assert tree == tmp_path / "NYUD_MT"
    for name, content in FILES.items():
        assert (tmp_path / name).read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} == {packed.name, "NYUD_MT", "NYUD_MT.lock"}


def test_archives_of_several_entries_keep_them(tmp_path: Path) -> None:
    packed = archive(tmp_path, "tar", pack("tar", {"images/1.png": b"1", "depth/1.npy": b"2"}))
    assert left(extract(packed, tmp_path / "tree")) == {"images", "images/1.png", "depth", "depth/1.npy"}


def test_a_tree_that_is_there_is_left_alone(tmp_path: Path) -> None:
    packed = archive(tmp_path, "tar", pack("tar", FILES))
    (tmp_path / "NYUD_MT").mkdir()
    (tmp_path / "NYUD_MT" / "mine.txt").write_text("mine")
    assert left(extract(packed, tmp_path / "NYUD_MT")) == {"mine.txt"}


def test_what_a_killed_process_unpacked_is_not_taken_for_whole(tmp_path: Path) -> None:
    packed = archive(tmp_path, "tar", pack("tar", FILES))
    (tmp_path / ".NYUD_MT.unpacking" / "NYUD_MT" / "depth").mkdir(parents=True)
    (tmp_path / "NYUD_MT").mkdir()  # empty, so nobody's
    assert "depth" not in left(extract(packed, tmp_path / "NYUD_MT"))
    assert not (tmp_path / ".NYUD_MT.unpacking").exists()


def test_links_inside_are_unpacked(tmp_path: Path) -> None:
    content = pack("tar", FILES, tar_member("NYUD_MT/gt_sets/test.txt", tarfile.SYMTYPE, "val.txt"))
    tree = extract(archive(tmp_path, "tar", content), tmp_path / "NYUD_MT")
    assert (tree / "gt_sets" / "test.txt").read_bytes() == b"0001\n"


OUTSIDE: dict[str, tuple[str, bytes]] = {
    "tar up": ("tar", pack("tar", {**FILES, "../evil.txt": b"x"})),
    "tar.gz up, later": ("tar.gz", pack("tar.gz", {**FILES, "NYUD_MT/../../evil.txt": b"x"})),
    "tar absolute": ("tar", pack("tar", {**FILES, "/tmp/medusa_cl_evil.txt": b"x"})),
    "tar windows": ("tar", pack("tar", {**FILES, "..\\evil.txt": b"x"})),
    "tar drive": ("tar", pack("tar", {**FILES, "C:\\evil.txt": b"x"})),
    "tar link up": ("tar", pack("tar", FILES, tar_member("NYUD_MT/l", tarfile.SYMTYPE, "../../outside"))),
    "tar link absolute": ("tar", pack("tar", FILES, tar_member("NYUD_MT/l", tarfile.SYMTYPE, "/etc"))),
    "tar hard link": ("tar", pack("tar", FILES, tar_member("NYUD_MT/l", tarfile.LNKTYPE, "../outside/a"))),
    "tar chain of links": (
        "tar",
        pack(
            "tar",
            FILES,
            tar_member("NYUD_MT/down", tarfile.SYMTYPE, "gt_sets"),
            tar_member("NYUD_MT/up", tarfile.SYMTYPE, "down/../../../outside"),
        ),
    ),
    "tar device": ("tar", pack("tar", FILES, tar_member("NYUD_MT/null", tarfile.CHRTYPE))),
    "tar pipe": ("tar", pack("tar", FILES, tar_member("NYUD_MT/pipe", tarfile.FIFOTYPE))),
    "zip up": ("zip", pack("zip", {**FILES, "../evil.txt": b"x"})),
    "zip absolute": ("zip", pack("zip", {**FILES, "/tmp/medusa_cl_evil.txt": b"x"})),
    "zip windows": ("zip", pack("zip", {**FILES, "a\\..\\..\\evil.txt": b"x"})),
}
for _kind, _mode in (("link", stat.S_IFLNK), ("device", stat.S_IFCHR)):
    _member = zipfile.ZipInfo("NYUD_MT/l")
    _member.external_attr = (_mode | 0o777) << 16
    OUTSIDE[f"zip {_kind}"] = ("zip", pack("zip", FILES, _member))


@pytest.mark.parametrize("case", OUTSIDE)
def test_archives_that_lead_out_are_refused_whole(tmp_path: Path, case: str) -> None:
    kind, content = OUTSIDE[case]
    home = tmp_path / "home"
    packed = archive(home, kind, content)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a").write_text("a")
    with pytest.raises(DataError, match=rf"NYUD_MT\.{kind} is refused, and nothing of it is kept: "):
        extract(packed, home / "NYUD_MT")
    assert left(tmp_path) == {"home", f"home/NYUD_MT.{kind}", "outside", "outside/a"}
    assert not Path("/tmp/medusa_cl_evil.txt").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_archives_are_named_and_leave_nothing(tmp_path: Path, kind: str) -> None:
    content = pack(kind, FILES)
    packed = archive(tmp_path, kind, content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"{packed} cannot be unpacked: .*truncated or damaged\. Delete it and fetch"):
        extract(packed, tmp_path / "NYUD_MT")
    assert left(tmp_path) == {packed.name}


def test_a_tar_cut_between_two_files_is_truncated(tmp_path: Path) -> None:
    content = pack("tar", FILES)
    packed = archive(tmp_path, "tar", content[: content.index(b"NYUD_MT/images")])
    with pytest.raises(DataError, match="its end is missing"):
        extract(packed, tmp_path / "NYUD_MT")
    assert left(tmp_path) == {packed.name}


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "zip"])
def test_damage_in_the_middle_or_a_missing_checksum(tmp_path: Path, kind: str) -> None:
    content = bytearray(pack(kind, FILES))
    content[len(content) // 2] ^= 1
    with pytest.raises(DataError, match="cannot be unpacked"):
        extract(archive(tmp_path, kind, bytes(content)), tmp_path / "tree")
    with pytest.raises(DataError, match="cannot be unpacked"):
        extract(archive(tmp_path, kind, pack(kind, FILES)[:-6]), tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100, pack("tar", {})])
def test_what_is_no_archive_or_empty(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"NYUD_MT\.tar (cannot be unpacked|is empty)"):
        extract(archive(tmp_path, "tar", content), tmp_path / "NYUD_MT")


def test_no_archive_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.tar does not exist"):
        extract(tmp_path / "none.tar", tmp_path / "tree")
    assert left(tmp_path) == set()


def test_a_full_disk_while_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    packed = archive(tmp_path, "tar", pack("tar", FILES))
    monkeypatch.setattr(tarfile, "copyfileobj", full)
    with pytest.raises(DataError, match=r"Cannot unpack .*NYUD_MT\.tar: the disk is full"):
        extract(packed, tmp_path / "NYUD_MT")
    assert left(tmp_path) == {packed.name}


def test_too_little_space_for_a_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = archive(tmp_path, "zip", pack("zip", FILES))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=30_004))
    with pytest.raises(DataError, match="30005 bytes are needed, 30004 are free"):
        extract(packed, tmp_path / "NYUD_MT")


# Data sets


def test_the_second_source_is_tried_when_the_first_fails(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = Alternative("raw files", (unchecked(server.on("/a", sends()), "a.mat"), unchecked(f"{server.root}/no", "b")))
    tgz = Alternative("pack", (unchecked(server.on("/p", sends(pack("tar.gz", FILES))), "NYUD_MT.tgz"),), archives=True)
    assert obtain("NYUD-v2", [raw, tgz], tmp_path, "by hand") == tmp_path / "NYUD_MT"
    assert (tmp_path / "NYUD_MT" / "gt_sets" / "val.txt").read_bytes() == b"0001\n"
    assert "NYUD-v2: the raw files is not to be had. Cannot fetch" in caplog.text
    asked = len(server.asked)
    (tmp_path / "NYUD_MT.tgz").unlink()  # who has unpacked it may delete it
    assert obtain("NYUD-v2", [tgz], tmp_path, "by hand") == tmp_path / "NYUD_MT"
    assert len(server.asked) == asked


def test_files_that_are_no_archives_stay_as_they_are(server: Server, tmp_path: Path) -> None:
    names = ("a.mat", "b.mat")
    raw = Alternative("raw", tuple(unchecked(server.on(f"/{name}", sends()), name) for name in names))
    assert obtain("NYUD-v2", [raw], tmp_path, "by hand") == tmp_path
    assert [(tmp_path / name).read_bytes() == BODY for name in names] == [True, True]


def test_when_all_fail_each_reason_and_the_manual_steps_are_told(server: Server, tmp_path: Path) -> None:
    cut = pack("tar.gz", FILES)[:-100]
    ways = [
        Alternative("first", (source(f"{server.root}/no"),)),
        Alternative("second", (unchecked(server.on("/page", says(200, {"Content-Type": "text/html"}, b"x"))),)),
        Alternative("third", (unchecked(server.on("/cut", sends(cut)), "P.tgz"),), archives=True),
    ]
    with pytest.raises(MissingDataError) as caught:
        obtain("NYUD-v2", ways, tmp_path, "By hand: do it")
    assert caught.value.exit_code == 2
    first, *reasons, last = str(caught.value).splitlines()
    assert first == "NYUD-v2 could not be downloaded."
    assert last == "By hand: do it"
    for reason, name, told in zip(reasons, ("first", "second", "third"), ("404", "web page", "P.tgz"), strict=True):
        assert reason.startswith(f"  - {name}: ")
        assert told in reason


def test_no_way_is_known(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"(?s)PASCAL.*No source is known.*PASCAL_MT/JPEGImages"):
        obtain("PASCAL-Context", (), tmp_path, PASCAL_MANUAL)


def test_nyud_tries_the_raw_file_then_the_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Source] = []

    def refuse(source: Source, *_: Any) -> Path:
        asked.append(source)
        raise DataError(f"no {source.name}")

    monkeypatch.setattr(origins, "fetch", refuse)
    with pytest.raises(MissingDataError) as caught:
        nyud(tmp_path)
    assert [source.url for source in asked] == [NYUD[0].sources[0].url, "gdrive:14EAEMXmd3zs2hIMY63UhHPSFPDAkiTzw"]
    assert nyud_manual(tmp_path) in str(caught.value)
    for line in (f"scenario.root={tmp_path}", f"{tmp_path}/nyu_depth_v2_labeled.mat", f"{tmp_path}/splits.mat"):
        assert line in str(caught.value)


def test_nyud_asks_for_what_is_published() -> None:
    known = {source.name: (source.url, source.size, source.md5) for way in NYUD for source in way.sources}
    root = "https://horatio.cs.nyu.edu/mit/silberman"
    assert known["nyu_depth_v2_labeled.mat"] == (
        f"{root}/nyu_depth_v2/nyu_depth_v2_labeled.mat",
        2_972_037_809,
        "520609c519fba3ba5ac58c8fefcc3530",
    )
    assert known["splits.mat"] == (
        f"{root}/indoor_seg_sup/splits.mat",
        None,
        "08e3c3aea27130ac7c01ffd739a4535f",
    )


def test_manual_steps_name_the_folders_that_are_looked_for() -> None:
    assert "DIR/PASCAL_MT/JPEGImages" in PASCAL_MANUAL
    assert PASCAL_MANUAL.endswith("scenario.root=DIR/PASCAL_MT")
    assert "data/NYUD_MT/images" in nyud_manual("data")
    assert nyud_manual("data").endswith("scenario.root=data")
