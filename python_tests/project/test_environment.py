"""The commit that a result was measured with."""

import json
import subprocess
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from bico_ext import environment

GIT = ("git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org")


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run([*GIT, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "module.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    git(tmp_path, "tag", "-a", "v1.0", "-m", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert environment._commit(tmp_path) == head
    (tmp_path / "module.py").write_text("2")
    assert environment._commit(tmp_path) == f"{head}-dirty"


def test_the_commit_that_pip_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install git+https://...` leaves its commit beside the metadata; a wheel of an index has no such file."""
    origin = {"url": "https://example.org/bico-ext", "vcs_info": {"vcs": "git", "commit_id": "1234abcd"}}
    monkeypatch.setattr(environment, "distribution", lambda _: Distribution.at(tmp_path))
    assert environment._commit(tmp_path) is None
    (tmp_path / "direct_url.json").write_text(json.dumps(origin))
    assert environment._commit(tmp_path) == "1234abcd"


def test_a_checkout_that_git_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    assert environment._commit(tmp_path) is None  # no commit yet
    monkeypatch.setenv("PATH", "")
    assert environment._commit(tmp_path) is None  # no git
