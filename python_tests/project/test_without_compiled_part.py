"""Where nothing was compiled, everything still works: the op by its portable backend."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import made_up
import pytest
from paths import ROOT

from bico_ext.facts.own import write_facts
from bico_ext.facts.synthetic import generate


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


def test_the_op_runs_and_says_once_by_which_backend(sources):
    program = """
import torch
from bico_ext import split_triangle_attention
from bico_ext.ops import reference
q, k, v = torch.randn(3, 1, 2, 5, 8).unbind()
angle = torch.rand(1, 5, 4).repeat(1, 1, 2)
arguments = (q, k, v, angle.cos(), angle.sin())
for _ in range(2):
    torch.testing.assert_close(split_triangle_attention(*arguments), reference.split_triangle_attention(*arguments))
"""
    result = run(sources, "-c", program)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("has no compiled part; `BICO_BUILD=ON") == 1


def test_a_comparison_trains_and_evaluates(sources, tmp_path):
    write_facts(generate(names_first=2, descriptions_first=2, both=1, pretraining=0), tmp_path / "facts")
    options = "--systems ntp bico --steps 2 --curve-points 0 --max-new-tokens 2 --jobs 1 --layers 1 --hidden-size 32"
    folders = ["--data", str(tmp_path / "facts"), "--output-dir", str(tmp_path / "out")]
    result = run(sources, "-m", "bico_ext.cli", "compare", *options.split(), *folders)
    assert result.returncode == 0, result.stderr
    assert {run["system"] for run in json.loads((tmp_path / "out" / "results.json").read_text())["runs"]} == {
        "ntp",
        "bico",
    }


def test_reports_are_written_and_info_says_what_is_missing(sources, tmp_path):
    folder = made_up.write(tmp_path / "a", made_up.results())
    result = run(sources, "-m", "bico_ext.cli", "report", folder, "--output-dir", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "report.html").exists()
    info = json.loads(run(sources, "-m", "bico_ext.cli", "info").stdout)
    assert info["kernels"] == "none: nothing is compiled here"
    assert "BICO_BUILD=ON pip install -v" in info["backends"]["compiled"]
    assert info["backends"]["portable"].startswith("cpu")
    assert info["instruction_sets"] == []


def test_importing_the_package_imports_neither_torch_nor_transformers(sources):
    result = run(sources, "-c", "import sys, bico_ext; print({'torch', 'transformers'} & set(sys.modules))")
    assert result.stdout == "set()\n", result.stderr
