"""Computes the tables of docs/scale.md: memory and time of fine-tuning Llama 2 with 7 and 70 billion parameters.

python docs/scale_tables.py prints them. Nothing here is measured.
"""

from dataclasses import dataclass

H100_FLOPS = 989e12  # dense bfloat16, NVIDIA's data sheet
UTILISATION = 0.4  # of that; what training of models of this size usually reaches
GB = 1e9


@dataclass(frozen=True)
class Llama:
    """The sizes of a Llama."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int = 32000

    @property
    def linear(self) -> int:
        """Parameters of the linear layers other than lm_head."""
        kv = self.hidden * self.kv_heads // self.heads
        return self.layers * (2 * self.hidden**2 + 2 * self.hidden * kv + 3 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        return self.linear + 2 * self.vocabulary * self.hidden + (2 * self.layers + 1) * self.hidden

    def adapters(self, rank: int = 32) -> int:
        """Parameters of LoRA on all linear layers but lm_head."""
        kv = self.hidden * self.kv_heads // self.heads
        widths = 2 * (self.hidden + self.hidden) + 2 * (self.hidden + kv) + 3 * (self.hidden + self.intermediate)
        return self.layers * rank * widths

    def activations(self, tokens: int) -> float:
        """Bytes with gradient checkpointing: each layer's input, and one layer's intermediates, in bfloat16."""
        kv = self.hidden * self.kv_heads // self.heads
        one_layer = 8 * self.hidden + 4 * kv + 4 * self.intermediate  # with q, k, v in two frames
        return 2 * tokens * (self.layers * self.hidden + one_layer)

    def flops(self, length: int, full: bool) -> float:
        """Of one text: forward and backward, without those that checkpointing repeats; attention sees all tokens."""
        weights = (6 if full else 4) * (self.linear + self.vocabulary * self.hidden) * length
        return weights + (4 + 10) * self.layers * self.hidden * length**2


MODELS = (Llama("Llama 2 7B", 32, 4096, 11008, 32, 32), Llama("Llama 2 70B", 80, 8192, 28672, 64, 8))


def weights_table() -> str:
    """Memory that does not depend on the texts, in GB."""
    rows = ["| model | parameters | of LoRA (r 32) | LoRA | LoRA on 4 bits | all weights |"]
    rows.append("|---|---|---|---|---|---|")
    for model in MODELS:
        adapters = 16 * model.adapters()  # float32 weight, gradient and two moments
        rest = 4 * (model.parameters - model.linear)  # embeddings and head keep float32
        lora, qlora = 4 * model.parameters + adapters, model.linear / 2 + rest + adapters
        sizes = [f"{size / GB:,.0f} GB" for size in (lora, qlora, 16 * model.parameters)]
        rows.append(
            f"| {model.name} | {model.parameters / 1e9:.1f} B | {model.adapters() / 1e6:.0f} M | {' | '.join(sizes)} |"
        )
    return "\n".join(rows)


def texts_table() -> str:
    """Memory and time of one text, by its length."""
    rows = ["| model | tokens | activations | FLOPs, LoRA | FLOPs, all weights | H100 seconds, LoRA | all weights |"]
    rows.append("|---|---|---|---|---|---|---|")
    for model in MODELS:
        for length in (2048, 32768):
            flops = [model.flops(length, full) for full in (False, True)]
            seconds = [f"{f / H100_FLOPS / UTILISATION:.1f}" for f in flops]
            rows.append(
                f"| {model.name} | {length:,} | {model.activations(length) / GB:.1f} GB | {flops[0]:.1e} | "
                f"{flops[1]:.1e} | {' | '.join(seconds)} |"
            )
    return "\n".join(rows)


if __name__ == "__main__":
    print(weights_table(), texts_table(), sep="\n\n")
