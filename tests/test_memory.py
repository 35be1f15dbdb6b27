"""Memory that runs out and processes that are killed: what the user is told, and how soon."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import torch

from medusa_cl import tasks
from medusa_cl.batch import Sample
from medusa_cl.data.loader import DenseLoader
from medusa_cl.errors import DataError, TrainingError
from medusa_cl.memory import advising_on_memory, lost_worker

TASKS = {"depth": tasks.depth()}


@pytest.fixture(autouse=True)
def _no_long_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a loader's processes is waited for, when it is collected; not as long as usual."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)


class Deadly:
    """32 samples; the process that loads number `fatal` is killed by the signal, as by the system's killer."""

    def __init__(self, fatal: int, number: int = signal.SIGKILL) -> None:
        self.fatal, self.number, self.parent = fatal, number, os.getpid()

    def __len__(self) -> int:
        return 32

    def __getitem__(self, position: int) -> Sample:
        if position == self.fatal and os.getpid() != self.parent:
            os.kill(os.getpid(), self.number)
        return Sample(torch.zeros(3, 32, 32), {"depth": torch.ones(1, 32, 32)}, position, 0)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("fatal", [0, 20])
def test_a_killed_process_ends_training_with_advice(workers: int, fatal: int) -> None:
    """In seconds, and not by waiting for ever; what torch may raise between two batches is told in the same words."""
    loader = DenseLoader(Deadly(fatal), 4, tasks=TASKS, workers=workers)
    began = time.monotonic()
    with (
        pytest.raises(TrainingError, match=r"loads images.* is gone: it .*was killed.*trainer\.workers"),
        advising_on_memory(),
    ):
        list(loader)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "it was killed.*free memory"),
        (signal.SIGUSR2, "killed by signal: User defined signal 2.*shows the error"),
    ],
)
def test_a_process_gone_in_the_middle_of_a_step_is_told_of_there(number: int, said: str) -> None:
    """torch raises in the main thread, wherever it is; here it waits for nothing."""
    loader = DenseLoader(Deadly(12, number), 4, tasks=TASKS, workers=1)
    with pytest.raises(TrainingError, match="is gone: .*" + said), advising_on_memory():
        for _ in loader:
            for _ in range(50):
                time.sleep(0.02)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79 GiB"
            ),
            r"Out of memory on the CUDA device \(tried to get 2.50 GiB more\)\. Asked for: trainer.batch_size=64",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                "to allocate 3221225472 bytes. Error code 12 (Cannot allocate memory)"
            ),
            r"Out of memory on the CPU \(tried to get 3.00 GiB more\)\. Asked for: trainer.batch_size=64",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "Out of memory on the CUDA device. Asked for"),
        (RuntimeError("CUDA error: out of memory"), "Out of memory on the CUDA device. Asked for"),
        (MemoryError(), r"Out of memory on the CPU\. Asked for"),
        (MemoryError('Caught MemoryError in DataLoader worker process 0.\nFile "torch/cuda.py"'), "on the CPU. Asked"),
        (OSError(12, "Cannot allocate memory"), r"Out of memory on the CPU\. Asked for"),
    ],
)
def test_want_of_memory_comes_with_advice(error: Exception, said: str) -> None:
    advice = r".*strategy\.cache_features=disk.*can go on.*smaller trainer\.batch_size, trainer\.precision=bf16"
    with pytest.raises(TrainingError, match=said + advice) as caught, advising_on_memory({"trainer.batch_size": 64}):
        raise error
    assert caught.value.__cause__ is error


def test_real_want_of_memory() -> None:
    """An exbibyte is more than any machine has."""
    with pytest.raises(TrainingError, match=r"on the CPU \(tried to get 1073741824.00 GiB more\)\. strategy"):  # noqa: SIM117
        with advising_on_memory():
            torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes do not match"),
        OSError(28, "No space left on device"),
        DataError("out of memory"),
        KeyError(1),
    ],
)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, advising_on_memory():
        raise error
    assert caught.value is error


def test_shared_memory_is_named() -> None:
    text = (
        "DataLoader worker (pid 77) is killed by signal: Bus error. It is possible that dataloader's workers are out "
        "of shared memory. Please try to raise your shared memory limit."
    )
    assert "pid 77" in str(lost_worker(RuntimeError(text)))
    assert "/dev/shm" in str(lost_worker(RuntimeError(text)))
    assert lost_worker(RuntimeError("Caught KeyError in DataLoader worker process 0.")) is None
    gone: Any = lost_worker(RuntimeError("DataLoader worker (pid(s) 5, 6) exited unexpectedly"))
    assert "pid 5, 6" in str(gone)
    assert "without a word" in str(gone)
    assert "is gone" in str(lost_worker(ConnectionResetError(104, "Connection reset by peer")))
    assert lost_worker(ConnectionError("Caught ConnectionError in DataLoader worker process 0.")) is None
