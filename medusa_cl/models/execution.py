"""How a model is executed: memory layout and compilation. Its answers stay the same, to rounding."""

from __future__ import annotations

import inspect
import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from medusa_cl.errors import ConfigError

FORMATS: Mapping[bool, torch.memory_format] = {False: torch.contiguous_format, True: torch.channels_last}
CONTIGUOUS: tuple[str, ...] = ()
"""How the names of backbones begin that are slower channels last on the CPU: none was in more than one run of three."""


def channels_last_pays(backbone: str, device: str) -> dict[str, bool]:
    """Return where channels last is the faster layout, as arguments of `MultiTaskModel.use_channels_last`.

    On the CPU as benchmarks/layouts.py has measured it; on CUDA it is what tensor cores want.

    Args:
        backbone: The backbone's timm name.
        device: `cpu`, or the name of a CUDA device.
    """
    return {"backbone": device != "cpu" or not backbone.startswith(CONTIGUOUS), "heads": True}


def lay_out(module: nn.Module, layout: torch.memory_format) -> None:
    """Lay a module's images of weights (4 dimensions) out; `Module.to` refuses those of 5, which some networks have."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=layout)


def require_compiler() -> None:
    """Refuse where the compiler that `torch.compile` calls is missing: it would say so late and at length.

    Raises:
        ConfigError: There is no C++ compiler.
    """
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        raise ConfigError(
            f"trainer.compile=true needs a C++ compiler, but there is no {name}. Install one, name another one in the "
            "environment variable CXX, or set trainer.compile=false."
        )


def compile_in_place(module: nn.Module, options: Mapping[str, Any]) -> None:
    """Compile a module's forward pass; its parameters, their names and the module itself stay.

    Args:
        module: The module.
        options: Those of `torch.compile`.
    """
    # Otherwise all heads share one limit of recompilations, and from about the fourth on nothing is compiled.
    apart = {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}
    module.compile(**apart, **options)
