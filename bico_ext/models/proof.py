"""Proof that every attention layer of an attached model follows `span_ids`, and that nothing else mixes tokens.

Two forwards of 32 random embeddings prove the first. One is the stock causal model; the other computes the same causal
attention through span ids of 1. Each layer must rotate q and k as assumed, or not at all, and must give the same output
in both. A third forward, in which every token sees itself only, proves the second: a token that is changed may change
no other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bico_ext.models.rotary import Rotation
from bico_ext.ops.reference import rotate

LENGTH = 32  # tokens: enough to rotate the faster pairs of a head by more than a radian, so that a wrong pairing shows


@dataclass(eq=False)
class Proof:
    """Collects what each layer computes in the two forwards, which get it as the keyword argument `attach_proof`.

    Attributes:
        stock: for each layer the rotated q [B, Hq, S, D] and k [B, Hkv, S, D] and the output [B, S, Hq, D] of the stock
            forward.
        agreed: the layers whose second forward agrees with the stock one.
        faults: what is wrong with each of the other layers.
        unrotated: the layers that do not rotate q and k.
    """

    stock: dict[nn.Module, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    agreed: set[nn.Module] = field(default_factory=set)
    faults: dict[nn.Module, str] = field(default_factory=dict)
    unrotated: set[nn.Module] = field(default_factory=set)

    def undo_factor(
        self, layer: nn.Module, q: Tensor, k: Tensor, rotation: Rotation
    ) -> tuple[Tensor, Tensor, Rotation]:
        """Divide q and k by the 2 that stands in for the rotation; q and k of a layer that does not rotate lack it.

        Returns:
            q and k without the factor, and the rotation that the layer applies.
        """
        stock_q, stock_k, _ = self.stock[layer]
        if torch.equal(q, stock_q) and torch.equal(k, stock_k):
            self.unrotated.add(layer)
            return q, k, rotation.without_elements()
        doubled = torch.arange(q.shape[-1], device=q.device) < rotation.cos.shape[-1]  # [D]
        q, k = (torch.where(doubled, x / 2, x) for x in (q, k))
        return q, k, rotation

    def judge(self, layer: nn.Module, q: Tensor, k: Tensor, out: Tensor, rotation: Rotation) -> Tensor:
        """Compare a layer's causal split-triangle attention with its stock attention, and return the stock output.

        The next layer then gets its stock input, so that a wrong layer does not make the layers after it look wrong.

        Args:
            layer: the attention module.
            q, k: not rotated, [B, Hq, S, D] and [B, Hkv, S, D].
            out: the output of split-triangle attention, [B, S, Hq, D].
            rotation: the rotation that was applied to q and k.
        """
        stock_q, stock_k, stock_out = self.stock[layer]
        # A wrong rotation gives an error of about 1. In half precision the two rotations are rounded differently
        # (measured: 3e-3), and fp32 may run in TF32.
        tolerance = 5e-2 if out.element_size() == 2 else 5e-3
        q, k = (
            rotate(x.float(), rotation.cos.float(), rotation.sin.float(), rotation.pairing.interleaved) for x in (q, k)
        )
        for fault, ours, theirs in (
            (f"it does not just rotate q's elements {rotation.pairing.elements}", q, stock_q.float()),
            (f"it does not just rotate k's elements {rotation.pairing.elements}", k, stock_k.float()),
            ("its output is not that of plain softmax attention", out.float(), stock_out.float()),
        ):
            if not (ours - theirs).norm() <= tolerance * theirs.norm():  # written this way round, NaN is a fault, too
                self.faults.setdefault(layer, fault)
                break
        else:
            self.agreed.add(layer)
        return stock_out


def prove_attention(model: nn.Module, inner: PreTrainedModel, layers: dict[str, nn.Module]) -> set[nn.Module]:
    """Prove that every attention layer of an attached model follows `span_ids`, by two forwards.

    The proof does not change the random state, the training mode or the gradients.

    Args:
        model: the attached model, or the PEFT model around it.
        inner: the attached model itself.
        layers: its attention modules by name.

    Returns:
        The layers that do not rotate q and k.

    Raises:
        TypeError: a layer does not compute split-triangle attention, or the weights are on the meta device. The message
            names the layers and what is wrong with them.
    """
    noise, proof = _noise(inner), Proof()
    inputs: Any = {"inputs_embeds": noise[:1], "use_cache": False, "attach_proof": proof}
    with _evaluation(model):
        model(**inputs)
        model(**inputs, span_ids=torch.ones(1, LENGTH, dtype=torch.int32, device=noise.device))
    _check_faults(inner, layers, proof)
    return proof.unrotated


def prove_separation(model: nn.Module, inner: PreTrainedModel, allow_causal_layers: bool) -> bool:
    """Prove by one forward that nothing but attention carries anything from token to token.

    Like `prove_attention`, which comes first, it changes nothing.

    Args:
        model: the attached model, or the PEFT model around it.
        inner: the attached model itself.
        allow_causal_layers: accept that something else mixes tokens, too.

    Returns:
        Whether something else does.

    Raises:
        TypeError: something else does, and is not accepted.
    """
    with _evaluation(model):
        mixing = _mixing_layer(model, inner, _noise(inner))
    if mixing is not None and not allow_causal_layers:
        raise TypeError(
            f"{type(inner).__name__} mixes tokens in layer {mixing} by something other than attention (a convolution "
            "or a recurrence, say), which span_ids do not reach and which would stay causal; to accept that, use "
            "attach(model, allow_causal_layers=True)"
        )
    return mixing is not None


def _noise(inner: PreTrainedModel) -> Tensor:
    """Return two rows of random embeddings [2, S, E]."""
    weight: Any = inner.get_input_embeddings().weight
    if weight.is_meta:
        raise TypeError(
            f"{type(inner).__name__} is on the meta device, where the proof cannot run; load its weights first"
        )
    noise = torch.randn(2, LENGTH, weight.shape[-1], generator=torch.Generator().manual_seed(0))
    return noise.to(weight.device, weight.dtype)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _check_faults(inner: PreTrainedModel, layers: dict[str, nn.Module], proof: Proof) -> None:
    wrong: dict[str, list[str]] = {}
    for name, layer in layers.items():
        if layer not in proof.agreed or layer in proof.faults:
            fault = proof.faults.get(layer, "it never received span_ids and would stay causal")
            wrong.setdefault(f"{type(layer).__name__}: {fault}", []).append(name)
    if wrong:
        reasons = "; ".join(f"{fault} ({', '.join(names)})" for fault, names in wrong.items())
        raise TypeError(f"{type(inner).__name__} cannot have split-triangle attention. {reasons}")


def _mixing_layer(model: nn.Module, inner: PreTrainedModel, noise: Tensor) -> int | None:
    """Return the first layer in which a changed token changes others although every token sees itself only.

    Args:
        model: the attached model, or the PEFT model around it.
        inner: the attached model itself.
        noise: two rows of embeddings [2, S, E].
    """
    changed = LENGTH // 2
    others = torch.arange(LENGTH, device=noise.device) != changed
    embeddings = noise[:1].repeat(2, 1, 1)
    embeddings[1, changed] = noise[1, changed]
    alone = torch.arange(1, LENGTH + 1, dtype=torch.int32, device=noise.device).repeat(2, 1)
    with _layer_states(inner) as states:
        model(inputs_embeds=embeddings, span_ids=alone, mirror=False, use_cache=False)
    tolerance = 5e-2 if noise.element_size() == 2 else 5e-3  # as in `judge`; a convolution of 3 tokens gives 0.3
    for layer, (before, after) in enumerate(states):
        # Relative to what the layer adds: with small weights that is little beside the hidden states themselves.
        added = (after.float() - before.float())[:, others]  # [2, S - 1, E]
        difference = (added[1] - added[0]).norm(dim=-1) / added[0].norm(dim=-1).clamp_min(1e-12)
        if not difference.max() <= tolerance:
            return layer
    return None


@contextmanager
def _layer_states(inner: PreTrainedModel) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect what goes into each decoder layer and what comes out, [B, S, E], in the order of the layers.

    `output_hidden_states` would not do: it leaves hooks behind, with which no model can be pickled, and gives nothing
    for a model that was read from a pickle.
    """
    count = inner.config.get_text_config().num_hidden_layers
    layers = next(part for part in inner.modules() if isinstance(part, nn.ModuleList) and len(part) == count)
    states: list[tuple[Tensor, Tensor]] = []

    def collect(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        states.append((before, output[0] if isinstance(output, tuple) else output))

    handles = [layer.register_forward_hook(collect, with_kwargs=True) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
