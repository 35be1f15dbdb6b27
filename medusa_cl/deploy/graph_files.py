"""Graphs as files: ONNX, which onnxruntime runs, and torch.export's .pt2, which a fresh torch runs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from medusa_cl.deploy import graphs
from medusa_cl.deploy.graphs import INPUT, Graph
from medusa_cl.errors import ConfigError, MedusaError

LIMIT = 2_000_000_000
"""Bytes of weights that an ONNX file can hold: protobuf ends at 2 GiB."""
OPSETS = range(18, 24)
PT2_METADATA = "medusa_cl.json"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
REPEATS = 5
Array = NDArray[Any]
Answers = dict[str, Array]


class Runner(Protocol):
    """Answers with a file."""

    def answers(self, images: Sequence[Array]) -> Iterator[Answers]:
        """Answer batches of images, one after another."""

    def milliseconds(self, image: Array) -> float:
        """Return how long the first of them takes, the fastest of some."""


def require_packages() -> None:
    """Refuse where what writes and runs ONNX is not installed.

    Raises:
        ConfigError: A package is missing.
    """
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"format=onnx needs the package {name}, which cannot be imported ({error}). Install what export needs: "
                "pip install 'medusa_cl[export]'"
            ) from error


def write_onnx(graph: Graph, path: Path, metadata: Mapping[str, str], opset: int) -> Runner:
    """Write a graph as one ONNX file.

    Args:
        graph: The graph.
        path: The file.
        metadata: Goes into its `metadata_props`.
        opset: Version of the operators.

    Raises:
        ConfigError: The opset is unknown, the graph too large for one file, or it cannot be exported.
    """
    if opset not in OPSETS:
        raise ConfigError(f"Expected opset to be {OPSETS[0]} .. {OPSETS[-1]}, but got {opset}.")
    weights = sum(tensor.nbytes for tensor in graph.state_dict().values())
    if weights > LIMIT:
        raise ConfigError(f"The weights are {weights / 1e9:.1f} GB, but an ONNX file ends at 2 GB. Use format=pt2.")
    proto = _proto(graph, opset)
    _named(proto, graph)
    for key, value in {**metadata, "opset": str(opset)}.items():
        proto.metadata_props.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    return _OnnxRunner(path)


def _proto(graph: Graph, opset: int) -> Any:
    program = graphs.traced(graph)
    with graphs.refused(graph, "torch.onnx.export"):
        made = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=list(graph.form.tasks),
            opset_version=opset,
            verbose=False,
        )
        assert made is not None, "without a path it returns the program"
        proto = made.model_proto
    if (found := {entry.version for entry in proto.opset_import if not entry.domain}) != {opset}:
        raise ConfigError(f"opset={opset}, but torch made opset {sorted(found)} of this network. Use another opset=.")
    return proto


def _named(proto: Any, graph: Graph) -> None:
    """Call dynamic sides by what they are, and the file by who wrote it."""
    names = {0: "batch"}
    if graph.form.dynamic == "all":
        names |= {-2: "height", -1: "width"} if graph.form.input == "float" else {-3: "height", -2: "width"}
    for value in (*proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        sides = (
            names if value.name == INPUT else {0: "batch", **({-2: "height", -1: "width"} if len(names) > 1 else {})}
        )
        for place, name in sides.items():
            dims[place].dim_param = name
    proto.producer_name = "medusa_cl"
    proto.doc_string = f"{graph.model.backbone.name}: {', '.join(graph.form.tasks)}. See metadata_props."


class _OnnxRunner:
    """Runs an ONNX file by onnxruntime on the CPU.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]

    def answers(self, images: Sequence[Array]) -> Iterator[Answers]:
        """Answer batches of images as the graph's form has them, one after another."""
        for image in images:
            yield dict(zip(self._names, self._session.run(None, {INPUT: image}), strict=True))

    def milliseconds(self, image: Array) -> float:
        """Return how long one batch takes, the fastest of some."""
        return fastest(lambda: self._session.run(None, {INPUT: image}))


def write_pt2(graph: Graph, path: Path, metadata: Mapping[str, str]) -> Runner:
    """Write a graph as torch.export saves it, with the metadata as the extra file `medusa_cl.json`.

    Raises:
        ConfigError: The graph cannot be exported.
    """
    program = graphs.traced(graph)
    with graphs.refused(graph, "torch.export.save"), path.open("wb") as file:
        torch.export.save(program, file, extra_files={PT2_METADATA: json.dumps(dict(metadata))})
    return _Pt2Runner(path)


class _Pt2Runner:
    """Runs a .pt2 file in a fresh process that has torch, and not this package.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seconds: float | None = None

    def answers(self, images: Sequence[Array]) -> Iterator[Answers]:
        """Answer batches of images as the graph's form has them; the first is also timed.

        Raises:
            MedusaError: The process failed.
        """
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder, "given.npz"), Path(folder, "made.npz")
            np.savez(given, *images)
            command = [
                sys.executable,
                "-c",
                _FRESH,
                str(self._path),
                str(given),
                str(made),
                str(torch.get_num_threads()),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise MedusaError(f"The .pt2 file does not run in a fresh process: {last}. Use format=onnx.")
            with np.load(made) as found:
                self._seconds = float(found["seconds"])
                for i in range(len(images)):
                    prefix = f"{i}."
                    yield {key.removeprefix(prefix): found[key] for key in found.files if key.startswith(prefix)}

    def milliseconds(self, image: Array) -> float:
        """Return how long the first batch took in that process, the fastest of some."""
        if self._seconds is None:
            list(self.answers([image]))
        assert self._seconds is not None
        return 1000 * self._seconds


_FRESH = f"""
import sys, time
sys.modules["medusa_cl"] = None
import numpy as np, torch
path, given, made, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
run = torch.export.load(path).module()
found, spent = {{}}, []
with np.load(given) as images, torch.no_grad():
    first = torch.from_numpy(images["arr_0"])
    for i in range(len(images.files)):
        answers = run(torch.from_numpy(images[f"arr_{{i}}"]))
        found |= {{f"{{i}}.{{name}}": value.numpy() for name, value in answers.items()}}
    for _ in range({REPEATS}):
        begun = time.perf_counter()
        run(first)
        spent.append(time.perf_counter() - begun)
np.savez(made, seconds=min(spent), **found)
"""


def fastest(run: Any) -> float:
    """Return how many milliseconds a call takes, the fastest of some."""
    spent = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        run()
        spent.append(time.perf_counter() - begun)
    return 1000 * min(spent)
