"""The script that tells whom answers about couples name first."""

import json

import names_in_answers


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
