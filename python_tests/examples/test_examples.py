"""The scripts in examples/ run as a newcomer would run them, and do what they say."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script: str, *arguments: str, folder: Path) -> str:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_finetune_llama_learns_answers_and_goes_on_from_its_checkpoint(tmp_path):
    output = run("finetune_llama.py", "--steps", "50", "--questions", "2", "--output-dir", "first", folder=tmp_path)
    losses = [float(loss) for loss in re.findall(r"'loss': '?([\d.]+)", output)]
    assert len(losses) == 5
    assert losses[-1] < losses[0] - 1
    for task in ("N2D", "D2N", "N2D-reverse", "D2N-reverse"):
        assert re.search(
            rf"^{task}: \d+% of 2 answers hold the target\n  '.+' -> '.+' \(target: ' .+'\)$", output, re.M
        )
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    assert saved.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "first"))

    arguments = ("--model", "first", "--steps", "1", "--questions", "1", "--output-dir", "second")
    again = run("finetune_llama.py", *arguments, folder=tmp_path)
    assert float(re.findall(r"'loss': '?([\d.]+)", again)[0]) < losses[0] - 1
    assert (tmp_path / "second" / "model.safetensors").exists()


def test_own_training_loop_lowers_both_losses(tmp_path):
    output = run("own_training_loop.py", "--steps", "30", folder=tmp_path)
    lines = re.findall(r"^step (\d+), (ntp|bico): loss ([\d.]+)$", output, re.MULTILINE)
    assert [(step, name) for step, name, _ in lines] == [("1", "ntp"), ("2", "bico"), ("29", "ntp"), ("30", "bico")]
    first_ntp, first_bico, last_ntp, last_bico = (float(loss) for _, _, loss in lines)
    assert last_ntp < first_ntp / 2
    assert last_bico < first_bico / 2


def test_op_alone_agrees_with_the_reference(tmp_path):
    output = run("op_alone.py", "--length", "21", folder=tmp_path)
    errors = dict(re.findall(r"^(.+): relative error against the float64 reference (\S+)$", output, re.MULTILINE))
    assert list(errors) == ["output", "gradient of q", "gradient of k", "gradient of v"]
    assert all(0 < float(error) < 2e-6 for error in errors.values())  # float32; a wrong mask or rotation is off by 0.1


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_is_short_and_explains_itself(script, monkeypatch, capsys):
    source = (EXAMPLES / script).read_text()
    assert len(source.splitlines()) < 60
    assert f"({script})" in (EXAMPLES / "README.md").read_text()
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert ended.value.code == 0
    assert source.split('"""')[1].splitlines()[0] in capsys.readouterr().out
