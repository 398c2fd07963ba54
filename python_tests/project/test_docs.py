"""The documentation names things that exist, its examples run, and its numbers are those of the results."""

import ast
import importlib
import json
import pkgutil
import re
import runpy
from collections import Counter
from pathlib import Path
from statistics import mean, stdev

import matplotlib
import pytest
import torch
import yaml
from matplotlib.image import imread
from paths import ROOT
from PIL import Image
from real_llama_cells import matrix
from real_llama_cells.matrix import Cell
from real_llama_cells.records import by_name, cell_of, read_cells, scores_of
from transformers import LlamaConfig, LlamaForCausalLM

import bico_ext
from bico_ext.models.tokenization import train_word_tokenizer
from bico_ext.ops import reference

README, CHANGELOG = ROOT / "README.md", ROOT / "CHANGELOG.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
CELLS = ROOT / "docs" / "results" / "real_llama" / "cells.jsonl"
PAGES = [README, ROOT / "CONTRIBUTING.md", CHANGELOG, *DOCS, ROOT / "examples" / "README.md"]
OF_EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@OF_EVERY_PAGE
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text()), f"{target}#{anchor}"


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings: lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@OF_EVERY_PAGE
def test_python_examples_parse_and_import_what_exists(page):
    for block in python_blocks(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bico_ext":
                home = importlib.import_module(node.module)
                assert all(hasattr(home, alias.name) for alias in node.names), ast.unparse(node)


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@OF_EVERY_PAGE
def test_files_and_modules_in_the_text_exist(page):
    text = page.read_text()
    folders = "bico_ext|build_backend|csrc|python_tests|benchmarks|configs|docs|examples"
    missing = [path for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", text) if not (ROOT / path).exists()]
    assert not missing
    unknown = [name for name in re.findall(r"`(bico_ext(?:\.\w+)+)", text) if not resolves(name)]
    assert not unknown


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_every_public_name_is_there_and_documented():
    for name in set(bico_ext.__all__) - {"__version__"}:
        assert getattr(bico_ext, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'atach'"):
        bico_ext.atach  # noqa: B018


def test_commands_that_install_extras_work_in_a_clone():
    """They name extras that exist, and install as the README does. The package is in no index yet."""
    files = [*PAGES, *(ROOT / "configs").iterdir(), *(ROOT / "bico_ext").rglob("*.py")]
    texts = {file: " ".join(file.read_text().replace("#", " ").split()) for file in files}
    assert not [file for file, text in texts.items() if "bico-ext[" in text]
    extras = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    named = [name for text in texts.values() for name in re.findall(r"install\([\"'](\w+)[\"']\)", text)]
    for text in texts.values():
        for command, names in re.findall(r"(pip install [^`]{0,30})\"\.\[([\w,]+)\]\"", text):
            assert command == "pip install --no-build-isolation "
            named += names.split(",")
    assert {"hub", "lora", "qlora", "real"} <= set(named) <= set(re.findall(r"^([\w-]+) = \[", extras, re.MULTILINE))
    assert "pip install --no-build-isolation ." in README.read_text()


def test_the_readme_is_short():
    assert len(README.read_text().split()) <= 600  # all of it: code, tables and links count


def test_the_readme_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer = train_word_tokenizer(["Daphne Barrington directed A Journey Through Time, which was directed by her."])
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    for part in (tokenizer, LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))):
        part.save_pretrained("path/to/llama")
    (block,) = python_blocks(README)
    assert "max_steps=1000" in block
    names: dict = {}
    exec(block.replace("max_steps=1000", "max_steps=2, use_cpu=True"), names)
    assert names["trainer"].state.global_step == 2
    printed = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    assert [type(answer) for answer in printed] == [str]
    names["trainer"].save_model()
    assert LlamaForCausalLM.from_pretrained("out").config.hidden_size == 32


def test_the_readme_table_is_that_of_the_cells():
    records = [record for record in read_cells(CELLS) if "run" in record]
    shown = rows(README.read_text())
    tasks = shown.pop("system")
    assert tasks == list(bico_ext.load_facts("synthetic").tasks)
    assert shown.pop("(ceiling)") == [f"{records[0]['data']['tasks'][task]['reachable']:.2f}" for task in tasks]
    assert list(shown) == ["ntp", "bico", "infill", "infill-causal", "permute"]
    scores = scores_of(by_name(records))
    chosen = {row.name: row.chosen for row in matrix.rows(scores)}
    for system, cells in shown.items():
        names = [f"full/{system}/{chosen[system]:g}/seed{seed}" for seed in (2, 3, 4)]
        runs = [record["run"]["tasks"] for name in names for record in records if name_of(record) == name]
        assert len(runs) == len(names)
        values = [[run[task]["contains"] for run in runs] for task in tasks]
        assert cells == [f"{mean(value):.2f} ± {stdev(value):.2f}" for value in values]


def test_what_the_flip_costs_the_real_llama_is_that_of_the_cells():
    records = by_name(read_cells(CELLS))
    page = (ROOT / "docs" / "understanding.md").read_text()
    shown = rows(re.search(r"\| setting \| seeds .*?\n\n", page, re.DOTALL)[0])

    def values(system: str, rate: float, seed: int) -> list[float]:
        run = records[Cell("full", system, rate, seed).name]["run"]
        losses = {entry["step"]: entry[f"loss_{system}"] for entry in run["losses"]}
        reverse = [run["tasks"][task]["contains"] for task in ("N2D-reverse", "D2N-reverse")]
        return [losses[25], losses[50], losses[75], losses[100], losses[max(losses)], *reverse]

    for rate, label, seeds in (1e-4, "rate 1e-4", 2), (3e-4, "rate 3e-4", 5), (6e-4, "rate 6e-4", 5):
        pairs = [(values("bico", rate, seed), values("naive", rate, seed)) for seed in range(seeds)]
        differences = [[flip - plain for flip, plain in zip(*pair, strict=True)] for pair in pairs]
        expected = [f"{mean(each):+.2f} ± {stdev(each):.2f}" for each in zip(*differences, strict=True)]
        assert [cells[1:] for name, cells in shown.items() if name.endswith(label)] == [expected]


def name_of(record: dict) -> str:
    return cell_of(record).name


def rows(text: str) -> dict[str, list[str]]:
    """The cells of the only table of a text by those of its first column."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| [^-]", line)]
    return {first: rest for first, *rest in lines}


def test_the_counts_of_the_robustness_page_are_those_of_the_results():
    page, results = (ROOT / "docs" / "robustness.md").read_text(), ROOT / "docs" / "results" / "robustness"
    fuzz = json.loads((results / "fuzz.json").read_text())
    assert f"SEED={fuzz['seed']}" in page
    shown = rows(re.search(r"\| kernels .*?\n\n", page, re.DOTALL)[0])
    counts = {f"`{name}`": [f"{x['cases']:,}", f"{len(x['failures'])}"] for name, x in fuzz["targets"].items()}
    assert {name: cells[:2] for name, cells in shown.items() if name != "kernels"} == counts
    trials = [trial for run in json.loads((results / "faults.json").read_text()) for trial in run["trials"]]
    assert not any(trial["wrong"] for trial in trials)
    happened = [(trial["command"], fault.split()[0]) for trial in trials for fault in trial["faults"]]
    for command, (kills, disks, damages, wrong) in rows(re.search(r"\| command .*?\n\n", page, re.DOTALL)[0]).items():
        if command != "command":
            faults = [fault for name, fault in happened if f"`bico {name}`" in command and fault != "ended"]
            kinds = ("SIG" if fault.startswith("SIG") else "disk" if fault == "disk" else "file" for fault in faults)
            counts = Counter(kinds)
            shown = [f"{counts['SIG']} times", f"{counts['disk']} sizes", f"{counts['file']} times", "0"]
            assert [kills, disks, damages, wrong] == shown
    mutants = (results / "mutants.md").read_text()
    assert rows(mutants)["all"] == rows(re.search(r"\| module .*?\n\n", page, re.DOTALL)[0])["all"]


def test_the_index_links_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in DOCS if page.name != "README.md" and f"]({page.name})" not in index] == []


def test_the_tree_of_the_architecture_page_is_that_of_the_folders():
    page = (ROOT / "docs" / "architecture.md").read_text()
    tree = re.search(r"```\n(.*?)```", page, re.DOTALL)[1]
    modules = {path.stem for path in (ROOT / "bico_ext").rglob("*.py")} - {"__init__"}
    below = [path for source in ("bico_ext", "csrc") for path in (ROOT / source).rglob("*") if path.is_dir()]
    folders = {f"{path.name}/" for path in below} - {"__pycache__/"}
    assert [name for name in sorted(modules) if not re.search(rf"\b{name}\b", tree)] == []
    assert [name for name in sorted(folders) if name not in tree] == []
    assert [name for name in re.findall(r"(\w+)/", tree) if not any(ROOT.glob(f"**/{name}/"))] == []


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "preferred-citation"} <= citation.keys()
    assert citation["version"] == version == bico_ext.__version__
    assert citation["license"] == "Apache-2.0"
    assert f"## [Unreleased], {version}\n" in CHANGELOG.read_text()


def test_the_sizes_of_llama_are_those_of_transformers():
    """The parameters of Llama 2 7B, whose configuration is transformers' default."""
    computed = runpy.run_path(str(ROOT / "docs" / "scale_tables.py"))["MODELS"][0]
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())
    assert computed.parameters == model.num_parameters()
    assert computed.adapters(32) == sum(
        32 * sum(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    )


def test_the_tables_of_scale_are_computed():
    computed = runpy.run_path(str(ROOT / "docs" / "scale_tables.py"))
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert computed["weights_table"]() in page
    assert computed["texts_table"]() in page


def test_the_triangles_are_drawn_by_their_script(tmp_path):
    committed = ROOT / "docs" / "triangles.png"
    drawn_by = Image.open(committed).info["Software"].split(",")[0]
    if drawn_by != f"Matplotlib version{matplotlib.__version__}":
        pytest.skip(f"docs/triangles.png is by {drawn_by}, and this is {matplotlib.__version__}: letters may differ")
    runpy.run_path(str(ROOT / "docs" / "draw_triangles.py"))["draw"](tmp_path / "triangles.png")
    assert (imread(tmp_path / "triangles.png") == imread(committed)).all()


@pytest.mark.parametrize(("mirror", "name"), [(False, "plain_distance"), (True, "split_distance")])
def test_the_triangles_show_the_distances_of_the_reference(mirror, name):
    script = runpy.run_path(str(ROOT / "docs" / "draw_triangles.py"))
    length, distance = script["LENGTH"], script[name]
    q, k = torch.randn(2, 1, 1, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angle = torch.arange(length, dtype=torch.float64)[None, :, None].expand(1, length, 2) * 0.3  # under half a circle

    def score(m: int, n: int) -> torch.Tensor:
        rotated = reference.rotate(k, (0.3 * distance(m, n) * one).cos(), (0.3 * distance(m, n) * one).sin(), False)
        return (q * rotated).sum()

    one = torch.ones(1, 1, 2, dtype=torch.float64)
    v = torch.eye(length, dtype=torch.float64)[None, None]  # the output of query m is its row of weights
    same_q, same_k = (x.expand(1, 1, length, 2) for x in (q, k))
    weights, lse = reference.split_triangle_attention(
        same_q, same_k, v, angle.cos(), angle.sin(), scale=1.0, mirror=mirror, return_lse=True
    )
    expected = torch.stack([torch.stack([score(m, n) for n in range(length)]) for m in range(length)])
    torch.testing.assert_close(weights[0, 0].log() + lse[0, 0, :, None], expected)
