"""Merging folders: which runs belong together, which are kept apart and which are refused."""

import json
from dataclasses import replace

import made_up
import pytest

from bico_ext.reports.gap import gaps
from bico_ext.reports.lookups import by_label
from bico_ext.reports.merge import merge
from bico_ext.reports.records import Failure


def only(made, system=None, seed=None):
    """Keep only the runs of one system, of one seed, or of both."""
    runs = [run for run in made["runs"] if system in (None, run["objective"]) and seed in (None, run["seed"])]
    return made | {"runs": runs}


def runs_by_label(merged):
    return {name: [run.seed for run in runs] for name, runs in by_label(merged.runs).items()}


def test_a_single_folder_stays_as_it_is(tmp_path):
    made = made_up.results()
    folder = made_up.write(tmp_path, made)
    merged, predictions = merge([folder])
    results = made_up.typed(made)
    assert tuple(replace(run, label=None) for run in merged.runs) == results.runs
    assert merged.data == results.data
    assert runs_by_label(merged) == {"ntp": [0, 1], "bico": [0, 1]}
    assert len(predictions) == 64


def test_seeds_and_systems_of_the_same_settings_belong_together(tmp_path):
    made = made_up.results()
    first = made_up.write(tmp_path / "a", only(made, seed=0))
    second = made_up.write(tmp_path / "b", only(made, "bico", 1) | {"settings": {"data": "./facts", "steps": 10}})
    failure = {"system": "ntp", "seed": 1, "error": "OSError: no room left"}
    made_up.write(tmp_path / "a", only(made, seed=0) | {"failures": [failure]})
    merged, _ = merge([first, second])
    assert merged.failures == (Failure(**failure),)
    again = made_up.write(tmp_path / "c", only(made, "ntp", 1) | {"settings": {"data": "./facts", "steps": 10}})
    assert merge([first, second, again])[0].failures == (), "the failed run has succeeded since"
    assert runs_by_label(merged) == {"ntp": [0], "bico": [0, 1]}
    assert [source.folder for source in merged.sources] == [first, second]


def test_labels_state_the_settings_that_differ(tmp_path):
    made = made_up.results()
    more = made | {"settings": {"data": "facts", "steps": 3000, "layers": 2}}
    merged, predictions = merge(
        [made_up.write(tmp_path / "a", made), made_up.write(tmp_path / "b", only(more, "bico"))]
    )
    assert runs_by_label(merged) == {
        "ntp (steps 10, layers not recorded)": [0, 1],
        "bico (steps 10, layers not recorded)": [0, 1],
        "bico (steps 3000, layers 2)": [0, 1],
    }
    assert {row["label"] for row in predictions} == set(runs_by_label(merged))


@pytest.mark.parametrize("described", [True, False])
def test_different_data_are_named_after_their_folders(described, tmp_path):
    made = made_up.results() if described else made_up.old_results()
    other = json.loads(json.dumps(made)) | {"settings": {"data": "poems", "steps": 20}}
    if described:
        other["data"]["name"] = "poems"
        other["data"]["tasks"]["D2N-reverse"]["reachable"] = 0.25
    merged, _ = merge(
        [
            made_up.write(tmp_path / "a", only(made, "bico", 0)),
            made_up.write(tmp_path / "b", only(other, "bico")),
            made_up.write(tmp_path / "c", only(made, "bico", 1)),
        ]
    )
    assert runs_by_label(merged) == {"bico (a, c)": [0, 1], "bico (b)": [0, 1]}
    ceilings = {row.label: row.reverse_ceiling for row in gaps(merged) if row.task == "D2N-reverse"}
    assert ceilings == ({"bico (a, c)": 0.5, "bico (b)": 0.25} if described else dict.fromkeys(ceilings))


def test_folders_of_the_same_name_are_told_apart_by_their_paths(tmp_path):
    made = made_up.old_results()
    folders = [
        made_up.write(tmp_path / place / "out", only(made, "ntp", 0) | {"settings": {"data": place}})
        for place in ("x", "y")
    ]
    assert list(runs_by_label(merge(folders)[0])) == [f"ntp ({folder})" for folder in folders]


def test_a_run_that_occurs_twice_is_refused_and_both_files_are_named(tmp_path):
    made = made_up.results()
    first, second = made_up.write(tmp_path / "a", made), made_up.write(tmp_path / "b", only(made, "bico", 1))
    with pytest.raises(ValueError, match=r"a/results.json and .*b/results.json both hold bico with seed 1 under the"):
        merge([first, second])


def test_evaluated_models_are_told_apart_by_their_names(tmp_path):
    folders = []
    for model in ("model-a", "model-b"):
        made = only(made_up.old_results(), "ntp", 0)
        run = {name: value for name, value in made["runs"][0].items() if name != "seed"} | {"objective": model}
        settings = {"data": "facts", "model": model, "output_dir": f"scores/{model}"}
        folders.append(made_up.write(tmp_path / model, {"settings": settings, "runs": [run]}, []))
    merged, _ = merge(folders)
    assert list(by_label(merged.runs)) == ["model-a", "model-b"]
    with pytest.raises(ValueError, match="both hold model-a under the same settings"):
        merge([folders[0], folders[0]])


def test_the_model_before_fine_tuning_is_kept_once(tmp_path):
    made = made_up.with_fluency(made_up.results()) | {"settings": {"data": "facts", "steps": 10, "model": "a"}}
    ntp, bico = (made | {"runs": [made["runs"][0], *only(made, system)["runs"]]} for system in ("ntp", "bico"))
    first = made_up.write(tmp_path / "a", ntp)
    merged, predictions = merge([first, made_up.write(tmp_path / "b", bico)])
    assert runs_by_label(merged) == {"before fine-tuning": [None], "ntp": [0, 1], "bico": [0, 1]}
    assert sum(row["label"] == "before fine-tuning" for row in predictions) == 16

    longer = made_up.write(tmp_path / "longer", bico | {"settings": {"data": "facts", "steps": 20, "model": "a"}})
    merged, predictions = merge([first, longer])
    assert list(runs_by_label(merged)) == ["before fine-tuning", "ntp (steps 10)", "bico (steps 20)"]
    assert {row["label"] for row in predictions} == set(runs_by_label(merged))

    other = made_up.write(tmp_path / "other", bico | {"settings": {"data": "facts", "steps": 10, "model": "b"}})
    labels = [f"before fine-tuning (model {model})" for model in "ab"]
    assert list(runs_by_label(merge([first, other])[0])) == [labels[0], "ntp (model a)", labels[1], "bico (model b)"]
