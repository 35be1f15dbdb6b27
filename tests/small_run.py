"""Whole runs in seconds: a miniature of NYUD-v2 in our format, and a configuration with a tiny backbone."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from fake_data import fake_dense_hdf5

SMALL = [
    "scenario=nyud_incremental", "scenario.augment.zooms=[1.0]", "trainer.lr_head=2e-3", "trainer.lr_backbone=1e-3",
    "backbone.name=test_efficientnet", "backbone.pretrained=false",
    "head_width=8", "head.mix_width=8", "trainer.base_steps=3", "trainer.max_steps=3", "trainer.batch_size=4",
    "trainer.threads=1", "trainer.device=cpu", "tracking=off",
]  # fmt: skip


def miniature(folder: Path) -> Path:
    """Write the data: 8 train and 5 test images with semseg, depth, normals and edges."""
    fields = ("semseg", "depth", "normals", "edges")
    return fake_dense_hdf5(folder / "NYUD_MT.h5", {"train": 8, "test": 5}, fields=fields, classes=40)


def config(*overrides: str) -> DictConfig:
    """Compose a configuration as the command line does."""
    with initialize_config_module("medusa_cl.configs", version_base="1.3"):
        return compose("config", list(overrides))


def small(data: Path, *overrides: str) -> DictConfig:
    """Compose the configuration of a run on the miniature."""
    return config(*SMALL, f"scenario.root={data}", *overrides)


def typed(*arguments: str) -> int:
    """Run the verb as typed, but in this process, which has long imported all it needs; returns the exit status."""
    import medusa_cl.run

    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run", *arguments])
        patch.setattr(logging.root, "handlers", [*logging.root.handlers])  # Hydra's would write where this test did
        try:
            medusa_cl.run.main()
        except SystemExit as stop:
            return int(str(stop.code))
    return 0


def without_pictures(patch: pytest.MonkeyPatch) -> None:
    """Draw nothing and hand no model to a tracker: both take most of such short runs."""
    patch.setattr("medusa_cl.learn.pictures", lambda *arguments: ([], {}))
    patch.setattr("medusa_cl.tracking.panels.overview", lambda *arguments: None)
    patch.setattr("medusa_cl.tracking._draw_figures", lambda *arguments: None)
    patch.setattr("medusa_cl.tracking.mlflow.MLflowTracker.figure", lambda self, path: None)
    for method in ("model", "predictions", "panel"):
        patch.setattr(f"medusa_cl.tracking.RunRecorder.{method}", lambda self, *arguments: None)
