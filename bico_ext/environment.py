"""The environment that a result was measured in: versions, instruction sets, threads, CUDA."""

import json
import os
import platform
import subprocess
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import torch
import transformers

try:
    import bico_ext._C as _C
except ImportError:
    _C = None  # type: ignore[assignment]


def describe() -> dict[str, Any]:
    """Return the versions and the machine, ready for JSON.

    Example:
        >>> describe()["python"] == platform.python_version()
        True
    """
    return {
        "bico_ext": version("bico-ext"),
        "commit": _commit(Path(__file__).parents[1]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "built_with_torch": _C.built_with_torch if _C else None,
        "compiler": _C.compiler if _C else None,
        "transformers": transformers.__version__,
        "cpu": _cpu_name(),
        "instruction_sets": sorted(name for name, present in _C.instruction_sets().items() if present) if _C else [],
        "kernels": _kernels(),
        "why_these_kernels": _why_these_kernels(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "cuda_kernels": (_C.cuda_kernels or None) if _C else None,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
    }


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _commit(root: Path) -> str | None:
    """Return the commit that runs: of a checkout, with "-dirty" if files were changed, or that pip installed by git.

    Args:
        root: the folder that holds the package.

    Returns:
        None if it is unknown, as in a wheel, whose version tells enough, or where there is no git.
    """
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None
    origin = json.loads(distribution("bico-ext").read_text("direct_url.json") or "{}")  # PEP 610
    return origin.get("vcs_info", {}).get("commit_id")


def _kernels() -> str:
    """Return the instruction set whose kernels run here, or the reason why none do."""
    if _C is None:
        return "none: nothing is compiled here"
    try:
        return _C.chosen_instruction_set()
    except RuntimeError as error:  # this CPU has none, or BICO_ISA is wrong; the other fields are still of use
        return f"none: {error}"


def _why_these_kernels() -> str | None:
    """Return why the kernels of this instruction set run; None if none do."""
    try:
        return _C.why_chosen() if _C else None
    except RuntimeError:
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
