"""Who may know whom: a wrong import or include is a design error, found here before a reader stumbles over it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each module may import only from those before it; modules of one row do not know each other.
PYTHON_LAYERS = [
    ["_C", "checkpoints", "files", "published", "reference", "rotary"],
    ["environment", "attention", "data", "draws", "masked", "inference"],
    ["models", "tokenization", "metrics", "results", "special_tokens"],
    ["causal", "denoising", "infilling", "blank_infilling"],
    ["synthetic", "berglund", "own_facts", "pairs"],
    ["couplets", "relations"],
    ["objectives", "rows", "gap", "merge", "likelihood", "ceiling", "leakage"],
    ["options", "systems", "pictures", "tables"],
    ["trainer", "generation", "page", "compare_config", "jobs"],
    ["evaluation", "blank_generation"],
    ["runs", "report", "probe", "probe_report"],
    ["compare"],
    ["cli"],
]
# The formats of `--data`, imported inside the function that needs them.
LAZY = {("data", format) for format in ("synthetic", "berglund", "own_facts", "couplets", "relations")}
CPP_MAY_INCLUDE = {
    "csrc": r'<\w+>|"\w+\.h"',
    "csrc/cpu": r'<[\w/]+(\.h)?>|"\w+\.h"|"\.\./\w+\.h"|"products/\w+\.h"',
    "csrc/cpu/isa": r'<[\w/]+(\.h)?>|"\w+\.h"|"\.\./(backward|kernels)\.h"|"\.\./products/amx_product\.h"',
    "csrc/cpu/products": r'<\w+(\.h)?>|<sanitizer/\w+\.h>|"\w+\.h"|"\.\./\.\./\w+\.h"|<emulator/device/amx\.h>',
    "csrc/cuda": r'<\w+>|"\w+\.(h|cuh)"|"\.\./\w+\.h"|"device/\w+\.h"',
    "csrc/cuda/device": r'<\w+>|<cuda_runtime\.h>|"\w+\.(h|cuh)"|"\.\./attention\.h"'
    r"|<emulator/device/(instructions|launch)\.h>",
    "csrc/cuda/simt": r'<\w+>|"\w+\.cuh"|"\.\./\w+\.(h|cuh)"|"\.\./device/launch\.h"',
    "csrc/cuda/tensor_core": r'<\w+>|"\w+\.(h|cuh)"|"(\.\./){1,2}\w+\.(h|cuh)"|"\.\./device/(instructions|launch)\.h"',
    "csrc/torch": r'<\w+>|"\w+\.h"|"\.\./\w+\.h"|"\.\./cpu/kernels\.h"|"\.\./cuda/attention\.h"'
    r"|<torch/csrc/(stable|inductor/aoti_torch/c)/.+>|<torch/headeronly/.+>",
    "csrc/python": r'<\w+>|<pybind11/.+>|"\.\./cpu/isa/isa\.h"',
    "python_tests/emulator": r'<\w+>|<pybind11/.+>|"machine/options\.h"|<cuda/attention\.h>',
    "python_tests/emulator/machine": r'<\w+>|<sanitizer/\w+\.h>|"\w+\.h"',
    "python_tests/emulator/device": r'<\w+>|"\.\./machine/machine\.h"|<cuda/device/numbers\.h>',
    "python_tests/emulator/kernels": r"<cuda/\w+/\w+\.cu>",
    "python_tests/emulator/planted": r'<\w+>|<pybind11/.+>|"\w+\.(h|cuh)"|<cuda/device/instructions\.h>',
}
HOUSE = {name: row for row, names in enumerate(PYTHON_LAYERS) for name in names}


def test_every_module_has_its_place():
    modules = {path.stem for path in (ROOT / "bico_ext").glob("*.py")} - {"__init__"}
    assert modules == set(HOUSE) - {"_C"}


@pytest.mark.parametrize("module", sorted(set(HOUSE) - {"_C"}))
def test_a_module_imports_only_from_its_left(module):
    imported = set()
    for node in ast.walk(ast.parse((ROOT / "bico_ext" / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "bico_ext":
            parts = node.module.split(".")[1:]
            imported |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("bico_ext.")}
    wrong = {name for name in imported if HOUSE[name] >= HOUSE[module] and (module, name) not in LAZY}
    assert not wrong, f"{module} may not import {wrong}"


@pytest.mark.parametrize("folder", CPP_MAY_INCLUDE)
def test_a_source_includes_only_what_its_folder_may(folder):
    sources = [path for suffix in ("*.h", "*.cpp", "*.cuh", "*.cu") for path in (ROOT / folder).glob(suffix)]
    assert sources
    for source in sources:
        for include in re.findall(r"^#include (\S+)", source.read_text(), re.MULTILINE):
            assert re.fullmatch(CPP_MAY_INCLUDE[folder], include), f"{source.name} may not include {include}"
