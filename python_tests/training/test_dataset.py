"""The rows that `BicoTrainer` accepts, their order, and what it refuses before training starts."""

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from tiny_training import BOS, CONTEXT, EOS, VOCABULARY, config, logged, some_rows, tiny_llama, train
from torch import Generator, tensor
from torch.utils.data import Dataset
from transformers import HfArgumentParser, TrainingArguments

from bico_ext.facts.synthetic import generate
from bico_ext.facts.types import Example
from bico_ext.models.attach import detach
from bico_ext.models.tokenization import train_word_tokenizer
from bico_ext.training.config import BicoConfig
from bico_ext.training.dataset import LengthGroupedSampler
from bico_ext.training.trainer import BicoTrainer

# Rows


class Numbered(Dataset):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": tensor(some_rows()[index]["input_ids"]), "unused": tensor(index)}


def test_a_torch_dataset_is_the_list_of_its_rows(tmp_path: Path):
    trainer = BicoTrainer(tiny_llama(), config(tmp_path / "torch"), Numbered())
    trainer.train()
    assert logged(trainer) == logged(train(tmp_path / "list"))


@pytest.mark.parametrize(
    "row",
    [
        {"text": "Ada wrote it."},
        {"prompt": "Ada wrote", "completion": " it."},
        Example("Ada wrote", " it."),
        {"input_ids": [2, 4, 6, 5, 7, 3], "attention_mask": [1] * 6},
        {"input_ids": np.array([2, 4, 6, 5, 7, 3], dtype=np.uint16), "attention_mask": np.ones(6)},
        {"input_ids": np.frombuffer(b"\2\4\6\5\7\3", dtype=np.int8)},  # read-only, as memory maps are
        {"input_ids": np.array([2, 4, 6, 5, 7, 3], dtype=">i4"), "source": "encyclopedia"},
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
def test_kinds_of_rows(tmp_path: Path, row: Any):
    tokenizer = train_word_tokenizer(["Ada wrote it."])
    trainer = BicoTrainer(tiny_llama(), config(tmp_path, placeholder_id=None), [row, row], processing_class=tokenizer)
    assert [row["input_ids"].tolist() for row in trainer.train_dataset] == [[2, 4, 6, 5, 7, 3]] * 2
    trainer.train()
    assert all(math.isfinite(loss) for loss in logged(trainer))


# Writes BOS itself and ends each message with the word "end", but adds no EOS.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ ' ' if not loop.first }}{{ message.role }} {{ message.content }} end{% endfor %}"
    "{{ ' assistant' if add_generation_prompt }}"
)
CHAT = [{"role": "user", "content": "Who wrote it?"}, {"role": "assistant", "content": "Ada."}]


def chat_tokenizer(template: str | None = TEMPLATE) -> Any:
    tokenizer = train_word_tokenizer(["user Who wrote it? end assistant Ada. end \n"])
    tokenizer.split_special_tokens = False  # the template writes BOS as text
    tokenizer.chat_template = template
    return tokenizer


def test_messages_become_what_the_chat_template_writes(tmp_path: Path):
    tokenizer = chat_tokenizer()
    rows = [{"messages": CHAT}, {"messages": CHAT[:1], "id": 7}]
    trainer = BicoTrainer(tiny_llama(), config(tmp_path, placeholder_id=None), rows, processing_class=tokenizer)
    words = [" user", " Who", " wrote", " it", "?", " end", " assistant", " Ada", ".", " end"]
    tokens = [tokenizer.convert_ids_to_tokens(row["input_ids"].tolist()) for row in trainer.train_dataset]
    assert tokens == [["<s>", *words], ["<s>", *words[:6]]]
    trainer.train()
    assert all(math.isfinite(loss) for loss in logged(trainer))


@pytest.mark.parametrize("end", ["", "</s>", "</s>{{ '\n' }}"], ids=repr)
def test_text_of_a_chat_template_gets_no_second_bos_or_eos(tmp_path: Path, end: str):
    tokenizer = chat_tokenizer(TEMPLATE + end)
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    rows = [{"messages": CHAT}, {"text": text}]
    trainer = BicoTrainer(tiny_llama(), config(tmp_path), rows, processing_class=tokenizer)
    chat, plain = (row["input_ids"].tolist() for row in trainer.train_dataset)
    assert plain == (chat if end else [*chat, EOS])
    assert plain.count(BOS) == plain.count(EOS) == 1


@pytest.mark.parametrize(
    ("messages", "template", "message"),
    [
        (CHAT, None, r"\[0\] has messages, which need a tokenizer with a chat template: pass that of a chat model"),
        ("Who wrote it?", TEMPLATE, r"\[0\]: messages must be a list of {'role': .*, 'content': .*}, got 'Who wrote"),
        (["Who wrote it?"], TEMPLATE, r"messages must be a list of .*, got \['Who wrote"),
        (None, TEMPLATE, r"\[0\]: messages must be a list of .*, got None"),
        (CHAT, "{{ raise_exception('roles') }}", r"\[0\]: the chat template fails on these messages: roles"),
    ],
)
def test_messages_refused(tmp_path: Path, messages: Any, template: str | None, message: str):
    tokenizer = chat_tokenizer(template)
    with pytest.raises(ValueError, match=message):
        BicoTrainer(tiny_llama(), config(tmp_path), [{"messages": messages}], processing_class=tokenizer)


def test_the_texts_of_a_set_of_facts_are_a_dataset(tmp_path: Path):
    facts = generate(names_first=2, descriptions_first=2, both=1, pretraining=0)
    tokenizer = train_word_tokenizer(text.text for text in facts.train)
    model = tiny_llama()
    model.resize_token_embeddings(len(tokenizer))
    model.config.max_position_embeddings = 64
    trainer = BicoTrainer(model, config(tmp_path), facts.train, processing_class=tokenizer)
    expected = [
        [tokenizer.bos_token_id, *tokenizer(text.text, add_special_tokens=False)["input_ids"]] for text in facts.train
    ]
    assert [row["input_ids"].tolist() for row in trainer.train_dataset] == [
        [*ids, tokenizer.eos_token_id] for ids in expected
    ]


def test_the_array_of_a_row_is_copied(tmp_path: Path):
    ids = np.array(GOOD["input_ids"])
    trainer = BicoTrainer(tiny_llama(), config(tmp_path), [{"input_ids": ids}])
    ids[:] = 0
    assert trainer.train_dataset[0]["input_ids"].tolist() == GOOD["input_ids"]


def test_special_tokens_and_placeholder_come_from_the_tokenizer(tmp_path: Path):
    """With mask_rate 1 every ordinary token is hidden, so the batch shows which ids are special."""
    tokenizer = train_word_tokenizer(["Ada wrote it."])
    tokenizer.pad_token = "."  # an ordinary token, id 7, as placeholder and padding
    args = config(tmp_path, placeholder_id=None, mixing_probability=1.0, mask_rate=1.0)
    trainer = BicoTrainer(tiny_llama(), args, [{"text": "Ada wrote it."}], processing_class=tokenizer)
    batches, labels = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
    assert batches[0]["input_ids"].tolist() == [[2, 7, 7, 7, 7, 3]]
    assert batches[0]["span_ids"].tolist() == [[0, -1, -1, -1, 0, 0]]
    assert labels == 3


def test_model_and_tokenizer_from_a_folder(tmp_path: Path):
    tiny_llama().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    train_word_tokenizer(["Ada wrote it."]).save_pretrained(tmp_path / "model")
    trainer = BicoTrainer(str(tmp_path / "model"), config(tmp_path), [{"text": "Ada wrote it."}])
    trainer.train()
    assert next(trainer.model.parameters()).dtype == torch.float32
    assert len(logged(trainer)) == 6


def test_max_length_cuts_rows(tmp_path: Path):
    trainer = BicoTrainer(tiny_llama(), config(tmp_path, max_length=4), some_rows())
    assert [row["input_ids"].tolist() for row in trainer.train_dataset] == [row["input_ids"][:4] for row in some_rows()]


def test_windows_split_long_rows(tmp_path: Path):
    """A row of 9 tokens makes windows of 4, 4 and 1; nothing can be predicted in the last."""
    rows = [{"input_ids": [BOS, *range(5, 5 + count)]} for count in (2, 3, 4, 5, 8, 9)]
    kept = [[BOS, 5, 6], [BOS, 5, 6, 7], [BOS, 5, 6, 7], [BOS, 5, 6, 7], [8, 9], [BOS, 5, 6, 7], [8, 9, 10, 11]]
    kept += [[BOS, 5, 6, 7], [8, 9, 10, 11], [12, 13]]
    trainer = BicoTrainer(tiny_llama(), config(tmp_path, max_length=4, long_rows="windows"), rows, rows)
    for dataset in (trainer.train_dataset, trainer.eval_dataset, trainer._encode(trainer.train_dataset, "again")):
        assert [row["input_ids"].tolist() for row in dataset] == kept
        assert [row["index"] for row in dataset] == list(range(10))
    trainer.train()
    trainer.evaluate()
    assert sorted(trainer._row_losses["ntp"]) == list(range(10))


def test_a_window_that_has_nothing_to_predict_is_dropped_only_at_the_end(tmp_path: Path):
    def windows(ids: list[int], **changes: Any) -> list[list[int]]:
        trainer = constructed(tmp_path, [{"input_ids": ids}], max_length=3, long_rows="windows", **changes)
        return [row["input_ids"].tolist() for row in trainer.train_dataset]

    assert windows([BOS, 7, 8, 9, EOS]) == [[BOS, 7, 8]]  # no token after the first of [9, EOS] may be hidden
    assert windows([BOS, 7, 8, 9, EOS], objective="infill") == [[BOS, 7, 8], [9, EOS]]
    assert windows([BOS, 7, 8, 9, 10], objective="bert") == [[BOS, 7, 8]]  # bert does not predict the last token either
    with pytest.raises(ValueError, match=r"train_dataset\[0\] has nothing to predict: .* got \[7, 3, 3\]"):
        windows([BOS, 7, 8, 7, EOS, EOS, 9, 10])


def test_grouping_by_length(tmp_path: Path):
    changes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    args = config(tmp_path, train_sampling_strategy="group_by_length", **changes)
    trainer = BicoTrainer(tiny_llama(), args, some_rows())
    loader = trainer.get_train_dataloader()
    epochs = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        epochs.append([rows.indices for rows in loader])
    assert sorted(index for indices in epochs[0] for index in indices) == list(range(40))
    assert epochs[0] == epochs[2] != epochs[1]


def test_grouped_batches_have_similar_lengths_and_random_order():
    lengths = torch.randint(5, 60, (1010,), generator=Generator().manual_seed(0)).tolist()
    indices = list(LengthGroupedSampler(lengths, batch_size=16, seed=0))
    assert sorted(indices) == list(range(1010))
    batches = [[lengths[index] for index in indices[i : i + 16]] for i in range(0, 1010, 16)]
    assert len(batches[-1]) == 1010 % 16
    padded = sum(len(batch) * max(batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)  # with rows in random order it would be 1.8
    longest = [max(batch) for batch in batches]
    rises = sum(after > before for before, after in pairwise(longest))
    assert rises > 20  # in the stock order lengths decrease, except at its 3 restarts


# Refusals


def constructed(tmp_path: Path, rows: Any, model: Any = None, **changes: Any) -> BicoTrainer:
    return BicoTrainer(tiny_llama() if model is None else model, config(tmp_path, **changes), rows)


LONG = {"input_ids": [BOS, *[7] * CONTEXT]}
GOOD = {"input_ids": [BOS, 7, 8, EOS]}


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([], ValueError, "train_dataset is empty"),
        ("rows.jsonl", TypeError, "got str; read the file first"),
        ({"train": [GOOD]}, TypeError, r"got dict; give one of its splits, such as train_dataset\['train'\]"),
        (
            SimpleNamespace(iloc=None, __len__=len),
            TypeError,
            r"; use train_dataset.to_dict\('records'\)",
        ),  # as of pandas
        (
            [("Ada", " wrote")],
            ValueError,
            r"\[0\] must be a dict .* got tuple; name its parts: {'prompt': ..., 'comple",
        ),
        (
            [{"prompt": "Ada", "completion": "wrote"}],
            ValueError,
            r"\[0\]: prompt and completion run together as 'Adawro",
        ),
        (
            [{"prompt": "Ada ", "completion": "wrote"}],
            ValueError,
            r"\[0\]: prompt must not end with a space, got 'Ada '",
        ),
        ([{"prompt": " ", "completion": " wrote"}], ValueError, r"\[0\]: prompt must not be empty, got ' '"),
        ([{"text": " \n"}], ValueError, r"\[0\]: text must not be empty"),
        ([GOOD, LONG], ValueError, r"train_dataset\[1\] needs 33 tokens, but the model's context is 32"),
        ([GOOD, {"input_ids": [BOS]}], ValueError, r"train_dataset\[1\] has nothing to predict"),
        ([GOOD, {"input_ids": [7, BOS, EOS]}], ValueError, r"train_dataset\[1\] has nothing to predict"),
        ([{"input_ids": []}], ValueError, r"train_dataset\[0\] has nothing to predict"),
        ([{"input_ids": [BOS, 7, VOCABULARY]}], ValueError, r"\[0\]: ids must be in \[0, 40\), .* got 2 to 40"),
        ([{"input_ids": [BOS, -1, 7]}], ValueError, r"\[0\]: ids must be in \[0, 40\), .* got -1 to 7"),
        ([{"messages": CHAT}], ValueError, "which need a tokenizer with a chat template"),
        ([{"input_ids": [[BOS, 7]]}], ValueError, r"one sequence, got the shape \[1, 2\]"),
        ([{"prompt": "Ada"}], ValueError, r"'prompt' and 'completion' \(or .*\), got \['prompt'\]"),
        (["Ada wrote it."], ValueError, r"train_dataset\[0\] must be a dict .* got str"),
        ([{"input_ids": None}], ValueError, r"\[0\]: input_ids must be a sequence of token ids, got NoneType"),
        ([{"input_ids": [2.7, 5.2]}], ValueError, r"\[0\]: input_ids must be integers, got torch.float32"),
        (
            [{"input_ids": np.array([2.0, 5.0])}],
            ValueError,
            r"\[0\]: input_ids must be integers, got an array of float64",
        ),
        ([{"input_ids": np.array([True, False])}], ValueError, r"must be integers, got an array of bool"),
        ([{"input_ids": np.array([[2, 5]])}], ValueError, r"one sequence, got the shape \[1, 2\]"),
        ([{"input_ids": tensor(5)}], ValueError, r"one sequence, got the shape \[\]"),
        ([{**GOOD, "labels": [7]}], ValueError, r"\[0\] has the column 'labels', .* the objective makes the labels"),
        ([{"text": "Ada", "completion_mask": [1]}], ValueError, "'completion_mask', .* the loss covers the whole row"),
        (
            [{"messages": CHAT, "tools": []}],
            ValueError,
            "'tools', .* what the chat template makes of its messages alone",
        ),
        (
            [{**GOOD, "text": "Ada"}],
            ValueError,
            r"\[0\] must hold its text once, got input_ids and text; remove all but",
        ),
        (
            [{"prompt": "a", "completion": " b", "messages": CHAT}],
            ValueError,
            "must hold its text once, got messages and completion with prompt",
        ),
        ([{**GOOD, "position_ids": [7]}], ValueError, r"'position_ids', .* positions count from the start of the row"),
        ([{"text": "Ada", "span_ids": [7]}], ValueError, r"'span_ids', .* the objective makes the span ids"),
        (
            [GOOD, {**GOOD, "attention_mask": [1, 1, 1, 0]}],
            ValueError,
            r"\[1\]: attention_mask contains zeros, .* remove the padding from input_ids",
        ),
        ([Example("Ada", 3)], ValueError, r"\[0\]: completion must be a string, got int"),
        ([{"text": None}], ValueError, r"\[0\]: text must be a string, got NoneType"),
        ([{"prompt": "a", "completion": 3}], ValueError, r"\[0\]: completion must be a string, got int"),
        (
            [{"text": "Ada wrote it."}],
            ValueError,
            r"train_dataset\[0\] is text, which needs a tokenizer: pass processing_class",
        ),
    ],
)
def test_rows_refused(tmp_path: Path, rows: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        constructed(tmp_path, rows)


def test_bert_needs_a_token_between_the_first_and_the_last(tmp_path: Path):
    row = {"input_ids": [BOS, 7]}
    assert constructed(tmp_path, [row]).train_dataset
    with pytest.raises(ValueError, match="nothing to predict"):
        constructed(tmp_path, [row], objective="bert")


def test_a_refused_construction_does_not_change_the_model(tmp_path: Path):
    model = tiny_llama()
    with pytest.raises(ValueError, match="empty"):
        BicoTrainer(model, config(tmp_path), [], peft_config=LoraConfig(task_type="CAUSAL_LM"))
    with pytest.raises(RuntimeError, match="not attached"):
        detach(model)
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_a_padding_id_that_the_model_lacks_is_not_used(tmp_path: Path):
    tokenizer = train_word_tokenizer(["Ada wrote it."])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model = tiny_llama()
    model.resize_token_embeddings(len(tokenizer) - 1)
    trainer = BicoTrainer(
        model, config(tmp_path, objective="infill"), [{"text": "Ada wrote it."}, {"text": "Ada."}], None, tokenizer
    )
    trainer.train()
    assert all(math.isfinite(loss) for loss in logged(trainer))


def test_a_text_with_a_token_that_the_model_lacks_is_refused(tmp_path: Path):
    tokenizer = train_word_tokenizer(["Ada wrote it."])
    tokenizer.add_tokens(["<|new|>"])
    model = tiny_llama()
    model.resize_token_embeddings(len(tokenizer) - 1)
    tokenizer.split_special_tokens = False
    rows = [{"text": "Ada wrote it."}, {"text": "Ada <|new|>"}]
    assert BicoTrainer(model, config(tmp_path), rows[:1], processing_class=tokenizer)
    message = r"train_dataset\[1\]: ids must be in \[0, 8\), .* got 2 to 8; use the tokenizer .* or give the model rows"
    with pytest.raises(ValueError, match=message):
        BicoTrainer(model, config(tmp_path), rows, processing_class=tokenizer)


def test_a_row_of_special_tokens_is_accepted_if_they_are_predicted(tmp_path: Path):
    assert constructed(tmp_path, [{"input_ids": [7, BOS, EOS]}], objective="infill").train_dataset
    with pytest.raises(ValueError, match="nothing to predict"):
        constructed(tmp_path, [{"input_ids": [BOS]}], objective="infill")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "mlm"}, r"objective must be one of 'ntp', 'bico', .*, got 'mlm'"),
        ({"include_for_metrics": ["inputs"]}, "include_for_metrics must not contain 'inputs'"),
        ({"mask_rate": 0.0}, r"mask_rate must be in \(0, 1\] or 'uniform', got 0.0"),
        ({"mixing_probability": 1.5}, r"mixing_probability must be in \[0, 1\], got 1.5"),
        ({"mixing_probability": math.nan}, "mixing_probability must be in"),
        ({"max_length": 1}, r"max_length must be in \[2, 2"),
        ({"long_rows": "windows"}, "long_rows='windows' needs the length of a window; set max_length"),
        ({"long_rows": "drop", "max_length": 4}, "long_rows must be 'cut' or 'windows', got 'drop'"),
        ({"remove_unused_columns": True}, "remove_unused_columns must be False"),
        ({"placeholder_id": VOCABULARY}, r"placeholder_id must be in \[0, 40\), the ids of the model, got 40"),
        ({"placeholder_id": None}, "placeholder_id is needed .* set placeholder_id=0"),
    ],
)
def test_arguments_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        constructed(tmp_path, [GOOD], **changes)


def test_plain_training_arguments_are_refused(tmp_path: Path):
    with pytest.raises(TypeError, match="args must be a BicoConfig, got TrainingArguments"):
        BicoTrainer(tiny_llama(), TrainingArguments(str(tmp_path)), [GOOD])


def test_config_parses_from_a_command_line(tmp_path: Path):
    command = (
        f"--output_dir {tmp_path} --objective infill --mask_rate 0.3 --placeholder_id 5 --packing --use_cpu".split()
    )
    (args,) = HfArgumentParser(BicoConfig).parse_args_into_dataclasses(command)
    assert (args.objective, args.mask_rate, args.placeholder_id) == ("infill", 0.3, 5)
    assert (args.mixing_probability, args.max_length, args.packing) == (0.5, None, True)
    assert (args.remove_unused_columns, args.logging_nan_inf_filter, args.logging_steps) == (False, False, 10)
