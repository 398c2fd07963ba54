"""`generate_infill` against a loop that recomputes the whole text for each token, and on middles that models learnt."""

import inspect
from functools import partial
from typing import Any

import peft
import pytest
import torch
from tiny_models import tiny_family, tiny_llama
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AddedToken, PreTrainedTokenizerFast

from bico_ext.generation.infilling import generate_infill
from bico_ext.models.attach import attach
from bico_ext.models.tokenization import encode_text, train_word_tokenizer
from bico_ext.objectives.infilling import infill, infill_causal, infill_naive
from bico_ext.ops.reference import CAUSAL_CONTEXT

WORDS = [f"w{i}" for i in range(46)]
GAPS = [
    ("w1 w2 w3", " w4 w5"),
    ("w6", " w7 w8 w9 w10 w11 w12 w13"),
    ("", " w14"),
    ("w15 w16", ""),
    ("w1 w2 w3", " w4 w5"),
    ("w17 w18 w19 w20 w21 w22", " w23 w24 w25 w26 w27"),
    ("", ""),
]
BOS, EOS = 2, 3
fill = partial(generate_infill, lengths=(5, 3, 4), progress=False)


def tokenizer() -> PreTrainedTokenizerFast:
    return train_word_tokenizer([" ".join(WORDS)])


def random_model(family: str = "llama") -> Any:
    torch.manual_seed(0)
    settings = {"vocab_size": 60, "initializer_range": 0.5}  # 10 ids have no token
    model = tiny_llama(**settings) if family == "llama" else tiny_family(family, **settings)
    return model.double()  # so that no tokens are nearly tied


def slow(model: Any, gap: tuple[str, str], lengths: tuple[int, ...], mirror: bool = True, context: int = 0) -> str:
    """Fill a gap from the definition: one whole text for each token, then the likeliest text of all lengths.

    Each word is one token, and words are all that may be written.
    """
    model.eval()
    ids = {word: 4 + index for index, word in enumerate(sorted(f" {word}" for word in WORDS))}
    before, after = ([ids[f" {word}"] for word in text.split()] for text in gap)
    before, after = [BOS, *before], [*after, EOS]
    middles = {}
    for length in lengths:
        middle = [7] * length  # what is not yet written may be anything
        span_ids = torch.tensor([[*[context] * (len(before) - 1), 0, *[1] * length, *[context] * len(after)]]).int()
        for step in range(length):
            inputs = torch.tensor([[*before, *middle, *after]])
            with torch.no_grad():
                logits = model(input_ids=inputs, span_ids=span_ids, mirror=mirror).logits[0]
            middle[step] = 4 + int(logits[len(before) + step - 1, 4:50].argmax())
        whole = torch.tensor([*before, *middle, *after])
        with torch.no_grad():
            causal = -cross_entropy(model(input_ids=whole[None]).logits[0, :-1], whole[1:], reduction="none")
        middles[float(causal.sum())] = "".join(sorted(ids)[token - 4] for token in middle)
    best = middles[max(middles)]
    return best if gap[0] else best[1:]  # a text does not start with a space


@pytest.mark.parametrize(
    ("options", "definition"),
    [({}, {}), ({"mirror": False}, {"mirror": False}), ({"causal_context": True}, {"context": CAUSAL_CONTEXT})],
    ids=["infill", "infill-naive", "infill-causal"],
)
@pytest.mark.parametrize("family", ["llama", "glm", "smollm3"])  # one layer of smollm3 does not rotate
def test_equals_the_slow_loop(family: str, options: dict, definition: dict) -> None:
    model, words = attach(random_model(family)), tokenizer()
    expected = [slow(model, gap, (3, 4, 5), **definition) for gap in GAPS]
    model.train()
    for batch_size in (1, 4, 128):
        assert fill(model, words, GAPS, batch_size=batch_size, **options) == expected
    assert all(module.training for module in model.modules())
    assert len({len(middle.split()) for middle in expected}) > 1
    single = [fill(model, words, iter(GAPS), lengths=[length], **options) for length in (1, 2)]
    assert single == [[slow(model, gap, (length,), **definition) for gap in GAPS] for length in (1, 2)]


def test_a_peft_model_writes_with_its_adapter() -> None:
    model, words = attach(random_model()), tokenizer()
    plain = fill(model, words, GAPS)
    config = peft.LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.5, task_type="CAUSAL_LM"
    )
    adapted: Any = peft.get_peft_model(model, config).double()
    expected = [slow(adapted, gap, (3, 4, 5)) for gap in GAPS]
    adapted.train()
    assert fill(adapted, words, GAPS) == expected != plain


def test_no_special_token_is_written() -> None:
    """Special tokens, one of them without a role, and an id without a token are likelier than the words here."""
    model, words = attach(random_model()), tokenizer()
    words.add_tokens([AddedToken("<middle>", special=True)])
    assert len(words) == 51
    special = words.convert_tokens_to_ids("<middle>")
    expected = fill(model, words, GAPS, lengths=[4])
    more_likely = torch.zeros(60, dtype=torch.float64)
    more_likely[[0, 1, BOS, EOS, special, 59]] = 1000.0
    model.get_output_embeddings().register_forward_hook(lambda head, args, logits: logits + more_likely)
    assert fill(model, words, GAPS, lengths=[4]) == expected
    assert all(len(middle.split()) == 4 and "<" not in middle for middle in expected)


def test_without_special_tokens_a_suffix_may_be_empty_and_a_prefix_may_not() -> None:
    model, words = attach(random_model()), tokenizer()
    words.bos_token = words.eos_token = None
    words.backend_tokenizer.post_processor = None
    inputs, middle = [4 + sorted(WORDS).index("w3")], []
    for _ in range(2):
        whole = torch.tensor([[*inputs, *middle, 7]])
        span_ids = torch.tensor([[0, *[1] * (len(middle) + 1)]], dtype=torch.int32)
        logits = model(input_ids=whole, span_ids=span_ids).logits[0, len(middle), 4:50]
        middle.append(4 + int(logits.argmax()))
    expected = "".join(f" {sorted(WORDS)[token - 4]}" for token in middle)
    assert fill(model, words, [("w3", "")], lengths=[2]) == [expected]
    with pytest.raises(ValueError, match=r"a prefix must have at least one token, .* got none for '' before ' w4';"):
        fill(model, words, [("w3", ""), ("", " w4")])


def texts_with_one_middle_each() -> list[tuple[str, str, str]]:
    """Middles of 1 to 4 words, each between words of its own."""
    generator = torch.Generator().manual_seed(3)
    texts = []
    for index in range(8):
        middle = torch.randint(24, 46, (1 + index % 4,), generator=generator).tolist()
        prefix = f"w{index} w{index + 8}"
        texts.append((prefix, "".join(f" w{word}" for word in middle), f" w{index + 16} w{index}"))
    return texts


@pytest.mark.parametrize(
    ("objective", "options"),
    [(infill, {}), (infill_naive, {"mirror": False}), (infill_causal, {"causal_context": True})],
    ids=["infill", "infill-naive", "infill-causal"],
)
def test_a_trained_model_writes_the_middles_that_it_has_learnt(objective: Any, options: dict) -> None:
    words, texts = tokenizer(), texts_with_one_middle_each()
    model = attach(tiny_llama(initializer_range=0.05)).train()
    ids = [torch.tensor(encode_text(words, "".join(text))) for text in texts]
    generator, optimizer = torch.Generator().manual_seed(0), torch.optim.AdamW(model.parameters(), lr=3e-3)

    def padded(tensors: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)

    for _ in range(150):
        rows = [objective(text, generator) for text in ids]
        loss = model(
            input_ids=padded([row.input_ids for row in rows], 0),
            span_ids=padded([row.span_ids for row in rows], -1),
            labels=padded([row.labels for row in rows], -100),
            mirror=rows[0].mirror,
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gaps = [(prefix, suffix) for prefix, _, suffix in texts]
    middles = [middle for _, middle, _ in texts]
    assert fill(model, words, gaps, lengths=range(1, 6), **options) == middles


def test_the_default_is_one_to_eight_tokens() -> None:
    parameters = inspect.signature(generate_infill).parameters
    assert list(parameters["lengths"].default) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False)])
def test_progress(progress: bool, shown: bool, capsys: pytest.CaptureFixture) -> None:
    fill(attach(random_model()), tokenizer(), GAPS, progress=progress)
    assert ("18/18" in capsys.readouterr().err) == shown  # 6 different gaps, 3 lengths


def test_errors() -> None:
    model, words = attach(random_model()), tokenizer()
    assert fill(model, words, []) == []
    for gaps, got in ((["w1"], "'w1'"), ("w1", "'w'"), ([("w1", None)], r"\('w1', None\)"), ([("w1",)], r"\('w1',\)")):
        with pytest.raises(TypeError, match=rf"gaps must hold pairs of texts, \(prefix, suffix\), got {got}"):
            fill(model, words, gaps)  # type: ignore[arg-type]
    for lengths in ([], [2, 0]):
        with pytest.raises(ValueError, match="lengths must hold numbers of tokens, each at least 1, got "):
            fill(model, words, GAPS, lengths=lengths)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        fill(model, words, GAPS, batch_size=0)
    with pytest.raises(ValueError, match=r"from 'w1 w2 w3' to ' w4 w5': ids must be in \[0, 5\), the ids of the model"):
        fill(attach(tiny_llama(vocab_size=5)), words, GAPS[:1])
    with pytest.raises(RuntimeError, match="LlamaForCausalLM is not attached"):
        fill(random_model(), words, GAPS)
    # BOS, 3 + 2 words and EOS leave 121 of 128 tokens
    assert len(fill(model, words, GAPS[:1], lengths=[121])[0].split()) == 121
    with pytest.raises(ValueError, match=r"from 'w1 w2 w3' to ' w4 w5' with 122 tokens .* needs 129 tokens, .* is 128"):
        fill(model, words, GAPS[:1], lengths=[122])


def test_an_encoder_fills_as_any_other_model() -> None:
    """Its plain calls are bidirectional, so the choice of a length must ask for causal ones."""
    expected = fill(attach(random_model()), tokenizer(), GAPS)
    assert fill(attach(random_model(), bidirectional=True), tokenizer(), GAPS) == expected


def test_texts_of_a_batch_need_not_fit_in_the_window_together() -> None:
    """A long prefix beside a long suffix makes a row of 50 columns, but no text has more than 32 tokens."""
    model = attach(tiny_family("mistral", vocab_size=60, sliding_window=32).double())
    gaps = [(" ".join(WORDS[:25]), " w30"), ("w31", " " + " ".join(WORDS[:25]))]
    alone = [fill(model, tokenizer(), [gap], lengths=[3]) for gap in gaps]
    assert fill(model, tokenizer(), gaps, lengths=[3]) == [middle for (middle,) in alone]


def test_a_text_beyond_the_sliding_window_is_refused() -> None:
    model = attach(tiny_family("mistral", vocab_size=60, sliding_window=32))
    prefix = " ".join(WORDS[:25])  # 26 tokens with BOS; with " w30" and EOS, 4 are left for the middle
    assert len(fill(model, tokenizer(), [(prefix, " w30")], lengths=[4])) == 1
    with pytest.raises(ValueError, match="needs 33 tokens, but the model's layers have a sliding window of 32"):
        fill(model, tokenizer(), [(prefix, " w30")], lengths=[5])
