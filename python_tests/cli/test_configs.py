"""The shipped YAML files: what they say, and that they run on a tiny model."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from bico_ext.cli.arguments import parse
from bico_ext.cli.main import main
from bico_ext.cli.train import TrainConfig
from bico_ext.comparison.config import CompareConfig
from bico_ext.comparison.initial_models import initial_model
from bico_ext.facts.own import write_facts
from bico_ext.facts.synthetic import generate
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


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("llama*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_trainings_run(path, tmp_path):
    """Two steps on a tiny Llama; the adapters are on all linear layers but lm_head."""
    facts = generate(names_first=2, descriptions_first=2, both=1)
    write_facts(facts, tmp_path / "facts")
    model, tokenizer = initial_model(CompareConfig(output_dir="", layers=1, hidden_size=64), facts, "llama", 0)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    command = ["train", "--config", str(path), "--data", str(tmp_path / "facts"), "--model", str(tmp_path / "model")]
    command += ["--output-dir", str(tmp_path / "out"), "--max_steps", "2", "--use_cpu", "--report_to", "none"]
    assert main(command) == 0
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (32, 16, 0.01)
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as weights:
        trained = {name.split(".")[-3] for name in weights.keys()}  # noqa: SIM118 (it is no mapping)
    assert trained == {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}


def test_every_config_starts_with_its_command():
    for path in CONFIGS.iterdir():
        assert path.read_text().startswith(("# bico ", "# accelerate launch ")), path.name
