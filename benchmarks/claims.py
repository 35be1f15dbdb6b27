"""What features are worth: pages and tables from the results that are here, whoever computed them.

python benchmarks/claims.py [--check]      (--check writes nothing and exits with 1 where a file is not current)

Reads benchmarks/results/claims/NAME.json, each the claims.json of a run of mode=claims: rooms_v1, nyud, pascal, or any
other name. Writes benchmarks/results/claims_NAME.md, and what stands between the marks in README.md and docs/found.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from medusa_cl import kept
from medusa_cl.claims import report
from medusa_cl.claims.record import Results
from medusa_cl.errors import ConfigError, MedusaError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("benchmarks/results")
BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"
BLOCKS = ("README.md", "docs/found.md")
MAIN = "rooms_v1"


def read(root: Path) -> dict[str, Results | None]:
    """Return the results by name; None for an experiment of the tables that was not run.

    Raises:
        DataError: A file is none of mode=claims.
    """
    files = {path.stem: path for path in sorted((root / RESULTS / "claims").glob("*.json"))}
    names = dict.fromkeys([*report.COLUMNS, *files])
    return {name: _results(files[name]) if name in files else None for name in names}


def _results(path: Path) -> Results:
    return Results.from_json(path.read_text(encoding="utf-8"), str(path))


def pages(named: Mapping[str, Results | None]) -> dict[str, str]:
    """Return the page of each experiment, by its path from the root."""
    return {
        str(RESULTS / f"claims_{name}.md"): report.not_run(name) if results is None else report.markdown(results)
        for name, results in named.items()
    }


def block(named: Mapping[str, Results | None], place: str) -> str:
    """Return what stands between the marks of a file: the answer, sentences where there is room, links to the rest.

    Args:
        named: The results by name.
        place: The file, from the root.
    """
    shown = {name: named.get(name) for name in report.COLUMNS}
    folder = Path(os.path.relpath(RESULTS, Path(place).parent)).as_posix()
    links = ", ".join(f"[{report.COLUMNS[name]}]({folder}/claims_{name}.md)" for name in shown)
    main, said = shown[MAIN], ""
    if place != "README.md":
        lines = report.sentences(main) if main else [f"{report.COLUMNS[MAIN]} is not run yet."]
        said = "".join(f"- {line}\n" for line in lines) + "\n"
    return f"{said}{report.summary(shown)}\nAll tables: {links}.\n"


def with_block(text: str, content: str, place: str) -> str:
    """Return a file's text with other content between the marks.

    Raises:
        ConfigError: The marks are not there, each once and in this order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ConfigError(
            f"Expected {BEGIN} and then {END} in {place}, each once on a line of its own. Put them there."
        )
    return f"{before}{BEGIN}\n\n{content}\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write, or compare."""
    try:
        named = read(ROOT)
    except MedusaError as error:
        print(error, file=sys.stderr)
        return 1
    made, wrong = pages(named), []
    for place in BLOCKS:
        try:
            text = (ROOT / place).read_text(encoding="utf-8")
            made[place] = with_block(text, block(named, place), place)
        except MedusaError as error:
            wrong.append(str(error))
    for place, text in made.items():
        path = ROOT / place
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if "--check" in arguments:
            wrong.append(f"{place} is not what the results make. Run python benchmarks/claims.py.")
            continue
        with kept.whole(path) as part:
            part.write_text(text, encoding="utf-8")
        print(f"wrote {place}")
    print(*wrong, sep="\n", file=sys.stderr) if wrong else None
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
