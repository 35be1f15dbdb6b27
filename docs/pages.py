"""Pages that mkdocs makes when the site is built: what stands elsewhere in the repository is shown, never copied."""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from medusa_cl.__main__ import VERBS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "benchmarks/results"
TUTORIAL, CONFIGURATION, COMMANDS = "tutorial.md", "reference/configuration.md", "reference/commands.md"
COPIED = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"} | {
    f"results/{path.name}": f"{RESULTS}/{path.name}" for path in sorted((ROOT / RESULTS).glob("*.md"))
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
HIDDEN = ("defaults", "_target_", "_partial_", "hydra")
NAMES = ("scenario.name", "strategy.name", "head.name")  # by which people tell them apart, and nothing else
GROUPS = ("scenario", "strategy", "plugins", "head", "backbone", "trainer", "tracking", "claims", "experiment")


def on_config(config: Any) -> Any:
    """Put the pages of measurements, each under its own title, where the navigation says that they belong."""
    for section in config.nav:
        for entries in section.values():
            for entry in entries if isinstance(entries, list) else []:
                entry |= {title: measurements() for title, place in entry.items() if place == "results"}
    return config


def measurements() -> list[str]:
    """Return the pages of measurements."""
    return [name for name in COPIED if name.startswith("results/")]


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    from mkdocs.structure.files import File

    made = {name: (ROOT / source).read_text(encoding="utf-8") for name, source in COPIED.items()}
    made |= {TUTORIAL: tutorial(), CONFIGURATION: configuration(), COMMANDS: commands()}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links that lead out of docs/ lead to the page that shows the file, where there is one."""
    return linked(markdown, page.file.src_uri)


def linked(markdown: str, page: str) -> str:
    """Return a page with its links turned into those of the site; what the site does not show is named, not linked.

    Args:
        markdown: The page as it stands in the repository.
        page: Its place in the site.
    """
    here = posixpath.dirname(COPIED.get(page, f"docs/{page}"))
    shown = {source: name for name, source in COPIED.items()}

    def turn(match: re.Match[str]) -> str:
        picture, text, link, anchor = match[1], match[2], match[3], match[4] or ""
        if not link or re.match(r"[a-z]+:", link):
            return match[0]
        source = posixpath.normpath(posixpath.join(here, link))
        name = source.removeprefix("docs/") if source.startswith("docs/") else shown.get(source)
        if name is None:
            return f"`{text.strip('`')}`"
        return f"{picture}[{text}]({posixpath.relpath(name, posixpath.dirname(page) or '.')}{anchor})"

    return LINK.sub(turn, markdown)


def tutorial() -> str:
    """Return examples/tutorial.py as a page: cells of text as they are, cells of code as code."""
    cells = re.split(r"^# %%", (ROOT / "examples/tutorial.py").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return "\n\n".join(_cell(cell) for cell in cells) + "\n"


def _cell(cell: str) -> str:
    kind, _, body = cell.partition("\n")
    if "[markdown]" in kind:
        return re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE)
    return f"```python\n{body.strip()}\n```"


def commands() -> str:
    """Return what every verb says to --help."""
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    started = {
        verb: subprocess.Popen(
            [sys.executable, "-m", f"medusa_cl.{verb}", "--help"],
            env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for verb in VERBS
    }  # fmt: skip
    parts = ["# Command line\n\nWhat each verb says to `--help`. `medusa VERB` is `python -m medusa_cl.VERB`.\n"]
    for verb, process in started.items():
        text, error = process.communicate(timeout=120)
        if process.returncode:
            raise RuntimeError(f"python -m medusa_cl.{verb} --help failed: {error}")
        parts.append(f"## {verb}\n\n```text\n{text.strip()}\n```\n")
    return "\n".join(parts)


class Key(NamedTuple):
    """One key of a configuration file: its full name, its value as it is written, and what is said of it."""

    name: str
    value: str
    about: str


def configuration() -> str:
    """Return every option of every file in configs/, with the comment that stands beside it."""
    text = [
        "# Configuration\n",
        "Every key can be set on the command line: `python -m medusa_cl.run key=value`. A group is chosen by its name "
        "(`strategy=finetune`), a key inside it by its path (`strategy.freeze=stages`); `--cfg job` prints what a "
        "command would run with. This page is made of the files in `configs/`.\n",
        "## Top level\n",
        _table(list(keys(ROOT / "configs/config.yaml"))),
    ]
    for group in GROUPS:
        text.append(f"## {group}\n")
        for path in sorted((ROOT / "configs" / group).glob("*.yaml")):
            text.append(_option(group, path))
    return "\n".join(text)


def _option(group: str, path: Path) -> str:
    shown = f"{group}=[{path.stem}]" if group == "plugins" else f"{group}={path.stem}"
    about, example = _head(path)
    parts = [f"### `{shown}`\n", about, _builds_on(path), f"```\n{example}\n```\n" if example else ""]
    return "\n".join(part for part in (*parts, _table(list(keys(path, group)))) if part)


def _head(path: Path) -> tuple[str, str]:
    """Return what the comments at the top of a file say, and the command among them."""
    lines = path.read_text(encoding="utf-8").splitlines()
    top = [line[2:] for line in lines[: next(i for i, x in enumerate(lines) if not x.startswith("#"))]]
    told = [line for line in top if not line.startswith(("@package", "python ", "torchrun "))]
    typed = [line for line in top if line.startswith(("python ", "torchrun "))]
    command, _, remark = "\n".join(typed).partition("      ")
    said = " ".join([*told, remark.strip()]).strip()
    return (f"{said}\n" if said else ""), command


def _builds_on(path: Path) -> str:
    entries = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", [])
    named = [e if isinstance(e, str) else f"{k.split('/')[-1]}={v}" for e in entries for k, v in _pairs(e)]
    named = [name for name in named if name != "_self_"]
    return f"Builds on {', '.join(f'`{name}`' for name in named)}.\n" if named else ""


def _pairs(entry: Any) -> list[tuple[str, Any]]:
    return list(entry.items()) if isinstance(entry, dict) else [("", entry)]


def keys(path: Path, group: str = "") -> Iterator[Key]:
    """Go through the keys of a file in order.

    Args:
        path: The file.
        group: The group it is in; its keys stand below that, unless the file says that they do not.
    """
    text = path.read_text(encoding="utf-8")
    node = yaml.compose(text)
    if node is not None:
        prefix = "" if "@package _global_" in text or not group else f"{group}."
        yield from _walk(node, prefix, text.splitlines())


def _walk(node: Any, prefix: str, lines: list[str]) -> Iterator[Key]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if key.value in HIDDEN or name in NAMES:
            continue
        block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        end = key.end_mark if block else value.end_mark
        # What stands beside {a: 1, b: 2} is said of all of it.
        beside = "" if node.flow_style else lines[end.line][end.column :].partition("# ")[2].strip()
        about = beside or _above(lines, key.start_mark.line)
        if isinstance(value, yaml.MappingNode) and value.value:
            if about:
                yield Key(name, "", about)
            yield from _walk(value, f"{name}.", lines)
        else:
            yield Key(name, _written(value, lines), about)


def _written(value: Any, lines: list[str]) -> str:
    if isinstance(value, yaml.SequenceNode) and not value.flow_style:
        plain = all(isinstance(item, yaml.ScalarNode) for item in value.value)
        items = [item.value if plain else _written(item, lines) for item in value.value]
        return ", ".join(items) if plain else f"[{', '.join(items)}]"
    start, end = value.start_mark, value.end_mark
    return lines[start.line][start.column : end.column]


def _above(lines: list[str], number: int) -> str:
    """Return the comment on the line above, where it is of this key and not of the file."""
    line = lines[number - 1].strip() if number else ""
    return line[2:] if line.startswith("# ") and lines[number - 1].startswith(" ") else ""


def _table(found: list[Key]) -> str:
    if not found:
        return ""
    rows = []
    for key in found:
        value = f"`{key.value}`" if key.value else ""
        about = key.about.replace("|", "\\|").replace("<", "&lt;")
        rows.append(f"| `{key.name}` | {value} | {about} |")
    return "\n".join(["| key | default | what |", "|---|---|---|", *rows, ""])
