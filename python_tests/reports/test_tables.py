"""The tables of a report, whose cells are compared with numbers worked out by hand."""

import made_up
import pytest
from made_up import typed

from bico_ext.evaluation.intervals import wilson_interval
from bico_ext.reports.tables import (
    Table,
    entity_tables,
    fluency_tables,
    gap_tables,
    heading,
    likelihood_tables,
    loss_tables,
    published_tables,
    score_tables,
    template_tables,
)


def cells(table):
    """Return the rows of a table by their first cell."""
    return {row[0]: list(row[1:]) for row in table.rows}


def test_scores_are_means_and_standard_deviations_over_seeds():
    contains, published, exact, *_ = score_tables(typed(made_up.results()))
    assert contains.columns == ["system", "N2D", "D2N", "N2D-reverse", "D2N-reverse"]
    assert cells(contains) == {
        "ntp": ["0.40 ± 0.00", "0.90 ± 0.14", "0.00 ± 0.00", "0.00 ± 0.00"],
        "bico": ["0.60 ± 0.28", "0.90 ± 0.00", "0.40 ± 0.14", "0.20 ± 0.14"],
        "(ceiling)": ["0.80", "1.00", "1.00", "0.50"],
    }
    assert published.title == "published, not ours"
    assert exact.title == "exact_match"
    assert list(cells(exact)) == ["ntp", "bico"], "only `contains` has a ceiling"


def test_answers_right_in_any_wording_have_a_table_if_all_runs_have_the_score():
    made = made_up.results()
    assert "any_wording" not in [table.title for table in score_tables(typed(made))]
    for run in made["runs"]:
        run["tasks"]["D2N-reverse"]["any_wording"] = 0.5 + run["seed"] / 5
    _, table, published, *_ = score_tables(typed(made))
    assert (table.title, table.columns) == ("any_wording", ["system", "D2N-reverse"])
    assert cells(table) == {"ntp": ["0.60 ± 0.14"], "bico": ["0.60 ± 0.14"]}
    assert published.title == "published, not ours"
    del made["runs"][0]["tasks"]["D2N-reverse"]["any_wording"]  # a run of an older version
    assert "any_wording" not in [table.title for table in score_tables(typed(made))]


def test_echoes_have_a_table_of_their_own():
    made = made_up.results()
    for run in made["runs"]:
        run["tasks"]["N2D-reverse"]["echo"] = 0.25
    table = score_tables(typed(made))[1]
    assert (table.title, table.columns) == ("echo", ["system", "N2D-reverse"])
    assert cells(table)["ntp"] == ["0.25 ± 0.00"]


def test_a_single_seed_comes_with_its_wilson_interval():
    made = made_up.old_results({"bico": {"D2N": (0.3,)}})
    low, high = wilson_interval(3, 10)
    made["runs"][0]["tasks"]["D2N"]["contains_interval"] = [low, high]
    contains, *_, bleu_char, _ = score_tables(typed(made))
    assert cells(contains) == {"bico": [f"0.30 [{low:.2f}, {high:.2f}]"]}
    assert cells(contains)["bico"] == ["0.30 [0.11, 0.60]"]
    assert cells(bleu_char) == {"bico": ["0.30"]}
    del made["runs"][0]["tasks"]["D2N"]["contains_interval"]
    assert cells(score_tables(typed(made))[0]) == {"bico": ["0.30"]}


def test_a_single_seed_comes_with_its_interval_over_entities():
    made = made_up.old_results({"bico": {"D2N": (0.3,)}})
    made["runs"][0]["tasks"]["D2N"] |= {"contains_interval": [0.2, 0.4], "contains_entity_interval": [0.11, 0.52]}
    assert cells(score_tables(typed(made))[0])["bico"] == ["0.30 [0.11, 0.52]"]
    assert "95 % interval (over entities if questions share them, else Wilson's) of a" in heading(typed(made))


def test_the_heading_explains_the_cells():
    items = "Test items: N2D 10, D2N 10, N2D-reverse 10, D2N-reverse 10."
    assert heading(typed(made_up.results())) == f"Seeds 0, 1; mean over seeds ± standard deviation. {items}"
    single = made_up.old_results({"ntp": {"D2N": (0.3,)}})
    assert heading(typed(single)) == "Seed 0; in brackets: 95 % Wilson interval of a single run. Test items: D2N 10."
    del single["runs"][0]["seed"]
    assert heading(typed(single)) == "In brackets: 95 % Wilson interval of a single run. Test items: D2N 10."


def test_the_heading_names_the_runs_that_failed():
    failed = made_up.results() | {"failures": [{"system": "infill", "seed": 1, "error": "OSError: no room left"}]}
    assert heading(typed(failed)).endswith(" These runs failed and are in no table: infill with seed 1.")


def test_seeds_are_shown_if_systems_differ_in_them():
    made = made_up.results()
    del made["runs"][3]  # bico, seed 1
    contains = score_tables(typed(made))[0]
    assert contains.columns[:2] == ["system", "seeds"]
    assert {name: row[0] for name, row in cells(contains).items()} == {"ntp": "0, 1", "bico": "0", "(ceiling)": "-"}
    assert cells(contains)["bico"][1] == "0.40 [0.05, 0.95]"
    assert gap_tables(typed(made))[0].columns[1] == "seeds"


def test_a_task_that_no_run_of_a_system_has_is_left_blank():
    made = made_up.results()
    for run in made["runs"][2:]:
        del run["tasks"]["N2D"]
    assert cells(score_tables(typed(made))[0])["bico"] == ["-", "0.90 ± 0.00", "0.40 ± 0.14", "0.20 ± 0.14"]


def test_gaps_of_scores_and_of_shares_of_the_ceilings():
    name, description = gap_tables(typed(made_up.results()))
    assert (name.title, description.title) == ("N2D-reverse against D2N", "D2N-reverse against N2D")
    assert cells(description)["bico"] == [
        "0.60 ± 0.28 of 0.80",
        "0.20 ± 0.14 of 0.50",
        "0.40 ± 0.14",  # 0.3, 0.5
        "0.75 ± 0.35",  # 0.5, 1.0
        "0.40 ± 0.28",  # 0.2, 0.6
        "0.35 ± 0.07",  # 0.3, 0.4
    ]
    old = gap_tables(typed(made_up.old_results()))[1]
    assert cells(old)["bico"] == ["0.60 ± 0.28", "0.20 ± 0.14", "0.40 ± 0.14"]
    assert old.note.endswith("the ceilings are not recorded")


def test_published_scores_are_shown_for_their_tasks_only():
    (published,) = published_tables(typed(made_up.results()))
    assert cells(published)["GPT-3 175B, NTP"] == [
        "0.500",
        "0.967",
        "0.000",
        "0.001",
        '"exact match"; their script: starts with the target',
        "Berglund et al., arXiv 2309.12288",
    ]
    assert cells(published)["Llama, BICO"][:4] == ["-", "-", "about 0.70", "hardly moves"]
    assert cells(published)["GLM, ABI"][2] == "about 0.80"
    assert "not measured here" in published.note
    assert "Llama 3.2 1B Instruct, NTP" not in cells(published), "it has no score in these tasks"
    assert published_tables(typed(made_up.old_results({"ntp": {"next line": (0.5,)}}))) == []


def test_templates_with_their_ceiling_and_unseen_words():
    tables = template_tables(typed(made_up.results()))
    assert [table.title for table in tables] == [f"{task} by template" for task in made_up.CEILINGS]
    assert tables[3].columns == ["template", "items", "ceiling", "ntp", "bico", "words unseen in training"]
    assert cells(tables[3]) == {
        "Who is {}?": ["6", "1.00", "0.00", "0.20", ""],
        "Behold <{}> | now": ["4", "0.25", "0.00", "0.10", "Behold, now"],
    }
    assert template_tables(typed(made_up.old_results())) == []


def test_templates_without_data_have_no_ceiling():
    made = made_up.results()
    del made["data"]
    assert cells(template_tables(typed(made))[3])["Who is {}?"] == ["-", "-", "0.00", "0.20", ""]


def test_the_worst_entities():
    made = made_up.results()
    for run in made["runs"]:
        run["tasks"]["D2N"]["entities"] = {f"Entity {number}": number / 20 for number in reversed(range(20))}
    table = entity_tables(typed(made))[1]
    assert list(cells(table)) == [f"Entity {number}" for number in range(10)]
    assert cells(table)["Entity 9"] == ["0.45", "0.45"]
    assert "the 10 of 20 with the lowest mean" in table.note
    assert cells(entity_tables(typed(made))[0]) == {"Eve": ["0.00", "0.00"], "Ada": ["0.40", "0.60"]}
    assert entity_tables(typed(made_up.old_results())) == []


def test_log_probabilities_with_the_largest_p():
    tables = likelihood_tables(typed(made_up.results()))
    assert len(tables) == 4
    assert cells(tables[0])["bico"] == ["-2.00 ± 0.00", "-5.00 ± 0.00", "3.00 ± 0.00", "0.90 ± 0.00", "0.02", "0.002"]
    assert likelihood_tables(typed(made_up.old_results())) == []


def test_undefined_log_probabilities_are_left_out():
    made = made_up.results()
    for run, values in zip(made["runs"][2:], ({"t_p": None}, {"t_p": None, "correct": None}), strict=True):
        run["tasks"]["N2D"]["likelihood"] |= values
    assert cells(likelihood_tables(typed(made))[0])["bico"][::4] == ["-2.00", "-"]


@pytest.mark.parametrize(
    ("text", "markdown", "html"),
    [("a|b", "a\\|b", "a|b"), ("a\nb", "a b", "a\nb"), ("<b>&", "\\<b>&", "&lt;b&gt;&amp;")],
)
def test_cells_are_escaped_in_markdown_and_html(text, markdown, html):
    table = Table("title", ["x", "y"], [["row", text]], "note")
    assert table.markdown() == f"**title**: note\n\n| x | y |\n|---|---|\n| row | {markdown} |\n"
    assert f"<tr><th>row</th><td>{html}</td></tr>" in table.html()


def test_loss_tables_show_the_first_steps_and_the_end():
    made = made_up.old_results()
    for run in made["runs"]:
        last = 500 if run["objective"] == "ntp" else 300
        run["losses"] = [
            {"step": step, "loss_ntp": 1.0 + run["seed"] + step, "loss_bico": step / 2} for step in (50, 100, 150, last)
        ]
        if run["objective"] == "ntp":
            for entry in run["losses"]:
                del entry["loss_bico"]
    diverged, other = (run for run in made["runs"] if run["objective"] == "bico")
    diverged["losses"][3]["loss_ntp"] = None
    for run in (diverged, other):
        del run["losses"][1]["loss_bico"]  # no step between the log entries trained the objective
    ntp, own = loss_tables(typed(made))
    assert ntp.columns == ["system", "step 50", "step 100", "end"]
    assert cells(ntp) == {
        "ntp": ["51.50 ± 0.71", "101.50 ± 0.71", "501.50 ± 0.71"],
        "bico": ["51.50 ± 0.71", "101.50 ± 0.71", "NaN"],
    }
    assert own.columns == ["system", "step 50", "end"]
    assert cells(own) == {"bico": ["25.00 ± 0.00", "150.00 ± 0.00"]}
    for run in made["runs"]:
        run.pop("losses")
    assert loss_tables(typed(made)) == [], "results of bico evaluate have no losses"


def test_perplexity_and_everyday_answers_stand_beside_those_before_fine_tuning():
    made = made_up.with_fluency(made_up.results())
    perplexity, answers = fluency_tables(typed(made))
    assert list(cells(perplexity)) == ["before fine-tuning", "ntp", "bico"]
    assert cells(perplexity) == {
        "before fine-tuning": ["10.00"],
        "ntp": ["11.50 ± 0.71"],
        "bico": ["12.50 ± 0.71"],
    }
    assert "(prose of Python 3.11.7, 4,080 tokens, hash 0123456789abcdef)" in perplexity.note
    assert answers.columns == ["prompt", "before fine-tuning", "ntp", "bico"]
    assert cells(answers)["The sky is"] == [" blue.before fine-tuning", " blue.ntp", " blue.bico"]
    made["runs"][1]["fluency"]["text"] = "prose of Python 3.13.0"
    perplexity, _ = fluency_tables(typed(made))
    old, new = (f"prose of Python {version}, 4,080 tokens, hash 0123456789abcdef" for version in ("3.11.7", "3.13.0"))
    assert perplexity.columns == ["system", "perplexity", "text"]
    assert [row[-1] for row in perplexity.rows] == [old, f"{old} / {new}", old]
    assert "compare those with the same one" in perplexity.note
    made["runs"][1]["fluency"]["perplexity"] = None
    assert cells(fluency_tables(typed(made))[0])["ntp"] == ["NaN", f"{old} / {new}"]
    assert fluency_tables(typed(made_up.results())) == []


def test_the_model_before_fine_tuning_is_the_first_row_and_needs_no_seed():
    made = made_up.with_fluency(made_up.results())
    contains, *_ = score_tables(typed(made))
    assert contains.columns[1] == "N2D", "no column of seeds"
    assert contains.rows[0][:3] == ["before fine-tuning", "0.40 [0.05, 0.95]", "0.80 [0.05, 0.95]"]
