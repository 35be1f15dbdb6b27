"""What a run did not learn by its own settings: where it went on from, as far as that decides its results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medusa_cl import kept
from medusa_cl.start import WEIGHTS
from medusa_cl.tracking.rows import deciding, goes_on

if TYPE_CHECKING:
    from medusa_cl.start import Start

_STREAM = ("stream", "order", "held_out", "seed")  # of the scenario: what is learnt when


def begun(cfg: Any, start: Start | None, data_hash: Mapping[str, str]) -> str | None:
    """Return a hash of what decides how that was learnt which a run went on from.

    It is the same for all seeds whose parents had one configuration and the seed of their child.

    Args:
        cfg: The configuration of the run, as it was asked for.
        start: Where the run starts.
        data_hash: The hash of its data, by split.

    Returns:
        The hash; None where the run learnt all by its own settings, or would have come to the same bits so: with the
        base that an equal run has learnt, or after a run with equal settings.
    """
    if start is None or not goes_on(cfg):
        return None
    parent = start.parent
    if parent is None or not all((parent / name).is_file() for name in ("config.yaml", kept.SUMMARY)):
        return _of_weights(start)
    from medusa_cl.continuing import read_yaml

    theirs, summary = read_yaml(parent / "config.yaml"), kept.read_summary(parent)
    if goes_on(theirs) and "begun" not in summary["provenance"]:
        return _of_weights(start)
    before = summary["provenance"].get("begun")
    if cfg.get("extend"):
        own, was = _learning(cfg), _learning(theirs)
        stays = [task for task in summary["stream"] if task not in start.removed]
        return before if own == was else kept.digest([was, stays, before])
    if theirs.get("extend"):  # its base is that of a run before it
        return _of_weights(start)
    was, data = _learning_base(theirs), summary["provenance"]["data_hash"]
    unlike = {"seed": theirs["seed"]} if theirs["seed"] != cfg["seed"] else {}
    unlike |= {"data": data} if dict(data) != dict(data_hash) else {}
    alike = not unlike and was == _learning_base(cfg) and _begins_alike(cfg, theirs)
    return before if alike else kept.digest([was, str(theirs["strategy"]), str(theirs["plugins"]), unlike, before])


def _of_weights(start: Start) -> str | None:
    path = Path(start.model) / WEIGHTS
    return kept.digest([kept.file_hash(path) if path.is_file() else str(path), start.experiences])


def _learning(cfg: Any) -> dict[str, str]:
    """Return the settings that decide how tasks are learnt, whichever they are."""
    from medusa_cl.continuing import plain_config

    skipped = tuple(f"scenario.{key}" for key in _STREAM)
    return {key: text for key, text in deciding(plain_config(cfg)).items() if key not in skipped}


def _learning_base(cfg: Any) -> dict[str, str]:
    """Return those that decide how the base is learnt, of strategies that learn it as all others do."""
    found = _learning(cfg)
    if "trainer.base_steps" in found:
        found["trainer.max_steps"] = found["trainer.base_steps"]
    found.pop("trainer.base_steps", None)
    parts = ("scenario", "backbone", "head", "trainer")
    return {key: text for key, text in found.items() if key.split(".")[0] in parts}


def _begins_alike(cfg: Any, other: Any) -> bool:
    from medusa_cl.build import begins_alike, plugins_of
    from medusa_cl.strategies import compose

    if not (begins_alike(cfg, other) and begins_alike(other, cfg)):
        return False
    if cfg.strategy == other.strategy and cfg.plugins == other.plugins:
        return True
    ours = all(str(one.strategy["_target_"]).startswith("medusa_cl.") for one in (cfg, other))
    return ours and all(compose.idle_at_first(plugin) for one in (cfg, other) for plugin in plugins_of(one))
