"""Look at runs in MLflow (`python -m medusa_cl.track ui`), or deliver what a server missed (`... sync run=DIR`)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from medusa_cl.errors import ConfigError, MedusaError, unknown

VERBS = ("ui", "sync")
USAGE = """usage: python -m medusa_cl.track ui [uri=URI]          serve the MLflow UI on 127.0.0.1:5000
       python -m medusa_cl.track sync run=DIR [uri=URI]    deliver a run directory to MLflow"""


def main(arguments: list[str]) -> None:
    """Run the verb.

    Raises:
        ConfigError: The verb or an option is unknown, or `run` is no run directory.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    verb, *rest = arguments
    if verb not in VERBS:
        raise ConfigError(unknown("verb of track", verb, VERBS))
    options = dict(argument.partition("=")[::2] for argument in rest)
    for key in options:
        if key not in ("run", "uri"):
            raise ConfigError(unknown(f"option of track {verb}", key, ("run", "uri")))
    if verb == "ui":
        _serve(options.get("uri"))
    else:
        _sync(options.get("run"), options.get("uri"))


def _serve(uri: str | None) -> None:
    from medusa_cl.tracking.mlflow import store_uri

    store = store_uri(uri, Path("runs"))
    print(
        "MLflow: http://127.0.0.1:5000/#/experiments (choose Model training at the upper left; Ctrl-C ends)", flush=True
    )
    command = ["-m", "mlflow", "ui", "--backend-store-uri", store, "--host", "127.0.0.1", "--port", "5000"]
    os.execv(sys.executable, [sys.executable, *command])


def _sync(run: str | None, uri: str | None) -> None:
    from medusa_cl.tracking import TRACKING_FILE, deliver
    from medusa_cl.tracking.mlflow import MLflowTracker

    note = Path(run or "") / TRACKING_FILE
    if run is None or not note.is_file():
        raise ConfigError(f"Expected run= a run directory, with a {TRACKING_FILE} in it, but got {run}.")
    experiment = json.loads(note.read_text(encoding="utf-8"))["tags"]["scenario"]
    tracker = MLflowTracker(experiment, uri=uri, runs=note.parent.parent.parent)
    deliver(note.parent, tracker)
    print(tracker.ui_line())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MedusaError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
