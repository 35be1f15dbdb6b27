"""List the verbs: each is a module of its own, run as `python -m medusa_cl.<verb>`."""

import sys
from pathlib import Path

from medusa_cl import __version__

VERBS = {
    "run": "train a stream of dense tasks and report what it forgot and transferred",
    "prepare": "turn a raw dataset into one HDF5 file",
    "predict": "predict every learnt task for a folder of images",
    "export": "write a trained model as ONNX or TorchScript",
    "heads": "list, add, remove, pack and merge the heads of a run",
    "track": "open the MLflow UI, or deliver what a server missed",
}


def available() -> dict[str, str]:
    """Return {verb: what it does} for the verbs this installation has, found by file so that none is imported."""
    folder = Path(__file__).parent
    return {verb: line for verb, line in VERBS.items() if (folder / f"{verb}.py").exists()}


def listing() -> str:
    """Return the text that `python -m medusa_cl` prints."""
    lines = [f"medusa_cl {__version__}: dense tasks, learnt one after another", ""]
    lines += [f"  python -m medusa_cl.{verb:<8} {line}" for verb, line in available().items()]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Print the list; a verb given as an argument is refused with the spelling that works."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(listing())
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    known = f"Run it as python -m medusa_cl.{arguments[0]}" if arguments[0] in available() else listing()
    print(f"python -m medusa_cl takes no argument, but got {arguments[0]!r}. {known}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
