"""Who may know whom: a wrong import or include is a design error, found here before a reader stumbles over it."""

import ast
import re
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "bico_ext"
# Each folder may import from itself, from the rows above its own, and from the modules at the root of the package.
# The method comes first, then the study, which compares systems with it.
LAYERS = [
    ["ops"],
    ["models"],
    ["objectives"],
    ["training", "generation"],
    ["facts"],
    ["evaluation"],
    ["reports"],
    ["comparison", "probing"],
    ["cli"],
]
FOUNDATION = {
    "_C",
    "_emulator",
    "_planted",
    "bounds",
    "cjk",
    "environment",
    "extras",
    "files",
    "seeding",
}  # at the root; they know none of the folders
METHOD = {"ops", "models", "objectives", "training", "generation"}
MOST_FILES, MOST_LINES = 12, 400
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
    "python_tests/emulator": r'<\w+>|<pybind11/.+>|"machine/(banks|options)\.h"|<cuda/attention\.h>',
    "python_tests/emulator/machine": r'<\w+>|<sanitizer/\w+\.h>|"\w+\.h"',
    "python_tests/emulator/device": r'<\w+>|"\.\./machine/machine\.h"|<cuda/device/numbers\.h>',
    "python_tests/emulator/sources": r"<cuda/\w+/\w+\.cu>",
    "python_tests/emulator/planted": r'<\w+>|<pybind11/.+>|"\w+\.(h|cuh)"|<cuda/device/instructions\.h>',
}


def may_import(folder: str) -> set[str]:
    """The folders that a folder may import from."""
    (row,) = (number for number, names in enumerate(LAYERS) if folder in names)
    above = {name for names in LAYERS[:row] for name in names}
    # Facts and what is built on them may use the method, never the reverse: the rows say so already.
    return above | {folder}


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, wherever in the file, dotted and without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "bico_ext":
            inner = node.module.partition(".")[2]
            found |= {".".join(filter(None, (inner, alias.name))) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("bico_ext.")}
    return found


def test_every_folder_has_its_row():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == {name for names in LAYERS for name in names}


@pytest.mark.parametrize("folder", [name for names in LAYERS for name in names])
def test_a_folder_imports_only_what_stands_above_it(folder):
    for path in (PACKAGE / folder).glob("*.py"):
        wrong = {name for name in imports(path) if name.split(".")[0] not in may_import(folder) | FOUNDATION}
        assert not wrong, f"{folder}/{path.name} may not import {wrong}"


def test_the_root_modules_know_no_folder():
    for path in PACKAGE.glob("*.py"):
        if path.name != "__init__.py":
            assert {name.split(".")[0] for name in imports(path)} <= FOUNDATION, path.name


def test_the_study_stands_below_the_method():
    rows = {name: row for row, names in enumerate(LAYERS) for name in names}
    assert max(rows[name] for name in METHOD) < min(rows[name] for name in set(rows) - METHOD)


def test_no_two_modules_import_each_other():
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    known = {
        module: {name for one in imports(path) for name in (one, one.rpartition(".")[0]) if name in modules}
        for module, path in modules.items()
    }
    while leaves := [module for module, needed in known.items() if not needed]:
        for leaf in leaves:
            del known[leaf]
        for needed in known.values():
            needed.difference_update(leaves)
    assert not known, f"import circle among {', '.join(sorted(known))}"


SOURCES = [
    path
    for top in ("bico_ext", "csrc", "python_tests", "benchmarks", "examples")
    for path in sorted((ROOT / top).rglob("*"))
    if path.suffix in (".py", ".h", ".cpp", ".cuh", ".cu", ".sh")
]


def test_no_folder_is_crowded_and_no_file_is_long():
    counts: dict[Path, int] = {}
    for path in SOURCES:
        counts[path.parent] = counts.get(path.parent, 0) + 1
        assert len(path.read_text().splitlines()) <= MOST_LINES, path
    crowded = {str(folder.relative_to(ROOT)): count for folder, count in counts.items() if count > MOST_FILES}
    assert not crowded


@pytest.mark.parametrize("folder", CPP_MAY_INCLUDE)
def test_a_source_includes_only_what_its_folder_may(folder):
    sources = [path for suffix in ("*.h", "*.cpp", "*.cuh", "*.cu") for path in (ROOT / folder).glob(suffix)]
    assert sources
    for source in sources:
        for include in re.findall(r"^#include (\S+)", source.read_text(), re.MULTILINE):
            assert re.fullmatch(CPP_MAY_INCLUDE[folder], include), f"{source.name} may not include {include}"
