"""The verbs by one name: `medusa run ...` and `python -m medusa_cl run ...` are `python -m medusa_cl.run ...`."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from medusa_cl import __version__, shell
from medusa_cl.errors import ConfigError, unknown

VERBS = {
    "run": "train a stream of dense tasks and report what it forgot and transferred",
    "prepare": "turn a raw dataset into one HDF5 file",
    "predict": "predict every learnt task for a folder of images",
    "heads": "list, add, remove, pack and merge the heads of a run",
    "export": "write a trained model as ONNX, or as a program of torch.export",
    "track": "open MLflow on the runs, deliver what a server missed, print tables",
}


def listing() -> str:
    """Return the text that `medusa` and `python -m medusa_cl` print."""
    lines = [f"medusa_cl {__version__}: dense tasks, learnt one after another", ""]
    lines += [shell.row(f"python -m medusa_cl.{verb}", line, 31) for verb, line in VERBS.items()]
    lines += ["", "Each has --help. Where the package is installed, `medusa VERB` is the same."]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Say what verbs there are, where none was named.

    Raises:
        ConfigError: There is no verb of that name.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing())
    elif arguments[0] == "--version":
        print(__version__)
    else:
        raise ConfigError(f"{unknown('verb', arguments[0], VERBS)} See python -m medusa_cl --help.")


def console() -> None:
    """Run what the command line asks for: the entry point `medusa`."""
    if sys.argv[1:] and sys.argv[1] in VERBS:
        verb = sys.argv.pop(1)
        # Under its own name and as the main module, so that processes that are spawned find the same one.
        runpy.run_module(f"medusa_cl.{verb}", run_name="__main__", alter_sys=True)
    else:
        shell.end(main)


if __name__ == "__main__":
    console()
