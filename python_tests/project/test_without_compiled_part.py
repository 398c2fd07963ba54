"""Where nothing was compiled, facts can still be read, reports written, models asked, and the op says what to do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import made_up
import pytest
from paths import ROOT


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A folder with the Python files of the package and nothing that a compiler made."""
    folder = tmp_path_factory.mktemp("sources")
    shutil.copytree(ROOT / "bico_ext", folder / "bico_ext", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return folder


def run(sources: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Python with these sources; -S leaves out the editable installation, which would find the compiled part."""
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(sources), *others])}
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True, check=False)


def test_readers_and_the_reference_work(sources):
    program = """
import torch, bico_ext
from bico_ext.ops.reference import split_triangle_attention
assert len(bico_ext.load_facts("synthetic").train) == 3600
q, k, v = torch.randn(3, 1, 2, 5, 8).unbind()
print(split_triangle_attention(q, k, v, torch.ones(1, 5, 8), torch.zeros(1, 5, 8)).shape)
"""
    result = run(sources, "-c", program)
    assert result.stdout == "torch.Size([1, 2, 5, 8])\n", result.stderr


def test_the_op_says_how_to_install_it(sources):
    result = run(sources, "-c", "from bico_ext import split_triangle_attention")
    assert result.returncode == 1
    assert "without its compiled part" in result.stderr
    assert "pip install --no-build-isolation" in result.stderr


def test_reports_are_written_and_info_says_what_is_missing(sources, tmp_path):
    folder = made_up.write(tmp_path / "a", made_up.results())
    result = run(sources, "-m", "bico_ext.cli", "report", folder, "--output-dir", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "report.html").exists()
    info = json.loads(run(sources, "-m", "bico_ext.cli", "info").stdout)
    assert info["kernels"].startswith("none: bico_ext is here without its compiled part")
    assert "BICO_BUILD=ON pip install -v" in info["kernels"]
    assert info["instruction_sets"] == []


def test_importing_the_package_imports_neither_torch_nor_transformers(sources):
    result = run(sources, "-c", "import sys, bico_ext; print({'torch', 'transformers'} & set(sys.modules))")
    assert result.stdout == "set()\n", result.stderr
