"""Runs in processes of their own: one that dies says of what, and leaves the others alone."""

import os
from pathlib import Path

import torch

from bico_ext.jobs import cores, run_all


def work(what, folder, callback):
    if what == "raise":
        raise OSError("no room left")
    if what == "exit":
        os._exit(9)
    callback.on_step_end(None, None, None)
    (Path(folder) / what).write_text(str(torch.get_num_threads()))


def test_each_call_has_its_own_end(tmp_path, capsys):
    before = os.environ.get("OMP_NUM_THREADS")
    arguments = [(what, str(tmp_path)) for what in ("raise", "first", "exit", "second")]
    failures = run_all(work, arguments, steps=1, jobs=2, label="four")
    assert [type(failure) for failure in failures] == [OSError, type(None), RuntimeError, type(None)]
    assert str(failures[0]) == "no room left"
    assert str(failures[2]) == "it was ended from outside (exit code 9)"
    threads = str(max(1, cores() // 2))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"first": threads, "second": threads}
    assert "2/4" in capsys.readouterr().err, "the bar counts the steps of all"
    assert os.environ.get("OMP_NUM_THREADS") == before
