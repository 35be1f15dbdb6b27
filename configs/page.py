"""The page that `python -m medusa_cl.run --help` prints, read from the configuration files as text: a moment's work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from medusa_cl.configs.check import groups
from medusa_cl.shell import row

HERE = Path(__file__).parent
ABOUT = "Learn a stream of dense tasks on a frozen backbone, and report what it forgot and transferred."
LEFT = 30  # columns before what a key is about
# What is said of most: a file, what its keys begin with, and which of them. What each does is the comment beside it.
SHOWN: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("scenario/rooms_incremental", "scenario.", ("order", "held_out", "augment.views")),
    ("strategy/medusa", "strategy.", ("freeze", "cache_features")),
    ("trainer/auto", "trainer.", ("max_steps", "base_steps", "epochs", "precision", "select", "threads", "processes")),
    ("config", "", ("base", "extend", "remove", "resume", "compare", "references", "out", "overwrite")),
    ("config", "", ("mode", "study.members", "study.orders", "study.leave_one_out")),
    ("tracking/mlflow", "tracking.", ("uri",)),
)
EXAMPLES = (
    "experiment=demo                                # what make demo shows",
    "strategy=finetune plugins=[ewc,replay]         # composed with plugins",
    "-m strategy=medusa,frozen_plain seed=0,1,2     # every combination",
    "mode=study study.members=[medusa,joint]        # compared in one table",
    "scenario=folder_incremental scenario.root=DIR  # your own images",
    "resume=last                                    # go on after a stop",
)
MORE = (
    ("--cfg job", "every key with its value, as this command line has them"),
    ("--hydra-help", "options of Hydra: configuration in folders of your own, sweeps"),
)
_LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?: (?P<value>.*?))??(?: +# (?P<about>.*))?")


def page() -> str:
    """Return the page."""
    lines = ["usage: python -m medusa_cl.run [GROUP=OPTION ...] [KEY=VALUE ...]", "", ABOUT, ""]
    lines += ["groups (the first option is the default):", *_groups(), "", "keys:", *_keys(), "", "examples:"]
    lines += [f"  python -m medusa_cl.run {example}" for example in EXAMPLES]
    return "\n".join([*lines, "", "more:", *(row(name, about, LEFT) for name, about in MORE)])


def comments(file: str) -> dict[str, tuple[str, str]]:
    """Return {key: (its value, the comment beside it)} of a file in configs/, keys within keys as `a.b`.

    A comment on a line of its own is that of the key below it.
    """
    found: dict[str, tuple[str, str]] = {}
    above, within = "", [""]
    for line in (HERE / f"{file}.yaml").read_text(encoding="utf-8").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            above = line.strip().removeprefix("# ") if line.strip().startswith("# ") else ""
            continue
        within = [*within[: len(match["indent"]) // 2], match["key"]]
        found[".".join(within)] = (match["value"] or "", match["about"] or above)
        above = ""
    return found


def _groups() -> Iterator[str]:
    chosen = dict(re.findall(r"^  - (\w+): (\w+)", (HERE / "config.yaml").read_text(encoding="utf-8"), re.MULTILINE))
    for group, options in groups().items():
        first = chosen.get(group, "(none)")
        yield row(f"{group}=", ", ".join([first, *(option for option in options if option != first)]), LEFT)


def _keys() -> Iterator[str]:
    for file, prefix, keys in SHOWN:
        known = comments(file)
        for key in keys:
            value, about = known[key]
            yield row(f"{prefix}{key}={value}" if len(value) < LEFT else f"{prefix}{key}=", about, LEFT)
