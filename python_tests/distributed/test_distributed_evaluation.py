"""Two processes that divide the questions get the answers and scores of one."""

import json
from pathlib import Path

import pytest
from evaluation_processes import as_json, evaluated
from greedy_answers import make_model, make_tokenizer
from launched import launched
from tiny_training import write_facts_and_model

from bico_ext.cli.main import main


def test_two_processes_answer_as_one(tmp_path: Path) -> None:
    write_facts_and_model(tmp_path)
    result = launched(Path(__file__).with_name("evaluation_processes.py"), tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"results of {rank}.json").read_text()) for rank in (0, 1))

    one = as_json(evaluated(make_model(make_tokenizer())))
    assert len({prediction["completion"] for prediction in one["predictions"]}) == 5
    assert first["together"] == {"evaluation": one, "batches": 2, "one batch": one["predictions"]}  # of three
    assert second["together"] == {"evaluation": one, "batches": 1, "one batch": one["predictions"]}
    assert first["alone"]["evaluation"] == one
    for results in (first, second):
        assert "needs the whole model in each process" in results["sharded"]["error"]
        assert results["sharded"]["evaluation"]["predictions"] == one["predictions"]

    command = ["evaluate", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "facts"), "--batch_size", "4"]
    assert main([*command, "--output-dir", str(tmp_path / "by one")]) == 0
    by_one, by_two = tmp_path / "by one", tmp_path / "by two"
    assert (by_two / "predictions.jsonl").read_bytes() == (by_one / "predictions.jsonl").read_bytes()
    records = [json.loads((folder / "results.json").read_text()) for folder in (by_one, by_two)]
    for record in records:
        del record["settings"]["output_dir"], record["environment"]
    assert records[0] == records[1]
    assert result.stdout.count("by two") == 1, "both processes report"
    assert result.stderr.count("add --distributed, or start bico evaluate without torchrun") == 2


def test_dividing_the_questions_needs_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match=r"distributed=True needs a process group, got none; start .* with torchrun"):
        evaluated(make_model(make_tokenizer()), distributed=True)
    command = ["evaluate", "--model", "m", "--data", "synthetic", "--output-dir", str(tmp_path), "--distributed"]
    assert main(command) == 1
    assert "torchrun --no-python --nproc_per_node 8 bico evaluate --distributed" in capsys.readouterr().err
