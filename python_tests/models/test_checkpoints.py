"""Adapters load as they were saved: LoRA, DoRA, IA3, and on a base of 4 bits; others are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from tiny_models import tiny_llama, tokens
from transformers import AutoTokenizer, LlamaForCausalLM

from bico_ext.cli.main import main
from bico_ext.evaluation.evaluate import Evaluation
from bico_ext.evaluation.likelihood import log_probabilities
from bico_ext.facts.own import write_facts
from bico_ext.facts.synthetic import generate
from bico_ext.facts.types import Example
from bico_ext.generation.greedy import generate as answers
from bico_ext.models.attach import attach
from bico_ext.models.checkpoints import content_digest, load
from bico_ext.models.tokenization import train_word_tokenizer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with a model and a tokenizer."""
    facts = generate(names_first=2, descriptions_first=2, both=1)
    write_facts(facts, tmp_path / "facts")
    tokenizer = train_word_tokenizer([example.text for example in facts.train])
    tokenizer.save_pretrained(tmp_path / "base")
    # bitsandbytes needs widths that are multiples of 64 on a CPU.
    tiny_llama(vocab_size=len(tokenizer), intermediate_size=128).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def with_adapters(model: Any, **settings: Any) -> Any:
    """The model with adapters that are far from zero."""
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    model = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def save(model: Any, base: Path, folder: Path) -> Path:
    model.save_pretrained(folder)
    for file in base.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("gpu", "device", "expected"), [(True, None, "cuda"), (False, None, "cpu"), (True, "cpu", "cpu")]
)
def test_a_model_is_loaded_on_a_gpu_if_there_is_one(
    base: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool, device: str | None, expected: str
) -> None:
    moved: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(LlamaForCausalLM, "to", lambda self, device: moved.append(device))
    load(base, device=device)
    assert moved == [expected]


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_are_loaded_whole(base: Path, tmp_path: Path, dora: bool) -> None:
    """DoRA's magnitudes were once left out: log p was -36.8 instead of -32.6, and nothing was said."""
    model = with_adapters(LlamaForCausalLM.from_pretrained(base), use_dora=dora)
    ids = tokens(2, 9)
    expected = model(input_ids=ids).logits
    folder = save(model, base, tmp_path / "adapters")
    loaded, _ = load(folder, device="cpu")
    assert torch.equal(loaded.eval()(input_ids=ids).logits, expected)
    merged, _ = load(folder, device="cpu", merge_adapters=True)
    assert isinstance(merged, LlamaForCausalLM)
    torch.testing.assert_close(merged.eval()(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert all(parameter.requires_grad for parameter in merged.parameters())


@pytest.mark.parametrize("place", ["gone", None, "", 5])
def test_adapters_whose_base_is_gone_say_where_to_write_its_place(base: Path, tmp_path: Path, place: Any) -> None:
    """They were looked up on the hub, which was not told from a network that is down."""
    folder = save(with_adapters(LlamaForCausalLM.from_pretrained(base)), base, tmp_path / "adapters")
    file = folder / "adapter_config.json"
    named = str(tmp_path / place) if place == "gone" else place
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": named}))
    remedy = f"write its name or its absolute path as base_model_name_or_path into {file}"
    message = f"on the base model {named!r}, which is not there; {remedy}"
    for read in (load, content_digest):
        with pytest.raises(FileNotFoundError, match=message):
            read(folder)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig, PromptEncoderConfig])
def test_adapters_that_are_virtual_tokens_are_refused(base: Path, tmp_path: Path, kind: Any) -> None:
    """The likelihood of prompt tuning was read four places too early, and its answers were not the model's."""
    settings = kind(num_virtual_tokens=4, task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), settings)
    folder = save(model, base, tmp_path / "adapters")
    tokenizer = AutoTokenizer.from_pretrained(base)
    message = f"model has adapters of the kind {settings.peft_type.value}, which are virtual tokens"
    for refused in (
        lambda: load(folder, merge_adapters=True),
        lambda: attach(model),
        lambda: answers(model, tokenizer, ["The"]),
        lambda: log_probabilities(model, tokenizer, [Example("The", " name")]),
    ):
        with pytest.raises(TypeError, match=message):
            refused()


def test_adapters_that_scale_activations_answer_as_they_were_saved(base: Path, tmp_path: Path) -> None:
    settings = IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), settings).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data *= 1 + torch.randn(parameter.shape, generator=generator)
    ids = tokens(2, 9)
    expected = model(input_ids=ids).logits
    folder = save(model, base, tmp_path / "adapters")
    assert not torch.allclose(expected, LlamaForCausalLM.from_pretrained(base)(input_ids=ids).logits)
    assert torch.equal(load(folder, device="cpu")[0].eval()(input_ids=ids).logits, expected)
    merged, _ = load(folder, device="cpu", merge_adapters=True)
    torch.testing.assert_close(merged.eval()(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_base_of_4_bits_is_that_of_bitsandbytes(base: Path) -> None:
    """Its layers are attached like others. The reference is a stock model with the weights after quantisation."""
    model, _ = load(base, device="cpu", load_in_4bit=True)
    quantised = {name: part for name, part in model.named_modules() if type(part).__name__ == "Linear4bit"}
    assert len(quantised) == 2 * 7
    stock = LlamaForCausalLM.from_pretrained(base).eval()
    for name, part in quantised.items():
        identity = torch.eye(part.in_features)
        stock.get_submodule(name).weight.data = part(identity).T.float()
    ids = tokens(2, 9)
    with torch.no_grad():
        expected, got = stock(input_ids=ids).logits, attach(model).eval()(input_ids=ids).logits
        assert (got - expected).norm() < 2e-2 * expected.norm()  # bitsandbytes computes in bfloat16
        span_ids = torch.zeros(2, 9, dtype=torch.int32)
        expected, got = (m(input_ids=ids, span_ids=span_ids).logits for m in (attach(stock), model))
        assert (got - expected).norm() < 2e-2 * expected.norm()


def test_qlora_is_trained_and_evaluated_on_the_same_base(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Adapters were once scored on the base as it is. Here `bico evaluate` gets a 4-bit base without a flag."""
    facts, out = str(tmp_path / "facts"), tmp_path / "qlora"
    command = ["train", "--data", facts, "--model", str(base), "--output-dir", str(out), "--load_in_4bit"]
    options = ["--max_steps", "2", "--save_steps", "1", "--learning_rate", "0.01", "--use_cpu", "--report_to", "none"]
    assert main([*command, *options]) == 1  # without adapters
    assert main([*command, *options, "--lora_r", "2"]) == 0
    loaded: list[Any] = []
    monkeypatch.setattr(
        "bico_ext.cli.evaluate.evaluate", lambda model, *_, **__: loaded.append(model) or Evaluation(())
    )
    for folder in (out, out / "checkpoint-1"):
        scores = str(tmp_path / f"scores-{folder.name}")
        assert main(["evaluate", "--data", facts, "--model", str(folder), "--output-dir", scores]) == 0
        layer = loaded.pop().get_base_model().model.layers[0].self_attn.q_proj
        assert type(layer.base_layer).__name__ == "Linear4bit"
        assert layer.lora_A.default.weight.shape == (2, 64)
    assert main([*command[:-1], *options, "--lora_r", "2", "--resume"]) == 0
    again = ["train", "--data", facts, "--model", str(out), "--output-dir", str(tmp_path / "again"), *options]
    assert main(again) == 1


def test_the_digest_tells_models_apart_and_not_their_folders(base: Path, tmp_path: Path) -> None:
    first = content_digest(base)
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    assert content_digest(copy) == first
    (copy / "README.md").write_text("A card says nothing about the numbers.")
    assert content_digest(copy) == first
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        content = bytearray((copy / file).read_bytes())
        content[-1] ^= 1
        (copy / file).write_bytes(content)
        assert content_digest(copy) != first, file
        content[-1] ^= 1
        (copy / file).write_bytes(content)
    assert content_digest(copy) == first


def test_the_digest_of_adapters_is_also_that_of_their_base(base: Path, tmp_path: Path) -> None:
    adapters = save(with_adapters(LlamaForCausalLM.from_pretrained(base)), base, tmp_path / "adapters")
    before = content_digest(adapters)
    other = LlamaForCausalLM.from_pretrained(base)
    other.model.embed_tokens.weight.data += 1
    other.save_pretrained(base)
    assert content_digest(adapters) != before
