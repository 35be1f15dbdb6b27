"""Several processes that train one model, each on its share of every batch; with one process all of this is idle.

torchrun starts the processes and tells each its rank. Nothing wraps the model: whoever averages asks for it by name,
so that plugins with passes of their own, heads that come and go and tasks that a share has no label of stay simple.
Every rank must make the same calls in the same order.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from medusa_cl.errors import ConfigError, MedusaError, TrainingError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

T = TypeVar("T")
COMMAND = "torchrun --nproc_per_node=2 -m medusa_cl.run trainer=ddp"
GIVEN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Rank 0 may prepare data or learn references for a long time while the others wait at a barrier.
PATIENCE = timedelta(hours=24)
# Seconds that rank 0 has to say what all ranks have found wrong; the others notice only when a process is gone.
HEAD_START = 0.5
LAST_WORDS = 5.0  # seconds that a process which is asked to end has for closing what is open


def launched() -> int:
    """Return how many processes torchrun has started; 0 where it did not start this one."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in GIVEN) else 0


def start(device: str) -> str:
    """Join the processes that torchrun has started.

    Args:
        device: "cpu" or "cuda": tensors there are exchanged by gloo and nccl.

    Returns:
        The device of this process: "cpu", or "cuda:" and its number on this machine. A second call changes nothing.

    Raises:
        ConfigError: torchrun did not start this process, or there are fewer CUDA devices than processes.
    """
    import torch
    from torch import distributed

    from medusa_cl.strategies import ranks  # noqa: F401 - Avalanche cannot be imported any more by joined processes

    if not launched():
        raise ConfigError(f"trainer.distributed=true needs processes that talk to each other. Run: {COMMAND}")
    on_cuda = device.split(":")[0] == "cuda"
    if on_cuda:
        device = own_device(torch.cuda.device_count())
        torch.cuda.set_device(device)
    if _joined():
        return device
    # gloo beside nccl: what lies on the CPU is sent from there.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=PATIENCE)
    return device


def own_device(count: int) -> str:
    """Return this process's device of so many on its machine.

    Raises:
        ConfigError: There are fewer than processes; every process finds that.
    """
    processes = int(os.environ["LOCAL_WORLD_SIZE"])
    if processes > count:
        raise ConfigError(
            f"Expected a CUDA device for each process, but got {count} for {processes} on this machine. "
            f"Run torchrun with --nproc_per_node={max(1, count)}."
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


def stop() -> None:
    """Leave the other processes."""
    if _joined():
        _dist().destroy_process_group()


def rank() -> int:
    """Return which process this is: 0 to world() - 1."""
    return int(_dist().get_rank()) if _joined() else 0


def world() -> int:
    """Return how many processes train together."""
    return int(_dist().get_world_size()) if _joined() else 1


def local_world() -> int:
    """Return how many processes train together on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world() > 1 else 1


def is_main() -> bool:
    """Return whether this is the process that reports and saves."""
    return rank() == 0


def shard() -> tuple[int, int]:
    """Return (rank, world): of every global batch this process takes the positions rank::world."""
    return rank(), world()


def summed(values: Tensor) -> Tensor:
    """Return the sum of equal-shaped tensors over all ranks, itself with one process.

    Args:
        values: Any shape and numeric dtype, on the device of training or the CPU; it is left as it is.
    """
    if world() == 1:
        return values
    import torch

    total = values.detach().clone(memory_format=torch.contiguous_format)
    _call("all_reduce", total)
    return total


def average_(tensors: Iterable[Tensor]) -> None:
    """Set floating tensors to their mean over all ranks, in place, in one exchange for each dtype and device.

    Args:
        tensors: The same shapes in the same order on every rank.
    """
    if world() == 1:
        return
    import torch

    kinds: dict[tuple[Any, Any], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    with torch.no_grad():
        for alike in kinds.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            mean = summed(flat) / world()
            for tensor, part in zip(alike, mean.split([t.numel() for t in alike]), strict=True):
                tensor.copy_(part.view(tensor.shape))


def average_gradients(parameters: Sequence[Parameter]) -> None:
    """Set the gradients of parameters to their mean over all ranks; idle with one process.

    A rank without a gradient counts as zeros. A parameter that no rank has one of stays without, so that neither weight
    decay nor a moment moves it.

    Args:
        parameters: The same ones in the same order on every rank.
    """
    if world() == 1:
        return
    import torch

    ranks = summed(torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32))
    moved = [p for p, count in zip(parameters, ranks.tolist(), strict=True) if count]
    for parameter in moved:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    average_(p.grad for p in moved if p.grad is not None)


def agreed(value: T) -> T:
    """Return what rank 0 has given, on every rank: decisions that depend on files or clocks are taken once.

    Args:
        value: Anything that can be pickled; looked at on rank 0 alone.
    """
    if world() == 1:
        return value
    box: list[Any] = [value if is_main() else None]
    _call("broadcast_object_list", box, src=0)
    return cast(T, box[0])


def decided(decide: Callable[[], T]) -> T:
    """Return what rank 0 finds, on every rank; the others do not look."""
    return agreed(decide()) if is_main() else agreed(cast(T, None))


def gathered(values: Tensor) -> list[Tensor]:
    """Return the tensors of all ranks in order, [itself] with one process.

    Args:
        values: The same shape and dtype on every rank.
    """
    if world() == 1:
        return [values]
    import torch

    sent = values.detach().reshape(-1).view(torch.uint8)  # bytes, for gloo does not know every type
    found = [torch.empty_like(sent) for _ in range(world())]
    _call("all_gather", found, sent)
    return [one.view(values.dtype).view(values.shape) for one in found]


def each_ones(value: T) -> list[T]:
    """Return what each rank has given, in order, on rank 0; the others get an empty list.

    Args:
        value: Anything that can be pickled.
    """
    if world() == 1:
        return [value]
    box: list[Any] = [None] * world()
    _call("gather_object", value, box if is_main() else None)
    return cast(list[T], box) if is_main() else []


def barrier() -> None:
    """Wait until every rank is here."""
    if world() > 1:
        import torch

        summed(torch.zeros(1))


@contextmanager
def first_on_machine() -> Iterator[None]:
    """Let one process of each machine through the block before the others: what it makes or fetches, they find."""
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    if not first:
        barrier()
    yield
    if first:
        barrier()


class PeerLostError(TrainingError):
    """Another process has ended, so this one cannot go on; that one says why."""


def hush() -> None:
    """Let only rank 0 speak until the processes know of each other: what all find wrong is said once."""
    if _known_rank():
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


@contextmanager
def ending_together() -> Iterator[None]:
    """End this process when the block fails, so that torchrun ends the others; the first one to fail says why."""
    signal.signal(signal.SIGTERM, _terminated)
    _watch_for_the_end()
    try:
        yield
    except BaseException as error:
        _end(error)


def _watch_for_the_end() -> None:
    """End this process also where it waits, in a call that lets no signal through, for one that is gone."""
    heard, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        with told:
            while heard.recv(1) != bytes([signal.SIGTERM]):
                pass
            time.sleep(LAST_WORDS)
            os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _terminated(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


def _end(error: BaseException) -> NoReturn:
    code = 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
    elif isinstance(error, KeyboardInterrupt):
        code = 130
    elif isinstance(error, MedusaError):
        code = error.exit_code
    if _first_to_fail() and (said := _said(error)):
        print(said, file=sys.__stderr__)
    for stream in (sys.stdout, sys.stderr, sys.__stderr__):
        if stream is not None:
            stream.flush()
    # Not by SystemExit: leaving nccl, whose other ends are gone, may wait for ever.
    os._exit(code)


def _said(error: BaseException) -> str:
    where = f" (rank {_known_rank()})" if _known_rank() else ""
    notes = getattr(error, "__notes__", [])
    if isinstance(error, MedusaError):
        return "\n".join([f"error{where}: {error}", *notes])
    if isinstance(error, SystemExit) and error.code != 128 + signal.SIGTERM:
        return ""  # whoever asked for it has said why
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "\n".join(["Stopped.", *notes])
    return f"error{where}:\n{''.join(traceback.format_exception(error))}"


def _known_rank() -> int:
    return int(os.environ.get("RANK", "0")) if launched() else 0


def _first_to_fail() -> bool:
    if _known_rank():
        time.sleep(HEAD_START)
    if not _joined():
        return _known_rank() == 0
    from torch.distributed import distributed_c10d

    try:
        return int(distributed_c10d._get_default_store().add("medusa_cl/failed", 1)) == 1
    except RuntimeError:  # the store has ended with torchrun
        return False


def _call(name: str, *arguments: Any, **options: Any) -> None:
    try:
        getattr(_dist(), name)(*arguments, **options)
    except RuntimeError as error:
        if _is_own(error):
            raise
        raise PeerLostError(f"Rank {rank()} could not reach the others: {str(error).splitlines()[0]}") from error


def _is_own(error: RuntimeError) -> bool:
    """Whether an error is of this process's own device, which has met it now."""
    import torch

    kinds = torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError)
    return isinstance(error, kinds)


def _joined() -> bool:
    module: Any = sys.modules.get("torch.distributed")
    return module is not None and bool(module.is_available() and module.is_initialized())


def _dist() -> Any:
    from torch import distributed

    return distributed
