"""Packs: a folder by which a head is published, on any web server, in a git repository or on a model hub.

`pack.json` says what the head predicts, how it was learnt and what it reached, and holds the size and SHA-256 of every
file and a SHA-256 of itself. Nothing in a pack is run or unpickled: it is JSON, safetensors, text and a picture.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from medusa_cl import __version__, kept, trained
from medusa_cl.deploy.cards import backbone_licence, card
from medusa_cl.errors import ConfigError, DataError, TaskError, WeightsError, nearest
from medusa_cl.trained import Trained

if TYPE_CHECKING:
    from medusa_cl.models.backbone import Backbone
    from medusa_cl.models.multitask import MultiTaskModel
    from medusa_cl.tasks import DenseTask

FORMAT = "medusa-cl pack 1"
CONTENT, HEAD, BACKBONE = "pack.json", "head.safetensors", "backbone.safetensors"
CARD, PICTURE = "README.md", "panel.png"
FILES = (HEAD, BACKBONE, CARD, PICTURE)
"""The only names that pack.json may list."""
LIMIT = 1 << 20
"""Bytes of pack.json; more is not read."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
LICENCES = (
    "0BSD", "AGPL-3.0-only", "AGPL-3.0-or-later", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0",
    *(f"CC-BY{kind}-{version}" for kind in ("", "-SA", "-NC", "-ND", "-NC-SA", "-NC-ND") for version in ("3.0", "4.0")),
    "CC0-1.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0", "CDLA-Sharing-1.0", "ECL-2.0", "EPL-2.0", "EUPL-1.2",
    "GPL-2.0-only", "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later", "ISC", "LGPL-2.1-only", "LGPL-2.1-or-later",
    "LGPL-3.0-only", "LGPL-3.0-or-later", "MIT", "MIT-0", "MPL-2.0", "ODbL-1.0", "ODC-By-1.0", "OGL-UK-3.0", "PDDL-1.0",
    "Unlicense", "Zlib",
)  # fmt: skip
"""SPDX identifiers that weights and data often have; another one is taken with a warning."""
LARGE = 20_000_000
"""Bytes from which on a transfer shows how far it is."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pack:
    """A pack on this machine.

    Attributes:
        folder: Where its files are.
        content: What pack.json says.
    """

    folder: Path
    content: Mapping[str, Any]

    def has(self, name: str) -> bool:
        """Return whether one of `FILES` belongs to the pack."""
        return name in self.content["files"]

    def file(self, name: str) -> Path:
        """Return a file after a look at every byte of it.

        Raises:
            WeightsError: It is missing, or not what pack.json says.
        """
        path, entry = self.folder / name, self.content["files"].get(name)
        if entry is None:
            raise WeightsError(f"The pack in {self.folder} has no {name}. {_publisher(name)}")
        if not path.is_file() or not _is(path, entry):
            raise WeightsError(
                f"{path} is missing or damaged: it is not the file that {CONTENT} lists. Get the pack again."
            )
        return path


def _publisher(name: str) -> str:
    whole = "Give run= a model that has the backbone, or ask its publisher for a pack made with backbone=true."
    return whole if name == BACKBONE else "Ask its publisher for a whole one."


def _is(path: Path, entry: Mapping[str, Any]) -> bool:
    return path.stat().st_size == int(entry["size"]) and kept.file_hash(path) == str(entry["sha256"])


def read(folder: Path | str) -> Pack:
    """Read what a pack says of itself.

    Raises:
        WeightsError: There is no pack, pack.json is damaged or was edited, or lists files that no pack has.
    """
    path = Path(folder) / CONTENT
    try:
        if path.stat().st_size > LIMIT:
            raise ValueError(f"it has more than {LIMIT} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        _check(content)
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"Expected a pack in {folder}, but {CONTENT}: {error}. Get the pack again.") from error
    return Pack(Path(folder), content)


def _check(content: Any) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else content
        raise ValueError(f"expected format {FORMAT!r}, but got {str(found)[:80]!r}")
    if content.get("sha256") != seal(content):
        raise ValueError("it is damaged, or was edited: its content is not that of its SHA-256")
    files = content.get("files")
    if not isinstance(files, dict) or HEAD not in files:
        raise ValueError(f"it lists no {HEAD}")
    for name, entry in files.items():
        _check_entry(name, entry)
    _check_published(content, *(content.get(key) for key in ("metrics", "learnt", "came")))


def _check_published(content: Mapping[str, Any], metrics: Any, learnt: Any, came: Any) -> None:
    if not _is_published(content):
        raise ValueError("it does not say licence and author, in printable characters")
    if not (metrics is learnt is None) and not (isinstance(metrics, dict) and isinstance(learnt, dict)):
        raise ValueError("it does not say metrics and learnt, or null for both")
    if came is not None and not (isinstance(came, list) and all(_is_published(one) for one in came)):
        raise ValueError("it does not say the licences that the head came under")


def _is_published(content: Any) -> bool:
    said = [content.get(key) for key in ("licence", "author")] if isinstance(content, dict) else [None]
    return all(isinstance(text, str) and text.isprintable() for text in said)


def _check_entry(name: str, entry: Any) -> None:
    if name not in FILES:
        raise ValueError(f"it lists {name[:80]!r}, but a pack holds nothing but {', '.join(FILES)}")
    size, digest = (entry.get("size"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
    if type(size) is not int or size < 1 or re.fullmatch("[0-9a-f]{64}", str(digest)) is None:
        raise ValueError(f"it says no size and SHA-256 of {name}")


def seal(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all that pack.json says but of that hash itself."""
    return kept.digest({key: value for key, value in content.items() if key != "sha256"})


# ---------------------------------------------------------------- getting a pack


def fetch(place: str | Path, *, backbone: bool = False, refresh: bool = False) -> Path:
    """Return the folder of a pack on this machine, its head checked against its SHA-256.

    What came over the network is kept under the cache folder ($MEDUSA_CL_CACHE, else ~/.cache/medusa_cl) by its hash:
    the second use of an address needs no network, and an interrupted transfer goes on.

    Args:
        place: A folder, or the https:// or file:// address of one.
        backbone: Whether its backbone is needed too.
        refresh: Ask the server for what is at that address now.

    Raises:
        ConfigError: The address is of another kind.
        DataError: It cannot be reached, or what came is not what was expected.
        WeightsError: There is no pack, or it is damaged, or lacks the backbone.
    """
    place, wanted = str(place), (HEAD, BACKBONE) if backbone else (HEAD,)
    if is_address(place):
        _check_address(place)
        found = _content_of(place, refresh)
        for name in wanted:
            if found.has(name):
                _bring(place, found, name)
    else:
        found = read(_folder(place))
    for name in wanted:
        found.file(name)
    _check_head(found)
    return found.folder


def is_address(place: str) -> bool:
    """Return whether something is to be fetched over a network."""
    return "://" in place and not place.startswith("file://")


def _folder(place: str) -> Path:
    path = Path(unquote(urlsplit(place).path) if place.startswith("file://") else place)
    return path.parent if path.name == CONTENT else path


def _check_head(found: Pack) -> None:
    """Refuse a pack that says one thing of its head, and the head another."""
    from medusa_cl.models.multitask import describe_head

    head = describe_head(found.folder / HEAD)
    backbone = {"name": head.backbone, "hash": head.backbone_hash}
    told = {"task": head.task, "head": head.head, "precision": head.precision, "backbone": backbone}
    for key, value in told.items():
        if found.content.get(key) != value:
            raise WeightsError(f"{found.folder / CONTENT} and {HEAD} differ in what they say of the {key}.")


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK):
        return
    raise ConfigError(
        f"Expected a pack's https:// or file:// address, but got {parts.scheme}://{parts.hostname}, over which anyone "
        "on the way could change it. Download its files yourself and give the folder."
    )


def _content_of(url: str, refresh: bool) -> Pack:
    """Return a pack that is at an address, or was when it was asked for first; of its files what came so far."""
    note = kept.place("address", {"url": url}, _kept())
    known = kept.read(note, sealed=True) if note.is_file() and not refresh else None
    if known is not None:
        with suppress(WeightsError):  # it is not there any more, or damaged
            return read(_kept() / str(known))
    from medusa_cl.data.download import disk_errors

    with disk_errors(_kept()):
        _kept().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_kept(), prefix="asking-") as folder:
        _download(url, CONTENT, Path(folder), None, _at_most)
        found = read(folder)
        home = _kept() / str(found.content["sha256"])
        with disk_errors(home):
            home.mkdir(exist_ok=True)
            os.replace(Path(folder) / CONTENT, home / CONTENT)
    kept.write(note, home.name)
    return Pack(home, found.content)


def _kept() -> Path:
    from medusa_cl.data.rooms.cache import cache_dir

    return cache_dir() / "packs"


def _at_most(done: int, total: int | None) -> None:
    if max(done, total or 0) > LIMIT:
        raise DataError(f"{CONTENT} has more than {LIMIT} bytes: that is none. Check the address.")


def _bring(url: str, pack: Pack, name: str) -> None:
    """Have a file of a pack in its folder: what is there, or what the server sends if it is what was promised."""
    path, entry = pack.folder / name, pack.content["files"][name]
    if path.is_file():
        if _is(path, entry):
            return
        path.unlink()
    _download(url, name, pack.folder, entry["size"])
    if not _is(path, entry):
        path.unlink()
        raise DataError(
            f"{name}, as the server sent it, is not what {CONTENT} lists: its SHA-256 is another. If its publisher has "
            "changed the pack, refresh=true takes the new one."
        )


def _download(url: str, name: str, folder: Path, size: int | None, progress: Any = None) -> None:
    from medusa_cl.data import download

    try:
        with _shown(name, size) as show:
            source = download.Source(_address_of(url, name), name, size, check=_check_address)
            download.fetch(source, folder, progress or show)
    except DataError as error:
        error.add_note(f"A pack's address is that of the folder in which its {CONTENT} lies, of the files themselves.")
        raise


@contextmanager
def _shown(name: str, size: int | None) -> Iterator[Any]:
    """Yield what shows how far a transfer is; None for a small file."""
    if size is None or size < LARGE:
        yield None
        return
    from medusa_cl.tracking.console import progress

    with progress(f"{name}, MB", size // 10**6) as bar:
        yield lambda done, total: bar.advance(done // 10**6 - bar.done)


def _address_of(url: str, name: str) -> str:
    parts = urlsplit(url)
    folder = parts.path.removesuffix(f"/{CONTENT}").rstrip("/")
    return urlunsplit(parts._replace(path=f"{folder}/{name}", fragment=""))


# ---------------------------------------------------------------- a backbone in a pack


def save_backbone(backbone: Backbone, path: Path) -> None:
    """Write a backbone's weights under the names that they have in its net; `backbone.checkpoint=` reads them too."""
    from safetensors.torch import save_file

    state = {key: value.detach().cpu().contiguous() for key, value in backbone.net.state_dict().items()}
    save_file(state, path, metadata={"format": "pt"})
    kept.readable(path)


def load_backbone(pack: Pack) -> Backbone:
    """Return the backbone of a pack.

    Raises:
        WeightsError: It has none, or another than it says.
    """
    from medusa_cl.models.backbone import Backbone

    said = pack.content["backbone"]
    made = Backbone.create(said["name"], checkpoint=pack.file(BACKBONE))
    if made.weights_hash() != said["hash"]:
        raise WeightsError(f"The backbone in {pack.folder} is not the one that its head fits. Ask for a whole pack.")
    return made


# ---------------------------------------------------------------- making a pack


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """Say where to write the files of a folder, which gets its name when all are there; should the block fail, none.

    Raises:
        ConfigError: There is something by that name.
    """
    from medusa_cl.data.download import disk_errors

    refuse_existing(out)
    folder = Path(out).resolve()
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    with disk_errors(folder):
        try:
            part.mkdir(parents=True)
            yield part
            os.replace(part, folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def refuse_existing(out: str | Path) -> None:
    """Refuse to write a folder where something is.

    Raises:
        ConfigError: There is something by that name.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already. Choose another out=, or move it away.")


def pack(
    run: str | Path,
    task: str,
    out: str | Path,
    licence: str,
    *,
    author: str = "",
    backbone: bool = False,
    picture: bool = True,
    tasks: Mapping[str, DenseTask] | None = None,
) -> Path:
    """Write a head as a pack.

    Args:
        run: A run directory, or a directory with a model; numbers come from the run's summary.json, or with the head.
        task: Whose head.
        out: The folder to make.
        licence: SPDX identifier of the licence of the weights, such as CC-BY-4.0 or Apache-2.0.
        author: Who publishes it; by default who published the pack that the head came from.
        backbone: Whether the backbone comes along, for those who have no model with it.
        picture: Whether a picture comes along, if the run has one; it shows test images.
        tasks: Tasks by name, where they are not built-in ones.

    Returns:
        `out`.

    Raises:
        ConfigError: There is no such model, the licence is no identifier, or `out` is there.
        TaskError: The model has no such task, or no head for it alone.
        DataError: The run's summary is damaged.
    """
    _check_licence(licence)
    refuse_existing(out)
    found = trained.find(str(run))
    model = with_heads(str(run), tasks)
    trained.chosen(list(model.tasks), [task])
    said = _published(model.origins.get(task, {}), task, licence, author) | _described(model, task)
    if backbone:
        said["backbone_licence"] = _licence_of(model.backbone)
        _log.warning("The backbone comes along, and %s is the licence of the head alone. %s", licence,
                     backbone_licence(said))  # fmt: skip
    with new_folder(out) as folder:
        model.save_head(task, folder / HEAD)
        if backbone:
            save_backbone(model.backbone, folder / BACKBONE)
        if picture and (shown := _picture(found, task)) is not None:
            shutil.copyfile(shown, folder / PICTURE)
        there = [name for name in FILES if (folder / name).is_file()]
        (folder / CARD).write_text(_card(said, there), encoding="utf-8")
        _write_content(folder, said)
    return Path(out)


def _published(origin: Mapping[str, Any], task: str, licence: str, author: str) -> dict[str, Any]:
    """Return what a pack says of a head's publishing and learning, with the licences that it came under."""
    came, before = list(origin.get("came", ())), {key: origin.get(key) for key in ("licence", "author")}
    said = {"licence": licence, "author": author or before["author"] or ""}
    if before["licence"] not in (None, licence):
        _log.warning(
            'The head of "%s" came from a pack under %s%s, and you publish it under %s: see that you may.',
            task, before["licence"], f" by {before['author']}" if before["author"] else "", licence,
        )  # fmt: skip
    if before["licence"] is not None and before != said:
        came.append(before)
    return said | ({"came": came} if came else {}) | {key: origin.get(key) for key in ("metrics", "learnt")}


def _card(said: Mapping[str, Any], there: Sequence[str]) -> str:
    try:
        return card(said, picture=PICTURE in there, whole=BACKBONE in there)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise WeightsError(
            f'What came with the head of "{said["task"]["name"]}" does not say how it was learnt: {error!r}. Get it '
            "again."
        ) from error


def _licence_of(backbone: Backbone) -> str | None:
    from medusa_cl.deploy.graphs import published_licence

    return published_licence(backbone)


def origin_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what goes with a head out of a pack, from what pack.json says."""
    kept_facts = {key: content[key] for key in ("licence", "author", "metrics", "learnt", "came") if key in content}
    if content["learnt"] is not None:
        kept_facts["learnt"] = {"task": content["task"]["name"]} | content["learnt"]
    return kept_facts


def origins(found: Trained, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return what is known of a model's heads, by task: what came with them, or what their run says.

    Raises:
        WeightsError: What came with them is damaged.
        DataError: The run's summary is damaged.
    """
    from medusa_cl.checkpoint import read_origins

    came = read_origins(found.model)
    known = {name: came.get(name) or _learnt(found, name) for name in names}
    return {name: said for name, said in known.items() if said.get("learnt") or said.get("licence")}


def with_heads(run: str, tasks: Mapping[str, DenseTask] | None) -> MultiTaskModel:
    """Return a model whose heads can be taken one by one.

    Args:
        run: The model.
        tasks: Tasks by name, where they are not built-in ones.

    Raises:
        ConfigError: There is no such model.
        TaskError: It has a decoder instead of heads.
        DataError: The summary of its run is damaged.
    """
    from medusa_cl.deploy.predictor import training_size
    from medusa_cl.models.coupled import CoupledModel

    found = trained.find(run)
    model = found.load(tasks)
    if isinstance(model, CoupledModel):
        raise TaskError(
            f"{run} has no heads: a decoder couples all of its tasks, so none can be taken out and none be added "
            "without learning all of them anew (strategy=joint)."
        )
    model.image_size = model.image_size or training_size(found)
    model.origins.update(origins(found, list(model.tasks)))
    return model


def _check_licence(licence: str) -> None:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", licence) is None:
        raise ConfigError(
            f"Expected licence= an SPDX identifier, such as CC-BY-4.0, Apache-2.0 or LicenseRef-Internal, but got "
            f"{licence!r}."
        )
    if licence not in LICENCES and not licence.startswith("LicenseRef-"):
        _log.warning(
            "licence=%s is no SPDX identifier that is common for weights.%s Others begin with LicenseRef-.",
            licence, nearest(licence, LICENCES),
        )  # fmt: skip


def _described(model: MultiTaskModel, task: str) -> dict[str, Any]:
    head = model.heads[task]
    return {
        "task": model.tasks[task].describe(),
        "head": {"class": type(head).__name__, "config": getattr(head, "config", {})},
        "parameters": model.parameters_of(task),
        "precision": model.precision,
        "backbone": {"name": model.backbone.name, "hash": model.backbone.weights_hash()},
    }


def _learnt(found: Trained, task: str) -> dict[str, Any]:
    """Return what a run says of how a task was learnt and what it reached; None where there is no finished run."""
    from medusa_cl.deploy.predictor import training_size

    summary = found.summary()
    if summary is None or found.run is None or task not in summary["matrix"]["values"]:
        return {"metrics": None, "learnt": None}
    values = [value for value in summary["matrix"]["values"][task] if value is not None]
    references = summary["transfer"].get("reference_values") or {}
    metrics = {
        **summary["primary"][task],
        "split": "test",
        "value": values[-1] if values else None,
        "just_learnt": values[0] if values else None,
        "references": {name: of[task] for name, of in references.items() if of.get(task) is not None},
    }
    facts = {key: summary.get(key) for key in ("scenario", "strategy", "head", "seed", "base", "stream", "frozen")}
    source = {key: summary["provenance"].get(key) for key in ("data_hash", "packages", "git")}
    labels = (summary.get("labels") or {}).get(task)
    facts |= {"task": task, "labels": labels, "image_size": training_size(found)} | source | _configured(found.run)
    return {"metrics": metrics, "learnt": facts}


def _configured(run: Path) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        trainer = config["trainer"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DataError(f"{run / 'config.yaml'} is damaged: {error}. Put it back as it was.") from error
    steps = ("base_steps", "max_steps", "epochs", "batch_size", "lr_head", "lr_backbone")
    return {"trainer": {key: trainer.get(key) for key in steps}}


def _picture(found: Trained, task: str) -> Path | None:
    pictures = sorted((found.run / "panels").glob(f"{glob.escape(task)}-[0-9]*.png")) if found.run else []
    return pictures[-1] if pictures else None


def _write_content(folder: Path, said: Mapping[str, Any]) -> None:
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": kept.file_hash(folder / name)}
        for name in FILES
        if (folder / name).is_file()
    }
    content = json.loads(json.dumps({"format": FORMAT, "medusa_cl": __version__, **said, "files": files}))
    with kept.whole(folder / CONTENT) as part:
        part.write_text(json.dumps(content | {"sha256": seal(content)}, indent=2) + "\n", encoding="utf-8")
