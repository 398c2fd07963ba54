"""The HTML page is valid and self-contained, and the output of a model stays text."""

import base64
import re
from html.parser import HTMLParser

import made_up
import pytest

from bico_ext.reports.html import html_page, sample

VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Checks that tags are balanced, and collects the text and the addresses."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.addresses = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"these tags are not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def plot(tmp_path):
    path = tmp_path / "accuracy.png"
    path.write_bytes(b"\x89PNG and so on")
    return path


def test_the_page_is_balanced_and_complete(plot):
    made = made_up.results()
    text = html_page(made_up.typed(made), made_up.predictions(made), {"Accuracy": plot})
    read = Reader(text)
    assert read.addresses == ["data:image/png;base64," + base64.b64encode(plot.read_bytes()).decode()]
    shown = "".join(read.text)
    for expected in (
        "bico-ext: ntp, bico on facts",
        "0.60 ± 0.28 of 0.80",  # a gap
        "Behold <{}> | now",  # a template
        "Eve",  # an entity
        "2.11.0",  # the environment
        "log-probability test",
        "loss, the objective itself",
        "GPT-3 175B",
        "bico, D2N: 4 of 8 right",
    ):
        assert expected in shown
    assert not re.search(r"https?://", text)


def test_the_output_of_a_model_is_escaped(plot):
    made = made_up.results()
    made["settings"]["model"] = "<img src=x>"
    made["runs"][0]["system"] = "<u>"
    evil = "<script>alert('&amp;')</script>\n\"'"
    answers = [
        row | {"prompt": evil, "target": evil, "task": task}
        for row in made_up.predictions(made, evil)
        for task in ("D2N", "<i>")
    ]
    for run in made["runs"]:
        run["tasks"]["<i>"] = run["tasks"]["D2N"]
    text = html_page(made_up.typed(made), answers, {"<b>": plot})
    assert not re.search("<(script|u|i|img src=x)>", text)
    shown = "".join(Reader(text).text)
    assert shown.count(evil) >= 3
    assert "<u>, <i>: 8 of 16 right" in shown


def test_all_right_answers_are_shown():
    made = made_up.results()
    answers = [row | {"also": [" Bo", " Cy"]} for row in made_up.predictions(made)]
    shown = Reader(html_page(made_up.typed(made), answers, {})).text
    assert " Ada or Bo or Cy" in shown


def test_old_results_and_no_predictions():
    text = html_page(made_up.typed(made_up.old_results()), [], {})
    shown = "".join(Reader(text).text)
    assert "Not recorded in these results." in shown
    assert "No predictions were found" in shown
    assert "0.60 ± 0.28" in shown


def test_samples_are_seeded_and_hold_right_and_wrong_answers():
    rows = [{"contains": number < 8, "number": number} for number in range(20)]
    chosen = sample(rows, "bico D2N")
    assert [row["contains"] for row in chosen] == [True] * 5 + [False] * 5
    assert len({row["number"] for row in chosen}) == 10
    assert chosen == sample(rows, "bico D2N")
    assert chosen != sample(rows, "bico N2D")
    assert [row["number"] for row in sample(rows[7:9], "x")] == [7, 8]
