"""A build that cannot work says why in one sentence."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

LOCATE = ROOT / "csrc" / "torch" / "locate.py"


def locate(site: Path) -> subprocess.CompletedProcess:
    """Run locate.py in a Python that sees no packages but those in `site`."""
    program = f"import sys; sys.path.append({str(site)!r}); exec(open({str(LOCATE)!r}).read())"
    return subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False)


def fake_torch(site: Path, version: str) -> None:
    (site / "torch").mkdir()
    (site / "torch" / "__init__.py").touch()
    (site / f"torch-{version}.dist-info").mkdir()
    (site / f"torch-{version}.dist-info" / "METADATA").write_text(f"Name: torch\nVersion: {version}\n")


def test_no_torch(tmp_path):
    result = locate(tmp_path)
    assert result.returncode == 1
    assert "install torch >= 2.11 first" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_old_torch(tmp_path):
    fake_torch(tmp_path, "2.9.1+cu128")
    result = locate(tmp_path)
    assert result.returncode == 1
    assert result.stderr == "bico-ext needs torch >= 2.11, found 2.9.1+cu128: pip install --upgrade torch\n"


def test_a_new_torch(tmp_path):
    fake_torch(tmp_path, "2.11.0")
    assert locate(tmp_path).stdout == f"{tmp_path / 'torch'};2.11.0;0\n"
    (tmp_path / "torch" / "lib").mkdir()
    (tmp_path / "torch" / "lib" / "libtorch_cuda.so").touch()
    assert locate(tmp_path).stdout == f"{tmp_path / 'torch'};2.11.0;1\n"


def test_no_compiler(tmp_path):
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if cmake is None:
        pytest.skip("needs cmake, which built the package")
    command = [cmake, "-S", str(ROOT), "-B", str(tmp_path)]
    environment = {**os.environ, "CXX": "/nonexistent/c++"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "bico-ext compiles C++: install g++ 12 or newer" in result.stderr
