from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from medusa_cl.tracking.secrets import hide_in_logs, is_masked, mask_text, mask_uri, masked


@pytest.fixture(autouse=True)
def _records() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(logging.LogRecord)
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:word@host:5000", "http://***@host:5000"),
        ("https://ghp_token@host/path@x", "https://***@host/path@x"),
        ("postgresql+psycopg2://me:w/o:r@d@db:5432/mlflow", "postgresql+psycopg2://***@db:5432/mlflow"),
        ("mysql://me:@db/x", "mysql://***@db/x"),
        ("postgresql://db/x?user=me&password=word&sslmode=on", "postgresql://db/x?user=me&password=***&sslmode=on"),
        ("http://h/?access_token=a%20b&API_KEY=c#d", "http://h/?access_token=***&API_KEY=***#d"),
        ("http://h/?clientSecret=a;x=1", "http://h/?clientSecret=***"),
        ("http://me:my word@host/x", "http://***@host/x"),
        ("postgresql://me:w\"o'rd@db/x", "postgresql://***@db/x"),
        ('https://h/c?password=a "b&x=1#c', "https://h/c?password=***&x=1#c"),
        ("https://h/c?sv=1&sig=a%2Fb&se=2", "https://h/c?sv=1&sig=***&se=2"),
        ("mssql+pyodbc://?odbc_connect=DRIVER%3Dx%3BPWD%3Dword", "mssql+pyodbc://?odbc_connect=***"),
    ],
)
def test_secrets_are_taken_out_of_a_uri(uri: str, shown: str) -> None:
    assert mask_uri(uri) == shown == mask_uri(shown)
    assert is_masked(shown) and not is_masked(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:////home/a@b/runs/mlflow.db",
        "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning",
        "file:///data/a:b@c",
        "http://127.0.0.1:5000/a@b",
        "https://h/c?design=1",
        "databricks://profile",
        "runs/a@b",
        "",
    ],
)
def test_a_uri_without_secrets_stays(uri: str) -> None:
    assert mask_uri(uri) == uri and not is_masked(uri)


def test_an_error_that_repeats_the_password_in_any_form_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "exported")
    uri = "http://me:p%40ss@host/?token=t0k"
    text = "no route to http://me:p%40ss@host/, login me / p@ss (p%40ss) with t0k and exported; see http://you:x@there"
    shown = "no route to http://***@host/, login me / *** (***) with *** and ***; see http://***@there"
    assert mask_text(text, uri) == shown


@pytest.mark.parametrize("uri", ['postgresql://me:w"o rd@db/x', "https://h/?sig=w o'rd", "http://me:w or'd@h/"])
def test_an_error_that_quotes_a_uri_with_blanks_and_quotes_is_masked(uri: str) -> None:
    assert mask_text(f"cannot reach '{uri}': no", uri) == f"cannot reach '{mask_uri(uri)}': no"
    assert "o" not in mask_uri(uri).replace("postgresql", "")


def test_other_libraries_log_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    uri = "http://me:p%40ss@host/?token=t0k"
    for _ in range(2):
        hide_in_logs(uri, ("some", "other"))
    try:
        raise OSError(f"no {uri}")
    except OSError:
        logging.getLogger("some.part").warning("Retrying %s with %s", "/?token=t0k/api", "p@ss", exc_info=True)
    logging.getLogger("mine").warning("%d of t0k", 3)
    first, second = caplog.text.split("3 of t0k")[0], caplog.messages[1]
    assert caplog.messages[0] == "Retrying /?token=*** with ***" and "no http://***@host/?token=***" in first
    assert second == "3 of t0k" and not any(word in first for word in ("t0k", "p%40ss", "p@ss"))


def test_every_string_of_a_configuration_is_masked() -> None:
    config = {"tracking": {"uri": "http://a:b@h"}, "compare": ["x tracking.uri=http://a:b@h"], "seed": 1, "none": None}
    shown = {"tracking": {"uri": "http://***@h"}, "compare": ["x tracking.uri=http://***@h"], "seed": 1, "none": None}
    assert masked(config) == shown
