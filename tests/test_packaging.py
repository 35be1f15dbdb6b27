"""The package is the same one from a bare checkout, an editable install, a wheel and a wheel made from an sdist."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import medusa_cl

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("configs", "scenarios", "strategies")
SOURCES = ("medusa_cl", *LINKED, "pyproject.toml", "README.md", "LICENSE")
IMPORTS = "import medusa_cl, medusa_cl.strategies, medusa_cl.scenarios, medusa_cl.configs"


def python(*arguments: str, cwd: Path, path: str = "") -> str:
    """Run this interpreter in another folder with nothing but `path` added; the output, or a failure that shows it."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_", "PIP_CONSTRAINT"))}
    env |= {"PYTHONPATH": path, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def with_dependencies(first: Path) -> str:
    """A PYTHONPATH for `python -S`: the dependencies, but no .pth file, which may hold an editable medusa_cl."""
    return os.pathsep.join([str(first), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])


def copy_sources(to: Path) -> Path:
    """Copy what a build reads, so that nothing is built in the working tree; one more group of configs on top."""
    for name in SOURCES:
        if (ROOT / name).is_dir():
            skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, to / name, symlinks=True, ignore=skip)
        else:
            shutil.copy(ROOT / name, to / name)
    (to / "configs" / "probe" / "deep").mkdir(parents=True)
    (to / "configs" / "probe" / "deep" / "probe.yaml").write_text("found: true\n")
    return to


def names(wheel: Path) -> list[str]:
    return sorted(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory whose own folders have our names, and must never be imported."""
    folder = tmp_path_factory.mktemp("foreign")
    for name in LINKED:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise RuntimeError('the wrong {name} was imported')\n")
    return folder


def build_wheel(source: Path, out: Path) -> Path:
    flags = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir")
    python("-m", "pip", "wheel", *flags, str(out), str(source), cwd=out)
    (built,) = out.glob("*.whl")
    return built


def test_links_inside_the_package_point_at_the_real_folders() -> None:
    for name in LINKED:
        assert (ROOT / "medusa_cl" / name).is_symlink()
        assert os.readlink(ROOT / "medusa_cl" / name) == f"../{name}"


def test_every_package_is_declared() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {"medusa_cl"}
    for top in (ROOT / "medusa_cl", *(ROOT / name for name in LINKED)):
        prefix = "medusa_cl" if top.name == "medusa_cl" else f"medusa_cl.{top.name}"
        for init in top.rglob("__init__.py"):
            inside = init.parent.relative_to(top).parts
            found.add(".".join((prefix, *inside)))
    assert sorted(found) == sorted(setup["packages"])
    assert setup["package-dir"] == {"medusa_cl": "medusa_cl"} | {f"medusa_cl.{name}": name for name in LINKED}


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {p.parent for p in (ROOT / "medusa_cl").rglob("*.py")} | {ROOT / name for name in LINKED}
    assert [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").exists()] == []


def test_bare_checkout_imports_from_any_folder(foreign: Path) -> None:
    out = python("-S", "-c", f"{IMPORTS}; print(medusa_cl.__file__)", cwd=foreign, path=with_dependencies(ROOT))
    assert Path(out) == ROOT / "medusa_cl" / "__init__.py"


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_editable_install_imports_the_real_folders(links: bool, foreign: Path, tmp_path: Path) -> None:
    source, site = copy_sources(tmp_path), tmp_path / "site"
    site.mkdir()
    if not links:  # as on a file system that has none
        for name in LINKED:
            (source / "medusa_cl" / name).unlink()
    build = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    python("-c", build, str(tmp_path), cwd=source)
    (editable,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(editable).extractall(site)

    code = f"import site; site.addsitedir({str(site)!r}); {IMPORTS}; print(medusa_cl.strategies.__file__)"
    out = python("-S", "-c", code, cwd=foreign, path=with_dependencies(site))
    assert Path(out).resolve() == (source / "strategies" / "__init__.py").resolve()


def test_wheel_works_in_a_folder_with_its_own_strategies(wheel: Path, foreign: Path, tmp_path: Path) -> None:
    python("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), str(wheel), cwd=foreign)
    out = python("-S", "-c", f"{IMPORTS}; print(medusa_cl.__file__)", cwd=foreign, path=with_dependencies(tmp_path))
    assert Path(out) == tmp_path / "medusa_cl" / "__init__.py"

    probe = "files('medusa_cl.configs') / 'probe/deep/probe.yaml'"
    code = f"from importlib.resources import files; print(({probe}).read_text())"
    assert python("-S", "-c", code, cwd=foreign, path=str(tmp_path)) == "found: true"
    assert f"medusa_cl {medusa_cl.__version__}" in python("-S", "-m", "medusa_cl", cwd=foreign, path=str(tmp_path))


DATA = {"medusa_cl/py.typed", "medusa_cl/claims/published.json"}


def test_wheel_holds_every_source_and_config_under_one_name(tree: Path, wheel: Path) -> None:
    held = names(wheel)
    assert {name.split("/")[0] for name in held} == {"medusa_cl", f"medusa_cl-{medusa_cl.__version__}.dist-info"}
    expected = {f"medusa_cl/{p.relative_to(tree / 'medusa_cl')}" for p in (tree / "medusa_cl").rglob("*.py")}
    for folder in LINKED:
        files = [p for p in (tree / folder).rglob("*") if p.suffix in {".py", ".yaml"}]
        expected |= {f"medusa_cl/{p.relative_to(tree)}" for p in files}
    assert {name for name in held if name.startswith("medusa_cl/")} == expected | DATA


def test_wheel_from_sdist_is_the_same(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    source = copy_sources(tmp_path / "tree")
    python("-c", "from setuptools import build_meta; build_meta.build_sdist('..')", cwd=source)
    (sdist,) = tmp_path.glob("*.tar.gz")
    (tmp_path / "again").mkdir()
    assert names(build_wheel(sdist, tmp_path / "again")) == names(wheel)


def test_ruff_looks_at_each_file_once_where_it_stands() -> None:
    shown = [Path(line) for line in python("-m", "ruff", "check", "--show-files", ".", cwd=ROOT).splitlines()]
    assert [str(p) for p in shown if p.resolve() != p or p.is_symlink()] == []
    missed = {p.resolve() for name in ("medusa_cl", *LINKED) for p in (ROOT / name).rglob("*.py")} - set(shown)
    assert missed == set()


def test_constraints_pin_every_dependency_and_no_address() -> None:
    lines = [s for s in (ROOT / "constraints.txt").read_text().splitlines() if s and not s.startswith("#")]
    assert [s for s in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", s)] == []
    pinned = {canonical(s.split("==")[0]) for s in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (project["optional-dependencies"][extra] for extra in ("test", "docs", "export", "e2e"))
    asked = {canonical(re.split(r"[<>=!~\[; ]", a)[0]) for part in (project["dependencies"], *extras) for a in part}
    assert asked - {"medusa-cl"} - pinned == set()
    assert {"torch==2.14.1", "torchvision==0.29.1"} <= set(lines)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
