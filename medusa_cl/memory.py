"""Memory that runs out, and processes that were killed for it: errors that say what to change."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from medusa_cl.errors import TrainingError

ADVICE = (
    "strategy.cache_features=disk (or off) and fewer trainer.workers need less and change no result: a run can go on "
    "with them. A smaller trainer.batch_size, trainer.precision=bf16 or a smaller scenario.image_size need less, too, "
    "in a run that is learnt anew."
)
# What torch says when it gets no memory, on the CPU and on CUDA (its libraries among it), in errors of no class of
# their own.
_NO_MEMORY = re.compile(
    r"out of memory|DefaultCPUAllocator|not enough memory|CUDNN_STATUS_ALLOC_FAILED|CUBLAS_STATUS_ALLOC_FAILED"
    r"|Cannot allocate memory|std::bad_alloc",
    re.IGNORECASE,
)
_TRIED = re.compile(r"[Tt]ried to allocate ([\d.]+ ?[KMGT]?i?B|\d+ bytes)")
_LOST = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", re.DOTALL)
SECONDS_TO_HEAR = 1.0


@contextmanager
def advising_on_memory(asked: Mapping[str, object] | None = None) -> Iterator[None]:
    """Turn errors for want of memory, and of a loading process that is gone, into ones that say what to do.

    Args:
        asked: What was asked for by name, as in {"trainer.batch_size": 8}, to be repeated in the message.

    Raises:
        TrainingError: In the place of such an error; all others pass.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        lost = lost_worker(error) if isinstance(error, RuntimeError) else None
        if mended := lost or _without_memory(error, asked or {}):
            raise mended from error
        raise


def lost_worker(error: BaseException) -> TrainingError | None:
    """Return what to say of a process that loads and was killed, or has ended unasked; None of any other error.

    torch raises this one wherever the main thread is when it hears of it, which may be in the middle of a step.
    """
    cut_off = isinstance(error, ConnectionError | EOFError) and not str(error).startswith("Caught ")
    found = _LOST.search(str(error)) if isinstance(error, RuntimeError) else None
    if not (cut_off or found):
        return None
    if not (found and "signal" in found[2]):
        found = _heard(error) or found
    return _gone(f" (pid {found[1]})", found[2]) if found else _gone("", "")


def _heard(error: BaseException) -> re.Match[str] | None:
    """Return what torch says of the signal that ended the process; where it is still to come, it must not come later.

    That a batch did not arrive may be known sooner.
    """
    before: BaseException | None = error
    while before is not None:
        if (found := _LOST.search(str(before))) and "signal" in found[2]:
            return found
        before = before.__cause__ or before.__context__
    try:
        time.sleep(SECONDS_TO_HEAR)
    except RuntimeError as late:
        return _LOST.search(str(late))
    return None


def _gone(pid: str, how: str) -> TrainingError:
    advice = "Set fewer trainer.workers (0 loads in this process) or a smaller trainer.batch_size, or free memory."
    if "Bus error" in how:
        why, advice = "there is no shared memory left for batches", "Set trainer.workers=0, or make /dev/shm larger."
    elif "by signal: Killed" in how:
        why = "it was killed, as the system does where memory runs out"
    elif "signal" in how or "code" in how:
        why = how.strip().splitlines()[0].rstrip(". ")
        advice = "trainer.workers=0 loads in this process and shows the error itself."
    else:
        why = "it ended without a word, as if it was killed, which the system does where memory runs out"
    return TrainingError(f"A process that loads images{pid} is gone: {why}. {advice}")


def ran_out(error: BaseException) -> bool:
    """Return whether this is an error for want of memory."""
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))


def _without_memory(error: BaseException, asked: Mapping[str, object]) -> TrainingError | None:
    text = str(error)
    if not ran_out(error):
        return None
    on_device = not isinstance(error, MemoryError) and re.search("CUDA|CUDNN|CUBLAS", text)
    tried = _TRIED.search(text)
    size = f" (tried to get {_readable(tried[1])} more)" if tried else ""
    options = ", ".join(f"{name}={value}" for name, value in asked.items())
    now = f" Asked for: {options}." if options else ""
    return TrainingError(f"Out of memory on the {'CUDA device' if on_device else 'CPU'}{size}.{now} {ADVICE}")


def _readable(amount: str) -> str:
    number, _, unit = amount.partition(" ")
    return amount if unit != "bytes" else f"{int(number) / 2**30:.2f} GiB"
