"""The training-step benchmark times steps that compute the same thing, and records all of them."""

import json
from typing import Any

import pytest
import torch
import train_step
from train_step import DENSE, OURS, PACKING, STOCK, WAYS

import bico_ext.models.hooks as hooks_module
from bico_ext import split_triangle_attention

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    monkeypatch.setattr(train_step, "MODEL", {**train_step.MODEL, **TINY, "initializer_range": 0.3})


def loss_and_gradient(way: str, tokens: list, packed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    model = train_step.build(way != STOCK)
    loss = train_step.loss_of(model, way, train_step.batch(way, tokens, packed), torch.float32)
    loss.backward()
    return loss.detach(), model.model.layers[0].self_attn.q_proj.weight.grad


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(("way", "peer"), [("NTP, ours", STOCK), (OURS, DENSE), (PACKING, OURS)])
def test_a_step_and_its_peer_have_one_loss_and_one_gradient(way, peer, packed):
    tokens = train_step.sequences(16, 64, packed)
    for ours, theirs in zip(
        loss_and_gradient(way, tokens, packed), loss_and_gradient(peer, tokens, packed), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert hooks_module.split_triangle_attention is split_triangle_attention


@pytest.mark.parametrize("way", WAYS)
def test_packed_sequences_do_not_see_each_other(way):
    """Another first sequence changes nothing about the last one."""
    tokens = train_step.sequences(16, 64, True)
    logits = []
    for rows in (tokens, [tokens[0].flip(0), *tokens[1:]]):
        model: Any = train_step.build(way != STOCK)
        model.lm_head.register_forward_hook(lambda _, __, out: logits.append(out[0, -len(tokens[-1]) :].detach()))
        train_step.loss_of(model, way, train_step.batch(way, rows, True), torch.float32)
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize("length", [7, 16, 60])
def test_sequences_fill_the_places(length):
    packed, padded = train_step.sequences(length, 64, True), train_step.sequences(length, 64, False)
    assert sum(map(len, packed)) == 64
    assert all(length / 2 <= len(sequence) <= length for sequence in [*packed[:-1], *padded])
    assert len(padded) == 64 // length
    assert max(map(len, padded)) == length
    assert all(sequence.min() > 0 for sequence in packed + padded)  # 0 is the placeholder
    assert train_step.batch(STOCK, padded, False)["attention_mask"].sum(1).tolist() == [*map(len, padded)]
    assert train_step.batch(PACKING, padded, False)["input_ids"].shape == (1, sum(map(len, padded)))


def test_a_step_moves_the_weights_and_leaves_no_gradient():
    model = train_step.build(True)
    before = model.lm_head.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    arguments = train_step.batch(OURS, train_step.sequences(16, 64, False), False)
    train_step.step(model, optimizer, OURS, arguments, torch.bfloat16)
    assert not torch.equal(before, model.lm_head.weight)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("ceiling", "verdict"), [(0.0, "missed"), (1e9, "met")])
def test_a_run_prints_and_writes_every_step_and_its_target(tmp_path, monkeypatch, capsys, ceiling, verdict):
    monkeypatch.setattr(train_step, "TARGET_LENGTH", 16)
    monkeypatch.setattr(train_step, "CEILING", ceiling)
    train_step.main(["--lengths", "8", "16", "--tokens", "32", "--repetitions", "2", "--output-dir", str(tmp_path)])
    record = json.loads((tmp_path / "train_step.json").read_text())
    text = (tmp_path / "train_step.md").read_text()
    assert text in capsys.readouterr().out
    assert len(record["steps"]) == 8
    for result in record["steps"]:
        place = f"| {result['dtype']} | {result['layout']} | {result['length']} |"
        assert [way for way in WAYS if f"{place} {way} |" not in text] == [PACKING] * (result["layout"] == "packed")
        assert all(len(ms) == 2 and min(ms) > 0 for ms in result["milliseconds"].values())
        judged = any(line.startswith(place) and line.endswith(f"| {verdict} |") for line in text.splitlines())
        assert judged == (result["length"] == 16)


def test_two_matrices_that_would_need_too_much_are_left_out_and_said_to_be(monkeypatch):
    monkeypatch.setattr(train_step, "SCORE_LIMIT", 0)
    result = train_step.measure_steps("bfloat16", 16, 32, False, 1)
    assert list(result["milliseconds"]) == ["NTP, SDPA", "NTP, ours", "BICO, ours", "infill, ours", "BICO, packing"]
    assert "Left out: BICO, two matrices, bfloat16, padded, 16" in train_step.report([result])


def test_a_model_from_a_folder(tmp_path):
    model = train_step.build(False)
    model.config.update({"num_key_value_heads": 1, "vocab_size": 1000})  # grouped-query heads, as small Llamas have
    type(model)(model.config).save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--lengths", "6", "--tokens", "12", "--repetitions", "1"]
    train_step.main([*arguments, "--output-dir", str(tmp_path)])
    record = json.loads((tmp_path / "train_step.json").read_text())
    assert record["model"] == str(tmp_path / "model")
    assert [list(result["milliseconds"]) for result in record["steps"]] == [WAYS, WAYS[:-1]] * 2


def test_wrong_lengths_are_refused(capsys):
    with pytest.raises(SystemExit):
        train_step.main(["--lengths", "64", "--tokens", "32"])
    assert "--lengths" in capsys.readouterr().err
