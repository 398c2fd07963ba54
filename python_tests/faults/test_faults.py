"""Five kills at random moments, and proof that the trials would notice what they look for; `make faults` makes more."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import ended, kill, processor_seconds
from inject_faults import MOST_KILLS, SIGNALS, plan
from outcomes import Watcher, differences, leftovers, same_bits
from safetensors.torch import save_file

from bico_ext.files import write_json, write_text

pytest.importorskip("gguf", reason="a model is fetched, which needs gguf, of the extra real")


def test_nothing_is_lost_by_five_kills(tmp_path):
    script = Path(__file__).with_name("inject_faults.py")
    options = [
        "--imported",
        "--only-kills",
        "--kills",
        "5",
        "--seed",
        "1915",
    ]  # one run of compare, which takes longest
    done = subprocess.run(
        [sys.executable, script, *options, "--output", tmp_path / "out.json"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    trials = json.loads((tmp_path / "out.json").read_text())["trials"]
    assert {trial["command"] for trial in trials} == {"compare", "train", "fetch-model"}
    assert sum(len(trial["faults"]) for trial in trials) == 5


def test_a_plan_is_that_of_its_seed_and_has_all_commands_and_signals():
    planned = plan(200, ["compare", "train"], 0)
    assert planned == plan(200, ["compare", "train"], 0) != plan(200, ["compare", "train"], 1)
    kills = [kill for _, some in planned for kill in some]
    assert len(kills) == 200
    assert {name for name, _ in planned} == {"compare", "train"}
    assert {len(some) for _, some in planned} == set(range(1, MOST_KILLS + 1))
    assert {number for number, _ in kills} == set(SIGNALS)
    moments = sorted(moment for _, moment in kills)
    assert moments[0] < 0.1
    assert moments[-1] > 0.9


def test_a_difference_is_found():
    expected = {"results.json": {"runs": [{"contains": 0.5, "text": "Ada"}]}, "m": {"w": torch.ones(2)}, "a.png": None}
    for place, value, what in (
        ("contains", 0.51, "results.json: runs: 0: contains: 0.51 instead of 0.5"),
        ("text", "Eve", "results.json: runs: 0: text: 'Eve' instead of 'Ada'"),
        ("more", 1, "results.json: runs: 0: more is superfluous"),
    ):
        got = {**expected, "results.json": {"runs": [{**expected["results.json"]["runs"][0], place: value}]}}
        assert differences(got, expected) == [what]
    assert differences({**expected, "m": {"w": torch.tensor([1.0, 1.001])}}, expected) == ["m: w: other weights"]
    assert differences({**expected, "m": {"w": torch.ones(3)}}, expected) == ["m: w: other weights"]
    assert differences({"m": expected["m"], "a.png": None}, expected) == ["results.json is missing"]
    rounded = {"m.safetensors": {"w": torch.tensor([1.0, 1.000001])}}
    assert differences(rounded, {"m.safetensors": expected["m"]}) == []
    assert not same_bits(rounded, {"m.safetensors": expected["m"]})


def test_what_is_not_whole_is_found_while_it_is_so(tmp_path):
    out = tmp_path / "out"
    watcher = Watcher(out)
    run = out / "runs" / "ntp-seed0"
    steps = {
        "results.json is broken: Expecting": lambda: write_text(out / "results.json", "["),
        "runs/ntp-seed0.json is broken: Expecting": lambda: write_text(run.with_suffix(".json"), ""),
        "predictions.jsonl is broken: Expecting": lambda: write_text(out / "predictions.jsonl", '{}\n{"a":'),
        "looks like a model, but its weights are not whole": lambda: write_json(run / "config.json", {}),
        "checkpoint-5 is not complete: trainer_state.json is missing": (out / "checkpoint-5").mkdir,
    }
    for count, (what, act) in enumerate(steps.items()):
        assert len(watcher.found) == count
        with watcher.watching():
            act()
        assert what in watcher.found[-1]
    save_file({"w": torch.ones(2)}, run / "model.safetensors")
    write_json(run.with_suffix(".json"), {})
    write_text(out / "predictions.jsonl", "{}\n")
    (out / "checkpoint-5").rmdir()
    for content in ({"runs": []}, {"runs": [{"train_seconds": 1.0}]}, {"runs": [{"train_seconds": 2.0}]}):
        write_json(out / "results.json", content)
        watcher.look()
    assert watcher.versions == [{"runs": []}, {"runs": [{}]}]
    assert len(watcher.found) == len(steps)
    (out / "results.json").unlink()
    watcher.look()
    assert watcher.found[-1] == "results.json is gone"


def test_a_process_that_calls_exec_is_killed_before_it_ends():
    """join() with a time limit waited for its end, and all signals came too late."""
    process = multiprocessing.get_context("fork").Process(target=work_forever)
    process.start()
    try:
        assert 0.1 <= processor_seconds(process, 0.1) < 60
        assert process.exitcode is None
    finally:
        kill(process, signal.SIGTERM)
    assert ended(process) == -signal.SIGTERM


def work_forever():
    os.setsid()
    os.execv(sys.executable, [sys.executable, "-c", "import time; s = time.time()\nwhile time.time() < s + 60: pass"])


def test_what_is_left_is_found(tmp_path):
    for left in ("out/_unfinished", "out/runs/ntp-seed0/_unfinished", "out/pretrained/llama-seed0.partial", ".out.abc"):
        (tmp_path / left).mkdir(parents=True)
    (tmp_path / "out" / "checkpoint-5").mkdir()
    assert len(leftovers(tmp_path / "out")) == 4
