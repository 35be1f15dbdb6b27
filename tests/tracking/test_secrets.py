from __future__ import annotations

import pytest

from medusa_cl.tracking.secrets import is_masked, mask_text, mask_uri, masked


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


def test_every_string_of_a_configuration_is_masked() -> None:
    config = {"tracking": {"uri": "http://a:b@h"}, "compare": ["x tracking.uri=http://a:b@h"], "seed": 1, "none": None}
    shown = {"tracking": {"uri": "http://***@h"}, "compare": ["x tracking.uri=http://***@h"], "seed": 1, "none": None}
    assert masked(config) == shown
