"""`generate` against a greedy loop without cache, batches or padding."""

import logging
from typing import Any

import peft
import pytest
import torch
from greedy_answers import NEW_TOKENS, PROMPTS, WORDS, greedy, greedy_ids, make_model, make_tokenizer
from tiny_models import tiny_llama
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM

from bico_ext.generation import greedy as greedy_generation
from bico_ext.generation.greedy import generate
from bico_ext.models.attach import attach
from bico_ext.models.tokenization import encode_prompt, train_word_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model(tokenizer):
    return make_model(tokenizer)


def complete(model, tokenizer, prompts=PROMPTS, **options) -> list[str]:
    return generate(model, tokenizer, prompts, **{"max_new_tokens": NEW_TOKENS, "progress": False} | options)


def test_the_problem_has_answers_of_all_lengths(model, tokenizer):
    lengths = [len(greedy_ids(model, encode_prompt(tokenizer, prompt), tokenizer.eos_token_id)) for prompt in PROMPTS]
    assert (min(lengths), max(lengths)) == (1, NEW_TOKENS)
    assert len(set(lengths)) > 4
    completions = greedy(model, tokenizer)
    assert len(set(completions)) == len(PROMPTS)
    assert "" in completions
    assert sum(completion.startswith(" ") for completion in completions) > 5


@pytest.mark.parametrize("batch_size", [1, 3, 10, 1000])
def test_greedy_in_the_given_order(model, tokenizer, batch_size):
    assert complete(model, tokenizer, batch_size=batch_size) == greedy(model, tokenizer)


def test_order_follows_the_prompts(model, tokenizer):
    forward = complete(model, tokenizer, batch_size=4)
    assert complete(model, tokenizer, PROMPTS[::-1], batch_size=4) == forward[::-1]
    assert complete(model, tokenizer, iter(PROMPTS[2:4])) == forward[2:4]
    assert complete(model, tokenizer, []) == []


@pytest.fixture
def shapes(model, monkeypatch) -> list[tuple[int, ...]]:
    """Record the shape [B, S] of each batch that the model gets, also of those that go on with a cache."""
    seen: list[tuple[int, ...]] = []
    stock = model.generate
    monkeypatch.setattr(
        model, "generate", lambda **given: (seen.append(tuple(given["input_ids"].shape)), stock(**given))[1]
    )
    monkeypatch.setattr(greedy_generation, "_STAGE_TOKENS", NEW_TOKENS)  # by default, no batch goes on
    return seen


def test_equal_prompts_are_generated_once(model, tokenizer, shapes):
    expected = complete(model, tokenizer, PROMPTS[:2])
    assert complete(model, tokenizer, [*PROMPTS[:2], PROMPTS[0], PROMPTS[0]]) == [*expected, expected[0], expected[0]]
    assert [rows for rows, _ in shapes] == [2, 2]


def test_batches_are_sorted_by_length(model, tokenizer, shapes):
    complete(model, tokenizer, batch_size=4)
    lengths = sorted((len(encode_prompt(tokenizer, prompt)) for prompt in PROMPTS), reverse=True)
    assert shapes == [(4, lengths[0]), (4, lengths[4]), (2, lengths[8])]


def family(name: str, tokenizer, **options) -> Any:
    """Make a small model of a family, in fp64, whose greedy answers are varied."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        name,
        **{"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "eos_token_id": None},
        **options,
    )
    return AutoModelForCausalLM.from_config(config).double()


def recorded_calls(model, monkeypatch) -> list[set[str]]:
    """Record the names of the arguments of each call of `model.generate`."""
    calls: list[set[str]] = []
    stock = model.generate
    monkeypatch.setattr(model, "generate", lambda **given: (calls.append(set(given)), stock(**given))[1])
    return calls


def test_rows_whose_answer_has_ended_leave_the_batch(model, tokenizer, shapes, monkeypatch):
    expected = greedy(model, tokenizer)
    ids = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    lengths = [len(greedy_ids(model, prompt, tokenizer.eos_token_id)) for prompt in ids]
    monkeypatch.setattr(greedy_generation, "_STAGE_TOKENS", 2)
    assert complete(model, tokenizer) == expected
    # An answer ends with EOS, or at the last token. Both of the latter kind stay until then.
    going_on = [sum(length > done for length in lengths) for done in (0, 2, 4, 6, 8)]
    assert going_on[0] > going_on[1] > going_on[3] > 0
    assert shapes == [(rows, max(map(len, ids)) + done) for rows, done in zip(going_on, (0, 2, 4, 6, 8), strict=True)]


@pytest.mark.parametrize("between", [1, 2, 5])
def test_it_goes_on_with_a_sliding_window(tokenizer, monkeypatch, between):
    model = family("mistral", tokenizer, sliding_window=4)
    expected = greedy(model, tokenizer)
    calls = recorded_calls(model, monkeypatch)
    monkeypatch.setattr(greedy_generation, "_STAGE_TOKENS", between)
    assert complete(model, tokenizer) == expected
    assert [bool({"cache", "past_key_values"} & given) for given in calls] == [False] + [True] * (len(calls) - 1)
    assert len(calls) > 1


def test_rows_of_other_states_are_not_selected(tokenizer, monkeypatch):
    """The states of a convolution are no keys and values, so the rest is generated from the start."""
    model = family("lfm2", tokenizer, layer_types=["conv", "full_attention"])
    expected = greedy(model, tokenizer)
    calls = recorded_calls(model, monkeypatch)
    monkeypatch.setattr(greedy_generation, "_STAGE_TOKENS", 2)
    assert complete(model, tokenizer, batch_size=4) == expected
    assert len(calls) == 2 * 3  # batches
    assert not any({"cache", "past_key_values"} & given for given in calls)


@pytest.mark.parametrize("name", ["bloom", "mamba"])
def test_a_model_whose_configuration_names_no_context(tokenizer, name):
    """It ended with the AttributeError of the configuration."""
    model = family(name, tokenizer).float()  # with float64, transformers' Bloom gives NaN for rows with padding
    assert complete(model, tokenizer, batch_size=4) == greedy(model, tokenizer)


def test_an_attached_model_generates_like_the_stock_model(model, tokenizer):
    expected = greedy(model, tokenizer)
    assert complete(attach(model), tokenizer, batch_size=4) == expected


def lora(model: LlamaForCausalLM) -> peft.PeftModel:
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config).double()


def test_peft_model_generates_with_its_adapter(model, tokenizer):
    plain = greedy(model, tokenizer)
    adapted = lora(model)
    expected = greedy(adapted, tokenizer)
    assert expected != plain
    assert complete(adapted, tokenizer, batch_size=4) == expected


SAMPLING = {
    "do_sample": True,
    "temperature": 5.0,
    "top_k": 7,
    "num_beams": 3,
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": NEW_TOKENS,
    "max_length": 11,
    "suppress_tokens": list(range(4, 15)),
    "eos_token_id": list(range(4, 15)),
    "pad_token_id": 9,
    "use_cache": False,
}


@pytest.mark.parametrize("wrap", [lambda model: model, lora], ids=["model", "peft"])
def test_settings_of_the_model_do_not_leak(model, tokenizer, wrap):
    wrapped = wrap(model)
    expected = greedy(wrapped, tokenizer)
    model.generation_config = own = GenerationConfig(**SAMPLING)
    assert complete(wrapped, tokenizer) == expected
    assert model.generation_config is own


def test_a_peft_models_own_settings_do_not_leak(model, tokenizer):
    adapted = lora(model)
    expected = greedy(adapted, tokenizer)
    adapted.generation_config = own = GenerationConfig(**SAMPLING)
    inner = model.generation_config
    assert complete(adapted, tokenizer) == expected
    assert adapted.generation_config is own
    assert model.generation_config is inner


def test_transformers_gives_no_warnings(model, tokenizer, recwarn):
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        complete(model, tokenizer)
        model.generation_config.max_length = 20
        complete(model, tokenizer)
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == []
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("fails", [False, True], ids=["success", "error"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_everything_is_restored(model, tokenizer, monkeypatch, fails, side):
    monkeypatch.setattr(tokenizer, "padding_side", side)
    model.train()
    model.model.layers[0].eval()  # for example a frozen layer
    modes = {name: module.training for name, module in model.named_modules()}
    config = model.generation_config
    seen = []

    def observed(**given):
        seen.append(any(module.training for module in model.modules()))
        if fails:
            raise RuntimeError("out of memory")
        return LlamaForCausalLM.generate(model, **given)

    monkeypatch.setattr(model, "generate", observed)
    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            complete(model, tokenizer)
    else:
        complete(model, tokenizer)
    assert set(seen) == {False}
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert len(set(modes.values())) == 2
    assert model.generation_config is config
    assert tokenizer.padding_side == side
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_can_be_trained_afterwards(model, tokenizer):
    complete(model, tokenizer)
    model.train()
    ids = torch.tensor([[2, 5, 6, 7]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_padding_after_the_end_is_not_part_of_an_answer(model):
    tokenizer = train_word_tokenizer([WORDS])
    tokenizer.pad_token = " Ada"  # an ordinary word, which decoding does not skip
    assert tokenizer.decode([tokenizer.pad_token_id], skip_special_tokens=True) == "Ada"
    assert complete(model, tokenizer) == greedy(model, tokenizer)


@pytest.mark.parametrize("eos", [True, False])
def test_no_pad_token_is_needed(model, tokenizer, eos):
    """Llama 1 to 3 have none."""
    bare = train_word_tokenizer([WORDS])
    bare.eos_token = bare.eos_token if eos else None
    expected = complete(model, bare)
    bare.pad_token = None
    assert complete(model, bare) == expected


def test_without_an_eos_token_answers_have_full_length(model):
    tokenizer = train_word_tokenizer([WORDS])
    tokenizer.eos_token = None
    expected = [
        tokenizer.decode(ids + greedy_ids(model, ids, None), skip_special_tokens=True)
        for ids in (encode_prompt(tokenizer, prompt) for prompt in PROMPTS)
    ]
    prompts = [tokenizer.decode(encode_prompt(tokenizer, prompt), skip_special_tokens=True) for prompt in PROMPTS]
    completions = complete(model, tokenizer)
    assert [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)] == expected


def test_longest_prompt_that_fits(model, tokenizer):
    longest = " ".join(["Ada"] * (24 - NEW_TOKENS - 1))  # one token is left for BOS
    assert complete(model, tokenizer, [longest]) == greedy(model, tokenizer, [longest])
    with pytest.raises(
        ValueError, match=r"'Ada Ada.* with max_new_tokens=9 needs 25 tokens, .* context is 24 .*lower max_new_tokens"
    ):
        complete(model, tokenizer, ["She", longest + " Ada"])


def test_a_long_prompt_is_shortened_in_the_error(model, tokenizer):
    with pytest.raises(ValueError, match="max_position_embeddings") as error:
        complete(model, tokenizer, ["Ada " * 1000 + "Byron"])
    assert len(str(error.value)) < 300


def test_refusals(model, tokenizer, monkeypatch):
    with pytest.raises(TypeError, match=r"use \[text\]"):
        complete(model, tokenizer, "Ada")
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        complete(model, tokenizer, max_new_tokens=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        complete(model, tokenizer, batch_size=0)
    bare = train_word_tokenizer(["Ada"])
    bare.bos_token = None
    bare.backend_tokenizer.post_processor = None
    with pytest.raises(ValueError, match="at least one token, got none for ''"):
        complete(model, bare, ["Ada", ""])


def test_a_prompt_with_a_token_that_the_model_lacks_is_refused(tokenizer):
    """The embedding raised an IndexError. Padding that it lacks is accepted, because nothing attends to it."""
    ids = encode_prompt(tokenizer, "Ada wrote")
    model = tiny_llama(vocab_size=max(ids))
    with pytest.raises(
        ValueError, match=rf"prompt 'Ada wrote': ids must be in \[0, {max(ids)}\), .* use the tokenizer"
    ):
        complete(model, tokenizer, ["Ada wrote"])
    padded = train_word_tokenizer(["Ada wrote"])
    padded.add_special_tokens({"pad_token": "[PAD]"})
    model = tiny_llama(vocab_size=padded.pad_token_id)
    prompts = ["Ada", "Ada wrote Ada"]
    expected = [answer for prompt in prompts for answer in complete(model, padded, [prompt])]
    assert complete(model, padded, prompts) == expected


@pytest.mark.parametrize(("rank", "progress", "shown"), [(0, True, True), (1, True, False), (0, False, False)])
def test_only_rank_0_shows_a_progress_bar(model, tokenizer, monkeypatch, capsys, rank, progress, shown):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    complete(model, tokenizer, progress=progress)
    assert ("10/10" in capsys.readouterr().err) == shown
