"""The script that fine-tunes with the flip in some heads: which heads flip, when, and what it keeps."""

import json

import flip_in_some_heads
import pytest
import torch
from real_llama_cells import matrix

from bico_ext.probing.partial_flip import PartialFlip


def test_the_named_heads_flip_during_training_alone(files, tmp_path, monkeypatch, capsys):
    epochs = 2
    short = {**matrix.SETTINGS, "epochs": epochs, "batch_size": 512, "max_new_tokens": 2, "curve_points": 0}
    monkeypatch.setattr(matrix, "SETTINGS", short)
    monkeypatch.setattr(flip_in_some_heads, "LENGTH", 32)
    looks_back = {"mass": {"causal: past": [[[0.1, 0.9], [0.7, 0.0]]]}}  # at 1 and 2 places; the second head does
    monkeypatch.setattr(flip_in_some_heads, "heads_by_distance", lambda model, sequences, progress: looks_back)
    tables, entered = [], []

    class Recorder(PartialFlip):
        def __enter__(self):
            entered.append(True)
            return super().__enter__()

        def __exit__(self, *error):
            entered.append(False)
            super().__exit__(*error)

        def attention(self, compute, *arguments):
            tables.append(self.flipped)
            return super().attention(compute, *arguments)

    monkeypatch.setattr(flip_in_some_heads, "PartialFlip", Recorder)
    output = tmp_path / "heads.jsonl"
    folders = ["--output", str(output), "--work", str(tmp_path / "work")]
    names = {"others-50": [[[True], [False]]], "looking-back-50": [[[False], [True]]], "all": [[[True], [True]]]}
    for flip, expected in names.items():
        flip_in_some_heads.main([*files, *folders, "--flip", flip])
        assert entered == [True, False]
        assert len(tables) == epochs  # one batch an epoch, one layer
        assert all(torch.equal(table, torch.tensor(expected)) for table in tables)
        entered.clear()
        tables.clear()
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["flip"] for record in records] == list(names)
    assert records[0]["cell"] == {"training": "full", "system": "infill", "learning_rate": 3e-4, "seed": 0}
    assert records[0]["run"]["tasks"].keys() == records[0]["data"]["tasks"].keys()
    with pytest.raises(SystemExit):
        flip_in_some_heads.main([*files, *folders, "--flip", "all"])
    assert "already has full/infill/0.0003/seed0 with the flip in all" in capsys.readouterr().err
