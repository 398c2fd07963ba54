"""Where something cannot be compiled, a build leaves it out or fails, as BICO_BUILD asks, and says why."""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import try_wheel
from paths import ROOT

LOCATE = ROOT / "csrc" / "torch" / "locate.py"
PURE = "bico_ext-0.1.0-py3-none-any.whl"
CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
NEEDS_CMAKE = pytest.mark.skipif(CMAKE is None, reason="needs cmake")
CANNOT_COMPILE = (
    CMAKE is None
    or importlib.util.find_spec("pybind11") is None
    or shutil.which("g++") is None
    or platform.machine() != "x86_64"
)
NEEDS_COMPILER = pytest.mark.skipif(CANNOT_COMPILE, reason="needs cmake, g++ and x86-64")


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


@NEEDS_CMAKE
def test_no_compiler(tmp_path):
    command = [CMAKE, "-S", str(ROOT), "-B", str(tmp_path)]
    environment = {**os.environ, "CXX": "/nonexistent/c++"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "bico-ext compiles C++: install g++ 12 or newer" in result.stderr


@pytest.fixture
def build(tmp_path):
    """Call a hook of the build backend in a Python of its own, after `prepare`; the results are in tmp_path."""
    pytest.importorskip("scikit_build_core")

    def call(hook="build_wheel", prepare="", settings=None, **environment) -> subprocess.CompletedProcess:
        settings = {"build-dir": str(tmp_path / "objects"), **(settings or {})}
        directory = "" if hook.startswith("get_requires") else f"{str(tmp_path)!r}, "
        program = "import platform, sys; sys.path.insert(0, 'build_backend'); platform.machine = lambda: 'x86_64'\n"
        program += f"{prepare}\nimport bico_build\n"
        program += f"print(bico_build.{hook}({directory}{settings!r}))"
        unset = {"BICO_BUILD", "CXX", "CMAKE_ARGS", "CMAKE_EXECUTABLE"}
        inherited = {name: value for name, value in os.environ.items() if name not in unset}
        return subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=inherited | environment, capture_output=True, text=True
        )

    return call


def compiler(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def assert_pure(folder: Path, result: subprocess.CompletedProcess, *reasons: str) -> None:
    assert result.returncode == 0, result.stdout + result.stderr
    assert (folder / PURE).exists()
    *_, sentence, name = result.stdout.splitlines()
    assert name == PURE
    assert result.stdout.count("bico-ext was not compiled") == 1
    assert sentence.startswith("bico-ext was not compiled, so this is the pure-Python package: ")
    assert sentence.endswith("To insist on compiling: BICO_BUILD=ON pip install -v --no-build-isolation .")
    assert all(reason in sentence for reason in reasons), sentence


def assert_failed(folder: Path, result: subprocess.CompletedProcess, *reasons: str) -> None:
    assert result.returncode == 1
    assert not list(folder.glob("*.whl"))
    assert "Traceback" not in result.stderr
    sentence = result.stderr.splitlines()[-1]
    assert all(reason in sentence for reason in reasons), sentence


def test_off_compiles_nothing(build, tmp_path):
    result = build(BICO_BUILD="OFF", CXX="/bin/false", PATH="/nonexistent")
    assert result.returncode == 0, result.stderr
    assert "not compiled" not in result.stdout
    with zipfile.ZipFile(tmp_path / PURE) as wheel:
        names = wheel.namelist()
    assert "bico_ext/ops/reference.py" in names
    assert not [name for name in names if name.endswith(".so")]


def test_pip_builds_the_pure_package_without_a_compiler(tmp_path):
    pytest.importorskip("scikit_build_core")
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-build-isolation", "--no-deps", "--no-index"]
    command += ["--wheel-dir", str(tmp_path), "-C", f"build-dir={tmp_path / 'objects'}", str(ROOT)]
    environment = {**os.environ, "CXX": "/bin/false", "BICO_BUILD": "AUTO"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / PURE).exists()
    assert (result.stdout + result.stderr).count("bico-ext was not compiled, so this is the pure-Python package") == 1


@NEEDS_CMAKE
def test_a_compiler_that_does_not_work(build, tmp_path):
    assert_pure(tmp_path, build(CXX="/bin/false"), "bico-ext compiles C++: install g++ 12 or newer")


def test_no_compiler_is_seen_before_cmake_is_asked(build, tmp_path):
    result = build(CXX="/nonexistent/c++")
    assert_pure(tmp_path, result, "there is no C++ compiler (/nonexistent/c++): install g++ 12 or newer")
    assert "CMake" not in result.stdout


def test_no_cmake(build, tmp_path):
    hidden = "sys.modules['cmake'] = sys.modules['ninja'] = None"
    compiler(tmp_path / "c++", "exit 1")
    assert_pure(tmp_path, build(prepare=hidden, PATH=str(tmp_path)), "Could not find CMake", "pip install cmake ninja.")


def test_another_machine(build, tmp_path):
    result = build(prepare="platform.machine = lambda: 'aarch64'")
    assert_pure(tmp_path, result, "kernels for x86-64 CPUs only, and this is aarch64")


@NEEDS_COMPILER
def test_an_old_compiler(build, tmp_path):
    old = compiler(tmp_path / "g++", 'exec g++ -U__GNUC__ -D__GNUC__=11 "$@"')
    assert_pure(tmp_path, build(CXX=old), "needs g++ 12 or newer", "found GNU 11.")


@NEEDS_COMPILER
def test_an_error_in_the_sources_is_named(build, tmp_path):
    planted = 'case "$*" in *csrc/*) echo "csrc/a.cpp:1:1: error: planted"; echo "error: second"; exit 1;; esac'
    broken = compiler(tmp_path / "g++", f'{planted}; exec g++ "$@"')
    assert_pure(tmp_path, build(CXX=broken), "package: csrc/a.cpp:1:1: error: planted. To insist")


NVCC_FATAL = """CMake Error at CMakeTestCUDACompiler.cmake:70 (message):
  The CUDA compiler

    is not able to compile a simple test program.

    nvcc fatal   : no compute_90

  CMake will not be able to correctly generate this project."""
KILLED = """[1/9] Building CUDA object CMakeFiles/cuda_kernels.dir/csrc/cuda/simt/simt.cu.o
FAILED: CMakeFiles/_ops.dir/csrc/torch/checks.cpp.o
c++: fatal error: Killed signal terminated program cc1plus"""
KERNEL = """FAILED: [code=1] CMakeFiles/cuda_kernels.dir/csrc/cuda/simt/simt.cu.o
ptxas fatal   : Unresolved extern function"""


def failing(output: str, without_cuda: str = "raise SystemExit(1)") -> str:
    """Replace scikit-build-core by a build that prints `output` and fails; `without_cuda` is its end without CUDA."""
    return f"""
import os
from scikit_build_core import build
real = build.build_wheel
def build_wheel(directory, settings, metadata):
    if os.environ["BICO_BUILD"] == "OFF":
        return real(directory, settings, metadata)
    print("attempt with", settings.get("cmake.define.BICO_CUDA", "CUDA"), "in", settings.get("build-dir"))
    if settings.get("cmake.define.BICO_CUDA") == "OFF":
        {without_cuda}
    print({output!r})
    raise SystemExit(1)
build.build_wheel = build_wheel
"""


@pytest.mark.parametrize(
    ("output", "reason"),
    [(NVCC_FATAL, "nvcc fatal : no compute_90."), (KERNEL, "ptxas fatal : Unresolved extern function.")],
)
def test_cuda_kernels_that_cannot_be_compiled_are_left_out(build, output, reason):
    """The attempt without them has another folder: CMake would keep the choice there."""
    result = build(prepare=failing(output, without_cuda='return "a.whl"'))
    assert result.returncode == 0, result.stderr
    *_, sentence, name = result.stdout.splitlines()
    assert name == "a.whl"
    assert "attempt with OFF in None" in result.stdout
    assert sentence == (
        f"bico-ext was compiled without its CUDA kernels: {reason} To insist on them: "
        "BICO_BUILD=ON pip install -v --no-build-isolation -C cmake.define.BICO_CUDA=ON ."
    )


@pytest.mark.parametrize(
    ("output", "attempts", "reason"),
    [
        (NVCC_FATAL, ["CUDA", "OFF"], "checks.cpp:1: error: planted."),
        (KILLED, ["CUDA"], "c++: fatal error: Killed signal terminated program cc1plus."),
    ],
)
def test_nothing_is_compiled_where_cuda_is_not_the_only_obstacle(build, tmp_path, output, attempts, reason):
    result = build(prepare=failing(output, without_cuda='print("checks.cpp:1: error: planted"); raise SystemExit(1)'))
    assert_pure(tmp_path, result, f"package: {reason} To insist")
    assert re.findall("attempt with (CUDA|OFF)", result.stdout) == attempts


@pytest.mark.parametrize(("output", "named"), [(NVCC_FATAL, True), (KILLED, False)])
def test_a_forced_build_says_how_to_leave_out_cuda(build, tmp_path, output, named):
    result = build(BICO_BUILD="ON", prepare=failing(output, without_cuda='return "a.whl"'))
    assert_failed(tmp_path, result, "insists on it: ", "fatal", "set BICO_BUILD=OFF")
    assert ("CMAKE_ARGS=-DBICO_CUDA=OFF leaves out the CUDA kernels." in result.stderr) == named


def test_a_message_of_several_paragraphs_is_kept_whole(build, tmp_path):
    output = "CMake Error at CMakeLists.txt:9:\n  Cannot find source file:\n\n    a.cpp\n\nCall Stack\n  x"
    assert_pure(tmp_path, build(prepare=failing(output)), "package: Cannot find source file: a.cpp. To insist")


@pytest.fixture
def build_for_cuda(build, tmp_path):
    """A whole build for a torch with CUDA, with a compiler that makes empty objects of the project's files."""
    site = tmp_path / "site"
    site.mkdir()
    fake_torch(site, "2.13.0")
    for part in ("include", "lib"):
        (site / "torch" / part).mkdir()
    for name in ("torch", "torch_cpu", "torch_cuda", "c10"):
        subprocess.run(
            ["g++", "-shared", "-o", site / "torch" / "lib" / f"lib{name}.so", "-xc++", os.devnull], check=True
        )
    objects = """case "$*" in *csrc/*.cpp*)
  for word; do
    [ "$last" = -o ] && g++ -c -fPIC -xc++ /dev/null -o "$word"; [ "$last" = -MF ] && echo "x:" >"$word"; last=$word
  done; exit 0
esac"""
    fake = compiler(tmp_path / "g++", f'{objects}\nexec g++ "$@"')

    def call(nvcc: str, **environment) -> subprocess.CompletedProcess:
        return build(PYTHONPATH=str(site), CXX=fake, CUDACXX=compiler(tmp_path / "nvcc", nvcc), **environment)

    return call


@NEEDS_COMPILER
def test_a_broken_nvcc_is_named_each_time(build_for_cuda, tmp_path):
    for _ in range(2):
        result = build_for_cuda("echo 'unsupported GNU version' >&2; exit 1")
        assert result.returncode == 0, result.stdout + result.stderr
        *_, sentence, name = result.stdout.splitlines()
        assert "linux" in name
        reason = f"{tmp_path / 'nvcc'} cannot compile a program here (1): unsupported GNU version."
        assert sentence.startswith(f"bico-ext was compiled without its CUDA kernels: {reason} To insist")


@NEEDS_COMPILER
@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
def test_a_repaired_nvcc_is_found_in_the_same_folder(build_for_cuda, tmp_path):
    said = "cannot compile a program here"
    assert said in build_for_cuda("exit 1", BICO_BUILD="ON").stdout
    old = 'case "$*" in *compute_90*) echo "nvcc fatal   : found"; exit 1; esac'
    repaired = build_for_cuda(f'{old}\nexec nvcc "$@"', BICO_BUILD="ON")
    assert said not in repaired.stdout
    assert "nvcc fatal : found" in repaired.stderr


@NEEDS_COMPILER
@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
def test_a_failed_attempt_with_cuda_decides_nothing_about_the_next(build_for_cuda, tmp_path):
    old = 'case "$*" in *compute_90*) echo "nvcc fatal   : Unsupported gpu architecture \'compute_90\'"; exit 1; esac'
    nvcc = f'{old}\nexec nvcc "$@"'
    for _ in range(2):
        result = build_for_cuda(nvcc)
        assert result.returncode == 0, result.stdout + result.stderr
        *_, sentence, name = result.stdout.splitlines()
        assert "linux" in name
        assert "without its CUDA kernels: nvcc fatal : Unsupported gpu architecture 'compute_90'." in sentence
    for wheel in tmp_path.glob("*.whl"):
        wheel.unlink()
    assert_failed(tmp_path, build_for_cuda(nvcc, BICO_BUILD="ON"), "nvcc fatal", "CMAKE_ARGS=-DBICO_CUDA=OFF")


@NEEDS_CMAKE
def test_a_forced_build_without_a_compiler_fails_with_the_way_out(build, tmp_path):
    result = build(BICO_BUILD="ON", CXX="/bin/false")
    assert_failed(tmp_path, result, "insists on it: bico-ext compiles C++: install g++ 12", "set BICO_BUILD=OFF")


def test_a_forced_build_without_cmake_fails_with_the_way_out(build, tmp_path):
    result = build(BICO_BUILD="ON", PATH="/nonexistent", prepare="sys.modules['cmake'] = None")
    assert_failed(tmp_path, result, "insists on it: Could not find CMake", "set BICO_BUILD=OFF")


def test_an_editable_build_insists(build, tmp_path):
    assert_failed(tmp_path, build("build_editable", CXX="/bin/false"), "insists on it", "set BICO_BUILD=OFF")
    assert build("build_editable", BICO_BUILD="OFF").returncode == 0
    assert (tmp_path / PURE).exists()


@pytest.mark.parametrize(
    ("settings", "environment"),
    [({"cmake.define.BICO_CUDA": "ON"}, {}), ({}, {"CMAKE_ARGS": "-DBICO_CUDA:STRING=ON"})],
    ids=["config-setting", "CMAKE_ARGS"],
)
def test_a_define_that_is_on_insists(build, tmp_path, settings, environment):
    assert_failed(tmp_path, build(settings=settings, CXX="/bin/false", **environment), "insists on it")
    result = build(settings=settings, BICO_BUILD="OFF", **environment)
    assert_failed(tmp_path, result, "BICO_CUDA is ON, but BICO_BUILD=OFF compiles nothing")


def test_a_wrong_value(build, tmp_path):
    assert_failed(tmp_path, build(BICO_BUILD="no"), "BICO_BUILD must be AUTO, ON or OFF, got no.")


def test_torch_is_required_where_something_can_be_compiled(build):
    hook = "get_requires_for_build_wheel"
    assert "torch>=2.11" in build(hook, CXX=sys.executable).stdout
    assert build(hook, CXX="/nonexistent/c++").stdout == "[]\n"
    assert build(hook, BICO_BUILD="OFF").stdout == "[]\n"
    assert "torch>=2.11" in build(hook, BICO_BUILD="ON", CXX="/nonexistent/c++").stdout


def test_the_source_distribution_has_its_backend(build, tmp_path):
    assert build("build_sdist").returncode == 0
    with tarfile.open(tmp_path / "bico_ext-0.1.0.tar.gz") as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {"build_backend/bico_build.py", "CMakeLists.txt", "csrc/attention.h"} <= names


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("choice", ["ON", "OFF"])
def test_setup_compiles_unless_told_otherwise(tmp_path, choice):
    command = ["make", "--dry-run", "setup", f"VENV={tmp_path / 'venv'}"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "BICO_BUILD"))}
    environment = inherited | ({"BICO_BUILD": choice} if choice == "OFF" else {})
    commands = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert ("'cmake>=3.25'" in commands) == (choice == "ON")
    assert ("cmake.define.BICO_EMULATOR=ON" in commands) == (choice == "ON")
    assert "-e '.[test,lint]'" in commands


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (["/elsewhere/bico_ext/__init__.py", "2.13.0", True], "comes from /elsewhere/bico_ext and not from the wheel"),
        (["{}/bico_ext/__init__.py", "2.13.0", False], "The wheel has no compiled part"),
    ],
)
def test_the_wheels_tests_refuse_what_is_not_the_wheel(tmp_path, monkeypatch, answer, sentence):
    answered = subprocess.CompletedProcess([], 0, json.dumps(answer).replace("{}", str(tmp_path)), "")
    monkeypatch.setattr(try_wheel, "isolated", lambda *_, **__: answered)
    with pytest.raises(SystemExit, match=sentence):
        try_wheel.check_installed(tmp_path / "bin" / "python", tmp_path)
