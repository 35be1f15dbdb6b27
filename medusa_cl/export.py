"""Write a trained model as one file for other runtimes: `python -m medusa_cl.export run=... out=FILE.onnx`.

Backbone and heads go into one graph, decoding too. The file gets its name once it has answered as the model does.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medusa_cl import shell, trained
from medusa_cl.errors import ConfigError, MedusaError
from medusa_cl.shell import Option, Usage

if TYPE_CHECKING:
    from medusa_cl.deploy.agreement import Agreement
    from medusa_cl.deploy.graph_files import Runner
    from medusa_cl.deploy.graphs import Graph
    from medusa_cl.models.multitask import MultiTaskModel
    from medusa_cl.trained import Trained

FORMATS = ("onnx", "pt2")
Say = Callable[[str], None]
OPSET = 18
_ANY_SIZE = (128, 160)  # to trace with, where sizes are dynamic and nothing says what the model was trained on


def _silent(line: str) -> None:
    """Tell nobody."""


def image_size(text: str) -> tuple[int, int]:
    """Read `HxW`."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError("HEIGHTxWIDTH in pixels, such as 480x640")
    return int(sides[0]), int(sides[1])


USAGE = Usage(
    "export",
    "Write backbone and heads as one file for other runtimes, checked against the model before it gets its name.",
    {
        "run": Option("DIR|last|ID", "a run directory, a directory with model.json, the last run, or an MLflow run id"),
        "out": Option("FILE", "the file to write, such as model.onnx (default: the run's name, in this folder)", None),
        "format": Option(
            "onnx|pt2", "ONNX, or a program of torch.export (default: onnx)", "onnx", shell.one_of(*FORMATS)
        ),
        "tasks": Option("[TASK,...]", "heads to take along (default: all)", None, shell.names),
        "size": Option("HxW", "height and width of the images (default: those of training)", None, image_size),
        "dynamic": Option(
            "batch|all", "any number of images, or any size too (default: batch)", "batch", shell.one_of("batch", "all")
        ),
        "input": Option(
            "float|uint8",
            "B 3 H W in [0, 1], or B H W 3 bytes as cameras give them (default: float)",
            "float",
            shell.one_of("float", "uint8"),
        ),
        "outputs": Option(
            "decoded|logits",
            "classes, metres, ..., or logits (default: decoded)",
            "decoded",
            shell.one_of("decoded", "logits"),
        ),
        "opset": Option("N", f"version of ONNX's operators (default: {OPSET})", OPSET, shell.count),
        "licence": Option("SPDX", "licence of the weights, noted in the file, such as Apache-2.0", None),
        "overwrite": Option("true|false", "replace FILE (default: false)", False, shell.flag),
    },
    (
        "run=last format=onnx",
        "run=last out=model.onnx tasks=[depth,normals] size=480x640 input=uint8",
        "run=last out=model.onnx dynamic=all",
        "run=last out=model.pt2 format=pt2",
    ),
)


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: The file.
        graph: What it was made of.
        opset: Version of the operators; None for a .pt2 file.
        agreements: How its answers compare with the model's, by task.
        images: The number of images compared on.
        eager: Milliseconds that torch takes here for one image.
        runtime: Milliseconds that the file takes here for it.
    """

    path: Path
    graph: Graph
    opset: int | None
    agreements: tuple[Agreement, ...]
    images: int
    eager: float
    runtime: float


def export_onnx(
    model: MultiTaskModel,
    path: str | Path,
    size: tuple[int, int],
    *,
    tasks: Sequence[str] | None = None,
    dynamic: str = "batch",
    input: str = "float",
    outputs: str = "decoded",
    opset: int = OPSET,
    about: Mapping[str, str] | None = None,
    overwrite: bool = False,
    say: Say = _silent,
) -> Exported:
    """Write a model as one ONNX file, after onnxruntime has answered with it as torch does in float32 on the CPU.

    Args:
        model: The model; left as it is.
        path: The file, `.onnx`; it is written whole or not at all.
        size: H, W of the images; where sizes are dynamic, those it is made with.
        tasks: Names of the tasks to answer, one output each; None for all.
        dynamic: "batch": any number of images of that size; "all": of any size.
        input: "float": `image` is B 3 H W float32 RGB in [0, 1]; "uint8": B H W 3 uint8 RGB.
        outputs: "decoded": as `MultiTaskModel.predict` answers; "logits": B K H W float32 at the image's size.
        opset: Version of ONNX's operators.
        about: Further entries of the file's metadata, such as {"licence": "Apache-2.0"}.
        overwrite: Replace a file that is there.
        say: Is told what is being done, a line at a time.

    Raises:
        ConfigError: A value is unknown, the file is there, a package is missing, or the network cannot be exported so.
        TaskError: The model has no such task.
        MedusaError: The file's answers are not the model's; nothing was written.
    """
    from medusa_cl.deploy import graph_files

    path = _free(path, "onnx", overwrite)
    graph_files.require_packages()
    graph = _graph(model, tasks, size, dynamic, input, outputs)
    return _checked(graph, path, functools.partial(graph_files.write_onnx, graph, opset=opset), opset, about, say)


def export_pt2(
    model: MultiTaskModel,
    path: str | Path,
    size: tuple[int, int],
    *,
    tasks: Sequence[str] | None = None,
    dynamic: str = "batch",
    input: str = "float",
    outputs: str = "decoded",
    about: Mapping[str, str] | None = None,
    overwrite: bool = False,
    say: Say = _silent,
) -> Exported:
    """Write a model as a program of torch.export, after a fresh process has answered with it as the model does.

    torch unpickles parts of such a file: load none that you did not make, or get from someone you trust.

    Args:
        model: As in `export_onnx`, like all that follow.
        path: The file, `.pt2`.
        size: H, W of the images.
        tasks: Names of the tasks.
        dynamic: "batch" or "all".
        input: "float" or "uint8".
        outputs: "decoded" or "logits".
        about: Further metadata.
        overwrite: Replace a file that is there.
        say: Is told what is being done.

    Raises:
        ConfigError: A value is unknown, the file is there, or the network cannot be exported so.
        TaskError: The model has no such task.
        MedusaError: The file's answers are not the model's; nothing was written.
    """
    from medusa_cl.deploy import graph_files

    path = _free(path, "pt2", overwrite)
    graph = _graph(model, tasks, size, dynamic, input, outputs)
    return _checked(graph, path, functools.partial(graph_files.write_pt2, graph), None, about, say)


def _free(path: str | Path, format: str, overwrite: bool) -> Path:
    path = Path(path)
    if path.suffix.lower() != f".{format}":
        other = f" For {path.suffix} say format={path.suffix[1:]}." if path.suffix[1:] in FORMATS else ""
        raise ConfigError(f"Expected the name of a file with .{format} at its end, but got {path}.{other}")
    if path.is_dir():
        raise ConfigError(f"{path} is a directory. Choose another name.")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} is there already. Add overwrite=true to replace it, or choose another name.")
    return path


def _graph(model: MultiTaskModel, tasks: Sequence[str] | None, size: tuple[int, int], *form: str) -> Graph:
    from medusa_cl.deploy.graphs import Form, Graph
    from medusa_cl.trained import chosen

    return Graph(model, Form(chosen(list(model.tasks), tasks), size, *form))


def _checked(
    graph: Graph,
    path: Path,
    write: Callable[[Path, Mapping[str, str]], Runner],
    opset: int | None,
    about: Mapping[str, str] | None,
    say: Say,
) -> Exported:
    import torch

    from medusa_cl import kept
    from medusa_cl.deploy import agreement, graph_files, graphs

    path.parent.mkdir(parents=True, exist_ok=True)
    say(f"making one graph of {graph.model.backbone.name} and {', '.join(graph.form.tasks)} ...")
    with kept.whole(path) as part:
        runner = write(part, graphs.described(graph, about))
        images = [image.numpy() for image in agreement.images(graph.form)]
        count = sum(len(image) for image in images)
        say(f"comparing its answers with the model's on {count} images ...")
        agreements = agreement.agreements(graph, runner, images)
        if faults := [f"{one.task}: {one.fault}" for one in agreements if one.fault]:
            raise MedusaError(
                f"The graph does not answer as the model does, so {path} was not written: {'; '.join(faults)}. Try "
                "dynamic=batch, or another size=, opset= or format=."
            )
        image = torch.from_numpy(images[0])
        eager = graph_files.fastest(lambda: graph.reference(image))
        return Exported(path, graph, opset, agreements, count, eager, runner.milliseconds(images[0]))


def report(exported: Exported) -> str:
    """Return what to print of an export: the file, its input and outputs, how it was checked, how long it takes."""
    import torch

    from medusa_cl.deploy.agreement import TOLERANCE
    from medusa_cl.deploy.graphs import described_input, described_task

    graph, path = exported.graph, exported.path
    made = f"ONNX opset {exported.opset}" if exported.opset else f"torch.export of torch {torch.__version__}"
    put = described_input(graph)
    height, width = put["size"] if put["dynamic"] == ["batch"] else ("H", "W")
    rows = [("", "name", "shape", "values", "largest difference")]
    rows += [("input", put["name"], put["layout"], f"{put['colours']} {put['values']}", "")]
    for one in exported.agreements:
        said = described_task(graph, one.task)
        values = said["unit"] if said["gives"] == "decoded" else "logits"
        rows.append(("output", one.task, said["layout"], values, one.shown()))
    sized = [[cell.replace(" H W", f" {height} {width}") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in sized) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in sized]
    runtime = "onnxruntime" if exported.opset else "a fresh torch"
    return "\n".join(
        [
            f"{path}: {path.stat().st_size / 1e6:.1f} MB, {made}, {graph.model.backbone.name}",
            "",
            *lines,
            "",
            f"{runtime} answers {exported.images} images as the model does; logits may differ by {TOLERANCE:.2%} of "
            "the largest.",
            f"One image takes {exported.eager:.0f} ms by torch and {exported.runtime:.0f} ms by {runtime}, here with "
            f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}.",
        ]
    )


def main(arguments: Sequence[str]) -> None:
    """Export a model, as the command line says.

    Raises:
        MedusaError: It could not be done; nothing was written.
    """
    if shell.asks_for_help(arguments):
        print(USAGE.help())
        return
    options = USAGE.parse(arguments)
    found = trained.find(options["run"])
    out = options["out"] or _default_out(found, options["format"])
    _free(out, options["format"], options["overwrite"])  # before anything slow
    forms = {key: options[key] for key in ("tasks", "dynamic", "input", "outputs", "overwrite")}
    forms |= {"size": _size(found, options), "about": _about(found, options["licence"]), "say": _say}
    if options["format"] == "onnx":
        done = export_onnx(found.load(), out, opset=options["opset"], **forms)
    else:
        done = export_pt2(found.load(), out, **forms)
    print(report(done))


def _default_out(found: Trained, format: str) -> str:
    out = f"{(found.run or found.model).resolve().name}.{format}"
    _say(f"out={out}")
    return out


def _size(found: Trained, options: Mapping[str, Any]) -> tuple[int, int]:
    from medusa_cl.deploy.predictor import training_size

    size: tuple[int, int] | None = options["size"] or training_size(found)
    if size is not None:
        return size
    if options["dynamic"] == "all":
        return _ANY_SIZE
    raise ConfigError(
        f"Nothing in {options['run']} says how large its training images were: give size=HxW, such as size=480x640, or "
        "dynamic=all."
    )


def _about(found: Trained, licence: str | None) -> dict[str, str]:
    facts = found.summary() or {}
    about = {key: str(facts[key]) for key in ("scenario", "strategy", "seed") if key in facts}
    return about | ({"licence": licence} if licence else {})


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    shell.end(main)
