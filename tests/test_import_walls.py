"""Who may import what, from the sources and from what really gets loaded."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import medusa_cl

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("avalanche", "mlflow", "h5py", "torchmetrics")

PARTS_OF_RUN = (
    "job",
    "job_references",
    "continuing",
    "study_run",
    "build",
    "claims_run",
    "claims/build",
)  # where configuration ends

# library -> the only places that may import it, as prefixes of paths from the root
WALLS = {
    "avalanche": ("strategies/", "scenarios/"),
    "mlflow": ("medusa_cl/tracking/",),
    "timm": ("medusa_cl/models/backbone.py",),
    "hydra": ("medusa_cl/run.py", "medusa_cl/study_run.py", "medusa_cl/build.py", "configs/"),
    "omegaconf": ("medusa_cl/run.py", *(f"medusa_cl/{part}.py" for part in PARTS_OF_RUN), "configs/"),
}


def sources(*tops: str) -> list[Path]:
    """Return every Python file under these folders, each where it really stands (links are not followed)."""
    return sorted(p for top in tops for p in (ROOT / top).rglob("*.py") if not linked(p))


def linked(path: Path) -> bool:
    return any(parent.is_symlink() for parent in path.parents)


def imports(source: str) -> Iterator[str]:
    """Yield the full name of everything a module imports, at any depth, by statement or by a literal name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).split(".")[-1]
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.args[0].value


@functools.cache
def top_levels(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path.read_text(encoding="utf-8"))}


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport sys\nprint('loaded', *sorted({{n.split('.')[0] for n in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("loaded")[-1].split())


def test_imports_are_found_in_every_form() -> None:
    inside = "def f():\n  import g\n  import_module('h.i')\n  __import__('j')\n"
    source = f"import a.b\nfrom c.d import e\n{inside}from . import k"
    assert sorted(imports(source)) == ["a.b", "c.d", "g", "h.i", "j"]


@pytest.mark.parametrize("library", WALLS)
def test_only_its_own_side_of_the_wall_imports(library: str) -> None:
    files = sources("medusa_cl", "strategies", "scenarios", "configs")
    users = [str(p.relative_to(ROOT)) for p in files if library in top_levels(p)]
    assert [u for u in users if not u.startswith(WALLS[library])] == []


def test_the_real_folders_are_never_imported_by_their_bare_name() -> None:
    files = sources("medusa_cl", "strategies", "scenarios", "configs", "tests", "benchmarks")
    bare = {str(p.relative_to(ROOT)) for p in files if top_levels(p) & {"strategies", "scenarios", "configs"}}
    assert bare == set()


def test_import_medusa_cl_loads_nothing_heavy() -> None:
    loaded = loaded_by("import medusa_cl")
    assert "medusa_cl" in loaded
    assert loaded & {*HEAVY, "torch", "numpy", "hydra", "timm"} == set()


def test_a_misspelt_key_need_not_wait_for_torch() -> None:
    assert loaded_by("import medusa_cl.run") & {*HEAVY, "torch", "numpy", "timm"} == set()


def test_what_predict_needs_loads_no_training_library() -> None:
    modules = ("models.multitask", "tasks", "deploy.agreement", "predict")
    loaded = loaded_by(f"import {', '.join(f'medusa_cl.{module}' for module in modules)}")
    assert "torch" in loaded
    assert loaded & set(HEAVY) == set()


def test_lazy_names_and_their_mirror_for_type_checkers_are_equal() -> None:
    tree = ast.parse((ROOT / "medusa_cl" / "__init__.py").read_text())
    (mirror,) = (n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    mirrored = {a.name: n.module for n in mirror.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert mirrored == {name: f"medusa_cl.{module}" for name, module in medusa_cl._HOME.items()}


@pytest.mark.parametrize("name", sorted(medusa_cl._HOME))
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(medusa_cl, name).__name__ == name
    assert name in dir(medusa_cl)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r'"Medussa"\. Did you mean "Medusa"\?') as caught:
        medusa_cl.Medussa  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("Medussa", medusa_cl)
    assert not hasattr(medusa_cl, "__wrapped__")


def test_a_star_brings_the_public_names_alone() -> None:
    names: dict[str, object] = {}
    exec("from medusa_cl import *", names)
    assert set(names) - {"__builtins__"} == {*medusa_cl._HOME, "__version__"}


def verbs(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "-m", "medusa_cl", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_package_lists_exactly_the_verbs_that_exist_and_stays_light() -> None:
    done = verbs()
    assert done.returncode == 0
    listed = set(re.findall(r"python -m medusa_cl\.(\w+)", done.stdout))
    modules = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "medusa_cl").glob("[a-z]*.py")}
    assert listed == {name for name, text in modules.items() if 'if __name__ == "__main__":' in text}
    assert not re.search(r"\| +(torch|numpy|avalanche|hydra|mlflow)$", done.stderr, re.MULTILINE)


def repository_files() -> list[Path]:
    """Return the files git tracks or would track; without git (an unpacked sdist) the ones the project writes."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    if done.returncode == 0:
        return [p for name in done.stdout.split("\0") if name and (p := ROOT / name).is_file() and not p.is_symlink()]
    return [*sources("medusa_cl", "strategies", "scenarios", "configs", "tests"), *ROOT.glob("*.*")]


def test_no_file_names_a_place_on_one_machine() -> None:
    place = re.compile(rb"(?<![\w./:~-])(/(?:home|Users|root|work|mnt|private|opt)/[\w.-]+|[A-Za-z]:\\Users\\\w+)")
    found = {str(p.relative_to(ROOT)): m[1] for p in repository_files() if (m := place.search(p.read_bytes()))}
    assert found == {}
