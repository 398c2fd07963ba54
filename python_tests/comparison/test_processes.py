"""Calls in processes of their own: a failure is reported and does not touch the other calls."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch

from bico_ext.comparison.processes import run_all
from bico_ext.environment import cores


class Odd(Exception):
    """An exception that cannot be unpickled."""

    def __init__(self, one, other):
        super().__init__(one)
        self.other = other


def work(what, folder, callback):
    if what == "raise":
        raise OSError("no room left" + " at all" * 100_000)  # more than a pipe holds
    if what == "odd":
        raise Odd("two", "arguments")
    if what == "exit":
        os._exit(9)
    callback.on_step_end(None, None, None)
    (Path(folder) / what).write_text(str(torch.get_num_threads()))


def run_forever(folder, callback):
    """Behave like a run that has made all its steps and is evaluating."""
    (Path(folder) / "pid").write_text(str(os.getpid()))
    while True:
        time.sleep(0.05)


def test_a_run_does_not_outlive_a_killed_parent(tmp_path):
    call = (
        f"import test_processes as t; t.run_all(t.run_forever, [({str(tmp_path)!r},)], steps=[1], jobs=1, label='one')"
    )
    folder = Path(__file__).parent
    parent = subprocess.Popen([sys.executable, "-c", call], cwd=folder, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    child = int((tmp_path / "pid").read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()


def test_a_script_without_a_guard_is_told_what_it_needs(tmp_path):
    """Each process imported the script, which began the comparison anew and complained that its folder was taken."""
    (tmp_path / "script.py").write_text(
        "from bico_ext.comparison.compare import compare\n"
        "from bico_ext.comparison.config import CompareConfig\n"
        "results = compare(CompareConfig('out', steps=1, layers=1, hidden_size=16, systems=['ntp'], jobs=1))\n"
        "print([failure.error for failure in results.failures])\n"
    )
    command = [sys.executable, "script.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300)
    assert (
        "RuntimeError: a comparison starts processes, and each of them imports this script; call compare()"
        in ran.stderr
    )
    assert "is being written to by another comparison" not in ran.stderr
    assert ran.stdout == "['the process ended without an error message (exit code 1)']\n"


@pytest.mark.parametrize("when", ["before", "after"])
def test_ctrl_c_ends_a_run_that_has_just_started(tmp_path, monkeypatch, when):
    """It was not yet known as running, so the command waited for the end of its training, which ignores Ctrl-C."""
    start = ForkServerProcess.start

    def start_interrupted(process):
        if when == "after":
            start(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(ForkServerProcess, "start", start_interrupted)
    of_other_tests = multiprocessing.active_children()
    with pytest.raises(KeyboardInterrupt):
        run_all(run_forever, [(str(tmp_path),)], steps=[1], jobs=1, label="one")
    started = [child for child in multiprocessing.active_children() if child not in of_other_tests]
    assert len(started) == (when == "after")
    for process in started:
        process.join(60)
        exitcode = process.exitcode
        process.kill()  # or the tests would wait for it
        assert exitcode == -signal.SIGTERM


def test_each_call_succeeds_or_fails_on_its_own(tmp_path, capsys):
    before = os.environ.get("OMP_NUM_THREADS")
    arguments = [(what, str(tmp_path)) for what in ("raise", "first", "exit", "odd", "second")]
    failures = run_all(work, arguments, steps=[1] * 5, jobs=2, label="five")
    assert failures[0].startswith("OSError: no room left at all")
    assert failures[1:] == [None, "the process ended without an error message (exit code 9)", "Odd: two", None]
    threads = str(max(1, cores() // 2))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"first": threads, "second": threads}
    assert "2/5" in capsys.readouterr().err, "the bar counts the steps of all calls"
    assert os.environ.get("OMP_NUM_THREADS") == before


def count(steps, seconds, callback):
    for _ in range(steps):
        time.sleep(seconds)
        callback.on_step_end(None, None, None)


def test_the_time_is_estimated_once(capsys):
    assert run_all(count, [(70, 0.1)] * 2, steps=[70, 70], jobs=2, label="two") == [None, None]
    said = [line for line in capsys.readouterr().err.splitlines() if "training takes" in line]
    assert len(said) == 1
    assert "about 1 min per run and 1 min for all that is left, with 2 at once" in said[0]
