"""What surrounds the members of a sweep (`-m`): how many run at once, and what became of each."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from medusa_cl.errors import MedusaError

WEEK = 7 * 24 * 60  # minutes
STARTED: list[Path] = []  # the folders of the sweeps that this process has started


class Members(Callback):
    """Hydra's callback: one instance, which a launcher copies into the process of every member.

    A sweep gets a folder of its own, `runs/.sweeps/<n>`. Hydra and its launchers write into it, and so does every
    member: a note of its overrides and of its objective or error. A member that fails does not end the others.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None  # stays None for a run by itself
        self.swept: set[str] = set()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the sweep's folder, and let as many members run at once as there are CPUs for their threads."""
        self.folder = _next_folder(Path(str(config.hydra.sweep.dir)))
        self.swept = _swept(config.hydra.overrides.task)
        STARTED.append(self.folder)
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = str(self.folder)
            for line in _fitted(config, self.folder):
                print(line)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Note what became of a member; an error is said at once, and the sweep goes on."""
        if self.folder is None:
            return
        number, result = config.hydra.job.num, job_return._return_value  # the property would print and raise
        named = [o for o in job_return.overrides or () if o.split("=")[0] in self.swept]
        name = " ".join(named or job_return.overrides or ())
        note: dict[str, Any] = {"name": name, "overrides": list(job_return.overrides or ())}
        if job_return.status is JobStatus.FAILED:
            note["error"] = _said(result)
            if config.hydra.runtime.choices["hydra/sweeper"] == "basic":  # which would stop before its next batch
                job_return.status, job_return.return_value = JobStatus.COMPLETED, None
            else:
                job_return.return_value = CompactHydraException(f"member {number} of the sweep failed")
            print(f"error in member {number}, {name}: {note['error']}", file=sys.stderr, flush=True)
        else:
            note["objective"] = result
        (self.folder / f"{number}.json").write_text(json.dumps(note) + "\n", encoding="utf-8")


@contextmanager
def reported() -> Iterator[None]:
    """Say what became of each member, should the block have been a sweep; end with status 1 where one has failed."""
    notes: list[dict[str, Any]] = []
    try:
        yield
    finally:
        for folder in STARTED:
            found = _notes(folder)
            notes += found.values()
            print("\n".join(_report(folder, found)))
        STARTED.clear()
    if any("error" in note for note in notes):
        raise SystemExit(1)


def _notes(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(folder.glob("*.json"), key=lambda path: int(path.stem))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def _report(folder: Path, notes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    failed = sum("error" in note for note in notes.values())
    yield f"\nsweep {_short(folder)}: {len(notes) - failed} finished, {failed} failed"
    for number, note in notes.items():
        yield f"  {number}  {note['name']}  {_outcome(note)}"


def _outcome(note: Mapping[str, Any]) -> str:
    if "error" in note:
        first_line = note["error"].split("\n")[0]
        return f"failed: {first_line}"
    return "no objective" if note["objective"] is None else f"objective {note['objective']:.3f}"


def _said(error: Exception) -> str:
    """Return what to say of an error; one that no user can mend is shown whole, as its trace ends with its process."""
    if isinstance(error, MedusaError):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"


def _swept(overrides: Sequence[str]) -> set[str]:
    """Return the keys of which a sweep has several values."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {str(o.get_key_element()) for o in parsed if o.is_sweep_override()}


def _next_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        try:
            (folder / str(number)).mkdir()
        except FileExistsError:
            number += 1
        else:
            return (folder / str(number)).resolve()


def _fitted(config: DictConfig, folder: Path) -> Iterator[str]:
    """Set what the command line leaves open about the launcher, and say so."""
    launcher = config.hydra.runtime.choices["hydra/launcher"]
    given = {o.partition("=")[0].lstrip("+") for o in config.hydra.overrides.hydra}
    cpus, threads = _cpus(), int(config.trainer.threads)
    together = 1 if _on_cuda(str(config.trainer.device)) else max(1, cpus // threads)
    key = {"joblib": "hydra.launcher.n_jobs", "submitit_local": "hydra.sweeper.max_batch_size"}.get(launcher)
    if key is not None and key not in given:
        if launcher == "joblib":
            config.hydra.launcher.n_jobs = together
        else:
            config.hydra.sweeper.max_batch_size = together
        why = "one device" if _on_cuda(str(config.trainer.device)) else f"{cpus} CPUs, trainer.threads={threads}"
        yield f"sweep: {together} at once ({why}); {key}=N for another number"
    if launcher == "submitit_local" and "hydra.launcher.timeout_min" not in given:
        config.hydra.launcher.timeout_min = WEEK  # its own hour would end a run and start it anew
    if launcher.startswith("submitit"):
        yield f"sweep: what members print is in {_short(folder)}/.submitit/*/*.out and *.err"


def _on_cuda(device: str) -> bool:
    if device != "auto":
        return device.startswith("cuda")
    import torch

    return bool(torch.cuda.is_available())


def _cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def job_number() -> int | None:
    """Return the number of this run in a sweep; None for a run by itself."""
    number: int | None = None
    if HydraConfig.initialized():
        number = OmegaConf.select(cast(Any, HydraConfig.get()), "job.num")
    return number
