"""Log-probabilities compared with single sequences in fp64; the two tests compared with scipy and hand-made numbers."""

import json
import math
from itertools import combinations

import pytest
import torch
from scipy import stats
from tiny_models import tiny_llama
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from bico_ext.evaluation import likelihood
from bico_ext.evaluation.likelihood import likelihood_test, log_probabilities
from bico_ext.facts.types import Example, Question, Task
from bico_ext.models.attach import attach
from bico_ext.models.tokenization import train_word_tokenizer

TEXT = "the composer of a first symphony, who wrote it: Ada Byron. She was not known as Abyssal then"
EXAMPLES = [
    Example("Ada Byron", " wrote a symphony."),
    Example("She", " was known"),
    Example("the composer of a first symphony, who wrote it:", " Ada Byron. She was not known as Abyssal then"),
    Example("who", " wrote"),
    Example("She was not known as", " Ada Byron then"),
    Example("a", " never-seen word."),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_word_tokenizer([TEXT])


@pytest.fixture
def model(tokenizer):
    return tiny_llama(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, attention_dropout=0.5)


def one_at_a_time(model, ids: list[int], start: int) -> list[float]:
    """Return log p of each of ids[start:] given all earlier ids, from a stock fp64 model without padding or mask."""
    model = model.double().eval()
    values = []
    for position in range(start, len(ids)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[:position]]), use_cache=False).logits[0, -1]
        values.append((logits[ids[position]] - logits.logsumexp(0)).item())
    return values


def word_ids(tokenizer, example: Example) -> tuple[list[int], int]:
    """Return the ids of the text with BOS and without EOS, and how many of them are the prompt's."""
    prompt, completion = (tokenizer(text)["input_ids"][1:] for text in (example.prompt, example.completion[1:]))
    return [2, *prompt, *completion], 1 + len(prompt)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_log_probabilities_one_sequence_at_a_time(model, tokenizer, batch_size):
    scores = log_probabilities(model, tokenizer, EXAMPLES, batch_size=batch_size, progress=False)
    per_token = log_probabilities(model, tokenizer, EXAMPLES, per_token=True, batch_size=batch_size, progress=False)
    expected = [one_at_a_time(model, *word_ids(tokenizer, example)) for example in EXAMPLES]
    assert len({len(values) for values in expected}) > 3
    assert scores == pytest.approx([sum(values) for values in expected], rel=1e-5)
    assert per_token == pytest.approx([sum(values) / len(values) for values in expected], rel=1e-5)


def test_an_attached_model_scores_as_stock(model, tokenizer):
    expected = [sum(one_at_a_time(model, *word_ids(tokenizer, example))) for example in EXAMPLES]
    attached = attach(model.float())
    assert log_probabilities(attached, tokenizer, EXAMPLES, progress=False) == pytest.approx(expected, rel=1e-5)


def test_half_precision_is_summed_in_float32(model, tokenizer):
    """128 tokens have about -4 each. A bfloat16 sum near -500 would have a resolution of 2 or 4."""
    example = Example("Ada", " Byron was not known as Ada" * 20)
    model = model.bfloat16()
    (score,) = log_probabilities(model, tokenizer, [example], progress=False)
    ids, start = word_ids(tokenizer, example)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    expected = logits.log_softmax(-1)[range(start - 1, len(ids) - 1), ids[start:]].sum().item()
    assert score == pytest.approx(expected, rel=1e-5)


def test_no_examples(model, tokenizer):
    assert log_probabilities(model, tokenizer, [], progress=False) == []


def test_everything_is_put_back(model, tokenizer):
    model.train()
    model.model.layers[0].eval()  # a frozen layer, say
    modes = {name: module.training for name, module in model.named_modules()}
    first = log_probabilities(model, tokenizer, EXAMPLES, progress=False)
    assert log_probabilities(model, tokenizer, EXAMPLES, progress=False) == first  # no dropout
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert len(set(modes.values())) == 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_neither_a_pad_token_nor_a_padding_side_is_needed(model, side):
    tokenizer = train_word_tokenizer([TEXT])
    expected = log_probabilities(model, tokenizer, EXAMPLES, progress=False)
    tokenizer.pad_token, tokenizer.padding_side = None, side
    assert log_probabilities(model, tokenizer, EXAMPLES, progress=False) == expected


def joining_tokenizer(bos: str | None) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per letter, except that "bc" is a single token; it puts `bos` in front."""
    vocabulary = {token: i for i, token in enumerate(["<s>", "a", "b", "c", "bc", "d"])}
    backend = Tokenizer(models.BPE(vocabulary, [("b", "c")]))
    backend.pre_tokenizer = pre_tokenizers.Split("-", "removed")
    if bos is not None:
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos)


def test_a_token_across_the_border_belongs_to_the_completion():
    tokenizer, model = joining_tokenizer("<s>"), tiny_llama(vocab_size=6)
    examples = [Example("ab", "cd"), Example("ab", "da"), Example("abc", "d")]
    scores = log_probabilities(model, tokenizer, examples, progress=False)
    # In <s> a | bc d, the prompt's "b" is no token of the text. <s> a b | d a and <s> a bc | d are cut where the prompt
    # ends.
    expected = [([0, 1, 4, 5], 2), ([0, 1, 2, 5, 1], 3), ([0, 1, 4, 5], 3)]
    assert scores == pytest.approx([sum(one_at_a_time(model, *case)) for case in expected], rel=1e-5)


def test_the_longest_text_that_fits(model, tokenizer):
    example = Example("Ada", " Byron" * 126)  # 128 tokens with BOS
    (score,) = log_probabilities(model, tokenizer, [example], progress=False)
    assert score == pytest.approx(sum(one_at_a_time(model, *word_ids(tokenizer, example))), rel=1e-5)


def test_refusals(model, tokenizer):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        log_probabilities(model, tokenizer, EXAMPLES, batch_size=0)
    with pytest.raises(ValueError, match="completion must add a token to its prompt, got ''"):
        log_probabilities(model, tokenizer, [Example("Ada", "")])
    with pytest.raises(ValueError, match=r"text 'Ada .* needs 129 tokens, but the model's context is 128 .*shorten it"):
        log_probabilities(model, tokenizer, [Example("Ada", " Byron" * 127)])
    with pytest.raises(ValueError, match=r"text 'Ada .*ids must be in \[0, 4\), the ids of the model"):
        log_probabilities(tiny_llama(vocab_size=4), tokenizer, EXAMPLES)
    with pytest.raises(ValueError, match="token must precede the completion, got none for the prompt 'b'; use"):
        log_probabilities(tiny_llama(), joining_tokenizer(None), [Example("b", "c")])


@pytest.mark.parametrize(("rank", "given", "shown"), [(0, {}, True), (1, {}, False), (0, {"progress": False}, False)])
def test_only_rank_0_shows_a_progress_bar(model, tokenizer, monkeypatch, capsys, rank, given, shown):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    log_probabilities(model, tokenizer, EXAMPLES, **given)
    assert ("6/6" in capsys.readouterr().err) == shown
    question = Question("She", " was known", distractor=" then")
    likelihood_test(model, tokenizer, Task("t", "name", (question,)), **given)
    assert ("2/2" in capsys.readouterr().err) == shown


# --- The tests ---

CORRECT, WRONG = [-2.0, -5.0, -1.0, -8.0], [-4.0, -6.0, -9.0, -3.0]


@pytest.fixture
def numbers(monkeypatch):
    """`likelihood_test` with given log-probabilities of right answers and distractors, which have 2 tokens each."""

    def tested(correct: list[float], wrong: list[float]) -> dict:
        values = {f" right {i}": value for i, value in enumerate(correct)}
        values |= {f" wrong {i}": value for i, value in enumerate(wrong)}
        tokenizer = train_word_tokenizer(["Q", *values])
        monkeypatch.setattr(
            likelihood,
            "_totals",
            lambda model, batch: [values[f" {tokenizer.decode(ids[start:])}"] for ids, start in batch],
        )
        questions = [Question("Q", f" right {i}", distractor=f" wrong {i}") for i in range(len(correct))]
        task = Task("t", "name", (Question("Q", " unpaired"), *questions))
        return likelihood_test(tiny_llama(), tokenizer, task, progress=False)

    return tested


def test_both_tests_by_hand(numbers):
    result = numbers(CORRECT, WRONG)
    # Differences 2, 1, 8, -5: mean 1.5, variance (0.25 + 0.25 + 42.25 + 42.25) / 3, t with 3 degrees of freedom.
    t = 1.5 / math.sqrt(85 / 3 / 4)
    # 2 of the 4 right answers lie below -2.5, and all 4 wrong ones: the largest distance is 1/2.
    expected = {"n": 4, "correct": -4.0, "distractor": -5.5, "difference": 1.5, "t": t, "ks": 0.5, "preferred": 0.75}
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    assert (result["correct_per_token"], result["distractor_per_token"]) == (-2.0, -2.75)
    assert result["t_p"] == pytest.approx(2 * stats.t.sf(t, 3))
    assert result["t_p"] == pytest.approx(stats.ttest_1samp([2, 1, 8, -5], 0).pvalue)
    # The exact p-value: each of the 70 ways to deal eight values into two groups of four is equally likely.
    assert result["ks_p"] == pytest.approx(share_of_deals_apart(4, 0.5))


def share_of_deals_apart(n: int, distance: float) -> float:
    """Return the share of all orders of n right and n wrong values with distribution functions at that distance."""
    apart = 0
    deals = list(combinations(range(2 * n), n))
    for right in deals:
        steps = [1 if index in right else -1 for index in range(2 * n)]
        heights = [sum(steps[: index + 1]) for index in range(2 * n)]
        apart += max(map(abs, heights)) / n >= distance
    return apart / len(deals)


@pytest.mark.parametrize(
    ("correct", "wrong"),
    [([-2.0], [-3.0]), ([-2.0, -4.0], [-3.0, -5.0]), ([-2.0, -2.0], [-2.0, -2.0])],
    ids=["one", "shifted", "same"],
)
def test_where_t_is_not_defined(numbers, recwarn, correct, wrong):
    result = numbers(correct, wrong)
    assert result["t"] is None
    assert result["t_p"] is None
    assert result["difference"] == correct[0] - wrong[0]
    assert result["preferred"] == (correct[0] > wrong[0])  # a tie is no preference
    assert 0 < result["ks_p"] <= 1
    json.dumps(result, allow_nan=False)
    assert [str(warning.message) for warning in recwarn] == []


def test_a_diverged_model_has_no_numbers(numbers):
    result = numbers([math.nan, -1.0], [-3.0, -5.0])
    assert (result["n"], result["correct"], result["distractor"]) == (2, None, -4.0)
    assert (result["difference"], result["t"], result["t_p"]) == (None, None, None)
    json.dumps(result, allow_nan=False)


def test_the_answers_of_a_real_model(model, tokenizer):
    questions = [
        Question("Ada Byron", " wrote a symphony.", distractor=" was"),
        Question("She", " was known", distractor=" then"),
        Question("who", " wrote", distractor=" Ada Byron"),
    ]
    result = likelihood_test(model, tokenizer, Task("t", "name", tuple(questions)), progress=False)
    right = [one_at_a_time(model, *word_ids(tokenizer, question)) for question in questions]
    wrong = [
        one_at_a_time(model, *word_ids(tokenizer, Example(question.prompt, question.distractor)))
        for question in questions
    ]
    totals = [[sum(values) for values in answers] for answers in (right, wrong)]
    t, ks = stats.ttest_rel(*totals), stats.ks_2samp(*totals)
    expected = {
        "n": 3,
        "correct": sum(totals[0]) / 3,
        "distractor": sum(totals[1]) / 3,
        "difference": (sum(totals[0]) - sum(totals[1])) / 3,
        "t": t.statistic,
        "t_p": t.pvalue,
        "ks": ks.statistic,
        "ks_p": ks.pvalue,
        "preferred": sum(a > b for a, b in zip(*totals, strict=True)) / 3,
        "correct_per_token": sum(sum(values) / len(values) for values in right) / 3,
        "distractor_per_token": sum(sum(values) / len(values) for values in wrong) / 3,
    }
    assert result == pytest.approx(expected, rel=1e-4)


def test_the_likeliest_of_several_right_answers_counts(model, tokenizer):
    answers = (" was", " wrote", " Byron of", " who")
    question = Question("Ada Byron", answers[0], distractor=" known", also=answers[1:])
    alone = Question("She", " was known", distractor=" then")
    result = likelihood_test(model, tokenizer, Task("t", "name", (question, alone)), progress=False)
    values = [one_at_a_time(model, *word_ids(tokenizer, Example(question.prompt, answer))) for answer in answers]
    totals = [sum(each) for each in values]
    assert max(totals) == totals[1]  # neither the main answer nor that with the highest mean over its tokens
    assert max(sum(each) / len(each) for each in values) == totals[2] / 2
    others = [
        one_at_a_time(model, *word_ids(tokenizer, example))
        for example in (alone, Example("Ada Byron", " known"), Example("She", " then"))
    ]
    best = values[totals.index(max(totals))]
    assert result["n"] == 2
    assert result["correct"] == pytest.approx((sum(best) + sum(others[0])) / 2, rel=1e-4)
    assert result["distractor"] == pytest.approx((sum(others[1]) + sum(others[2])) / 2, rel=1e-4)
    per_token = sum(sum(each) / len(each) for each in (best, others[0])) / 2
    assert result["correct_per_token"] == pytest.approx(per_token, rel=1e-4)


def test_a_task_without_distractors_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="task t must have a question with a distractor, got none; leave the test out"):
        likelihood_test(model, tokenizer, Task("t", "name", (Question("Ada", " Byron"),)))
