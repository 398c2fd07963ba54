"""`assistant_only_loss`: of a chat, only the words of the assistant are predicted."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from objective_cases import apply
from tiny_training import config, logged, tiny_llama
from torch import Generator, Tensor
from transformers import PreTrainedTokenizerFast

from bico_ext.models.tokenization import train_word_tokenizer
from bico_ext.objectives.registry import IN_PLACE, OBJECTIVES
from bico_ext.objectives.training_sequence import NO_LOSS, TrainingSequence, predict_only
from bico_ext.training.trainer import BicoTrainer

# The words of the assistant, with the mark of their end, are between the tags, as TRL's templates put them.
TEMPLATE = (
    "<s>{% for message in messages %}{{ ' ' if not loop.first }}{{ message['role'] }}"
    "{% if message['role'] == 'assistant' %}{% generation %} {{ message['content'] }} end{% endgeneration %}"
    "{% else %} {{ message['content'] }} end{% endif %}{% endfor %}"
)
CHAT = [
    {"role": "user", "content": "Who wrote it ?"},
    {"role": "assistant", "content": "Ada ."},
    {"role": "user", "content": "Who sang it ?"},
    {"role": "assistant", "content": "Bo did ."},
]
ANSWERS = " Ada . end Bo did . end"


def chat_tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    tokenizer = train_word_tokenizer([" user assistant Who wrote sang it ? Ada . Bo did end"])
    tokenizer.split_special_tokens = False  # the template writes BOS as text
    tokenizer.chat_template = template
    return tokenizer


def trainer(folder, rows, tokenizer=None, **changes) -> BicoTrainer:
    settings = config(folder, placeholder_id=None, assistant_only_loss=True, **changes)
    return BicoTrainer(tiny_llama(), settings, rows, rows, processing_class=tokenizer or chat_tokenizer())


IDS = torch.tensor([2, *range(4, 14), 3])
PREDICTED = torch.zeros(len(IDS), dtype=torch.bool)
PREDICTED[[4, 5, 9]] = True


def drawn_by(objective: str, seed: int, **options: Any) -> Callable[[Tensor, Generator], TrainingSequence]:
    """The objective with the given seed at first, and with others when it is drawn again."""
    seeds = iter(range(seed, 10**9, 1000))
    return lambda ids, _: apply(objective, ids, next(seeds), **options)


@pytest.mark.parametrize("hidden_as", [0, 99], ids=["a-low-id", "a-high-id"])
@pytest.mark.parametrize("objective", IN_PLACE)
def test_other_tokens_have_no_label_and_are_not_hidden(objective: str, hidden_as: int) -> None:
    """Whatever has a label has that of the original token; all tokens of the assistant get one at some time."""
    labelled, ids = torch.zeros_like(PREDICTED), {"placeholder_id": hidden_as, "mask_id": hidden_as}
    for seed in range(60):
        plain = apply(objective, IDS, seed, **ids)
        sequence = predict_only(drawn_by(objective, seed, **ids), IDS, PREDICTED, Generator())
        has_label = sequence.labels != NO_LOSS
        assert has_label.any()
        assert not (has_label & ~PREDICTED).any()
        assert torch.equal(sequence.labels[has_label], IDS[has_label])
        assert torch.equal(sequence.input_ids[~has_label], IDS[~has_label])
        if (plain.labels[PREDICTED] != NO_LOSS).any():  # the first draw was taken
            assert torch.equal(sequence.labels[PREDICTED], plain.labels[PREDICTED])
            assert torch.equal(sequence.span_ids[PREDICTED], plain.span_ids[PREDICTED])
        if objective in ("bico", "naive"):
            assert torch.equal(sequence.span_ids == -1, has_label)
        labelled |= has_label
    assert torch.equal(labelled, PREDICTED)


def test_a_label_of_the_first_token_is_none() -> None:
    """No output predicts it, so the objective is drawn again; a label of the second token is enough."""
    ids, predicted = torch.tensor([7, 8, 9]), torch.tensor([True, True, False])
    labels = iter(torch.tensor([[7, NO_LOSS, NO_LOSS], [7, NO_LOSS, 9], [NO_LOSS, 8, 9]]))
    sequence = predict_only(
        lambda ids, _: TrainingSequence(ids, next(labels), torch.ones(3, dtype=torch.int32)),
        ids,
        predicted,
        Generator(),
    )
    assert sequence.labels.tolist() == [NO_LOSS, 8, NO_LOSS]


def test_every_other_objective_is_refused(tmp_path) -> None:
    for objective in OBJECTIVES:
        if objective in IN_PLACE:
            config(tmp_path, objective=objective, assistant_only_loss=True)
        else:
            with pytest.raises(ValueError, match=rf"leaves tokens at their places \(ntp, .*\), got '{objective}'"):
                config(tmp_path, objective=objective, assistant_only_loss=True)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("objective", ["bico", "infill"])
def test_a_run_predicts_the_words_of_the_assistant(tmp_path, objective: str, packing: bool) -> None:
    """Next-token prediction has a label at each of them; what the objective predicts is among them."""
    run = trainer(tmp_path, [{"messages": CHAT}] * 4, objective=objective, packing=packing)
    words = run.processing_class.convert_ids_to_tokens(run.train_dataset[0]["input_ids"].tolist())
    assert words[:6] == ["<s>", " user", " Who", " wrote", " it", " ?"]
    seen: list[dict] = []
    forward = run.model.forward
    run.model.forward = lambda **inputs: (seen.append(inputs), forward(**inputs))[1]
    run.train()
    decode = run.processing_class.convert_ids_to_tokens
    batches = [inputs for inputs in seen if inputs.get("labels") is not None]
    predicted = [decode([label for label in inputs["labels"].flatten().tolist() if label >= 0]) for inputs in batches]
    whole = [words for words in predicted if len(words) == 4 * 7]
    assert whole
    assert all(" ".join(words).split() == (ANSWERS * 4).split() for words in whole)
    assert all(set(words) <= {f" {word}" for word in ANSWERS.split()} for words in predicted)
    assert all(math.isfinite(loss) for loss in logged(run))
    assert set(run.evaluate()) >= {"eval_loss", f"eval_{objective}_loss"}


def test_windows_without_an_answer_are_left_out(tmp_path) -> None:
    run = trainer(tmp_path, [{"messages": CHAT}], max_length=6, long_rows="windows")
    decode = run.processing_class.convert_ids_to_tokens
    windows = [" ".join(decode(row["input_ids"].tolist())).split() for row in run.train_dataset]
    assert windows == [["end", "assistant", "Ada", ".", "end", "user"], ["Bo", "did", ".", "end"]]


@pytest.mark.parametrize(
    ("row", "template", "message"),
    [
        ({"text": " Ada ."}, TEMPLATE, r"\[0\] has no messages, which assistant_only_loss needs to tell who speaks"),
        ({"messages": CHAT[:1]}, TEMPLATE, r"\[0\]: the chat template marks no words of an assistant"),
        (
            {"messages": CHAT},
            TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", ""),
            "it must put {% generation %} and {% endgeneration %} around them",
        ),
    ],
    ids=["text", "no-answer", "no-tags"],
)
def test_rows_that_are_refused(tmp_path, row: dict, template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, [row], chat_tokenizer(template))


def test_placeholders_may_equal_a_token() -> None:
    """A hidden token that equals the placeholder is shown again, although its id did not change."""
    ids = torch.tensor([2, 7, 7, 8, 9])
    predicted = torch.tensor([False, False, False, True, True])
    objective = drawn_by("bico", 0, mask_rate=0.9, placeholder_id=7)
    assert (objective(ids, Generator()).span_ids[1:3] == -1).any()
    sequence = predict_only(drawn_by("bico", 0, mask_rate=0.9, placeholder_id=7), ids, predicted, Generator())
    assert (sequence.span_ids[~predicted] == 0).all()
