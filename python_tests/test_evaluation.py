"""Completions against a greedy loop without cache, batches or padding; the summary against counts made by hand."""

import json
import logging

import peft
import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bico_ext import evaluation
from bico_ext.data import Question, Task
from bico_ext.evaluation import Evaluation, Prediction, evaluate
from bico_ext.generation import generate
from bico_ext.likelihood import likelihood_test
from bico_ext.models.attach import attach
from bico_ext.models.tokenization import encode_prompt, train_word_tokenizer

WORDS = "the composer of a first symphony, who wrote it: Ada Byron. She was not known as 'Abyssal' then"
PROMPTS = [
    "Ada Byron",
    "the first symphony, it was",
    "She",
    "who wrote the symphony of a composer known as Ada Byron then",
    "then it was not",
    "a",
    "the composer of the first symphony, who was known as",
    "not known",
    "She was",
    "it was a never-seen word",
]
NEW_TOKENS = 9


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_word_tokenizer([WORDS])


@pytest.fixture
def model(tokenizer) -> LlamaForCausalLM:
    """fp64, so that no order of summation decides between two tokens; weights large enough for varied answers."""
    torch.manual_seed(6)  # answers of all lengths: see the first test
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=24,
        initializer_range=0.3,
        attention_dropout=0.5,  # would show if generation ran in training mode
    )
    return LlamaForCausalLM(config).double()


def greedy_ids(model, ids: list[int], eos: int | None, new_tokens: int = NEW_TOKENS) -> list[int]:
    """The ids after a prompt, EOS included: one prompt, no padding, the whole sequence run anew for each token."""
    answer: list[int] = []
    model.eval()
    while len(answer) < new_tokens and (not answer or answer[-1] != eos):
        with torch.no_grad():
            answer.append(int(model(input_ids=torch.tensor([ids + answer]), use_cache=False).logits[0, -1].argmax()))
    return answer


def greedy(model, tokenizer, prompts=PROMPTS) -> list[str]:
    completions = []
    for prompt in prompts:
        ids = encode_prompt(tokenizer, prompt)
        answer = greedy_ids(model, ids, tokenizer.eos_token_id)
        text = tokenizer.decode(ids + answer, skip_special_tokens=True)
        completions.append(text[len(tokenizer.decode(ids, skip_special_tokens=True)) :])
    return completions


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
    """[B, S] of each batch that the model is given."""
    seen: list[tuple[int, ...]] = []
    stock = model.generate
    monkeypatch.setattr(
        model, "generate", lambda **given: (seen.append(tuple(given["input_ids"].shape)), stock(**given))[1]
    )
    return seen


def test_equal_prompts_are_generated_once(model, tokenizer, shapes):
    expected = complete(model, tokenizer, PROMPTS[:2])
    assert complete(model, tokenizer, [*PROMPTS[:2], PROMPTS[0], PROMPTS[0]]) == [*expected, expected[0], expected[0]]
    assert [rows for rows, _ in shapes] == [2, 2]


def test_batches_are_sorted_by_length(model, tokenizer, shapes):
    complete(model, tokenizer, batch_size=4)
    lengths = sorted((len(encode_prompt(tokenizer, prompt)) for prompt in PROMPTS), reverse=True)
    assert shapes == [(4, lengths[0]), (4, lengths[4]), (2, lengths[8])]


def test_attached_model_generates_as_stock(model, tokenizer):
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


def test_transformers_has_nothing_to_warn_about(model, tokenizer, recwarn):
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
def test_everything_is_put_back(model, tokenizer, monkeypatch, fails, side):
    monkeypatch.setattr(tokenizer, "padding_side", side)
    model.train()
    model.model.layers[0].eval()  # a frozen layer, say
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
    assert seen == [False]
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
    longest = " ".join(["Ada"] * (24 - NEW_TOKENS - 1))  # and BOS
    assert complete(model, tokenizer, [longest]) == greedy(model, tokenizer, [longest])
    with pytest.raises(ValueError, match=r"a prompt of 16 tokens and max_new_tokens = 9 .* context of 24 .*'Ada Ada"):
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
    bare.pad_token = None
    with pytest.raises(ValueError, match=r"tokenizer.pad_token = tokenizer.eos_token"):
        complete(model, bare)


@pytest.mark.parametrize(("rank", "progress", "shown"), [(0, True, True), (1, True, False), (0, False, False)])
def test_progress_bar_is_rank_0s(model, tokenizer, monkeypatch, capsys, rank, progress, shown):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    complete(model, tokenizer, progress=progress)
    assert ("10/10" in capsys.readouterr().err) == shown


# --- Scores ---

TASKS = {
    "N2D": Task(
        "N2D",
        "description",
        (
            Question("Ada is", " the first programmer of all."),
            Question("Bob is", " the last knight."),
            Question("Cy is", " a pilot."),
            Question("Ada is", " a lady."),  # a prompt with two right answers
        ),
    ),
    "N2D-reverse": Task("N2D-reverse", "name", (Question("The first was", " Ada Byron"),)),
}
ANSWERS = {
    "Ada is": " The first programmer of all, they say",  # another case, no full stop
    "Bob is": " the last knight.",
    "Cy is": " the pilot.",
    "The first was": "Ada Byron ",
}


@pytest.fixture
def answered(monkeypatch) -> Evaluation:
    """An evaluation of a model that gives ANSWERS."""
    calls = []

    def generate(model, tokenizer, prompts, **options):
        calls.append((model, tokenizer, options))
        return [ANSWERS[prompt] for prompt in prompts]

    monkeypatch.setattr(evaluation, "generate", generate)
    result = evaluate("model", "tokenizer", TASKS, max_new_tokens=7, batch_size=5, progress=False)  # type: ignore
    assert calls == [("model", "tokenizer", {"max_new_tokens": 7, "batch_size": 5, "progress": False})]
    return result


def test_predictions_keep_everything_in_order(answered):
    kept = [(p.task, p.prompt, p.target, p.completion, p.contains, p.exact_match) for p in answered.predictions]
    assert kept == [
        ("N2D", "Ada is", " the first programmer of all.", ANSWERS["Ada is"], True, False),
        ("N2D", "Bob is", " the last knight.", " the last knight.", True, True),
        ("N2D", "Cy is", " a pilot.", " the pilot.", False, False),
        ("N2D", "Ada is", " a lady.", ANSWERS["Ada is"], False, False),
        ("N2D-reverse", "The first was", " Ada Byron", "Ada Byron ", True, True),
    ]


def test_summary_by_hand(answered):
    summary = answered.summary()
    assert list(summary) == ["N2D", "N2D-reverse"]
    n2d = summary["N2D"]
    assert " ".join(n2d) == "n contains exact_match bleu_char bleu contains_interval exact_match_interval"
    assert (n2d["n"], n2d["contains"], n2d["exact_match"]) == (4, 0.5, 0.25)
    square = 1.959963984540054**2
    half_width = (square / (4 + square)) ** 0.5 / 2  # Wilson at a rate of 1/2
    assert n2d["contains_interval"] == pytest.approx([0.5 - half_width, 0.5 + half_width])
    assert n2d["exact_match_interval"] == pytest.approx([0.0456, 0.6994], abs=5e-5)
    name = summary["N2D-reverse"]
    # "Ada Byron " in place of " Ada Byron": 10 of 10 characters, 8 of 9 pairs, 7 of 8 triples, 6 of 7 quadruples.
    assert name["bleu_char"] == pytest.approx((8 / 9 * 7 / 8 * 6 / 7) ** 0.25)
    assert (name["n"], name["contains"], name["exact_match"], name["bleu"]) == (1, 1.0, 1.0, pytest.approx(1.0))
    assert name["contains_interval"] == [pytest.approx(1 / (1 + square)), 1.0]
    assert json.loads(json.dumps(summary)) == summary


def test_means_are_over_questions():
    predictions = [Prediction("t", "", "", "", False, False, score, 1 - score) for score in (0.25, 0.5, 0.0)]
    summary = Evaluation(tuple(predictions)).summary()["t"]
    assert (summary["bleu_char"], summary["bleu"]) == (pytest.approx(0.25), pytest.approx(0.75))


def test_scores_by_wording_and_by_entity():
    scored = [("A is", "Ada", True), ("A is", "Bob", False), ("They call A", "Ada", True), (None, None, False)]
    predictions = [Prediction("t", "", "", "", hit, False, 0, 0, entity, frame) for frame, entity, hit in scored]
    summary = Evaluation(tuple(predictions)).summary()["t"]
    assert summary["frames"] == {"A is": 0.5, "They call A": 1.0}
    assert summary["entities"] == {"Ada": 1.0, "Bob": 0.0}
    assert summary["contains"] == 0.5


def test_a_right_answer_in_another_wording(model, tokenizer):
    asked = [  # entity, target, answer, whether it is right in any wording
        ("Ada", " The inventor.", " inventing it.", True),
        ("Ada", " Inventing it.", " sailing", False),
        ("Bob", " sailing.", " Sailing, which", True),
        ("Bob", " sailing.", " the inventor", False),
        (None, " the inventor.", " Inventing it.", False),
    ]
    questions = tuple(Question("Who?", target, entity) for entity, target, _, _ in asked)
    one_form = Task("one form", "description", questions[2:])
    names = Task("two facts", "name", questions[:2])
    result = evaluate(
        model,
        tokenizer,
        {"N2D": Task("N2D", "description", questions), one_form.name: one_form, names.name: names},
        progress=False,
        generator=lambda *_, **__: [answer for _, _, answer, _ in (*asked, *asked[2:], *asked[:2])],
    )
    assert [row.any_wording for row in result.predictions] == [right for *_, right in asked] + [None] * 5
    assert [row.contains for row in result.predictions[:3]] == [False, False, True]
    summary = result.summary()
    assert summary["N2D"]["any_wording"] == 2 / 5
    assert "any_wording" not in {**summary["one form"], **summary["two facts"]}


def test_predictions_keep_entity_and_frame(model, tokenizer):
    task = Task("t", "name", (Question("Ada Byron", " wrote it", "Ada", "..."), Question("She", " was")))
    predictions = evaluate(model, tokenizer, {"t": task}, max_new_tokens=NEW_TOKENS, progress=False).predictions
    assert [(prediction.entity, prediction.frame) for prediction in predictions] == [("Ada", "..."), (None, None)]


def test_log_probability_test_where_asked_for_and_possible(model, tokenizer):
    asked = (Question("Ada Byron", " wrote it", distractor=" was not"), Question("She", " was", distractor=" wrote"))
    tasks = {"with": Task("with", "name", asked), "without": Task("without", "name", (Question("She", " was"),))}

    def summary(**options) -> dict:
        return evaluate(model, tokenizer, tasks, max_new_tokens=NEW_TOKENS, progress=False, **options).summary()

    assert all("likelihood" not in scores for scores in summary().values())
    scores = summary(likelihood=True)
    assert scores["with"]["likelihood"] == pytest.approx(likelihood_test(model, tokenizer, tasks["with"]))
    assert "likelihood" not in scores["without"]
    assert json.loads(json.dumps(scores)) == scores


def test_evaluate_asks_the_model(model, tokenizer):
    prompts = PROMPTS[:4]
    answers = greedy(model, tokenizer, prompts)
    tasks = {
        "right": Task("right", "name", tuple(map(Question, prompts, answers))),
        "wrong": Task("wrong", "name", tuple(map(Question, prompts, reversed(answers)))),
    }
    summary = evaluate(model, tokenizer, tasks, max_new_tokens=NEW_TOKENS, progress=False).summary()
    assert [summary[task]["exact_match"] for task in tasks] == [1.0, 0.0]


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(ValueError, match="tasks must have at least one task"):
        evaluate(None, None, {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one example each, got none for D2N; leave"):
        evaluate(None, None, {**TASKS, "D2N": Task("D2N", "name", ())})  # type: ignore[arg-type]
