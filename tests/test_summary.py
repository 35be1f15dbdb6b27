"""Where a summary's numbers are said to come from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from medusa_cl import summary


def repository(path: Path) -> str:
    """Make a repository with one commit and return its short hash."""
    path.mkdir(parents=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *command], cwd=path, check=True)
    run = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=path, check=True, capture_output=True)
    return run.stdout.decode().strip()


def place(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the module believe that its package stands there."""
    package.mkdir(parents=True)
    monkeypatch.setattr(summary, "__file__", str(package / "summary.py"))


def test_the_commit_of_the_packages_own_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = repository(tmp_path / "checkout")
    place(tmp_path / "checkout" / "medusa_cl", monkeypatch)
    assert summary.git_commit() == commit


def test_changes_are_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = repository(tmp_path / "checkout")
    (tmp_path / "checkout" / "new.txt").write_text("new")
    subprocess.run(["git", "add", "new.txt"], cwd=tmp_path / "checkout", check=True)
    place(tmp_path / "checkout" / "medusa_cl", monkeypatch)
    assert summary.git_commit() == f"{commit}+"


def test_not_the_commit_of_a_users_repository_around_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository(tmp_path / "project")
    place(tmp_path / "project" / ".venv" / "lib" / "site-packages" / "medusa_cl", monkeypatch)
    assert summary.git_commit() is None


def test_no_commit_without_a_repository_or_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path / "medusa_cl", monkeypatch)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert summary.git_commit() is None
    monkeypatch.setenv("PATH", "")
    assert summary.git_commit() is None
