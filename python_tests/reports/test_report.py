"""The report as a whole: the files that it writes, the files that it does not touch, and the command."""

import json

import made_up
import pytest

from bico_ext.cli.main import main
from bico_ext.reports.records import Results
from bico_ext.reports.report import FILES, merged_report, write_report
from bico_ext.reports.summary import summary_table


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_a_report_is_written_beside_its_results(tmp_path):
    made = made_up.results()
    made_up.write(tmp_path, made)
    (tmp_path / "details.md").write_text("of an earlier version")
    summary = write_report(made_up.typed(made), tmp_path)
    assert names(tmp_path) == {*FILES, "results.json", "predictions.jsonl"}, (
        "no details.md, which earlier versions wrote"
    )
    assert summary == summary_table(made_up.typed(made))
    text = (tmp_path / "table.md").read_text()
    assert "| bico | 0.60 ± 0.28 | 0.90 ± 0.00 | 0.40 ± 0.14 | 0.20 ± 0.14 |" in text
    assert "| Who is {}? | 6 | 1.00 | 0.00 | 0.20 |" in text
    assert "bico, D2N: 4 of 8 right" in (tmp_path / "report.html").read_text()


def test_old_results_have_no_curves_and_evaluations_no_losses_either(tmp_path):
    made = made_up.old_results()
    write_report(made_up.typed(made_up.results()), tmp_path)
    write_report(made_up.typed(made), tmp_path)
    assert names(tmp_path) == set(FILES) - {"curves.png"}, "the plot of the earlier report is removed"
    assert "by template" not in (tmp_path / "table.md").read_text()
    for run in made["runs"]:
        del run["losses"]
    write_report(made_up.typed(made), tmp_path)
    assert names(tmp_path) == set(FILES) - {"curves.png", "loss.png"}


def test_a_dollar_in_a_name_stays_a_dollar(tmp_path):
    """Between two dollars, matplotlib would read a formula, and here a broken one."""
    made = json.loads(json.dumps(made_up.results()).replace('"N2D-reverse"', '"gain_$_per_$_spent"'))
    write_report(made_up.typed(made), tmp_path)
    assert "gain_$_per_$_spent" in (tmp_path / "table.md").read_text()
    assert set(FILES) <= names(tmp_path)


def test_the_answers_to_everyday_prompts_stand_side_by_side(tmp_path):
    made = made_up.with_fluency(made_up.results())
    made_up.write(tmp_path, made)
    write_report(made_up.typed(made), tmp_path)
    row = r"| Two plus two is | \| four \<b>before fine-tuning | \| four \<b>ntp | \| four \<b>bico |"
    assert row in (tmp_path / "table.md").read_text()
    page = (tmp_path / "report.html").read_text()
    assert "<h2>General English</h2>" in page
    assert "<td> | four &lt;b&gt;bico</td>" in page


def test_no_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one or more runs, got none"):
        write_report(Results(()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_merges_and_touches_no_input(tmp_path, capsys):
    made = made_up.results()
    folders = []
    for seed in (0, 1):
        runs = [run for run in made["runs"] if run["seed"] == seed]
        folders.append(made_up.write(tmp_path / f"seed{seed}", made | {"runs": runs}))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    out = tmp_path / "out"
    out.mkdir()
    (out / "details.md").write_text("part of a report by an earlier version")
    for _ in range(2):  # the second time over its own report
        assert main(["report", *folders, "--output-dir", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "bico       0.60 ± 0.28  0.90 ± 0.00  0.40 ± 0.14  0.50  0.20 ± 0.14  0.40" in shown
    assert f"In {out}:\n  table.md     every metric" in shown
    assert "predictions.jsonl" not in shown, "this file was not written"
    assert names(out) == set(FILES)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert "bico, D2N: 4 of 8 right" in (out / "report.html").read_text()


def test_folders_with_other_files_are_refused(tmp_path, capsys):
    folder = made_up.write(tmp_path / "a", made_up.results())
    with pytest.raises(FileExistsError, match=r"files other than a report \(predictions\.jsonl, results\.json\)"):
        merged_report([folder], folder)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    assert main(["report", folder, "--output-dir", str(tmp_path / "thesis")]) == 1
    assert "thesis holds files other than a report (thesis.tex); name another folder" in capsys.readouterr().err
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / ".table.md.4711").touch()  # of a report whose process was killed
    assert main(["report", folder, "--output-dir", str(tmp_path / "report")]) == 0
    assert names(tmp_path / "thesis") == {"thesis.tex"}
    assert main(["report", folder, "--output-dir", f"{folder}/results.json"]) == 1
    assert "results.json cannot be made (File exists); name another folder" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "message"), [(None, "no such file"), ("{", "is broken")])
def test_results_that_cannot_be_read_are_named_in_one_sentence(text, message, tmp_path, capsys):
    folder = tmp_path / "a"
    folder.mkdir()
    if text:
        (folder / "results.json").write_text(text)
    assert main(["report", str(folder), "--output-dir", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"bico report: {folder}/results.json")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_the_report_of_an_evaluated_model(tmp_path, capsys):
    """`bico evaluate` writes no seed and no losses, and its predictions do not name the system."""
    made = made_up.old_results({"path/to/model": {"D2N": (0.5,)}})
    for name in ("seed", "losses", "train_seconds"):
        del made["runs"][0][name]
    answers = [
        {name: value for name, value in row.items() if name not in ("system", "seed")}
        for row in made_up.predictions(made_up.old_results({"path/to/model": {"D2N": (0.5,)}}))
    ]
    folder = made_up.write(tmp_path / "scores", made, answers)
    assert main(["report", folder, "--output-dir", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "path/to/model  0.50\n" in shown
    assert "results.json" not in shown, "no file that was not written"
    assert "| path/to/model | 0.50 [0.05, 0.95] |" in (tmp_path / "out" / "table.md").read_text()
    assert names(tmp_path / "out") == {"report.html", "table.md", "accuracy.png"}
    assert "path/to/model, D2N: 2 of 4 right" in (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "scores" / "results.json").read_text()) == made
