"""The script that compares the two halves of the entities."""

import json

import halves_of_entities


def test_each_half_is_every_second_entity_of_a_task(tmp_path, capsys):
    entities = {"Zoe": 1.0, "Ada": 0.2, "Moe": 0.5, "Bo": 0.4, "Cy": 0.0}  # in the order of the questions
    of_seed_3 = dict.fromkeys(entities, 1.0)
    scores = {"n": 10, "contains": 0.42, "exact_match": 0.0, "bleu_char": 0.0, "bleu": 0.0}
    runs = [
        {"system": "permute", "seed": seed, "tasks": {"N2D": {**scores, "entities": shares}, "no entities": scores}}
        for seed, shares in ((2, entities), (3, of_seed_3))
    ]
    (tmp_path / "results.json").write_text(json.dumps({"schema_version": 2, "runs": runs}))
    halves_of_entities.main(["--folder", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    # (1 + 0.5 + 0) / 3 = 0.5 and (0.2 + 0.4) / 2 = 0.3; the deviation of two values is their distance / sqrt(2)
    assert lines[4:-1] == ["| permute | N2D | 0.75 ± 0.35 | 0.65 ± 0.49 |"]
