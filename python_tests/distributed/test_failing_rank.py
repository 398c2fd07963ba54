"""One of two processes fails: both end soon, say where the last checkpoint is, and --resume goes on from there."""

import multiprocessing
import os
import signal
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from launched import launched
from safetensors.torch import load_file
from tiny_training import write_facts_and_model

from bico_ext.cli.main import main
from bico_ext.training.failures import telling_how_to_resume

PROGRAM = Path(__file__).with_name("failing_processes.py")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of bico train; each run adds its batch size and output folder."""
    folder = tmp_path_factory.mktemp("initial")
    write_facts_and_model(folder)
    command = ["--model", str(folder / "model"), "--data", str(folder / "facts"), "--max_steps", "5"]
    return [*command, "--save_steps", "2", "--use_cpu", "--report_to", "none", "--disable_tqdm", "true"]


@pytest.mark.parametrize("how", ["raises", "is killed"])
def test_a_failing_process_ends_all_and_the_run_can_go_on(how: str, command: list[str], tmp_path: Path) -> None:
    two = [*command, "--per_device_train_batch_size", "2", "--output_dir", str(tmp_path / "two")]
    result = launched(PROGRAM, how, *two)  # which gives up before the process that waits
    assert result.returncode != 0
    advice = f"; the last checkpoint is {tmp_path / 'two' / 'checkpoint-2'}; start the same command again with --resume"
    if how == "raises":
        assert f"bico train: process 1 of 2 failed{advice}\n" in result.stderr
        assert "bico train: no memory left\n" in result.stderr
    else:
        assert f"bico train: process 0 of 2 was ended by SIGTERM{advice}\n" in result.stderr
    assert "The trained model is in" not in result.stdout

    one = [*command, "--per_device_train_batch_size", "4"]
    assert main(["train", *one, "--output_dir", str(tmp_path / "two"), "--resume"]) == 0
    assert main(["train", *one, "--output_dir", str(tmp_path / "unbroken")]) == 0
    resumed, unbroken = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "unbroken"))
    for name, weight in unbroken.items():
        torch.testing.assert_close(resumed[name], weight, rtol=1e-4, atol=1e-5)


def work(started: Event) -> None:
    started.set()
    time.sleep(60)


def test_a_worker_that_is_terminated_does_not_end_its_parent(tmp_path: Path) -> None:
    """As those of a data loader; a forked process has the handlers and the files of its parent."""
    fork = multiprocessing.get_context("fork")
    started = fork.Event()
    with telling_how_to_resume("training", tmp_path):
        worker = fork.Process(target=work, args=(started,))
        worker.start()
        assert started.wait(20)
        worker.terminate()
        worker.join(20)
        assert worker.exitcode == -signal.SIGTERM
        time.sleep(0.2)  # the parent would end in the meantime
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_that_is_there_stays(tmp_path: Path) -> None:
    """That of `enable_jit_checkpoint` saves a checkpoint."""
    received = []
    earlier = signal.signal(signal.SIGTERM, lambda *_: received.append("SIGTERM"))
    try:
        with telling_how_to_resume("training", tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # the process would end in the meantime
        assert received == ["SIGTERM"]
    finally:
        signal.signal(signal.SIGTERM, earlier)


def fail_as_the_signal_comes(folder: Path) -> None:
    def slowly(_: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)  # the signal's thread would speak in the meantime

    with patch("bico_ext.training.failures.last_complete", slowly), telling_how_to_resume("training", folder):
        raise OSError("full")


def test_one_message_for_a_failure_and_a_signal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """torchrun may end a process that is failing because its peer is gone."""
    process = multiprocessing.get_context("fork").Process(target=fail_as_the_signal_comes, args=(tmp_path,))
    process.start()
    process.join(20)
    assert process.exitcode == 1  # by its exception
    error = capfd.readouterr().err
    assert error.count("bico train: ") == 1
    assert "bico train: training failed; " in error


def test_a_wrong_argument_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="wrong"), telling_how_to_resume("training", tmp_path):
        raise ValueError("wrong")
    assert not capsys.readouterr().err


def test_a_failure_before_the_first_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="full"), telling_how_to_resume("training", tmp_path / "missing"):
        raise OSError("full")
    error = capsys.readouterr().err
    assert error == (
        "bico train: training failed; there is no checkpoint yet, so start again; --save_steps says how often one is "
        "saved\n"
    )
