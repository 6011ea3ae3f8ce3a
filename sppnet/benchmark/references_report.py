"""The page and the records of the comparisons: goals beside what was reached, and what bounds ours where it was not."""

from collections.abc import Sequence
from typing import Any

from sppnet.benchmark.comparisons import Row
from sppnet.benchmark.loading_parts import Parts
from sppnet.benchmark.side_by_side import Measured
from sppnet.results.page import Page


def references_page(title: str, measured: Sequence[Measured], parts: Sequence[Parts]) -> Page:
    """Makes the page: a heading and a table for every group, and the parts of loading if they were measured."""
    page = Page(title)
    page.text(
        "How many times as fast as the reference, or which share of a limit. Medians over rounds in one process, in "
        "turn; both sides do the same work on the same device. Goal met: by the median; in brackets how many rounds "
        "met it, where not all agree."
    )
    for group in measured:
        page.heading(group.group.capitalize())
        table = [_cells(row) for row in group.rows]
        page.table(["ours against", "setting of the reference", "goal", "reached", "rounds", "goal met"], table)
        missed = [[row.name, row.bound] for row in group.rows if row.is_reached is False]
        if missed:
            page.table(["misses its goal", "what takes the time of ours"], missed)
        if group.group == "loading" and parts:
            page.text("Milliseconds of one core for each image of ours:")
            page.table(["loaded", *parts[0].milliseconds, "total"], [_milliseconds(one) for one in parts])
    return page


def references_record(measured: Sequence[Measured], parts: Sequence[Parts]) -> dict[str, Any]:
    """Returns the same as plain values."""
    comparisons = [
        {
            "group": group.group,
            "name": row.name,
            "setting": row.setting,
            "ratio": row.ratio.median,
            "goal": row.goal,
            "is_reached": row.is_reached,
            "bound": row.bound,
            **row.ratio._asdict(),
        }
        for group in measured
        for row in group.rows
    ]
    return {"comparisons": comparisons, "loading_parts": [one._asdict() for one in parts]}


def _cells(row: Row) -> list[str]:
    goal = "" if row.goal is None else f"{row.goal:.2f}"
    rounds = f"{min(row.ratio.rounds):.2f} to {max(row.ratio.rounds):.2f}"
    return [row.name, row.setting, goal, f"{row.ratio.median:.2f}", rounds, _verdict(row)]


def _verdict(row: Row) -> str:
    """Says whether the median meets the goal, and how many rounds meet it where they do not agree."""
    if row.goal is None:
        return ""
    met = [ratio >= row.goal for ratio in row.ratio.rounds]
    doubt = "" if len(set(met)) == 1 else f" ({sum(met)} of {len(met)})"
    return ("yes" if row.is_reached else "no") + doubt


def _milliseconds(parts: Parts) -> list[str]:
    values = [*parts.milliseconds.values(), sum(parts.milliseconds.values())]
    return [parts.photos, *(f"{value:.2f}" for value in values)]
