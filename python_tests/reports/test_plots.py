"""The plots: each is drawn if there is anything to draw, and a system keeps its colour."""

import made_up
import pytest
from matplotlib.image import imread

from bico_ext.reports.plots import COLOURS, draw_accuracy, draw_curves, draw_gaps, draw_losses, styles
from bico_ext.reports.records import Run

PLOTS = [draw_accuracy, draw_gaps, draw_curves, draw_losses]
TWELVE = [*COLOURS, "w", "x", "y", "z"]


@pytest.mark.parametrize("count", [1, 3, 12])
@pytest.mark.parametrize("draw", PLOTS)
def test_draws(draw, count, tmp_path):
    made = made_up.results({name: made_up.SCORES["bico"] for name in TWELVE[:count]})
    assert draw(made_up.typed(made), tmp_path / "p.png")
    image = imread(tmp_path / "p.png")
    assert image.shape[0] > 150
    assert image[..., :3].std() > 0.05, "the plot is empty"
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


def test_old_results_have_no_curves(tmp_path):
    made = made_up.old_results()
    assert not draw_curves(made_up.typed(made), tmp_path / "p.png")
    for run in made["runs"]:
        run["curve"] = []
    assert not draw_curves(made_up.typed(made), tmp_path / "p.png")
    for run in made["runs"]:
        del run["losses"]
        run["tasks"] = {"D2N": run["tasks"]["D2N"]}
    assert not draw_losses(made_up.typed(made), tmp_path / "p.png")
    assert not draw_gaps(made_up.typed(made), tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("draw", PLOTS)
def test_what_is_there_is_drawn_if_parts_are_missing(draw, tmp_path):
    """One run has diverged, one has no curve, and one system has no scores in a task."""
    made = made_up.results()
    made["runs"][0]["losses"] = [{"step": 5, "loss_ntp": None}]
    made["runs"][1]["curve"] = []
    del made["runs"][2]["tasks"]["D2N"], made["runs"][3]["tasks"]["D2N"]
    assert draw(made_up.typed(made), tmp_path / "p.png")


def test_the_length_of_a_bar_is_its_score(tmp_path):
    areas = []
    for score in (0.4, 0.8):
        draw_accuracy(made_up.typed(made_up.old_results({"bico": {"D2N": (score, score)}})), tmp_path / "p.png")
        red, _, blue = imread(tmp_path / "p.png")[..., :3].transpose(2, 0, 1)
        areas.append((blue - red > 0.3).sum())
    assert areas[1] / areas[0] == pytest.approx(2, rel=0.05)


def test_perplexities_stand_in_a_panel_of_their_own_if_they_were_measured(tmp_path):
    made = made_up.results({"bico": made_up.SCORES["bico"]})

    def image(results):
        draw_accuracy(made_up.typed(results), tmp_path / "p.png")
        return imread(tmp_path / "p.png")[..., :3]

    plain = image(made)
    with_perplexity = made_up.with_fluency(made)
    before, *trained = with_perplexity["runs"]
    before["fluency"]["perplexity"] = 20.0
    middles = []
    for perplexity in (2.0, 200.0, None):
        for run in trained:
            run["fluency"]["perplexity"] = perplexity
        drawn = image(with_perplexity)
        assert drawn.shape[1] > plain.shape[1] + 200
        last = drawn[:, -280:]
        middles.append((last[..., 2] - last[..., 0] > 0.3).nonzero()[1])  # columns of the blue of bico
    assert middles[0].max() < middles[1].min()
    assert not middles[2].size, "a diverged model has no perplexity"
    before["fluency"]["perplexity"] = None
    assert image(with_perplexity).shape[1] == plain.shape[1]


def test_a_system_keeps_its_colour_and_variants_differ():
    runs = [
        Run("x", {}),
        Run("bico", {}, label="bico (steps 10)"),
        Run("bico", {}, label="bico (steps 20)"),
    ]
    look = styles(runs)
    assert look["bico (steps 10)"].colour == look["bico (steps 20)"].colour == COLOURS["bico"]
    assert look["bico (steps 10)"].line != look["bico (steps 20)"].line
    assert look["x"].colour not in (COLOURS["bico"], COLOURS["ntp"])
    everyone = styles([Run(name, {}) for name in TWELVE])
    assert {name: everyone[name].colour for name in COLOURS} == COLOURS
    assert len(set(everyone.values())) == 12, "two systems look alike"
