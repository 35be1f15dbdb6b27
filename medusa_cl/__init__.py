"""Continual learning of dense tasks: a frozen multitask backbone and one attentional head per new task.

The public names below are loaded when they are first used, so `import medusa_cl` costs nothing; each verb is a module
(`python -m medusa_cl` lists them).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names as _HOME, for type checkers and editors; a test keeps the two equal
    from medusa_cl.batch import Entry as Entry
    from medusa_cl.batch import TaskBatch as TaskBatch
    from medusa_cl.data.hdf5 import HDF5Data as HDF5Data
    from medusa_cl.errors import MedusaError as MedusaError
    from medusa_cl.models.backbone import Backbone as Backbone
    from medusa_cl.models.heads import ControlHead as ControlHead
    from medusa_cl.models.heads import MedusaHead as MedusaHead
    from medusa_cl.models.heads import PlainHead as PlainHead
    from medusa_cl.models.multitask import MultiTaskModel as MultiTaskModel
    from medusa_cl.results import TaskMatrix as TaskMatrix
    from medusa_cl.scenarios.dense import DenseExperience as DenseExperience
    from medusa_cl.scenarios.dense import dense_scenario as dense_scenario
    from medusa_cl.strategies.evaluation import dense_evaluator as dense_evaluator
    from medusa_cl.strategies.medusa import Medusa as Medusa
    from medusa_cl.strategies.medusa import MedusaPlugin as MedusaPlugin
    from medusa_cl.strategies.template import dense_model as dense_model
    from medusa_cl.tasks import DenseTask as DenseTask

__version__ = "0.1.0"

_HOME = {
    "Backbone": "models.backbone",
    "ControlHead": "models.heads",
    "DenseExperience": "scenarios.dense",
    "DenseTask": "tasks",
    "Entry": "batch",
    "HDF5Data": "data.hdf5",
    "Medusa": "strategies.medusa",
    "MedusaError": "errors",
    "MedusaHead": "models.heads",
    "MedusaPlugin": "strategies.medusa",
    "MultiTaskModel": "models.multitask",
    "PlainHead": "models.heads",
    "TaskBatch": "batch",
    "TaskMatrix": "results",
    "dense_evaluator": "strategies.evaluation",
    "dense_model": "strategies.template",
    "dense_scenario": "scenarios.dense",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module it lives in, the first time it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'medusa_cl' has no attribute {name!r}")
    value = getattr(import_module(f"medusa_cl.{_HOME[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    """Name what can be had, loaded or not."""
    return sorted({*globals(), *_HOME})
