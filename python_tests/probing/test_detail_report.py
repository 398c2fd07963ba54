"""The details of a probe as tables and plots, for small results written by hand."""

import matplotlib.image
import pytest

from bico_ext.probing.detail_report import detail_tables, draw_heads, draw_partial_flips
from bico_ext.probing.heads import SIDES


def estimate(mean: float, se: float | None = 0.125) -> dict:
    return {"mean": mean, "se": se}


@pytest.fixture
def results() -> dict:
    """Two layers of two heads; three heads give the token before at least 0.3 of their attention, one gives it 0.2."""
    past, later = [[[0.5, 0.1], [0.4, 0.1]], [[0.3, 0.1], [0.2, 0.1]]], [[[0.25, 0.0]] * 2, [[0.25, 0.0]] * 2]
    mass = {side: past if side.endswith("past") else later for side in SIDES}
    logit = {side: [[[{"flip: later": 4.0, "naive: later": 1.0}.get(side, 3.0)] * 2] * 2] * 2 for side in SIDES}
    flips = {f"layers: {kind} {layer}": 0.25 + layer for kind in ("only", "all but", "below") for layer in (0, 1)}
    del flips["layers: below 0"]
    flips |= {"layers: chosen on the other half": -0.5, "heads: any, 10 %": 0.75}
    flips |= {f"distances: {kind} {end}": end / 4 for kind in ("up to", "beyond") for end in (1, 2)}
    tables = [
        {"where": where, "partial - naive": estimate(mean), "partial - bico": estimate(mean - 1)}
        for where, mean in flips.items()
    ]
    return {
        "heads": {"queries": 7, "mass": mass, "logit": logit},
        "partial_flips": {
            "texts": 3,
            "length": 16,
            "mask": "0.15",
            "bico - naive": estimate(1.0, 0.5),
            "tables": tables,
        },
    }


def test_heads_are_grouped_by_what_they_give_to_the_token_before(results):
    lines = detail_tables(results).splitlines()
    assert "| at least 0.3 | 3 | 1 | 0.400 | 0.400 | 0.250 | 0.400 | 0.250 | +1.00 | -2.00 |" in lines
    assert "| 0.1 to 0.3 | 1 | 1 | 0.200 | 0.200 | 0.250 | 0.200 | 0.250 | +1.00 | -2.00 |" in lines
    assert not any(line.startswith("| below 0.1") for line in lines)
    assert "on causal states; 7 queries" in lines[1]


def test_partial_flips_stand_beside_the_flip_everywhere_and_nowhere(results):
    text = detail_tables(results)
    assert "3 sequences of up to 16 tokens, mask rate 0.15; flip everywhere minus flip nowhere: 1.000 ± 0.500" in text
    lines = text.splitlines()
    assert "| 0 | 0.250 ± 0.125 | 0.750 ± 0.125 | 0.000 |" in lines
    assert "| 1 | 1.250 ± 0.125 | -0.250 ± 0.125 | 1.250 ± 0.125 |" in lines
    assert "| distances: beyond 2 | 0.500 ± 0.125 | -0.500 ± 0.125 |" in lines
    assert "| layers: chosen on the other half | -0.500 ± 0.125 | -1.500 ± 0.125 |" in lines
    assert not any(line.startswith("| layers: only") for line in lines)


def test_the_plots_are_not_empty(results, tmp_path):
    draw_heads(results["heads"], tmp_path / "heads.png")
    draw_partial_flips(results["partial_flips"], tmp_path / "flip.png")
    for name in ("heads", "flip"):
        image = matplotlib.image.imread(tmp_path / f"{name}.png")
        assert image.shape[1] > 1000
        assert image.std() > 0.01
