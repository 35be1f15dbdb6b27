"""MLflow's own server in a thread, which can stop, start again at the same port, and lose an answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Server:
    """Serves an SQLite store.

    Args:
        folder: Where the store is; mlflow.db in it has been migrated.
        patch: Sets what mlflow's server reads from the environment.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(folder / "served"))
        patch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
        from mlflow.server import app, handlers

        patch.setattr(handlers, "_tracking_store", None)
        patch.setattr(handlers, "_artifact_repo", None)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._app, self.port, self._server = app, 0, None
        self.lose: Callable[[str], bool] = lambda path: False
        self.start()

    @property
    def uri(self) -> str:
        return f"http://me:geheim@127.0.0.1:{self.port}"

    def start(self) -> None:
        from werkzeug.serving import make_server

        self._server: Any = make_server("127.0.0.1", self.port, self._answer, threaded=True)
        self.port = self._server.port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        answer = self._app(environ, start_response)
        if self.lose(environ["PATH_INFO"]):  # what was asked for is done by now
            self.stop_soon()
            environ["werkzeug.socket"].close()
            raise ConnectionAbortedError
        return answer

    def stop_soon(self) -> None:
        threading.Thread(target=self.stop).start()


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        server = Server(folder, patch)
        try:
            yield server
        finally:
            server.stop()
