"""How many examples properties are tried on: a few, always the same; many new ones under HYPOTHESIS_PROFILE=chaos."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

CHAOS = os.environ.get("HYPOTHESIS_PROFILE") == "chaos"
MANY = 20
"""Times more examples in chaos."""


def examples(count: int) -> settings:
    """Return the settings of a property that is tried on so many examples."""
    return settings(
        max_examples=count * MANY if CHAOS else count,
        derandomize=not CHAOS,
        database=None,
        deadline=None,  # no timing decides a test
        print_blob=CHAOS,
        suppress_health_check=list(HealthCheck),
    )
