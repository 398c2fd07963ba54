"""The runner of the real Llama's matrix: the order of the cells, the choice of the learning rate, and what it keeps."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import pytest
import real_llama
import torch
from real_llama_cells import matrix
from real_llama_cells.matrix import SETTINGS, STAND_IN, Cell, Part, missing, rows
from real_llama_cells.records import cell_of, cell_to_json, failed_record

from bico_ext.comparison import resume
from bico_ext.comparison.run import Finished
from bico_ext.facts.loader import load_facts
from bico_ext.models import checkpoints
from bico_ext.models.tokenization import encode_prompt
from bico_ext.reports.records import Run, Scores

TASKS = ("N2D", "D2N", "N2D-reverse", "D2N-reverse")


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    parts = (
        Part("full", ("ntp", "bico"), (1e-4, 3e-4)),
        Part("lora", ("ntp",), (1e-3,), "LoRA"),  # has no choice
    )
    monkeypatch.setattr(matrix, "MATRIX", parts)
    monkeypatch.setattr(real_llama, "RESULTS", tmp_path / "committed")


def score(cell: Cell) -> float:
    """A made-up score that makes 3e-4 the best rate of ntp, and 1e-4 that of bico."""
    return cell.learning_rate * 100 * (1 if cell.system == "ntp" else -1) + 0.5 + cell.seed / 100


def made_up(config, name, seed, callbacks) -> list[Finished]:
    cell = Cell("lora" if config.lora else "full", name, config.learning_rate, seed)
    tasks = {
        task: Scores(10, score(cell) + shift, 0.1, 0.2, 0.3) for task, shift in zip(TASKS, (-3, -1, 1, 3), strict=True)
    }
    record = Run(name, tasks, seed=seed, parameters=100, train_seconds=1.0, threads=1, device="cpu")
    return [Finished(record, [{"seed": seed, "completion": " Ada"}])]


def made_up_before(config) -> Finished:
    tasks = dict.fromkeys(TASKS, Scores(10, 0.0, 0.0, 0.0, 0.0))
    return Finished(Run("before fine-tuning", tasks, parameters=100, device="cpu"), [{"completion": " Bob"}])


def in_this_process(ran: list[str], breaks: Callable[[str], bool] = lambda name: False):
    """A stand-in for `run_all` that notes the cells of each call."""

    def run_all(work, calls, *, steps, jobs, label):
        ran.append([call[0].name for call in calls])
        assert len(steps) == len(calls) <= jobs
        for call in calls:
            if not breaks(call[0].name):
                work(*call, None)
        return ["it broke" if breaks(call[0].name) else None for call in calls]

    return run_all


@pytest.fixture
def ran(monkeypatch):
    """The names of the cells of each call of `run_all`, in a script that trains nothing."""
    calls: list = []
    monkeypatch.setattr(real_llama, "run", made_up)
    monkeypatch.setattr(real_llama, "before_fine_tuning", made_up_before)
    monkeypatch.setattr(real_llama, "run_all", in_this_process(calls))
    return calls


def options(tmp_path, *more: str) -> list[str]:
    return ["--output", str(tmp_path / "out"), "--work", str(tmp_path / "work"), *more]


def lines(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "out" / "cells.jsonl").read_text().splitlines()]


def test_a_name_tells_a_cell():
    assert Cell("full", "bico", 3e-4, 2).name == "full/bico/0.0003/seed2"


def test_cells_put_bos_in_front_of_every_text_whatever_the_tokenizer_does(files, tmp_path, monkeypatch):
    """The finished cells have BOS in front, which SmolLM2's tokenizer does not put there; new ones need it, too."""
    model, tokenizer = checkpoints.load(files[1])
    with_bos = tokenizer("Ada")["input_ids"]
    tokenizer.backend_tokenizer.post_processor = None
    assert with_bos == [tokenizer.bos_token_id, *tokenizer("Ada")["input_ids"]]
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "plain")
    seen = []

    def run(config, name, seed, callbacks):
        seen.append(checkpoints.load(config.model))
        return made_up(config, name, seed, callbacks)

    monkeypatch.setattr(real_llama, "run", run)
    monkeypatch.setattr(real_llama, "run_all", in_this_process([]))
    arguments = ["--model", str(tmp_path / "plain"), *files[2:], "--all", "--cells", "full/ntp/0.0001/seed[01]"]
    real_llama.main(options(tmp_path, *arguments))
    assert [encode_prompt(tokenizer, "Ada") for _, tokenizer in seen] == [with_bos] * 2
    assert all(torch.equal(seen[0][0].state_dict()[name], weight) for name, weight in model.state_dict().items())


def test_the_grid_of_a_row_precedes_its_final_cells_and_chooses_their_rate():
    def names(scores) -> list[str]:
        return [cell.name for cell in missing(scores, lambda cell: cell.training == "full")]

    grids = {
        system: [Cell("full", system, rate, seed) for rate in (1e-4, 3e-4) for seed in (0, 1)]
        for system in ("ntp", "bico")
    }
    assert names({}) == [cell.name for system in ("ntp", "bico") for cell in grids[system]]
    ntp = {cell: score(cell) for cell in grids["ntp"]}
    bico = {cell: score(cell) for cell in grids["bico"]}
    final = [f"full/ntp/0.0003/seed{seed}" for seed in (2, 3, 4)]
    assert names(ntp) == [*final, *(cell.name for cell in grids["bico"])]
    assert names(ntp | bico) == [*final, *(f"full/bico/0.0001/seed{seed}" for seed in (2, 3, 4))]
    last = grids["ntp"][-1]
    assert names({cell: score for cell, score in ntp.items() if cell != last})[0] == last.name


def test_the_rate_is_that_of_the_best_mean_over_the_grid_seeds_and_the_lowest_of_equal_ones():
    def chosen(*scores: float) -> float | None:
        cells = [Cell("full", "ntp", rate, seed) for rate in (1e-4, 3e-4) for seed in (0, 1)]
        others = {Cell("full", "ntp", 3e-4, 2): 1.0}  # a final cell has no say
        return next(rows(dict(zip(cells, scores, strict=False)) | others)).chosen

    assert chosen(0.9, 0.1, 0.6, 0.5) == 3e-4
    assert chosen(0.9, 0.3, 0.6, 0.5) == 1e-4
    assert chosen(0.5, 0.5, 0.5, 0.5) == 1e-4
    assert chosen(0.5, 0.5, 0.5) is None


def test_a_further_row_of_a_system_shares_the_cells_that_both_have(monkeypatch):
    parts = (Part("full", ("ntp",), (1e-4, 3e-4)), Part("full", ("ntp",), (3e-4,), "high rate"))
    monkeypatch.setattr(matrix, "MATRIX", parts)
    scores = {cell: score(cell) for cell in missing({}, lambda cell: cell.seed < 2)}
    assert [row.name for row in rows(scores)] == ["ntp", "ntp, high rate"]
    assert [cell.name for cell in missing(scores, lambda cell: cell.training == "full")] == [
        f"full/ntp/0.0003/seed{seed}" for seed in (2, 3, 4)
    ]


def test_a_part_may_change_settings(files, tmp_path, ran, monkeypatch):
    changes = (("mixing_probability", 2 / 3), ("mask_rate", "uniform"))
    parts = Part("full", ("bico",), (1e-4,)), Part("full", ("bico",), (1e-4,), "other settings", changes)
    monkeypatch.setattr(matrix, "MATRIX", parts)
    folders = {}

    def run(config, name, seed, callbacks):
        folders[config.output_dir, seed] = config.mixing_probability, config.mask_rate
        return made_up(config, name, seed, callbacks)

    monkeypatch.setattr(real_llama, "run", run)
    real_llama.main([*options(tmp_path, *files), "--all", "--jobs", "9", "--cells", "full/*"])
    rest = [f"full/bico/0.0001/{name}" for name in ("seed2", "seed3", "seed4")]
    changed = [
        f"full/bico/0.0001/mixing_probability={2 / 3}/mask_rate=uniform/{name}" for name in ("seed2", "seed3", "seed4")
    ]
    assert ran == [[*rest, *changed]]
    assert sorted(folders.values(), key=str) == [(2 / 3, "uniform")] * 3 + [(None, 0.15)] * 3
    assert [record["cell"].get("changes") for record in lines(tmp_path)] == [dict(changes)] * 3 + [None] * 3
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| bico, other settings | " in table
    assert "; bico, other settings: mask_rate uniform" in table
    real_llama.main([*options(tmp_path, *files), "--all"])
    assert ran[1:] == [["none/before/0/seed0"]]


def test_a_part_may_not_change_what_all_cells_share():
    with pytest.raises(ValueError, match="changes must leave facts, epochs, batch_size to SETTINGS, got epochs"):
        Part("full", ("bico",), (1e-4,), "longer", (("epochs", 16),))


def test_the_picture_is_not_drawn_of_the_grid_alone(files, tmp_path, ran):
    for cell, drawn in (("full/ntp/0.0001/seed0", False), ("full/ntp/*/seed2", True)):
        real_llama.main([*options(tmp_path, *files), "--all", "--cells", cell])
        assert (tmp_path / "out" / "accuracy.png").exists() == drawn


def test_a_standing_in_rate_if_the_grid_is_not_selected(files, tmp_path, ran):
    real_llama.main([*options(tmp_path, *files), "--all", "--jobs", "9", "--cells", "full/ntp/*/seed[234]"])
    assert ran == [[f"full/ntp/{STAND_IN:g}/seed{seed}" for seed in (2, 3, 4)]]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| ntp (rate not chosen) | " in table
    assert "| ntp | - | - | - |" in table


def test_all_cells_in_order_and_each_once(files, tmp_path, ran):
    real_llama.main([*options(tmp_path, *files), "--all", "--jobs", "3"])
    final = {"ntp": "0.0003", "bico": "0.0001"}
    expected = ["none/before/0/seed0"]
    for system in ("ntp", "bico"):
        expected += [f"full/{system}/{rate}/seed{seed}" for rate in ("0.0001", "0.0003") for seed in (0, 1)]
        expected += [f"full/{system}/{final[system]}/seed{seed}" for seed in (2, 3, 4)]
    expected += [f"lora/ntp/0.001/seed{seed}" for seed in (2, 3, 4)]
    done = [name for names in ran for name in names]
    assert sorted(done) == sorted(expected)
    assert done[:6] == [*expected[:5], expected[8]], "the final cells wait for the grid"
    assert [record["cell"] for record in lines(tmp_path)] == [
        record["cell"] for record in sorted(lines(tmp_path), key=lambda record: cell_of(record).name)
    ]
    with gzip.open(tmp_path / "out" / "predictions.jsonl.gz", "rt") as file:
        assert sorted(json.loads(line)["cell"] for line in file) == sorted(expected)
    ran.clear()
    real_llama.main([*options(tmp_path, *files), "--all", "--jobs", "3"])
    assert ran == []


def test_the_table_has_means_ceilings_rates_and_all_cells(files, tmp_path, ran):
    real_llama.main([*options(tmp_path, *files), "--all", "--jobs", "9"])
    table = (tmp_path / "out" / "table.md").read_text()
    value = mean(score(Cell("full", "ntp", 3e-4, seed)) for seed in (2, 3, 4)) - 3
    assert f"| ntp | {value:.2f} ± 0.01 | " in table
    assert "| ntp, LoRA | " in table
    assert "| (ceiling) | 1.00 | 1.00 | 1.00 | 1.00 |" in table
    assert f"| bico | {score(Cell('full', 'bico', 1e-4, 0)) + 0.005:.3f} | " in table
    assert "| before fine-tuning | 0.00" in table
    assert table.count("\n| full/") + table.count("\n| lora/") == 17
    assert "epochs 8" in table
    assert "**learning rate, full**" in table
    assert "**learning rate, lora**" not in table


def test_next_runs_one_cell_and_committed_cells_count_as_done(files, tmp_path, ran):
    first, second = "none/before/0/seed0", "full/ntp/0.0001/seed0"
    real_llama.main(["--output", str(real_llama.RESULTS), "--work", str(tmp_path), *files, "--next"])
    real_llama.main([*options(tmp_path, *files), "--next"])
    assert ran == [[first], [second]]
    assert [cell_of(record).name for record in lines(tmp_path)] == [second]
    real_llama.main([*options(tmp_path), "--merge", str(real_llama.RESULTS / "cells.jsonl")])
    assert [cell_of(record).name for record in lines(tmp_path)] == [second, first]


def test_merge_brings_the_answers_of_finished_cells(files, tmp_path, ran):
    def answers() -> list[list[str]]:
        return [[answer["cell"][-5:], answer["completion"]] for answer in real_llama.read_answers(tmp_path / "out")]

    real_llama.main([*options(tmp_path, *files), "--all", "--cells", "full/ntp/0.0001/seed[01]"])
    assert answers() == [["seed0", " Ada"], ["seed1", " Ada"]]
    elsewhere = tmp_path / "elsewhere" / "cells.jsonl"
    elsewhere.parent.mkdir()
    finished, failed = Cell("full", "ntp", 1e-4, 0), Cell("full", "bico", 1e-4, 0)
    real_llama.add_cells(elsewhere.parent, [lines(tmp_path)[0], failed_record(failed, "it broke")])
    real_llama.main([*options(tmp_path), "--merge", str(elsewhere)])
    assert answers() == [["seed0", " Ada"], ["seed1", " Ada"]], "no answers were brought"
    brought = [(finished, " Bo"), (finished, " Cy"), (failed, " Dan")]
    real_llama.add_answers(elsewhere.parent, [{"cell": cell.name, "completion": text} for cell, text in brought])
    for _ in range(2):  # the second time changes nothing
        real_llama.main([*options(tmp_path), "--merge", str(elsewhere)])
        assert answers() == [["seed1", " Ada"], ["seed0", " Bo"], ["seed0", " Cy"]]


def test_a_failure_stops_no_other_cell_and_is_tried_again(files, tmp_path, monkeypatch, ran, capsys):
    broken = "full/ntp/0.0001/seed1"
    monkeypatch.setattr(real_llama, "run_all", in_this_process(ran, lambda name: name == broken))
    with pytest.raises(SystemExit, match=f"1 cells failed:\n{broken}: it broke"):
        real_llama.main([*options(tmp_path, *files), "--all", "--jobs", "2", "--cells", "full/ntp/0.0001/*"])
    assert [[name[-1] for name in names] for names in ran] == [
        ["0", "1"],
    ]
    assert [record.get("error") for record in lines(tmp_path)] == [None, "it broke"]
    real_llama.main([*options(tmp_path), "--list"])
    assert f"failed  {broken}" in capsys.readouterr().out
    monkeypatch.setattr(real_llama, "run_all", in_this_process(ran))
    real_llama.main([*options(tmp_path, *files), "--next", "--cells", "full/*"])
    assert ran[-1] == ["full/ntp/0.0003/seed0"]  # a cell that failed comes after those that were not tried
    real_llama.main([*options(tmp_path, *files), "--next", "--cells", "full/ntp/0.0001/*"])
    assert ran[-1] == [broken]
    assert [record.get("error") for record in lines(tmp_path)] == [None] * 3
    failure = {"cell": cell_to_json(Cell("full", "ntp", 1e-4, 1)), "settings": SETTINGS, "error": "elsewhere"}
    real_llama.add_cells(tmp_path / "out", [failure])
    assert [record.get("error") for record in lines(tmp_path)] == [None] * 3, "the finished cell stays"


def test_the_steps_of_an_earlier_call_are_not_counted_again(files, tmp_path, ran, monkeypatch):
    """The bar of two cells that went on from half-way ended at half, and the estimate was twice as long."""

    def last_complete(folder):
        return Path("checkpoint-7") if folder.name == "ntp-seed1" else None

    noted = []

    def run_all(work, calls, *, steps, jobs, label):
        noted.extend(steps)
        return [None] * len(calls)

    monkeypatch.setattr(resume, "last_complete", last_complete)
    monkeypatch.setattr(real_llama, "run_all", run_all)
    real_llama.main([*options(tmp_path, *files), "--all", "--jobs", "2", "--cells", "full/ntp/0.0001/*"])
    first, second = noted
    assert first - second == 7


def test_a_call_that_finds_nothing_to_run_says_so(files, tmp_path, ran, capsys):
    real_llama.main([*options(tmp_path, *files), "--next", "--cells", "ntp"])
    assert ran == []
    assert capsys.readouterr().out == "nothing to run: no missing cell matches ntp\n"
    real_llama.main([*options(tmp_path, *files), "--next"])
    assert len(ran) == 1
    assert "nothing to run" not in capsys.readouterr().out


def test_cells_of_other_settings_do_not_count(files, tmp_path, ran, monkeypatch):
    monkeypatch.setattr(matrix, "SETTINGS", {**SETTINGS, "epochs": 1})
    real_llama.main([*options(tmp_path, *files), "--next"])
    monkeypatch.setattr(matrix, "SETTINGS", SETTINGS)
    real_llama.main([*options(tmp_path, *files), "--next"])
    assert ran[0] == ran[1]
    assert sorted(record["settings"]["epochs"] for record in lines(tmp_path)) == [1, SETTINGS["epochs"]]


def test_the_budget_is_for_cells_that_are_likely_to_end_within_it(files, tmp_path, ran, monkeypatch, capsys):
    clock = iter(range(0, 1000, 40))  # seconds at each look: the deadline, then before and after each call
    monkeypatch.setattr(real_llama.time, "monotonic", lambda: next(clock))
    real_llama.main([*options(tmp_path, *files), "--all", "--jobs", "1", "--budget", "200"])
    # It starts at 40 and 120 and would end at 160 and 240 if a cell takes 40 seconds.
    assert len(ran) == 2
    capsys.readouterr()
    ran.clear()
    monkeypatch.setattr(real_llama, "seconds_of_a_cell", lambda records: 100)
    # It would start at 40 and end at 140, or at 240 with two cells at once.
    for jobs, budget, starts in ("1", "130", False), ("1", "150", True), ("2", "230", False), ("2", "250", True):
        clock = iter(range(0, 1000, 40))
        real_llama.main([*options(tmp_path, *files), "--all", "--jobs", jobs, "--budget", budget])
        assert bool(ran) == starts
        ran.clear()
    nothing = [line for line in capsys.readouterr().out.splitlines() if "nothing was run" in line]
    assert [re.sub("full.*seed.", "CELL", line) for line in nothing] == [
        "nothing was run: --budget is 130 s, CELL takes 100 s",
        "nothing was run: --budget is 230 s, CELL takes 200 s",
    ]


def test_the_seconds_of_a_cell_are_those_of_trained_ones_on_such_a_device(monkeypatch):
    def record(seconds: float, jobs: int = 1, device: str = "cpu", **more) -> dict:
        return {"seconds": seconds, "jobs": jobs, "run": {"device": device}, **more}

    records = {
        "none/before/0/seed0": record(1),
        "full/ntp/0.0001/seed0": record(50),
        "full/ntp/0.0001/seed1": record(120, jobs=2),
        "full/ntp/0.0003/seed0": record(9000),
        "full/ntp/0.0003/seed1": record(7, device="a GPU"),
        "full/bico/0.0003/seed1": {"error": "it broke"},
    }
    monkeypatch.setattr(real_llama, "trains_on_gpu", lambda: False)
    assert real_llama.seconds_of_a_cell(records) == 60
    monkeypatch.setattr(real_llama, "trains_on_gpu", lambda: True)
    assert real_llama.seconds_of_a_cell(records) == 7
    assert real_llama.seconds_of_a_cell({}) == 0


def test_a_model_that_cannot_be_loaded_is_one_sentence(files, tmp_path, ran):
    with pytest.raises(SystemExit, match="nowhere"):
        real_llama.main([*options(tmp_path, *files), "--next", "--model", str(tmp_path / "nowhere")])
    assert ran == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--next"], "--next and --all need --model and --data"),
        (["--all", "--model", "m", "--data", "d", "--jobs", "0"], "--jobs must be at least 1"),
        (["--next", "--model", "m", "--data", "d", "--jobs", "2"], "and 1 with --next, got 2"),
        (["--merge", "nowhere.jsonl"], "got nowhere.jsonl: no such file"),
    ],
)
def test_usage(arguments, message, capsys):
    with pytest.raises(SystemExit):
        real_llama.main(arguments)
    assert message in capsys.readouterr().err


def test_a_cell_is_trained_in_a_process_of_its_own(files, tmp_path, monkeypatch):
    short = {**SETTINGS, "epochs": 1, "batch_size": 64, "max_new_tokens": 2, "curve_points": 0, "bf16": False}
    monkeypatch.setattr(matrix, "SETTINGS", short)
    real_llama.main([*options(tmp_path, *files), "--next", "--cells", "full/bico/*"])
    monkeypatch.setattr(matrix, "SETTINGS", SETTINGS)
    (record,) = lines(tmp_path)
    assert cell_of(record) == Cell("full", "bico", 1e-4, 0)
    assert record["settings"] == short
    assert set(record["run"]["tasks"]) == set(TASKS)
    assert record["run"]["objective"] == "bico"
    assert record["data"]["tasks"]["D2N-reverse"]["counterpart"] == "N2D"
    questions = sum(len(task.examples) for task in load_facts(files[-1]).tasks.values())
    with gzip.open(tmp_path / "out" / "predictions.jsonl.gz", "rt") as file:
        assert len(file.readlines()) == questions
    assert not list((tmp_path / "work").rglob("bico-seed0"))
