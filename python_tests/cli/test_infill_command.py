"""`bico infill`: the middles of `generate_infill`, printed or in a file."""

import json
from pathlib import Path

import peft
import pytest
import torch
from tiny_models import tiny_family, tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from bico_ext.cli.main import main
from bico_ext.generation.infilling import generate_infill
from bico_ext.models.attach import attach
from bico_ext.models.tokenization import train_word_tokenizer

GAPS = [("w1 w2", " w3 w4 w5"), ("w6", " w7"), ("w8\u2028w9", "")]


@pytest.fixture(scope="module", params=["model", "adapter"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(request.param)
    model = tiny_llama(initializer_range=0.5)
    model.save_pretrained(out)
    if request.param == "adapter":
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(out)
        adapters = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        out = tmp_path_factory.mktemp("lora")
        peft.get_peft_model(model, adapters).save_pretrained(out)
    train_word_tokenizer([" ".join(f"w{i}" for i in range(46))]).save_pretrained(out)
    return out


def expected(folder: Path, gaps: list[tuple[str, str]], **options) -> list[str]:
    model = attach(AutoModelForCausalLM.from_pretrained(folder))
    return generate_infill(model, AutoTokenizer.from_pretrained(folder), gaps, progress=False, **options)


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {}),
        (["--lengths", "3"], {"lengths": [3]}),
        (["--lengths", "2-4"], {"lengths": [2, 3, 4]}),
        (["--lengths", "9", "--no-mirror"], {"lengths": [9], "mirror": False}),
        (["--lengths", "9", "--causal_context"], {"lengths": [9], "causal_context": True}),
    ],
    ids=["defaults", "3", "2-4", "no-mirror", "causal"],
)
def test_the_middle_is_printed(folder, flags, options, capsys):
    command = ["infill", "--model", str(folder), "--prefix", GAPS[0][0], "--suffix", GAPS[0][1]]
    assert main([*command, *flags]) == 0
    assert [capsys.readouterr().out] == [middle + "\n" for middle in expected(folder, GAPS[:1], **options)]


def test_the_variants_differ(folder):
    variants = ({}, {"mirror": False}, {"causal_context": True})
    assert len({expected(folder, GAPS[:1], lengths=[9], **variant)[0] for variant in variants}) == 3


def test_files_and_a_config(folder, tmp_path, capsys):
    (tmp_path / "gaps.jsonl").write_text(
        "".join(json.dumps({"id": 7, "suffix": suffix, "prefix": prefix}) + "\n" for prefix, suffix in GAPS)
    )
    (tmp_path / "infill.yaml").write_text(f"model: {folder}\nlengths: 2\nbatch_size: 2\n")
    out = tmp_path / "new" / "middles.jsonl"
    command = ["infill", "--config", str(tmp_path / "infill.yaml"), "--input", str(tmp_path / "gaps.jsonl")]
    assert main([*command, "--output", str(out)]) == 0
    assert f"In {out}: 3 middles" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_bytes().decode().rstrip("\n").split("\n")]
    middles = expected(folder, GAPS, lengths=[2])
    assert rows == [
        {"prefix": prefix, "suffix": suffix, "middle": middle}
        for (prefix, suffix), middle in zip(GAPS, middles, strict=True)
    ]
    assert main([*command, "--output", str(out), "--lengths", "1"]) == 1
    assert f"output {out} already exists; name another file" in capsys.readouterr().err
    assert [json.loads(line) for line in out.read_bytes().decode().rstrip("\n").split("\n")] == rows


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "prefix and suffix are missing; add at least one of them"),
        (["--prefix", "w1", "--input", "gaps"], "prefix and suffix cannot be given together with input"),
        (["--prefix", "w1", "--output", "o"], "output needs an input file"),
        (["--input", "gaps"], "output is missing; add --output FILE"),
        (["--prefix", "w1", "--lengths", "8-1"], "lengths must be a number or a range such as 1-8, got '8-1'"),
        (["--prefix", "w1", "--lengths", "few"], "lengths must be a number or a range such as 1-8, got 'few'"),
        (["--input", "gaps", "--output", "gaps/o"], "output_dir gaps cannot be made"),
        (
            ["--input", "broken", "--output", "o"],
            "broken, line 2: expected an object with the strings prefix",
        ),
        (["--input", "list", "--output", "o"], "list, line 1: expected an object with the strings prefix and suffix"),
        (["--input", "empty", "--output", "o"], "empty holds no gaps; expected at least one line"),
        (["--input", "missing", "--output", "o"], "missing"),
        (["--prefix", "w1"], "model ./nowhere: no such folder"),
    ],
)
def test_errors_come_before_the_work(flags, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gap = json.dumps({"prefix": "w1", "suffix": " w2"})
    Path("gaps").write_text(gap)
    Path("broken").write_text(gap + '\n{"prefix": "w1"}\n')
    Path("list").write_text('["w1", " w2"]\n')
    Path("empty").write_text("")
    assert main(["infill", "--model", "./nowhere", *flags]) == 1
    assert sentence in capsys.readouterr().err
    assert not Path("o").exists()


def test_a_model_that_cannot_be_attached_is_named(tmp_path, capsys):
    tiny_family("gpt2").save_pretrained(tmp_path)
    train_word_tokenizer(["w1"]).save_pretrained(tmp_path)
    assert main(["infill", "--model", str(tmp_path), "--prefix", "w1"]) == 1
    assert "GPT2LMHeadModel has 2 layers but 0 attention modules" in capsys.readouterr().err
