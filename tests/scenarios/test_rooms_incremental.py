from __future__ import annotations

from typing import Any

import pytest

from medusa_cl.errors import TaskError
from medusa_cl.scenarios import rooms as module
from medusa_cl.scenarios.rooms import rooms_incremental


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"base": ["semsg"]}, r'"semsg".*Did you mean "semseg"\?'),
        ({"stream": ["depth"]}, r'"depth" would be learnt twice'),
        ({"base": []}, r"base is empty"),
    ],
)
def test_names_are_checked_before_any_room_is_rendered(
    names: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.rooms, "rooms_file", lambda *_, **__: pytest.fail("rooms were asked for"))
    with pytest.raises(TaskError, match=message):
        rooms_incremental(**names)
