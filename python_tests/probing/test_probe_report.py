"""The tables and plots of a probe, for small results written by hand."""

import matplotlib.image
import pytest

from bico_ext.probing.report import tables, write_probe_report


def attention(logits: list, mass: float, rotary: list) -> dict:
    return {
        "distances": [-1, 0, 1],
        "pairs": [2, 3, 0 if logits[0][2] is None else 2],
        "rotary_distances": rotary,
        "mass_on_later_keys": mass,
        "mass": [[0.25, 0.75 - mass, mass]] * len(logits),
        "logits": logits,
    }


def record(length: int | None, mask: str, bico: float) -> dict:
    def losses(texts: int, se: float | None) -> dict:
        loss = {"causal": {"mean": 3.0, "se": se}, "bico": {"mean": bico, "se": se}, "naive": {"mean": 2.0, "se": se}}
        difference = {f"bico - {c}": {"mean": bico - loss[c]["mean"], "se": se} for c in ("naive", "causal")}
        return {"texts": texts, "tokens": 5, "loss": loss, "difference": difference}

    groups = [{"from": 1, "to": 1} | losses(1, None), {"from": 2, "to": 3} | losses(4, 0.125)]
    nearest = [{"from": 4, "to": 7} | losses(3, 0.25)]
    return {"length": length, "mask": mask} | losses(4, 0.5) | {"by_right_context": groups, "by_nearest_later": nearest}


@pytest.fixture
def results() -> dict:
    return {
        "settings": {"model": "m", "seed": 7},
        "data": {"name": "facts", "texts": "training", "n": 9},
        "attention": {
            "causal": attention([[1.0, 0.0, None], [3.0, 0.0, None]], 0.0, [-1, 0, None]),
            "bico": attention([[1.0, 0.0, 5.0], [3.0, 0.0, 6.0]], 0.5, [-1, 0, -1]),
            "naive": attention([[1.0, 0.0, -5.0], [3.0, 0.0, -6.0]], 0.125, [-1, 0, 1]),
        },
        "denoising": [record(length, mask, 1.5) for length in (None, 32, 64) for mask in ("0.15", "single")],
    }


def test_the_tables_hold_the_measurements(results):
    lines = tables(results).splitlines()
    assert lines[0] == "Model m; training texts of facts; seed 7."
    assert "| causal | -1 to 0 | 0.000 | 2.000 | none |" in lines
    assert "| bico | -1 to 0 | 0.500 | 2.000 | 5.500 |" in lines
    assert "| naive | -1 to 1 | 0.125 | 2.000 | -5.500 |" in lines
    expected = "4 | 5 | 3.000 ± 0.500 | 1.500 ± 0.500 | 2.000 ± 0.500 | -0.500 ± 0.500 | -1.500 ± 0.500 |"
    for name in ("texts as they are", "packed to 32", "packed to 64"):
        for mask in ("0.15", "single"):
            assert f"| {name} | {mask} | {expected}" in lines
    assert lines.count("| 1 | single | 1 | 5 | 3.000 | 1.500 | 2.000 | -0.500 | -1.500 |") == 2
    assert sum(line.startswith("| 2-3 | 0.15 | 4 | 5 | 3.000 ± 0.125") for line in lines) == 2
    assert sum(line.startswith("| 4-7 | 0.15 | 3 | 5 | 3.000 ± 0.250") for line in lines) == 2
    assert [line for line in lines if line.startswith("By ")] == [
        f"By {measure}, {length}:"
        for length in ("texts as they are", "packed to 64")
        for measure in (
            "tokens on the right of the hidden one",
            "distance to the nearest visible token on the right (0: none)",
        )
    ]


def test_the_mean_logit_is_weighted_by_pairs(results):
    """There are 3 pairs with logit 2 and one with logit 6: (3 * 2 + 1 * 6) / 4 = 3."""
    profile = {
        "distances": [-2, -1, 0],
        "pairs": [1, 3, 4],
        "rotary_distances": [-2, -1, 0],
        "mass_on_later_keys": 0.0,
        "logits": [[6.0, 2.0, 9.0]],
    }
    assert "| causal | -2 to 0 | 0.000 | 3.000 | none |" in tables(results | {"attention": {"causal": profile}})


def test_the_report_is_one_file_of_tables_and_two_plots(results, tmp_path):
    text = write_probe_report(results, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"table.md", "attention.png", "denoising.png"}
    assert (tmp_path / "out" / "table.md").read_text() == text
    for name in ("attention", "denoising"):
        image = matplotlib.image.imread(tmp_path / "out" / f"{name}.png")
        assert image.shape[1] > 1000
        assert image.std() > 0.01, "the plot is empty"


def test_a_single_length_and_mask_is_enough(results, tmp_path):
    results["denoising"] = [record(None, "0.15", 1.5)]
    assert "packed" not in write_probe_report(results, tmp_path)
    assert (tmp_path / "denoising.png").exists()
