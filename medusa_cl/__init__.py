"""Continual learning of dense tasks: a frozen multitask backbone and one attentional head per new task.

The public names below are loaded when they are first used, so `import medusa_cl` costs nothing; each verb is a module
(`python -m medusa_cl` lists them).
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names as _HOME, for type checkers and editors; a test keeps the two equal
    from medusa_cl.checkpoint import load_model as load_model
    from medusa_cl.checkpoint import save_model as save_model
    from medusa_cl.data.arrays import ArrayData as ArrayData
    from medusa_cl.deploy.predictor import Predictor as Predictor
    from medusa_cl.errors import MedusaError as MedusaError
    from medusa_cl.models.multitask import MultiTaskModel as MultiTaskModel
    from medusa_cl.results import TaskMatrix as TaskMatrix
    from medusa_cl.scenarios.dense import dense_scenario as dense_scenario
    from medusa_cl.strategies.evaluation import dense_evaluator as dense_evaluator
    from medusa_cl.strategies.medusa import Medusa as Medusa
    from medusa_cl.strategies.medusa import MedusaPlugin as MedusaPlugin
    from medusa_cl.strategies.template import dense_model as dense_model
    from medusa_cl.tasks import DenseTask as DenseTask

__version__ = "0.1.0"

_HOME = {
    "ArrayData": "data.arrays",
    "DenseTask": "tasks",
    "Medusa": "strategies.medusa",
    "MedusaError": "errors",
    "MedusaPlugin": "strategies.medusa",
    "MultiTaskModel": "models.multitask",
    "Predictor": "deploy.predictor",
    "TaskMatrix": "results",
    "dense_evaluator": "strategies.evaluation",
    "dense_model": "strategies.template",
    "dense_scenario": "scenarios.dense",
    "load_model": "checkpoint",
    "save_model": "checkpoint",
}
__all__ = [
    "ArrayData",
    "DenseTask",
    "Medusa",
    "MedusaError",
    "MedusaPlugin",
    "MultiTaskModel",
    "Predictor",
    "TaskMatrix",
    "__version__",
    "dense_evaluator",
    "dense_model",
    "dense_scenario",
    "load_model",
    "save_model",
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module it lives in, the first time it is asked for."""
    if name not in _HOME:
        raise AttributeError(_unknown(name), name=name, obj=sys.modules[__name__])
    value = getattr(import_module(f"medusa_cl.{_HOME[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def _unknown(name: str) -> str:
    if name.startswith("_"):  # what Python and tools ask for to see whether it is there
        return f"module 'medusa_cl' has no attribute {name!r}"
    from medusa_cl.errors import unknown

    return unknown("name of medusa_cl", name, _HOME)


def __dir__() -> list[str]:
    """Name what can be had, loaded or not."""
    return sorted({*globals(), *_HOME})
