"""GLM's rotation, plain bidirectional attention and two-dimensional positions, against dense fp64 decoders."""

import inspect
import math
from typing import Any

import pytest
import torch
from tiny_models import LENGTH, relative, some_span_ids, tiny_family, tiny_llama, tokens
from torch import Tensor
from transformers import DynamicCache

from bico_ext.models.attach import attach, check_attached
from bico_ext.models.rotary import Pairing, probe_pairing

ORDINARY = torch.arange(LENGTH).expand(2, LENGTH)
# Row 0: a text of 12 tokens with masks at 3 and 7, followed by their blocks of 4 and 3 tokens. Row 1: masks at 5 and 1.
BLOCKS = torch.tensor(
    [
        [[*range(12), 3, 3, 3, 3, 7, 7, 7], [0] * 12 + [1, 2, 3, 4, 1, 2, 3]],
        [[*range(12), 5, 5, 5, 5, 1, 1, 1], [0] * 12 + [1, 2, 3, 4, 1, 2, 3]],
    ]
)
CAUSAL = torch.ones(2, LENGTH, dtype=torch.int32)


def angles(positions: Tensor, rotary_dim: int) -> Tensor:
    """Return the angle of each pair in radians, fp64 [B, S, R / 2], for positions [B, S] or ChatGLM-6B's [B, 2, S]."""

    def plain(position: Tensor, width: int) -> Tensor:
        return position[..., None] * 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)

    if positions.dim() == 2:
        return plain(positions, rotary_dim)
    return torch.cat([plain(positions[:, i], rotary_dim // 2) for i in (0, 1)], dim=-1)


def dense(model: Any, input_ids: Tensor, span_ids: Tensor, positions: Tensor, mirror: bool = True) -> Tensor:
    """Return the logits [B, S, vocab] of a Llama or a GLM in fp64.

    GLM rotates interleaved pairs in half of the head and has a fused gate.
    """
    config, weights = model.config, {name: w.double() for name, w in model.named_parameters()}  # differentiable
    batch, length = input_ids.shape
    head, is_glm = config.head_dim, config.model_type == "glm"
    rotary_dim = head // 2 if is_glm else head
    angle = angles(positions, rotary_dim)
    index = torch.arange(length)
    past = index[None, :] <= index[:, None]  # [m, n]
    key, query = span_ids[:, None, :], span_ids[:, :, None]
    seen = (key == 0) | ((key > 0) & (key == query) & past)  # [B, m, n]
    phase = torch.exp(1j * (angle[:, :, None] - angle[:, None]))  # [B, m, n, R / 2]
    if mirror:
        phase = torch.where(past[..., None], phase, phase.conj())

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weights[name]

    def complex_pairs(x: Tensor) -> Tensor:
        x = x[..., :rotary_dim]
        return torch.complex(x[..., ::2], x[..., 1::2]) if is_glm else torch.complex(*x.chunk(2, dim=-1))

    x = weights["model.embed_tokens.weight"][input_ids]
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        h = norm(x, prefix + "input_layernorm.weight")
        heads = []
        for name in "qkv":
            projected = h @ weights[f"{prefix}self_attn.{name}_proj.weight"].T
            projected = projected + weights.get(f"{prefix}self_attn.{name}_proj.bias", 0)
            heads.append(projected.view(batch, length, -1, head).transpose(1, 2))
        q, k, v = (t.repeat_interleave(config.num_attention_heads // t.shape[1], dim=1) for t in heads)
        scores = torch.einsum("bhmi,bhni,bmni->bhmn", complex_pairs(q), complex_pairs(k).conj(), phase).real
        scores = (scores + q[..., rotary_dim:] @ k[..., rotary_dim:].mT) / math.sqrt(head)
        weight = scores.exp() * seen[:, None]
        weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-300)
        attention = (weight @ v).transpose(1, 2).reshape(batch, length, -1)
        x = x + attention @ weights[prefix + "self_attn.o_proj.weight"].T
        h = norm(x, prefix + "post_attention_layernorm.weight")
        if is_glm:
            gate, up = (h @ weights[prefix + "mlp.gate_up_proj.weight"].T).chunk(2, dim=-1)
        else:
            gate, up = (h @ weights[f"{prefix}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate * gate.sigmoid() * up) @ weights[prefix + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ weights["lm_head.weight"].T


def tiny(family: str) -> Any:
    if family == "llama":
        return tiny_llama()
    torch.manual_seed(0)
    model = tiny_family(family, initializer_range=0.1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # GLM's biases start at 0
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("mirror", [True, False], ids=["mirror", "plain"])
@pytest.mark.parametrize("positions", [ORDINARY, BLOCKS], ids=["1d", "2d"])
@pytest.mark.parametrize("family", ["llama", "glm"])
def test_logits_match_the_dense_decoder(family: str, positions: Tensor, mirror: bool) -> None:
    model = attach(tiny(family))
    input_ids, span_ids = tokens(2, LENGTH), some_span_ids(2)
    inputs: dict = {"block_positions": positions} if positions.dim() == 3 else {"position_ids": positions}
    logits = model(input_ids=input_ids, span_ids=span_ids, mirror=mirror, **inputs).logits
    assert relative(logits, dense(model, input_ids, span_ids, positions, mirror)) < 2e-6
    assert relative(logits, dense(model, input_ids, span_ids, positions, not mirror)) > 1e-3


@pytest.mark.parametrize("mirror", [True, False], ids=["mirror", "plain"])
@pytest.mark.parametrize("family", ["llama", "glm"])
def test_gradients_match_the_dense_decoder(family: str, mirror: bool) -> None:
    model = attach(tiny(family))
    input_ids, span_ids = tokens(2, LENGTH), some_span_ids(2)
    noise = torch.randn(2, LENGTH, 50, generator=torch.Generator().manual_seed(2))
    logits = model(input_ids=input_ids, span_ids=span_ids, block_positions=BLOCKS, mirror=mirror).logits
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad((logits * noise).sum(), list(parameters.values()))
    exact = (dense(model, input_ids, span_ids, BLOCKS, mirror) * noise).sum()
    for name, grad, expected in zip(
        parameters, ours, torch.autograd.grad(exact, list(parameters.values())), strict=True
    ):
        scale = expected.abs().max().item()
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5 * scale, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("family", ["llama", "glm"])
def test_block_positions_work_without_span_ids_and_with_a_cache(family: str) -> None:
    model = attach(tiny(family))
    input_ids = tokens(2, LENGTH)
    expected = dense(model, input_ids, CAUSAL, BLOCKS)
    assert relative(model(input_ids=input_ids, block_positions=BLOCKS).logits, expected) < 2e-6
    cache = DynamicCache(config=model.config)
    # transformers renamed the argument in 5.24
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    steps = []
    for start, end in ((0, 13), (13, 14), (14, LENGTH)):
        inputs: dict = {name: cache, "block_positions": BLOCKS[:, :, start:end]}
        steps.append(model(input_ids=input_ids[:, start:end], **inputs).logits)
    assert relative(torch.cat(steps, dim=1), expected) < 2e-6


def test_the_models_own_scaling_applies_to_block_positions() -> None:
    """Linear scaling divides both positions by 4 here, so multiplying the positions by 4 undoes it."""
    scaled, plain = attach(tiny_llama("linear")), attach(tiny_llama())
    inputs = {"input_ids": tokens(2, LENGTH), "span_ids": some_span_ids(2)}
    logits = scaled(**inputs, block_positions=4 * BLOCKS).logits
    assert relative(logits, plain(**inputs, block_positions=BLOCKS).logits) < 1e-6


@pytest.mark.parametrize("family", ["glm", "glm4", "cohere", "llama"])
def test_a_wrong_guess_of_the_pairing_is_refused(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = probe_pairing(type(tiny_family(family).model.layers[0].self_attn))
    for guess in (Pairing(a, b) for a in (False, True) for b in (False, True)):
        if guess == own:
            continue
        monkeypatch.setattr("bico_ext.models.attach.probe_pairing", lambda _, guess=guess: guess)
        with pytest.raises(TypeError, match=r"Attention: it does not just rotate q's elements \("):
            attach(tiny_family(family))


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"mirror": False}, "mirror has an effect only together with span_ids"),
        ({"block_positions": BLOCKS, "position_ids": ORDINARY}, "position_ids cannot be given together with block_"),
        ({"block_positions": BLOCKS.int()}, r"must be int64 \[B, 2, S\], got int32 \[2, 2, 19\]$"),
        ({"block_positions": ORDINARY}, r"must be int64 \[B, 2, S\], got int64 \[2, 19\]$"),
    ],
    ids=["mirror", "both", "int32", "1d"],
)
def test_call_errors(inputs: dict, sentence: str) -> None:
    model = attach(tiny_llama())
    with pytest.raises(ValueError, match=sentence):
        model(input_ids=tokens(2, LENGTH), **inputs)


def test_an_odd_number_of_pairs_has_no_halves() -> None:
    model = attach(tiny_llama(head_dim=6))
    with pytest.raises(ValueError, match="even number of rotary pairs per head, but the model rotates 6 elements"):
        model(input_ids=tokens(2, LENGTH), block_positions=BLOCKS)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_are_the_same(reentrant: bool) -> None:
    model = attach(tiny("glm")).train()
    inputs = {"input_ids": tokens(2, LENGTH), "span_ids": some_span_ids(2), "block_positions": BLOCKS, "mirror": False}

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again = gradients()
    assert len(again) == len(plain) > 0
    assert all(torch.equal(a, b) for a, b in zip(again, plain, strict=True))


def test_compiles_as_one_graph() -> None:
    model = attach(tiny("glm"))
    check_attached(model)
    inputs = {"input_ids": tokens(2, LENGTH), "span_ids": some_span_ids(2), "block_positions": BLOCKS, "mirror": False}
    expected = model(**inputs).logits
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative(compiled(**inputs).logits, expected) < 1e-6
