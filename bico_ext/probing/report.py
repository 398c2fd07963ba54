"""The report of a probe: Markdown tables, a plot of the attention and a plot of the denoising losses."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bico_ext.files import expand_user, write_text
from bico_ext.probing.detail_report import detail_tables, draw_heads, draw_partial_flips
from bico_ext.probing.style import COLOURS, LINES, estimate_text, figure, number
from bico_ext.reports import plots

GROUPS = "by_right_context"
DIFFERENCES = ("bico - naive", "bico - causal")


def write_probe_report(results: Mapping[str, Any], folder: str | os.PathLike[str]) -> str:
    """Write `table.md`, `attention.png` and `denoising.png`, with details also `heads.png` and `flip.png`.

    Args:
        results: the content of `probe.json`.
        folder: the folder to write into; it is made if it does not exist.

    Returns:
        The content of `table.md`.
    """
    folder = Path(expand_user(folder))
    text = tables(results)
    if "heads" in results:
        text += detail_tables(results)
        draw_heads(results["heads"], folder / "heads.png")
        draw_partial_flips(results["partial_flips"], folder / "flip.png")
    write_text(folder / "table.md", text)
    draw_attention(results["attention"], folder / "attention.png")
    draw_denoising(results["denoising"], folder / "denoising.png")
    return text


def tables(results: Mapping[str, Any]) -> str:
    """Return the tables in Markdown: attention by condition, denoising losses by length and by context on the right.

    Args:
        results: the content of `probe.json`.
    """
    settings, data = results["settings"], results["data"]
    lines = [
        f"Model {settings['model']}; {data['texts']} texts of {data['name']}; seed {settings['seed']}.",
        "",
        "**Attention**: by side of the query, mean over layers, heads and texts",
        "",
        "| condition | rotary distances | share on later keys | mean logit of earlier keys | of later keys |",
        "|---|---|---|---|---|",
    ]
    for condition, profile in results["attention"].items():
        distances = [distance for distance in profile["rotary_distances"] if distance is not None]
        logits = [number(_mean_logit(profile, side)) for side in (-1, 1)]
        share = profile["mass_on_later_keys"]
        lines.append(f"| {condition} | {min(distances)} to {max(distances)} | {share:.3f} | {' | '.join(logits)} |")
    lines += [
        "",
        "**Denoising loss** of the frozen model: nats per hidden token, mean over texts ± standard error; "
        "differences are paired",
        "",
        *_losses("text", [(_length(record), record) for record in results["denoising"]]),
    ]
    for length in _extremes(results["denoising"]):
        records = [record for record in results["denoising"] if record["length"] == length]
        lines += ["", f"By tokens on the right of the hidden one, {_length(records[0])}:", ""]
        lines += _losses("on the right", _rows(records, GROUPS))
        lines += ["", f"By distance to the nearest visible token on the right (0: none), {_length(records[0])}:", ""]
        lines += _losses("distance", _rows(records, "by_nearest_later"))
    return "\n".join(lines) + "\n"


def draw_attention(attention: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw rotary distance, attention and mean logit by the distance of the key; thin lines are single layers."""
    canvas, ((rotation, mass, logits),) = figure(12, 3.8, 1, 3)
    for condition, profile in attention.items():
        look = {"color": COLOURS[condition], "linestyle": LINES[condition]}
        present = [index for index, pairs in enumerate(profile["pairs"]) if pairs]
        distances = [profile["distances"][index] for index in present]
        rotation.plot(distances, [profile["rotary_distances"][index] for index in present], label=condition, **look)
        for axes, name in ((mass, "mass"), (logits, "logits")):
            layers = [[layer[index] for index in present] for layer in profile[name]]
            for layer in layers:
                axes.plot(distances, layer, **look, linewidth=0.6, alpha=0.4)
            mean = [sum(values) / len(layers) for values in zip(*layers, strict=True)]
            axes.plot(distances, mean, **look, linewidth=1.8, label=condition)
    mass.set_yscale("log")
    for axes, title in (
        (rotation, "rotary distance that the model meets"),
        (mass, "share of the attention"),
        (logits, "mean attention logit"),
    ):
        axes.axvline(0, color="black", linewidth=0.5)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("key n - query m (tokens)")
    rotation.legend(frameon=False)
    plots.save(canvas, path)


def draw_denoising(records: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw losses and paired differences by length and by context on the right, with one row per mask.

    Error bars are one standard error.
    """
    masks = list(dict.fromkeys(record["mask"] for record in records))
    extremes = _extremes(records)
    canvas, grid = figure(14, 2.7 * len(masks), len(masks), 4)
    for mask, (losses, differences, right_losses, right_differences) in zip(masks, grid, strict=True):
        by_length = {record["length"]: record for record in records if record["mask"] == mask}
        members = list(by_length.values())
        names = ["texts" if length is None else str(length) for length in by_length]
        for condition, colour in COLOURS.items():
            look = {"color": colour, "linestyle": LINES[condition], "label": condition}
            _draw_estimates(losses, range(len(members)), [record["loss"][condition] for record in members], look)
            groups = by_length[extremes[0]][GROUPS]
            _draw_estimates(right_losses, _octaves(groups), [group["loss"][condition] for group in groups], look)
        pair = DIFFERENCES[0]
        _draw_estimates(
            differences, range(len(members)), [record["difference"][pair] for record in members], {"color": "black"}
        )
        for length, style in zip(extremes, ("-", "--"), strict=False):
            groups = by_length[length][GROUPS]
            look = {"color": "black", "linestyle": style, "label": _length(by_length[length])}
            _draw_estimates(right_differences, _octaves(groups), [group["difference"][pair] for group in groups], look)
        ranges = {_octave(group): _range(group) for record in members for group in record[GROUPS]}
        for axes, ticks in (
            (losses, dict(enumerate(names))),
            (differences, dict(enumerate(names))),
            (right_losses, {_octave(group): _range(group) for group in by_length[extremes[0]][GROUPS]}),
            (right_differences, ranges),
        ):
            axes.set_xticks(list(ticks), list(ticks.values()), fontsize=6)
        for axes in (differences, right_differences):
            axes.axhline(0, color="grey", linewidth=0.5)
        losses.set_ylabel(f"mask {mask} (nats)")
    difference = f"{DIFFERENCES[0]}, paired"
    for axes, title in zip(grid[0], ("loss", difference, f"loss, {_length(records[0])}", difference), strict=True):
        axes.set_title(title, fontsize=9)
    for axes, label in zip(grid[-1], ("tokens of a sequence",) * 2 + ("tokens on the right",) * 2, strict=True):
        axes.set_xlabel(label)
    for axes in (grid[0][0], grid[0][3]):
        axes.legend(frameon=False, fontsize=7)
    plots.save(canvas, path)


def _draw_estimates(
    axes: Any, positions: Sequence[int], estimates: Sequence[Mapping[str, Any]], look: Mapping[str, Any]
) -> None:
    means, errors = zip(*((estimate["mean"], estimate["se"] or 0) for estimate in estimates), strict=True)
    axes.errorbar(positions, means, yerr=errors, marker=".", capsize=2, **look)


def _octave(group: Mapping[str, Any]) -> int:
    """Return 0 for no token on the right, 1 for one, 2 for 2-3, 3 for 4-7, ..."""
    return int(group["to"]).bit_length()


def _octaves(groups: Sequence[Mapping[str, Any]]) -> list[int]:
    return [_octave(group) for group in groups]


def _losses(first: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return a table of losses as Markdown lines; `first` is the header of the column with the names of the rows."""
    columns = [first, "hidden", "texts", "hidden tokens", *COLOURS, *DIFFERENCES]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, record in rows:
        estimates = [record["loss"][condition] for condition in COLOURS]
        estimates += [record["difference"][pair] for pair in DIFFERENCES]
        cells = [name, record["mask"], str(record["texts"]), str(record["tokens"]), *map(estimate_text, estimates)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _rows(records: Sequence[Mapping[str, Any]], groups: str) -> list[tuple[str, Mapping[str, Any]]]:
    return [(_range(group), group | {"mask": record["mask"]}) for record in records for group in record[groups]]


def _extremes(records: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """Return the two lengths that are shown by context on the right: texts as they are, and the longest sequences."""
    lengths = [record["length"] for record in records]
    return list(dict.fromkeys((lengths[0], lengths[-1])))


def _mean_logit(profile: Mapping[str, Any], side: int) -> float | None:
    """Return the mean logit over the layers and the pairs whose n - m has the sign of `side`; None without pairs."""
    present = [
        index
        for index, (distance, pairs) in enumerate(zip(profile["distances"], profile["pairs"], strict=True))
        if distance * side > 0 and pairs
    ]
    count = sum(profile["pairs"][index] for index in present) * len(profile["logits"])
    weighted = sum(layer[index] * profile["pairs"][index] for layer in profile["logits"] for index in present)
    return weighted / count if count else None


def _length(record: Mapping[str, Any]) -> str:
    return "texts as they are" if record["length"] is None else f"packed to {record['length']}"


def _range(group: Mapping[str, Any]) -> str:
    return str(group["from"]) if group["from"] == group["to"] else f"{group['from']}-{group['to']}"
