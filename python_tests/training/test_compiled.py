"""`torch.compile` of a training step: one graph for all lengths, and for all objectives with the same arguments."""

from itertools import cycle

import pytest
import torch
from objective_cases import apply
from tiny_training import logged, tiny_llama, train
from torch import Generator
from torch._dynamo import OptimizedModule
from torch._dynamo.utils import counters

from bico_ext.models.attach import attach
from bico_ext.objectives.training_sequence import labelled_only, pad

LENGTHS = ([5, 9, 13], [7, 7, 21], [30, 4, 4], [6, 5])


@pytest.mark.parametrize(
    "objectives", [["ntp", "bico", "infill", "permute"], ["abi"]], ids=["plain", "blocks-without-mirror"]
)
def test_lengths_do_not_compile_again(objectives: list[str]) -> None:
    """Loss and gradients are those of the model that is not compiled."""
    model = attach(tiny_llama())
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    generator = Generator().manual_seed(0)
    for seed, (lengths, objective) in enumerate(zip(LENGTHS, cycle(objectives))):
        rows = [torch.randint(4, 16, (length,), generator=generator) for length in lengths]
        batch = labelled_only(pad([apply(objective, row, seed) for row in rows], pad_id=0))
        losses, gradients = [], []
        for network in (model, compiled):
            model.zero_grad()
            loss = network(**batch).loss
            loss.backward()
            losses.append(loss.item())
            gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        assert losses[1] == pytest.approx(losses[0], rel=1e-6)
        torch.testing.assert_close(gradients[1], gradients[0])
    assert counters["stats"]["unique_graphs"] == 1


def test_the_trainer_compiles_on_request(tmp_path) -> None:
    torch._dynamo.reset()
    compiled = train(tmp_path / "compiled", torch_compile=True, torch_compile_backend="aot_eager")
    assert isinstance(compiled.model_wrapped, OptimizedModule)
    assert logged(compiled) == pytest.approx(logged(train(tmp_path / "plain")), rel=1e-5)
