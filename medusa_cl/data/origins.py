"""Where data sets come from: several sources in order, and the way to get them by hand where all fail."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medusa_cl.data.archive import extract, filled
from medusa_cl.data.download import DRIVE, TIMEOUT, Progress, Source, fetch
from medusa_cl.errors import DataError, MissingDataError

_SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tbz2", ".txz", ".tar", ".zip")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alternative:
    """One way to come by a data set.

    Attributes:
        name: For people.
        sources: The files it takes, all of them.
        archives: Each file is unpacked into a folder named as the file is without its suffix.
    """

    name: str
    sources: tuple[Source, ...]
    archives: bool = False


def obtain(
    what: str,
    alternatives: Sequence[Alternative],
    folder: Path | str,
    manual: str,
    progress: Progress | None = None,
    timeout: float = TIMEOUT,
) -> Path:
    """Try the ways to come by a data set, one after the other.

    Args:
        what: The data set, for people.
        alternatives: The ways, the best first.
        folder: Where the files, or the folders of unpacked archives, are put.
        manual: What to do by hand when all fail.
        progress: As for `fetch`, for each file anew.
        timeout: As for `fetch`.

    Returns:
        The folder of the one archive, else `folder`.

    Raises:
        MissingDataError: All failed; the message has the reason of each, then `manual`.
    """
    failures = []
    for alternative in alternatives:
        try:
            return _get(alternative, Path(folder), progress, timeout)
        except DataError as error:
            _log.warning("%s: the %s is not to be had. %s", what, alternative.name, error)
            failures.append(f"  - {alternative.name}: {error}")
    tried = "\n".join(failures) or "  - No source is known that can be fetched without a browser."
    raise MissingDataError(f"{what} could not be downloaded.\n{tried}\n{manual}")


def _get(alternative: Alternative, folder: Path, progress: Progress | None, timeout: float) -> Path:
    trees = []
    for source in alternative.sources:
        if not alternative.archives:
            fetch(source, folder, progress, timeout)
        elif filled(tree := folder / _stem(source.name)):
            trees.append(tree)  # the archive may be gone
        else:
            trees.append(extract(fetch(source, folder, progress, timeout), tree))
    return trees[0] if len(trees) == 1 else folder


def _stem(name: str) -> str:
    suffix = next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)] if suffix else f"{name}.unpacked"


_NYU = "https://horatio.cs.nyu.edu/mit/silberman"
_SURVEY_ID = "14EAEMXmd3zs2hIMY63UhHPSFPDAkiTzw"

NYUD: tuple[Alternative, ...] = (
    Alternative(
        "raw labelled file",
        (
            # The small one first: the large one is of no use without it.
            Source(f"{_NYU}/indoor_seg_sup/splits.mat", "splits.mat", md5="08e3c3aea27130ac7c01ffd739a4535f"),
            Source(
                f"{_NYU}/nyu_depth_v2/nyu_depth_v2_labeled.mat",
                "nyu_depth_v2_labeled.mat",
                size=2_972_037_809,
                md5="520609c519fba3ba5ac58c8fefcc3530",
            ),
        ),
    ),
    Alternative("survey pack", (Source(f"{DRIVE}{_SURVEY_ID}", "NYUD_MT.tgz"),), archives=True),
)
"""Where NYUD-v2 is to be had."""


def nyud(folder: Path | str, progress: Progress | None = None) -> Path:
    """Download NYUD-v2: the raw labelled file with its split, else the survey pack.

    Args:
        folder: Where to put it.
        progress: As for `fetch`, for each file anew.

    Returns:
        `folder`, which holds the raw files, or `folder/NYUD_MT`.

    Raises:
        MissingDataError: No source could be used; the message says why, and what to do by hand.
    """
    return obtain("NYUD-v2", NYUD, folder, nyud_manual(folder), progress)


def nyud_manual(folder: Path | str = "DIR") -> str:
    """Return the steps by which a person puts NYUD-v2 into a folder."""
    splits, labelled = NYUD[0].sources
    return (
        f"By hand, either\n"
        f"  1. download {labelled.url} ({labelled.size} bytes)\n"
        f"     and {splits.url}\n"
        f"  2. put them there as {Path(folder) / labelled.name}\n"
        f"     and {Path(folder) / splits.name}\n"
        f"or\n"
        f"  1. download https://drive.google.com/file/d/{_SURVEY_ID}/view in a browser\n"
        f"  2. unpack it with tar -xzf FILE -C {folder}, so that {Path(folder) / 'NYUD_MT' / 'images'} exists\n"
        f"then run it again with scenario.root={folder}"
    )


PASCAL_MANUAL = """By hand
  1. download the archive PASCAL_MT.tgz. The projects that made it known say where it is:
     https://github.com/facebookresearch/astmt (K. Maninis) and
     https://github.com/SimonVandenhende/Multi-Task-Learning-PyTorch (S. Vandenhende), in the README or in
     the loader of PASCAL; it stood at https://data.vision.ee.ethz.ch/kmaninis/share/MTL/PASCAL_MT.tgz
  2. unpack it with tar -xzf PASCAL_MT.tgz -C DIR, so that DIR/PASCAL_MT/JPEGImages exists
then run it again with scenario.root=DIR/PASCAL_MT"""
"""The steps by which a person puts PASCAL-Context into a folder DIR; there is no source to fetch it from unasked."""
