from __future__ import annotations

import pytest

from medusa_cl import errors
from medusa_cl.errors import MedusaError, MissingDataError, nearest, unknown


@pytest.mark.parametrize(
    ("got", "known", "expected"),
    [
        ("rooom", ["rooms", "nyud"], "rooms"),
        ("semsg", ["depth", "semseg"], "semseg"),
        ("resnet8", ["resnet18", "vit"], "resnet18"),
        ("trainer.max_step", ["trainer.max_steps", "seed"], "trainer.max_steps"),
    ],
)
def test_nearest_names_the_closest(got: str, known: list[str], expected: str) -> None:
    assert nearest(got, known) == f' Did you mean "{expected}"?'


@pytest.mark.parametrize("known", [[], ["rooms", "nyud"]])
def test_nearest_is_silent_where_nothing_is_close(known: list[str]) -> None:
    assert nearest("xyz123", known) == ""


def test_nearest_takes_any_iterable_once() -> None:
    assert "rooms" in nearest("room", iter(["nyud", "rooms"]))


def test_unknown_says_what_was_got_what_is_known_and_what_is_near() -> None:
    message = unknown("scenario", "rooom", ["rooms", "nyud"])
    assert message.startswith('Unknown scenario "rooom".')
    assert 'Did you mean "rooms"?' in message
    assert "nyud, rooms" in message


def test_unknown_does_not_list_hundreds() -> None:
    message = unknown("backbone", "net7x", [f"net{i}" for i in range(500)])
    assert "500" in message
    assert len(message) < 400


def test_every_error_is_one_a_user_meets() -> None:
    found = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert len(found) >= 7
    assert all(issubclass(e, MedusaError) and e.__doc__ for e in found)


def test_missing_data_has_its_own_exit_status() -> None:
    assert MissingDataError.exit_code == 2
    assert issubclass(MissingDataError, errors.DataError)
    assert {e.exit_code for e in (errors.ConfigError, errors.WeightsError, errors.TaskError)} == {1}
