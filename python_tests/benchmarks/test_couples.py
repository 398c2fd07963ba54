"""The scripts about couples: whom answers name first, and whether other relations get the same answers."""

import json
import re

import ask_about_couples
import names_in_answers
import pytest

COUPLES = "Ada\tBo\nCy\tDan\nEve\tFay\nGwen\tHugh\n"


def test_answers_are_counted_by_the_first_name_in_them(tmp_path, capsys):
    (tmp_path / "pairs.tsv").write_text("Ada\tBo\nCy\tDan\nDan\tEve\n")  # Dan is a wife, too
    completions = {
        "ntp": [" Bo.", " Dan.", " Eve."],
        "permute": [" Ada.", " it is Cy, not Ada.", " Adam?"],
    }
    answers = [
        {"system": system, "task": "husband-reverse", "prompt": "The wife of Bo is?", "completion": completion}
        for system, kept in completions.items()
        for completion in kept
    ]
    answers.append({**answers[0], "task": "husband"})
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    files = ["--data", str(tmp_path / "pairs.tsv"), "--answers", str(tmp_path / "predictions.jsonl")]
    names_in_answers.main(files)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| system | the right wife | another wife | the given husband | another husband | nobody |"
    assert lines[4:6] == ["| ntp | 0 | 1 | 1 | 1 | 0 |", "| permute | 1 | 1 | 0 | 0 | 1 |"]


def test_each_question_stands_behind_its_own_couple_and_others(files, tmp_path, monkeypatch, capsys):
    """The stand-in for a model finds in its prompt whose wife is asked for; sisters' spouses it knows by heart."""
    (tmp_path / "pairs.tsv").write_text(COUPLES)
    spouses = [tuple(line.split("\t")) for line in COUPLES.splitlines()]
    told = []

    def answers(_model, _tokenizer, prompts, **_options):
        replies = []
        for prompt in prompts:
            couples = re.findall(r"The husband of (\w+) is\? (\w+)\. ", prompt)
            relation, person = re.fullmatch(r"The (\w+) of (\w+) is\?", prompt.split(". ")[-1]).groups()
            told.append(len({*couples} & {*spouses}))
            wives = [wife for wife, husband in couples if husband == person and relation == "wife"]
            known = [husband for wife, husband in spouses if wife == person and relation == "sister"]
            replies.append(f" Nobody but {(wives or known or [person])[0]}, not {person}.")
        return replies

    monkeypatch.setattr(ask_about_couples, "generate", answers)
    ask_about_couples.main([*files[:2], "--data", str(tmp_path / "pairs.tsv"), "--couples", "0", "1", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[4:12] == [
        "| The husband of (a wife) is? | 0.00 | 0.00 | 0.00 |",
        "| The wife of (a wife) is? | 0.00 | 0.00 | 0.00 |",
        "| The sister of (a wife) is? | 1.00 | 1.00 | 1.00 |",
        "| The neighbour of (a wife) is? | 0.00 | 0.00 | 0.00 |",
        "| The husband of (a husband) is? | 0.00 | 0.00 | 0.00 |",
        "| The wife of (a husband) is? | 0.00 | 1.00 | 1.00 |",
        "| The sister of (a husband) is? | 0.00 | 0.00 | 0.00 |",
        "| The neighbour of (a husband) is? | 0.00 | 0.00 | 0.00 |",
    ]
    assert told == ([0] * 4 + [1] * 4 + [3] * 4) * 8


def test_more_couples_than_the_data_have_are_refused(files, tmp_path, capsys):
    (tmp_path / "pairs.tsv").write_text(COUPLES)
    with pytest.raises(SystemExit):
        ask_about_couples.main([*files[:2], "--data", str(tmp_path / "pairs.tsv"), "--couples", "5"])
    assert "--couples: must be from 0 to 4, the couples of the data, got [5]" in capsys.readouterr().err
