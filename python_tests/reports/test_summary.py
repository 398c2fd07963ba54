"""The table that a command prints, whose cells are compared with numbers worked out by hand."""

import made_up
from made_up import typed

from bico_ext.comparison.systems import SYSTEMS
from bico_ext.reports.summary import summary_table


def cells(table):
    """Return the rows of a table by their first cell."""
    return {row[0]: list(row[1:]) for row in table.rows}


def test_the_summary_fits_on_a_screen():
    table = summary_table(typed(made_up.results()))
    assert table.columns == ["system", "N2D", "D2N", "N2D-reverse", "gap", "D2N-reverse", "gap"]
    assert cells(table) == {
        "ntp": ["0.40 ± 0.00", "0.90 ± 0.14", "0.00 ± 0.00", "0.90", "0.00 ± 0.00", "0.40"],
        "bico": ["0.60 ± 0.28", "0.90 ± 0.00", "0.40 ± 0.14", "0.50", "0.20 ± 0.14", "0.40"],
        "(ceiling)": ["0.80", "1.00", "1.00", "", "0.50", ""],
    }
    assert list(cells(table))[-1] == "(ceiling)"
    assert table.title.endswith("mean ± standard deviation over seeds 0, 1")
    assert table.note.endswith("minus reverse task (D2N minus N2D-reverse, N2D minus D2N-reverse)")
    assert max(map(len, table.text().splitlines())) <= 100


def test_the_summary_of_every_system_and_of_many_tasks_fits_too():
    names = [*SYSTEMS, "glm-abi, asked causally"]
    of_all = summary_table(typed(made_up.results({name: made_up.SCORES["bico"] for name in names})))
    assert max(map(len, of_all.text().splitlines())) <= 100
    many = {f"relation {number}": (0.5, 0.75) for number in range(6)}
    table = summary_table(typed(made_up.old_results({"ntp": many})))
    assert cells(table) == {"ntp": ["0.62"] * 6}, "without the spread"
    assert table.title.endswith("mean over seeds 0, 1")


def test_the_summary_ends_with_the_perplexity_if_it_was_measured():
    made = made_up.with_fluency(made_up.results())
    next(run for run in made["runs"] if run["system"] == "ntp")["fluency"]["perplexity"] = None
    table = summary_table(typed(made))
    assert table.rows[0][:3] == ["before fine-tuning", "0.40", "0.80"]
    assert table.columns[-1] == "perplexity"
    assert {name: row[-1] for name, row in cells(table).items()} == {
        "before fine-tuning": "10",
        "ntp": "NaN",  # one of two runs diverged
        "bico": "12",  # of 12 and 13
        "(ceiling)": "",
    }
    for run in made["runs"]:
        if run["system"] == "ntp":
            del run["fluency"]
    assert cells(summary_table(typed(made)))["ntp"][-1] == "-", "not measured"
    of_all = summary_table(typed(made_up.with_fluency(made_up.results(dict.fromkeys(SYSTEMS, made_up.SCORES["bico"])))))
    assert max(map(len, of_all.text().splitlines())) <= 100


def test_the_summary_of_a_single_run_without_reverse_tasks():
    table = summary_table(typed(made_up.old_results({"ntp": {"next line": (0.5,)}})))
    assert table.text() == ("Share of answers that contain the target, seed 0\n\n  system  next line\n  ntp     0.50\n")
