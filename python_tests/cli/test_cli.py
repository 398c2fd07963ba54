"""The command line: usage, flags and YAML files, and all commands from data to scores."""

import dataclasses
import json
import re

import pytest
from tiny_training import write_facts_and_model
from transformers import AutoTokenizer, LlamaForCausalLM, Trainer

from bico_ext.cli.arguments import parse
from bico_ext.cli.main import COMMANDS, main
from bico_ext.comparison.config import CompareConfig
from bico_ext.comparison.initial_models import initial_model
from bico_ext.comparison.systems import SYSTEMS
from bico_ext.evaluation.likelihood import likelihood_test
from bico_ext.facts.own import write_facts
from bico_ext.facts.synthetic import generate
from bico_ext.facts.types import Example, FactData, Question, Task
from bico_ext.generation.blanks import generate_blank
from bico_ext.models.attach import attach
from bico_ext.models.special_tokens import added_tokens


def test_usage_names_every_command(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)
    assert main(["compere"]) == 2
    assert "'compere' is not a command" in capsys.readouterr().err


def test_info_is_json(capsys):
    assert main(["info"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert {"torch", "built_with_torch", "kernels", "instruction_sets", "threads", "cuda"} <= set(info)
    compiles_nothing = info["kernels"].startswith("none")
    assert ("avx2" in info["instruction_sets"]) != compiles_nothing
    assert list(info["backends"]) == ["compiled", "flex", "portable"]
    assert info["backends"]["portable"].startswith("cpu")
    assert info["backends"]["compiled"].startswith("none" if compiles_nothing else "cpu")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_works(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"bico {command}" in capsys.readouterr().out


def test_an_unknown_option_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--output-dir", "out", "--sedes", "1"])
    assert stop.value.code == 2
    assert "--sedes" in capsys.readouterr().err


def test_systems_have_a_second_name(tmp_path):
    (config,) = parse("compare", [CompareConfig], ["--output-dir", "o", "--objectives", "ntp", "bico"])
    assert config.systems == ["ntp", "bico"]
    path = tmp_path / "c.yaml"
    path.write_text("output_dir: o\nobjectives: [ntp]\n")
    assert parse("compare", [CompareConfig], ["--config", str(path)])[0].systems == ["ntp"]
    assert parse("compare", [CompareConfig], ["--config", str(path), "--systems", "bert"])[0].systems == ["bert"]
    path.write_text("output_dir: o\nobjectives: [ntp]\nsystems: [bico]\n")
    with pytest.raises(ValueError, match="has both systems and objectives, two names of one option"):
        parse("compare", [CompareConfig], ["--config", str(path)])


def test_help_describes_each_system(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    shown = capsys.readouterr().out
    for name, system in SYSTEMS.items():
        assert f"  {name:<19}{system.summary}\n" in shown
    assert "(default: 1500)" in shown
    assert "None" not in shown, "a default that a preset decides"


def test_flags_override_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("output_dir: from-yaml\nseeds: [3, 4]\nsteps: 7\nbf16: false\n")
    (config,) = parse("compare", [CompareConfig], ["--config", str(path), "--steps", "9", "--systems", "ntp"])
    expected = CompareConfig(output_dir="from-yaml", seeds=[3, 4], steps=9, systems=["ntp"], bf16=False)
    assert dataclasses.asdict(config) == dataclasses.asdict(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sedes: [1]", "unknown options: sedes"),
        ("no_bf16: true", "unknown options: no_bf16"),
        ("- a list", "must hold options as `name: value`, got list"),
        ("a: [1", ": expected YAML, got"),
        ("a: 2026-13-45", ": expected YAML, got month must be in 1..12"),
        ("a\0:\0 \0001\0", "expected UTF-8, got UTF-16"),
    ],
)
def test_bad_yaml_is_named(text, message, tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert main(["compare", "--config", str(path), "--output-dir", "o"]) == 1
    error = capsys.readouterr().err
    assert str(path) in error
    assert message in error


def test_a_missing_yaml_is_named(capsys):
    assert main(["compare", "--config", "nowhere.yaml"]) == 1
    assert "nowhere.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("spelling", ["--config={}", "--config {}"])
def test_config_is_read_in_both_spellings(spelling, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("\ufeffoutput-dir: o\nsteps: 7\nseeds: 5\n", encoding="utf-8")
    (config,) = parse("compare", [CompareConfig], spelling.format(path).split())
    assert (config.output_dir, config.steps, config.seeds) == ("o", 7, [5])


@pytest.mark.parametrize("text", ["steps: 1.5", "bf16: perhaps"])
def test_yaml_values_are_checked_like_flags(text, tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(f"output_dir: {tmp_path}/out\n{text}\n")
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--config", str(path)])
    assert stop.value.code == 2
    assert text.split(":")[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_abbreviations(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--conf", "nowhere.yaml", "--output-dir", str(tmp_path / "out")])
    assert "--conf" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("/no/such/model", "model /no/such/model: no such folder"),
        (".", "is a folder without a config.json"),
    ],
)
@pytest.mark.parametrize("command", ["compare", "train", "evaluate", "probe"])
def test_a_wrong_model_path_is_named(command, model, sentence, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main([command, "--model", model, "--data", "synthetic", "--output-dir", out]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_train_needs_an_output_folder(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert main(["train", "--model", str(tmp_path), "--data", "synthetic", "--use_cpu"]) == 1
    assert "output_dir is missing; add --output-dir OUT" in capsys.readouterr().err


def test_resuming_without_a_checkpoint_keeps_what_is_there(tmp_path, capsys):
    (tmp_path / "model.safetensors").write_text("somebody's model")
    command = ["train", "--data", "synthetic", "--model", "m/m", "--output_dir", str(tmp_path), "--use_cpu", "--resume"]
    assert main(command) == 1
    assert (
        "already holds files but no complete checkpoint to resume from; name another folder" in capsys.readouterr().err
    )
    assert (tmp_path / "model.safetensors").read_text() == "somebody's model"


def test_train_finds_the_disk_full_and_goes_on_later(tmp_path, capsys, monkeypatch, caplog):
    write_facts_and_model(tmp_path)
    out = tmp_path / "out"
    command = ["train", "--data", str(tmp_path / "facts"), "--model", str(tmp_path / "model"), "--output_dir", str(out)]
    command += ["--max_steps", "6", "--save_steps", "2", "--use_cpu", "--report_to", "none", "--disable_tqdm", "true"]
    save = Trainer._save_rng_state

    def full_at_step_6(trainer, folder):
        if trainer.state.global_step == 6:
            raise OSError(28, "No space left on device")
        save(trainer, folder)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_save_rng_state", full_at_step_6)
        assert main(command) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "checkpoint-4" in line]
    assert line.startswith(f"bico train: {out / 'checkpoint-6'} cannot be saved: [Errno 28] No space left on device. ")
    assert f"The last complete checkpoint is {out / 'checkpoint-4'}; when the cause is removed" in line
    assert "continue from it with --resume" in line
    (out / "checkpoint-4" / "optimizer.pt").unlink()
    steps = []
    monkeypatch.setattr(Trainer, "_load_from_checkpoint", lambda self, folder, model=None: steps.append(folder))
    assert main([*command, "--resume"]) == 0
    assert steps == [str(out / "checkpoint-2")]
    skipped = f"{out / 'checkpoint-4'} is skipped, because it is not complete: there is no state of the optimizer"
    assert [message for message in caplog.messages if "skipped" in message] == [skipped]


@pytest.mark.parametrize("lora", [False, True])
def test_train_then_evaluate(tmp_path, capsys, monkeypatch, lora):
    facts = generate(names_first=2, descriptions_first=2, both=1)
    write_facts(facts, tmp_path / "facts")
    config = CompareConfig(output_dir="out", layers=1, hidden_size=32)
    model, tokenizer = initial_model(config, facts, "llama", 0)
    model.save_pretrained(tmp_path / "initial")
    tokenizer.save_pretrained(tmp_path / "initial")
    out = tmp_path / "trained"
    command = [
        "train",
        "--data",
        str(tmp_path / "facts"),
        "--model",
        str(tmp_path / "initial"),
        "--output_dir",
        str(out),
    ]
    command += ["--lora_r", "2"] if lora else []
    command += ["--max_steps", "4", "--save_steps", "2", "--use_cpu", "--report_to", "none", "--disable_tqdm", "true"]
    assert main([*command, "--resume"]) == 0
    said = capsys.readouterr()
    assert f"bico train: {out} has no checkpoint, so training starts at the beginning\n" in said.err
    assert f"bico evaluate --model {out} --data {tmp_path / 'facts'} --output-dir OUT" in said.out
    weights = out / ("adapter_model.safetensors" if lora else "model.safetensors")
    trained = weights.read_bytes()
    assert LlamaForCausalLM.from_pretrained(out).num_parameters() >= model.num_parameters()
    capsys.readouterr()

    assert main(command) == 1
    assert "already holds files; add --resume to continue" in capsys.readouterr().err
    assert weights.read_bytes() == trained
    assert main([*command, "--resume"]) == 0
    assert "starts at the beginning" not in capsys.readouterr().err
    assert weights.read_bytes() == trained

    ask = ["evaluate", "--data", str(tmp_path / "facts"), "--model", str(out), "--output_dir", str(tmp_path / "scores")]
    ask += ["--max_new_tokens", "3"]
    assert main(ask) == 0
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert (results["schema_version"], results["runs"][0]["system"]) == (2, str(out))
    assert results["runs"][0]["model_digest"].startswith("sha256 ")
    assert results["runs"][0]["tasks"].keys() == facts.tasks.keys()
    assert results["data"]["tasks"].keys() == facts.tasks.keys()
    assert results["data"]["tasks"]["N2D-reverse"]["reachable"] == 1
    assert (tmp_path / "scores" / "predictions.jsonl").exists()
    assert main(ask) == 1
    assert "already holds files; name another folder" in capsys.readouterr().err
    ask[ask.index(str(tmp_path / "scores"))] = str(weights)
    monkeypatch.setattr("bico_ext.cli.evaluate.evaluate", None)  # the folder is refused before any evaluation
    assert main(ask) == 1
    assert f"output_dir {weights} cannot be made (File exists)" in capsys.readouterr().err
    weights.write_bytes(trained[:100])
    for name in ("evaluate", "probe", "compare", "train"):
        new = ["--data", str(tmp_path / "facts"), "--model", str(out), "--output_dir", str(tmp_path / name)]
        assert main([name, *new]) == 1
        assert f"bico {name}: model {out} cannot be loaded: " in capsys.readouterr().err


def test_probe_reads_the_requested_texts(tmp_path, capsys, monkeypatch):
    facts = generate(names_first=2, descriptions_first=2, both=1, pretraining=0)
    model, tokenizer = initial_model(CompareConfig(output_dir="out", layers=1, hidden_size=32), facts, "llama", 0)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    pretrained = dataclasses.replace(facts, pretraining=facts.train[:7])
    monkeypatch.setattr("bico_ext.cli.probe.load_facts", {"facts": facts, "more": pretrained}.get)
    command = ["probe", "--model", str(tmp_path / "model"), "--samples", "3", "--seed", "5", "--lengths", "32", "9999"]
    for data, texts, count in (("facts", "train", len(facts.train)), ("more", "pretraining", 7)):
        out = tmp_path / data
        assert main([*command, "--data", data, "--texts", texts, "--output-dir", str(out)]) == 0
        said = capsys.readouterr()
        assert f"{texts} texts of {facts.name}; seed 5." in said.out
        assert "lengths: 9999 is left out, because the model's context or the data is shorter" in said.err
        results = json.loads((out / "probe.json").read_text())
        assert results["data"] == {"name": facts.name, "texts": texts, "n": count}
        assert results["settings"]["seed"] == 5
        assert results["attention"].keys() == {"causal", "bico", "naive"}
        assert {path.name for path in out.iterdir()} == {"probe.json", "table.md", "attention.png", "denoising.png"}
    assert main([*command, "--data", "facts", "--texts", "pretraining", "--output-dir", str(tmp_path / "none")]) == 1
    assert "has no pre-training texts; use texts='train'" in capsys.readouterr().err
    assert main([*command, "--data", "facts", "--output-dir", str(tmp_path / "facts")]) == 1
    assert "already holds files; name another folder" in capsys.readouterr().err


def test_probe_measures_details_of_general_english(tmp_path, monkeypatch, capsys):
    facts = generate(names_first=2, descriptions_first=2, both=1, pretraining=0)
    model, tokenizer = initial_model(CompareConfig(output_dir="out", layers=2, hidden_size=32), facts, "llama", 0)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    paragraphs = [example.text for example in facts.train]  # the tokenizer knows no other words
    monkeypatch.setattr("bico_ext.cli.probe.general_text", lambda: paragraphs)
    out = tmp_path / "out"
    command = f"probe --model {tmp_path}/model --data english --output-dir {out} --samples 3 --tokens 50 --lengths 24"
    details = "--mask-rates 0.3 --dtype bfloat16 --device cpu --details --detail-length 30 --detail-samples 4"
    assert main([*command.split(), *details.split()]) == 0
    results = json.loads((out / "probe.json").read_text())
    assert [(r["length"], r["mask"], r["texts"]) for r in results["denoising"][1:]] == [(24, "0.3", 2)]
    assert (results["partial_flips"]["texts"], results["partial_flips"]["length"]) == (4, 30)
    pictures = {"attention.png", "denoising.png", "heads.png", "flip.png"}
    assert {path.name for path in out.iterdir()} == {"probe.json", "table.md"} | pictures
    assert main([*command.split(), "--texts", "pretraining"]) == 1
    assert "texts must be 'train' with data='english', which has no others" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--likelihood"]])
def test_evaluate_runs_the_log_probability_test_on_request(tmp_path, monkeypatch, flags):
    asked = (Question("Ada is", " a pilot", distractor=" a cook"), Question("Bob is", " a cook", distractor=" a pilot"))
    texts = (Example("Ada is", " a pilot"), Example("Bob is", " a cook"))
    facts = FactData("", texts, {"N2D": Task("N2D", "description", asked)})
    monkeypatch.setattr("bico_ext.cli.evaluate.load_facts", lambda source: facts)
    model, tokenizer = initial_model(CompareConfig(output_dir="out", layers=1, hidden_size=32), facts, "llama", 0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    out = tmp_path / "scores"
    ask = ["evaluate", "--data", "facts", "--model", str(tmp_path), "--output-dir", str(out), "--max-new-tokens", "2"]
    assert main([*ask, *flags]) == 0
    scores = json.loads((out / "results.json").read_text())["runs"][0]["tasks"]["N2D"]
    assert ("likelihood" in scores) == bool(flags)
    if flags:
        expected = likelihood_test(model, tokenizer, facts.tasks["N2D"], progress=False)
        assert scores["likelihood"] == pytest.approx(expected, rel=1e-4)


def test_an_error_is_one_sentence_on_stderr(capsys, tmp_path):
    assert main(["compare", "--data", "/no/such/folder", "--output-dir", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists(), "the corrected command would be refused"
    captured = capsys.readouterr()
    assert captured.err.startswith("bico compare: ")
    assert "/no/such/folder" in captured.err
    assert "Traceback" not in captured.err


def test_a_tokenizer_without_padding_serves_every_command(tmp_path, monkeypatch, capsys):
    """That of Llama 1 to 3 has no padding token. `bico train` says which flag takes its place."""
    monkeypatch.chdir(tmp_path)
    write_facts_and_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained("model")
    tokenizer.pad_token = None
    tokenizer.save_pretrained("model")
    train = ["train", "--data", "facts", "--model", "model", "--output-dir", "out", "--max-steps", "1", "--use-cpu"]
    assert main(train) == 1
    assert "set placeholder_id=0" in capsys.readouterr().err
    assert main([*train, "--placeholder-id", "0"]) == 0
    assert (
        main(["evaluate", "--data", "facts", "--model", "out", "--output-dir", "scores", "--max-new-tokens", "3"]) == 0
    )
    assert main(["infill", "--model", "out", "--prefix", "The", "--lengths", "2"]) == 0
    probe = ["probe", "--data", "facts", "--model", "out", "--output-dir", "probe", "--samples", "4", "--lengths", "16"]
    assert main(probe) == 0


def test_a_tokenizer_with_more_tokens_than_the_model_is_one_sentence(tmp_path, monkeypatch, capsys):
    """The IndexError of the embedding ended `bico evaluate` with 93 lines."""
    monkeypatch.chdir(tmp_path)
    write_facts_and_model(tmp_path)
    model = LlamaForCausalLM.from_pretrained("model")
    model.resize_token_embeddings(40)
    model.save_pretrained("model")
    for command in (["evaluate", "--data", "facts"], ["train", "--data", "facts"], ["probe", "--data", "facts"]):
        assert main([*command, "--model", "model", "--output-dir", "out"]) == 1
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert re.fullmatch(r"bico \w+: .*: ids must be in \[0, 40\), .*", error.splitlines()[-1])


def test_evaluate_lets_a_model_of_blank_infilling_fill_blanks(tmp_path, monkeypatch):
    facts = generate(names_first=1, descriptions_first=1, both=1, pretraining=0)
    model, tokenizer = initial_model(CompareConfig(output_dir="out", layers=1, hidden_size=32), facts, "glm", 0)
    added_tokens(attach(model), tokenizer, ["mask", "sop", "eop"])
    expected = generate_blank(model, tokenizer, ["In the old days, Ada is"], mask="mask", max_new_tokens=2)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    asked = FactData("", facts.train, {"N2D": Task("N2D", "name", (Question("In the old days, Ada is", " Bob"),))})
    monkeypatch.setattr("bico_ext.cli.evaluate.load_facts", lambda source: asked)
    command = ["evaluate", "--data", "facts", "--model", str(tmp_path), "--max_new_tokens", "2"]
    answers = {}
    for generation in ("causal", "mask"):
        out = tmp_path / generation
        assert main([*command, "--generation", generation, "--output-dir", str(out)]) == 0
        answers[generation] = json.loads((out / "predictions.jsonl").read_text())["completion"]
    assert [answers["mask"]] == expected
    assert answers["causal"] != answers["mask"]


def test_evaluations_on_different_facts_of_the_same_name_stay_apart(tmp_path, monkeypatch, capsys):
    folders = []
    for name, answer in (("one", " a pilot"), ("two", " a baker")):
        asked = (Question("Ada is", answer),)
        train = (Example("Ada is", " a pilot."), Example("Bob is", " a baker."))
        facts = FactData("facts", train, {"N2D": Task("N2D", "description", asked)})
        model, tokenizer = initial_model(CompareConfig(output_dir="out", layers=1, hidden_size=32), facts, "llama", 0)
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        monkeypatch.setattr("bico_ext.cli.evaluate.load_facts", {"facts": facts}.get)
        folders.append(str(tmp_path / name))
        ask = ["evaluate", "--data", "facts", "--model", str(tmp_path / "model"), "--max-new-tokens", "2"]
        assert main([*ask, "--output-dir", folders[-1]]) == 0
    capsys.readouterr()
    assert main(["report", *folders, "--output-dir", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "(one)" in shown
    assert "(two)" in shown
