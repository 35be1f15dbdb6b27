"""Look at runs in MLflow (`python -m medusa_cl.track ui`), or deliver what a server missed (`... sync run=DIR`)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from medusa_cl.errors import ConfigError, MedusaError, unknown
from medusa_cl.rundir import RUNS
from medusa_cl.tracking.secrets import mask_uri

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
    if store.startswith(("http://", "https://")):
        raise ConfigError(f"{mask_uri(store)} is a server with a page of its own: open that in a browser.")
    print(
        "MLflow: http://127.0.0.1:5000/#/experiments (choose Model training at the upper left; Ctrl-C ends)", flush=True
    )
    os.environ["MLFLOW_BACKEND_STORE_URI"] = store  # and not among the arguments, which all users of the machine see
    command = ["-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", "5000"]
    os.execv(sys.executable, [sys.executable, *command])


def _sync(run: str | None, uri: str | None) -> None:
    from medusa_cl.tracking import TRACKING_FILE, deliver, delivery_note, said
    from medusa_cl.tracking.mlflow import MLflowTracker

    folder = Path(run or "")
    if run is None or not (folder / TRACKING_FILE).is_file():
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
            f"{run} is not delivered to {mask_uri(tracker.uri)}: {said(error, tracker)} What has arrived stays: run "
            "the same command again."
        ) from None
    print(tracker.ui_line())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MedusaError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
