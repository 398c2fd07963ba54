"""The documentation names things that exist."""

import ast
import re

import pytest
from paths import ROOT

import bico_ext

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text()), f"{target}#{anchor}"


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings: lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_parse_and_import_what_exists(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "bico_ext":
                assert all(hasattr(bico_ext, alias.name) for alias in node.names), ast.unparse(node)


def test_the_readme_attach_example_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(), re.DOTALL)
    (block,) = (text for text in blocks if "attach(" in text)
    names: dict = {}
    exec(block, names)
    assert names["logits"].shape == (1, 6, 100)


def test_every_public_name_is_there_and_documented():
    for name in bico_ext.__all__:
        assert getattr(bico_ext, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'atach'"):
        bico_ext.atach  # noqa: B018
