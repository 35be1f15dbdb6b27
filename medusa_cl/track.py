"""Look at runs in MLflow (`python -m medusa_cl.track ui`), deliver what a server missed (`sync`), or print tables."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medusa_cl import shell
from medusa_cl.errors import ConfigError, MedusaError, unknown
from medusa_cl.rundir import RUNS, find_run
from medusa_cl.tracking.secrets import mask_uri

STORE = shell.Option("URI", "the store; else $MLFLOW_TRACKING_URI, else runs/mlflow.db", None)
PORTS = range(1, 2**16)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) not in PORTS:
        raise ValueError(f"a port number, {PORTS.start} to {PORTS.stop - 1}")
    return int(text)


UI = shell.Usage(
    "track ui",
    "Serve MLflow's pages of all runs, for this machine only, and say where they are. Ctrl-C ends it.",
    {
        "run": shell.Option("DIR|last|ID", "a run whose own page is named too: its directory or MLflow id", None),
        "port": shell.Option("PORT", "default: 5000, or the next that is free", None, _port),
        "uri": STORE,
    },
    (
        "run=last",
        "run=runs/rooms_incremental/medusa-tf_efficientnet_lite0-s0-0",
        "port=8080",
        "uri=sqlite:////data/shared/mlflow.db   # a store elsewhere",
    ),
)
SYNC = shell.Usage(
    "track sync",
    "Deliver to MLflow what it lacks of a run, each thing once: its server was down, or the run was not tracked.",
    {"run": shell.Option("DIR|last", "the run directory, or the last finished run under runs/"), "uri": STORE},
    (
        "run=last",
        "run=runs/rooms_incremental/medusa-tf_efficientnet_lite0-s0-0",
        "run=runs/rooms_incremental/medusa-tf_efficientnet_lite0-s0-0 uri=http://tracking.example:5000",
    ),
)


# As in tracking.typeset and tracking.tables, which are not imported before there is something to print.
FORMATS = ("md", "latex", "csv")
TABLES, MAIN = ("final", "forgetting", "transfer", "cost"), ("final", "transfer")


def _digits(text: str) -> int:
    if text not in tuple("0123456789"):
        raise ValueError("a number of decimals, 0 to 9")
    return int(text)


def _tables(text: str) -> tuple[str, ...]:
    """Read names of tables, each once."""
    found = tuple(dict.fromkeys(shell.names(text)))
    for name in found:
        if name not in TABLES:
            raise ConfigError(unknown("table", name, TABLES))
    return found


def _runs(text: str) -> tuple[str, ...]:
    """Read a list; a directory may have commas in its name, and a pattern may end in a bracket."""
    listed = text.startswith("[") and text.endswith("]")
    return (text,) if Path(text).exists() or not (listed or "," in text) else shell.names(text)


TABLE = shell.Usage(
    "track table",
    "Print the tables of a paper: runs by configuration, with mean and spread over seeds. Said besides goes to stderr.",
    {
        "runs": shell.Option(
            "[DIR,...]", "run directories, folders or patterns of them, a study, last, or MLflow ids", form=_runs
        ),
        "format": shell.Option(
            "md|latex|csv", "Markdown, LaTeX with booktabs, or every number", "md", shell.one_of(*FORMATS)
        ),
        "tables": shell.Option("[NAME,...]", f"of {', '.join(TABLES)} (default: {','.join(MAIN)})", MAIN, _tables),
        "by": shell.Option("[KEY,...]", "what rows are named by first (default: strategy)", ("strategy",), shell.names),
        "digits": shell.Option("N", "decimals (default: as many as mean something)", None, _digits),
        "out": shell.Option("FILE", "where to write them (default: stdout)", None),
    },
    (
        "runs=runs/rooms_incremental",
        "runs='runs/rooms_incremental/*-s[012]-*' format=latex > table.tex",
        "runs=runs/rooms_incremental/study-1a2b3c4d tables=final,forgetting,cost format=latex out=tables.tex",
        "runs=[runs/rooms_incremental/medusa-tf_efficientnet_lite0-s0-0,last] by=head,strategy digits=1",
        "runs=runs/rooms_incremental tables=final,forgetting,transfer,cost format=csv out=results.csv",
    ),
)


def main(arguments: Sequence[str]) -> None:
    """Run the verb.

    Raises:
        ConfigError: The verb or an option is unknown, or what it names is not there.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print("\n\n\n".join(usage.help() for usage, _ in VERBS.values()))
        return
    verb, *rest = arguments
    if verb not in VERBS:
        raise ConfigError(unknown("verb of track", verb, VERBS))
    usage, act = VERBS[verb]
    if shell.asks_for_help(rest):
        print(usage.help())
        return
    act(**usage.parse(rest))


def _serve(run: str | None, port: int | None, uri: str | None) -> None:
    from medusa_cl.tracking.server import serve

    serve(uri, port, run)


def _sync(run: str, uri: str | None) -> None:
    from medusa_cl.tracking import TRACKING_FILE, deliver, delivery_note, said
    from medusa_cl.tracking.mlflow import MLflowTracker

    folder = find_run(run, "run") if run == "last" else Path(run)
    if not (folder / TRACKING_FILE).is_file():
        raise ConfigError(f"Expected run= a run directory, with a {TRACKING_FILE} in it, but got {run}.")
    note = delivery_note(folder)
    tracking = note["config"].get("tracking") or {}
    noted = note.get("tracker", {}).get("uri") or note.get("target")
    uri = uri or tracking.get("uri") or os.environ.get("MLFLOW_TRACKING_URI") or noted
    beside = folder.resolve().parent.parent
    runs = beside if (beside / "mlflow.db").is_file() else RUNS
    tracker = MLflowTracker(note["tags"]["scenario"], uri=uri, runs=runs, parent_run_id=tracking.get("parent"))
    try:
        deliver(folder, tracker)
    except MedusaError:
        raise
    except Exception as error:  # of a library, which may repeat the URI's password
        raise MedusaError(
            f"{folder} is not delivered to {mask_uri(tracker.uri)}: {said(error, tracker)} What has arrived stays: run "
            "the same command again."
        ) from None
    print(tracker.ui_line())


def _table(
    runs: Sequence[str], format: str, tables: Sequence[str], by: Sequence[str], digits: int | None, out: str | None
) -> None:
    from medusa_cl import kept
    from medusa_cl.tracking import tables as paper
    from medusa_cl.tracking import typeset
    from medusa_cl.tracking.gather import gather

    paper.check_names(by)
    found = gather(runs, _say)
    repeated = paper.same_runs([run.summary for run in found], [run.config for run in found], [r.time for r in found])
    for i, last in repeated.items():
        _say(f"{found[i].place} is left out: {found[last].place}, made later, has the same configuration and seed.")
    found = [run for i, run in enumerate(found) if i not in repeated]
    given = {"runs": runs, "format": format, "tables": tables, "by": by}
    typed = [f"{key}={_text(value)}" for key, value in given.items() if value != TABLE.options[key].default]
    made = paper.tables(
        [run.summary for run in found], [run.config for run in found], [run.name for run in found],
        select=tables, by=by, command=paper.said_command(typed),
    )  # fmt: skip
    for name in tables:
        if name not in {table.name for table in made}:
            _say(f"There is no table {name}: no run has anything for it.")
    text = typeset.FORMATS[format](made, digits)
    if out is None:
        sys.stdout.write(text)
        return
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with kept.whole(Path(out)) as part:
        part.write_bytes(text.encode())
    _say(f"{len(found)} runs: {out}")


def _text(words: str | Sequence[str]) -> str:
    return words if isinstance(words, str) else ",".join(words)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


VERBS: Mapping[str, tuple[shell.Usage, Callable[..., Any]]] = {
    "ui": (UI, _serve),
    "sync": (SYNC, _sync),
    "table": (TABLE, _table),
}

if __name__ == "__main__":
    shell.end(main)
