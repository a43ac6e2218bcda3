"""The tables of a study: cells, effects with their intervals, and published findings beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search_gym.viewer.page import bar, text
from search_gym.viewer.study_folder import Study

Estimate = Mapping[str, float | None]

VERDICTS = {"agrees": "agrees", "contradicts": "contradicts"}


def cells_table(study: Study) -> str:
    """A row for each cell of the study; a button in each heading sorts by its column."""
    found = {cell["cell"]: cell for cell in study.analysis.get("cells", ())}
    kinds = list(dict.fromkeys(kind for cell in found.values() for kind in cell["held_out"]["by_kind"]))
    heads = ["Cell", "Runs", "Collapsed", "P(collapse)", "Updates survived", "Held-out EM, IQM"]
    heads += [*(f"{kind} EM, IQM" for kind in kinds), "Best EM", "Final EM"]
    if not found:
        return _plain_cells(study)
    rows = "".join(_cell_row(cell, found[cell["cell"]], kinds) for cell in study.plan["cells"] if cell["cell"] in found)
    waiting = len(study.plan["cells"]) - len(found)
    note = f"{waiting} cells have no finished run and are left out. " if waiting else ""
    return (
        f"{_sortable(heads, rows)}"
        f'<p class="note">{note}Small numbers and whiskers are 95 % intervals: exact for a share, bootstrap over runs '
        "for an interquartile mean (IQM), which promise more than they hold with so few runs. Updates survived is the "
        "restricted mean. Held-out: greedy answers after training; best and final: means of a few updates.</p>"
    )


def _cell_row(planned: Mapping[str, Any], cell: Mapping[str, Any], kinds: Sequence[str]) -> str:
    share, held_out = cell["probability"], cell["held_out"]
    iqm = held_out["iqm"]
    cells = [
        _td(cell["n"], str(cell["n"])),
        _td(cell["collapsed"], f"{cell['collapsed']} of {cell['n']}{_never(cell)}"),
        _td(share["estimate"], f"{_number(share)}{_bar(share)}"),
        _td(cell["mean_survival"]["estimate"], _number(cell["mean_survival"], 1)),
        _td(iqm["estimate"], f"{_number(iqm)}{_bar(iqm)}"),
        *(_td(held_out["by_kind"][kind]["estimate"], _number(held_out["by_kind"][kind])) for kind in kinds),
        _td(cell["best_em"]["estimate"], _number(cell["best_em"])),
        _td(cell["final_em"]["estimate"], _number(cell["final_em"])),
    ]
    return f'<tr><th scope="row">{text(planned["label"])}</th>{"".join(cells)}</tr>'


def _plain_cells(study: Study) -> str:
    """The cells of a study without statistics: what the table of runs holds."""
    rows = ""
    for cell in study.plan["cells"]:
        runs = [run for run in study.finished if run["cell"] == cell["cell"]]
        if not runs:
            continue
        scores = [run["held_out.all"] for run in runs if run.get("held_out.all") is not None]
        mean = sum(scores) / len(scores) if scores else None
        rows += (
            f'<tr><th scope="row">{text(cell["label"])}</th>{_td(len(runs), str(len(runs)))}'
            f"{_td(mean, '–' if mean is None else f'{mean:.2f}')}</tr>"
        )
    return _sortable(["Cell", "Runs", "Held-out EM, mean"], rows) if rows else ""


def effects_table(plan: Mapping[str, Any], analysis: Mapping[str, Any]) -> str:
    """The differences that an algorithm or another factor makes, each as a number and as a dot with its interval."""
    rows = ""
    for row in (*analysis.get("algorithms", ()), *analysis.get("effects", ())):
        factor = plan.get("factors", {}).get(row["factor"], {}).get("label", row["factor"])
        if row["factor"] == "algorithm":
            name = f"{row['algorithm'].upper()} instead of {row['reference'].upper()}, {row['level']}"
        else:
            who = "Both" if row["algorithm"] == "both" else row["algorithm"].upper()
            name = f"{who}: {factor} {row['level']} instead of {row['reference']}"
        risk, held_out = row["probability"], row["held_out"]
        rows += (
            f'<tr><th scope="row">{text(name)}<small>{text(row["family"])}</small></th>{_td(row["n"], str(row["n"]))}'
            f"{_td(risk['estimate'], _signed(risk) + _dot(risk))}{_td(row.get('holm'), _p(row.get('holm')))}"
            f"{_td(held_out['estimate'], _signed(held_out) + _dot(held_out))}</tr>"
        )
    if not rows:
        return ""
    heads = ["Change", "Pairs of runs", "P(collapse), difference", "p after Holm", "Held-out EM, difference"]
    note = (
        "Pairs share their seed and differ in this alone. Dots are differences from −1 to 1, the dashed line is none; "
        "lines are 95 % intervals, and where there is none there are too few pairs. p is that of the difference in "
        "collapses, after Holm's correction within its family."
    )
    return f'{_sortable(heads, rows)}<p class="note">{note}</p>'


def published_table(analysis: Mapping[str, Any]) -> str:
    """Published directions beside ours, with the verdict that follows from the interval alone."""
    rows = ""
    for row in analysis.get("comparison", ()):
        difference, verdict = row["difference"], str(row["verdict"])
        published = row.get("published")
        published = "" if published is None else f"<small>published difference {_sign(published)}</small>"
        rows += (
            f'<tr><th scope="row">{text(row["statement"])}<small>{text(row["source"])}</small>{published}</th>'
            f'<td class="verdict {VERDICTS.get(verdict, "")}">{text(verdict)}</td>'
            f"{_td(difference['estimate'], _signed(difference))}{_td(row['n'], str(row['n']))}</tr>"
        )
    return _sortable(["Statement", "Here", "Difference", "n"], rows) if rows else ""


def _sortable(heads: Sequence[str], rows: str) -> str:
    cells = "".join(f'<th scope="col"><button type="button">{text(head)}</button></th>' for head in heads)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(heads[0])} table">'
        f'<table class="sortable"><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _td(key: float | None, markup: str) -> str:
    return f'<td data-sort="{"" if key is None else f"{key:.6g}"}">{markup}</td>'


def _never(cell: Mapping[str, Any]) -> str:
    return f"<small>{cell['never_learned']} never learned</small>" if cell["never_learned"] else ""


def _number(value: Estimate, digits: int = 2) -> str:
    estimate, low, high = value["estimate"], value["low"], value["high"]
    if estimate is None:
        return "–"
    bounds = "" if low is None or high is None else f"<small>{low:.{digits}f} to {high:.{digits}f}</small>"
    return f"{estimate:.{digits}f}{bounds}"


def _signed(value: Estimate) -> str:
    estimate, low, high = value["estimate"], value["low"], value["high"]
    if estimate is None:
        return "–"
    bounds = "" if low is None or high is None else f"<small>{_sign(low)} to {_sign(high)}</small>"
    return f"{_sign(estimate)}{bounds}"


def _sign(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−") if 0 < abs(value) < 0.1 else f"{value:+.2f}".replace("-", "−")


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _bar(value: Estimate) -> str:
    return "" if value["estimate"] is None else bar(value["estimate"], value["low"], value["high"])


def _dot(value: Estimate) -> str:
    """A difference between −1 and 1 as a dot on a line; what lies beyond is cut off."""
    if value["estimate"] is None:
        return ""
    place = [
        None if x is None else (min(1.0, max(-1.0, x)) + 1) / 2
        for x in (value["estimate"], value["low"], value["high"])
    ]
    line = ""
    if place[1] is not None and place[2] is not None:
        line = f'<u style="left:{place[1]:.1%};width:{place[2] - place[1]:.1%}"></u>'
    return f'<span class="forest">{line}<i style="left:{place[0]:.1%}"></i></span>'
