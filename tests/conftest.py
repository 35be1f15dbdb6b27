"""What every test stands on: one thread, no network, nothing written outside temporary folders, and miniature data."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

# Read when the hub's client is imported, so before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import yaml

from fake_data import fake_dense_hdf5

if TYPE_CHECKING:
    from medusa_cl.data.hdf5 import HDF5Data
    from medusa_cl.models import MultiTaskModel
    from medusa_cl.scenarios.dense import DenseScenario

TINY_BACKBONE = "test_efficientnet"  # 82 000 parameters, strides 2..32, BatchNorm: the quickest that timm has


@pytest.fixture(scope="session")
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all that a session keeps between tests: rooms, MLflow."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session", autouse=True)
def _environment(session_home: Path) -> Iterator[None]:
    """Point every place that is written to unasked into the session's folder; a test may set its own over it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDUSA_CL_CACHE", str(session_home / "cache"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{session_home / 'mlflow.db'}")
        patch.delenv("MEDUSA_CL_DATA", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _found_once() -> Iterator[None]:
    """What every run does anew and no test can tell: draw the golden rooms, read YAML slowly, wait for the disk."""
    import omegaconf._utils as omegaconf

    from medusa_cl.data.rooms import golden

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden, "fingerprints", functools.cache(golden.fingerprints))
        with patch.context() as faster:  # the same grammar, read by libyaml
            faster.setattr(yaml, "SafeLoader", getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            loader = omegaconf.get_yaml_loader()
        patch.setattr(omegaconf, "get_yaml_loader", lambda: loader)
        patch.setattr(os, "fsync", os.fstat)  # no test cuts the power; a handle must be one still
        yield


@pytest.fixture(scope="session", autouse=True)
def _imported_is_no_garbage() -> None:
    """What was imported stays: it is not looked through each time that something has become garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow that holds no run, to be copied: to make its tables takes seconds."""
    from medusa_cl.tracking.mlflow import quiet_client, store_uri

    made = tmp_path_factory.getbasetemp() / "migrated" / "mlflow.db"
    if not made.exists():
        quiet_client(store_uri(f"sqlite:///{made}", made.parent))
    return made


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The same bits on any machine, and no fight over cores; anew each time, as a run sets its own number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def fake_h5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature in our format, not to be changed: 8 train, 2 val, 4 test images of 32x48, 19 classes."""
    return fake_dense_hdf5(tmp_path_factory.mktemp("fake") / "fake.h5")


@pytest.fixture(scope="session")
def fake_splits(fake_h5: Path) -> dict[str, HDF5Data]:
    """The readers of its splits."""
    from medusa_cl.data.hdf5 import HDF5Data

    return {split: HDF5Data(fake_h5, split) for split in ("train", "val", "test")}


@pytest.fixture(scope="session")
def tiny_scenario(fake_splits: dict[str, HDF5Data]) -> DenseScenario:
    """Base semseg + depth, then normals, then edges, on the miniature."""
    from medusa_cl import tasks
    from medusa_cl.scenarios.dense import dense_scenario

    known = [tasks.semseg(19), tasks.depth(), tasks.normals(), tasks.edges(tolerance=0.02)]
    return dense_scenario(known, fake_splits, base=["semseg", "depth"], stream=["normals", "edges"], name="tiny")


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., MultiTaskModel]:
    """`(*tasks, weights_seed=0, seed=0, head=a narrow MedusaHead, precision="32") -> MultiTaskModel`, random weights.

    `tasks` are `DenseTask`s or names of built-in ones whose heads are added at once.
    """
    return _tiny_model


def _tiny_model(
    *names: object, weights_seed: int = 0, seed: int = 0, head: object = None, precision: str = "32"
) -> MultiTaskModel:
    from medusa_cl import tasks
    from medusa_cl.models import Backbone, MedusaHead, MultiTaskModel

    backbone = Backbone.create(TINY_BACKBONE, pretrained=False, weights_seed=weights_seed)
    model = MultiTaskModel(backbone, head or partial(MedusaHead, width=8, mix_width=8), precision)  # type: ignore[arg-type]
    for name in names:
        model.add_head(tasks.BUILT_IN[name]() if isinstance(name, str) else name, seed)  # type: ignore[arg-type]
    return model
