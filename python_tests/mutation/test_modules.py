"""The tables of `make mutate` name files that exist, every module of their folders, and lines that are still there."""

import yaml
from paths import ROOT

HERE = ROOT / "python_tests" / "mutation"
MODULES = yaml.safe_load((HERE / "modules.yaml").read_text(encoding="utf-8"))["modules"]
EQUIVALENT = yaml.safe_load((HERE / "equivalent.yaml").read_text(encoding="utf-8"))


def test_every_module_and_its_tests_exist():
    for entry in MODULES:
        assert entry["tests"]
        assert [name for name in (entry["module"], *entry["tests"]) if not (ROOT / name).exists()] == []


def test_no_module_of_a_mutated_folder_is_left_out():
    named = {entry["module"] for entry in MODULES}
    for folder in ("facts", "objectives"):
        there = {f"bico_ext/{folder}/{path.name}" for path in (ROOT / "bico_ext" / folder).glob("*.py")}
        assert there - {f"bico_ext/{folder}/__init__.py"} <= named


def test_explanations_are_of_lines_that_are_there():
    assert set(EQUIVALENT) <= {entry["module"] for entry in MODULES}
    for module, entries in EQUIVALENT.items():
        lines = {line.strip() for line in (ROOT / module).read_text(encoding="utf-8").splitlines()}
        for entry in entries:
            assert set(entry) == {"before", "after", "why"}
            assert set(entry["before"].split("\n")) <= lines, entry["before"]
            assert entry["why"].endswith(".")
