"""The page that says what the files in a folder of predictions are, and by which a second call knows what is done."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medusa_cl import kept
from medusa_cl.errors import ConfigError, DataError, printable

PAGE, FORMAT = "predictions.json", "medusa-cl predictions 1"
KINDS = ("panels", "arrays", "png")
LOCK = ".lock"


@dataclass
class Record:
    """The page `predictions.json` of a folder.

    Attributes:
        folder: The folder.
        asked: What was asked for, on which outputs depend: the same again goes on where it stopped.
        facts: What else is said of it.
        images: By picture, the files made of it and what is known of it.
        failed: Why there is none of a picture.
        before: Files that stood in the folder; those not made again are removed in the end, after a stop too.
        anew: Whether to make again what is there.
    """

    folder: Path
    asked: dict[str, Any]
    facts: dict[str, Any]
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    before: frozenset[str] = frozenset()
    anew: bool = False

    @classmethod
    def open(cls, folder: Path, asked: Mapping[str, Any], facts: Mapping[str, Any], overwrite: bool) -> Record:
        """Go on with the record in a folder, or begin one.

        Raises:
            ConfigError: The folder holds something else, or what something else was asked for.
        """
        record = cls(folder, json.loads(json.dumps(asked)), dict(facts), anew=overwrite)
        known = read_record(folder)
        if known is None:
            _refuse_full(folder)
            return record
        old = {name: one for name, one in known["images"].items() if isinstance(one, dict)}
        listed = [one.get("files") for one in old.values()] + [known.get("to_remove")]
        record.before = frozenset(str(name) for names in listed if isinstance(names, list) for name in names)
        if known.get("asked") == record.asked:
            record.images = old
        elif not overwrite:
            raise ConfigError(
                f"{printable(folder)} holds predictions made otherwise "
                f"({_difference(known.get('asked'), record.asked)}). Choose another out=, or add overwrite=true to "
                "replace them."
            )
        return record

    def done(self, name: str, files: Iterable[str], source: Mapping[str, int]) -> bool:
        """Return whether these files were made of the picture as it is now, and are there."""
        known = self.images.get(name, {})
        same = not self.anew and known.get("source") == dict(source) and known.get("files") == list(files)
        return same and all((self.folder / one).is_file() for one in files)

    def save(self) -> None:
        """Write the page."""
        content = {"format": FORMAT, **self.facts, "asked": self.asked, "images": dict(sorted(self.images.items()))}
        content["failed"] = dict(sorted(self.failed.items()))
        if left := self._replaced():  # or a call that is stopped would leave them to nobody
            content["to_remove"] = sorted(left)
        with kept.whole(self.folder / PAGE) as part:
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def forget_replaced(self) -> None:
        """Remove files of other requests that were replaced: a mix would mislead."""
        for name in self._replaced():
            path = self.folder / name
            if path.suffix in (".png", ".npz") and path.resolve().is_relative_to(self.folder.resolve()):
                path.unlink(missing_ok=True)
        self.before = frozenset()

    def _replaced(self) -> frozenset[str]:
        return self.before - {name for one in self.images.values() for name in one["files"]}


def is_output(folder: Path) -> bool:
    """Return whether a folder holds predictions."""
    return read_record(folder) is not None


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the page of a folder with predictions; None where there is none of ours."""
    try:
        found = json.loads((folder / PAGE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(found, dict) and found.get("format") == FORMAT and isinstance(found.get("images"), dict)
    return found if ours else None


def _refuse_full(folder: Path) -> None:
    try:
        inside = [path.name for path in folder.iterdir() if path.name != LOCK]
    except OSError as error:
        raise DataError(f"Cannot write to {printable(folder)}: {error.strerror}. Choose another out=.") from error
    if inside:
        raise ConfigError(
            f"Expected out= a new or an empty folder, or one with predictions, but {printable(folder)} holds "
            f"{printable(sorted(inside)[0])} and no {PAGE}. Choose another out=."
        )


def _difference(old: Any, new: Mapping[str, Any]) -> str:
    known = old if isinstance(old, dict) else {}
    return "; ".join(f"{key}: {known.get(key)}, now {new[key]}" for key in new if known.get(key) != new[key])
