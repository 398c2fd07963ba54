"""The script that scores kept answers by the metrics of other work."""

import gzip
import json

import published_metrics

TARGET = " the first to land."
COMPLETIONS = {  # exact match, starts with the target, contains the target
    2: [" the first to land.", " The first to land. She", " was the first to land. Yes", " the first to land"],
    3: [" nobody"] * 4,
}


def test_answers_are_scored_by_each_definition(tmp_path, capsys):
    answers = [
        {"system": "permute", "seed": seed, "task": "D2N-reverse", "completion": completion, "target": TARGET}
        for seed, completions in COMPLETIONS.items()
        for completion in completions
    ]
    answers.append({**answers[0], "task": "N2D"})  # not asked for
    plain = tmp_path / "predictions.jsonl"
    plain.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    published_metrics.main(["--answers", str(plain)])
    lines = capsys.readouterr().out.splitlines()
    # shares of four questions by seed: 1/4, 2/4, 3/4 and none; sample deviations of (x, 0): x / sqrt(2)
    assert lines[4:-1] == ["| permute | D2N-reverse | 2, 3 | 0.12 ± 0.18 | 0.25 ± 0.35 | 0.38 ± 0.53 |"]

    cells = [
        {**answer, "cell": f"full/permute/0.0003/seed{answer['seed']}"} for answer in answers if answer["seed"] == 2
    ]
    with gzip.open(tmp_path / "predictions.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(answer) + "\n" for answer in cells)
    published_metrics.main(["--answers", str(tmp_path / "predictions.jsonl.gz"), "--tasks", "D2N-reverse", "N2D"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[4:-1] == [
        "| full/permute/0.0003 | D2N-reverse | 2 | 0.25 | 0.50 | 0.75 |",
        "| full/permute/0.0003 | N2D | 2 | 1.00 | 1.00 | 1.00 |",
    ]
