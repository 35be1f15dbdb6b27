"""How long one waits for a page of help, an import, the answer to a slip: whole processes, measured on this machine.

python benchmarks/startup.py [--rounds N]

Wall seconds from the start of the process to its end, rounds interleaved, the least of them. Writes
benchmarks/results/startup.json and startup.md; exits with 1 where a page of help takes longer than BUDGET.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learns import machine, table

from medusa_cl.__main__ import VERBS
from medusa_cl.summary import git_commit, packages

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
BUDGET = 1.5  # seconds
ROUNDS = 7
PYTHON = "python -c pass"  # what every process costs
SLIP = "python -m medusa_cl.run strateg=medusa"


def commands() -> dict[str, list[str]]:
    """Return what is measured, as typed: its arguments."""
    pages = ["medusa_cl", *(f"medusa_cl.{verb}" for verb in VERBS)]
    return {
        PYTHON: ["-c", "pass"],
        "import medusa_cl": ["-c", "import medusa_cl"],
        **{f"python -m {page} --help": ["-m", page, "--help"] for page in pages},
        SLIP: SLIP.split()[1:],
    }


def seconds(arguments: Sequence[str], slip: bool) -> float:
    """Return the wall seconds of one process.

    Raises:
        RuntimeError: It ended in another way than it should.
    """
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    spent = time.perf_counter() - started
    if done.returncode != int(slip):
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    return spent


def measure(rounds: int) -> dict[str, float]:
    """Return the least seconds of each command; a round before the first is for the disk."""
    best: dict[str, float] = {}
    for turn in range(rounds + 1):
        for name, arguments in commands().items():
            spent = seconds(arguments, slip=name == SLIP)
            if turn:
                best[name] = min(best.get(name, spent), spent)
    return best


def failures(found: Mapping[str, float]) -> list[str]:
    """Return which pages of help take too long, in words."""
    return [f"{name}: {spent:.2f} s" for name, spent in found.items() if "--help" in name and spent > BUDGET]


def page(found: Mapping[str, Any]) -> str:
    """Return the result in Markdown."""
    where, missed = found["machine"], found["failures"]
    rows = [[f"`{name}`", f"{1000 * spent:.0f}"] for name, spent in found["seconds"].items()]
    return (
        "\n\n".join(
            [
                "# Starting",
                f"Milliseconds of whole processes, the least of {found['rounds']} interleaved rounds, files in the "
                f"disk's cache. {where['cpu']}, Python {where['python']}, {found['date']}.",
                table(["command", "ms"], rows),
                f"Missed ({BUDGET} s): " + "; ".join(missed) + "."
                if missed
                else f"Every page is there within {BUDGET} s.",
            ]
        )
        + "\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args(arguments)
    spent = measure(given.rounds)
    found: dict[str, Any] = {"rounds": given.rounds, "seconds": spent, "failures": failures(spent)}
    found |= {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "git": git_commit(), "packages": packages()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "startup.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "startup.md").write_text(page(found))
    print(page(found))
    return bool(found["failures"])


if __name__ == "__main__":
    raise SystemExit(main())
