"""The script that scores kept answers by the metrics of other work."""

import gzip
import json

import published_metrics

TARGET = " the first to land."
COMPLETIONS = {
    2: [" the first to land.", " The first to land. She", " was the first to land. Yes", " the first to land"],
    3: [" nobody"] * 4,
}


def test_answers_are_scored_by_each_definition(tmp_path, capsys):
    answers = [
        {
            **{"system": "permute", "seed": seed, "task": "D2N-reverse", "completion": completion, "target": TARGET},
            **{"exact_match": completion == TARGET, "contains": TARGET[:-1] in completion.lower()},
        }
        for seed, completions in COMPLETIONS.items()
        for completion in completions
    ]
    answers.append({**answers[0], "task": "N2D"})  # not asked for
    plain = tmp_path / "predictions.jsonl"
    plain.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    published_metrics.main(["--answers", str(plain)])
    lines = capsys.readouterr().out.splitlines()
    # with seed 2, 1/4, 2/4, 3/4 and 4/4 of the questions; none with seed 3; the deviation of (x, 0) is x / sqrt(2)
    scores = "0.12 ± 0.18 | 0.25 ± 0.35 | 0.38 ± 0.53 | 0.50 ± 0.71"
    assert lines[4:-1] == [f"| permute | D2N-reverse | 2, 3 | {scores} |"]

    cells = [
        {**answer, "cell": f"full/permute/0.0003/seed{answer['seed']}"} for answer in answers if answer["seed"] == 2
    ]
    with gzip.open(tmp_path / "predictions.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(answer) + "\n" for answer in cells)
    published_metrics.main(["--answers", str(tmp_path / "predictions.jsonl.gz"), "--tasks", "D2N-reverse", "N2D"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[4:-1] == [
        "| full/permute/0.0003 | D2N-reverse | 2 | 0.25 | 0.50 | 0.75 | 1.00 |",
        "| full/permute/0.0003 | N2D | 2 | 1.00 | 1.00 | 1.00 | 1.00 |",
    ]
