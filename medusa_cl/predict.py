"""Predict every learnt task for pictures: `python -m medusa_cl.predict run=... images=DIR|FILE out=DIR`."""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medusa_cl import shell
from medusa_cl.deploy.predict_record import KINDS, LOCK, Record, is_output
from medusa_cl.errors import ConfigError, DataError, printable, unknown
from medusa_cl.shell import Option, Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medusa_cl.deploy.pictures import Found
    from medusa_cl.deploy.predictor import Answers, Predictor
    from medusa_cl.tracking.console import Bar

AHEAD = 3  # pictures read, and results written, beside the net
SAVE_SECONDS = 10.0
NAMED = 20  # pictures in one message
# Of the system: one picture's output cannot be called so; others can.
_THIS_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)


def _kinds(text: str) -> tuple[str, ...]:
    return _known_kinds(shell.names(text))


def _known_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(unknown("kind of output", kind, KINDS))
    return tuple(kind for kind in KINDS if kind in kinds)


def _size(text: str) -> str | int:
    return text if text in ("train", "own") else _pixels(text)


def _pixels(text: str) -> int:
    try:
        return shell.count(text)
    except ValueError:
        raise ValueError("train, own, or a number of pixels") from None


USAGE = Usage(
    "predict",
    "Predict every learnt task for your own pictures, all tasks in one pass of the backbone.",
    {
        "run": Option("RUN", "a run directory, a model's directory, last, or an MLflow run id"),
        "images": Option("PATH", "a picture, or a folder of pictures of any size and format, with its sub-folders"),
        "out": Option("DIR", "where to write; the same command again does what is new or not done yet"),
        "tasks": Option("[a,b]", "the tasks to predict; all by default", None, shell.names),
        "write": Option(
            "[panels,arrays,png]", "panels to look at, .npz arrays, PNG of depth (mm) and labels", KINDS, _kinds
        ),
        "size": Option("train", "what the net sees: train (as large as in training), own, or pixels", "train", _size),
        "max_size": Option(
            "2048", "the longest side that the net sees; larger pictures are made smaller", 2048, shell.count
        ),
        "device": Option("auto", "auto | cpu | cuda | cuda:1", "auto"),
        "batch": Option("1", "so many pictures of one size go through the net together", 1, shell.count),
        "overwrite": Option("false", "true replaces the predictions in out=, made otherwise or not", False, shell.flag),
    },
    (
        "run=last images=photos out=predictions",
        "run=last images=photos/kitchen.jpg out=kitchen tasks=[depth,normals]",
        "run=RUN images=photos out=labels write=[png] size=640      # see at 640 pixels",
        "run=RUN images=photos out=predictions batch=8 device=cuda overwrite=true",
    ),
)


@dataclass(frozen=True)
class Done:
    """What a call of `predict_images` did.

    Attributes:
        out: The folder.
        predicted: Pictures predicted now.
        before: How many had been.
        failed: Why there is no prediction, by picture or folder.
        clipped: Pictures with depth beyond what a PNG of 16 bits holds.
        bits: Of how many bits grey was taken to be that has room for more, by picture.
        passed_over: How many files that are no pictures stand beside them, by suffix.
    """

    out: Path
    predicted: tuple[str, ...]
    before: int
    failed: dict[str, str]
    clipped: tuple[str, ...]
    bits: dict[str, int] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)


@dataclass
class _Picture:
    """A picture on its way: read, then with its answers, then written; or why not."""

    name: str
    image: NDArray[np.uint8] | None = None
    answers: Answers | None = None
    entry: dict[str, Any] | None = None
    fault: str = ""
    bits: int | None = None


def main(arguments: Sequence[str]) -> None:
    """Run the verb.

    Raises:
        ConfigError: An option is wrong, or out= holds something else.
        DataError: Some pictures could not be predicted (all others are), or nothing can be written.
    """
    if shell.asks_for_help(arguments):
        print(USAGE.help())
        return
    given = USAGE.parse(arguments)
    images, out = Path(given.pop("images")), Path(given.pop("out"))
    batch, write, overwrite = (given.pop(key) for key in ("batch", "write", "overwrite"))
    _find(images, out)  # before seconds of loading
    from medusa_cl.deploy.predictor import Predictor

    done = predict_images(Predictor(**given), images, out, write=write, batch=batch, overwrite=overwrite, talk=True)
    if done.failed:
        raise DataError(_named(done))


def predict_images(
    predictor: Predictor,
    images: Path | str,
    out: Path | str,
    *,
    write: Sequence[str] = KINDS,
    batch: int = 1,
    overwrite: bool = False,
    talk: bool = False,
) -> Done:
    """Predict for a picture or a folder of them, and write what comes out; each file is written whole or not at all.

    Pictures of which `out` has the answers of this model already are left out; those that cannot be read are named in
    the result, and the others are done.

    Args:
        predictor: Predicts.
        images: A picture, or a folder; folders in it that hold predictions are left out.
        out: The folder to write to: new, empty, or one with predictions.
        write: Some of "panels", "arrays", "png".
        batch: So many pictures of one size go through the net together.
        overwrite: Replace the predictions in `out`.
        talk: Show what is done, and a progress bar.

    Raises:
        ConfigError: There are no such pictures, or `out` holds something else, or other predictions.
        MissingDataError: There is no picture in the folder.
        DataError: A folder cannot be read, or nothing can be written, for instance to a full disk.
    """
    from medusa_cl import rundir

    out = Path(out)
    found = _find(Path(images), out)
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = rundir.locked(
            out / LOCK, f"Another process predicts into {printable(out)}. Wait for it, or choose another out=."
        )
    try:
        return _Job(predictor, found, out, _known_kinds(write), overwrite).run(batch, talk)
    finally:
        lock.release()


def _find(images: Path, out: Path) -> Found:
    from medusa_cl.deploy import pictures

    folder = images.parent if images.is_file() else images
    if out.is_file() or (out.exists() and out.resolve() == folder.resolve()):
        what = "a file" if out.is_file() else "the folder of the pictures"
        raise ConfigError(f"Expected out= a folder of its own, but {printable(out)} is {what}. Choose another out=.")
    here = out.resolve()
    return pictures.find(images, lambda inner: inner.resolve() == here or is_output(inner))


class _Job:
    """One call of `predict_images`."""

    def __init__(self, predictor: Predictor, found: Found, out: Path, write: tuple[str, ...], overwrite: bool) -> None:
        from medusa_cl.deploy import pictures, predict_files

        self.predictor, self.found, self.out, self.write = predictor, found, out, write
        self.asked = _asked(predictor, found, write)
        self.record = Record.open(out, self.asked, _facts(predictor), overwrite)
        self.record.failed = dict(found.faults)
        self.endings = predict_files.endings(write, predictor.tasks)
        if not self.endings:
            raise ConfigError(
                f"write={list(write)} has nothing to write of {', '.join(predictor.tasks)}: single PNG are of depth in "
                "metres and of classes. Add panels or arrays."
            )
        self.stems = pictures.output_names(sorted({*found.names, *self.record.images}), self.endings)
        self.sources = {name: _source(found.root / name) for name in found.names}
        self.predicted: list[str] = []
        self.clipped: list[str] = []
        self.bits: dict[str, int] = {}
        self._saved = time.monotonic()

    def run(self, batch: int, talk: bool) -> Done:
        """Predict what is not done yet."""
        left = [n for n in self.found.names if not self.record.done(n, self._files(n), self.sources[n])]
        before = len(self.found.names) - len(left)
        with _writing(self.out), _talking(self, len(left), before) if talk else nullcontext() as bar:
            self.record.save()
            try:
                self._predict(left, batch, bar)
                self.record.forget_replaced()
            finally:
                self.record.save()
        failed, others = dict(self.record.failed), dict(self.found.passed_over)
        done = Done(self.out, tuple(self.predicted), before, failed, tuple(self.clipped), self.bits, others)
        if talk:
            _say(done)
        return done

    def _files(self, name: str) -> list[str]:
        return [self.stems[name] + ending for ending in self.endings]

    def _predict(self, names: Sequence[str], batch: int, bar: Bar | None) -> None:
        """Let one thread read pictures and one write answers, beside the net."""
        with _thread(wait=False) as reader, _thread() as writer:
            writing: deque[Future[_Picture]] = deque()
            try:
                for group in self._groups(_ahead(reader, self._read, names, max(AHEAD, batch)), batch):
                    writing.extend(writer.submit(self._write, one) for one in self._answered(group))
                    while len(writing) > AHEAD:
                        self._note(writing.popleft().result(), bar)
            finally:  # Ctrl-C too: what is answered is kept
                while writing:
                    self._note(writing.popleft().result(), bar)

    def _read(self, name: str) -> _Picture:
        from medusa_cl.deploy import pictures

        try:
            image, bits = pictures.read_bits(self.found.root / name)
            return _Picture(name, image, bits=bits)
        except DataError as error:
            return _Picture(name, fault=str(error))

    def _groups(self, read: Iterable[_Picture], batch: int) -> Iterator[list[_Picture]]:
        """Put neighbours that the net sees at one size together."""
        group: list[_Picture] = []
        for one in read:
            if group and (len(group) == batch or self._seen(one) != self._seen(group[0])):
                yield group
                group = []
            group.append(one)
        if group:
            yield group

    def _seen(self, one: _Picture) -> tuple[int, int] | None:
        return None if one.image is None else self.predictor.seen_size(*one.image.shape[:2])

    def _answered(self, group: list[_Picture]) -> list[_Picture]:
        from medusa_cl.deploy.predictor import OutOfMemoryError

        images = [one.image for one in group if one.image is not None]
        if not images:
            return group
        try:
            for one, answers in zip(group, self.predictor.several(images), strict=True):
                one.answers = answers
        except OutOfMemoryError as error:
            if len(group) > 1:
                return [one for alone in group for one in self._answered([alone])]
            group[0].fault = str(error)
        return group

    def _write(self, one: _Picture) -> _Picture:
        if one.image is None or one.answers is None:
            return one
        try:
            one.entry = self._entry(one.name, one.image, one.answers) | ({"bits": one.bits} if one.bits else {})
        except OSError as error:
            if error.errno not in _THIS_NAME:
                raise
            one.fault = f"{printable(self.found.root / one.name)}: what is made of it cannot be named: {error.strerror}"
        one.image = one.answers = None
        return one

    def _entry(self, name: str, image: NDArray[np.uint8], answers: Answers) -> dict[str, Any]:
        """Write the files of one picture, and return what is to be recorded of it."""
        from medusa_cl.deploy import predict_files

        (self.out / self.stems[name]).parent.mkdir(parents=True, exist_ok=True)
        size, seen = image.shape[:2], self.predictor.seen_size(*image.shape[:2])
        caption = _caption(name, size, seen, self.asked["model"]["weights"], self.predictor.model.backbone.name)
        write = partial(predict_files.write, self.out / self.stems[name], self.predictor.tasks, image, answers, caption)
        beyond = {ending: far for ending in self.endings if (far := write(ending))}
        entry = {"files": self._files(name), "size": list(size), "seen": list(seen), "source": self.sources[name]}
        return entry | ({"pixels_beyond_65.535_m": beyond} if beyond else {})

    def _note(self, one: _Picture, bar: Bar | None) -> None:
        self.record.images.pop(one.name, None)
        if one.entry is None:
            self.record.failed[one.name] = one.fault
        else:
            self.record.images[one.name] = one.entry
            self.predicted.append(one.name)
            self.clipped += [one.name] * ("pixels_beyond_65.535_m" in one.entry)
            self.bits |= {one.name: one.bits} if one.bits else {}
        if bar is not None:
            bar.advance(1, images=one.entry is not None)
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self._saved = time.monotonic()
            self.record.save()


def _asked(predictor: Predictor, found: Found, write: Sequence[str]) -> dict[str, Any]:
    from medusa_cl.deploy.predictor import model_hashes

    return {
        "images": printable(found.root.resolve()),
        "model": model_hashes(predictor.trained),
        "tasks": list(predictor.tasks),
        "write": list(write),
        "size": predictor.longest or "own",
        "max_size": predictor.max_size,
    }


def _facts(predictor: Predictor) -> dict[str, Any]:
    from medusa_cl import __version__
    from medusa_cl.deploy.predict_files import describe

    return {
        "version": __version__,
        "model": str(predictor.trained.model),
        "backbone": predictor.model.backbone.name,
        "precision": predictor.model.precision,
        "training_size": predictor.training_size,
        "sizes": "height, width in pixels",
        "tasks": {name: describe(task) for name, task in predictor.tasks.items()},
    }


def _source(path: Path) -> dict[str, int]:
    """Return what tells whether a file is the one that it was."""
    with suppress(OSError):
        found = path.stat()
        return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
    return {}


def _caption(name: str, size: Sequence[int], seen: Sequence[int], weights: str, backbone: str) -> tuple[str, str]:
    own, net = (f"{width} x {height}" for height, width in (size, seen))
    scale = own if own == net else f"{own}, seen by the net at {net}"
    return printable(name), f"{scale}  ·  {backbone}, weights {weights[:8]}"


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[str], _Picture], names: Iterable[str], depth: int
) -> Iterator[_Picture]:
    """Do work in a pool, so many pictures ahead of whoever takes them, in order."""
    waiting: deque[Future[_Picture]] = deque()
    for name in names:
        waiting.append(pool.submit(work, name))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _thread(wait: bool = True) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = printable(error.filename) if isinstance(error.filename, str) else printable(out)
        raise DataError(
            f"Cannot write {where}: {error.strerror or error}. What is done stays; make room or choose another out=, "
            "and give the same command again."
        ) from error


@contextmanager
def _talking(job: _Job, left: int, before: int) -> Iterator[Bar]:
    from medusa_cl.tracking.console import header, make_console, progress

    console, predictor = make_console(), job.predictor
    facts = {
        "model": predictor.trained.model,
        "tasks": [f"{name} ({unit})" if unit else name for name, unit in _units(predictor)],
        "pictures": f"{left} in {printable(job.found.root)}" + (f", {before} more are done" if before else ""),
        "seen at": _scale(predictor),
        "on": predictor.device,
    }
    console.print(header("predict", facts))
    with progress("pictures", left, console) as bar:
        yield bar


def _units(predictor: Predictor) -> Iterator[tuple[str, str]]:
    from medusa_cl.deploy.predictor import value_unit

    yield from ((name, value_unit(task).partition(":")[0]) for name, task in predictor.tasks.items())


def _scale(predictor: Predictor) -> str:
    most = f"at most {predictor.max_size} pixels (max_size=)"
    if predictor.longest is None:
        known = "its own size" if predictor.training_size else "its own size (that of the training images is not known)"
        return f"{known}, {most}"
    if predictor.training_size and predictor.longest == max(predictor.training_size):
        return f"{predictor.longest} pixels, the longer side of the training images (size=own or size=640 changes it)"
    trained = f"; it was trained at {max(predictor.training_size)}" if predictor.training_size else ""
    return f"{predictor.longest} pixels, the longer side{trained}"


def _say(done: Done) -> None:
    from medusa_cl.deploy.pictures import counted
    from medusa_cl.deploy.predict_record import PAGE

    print(f"{len(done.predicted) + done.before} pictures are predicted in {printable(done.out)} ({PAGE} says how).")
    if done.clipped:
        print(f"Depth beyond 65.535 m is cut in the PNG, not in the arrays, of {_some(done.clipped)}.")
    for bits in sorted(set(done.bits.values())):
        names = [name for name, found in done.bits.items() if found == bits]
        print(f"Grey was taken to be of {bits} bits, as no value is above {2**bits - 1}, in {_some(names)}.")
    if count := sum(done.passed_over.values()):
        files = f"{count} other file{'s' * (count > 1)}"
        print(f"{files} {'were' if count > 1 else 'was'} passed over ({counted(done.passed_over)}).")


def _named(done: Done) -> str:
    lines = [f"  {fault if name in fault else f'{printable(name)}: {fault}'}" for name, fault in done.failed.items()]
    more = [f"  and {len(lines) - NAMED} more"] if len(lines) > NAMED else []
    count = f"{len(lines)} could not be predicted, all others are"
    return "\n".join([f"{count}:", *lines[:NAMED], *more])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(printable, names[:3])) + more


if __name__ == "__main__":
    shell.end(main)
