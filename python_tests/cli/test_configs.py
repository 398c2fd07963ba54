"""The shipped YAML files: what they say, and that they run on a tiny model."""

import json
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open
from transformers import TrainerCallback

from bico_ext.cli.arguments import parse
from bico_ext.cli.main import main
from bico_ext.cli.train import TrainConfig
from bico_ext.comparison.compare import compare
from bico_ext.comparison.config import CompareConfig
from bico_ext.comparison.initial_models import initial_model
from bico_ext.facts.loader import load_facts
from bico_ext.facts.own import write_facts
from bico_ext.facts.synthetic import generate
from bico_ext.reports.records import BEFORE
from bico_ext.training.config import BicoConfig

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("compare_*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_comparisons_are_the_defaults(path):
    (config,) = parse("compare", [CompareConfig], ["--config", str(path), "--output-dir", "o"])
    assert config == CompareConfig(output_dir="o", data=config.data, setting=config.setting, model=config.model)
    written = path.read_text().splitlines()
    assert config.settings.keys() <= {line.split(":")[0] for line in written}, "a setting is missing"


@pytest.mark.parametrize("objective", ["bico", "ntp"])
def test_the_shipped_training_is_the_official_recipe(objective):
    path = f"{CONFIGS}/llama2_7b_{objective}.yaml"
    command = ["--config", path, "--data", "d", "--model", "m", "--use_cpu"]
    train, args = parse("train", [TrainConfig, BicoConfig], command)
    assert (train.lora_r, train.lora_alpha, train.lora_dropout) == (32, 16, 0.01)
    assert (args.learning_rate, args.warmup_steps, args.per_device_train_batch_size) == (2e-5, 100, 4)
    assert args.num_train_epochs == 10
    assert args.objective == objective
    if objective == "bico":
        assert (args.mask_rate, args.mixing_probability, args.placeholder_id) == (0.15, 0.5, 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a few facts, and some about other entities to pre-train on."""
    folder = tmp_path_factory.mktemp("facts")
    write_facts(generate(names_first=1, descriptions_first=1, both=1, pretraining=1), folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(data, tmp_path_factory):
    """A folder with a tiny Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    config = CompareConfig(output_dir="out", layers=1, hidden_size=64)
    for part in initial_model(config, load_facts(data), "llama", 0):
        part.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("llama*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_trainings_run(path, data, model, tmp_path):
    """Two steps on a tiny Llama; the adapters are on all linear layers but lm_head."""
    command = ["train", "--config", str(path), "--data", data, "--model", model]
    command += ["--output-dir", str(tmp_path / "out"), "--max_steps", "2", "--use_cpu", "--report_to", "none"]
    assert main(command) == 0
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (32, 16, 0.01)
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as weights:
        trained = {name.split(".")[-3] for name in weights.keys()}  # noqa: SIM118 (it is no mapping)
    assert trained == {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("compare_*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_comparisons_run(path, data, model, tmp_path, monkeypatch):
    """Two steps of each system on a narrow model, in this process, because each worker would import torch first."""

    def run_here(work, arguments, **options):
        for items in arguments:
            work(*items, TrainerCallback())
        return [None] * len(arguments)

    monkeypatch.setattr("bico_ext.comparison.compare.run_all", run_here)
    written = yaml.safe_load(path.read_text())
    smaller = {"data": data, "pretrain_steps": 1, "batch_size": 4}
    smaller |= {"max_new_tokens": 1, "curve_points": 1, "curve_questions": 1, "output_dir": str(tmp_path / "out")}
    smaller |= {"epochs": 1, "batch_size": 64} if written["steps"] is None else {"steps": 2}
    smaller |= {"model": model} if written["model"] == "PATH" else {"hidden_size": 32}
    flags = [part for name, value in smaller.items() for part in (f"--{name}", str(value))]
    results = compare(*parse("compare", [CompareConfig], ["--config", str(path), *flags]))
    before = [BEFORE] if written["model"] == "PATH" else []
    assert [run.system for run in results.runs] == [*before, "ntp", "bico", "infill", "permute"]
    assert results.failures == ()
    kept = {name: value for name, value in written.items() if name not in (*smaller, "systems", "seeds", "steps")}
    assert kept.items() <= results.settings.items()


def test_every_config_starts_with_its_command():
    for path in CONFIGS.iterdir():
        assert path.read_text().startswith(("# bico ", "# accelerate launch ")), path.name
