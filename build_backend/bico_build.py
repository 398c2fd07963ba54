"""The build backend: scikit-build-core, and the pure-Python package where nothing can be compiled.

The environment variable BICO_BUILD decides:
    AUTO  compile; where that fails, leave out first the CUDA kernels and then, for the pure-Python package, everything
          that is compiled, and say why (the default)
    ON    compile or fail (the default of editable installations, and wherever a define such as BICO_CUDA is ON)
    OFF   compile nothing; pyproject.toml has the override that leaves CMake out
"""

import contextlib
import itertools
import os
import platform
import re
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

try:
    from scikit_build_core import build as backend
except ImportError:
    sys.exit(
        "bico-ext is built by scikit-build-core, which is not installed: pip install scikit-build-core, or let pip "
        "fetch it by leaving out --no-build-isolation."
    )

Settings = Mapping[str, str | list[str]] | None
TO_COMPILE = ["pybind11>=2.13", "torch>=2.11"]  # cmake and ninja are added by scikit-build-core
MACHINES = {"x86_64", "AMD64"}
INSIST = "BICO_BUILD=ON pip install -v --no-build-isolation"
NO_CUDA = "-- no CUDA kernels: "  # CMakeLists.txt prints it
COMPILER_ERROR = re.compile(r"\berror\s*:|\b(nvcc|cicc|ptxas|nvlink) fatal\b|\bld: cannot find\b", re.IGNORECASE)
CUDA_ERROR = re.compile(  # in a file that only builds with CUDA have, in a library, or in a message of CMake
    r"(FAILED:|\*\*\*)[^\n]*(\.cu|/cuda\.cpp|cuda/dispatch\.cpp)\.o\b"
    r"|ld: cannot find -l(torch_)?cuda|^CMake Error(?:[^\n]|\n(?=\n|  ))*CUDA",
    re.MULTILINE,
)

build_sdist = backend.build_sdist
get_requires_for_build_sdist = backend.get_requires_for_build_sdist


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return _requirements(backend.get_requires_for_build_wheel, config_settings, "AUTO")


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return _requirements(backend.get_requires_for_build_editable, config_settings, "ON")


# There are no hooks that prepare metadata: the wheel's tag is known once the compiler has succeeded or failed.
def build_wheel(directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    return _build(backend.build_wheel, "AUTO", directory, config_settings, metadata_directory)


def build_editable(directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    return _build(backend.build_editable, "ON", directory, config_settings, metadata_directory)


def wanted(config_settings: Settings, default: str) -> str:
    """Return what BICO_BUILD asks for, or `default`; a define that is ON insists, as no pure package could obey it."""
    value = os.environ.get("BICO_BUILD") or default
    if value not in ("AUTO", "ON", "OFF"):
        sys.exit(f"BICO_BUILD must be AUTO, ON or OFF, got {value}.")
    given = (config_settings or {}).items()
    settings = [f"{name}={one}" for name, values in given for one in ([values] if isinstance(values, str) else values)]
    settings += [os.environ.get(name, "") for name in ("CMAKE_ARGS", "SKBUILD_CMAKE_ARGS", "SKBUILD_CMAKE_DEFINE")]
    define = re.search(r"(BICO_(?!CUDA_ARCH)\w+)(:\w+)?=(ON|1|TRUE|YES|Y)\b", "\n".join(settings), re.IGNORECASE)
    if define and value == "OFF":
        sys.exit(f"{define[1]} is ON, but BICO_BUILD=OFF compiles nothing; leave out one of them.")
    return "ON" if define else value


def obstacle() -> str | None:
    """Return what rules out compiling before CMake is asked, so that no torch is fetched for nothing."""
    if platform.machine() not in MACHINES:
        return f"bico-ext has kernels for x86-64 CPUs only, and this is {platform.machine()}."
    compilers = [shlex.split(os.environ["CXX"])[0]] if os.environ.get("CXX", "").strip() else ["c++", "g++"]
    if not any(shutil.which(compiler) for compiler in compilers):
        return f"there is no C++ compiler ({' or '.join(compilers)}): install g++ 12 or newer, or set CXX."
    return None


def _requirements(ask: Callable[..., list[str]], config_settings: Settings, default: str) -> list[str]:
    choice = wanted(config_settings, default)
    if choice == "AUTO" and obstacle():
        choice = "OFF"
    os.environ["BICO_BUILD"] = choice
    return ask(config_settings) + (TO_COMPILE if choice != "OFF" else [])


def _build(build: Callable[..., str], default: str, directory: str, config_settings: Settings, metadata: Any) -> str:
    choice = wanted(config_settings, default)
    os.environ["BICO_BUILD"] = choice
    if choice == "OFF":
        return build(directory, config_settings, metadata)
    if choice == "ON":
        try:
            return _compiled(build, directory, config_settings, metadata)
        except _NotCompiledError as error:
            sys.exit(
                f"\nbico-ext was not compiled, and this build insists on it: {error} "
                + ("CMAKE_ARGS=-DBICO_CUDA=OFF leaves out the CUDA kernels. " if error.of_cuda else "")
                + "To install the pure-Python package instead, set BICO_BUILD=OFF and leave out defines that are ON."
            )
    reason = obstacle()
    if reason is None:
        try:
            return _compiled(build, directory, config_settings, metadata)
        except _NotCompiledError as error:
            reason, of_cuda = str(error), error.of_cuda
        if of_cuda:
            try:
                name = _compiled(build, directory, _without_cuda(config_settings), metadata)
            except _NotCompiledError as error:
                reason = str(error)
            else:
                _report_no_cuda(reason)
                return name
    os.environ["BICO_BUILD"] = "OFF"
    name = build(directory, config_settings, metadata)
    print(
        f"\nbico-ext was not compiled, so this is the pure-Python package: {reason} To insist on compiling: {INSIST} .",
        flush=True,
    )
    return name


class _NotCompiledError(Exception):
    """Why a build has failed; `of_cuda`: a CUDA kernel or the search for CUDA was among what failed."""

    def __init__(self, reason: str, of_cuda: bool) -> None:
        super().__init__(reason)
        self.of_cuda = of_cuda


def _compiled(build: Callable[..., str], directory: str, settings: Settings, metadata: Any) -> str:
    lines: list[str] = []
    try:
        with _recorded(lines):
            name = build(directory, settings, metadata)
    except (Exception, SystemExit) as error:
        reason = first_error(lines, error)
        if type(error).__name__.endswith("NotFoundError"):  # cmake or ninja
            reason = f"{reason.rstrip('.')}: pip install cmake ninja."
        raise _NotCompiledError(reason, bool(CUDA_ERROR.search("\n".join(lines)))) from error
    for line in lines:
        if line.startswith(NO_CUDA):
            _report_no_cuda(_sentence(line.removeprefix(NO_CUDA)))
    return name


def _without_cuda(settings: Settings) -> dict[str, Any]:
    """Return the settings of a build without CUDA kernels, in a folder of its own: CMake would keep the choice."""
    os.environ.pop("SKBUILD_BUILD_DIR", None)
    kept = {name: value for name, value in (settings or {}).items() if name not in ("build-dir", "skbuild.build-dir")}
    return {**kept, "cmake.define.BICO_CUDA": "OFF"}


def _report_no_cuda(reason: str) -> None:
    insist = f"{INSIST} -C cmake.define.BICO_CUDA=ON ."
    print(f"\nbico-ext was compiled without its CUDA kernels: {reason} To insist on them: {insist}", flush=True)


@contextlib.contextmanager
def _recorded(lines: list[str]) -> Iterator[None]:
    """Append to `lines` what this process and its children print, and print it all the same."""
    reading, writing = os.pipe()
    kept = os.dup(1), os.dup(2)

    def copy() -> None:
        with open(reading, encoding="utf-8", errors="replace") as output:
            for line in output:
                lines.append(line.rstrip())
                os.write(kept[0], line.encode())

    thread = threading.Thread(target=copy)
    thread.start()
    _redirect(writing, writing)
    os.close(writing)
    try:
        yield
    finally:
        _redirect(*kept)  # which closes the last writing end, so the thread ends
        thread.join()
        for descriptor in kept:
            os.close(descriptor)


def _redirect(out: int, err: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)


def first_error(lines: list[str], error: BaseException) -> str:
    """Return the first error in the output of CMake or a compiler as one sentence; otherwise, the exception."""
    for number, line in enumerate(lines):
        if line.startswith("CMake Error at"):
            message = list(itertools.takewhile(lambda text: not text or text.startswith("  "), lines[number + 1 :]))
            quoted = next(filter(COMPILER_ERROR.search, message), None)  # from what CMake has tried to compile
            return _sentence(quoted or _first_sentence(message) or line)
        if COMPILER_ERROR.search(line) and not line.startswith(("--", "[")):
            return _sentence(line.removeprefix("CMake Error: "))
    return _sentence(str(error) if isinstance(error, Exception) and str(error) else "the build failed")


def _first_sentence(message: list[str]) -> str:
    """Return the first paragraphs, up to one that ends a sentence."""
    text = ""
    for line in message:
        if not line and text.endswith((".", "!")):
            break
        text = f"{text} {line}"
    return text.strip()


def _sentence(text: str) -> str:
    text = " ".join(text.split()).rstrip(": ")
    return text if text.endswith((".", "!")) else text + "."
