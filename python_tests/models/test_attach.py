"""`attach` against a Llama written out here in fp64, and against stock transformers where nothing may change."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import LENGTH, ROPE, relative, some_span_ids, tiny_family, tiny_llama, tokens
from torch import Tensor
from transformers import AttentionMaskInterface, AutoModelForCausalLM, DataCollatorWithFlattening, LlamaModel

import bico_ext.models.hooks as hooks_module
from bico_ext.models.attach import attach, check_attached, detach

# A Llama with split-triangle attention, written from the definitions: complex numbers, |m - n|, fp64.


def frequencies(rope: dict, head_dim: int) -> Tensor:
    """Return the radians per position of each pair, fp64 [D / 2]; llama3 follows Llama 3.1's published scaling rule."""
    theta = rope["rope_theta"] ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    if rope["rope_type"] == "linear":
        return theta / rope["factor"]
    if rope["rope_type"] == "llama3":
        rotations = rope["original_max_position_embeddings"] * theta / (2 * math.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        kept = ((rotations - low) / (high - low)).clamp(0, 1)  # the part of the original frequency that is kept
        return theta * (kept + (1 - kept) / rope["factor"])
    return theta


def dense_llama(model: Any, input_ids: Tensor, span_ids: Tensor) -> Tensor:
    """Return the logits [B, S, vocab] in fp64."""
    config, weights = model.config, {name: w.double() for name, w in model.state_dict().items()}
    batch, length = input_ids.shape
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weights[name]

    def sees(spans: list[int], m: int, n: int) -> bool:
        return spans[n] == 0 or (spans[n] > 0 and spans[n] == spans[m] and n <= m)

    seen = torch.tensor(
        [[[sees(row, m, n) for n in range(length)] for m in range(length)] for row in span_ids.tolist()]
    )  # [B, m, n]
    index = torch.arange(length)
    distance = (index[:, None] - index[None, :]).abs()  # key n counts as |m - n| tokens before query m, on either side
    phase = torch.exp(1j * distance[..., None] * frequencies(config.rope_parameters, dim))  # [m, n, D / 2]

    x = weights["model.embed_tokens.weight"][input_ids]
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        h = norm(x, prefix + "input_layernorm.weight")
        q, k, v = (
            (h @ weights[f"{prefix}self_attn.{name}_proj.weight"].T).view(batch, length, -1, dim).transpose(1, 2)
            for name in "qkv"
        )
        k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
        q, k = (torch.complex(t[..., : dim // 2], t[..., dim // 2 :]) for t in (q, k))
        scores = torch.einsum("bhmi,bhni,mni->bhmn", q, k.conj(), phase).real / math.sqrt(dim)
        weight = scores.exp() * seen[:, None]
        weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-300)  # all 0 for a query that sees no key
        attention = (weight @ v).transpose(1, 2).reshape(batch, length, heads * dim)
        x = x + attention @ weights[prefix + "self_attn.o_proj.weight"].T
        h = norm(x, prefix + "post_attention_layernorm.weight")
        gate, up = (h @ weights[f"{prefix}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate * gate.sigmoid() * up) @ weights[prefix + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ weights["lm_head.weight"].T


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("rope", list(ROPE))
def test_logits_match_the_dense_llama(rope: str, kv_heads: int) -> None:
    model = attach(tiny_llama(rope, num_key_value_heads=kv_heads))
    input_ids, span_ids = tokens(2, LENGTH), some_span_ids(2)
    logits = model(input_ids=input_ids, span_ids=span_ids).logits
    assert relative(logits, dense_llama(model, input_ids, span_ids)) < 1e-6


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_minus_one(side: str) -> None:
    """A padded row has the logits of the same row without padding; queries that see no key stay finite."""
    model = attach(tiny_llama())
    input_ids, span_ids = tokens(2, LENGTH), some_span_ids(2)
    padding = slice(0, 6) if side == "left" else slice(LENGTH - 6, LENGTH)
    real = slice(6, LENGTH) if side == "left" else slice(0, LENGTH - 6)
    input_ids[1, padding], span_ids[1, padding] = 0, -1
    logits = model(input_ids=input_ids, span_ids=span_ids).logits
    assert logits.isfinite().all()
    assert relative(logits, dense_llama(model, input_ids, span_ids)) < 1e-6
    alone = dense_llama(model, input_ids[1:, real], span_ids[1:, real])
    assert relative(logits[1:, real], alone) < 1e-6


def test_queries_without_keys_give_finite_logits() -> None:
    model = attach(tiny_llama())
    span_ids = torch.full((1, 5), -1, dtype=torch.int32)
    logits = model(input_ids=tokens(1, 5), span_ids=span_ids).logits
    assert relative(logits, dense_llama(model, tokens(1, 5), span_ids)) < 1e-6


def test_packed_sequences_do_not_see_each_other() -> None:
    model = attach(tiny_llama())
    lengths = [7, 1, 12]
    rows = tokens(1, sum(lengths))[0].split(lengths)
    batch = DataCollatorWithFlattening(return_flash_attn_kwargs=True)([{"input_ids": r.tolist()} for r in rows])
    batch.pop("labels")
    spans = some_span_ids(1, sum(lengths))
    logits = model(**batch, span_ids=spans).logits[0].split(lengths)
    for got, row, span_ids in zip(logits, rows, spans[0].split(lengths), strict=True):
        assert relative(got, dense_llama(model, row[None], span_ids[None])[0]) < 1e-6


@pytest.mark.parametrize(
    "family",
    ["llama", "qwen2", "mistral", "qwen3", "granite", "phi", "gpt_neox", "glm", "glm4", "cohere", "helium", "ernie4_5"],
)
def test_span_one_is_stock_causal_attention(family: str) -> None:
    """Next-token prediction through the op has the logits and all gradients of the stock model, in fp32.

    granite has its own scale of the scores. phi and gpt_neox rotate part of the head. glm and glm4 rotate interleaved
    pairs in part of the head. cohere rotates interleaved pairs in all of the head and has another layout of the tables.
    """
    torch.manual_seed(0)
    model = tiny_family(family)
    input_ids = tokens(2, LENGTH)

    def run(**inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        out = model(input_ids=input_ids, labels=input_ids, **inputs)
        out.loss.backward()
        return out.logits, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    stock_logits, stock_grads = run()
    attach(model)
    logits, grads = run(span_ids=torch.ones(2, LENGTH, dtype=torch.int32))
    assert relative(logits, stock_logits) < 1e-5
    assert grads.keys() == stock_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, stock_grads[name], rtol=1e-4, atol=1e-5 * stock_grads[name].abs().max().item())
    # If every token is context, the first output depends on the last token.
    context = torch.zeros(1, LENGTH, dtype=torch.int32)
    other = input_ids[:1].clone()
    other[0, -1] += 1
    first, second = (model(input_ids=ids, span_ids=context).logits[0, 0] for ids in (input_ids[:1], other))
    assert not torch.allclose(first, second)


def test_without_span_ids_everything_is_bitwise_stock() -> None:
    stock, attached = tiny_llama(), attach(tiny_llama())
    ids, mask = tokens(3, LENGTH), torch.ones(3, LENGTH, dtype=torch.long)
    mask[1, :6] = 0  # left padding
    for inputs in ({}, {"attention_mask": mask}, {"labels": ids}, {"span_ids": None}):
        ours = attached(input_ids=ids, **inputs)
        theirs = stock(input_ids=ids, **{k: v for k, v in inputs.items() if v is not None})
        assert torch.equal(ours.logits, theirs.logits)
        assert ours.past_key_values.get_seq_length() == LENGTH
    searches: list[dict] = [{}, {"num_beams": 2}, {"use_cache": False}, {"cache_implementation": "static"}]
    for options in searches:
        options |= {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "disable_compile": True}
        options |= {"output_scores": True, "return_dict_in_generate": True}
        ours, theirs = attached.generate(ids, **options), stock.generate(ids, **options)
        assert torch.equal(ours.sequences, theirs.sequences)
        assert all(torch.equal(a, b) for a, b in zip(ours.scores, theirs.scores, strict=True))


def test_no_cache_is_returned_with_span_ids() -> None:
    """The cached keys would not be rotated. None is returned even if the caller or the configuration asks for one."""
    model = attach(tiny_llama())
    assert model.config.use_cache
    for options in ({}, {"use_cache": True}):
        out = model(input_ids=tokens(1, LENGTH), span_ids=some_span_ids(1), **options)
        assert out.past_key_values is None


def test_no_mask_is_built_with_span_ids() -> None:
    """Packed position ids once made transformers build [B, 1, S, S], the only S x S tensor of the whole step."""
    model = attach(tiny_llama())
    mapping = AttentionMaskInterface._global_mapping
    stock_mask = mapping["bico"]

    def no_mask(**_: object) -> None:
        raise AssertionError("a mask was built")

    mapping["bico"] = no_mask
    try:
        positions = torch.cat((torch.arange(7), torch.arange(12)))[None]
        cu_seqlens = torch.tensor([0, 7, 19], dtype=torch.int32)
        model(input_ids=tokens(1, 19), position_ids=positions, span_ids=some_span_ids(1), cu_seq_lens_q=cu_seqlens)
        model(input_ids=tokens(2, 19), span_ids=some_span_ids(2))
        with pytest.raises(AssertionError, match="a mask was built"):
            model(input_ids=tokens(1, 19), position_ids=positions)
    finally:
        mapping["bico"] = stock_mask


def test_saved_files_are_those_of_the_stock_model(tmp_path: Path) -> None:
    stock, attached = tiny_llama(), attach(tiny_llama())
    assert list(attached.state_dict()) == list(stock.state_dict())
    stock.save_pretrained(tmp_path / "stock")
    attached.save_pretrained(tmp_path / "attached")
    names = sorted(os.listdir(tmp_path / "stock"))
    assert names == sorted(os.listdir(tmp_path / "attached"))
    assert "config.json" in names
    for name in names:
        assert (tmp_path / "attached" / name).read_bytes() == (tmp_path / "stock" / name).read_bytes(), name
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "attached").eval()
    with pytest.raises(RuntimeError, match="not attached"):
        check_attached(loaded)
    ids, span_ids = tokens(2, LENGTH), some_span_ids(2)
    assert torch.equal(attach(loaded)(input_ids=ids, span_ids=span_ids).logits, attached(ids, span_ids=span_ids).logits)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    model = attach(tiny_llama()).train()
    ids, span_ids = tokens(2, LENGTH), some_span_ids(2)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(input_ids=ids, span_ids=span_ids, labels=ids).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again = gradients()
    assert plain.keys() == again.keys()
    assert all(torch.equal(again[name], plain[name]) for name in plain)


@pytest.mark.parametrize("order", ["attach-then-lora", "lora-then-attach"])
def test_lora(order: str) -> None:
    """The adapter starts at zero, so the logits are those of the plain model. Only the adapter gets gradients."""
    peft = pytest.importorskip("peft")
    ids, span_ids = tokens(2, LENGTH), some_span_ids(2)
    expected = attach(tiny_llama())(input_ids=ids, span_ids=span_ids).logits
    lora = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    if order == "attach-then-lora":
        model = peft.get_peft_model(attach(tiny_llama()), lora)
    else:
        model = attach(peft.get_peft_model(tiny_llama(), lora))
    check_attached(model)
    model.eval()
    out = model(input_ids=ids, span_ids=span_ids, labels=ids)
    assert torch.equal(out.logits, expected)
    out.loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert trained
    assert all("lora_B" in name for name in trained)  # lora_A's gradient is 0 while lora_B is 0
    assert len(trained) == 2 * 7
    with pytest.raises(ValueError, match="attention_mask cannot be given"):
        model(input_ids=ids, span_ids=span_ids, attention_mask=torch.ones_like(ids))
    detach(model)
    assert torch.equal(model(input_ids=ids).logits, tiny_llama()(input_ids=ids).logits)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_detach_restores_the_model(implementation: str) -> None:
    model = tiny_llama(attn_implementation=implementation)
    stock = tiny_llama(attn_implementation=implementation)
    assert detach(attach(model)) is model
    assert model.config._attn_implementation == implementation
    assert all(not module._forward_pre_hooks for module in model.modules())
    ids = tokens(2, LENGTH)
    assert torch.equal(model(input_ids=ids).logits, stock(input_ids=ids).logits)
    assert vars(model).keys() == vars(stock).keys()
    with pytest.raises(RuntimeError, match="LlamaForCausalLM is not attached; call attach"):
        detach(model)


def test_attach_twice_is_attach_once() -> None:
    model = attach(tiny_llama())
    assert attach(model) is model
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == 3  # the decoder and two layers
    detach(model)
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_a_deep_copy_is_attached_and_independent() -> None:
    model = attach(tiny_llama())
    copied = copy.deepcopy(model)
    check_attached(copied)
    detach(copied)
    check_attached(model)
    ids = tokens(1, LENGTH)
    assert torch.equal(copied(input_ids=ids).logits, tiny_llama()(input_ids=ids).logits)


READER = """
import sys, torch
model, ids, span_ids = torch.load(sys.argv[1], weights_only=False)
logits = [model(input_ids=ids).logits, model(input_ids=ids, span_ids=span_ids).logits]
from bico_ext.models.attach import attach, check_attached, detach
check_attached(attach(model))
torch.save([*logits, detach(model)(input_ids=ids).logits], sys.argv[2])
"""


def test_another_process_reads_a_pickled_model(tmp_path: Path) -> None:
    """It lacked the attention function, which only `attach` registered, and the proof left hooks without a pickle."""
    model, ids, span_ids = attach(tiny_llama()), tokens(1, LENGTH), some_span_ids(1)
    torch.save((model, ids, span_ids), tmp_path / "model.pt")
    files = [str(tmp_path / "model.pt"), str(tmp_path / "logits.pt")]
    subprocess.run([sys.executable, "-c", READER, *files], check=True)
    causal, logits, detached = torch.load(files[1])
    assert relative(logits, dense_llama(model, ids, span_ids)) < 1e-6
    stock = tiny_llama()(input_ids=ids).logits
    assert relative(causal, stock) < 1e-6
    assert relative(detached, stock) < 1e-6


def test_a_bare_decoder_can_be_attached() -> None:
    model = tiny_llama()
    ids, span_ids = tokens(2, LENGTH), some_span_ids(2)
    expected = attach(copy.deepcopy(model))(input_ids=ids, span_ids=span_ids, output_hidden_states=True)
    decoder = attach(model.model)
    assert isinstance(decoder, LlamaModel)
    assert torch.equal(decoder(ids, span_ids=span_ids).last_hidden_state, expected.hidden_states[-1])
    with pytest.raises(TypeError, match="only input_ids may be positional, got 2"):
        decoder(ids, None, span_ids=span_ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("vocab", [1, 50])
def test_proof_leaves_no_trace(dtype: torch.dtype, vocab: int) -> None:
    """attach and check_attached leave the random state, training modes, gradients and weights unchanged."""
    model = tiny_llama(dtype=dtype, vocab_size=vocab, bos_token_id=None, attention_dropout=0.5).train()
    model.model.layers[0].eval()  # a layer kept in evaluation mode, as in some recipes
    model.lm_head.weight.requires_grad_(False)
    weights = {name: w.clone() for name, w in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    random = torch.get_rng_state()
    attach(model)
    check_attached(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(p.grad is None for p in model.parameters())
    assert not model.lm_head.weight.requires_grad
    assert all(w.dtype == dtype and torch.equal(w, weights[name]) for name, w in model.state_dict().items())


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_is_as_close_as_the_stock_model_is(autocast: bool) -> None:
    """The error with bf16 weights or under autocast is at most twice the error of stock bf16 on causal rows."""
    single, ids = tiny_llama(), tokens(2, LENGTH)
    half = copy.deepcopy(single) if autocast else copy.deepcopy(single).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        allowed = 2 * relative(half(input_ids=ids).logits, single.float()(input_ids=ids).logits)
    span_ids = some_span_ids(2)
    exact = dense_llama(single, ids, span_ids)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = attach(half)(input_ids=ids, span_ids=span_ids, labels=ids)
    out.loss.backward()
    assert relative(out.logits, exact) < max(allowed, 2e-2)
    assert all(p.grad.isfinite().all() for p in half.parameters())


def test_autocast_needs_no_cast_before_the_op(monkeypatch) -> None:
    seen, op = [], hooks_module.split_triangle_attention

    def record(q: Tensor, k: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.extend([q.dtype, k.dtype])
        return op(q, k, *rest, **options)

    model = attach(tiny_llama())
    monkeypatch.setattr(hooks_module, "split_triangle_attention", record)
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=tokens(1, 5), span_ids=torch.zeros(1, 5, dtype=torch.int32))
    assert seen == [torch.bfloat16] * 4


def test_compiles_as_one_graph() -> None:
    model = attach(tiny_llama(num_hidden_layers=1))
    ids, span_ids = tokens(2, LENGTH), some_span_ids(2)
    expected = model(input_ids=ids, span_ids=span_ids).logits
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative(compiled(input_ids=ids, span_ids=span_ids).logits, expected) < 1e-6
