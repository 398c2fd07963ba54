"""The details of a probe as tables and plots: what single heads do, and where the flip helps or harms."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bico_ext.probing.style import COLOURS, estimate_text, figure
from bico_ext.reports import plots

# Heads by the share of the attention that they give to the token before in a causal pass.
LOOKING_BACK = {"at least 0.3": (0.3, 1.01), "0.1 to 0.3": (0.1, 0.3), "below 0.1": (0.0, 0.1)}
FRAMES = {"flip": COLOURS["bico"], "naive": COLOURS["naive"]}


def detail_tables(results: Mapping[str, Any]) -> str:
    """Return the tables in Markdown: attention to nearby tokens, and the loss with the flip in a part of the model.

    Args:
        results: the content of `probe.json`, with "heads" and "partial_flips".
    """
    lines = [*_head_table(results["heads"]), *_flip_tables(results["partial_flips"])]
    return "\n".join(lines) + "\n"


def _head_table(heads: Mapping[str, Any]) -> list[str]:
    mass, logit = (tensors(heads[name]) for name in ("mass", "logit"))
    lines = [
        "",
        f"**Nearby tokens**: share of the attention by distance, on causal states; {heads['queries']} queries; heads "
        "by the share that they give to the token before in a causal pass",
        "",
        f"| heads | number | distance | {' | '.join(mass)} | logit, later minus past: flip | naive |",
        "|---" * (5 + len(mass)) + "|",
    ]
    for name, chosen in looking_back(mass["causal: past"]).items():
        for index in range(mass["causal: past"].shape[-1]) if chosen.any() else ():
            shares = [f"{x[chosen][:, index].mean():.3f}" for x in mass.values()]
            gains = [
                f"{(logit[f'{frame}: later'] - logit['causal: past'])[chosen][:, index].mean():+.2f}"
                for frame in FRAMES
            ]
            lines.append(f"| {name} | {int(chosen.sum())} | {index + 1} | {' | '.join(shares + gains)} |")
    return lines


def _flip_tables(flips: Mapping[str, Any]) -> list[str]:
    lines = [
        "",
        f"**The flip in a part of the model**: loss in nats per hidden token; {flips['texts']} sequences of up to "
        f"{flips['length']} tokens, mask rate {flips['mask']}; flip everywhere minus flip nowhere: "
        f"{estimate_text(flips['bico - naive'])}",
        "",
        "| layer | only this one, minus nowhere | everywhere, minus all but this one | all below it, minus nowhere |",
        "|---|---|---|---|",
    ]
    tables = {record["where"]: record for record in flips["tables"]}
    for layer in range(sum(where.startswith("layers: only") for where in tables)):
        lines.append(f"| {layer} | {' | '.join(estimate_text(x) for x in _of_layer(flips, layer))} |")
    lines += ["", "| flip where | minus nowhere | minus everywhere |", "|---|---|---|"]
    lines += [
        f"| {where} | {estimate_text(record['partial - naive'])} | {estimate_text(record['partial - bico'])} |"
        for where, record in tables.items()
        if not where.startswith("layers") or "chosen" in where
    ]
    return lines


def tensors(by_side: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
    """Return nested lists [layers][heads][distances] as float64 tensors."""
    return {side: torch.tensor(values, dtype=torch.float64) for side, values in by_side.items()}


def looking_back(causal_past: Tensor) -> dict[str, Tensor]:
    """Return which heads belong to each group of `LOOKING_BACK`, bool [layers, heads].

    Args:
        causal_past: [layers, heads, distances], the shares of the attention in a causal pass.
    """
    before = causal_past[..., 0]
    return {name: (before >= low) & (before < high) for name, (low, high) in LOOKING_BACK.items()}


def _of_layer(flips: Mapping[str, Any], layer: int) -> list[Mapping[str, float | None]]:
    """Return the three differences of one layer; the flip below layer 0 is the flip nowhere."""
    tables = {record["where"]: record for record in flips["tables"]}
    all_but = tables[f"layers: all but {layer}"]["partial - bico"]
    below = tables[f"layers: below {layer}"]["partial - naive"] if layer else {"mean": 0.0, "se": None}
    return [tables[f"layers: only {layer}"]["partial - naive"], all_but | {"mean": -all_but["mean"]}, below]


def draw_heads(heads: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw the attention to nearby tokens by group of heads, and each head's share for the tokens beside the query."""
    mass, logit = (tensors(heads[name]) for name in ("mass", "logit"))
    groups = {name: chosen for name, chosen in looking_back(mass["causal: past"]).items() if chosen.any()}
    canvas, (panels,) = figure(3.4 * (len(groups) + 2), 3.4, 1, len(groups) + 2)
    reach = mass["causal: past"].shape[-1]
    distances = list(range(1, reach + 1))
    for axes, (name, chosen) in zip(panels, groups.items(), strict=False):
        axes.plot([-d for d in distances], mass["causal: past"][chosen].mean(0), ".-", color=COLOURS["causal"])
        for frame, colour in FRAMES.items():
            for side, sign in (("past", -1), ("later", 1)):
                label = frame if sign > 0 else None
                shares = mass[f"{frame}: {side}"][chosen].mean(0)
                axes.plot([sign * d for d in distances], shares, ".-", color=colour, label=label)
        axes.set_title(f"{int(chosen.sum())} heads with {name}\non the token before", fontsize=9)
        axes.set_xlabel("key n - query m (tokens)")
        axes.set_ylim(bottom=0)
    panels[0].plot([], [], ".-", color=COLOURS["causal"], label="causal")
    panels[0].set_ylabel("share of the attention")
    panels[0].legend(frameon=False, fontsize=8)
    shares, gains = panels[-2:]
    for frame, colour in FRAMES.items():
        later = mass[f"{frame}: later"][..., 0].flatten()
        shares.scatter(mass["causal: past"][..., 0].flatten(), later, s=6, color=colour)
        gain = (logit[f"{frame}: later"] - logit["causal: past"]).flatten(0, 1)
        middle, low, high = gain.median(0).values, gain.quantile(0.25, 0), gain.quantile(0.75, 0)
        gains.plot(distances, middle, ".-", color=colour)
        gains.fill_between(distances, low, high, color=colour, alpha=0.2, linewidth=0)
    shares.set_title("each head's share", fontsize=9)
    shares.set_xlabel("for the token before, causal")
    shares.set_ylabel("for the token after")
    gains.axhline(0, color="grey", linewidth=0.5)
    gains.set_title("logit of the later key minus\nthat of the past one (quartiles)", fontsize=9)
    gains.set_xlabel("distance (tokens)")
    plots.save(canvas, Path(path))


def draw_partial_flips(flips: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw the loss with the flip in a part of the model, minus the loss without it; bars are one standard error."""
    tables = {record["where"]: record["partial - naive"] for record in flips["tables"]}
    layers = sum(where.startswith("layers: only") for where in tables)
    by_layer = list(zip(*(_of_layer(flips, layer) for layer in range(layers)), strict=True))
    canvas, ((single, below, distances, heads),) = figure(15, 3.4, 1, 4)
    for estimates, label, axes in zip(
        by_layer, ("only this layer", "this layer last", None), (single, single, below), strict=True
    ):
        _draw(axes, range(layers), estimates, label)
    ends = {where: int(where.rpartition(" ")[2]) for where in tables if where.startswith("distances")}
    for kind in ("up to", "beyond"):
        chosen = {end: tables[where] for where, end in ends.items() if kind in where}
        _draw(distances, list(chosen), list(chosen.values()), f"{kind} this distance")
    distances.set_xscale("log", base=2)
    names = [where for where in tables if where.startswith("heads") or "chosen" in where]
    for row, where in enumerate(names):
        heads.errorbar(tables[where]["mean"], row, xerr=tables[where]["se"] or 0, fmt=".", color="black", capsize=2)
    heads.set_yticks(range(len(names)), [where.partition(": ")[2] for where in names], fontsize=7)
    everywhere = flips["bico - naive"]["mean"]
    for axes, title in (
        (single, "one layer"),
        (below, "all layers below"),
        (distances, "some distances"),
        (heads, "some heads, or layers chosen\non the other half of the texts"),
    ):
        axes.set_title(title, fontsize=9)
        line = axes.axvline if axes is heads else axes.axhline
        line(0, color="grey", linewidth=0.5)
        if axes is not single:
            line(everywhere, color=COLOURS["bico"], linewidth=0.8, linestyle="--")
    single.set_ylabel("loss minus that without the flip\n(nats per hidden token)")
    for axes, label in ((single, "layer"), (below, "layer"), (distances, "distance (tokens)")):
        axes.set_xlabel(label)
    for axes in (single, distances):
        axes.legend(frameon=False, fontsize=7)
    plots.save(canvas, Path(path))


def _draw(axes: Any, positions: Sequence[int], estimates: Sequence[Mapping[str, Any]], label: str | None) -> None:
    means, errors = zip(*((estimate["mean"], estimate["se"] or 0) for estimate in estimates), strict=True)
    axes.errorbar(positions, means, yerr=errors, marker=".", capsize=2, linewidth=1, label=label)
