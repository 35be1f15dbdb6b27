"""Where the features of a frozen backbone are kept, and whether that pays: what `strategy.cache_features` decides."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from medusa_cl import __version__, distributed, rundir
from medusa_cl.data.features import AS_IT_IS, PRECISIONS, FrozenFeatures, Need, key_of, need, size
from medusa_cl.data.loader import Augmentation
from medusa_cl.data.split import DenseData
from medusa_cl.errors import ConfigError, TrainingError, unknown
from medusa_cl.kept import digest
from medusa_cl.models.backbone import Backbone
from medusa_cl.strategies.template import DenseModule
from medusa_cl.summary import code_hash, packages

MODES = ("auto", "memory", "disk", "off")
SHARE = 0.5
"""Of the free memory, or of the free disk, that auto takes at most; of a CUDA device's memory it is half of that."""
ENDLESS = "scenario.augment draws new views in every epoch (scenario.augment.views=8 draws 8 of each image, once)"
Bar = Callable[[str, int], AbstractContextManager[Any]]


class FeatureCache:
    """Keeps a frozen backbone's features by split, computed once for all tasks that need them.

    Args:
        mode: "auto" keeps them in memory where they fit, else on disk, and not at all where the rest of the stream
            looks at fewer views than there are; "memory" (of the CUDA device, where they fit there) and "disk"
            insist; "off" runs the backbone each time.
        precision: "32", "bf16" or "fp16": to what features of a frozen backbone are rounded, kept or not, so that what
            is kept where changes no result.
        folder: Where files go; by default runs/.cache/features. A later run finds them there.
        shared: Features kept before, by digest, to be shared by strategies on the same frozen backbone.

    Attributes:
        notify: Called with a line that says what is kept where, and why.
        bar: `(label, total) -> context` of an object with `to(done, total)`, shown while features are computed.

    Raises:
        ConfigError: The mode or the precision is unknown.
    """

    def __init__(
        self,
        mode: str | bool = "auto",
        precision: str = "32",
        folder: str | Path | None = None,
        shared: dict[str, FrozenFeatures] | None = None,
    ) -> None:
        mode = "off" if mode is False else str(mode)  # what YAML makes of off
        if mode not in MODES:
            raise ConfigError(unknown("strategy.cache_features", mode, MODES))
        if str(precision) not in PRECISIONS:
            raise ConfigError(unknown("strategy.cache_precision", str(precision), PRECISIONS))
        self.mode, self.precision = mode, str(precision)
        self.folder = Path(folder) if folder else rundir.RUNS / ".cache" / "features"
        self.notify: Callable[[str], None] = lambda line: None
        self.bar: Bar | None = None
        self._kept: dict[str, FrozenFeatures] = {} if shared is None else shared
        self._frozen: tuple[Backbone, str] | None = None
        self._said = set[tuple[str, str]]()

    @property
    def insists(self) -> bool:
        """Whether it is an error where features cannot be kept."""
        return self.mode in ("memory", "disk")

    def check(self, augmentation: Augmentation | None) -> None:
        """Refuse to keep what cannot be listed.

        Raises:
            ConfigError: It insists, and views are endless.
        """
        if self.insists and augmentation is not None and augmentation.count is None:
            raise ConfigError(
                f"strategy.cache_features={self.mode} needs views that can be listed, but scenario.augment draws from "
                "endless ones. Set scenario.augment.views=8 (8 views of each image, drawn once), leave only flip there "
                "(zooms: [1.0], scale: null, rotation: 0, crop: null), or set strategy.cache_features=auto."
            )

    def of(
        self,
        model: DenseModule,
        source: DenseData,
        augmentation: Augmentation | None,
        tasks: Iterable[str],
        *,
        batch_size: int,
        split: str,
        draws: int | None = None,
        workers: int = 0,
    ) -> FrozenFeatures | None:
        """Return the features of a split, computed now where they are not kept yet; None where they are not to be.

        Args:
            model: The model; its backbone must be frozen for anything to be kept.
            source: The split.
            augmentation: How its images vary; None for as they are.
            tasks: Whose heads are to use them.
            batch_size: Images a batch of one process.
            split: The split's name, for people.
            draws: How many views will be looked at from now on, where known.
            workers: Processes that load images.

        Raises:
            ConfigError: It insists, and the views are endless or a head needs the images.
            TrainingError: The backbone's weights have changed since features were kept.
        """
        if self.mode == "off" or not model.backbone.frozen or not self._possible(model, augmentation, tasks):
            return None
        views, device = augmentation or AS_IT_IS, next(model.parameters()).device
        machine = _machine(model, device)
        own = {
            "backbone": self._weights(model.backbone),
            **key_of(source, views, batch_size, self.precision),
            **machine,
        }
        if (known := digest(own)) in self._kept:
            return self._kept[known]
        needed = need(model.model.features, source, views, self.precision, device)
        there = (self.folder / f"{known[:32]}.h5").is_file()
        place, why = distributed.agreed(self._place(needed, device, draws, there))
        if not self._tell(split, needed, place, why):
            return None
        options: dict[str, Any] = {"batch_size": batch_size, "precision": self.precision, "workers": workers}
        options |= {"device": device, "extract": model.model.features, "key": machine}
        options |= {"folder": self.folder if place == "disk" else None, "on_device": place == "device"}
        with self._shown(f"features of {split}", needed.rows) as progress:
            self._kept[known] = FrozenFeatures(model.backbone, source, views, **options, progress=progress)
        return self._kept[known]

    def pass_over(self, why: str) -> None:
        """Say why features are not kept in what comes.

        Raises:
            ConfigError: It insists on keeping them.
        """
        if self.insists:
            raise ConfigError(f"strategy.cache_features={self.mode}, but {why}. Set strategy.cache_features=auto.")
        self._say("passed over", f"features are not kept: {why}")

    def _possible(self, model: DenseModule, augmentation: Augmentation | None, tasks: Iterable[str]) -> bool:
        self.check(augmentation)
        if self.insists and model.model.needs_images(tasks):
            raise ConfigError(
                f"strategy.cache_features={self.mode}, but the heads of this strategy change the backbone's features, "
                "so they need the images. Set strategy.cache_features=off."
            )
        endless = augmentation is not None and augmentation.count is None
        if endless:
            self._say("endless", f"features are not kept: {ENDLESS}")
        return not endless and not model.model.needs_images(tasks)

    def _weights(self, backbone: Backbone) -> str:
        """Return the hash of the weights, which are the same for ever once features are kept.

        Raises:
            TrainingError: They have changed.
        """
        found = backbone.weights_hash()
        if self._frozen is not None and self._frozen[0] is backbone and self._frozen[1] != found:
            raise TrainingError(
                "The weights of the frozen backbone have changed since its features were kept, so what was learnt on "
                f"them no longer fits (expected {self._frozen[1][:12]}, got {found[:12]}). Something loads or trains "
                "it: set strategy.freeze=none if that is meant."
            )
        self._frozen = backbone, found
        return found

    def _place(self, needed: Need, device: torch.device, draws: int | None, there: bool) -> tuple[str, str]:
        """Return where features go ("" for nowhere) and why; `there` is whether their file is."""
        if self.mode == "disk":
            return "disk", "as asked for"
        if device.type == "cuda" and needed.bytes <= (free := torch.cuda.mem_get_info(device)[0]) * SHARE / 2:
            return "device", f"{size(free)} are free"
        if self.mode == "memory":
            return "memory", "as asked for"
        if there:
            return "disk", "from an earlier run"
        if draws is not None and draws < needed.rows:
            return "", f"the stream has {draws} looks left at these {needed.rows} views"
        copies = distributed.local_world()  # each process keeps its own
        if copies * needed.bytes <= (free := free_memory()) * SHARE:
            return "memory", f"{size(free)} are free"
        if needed.bytes <= (free := free_disk(self.folder)) * SHARE:
            return "disk", f"{size(free)} are free"
        return "", f"{size(free_memory())} of memory and {size(free_disk(self.folder))} of disk are free"

    def _tell(self, split: str, needed: Need, place: str, why: str) -> bool:
        where = {"device": "kept in the device's memory", "memory": "kept in memory", "disk": f"kept in {self.folder}"}
        self._say(split, f"features of {split}: {needed}, {where.get(place, 'not kept')} ({why})")
        return bool(place)

    def _say(self, about: str, line: str) -> None:
        if (about, line) not in self._said:
            self._said.add((about, line))
            self.notify(line)

    @contextmanager
    def _shown(self, label: str, total: int) -> Iterator[Callable[[int, int], None]]:
        if self.bar is None:
            yield lambda done, total: None
        else:
            with self.bar(label, total) as shown:
                yield shown.to


def _machine(model: DenseModule, device: torch.device) -> dict[str, Any]:
    """Return what else the bits of features depend on."""
    whole = model.model
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    weights = next((p for p in whole.backbone.parameters() if p.dim() == 4), torch.empty(0))
    layout = [str(number) for number in weights.stride()]
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    scaling = [whole.backbone.mean.flatten().tolist(), whole.backbone.std.flatten().tolist()]
    how = [whole.precision, str(whole.backbone.net._compiled_call_impl is not None), *layout]
    code = [__version__, code_hash(), packages()]
    return {"device": [device.type, processor], "threads": threads, "code": code, "forward": how, "images": scaling}


def free_memory() -> int:
    """Return the bytes of memory that this process may still take, as far as the system says."""
    pages = os.sysconf("SC_PHYS_PAGES" if sys.platform == "darwin" else "SC_AVPHYS_PAGES")
    free: float = pages * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, StopIteration):  # Linux also counts what it could give back
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line for line in lines if line.startswith("0::")).removeprefix("0::")
        group = Path("/sys/fs/cgroup") / own.strip("/")
        limited = [one for one in (group, *group.parents) if (one / "memory.max").is_file()]
        free = min([free, *map(_left_in, limited)])
    return int(max(free, 0))


def _left_in(group: Path) -> float:
    """Return the bytes that a control group's limit leaves, files in memory not counted."""
    limit = (group / "memory.max").read_text().strip()
    if limit == "max":
        return math.inf
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(limit) - int((group / "memory.current").read_text()) + int(statistics["inactive_file"])


def free_disk(folder: Path) -> int:
    """Return the bytes free where a folder is, or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(there).free
