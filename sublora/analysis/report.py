"""report.html: everything the experiment found, in one page that needs neither Snakemake nor a network to be read."""

import base64
import hashlib
import html
import math
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from docutils.core import publish_parts
from docutils.utils import SystemMessage
from markupsafe import Markup

from sublora.analysis.arms import arms_of
from sublora.analysis.hypotheses import hypothesis_table
from sublora.analysis.near_duplicates import near_duplicates_sentence
from sublora.analysis.report_hypotheses import hypothesis_sections
from sublora.analysis.report_yardsticks import yardstick_section
from sublora.analysis.runs_table import (
    BASE_PREFIX,
    INDEPENDENCE,
    NESTED,
    VERSION_PREFIX,
    check_last_line,
    read_runs_csv,
)
from sublora.analysis.style import COLUMN_INCHES, PNG_DPI
from sublora.analysis.summary import best_of_all, configurations, with_sizes
from sublora.analysis.tables import COLUMNS
from sublora.analysis.yardsticks import load_yardsticks
from sublora.system.errors import UserError
from sublora.system.files import write_bytes

INTRODUCTION = "workflow"
"""Caption that opens the page; those of the tables are named after them, all others after a kind of figure."""
TABLES = ("yardsticks", "summary", "hypotheses")
STAGES = (
    ("train", "Training"),
    ("encode", "Writing the message"),
    ("score", "Scoring documents"),
    ("bound", "Inequalities"),
)
INDEPENDENCE_LABELS = {
    "training_cutoff": "The base's training data end",
    "document_dates": "The documents are from",
    "how_checked": "How it was checked that the base has seen none of them",
}
MEDIA_TYPES = {".csv": "text/csv", ".json": "application/json"}
NOT_RECORDED = "not recorded"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CAPTION = re.compile(r"<p><strong>(?P<title>[^<]+?)\.?</strong>\s*(?P<text>.*)", re.DOTALL)
"""A caption as HTML: its title in bold, then the text of the same paragraph."""
OF_ONE_BUDGET = re.compile(r" at d = \d+$")
"""End of the title of a figure that is drawn for each budget."""


def write_report(
    path: Path | str,
    *,
    runs_csv: Path | str,
    yardsticks_json: Path | str,
    hypotheses_csv: Path | str,
    figures: Sequence[Path | str],
    captions: Sequence[Path | str],
    near_duplicates_json: Path | str | None = None,
) -> None:
    """Write the page. Equal files give equal bytes: it holds no date, and of paths only names.

    figures: PNG files {kind}.png or {kind}_d{budget}.png; they stand in the order of `captions`.
    captions: {kind}.rst of every kind of figure, of each of TABLES, and of "workflow", the introduction; each but the
    last starts with its title in bold. What follows the title is shown once for all budgets.

    near_duplicates_json: where it was measured, the report says what near duplicates mean for the best run.

    UserError if a file is missing or damaged, the yardsticks are of another dataset, or a figure has no caption.
    """
    runs = read_runs_csv(runs_csv, whole_sweep=True)
    hypotheses = _read_hypotheses(Path(hypotheses_csv), runs)
    texts = {Path(caption).stem: _read(Path(caption)).decode() for caption in captions}
    if absent := [name for name in (INTRODUCTION, *TABLES) if name not in texts]:
        raise UserError(f"{absent[0]}.rst is not among the captions given; add it to the rule of the report")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sublora.analysis"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    best = best_run(runs)
    page = environment.get_template("report.html.jinja").render(
        introduction=_html(texts[INTRODUCTION], INTRODUCTION),
        captions={name: _caption(texts[name], name) for name in TABLES},
        yardsticks=yardstick_section(runs, load_yardsticks(yardsticks_json, runs)),
        best=best,
        near_duplicates=None
        if near_duplicates_json is None
        else near_duplicates_sentence(near_duplicates_json, best["name"], best["data_hash"]),
        base=_base(runs),
        grid=_grid(runs),
        configurations=_configurations(runs),
        hypotheses=hypothesis_sections(hypotheses),
        figures=_figure_groups(figures, texts, sorted(runs["budget"].unique())),
        runs=runs.to_dict("records"),
        provenance=_provenance(runs),
        stages=_stages(runs),
        downloads=[_download(Path(table)) for table in (runs_csv, yardsticks_json, hypotheses_csv)],
    )
    write_bytes(Path(path), page.encode())


def best_run(runs: pd.DataFrame) -> dict[str, Any]:
    """The run of the smallest bound_all_runs (bits per token), the bound that allows for picking it among all.

    Its row, with `levels`: the numbers to compare it with, each with a remark and its length as a bar in percent; and
    `all_scored`: whether its bounds come from all n documents, none of them drawn.
    """
    row = best_of_all(runs).to_dict()
    row["all_scored"] = _all_scored(row)
    headline = row["bound_all_runs"]
    levels = [
        ("Test documents", row["test_loss_bits"], "measured, never used for a choice"),
        ("Scored training documents (BPD)", row["empirical_bpd"], "measured, what the bound starts from"),
        ("Bound, this run alone", row["bound_value"], "for a run that was named beforehand"),
        ("Bound, best of all runs", headline, "the headline: pays for the choice of this run"),
        *_strict(row),
        *_by_source(row),
        ("Bound from test documents", row["bound_held_out_all_runs"], "held out: the same network without a message"),
        ("Bound, Hoeffding", row["bound_hoeffding"], "the original paper's inequality, named beforehand"),
        ("Vacuous: log2 V", row["vacuous_bits"], "guessing uniformly over the vocabulary"),
    ]
    scale = max(bits for _, bits, _ in levels)
    row["levels"] = [
        {"what": what, "bits": bits, "remark": remark, "percent": 100.0 * bits / scale, "headline": bits is headline}
        for what, bits, remark in levels
    ]
    row["below_vacuous_percent"] = 100.0 * (1.0 - row["bound_all_runs"] / row["vacuous_bits"])
    return row


def _strict(row: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """The bound that charges the settings, where they fit a reference configuration."""
    if "bound_strict" not in row:
        return []
    remark = f"as before, and {row['settings_bits']:,.0f} bits for what differs from a reference configuration"
    return [("Bound, settings charged too", row["bound_strict"], remark)]


def _by_source(row: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """The bound over source files, where the runs have one."""
    if "by_source_bound_all_runs" not in row:
        return []
    remark = f"of the mean over source files, n = {row['by_source_n']:,}: for files, not functions, drawn like these"
    return [("Bound by source file, best of all runs", row["by_source_bound_all_runs"], remark)]


def _all_scored(row: Mapping[str, Any]) -> bool:
    return row["delta_sample"] == 0.0


def _base(runs: pd.DataFrame) -> dict[str, Any]:
    """Kind of the base, and for a pretrained one the texts its independence rests on: (what, text)."""
    first = runs.iloc[0]
    kind = first[f"{BASE_PREFIX}kind"]
    keys = INDEPENDENCE if kind == "pretrained" else ()
    return {"kind": kind, "independence": [(INDEPENDENCE_LABELS[key], first[BASE_PREFIX + key]) for key in keys]}


def _grid(runs: pd.DataFrame) -> dict[str, Any]:
    return {
        "runs": len(runs),
        "budgets": sorted(runs["budget"].unique()),
        "arms": [arm.label for arm in arms_of(runs)],
        "seeds": sorted(runs["seed"].unique()),
    }


def _configurations(runs: pd.DataFrame) -> dict[str, Any]:
    """Headings with units, and one block per budget: its arms with (mean, spread, whether the smallest bound)."""
    names = [column for _, column, _, _ in COLUMNS]
    table = configurations(with_sizes(runs), names)
    blocks = []
    for budget, rows in table.groupby(level="budget", sort=True):
        best = rows[("bound_value", "mean")].min()
        lines = []
        for arm in arms_of(runs):
            row = rows.loc[(budget, arm.allocation)]
            cells = []
            for _, column, _, decimals in COLUMNS:
                mean, std = row[(column, "mean")], row[(column, "std")]
                spread = "" if math.isnan(std) else f"±\N{NO-BREAK SPACE}{std:,.{decimals}f}"
                cells.append((f"{mean:,.{decimals}f}", spread, column == "bound_value" and mean == best))
            lines.append({"label": arm.label, "cells": cells})
        blocks.append({"budget": budget, "rows": lines})
    return {"headings": [(name, unit) for name, _, unit, _ in COLUMNS], "blocks": blocks}


def _figure_groups(
    figures: Sequence[Path | str], texts: dict[str, str], budgets: Sequence[int]
) -> list[dict[str, Any]]:
    """One group per kind of figure, with a single caption for all its budgets."""
    left = {Path(figure).name: Path(figure) for figure in figures}
    groups = []
    for kind in (name for name in texts if name not in (INTRODUCTION, *TABLES)):
        names = {f"{kind}.png": None} | {f"{kind}_d{budget}.png": budget for budget in budgets}
        shown = {name: budget for name, budget in names.items() if name in left}
        if not shown:
            continue  # a grid without gates has no figures of them
        pictures = []
        for name, budget in shown.items():
            own_title, text = _caption(texts[kind], kind, budget)
            pictures.append(_picture(left.pop(name), own_title))
        title = OF_ONE_BUDGET.sub("", own_title)
        groups.append({"kind": kind, "title": title, "text": text, "pictures": pictures})
    if left:
        raise UserError(f"{next(iter(left.values()))}: has no caption {{kind}}.rst among those given; add one")
    return groups


def _picture(path: Path, title: str) -> dict[str, Any]:
    data = _read(path)
    if not data.startswith(PNG_SIGNATURE) or len(data) < 24:
        raise UserError(f"{path}: is no PNG file; delete it and draw it again")
    width, height = struct.unpack(">II", data[16:24])
    return {
        "alt": f"Chart: {title}",
        "source": Markup("data:image/png;base64," + base64.b64encode(data).decode()),
        "width": width,
        "height": height,
        "wide": width > 1.5 * COLUMN_INCHES * PNG_DPI,
    }


def _caption(text: str, name: str, budget: int | None = None) -> tuple[str, Markup]:
    """(title, the rest as HTML) of a caption."""
    template = jinja2.Template(text, undefined=jinja2.StrictUndefined)
    rendered = template.render(snakemake={"wildcards": {"budget": budget}})
    found = CAPTION.match(_html(rendered, name))
    if found is None:
        raise UserError(f"{name}.rst: starts with {rendered[:30]!r}, expected a title in bold, **Title.**")
    return html.unescape(found["title"]), Markup("<p>" + found["text"])


def _html(text: str, name: str) -> Markup:
    """reStructuredText as an HTML fragment; UserError for what docutils warns of."""
    overrides = {
        "_disable_config": True,
        "file_insertion_enabled": False,
        "raw_enabled": False,
        "halt_level": 2,
        "report_level": 5,
    }
    try:
        parts = publish_parts(text, writer="html5", settings_overrides=overrides)
    except SystemMessage as error:
        raise UserError(f"{name}.rst: not valid reStructuredText: {' '.join(str(error).split())}") from None
    return Markup(parts["body"])


def _provenance(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """(what, value) of what the numbers come from; several values where runs differ."""
    first = runs.iloc[0]
    confidence = f"1 \N{MINUS SIGN} delta = {1 - first['delta']:g}"
    if _all_scored(first):
        scored = f"all n = {first['n_units']:,}"
    else:
        scored = f"m = {first['m_units']:,}, drawn with replacement"
        confidence += f", of delta {first['delta_sample']:g} for the draws of m"
    if first["unit"] == "document":
        sizes = [("Training documents n", f"{first['n_units']:,}"), ("Documents scored in each run", scored)]
    else:
        held = f"{first['n_units']:,}, each a {first['unit']}, of {first['n_documents']:,} documents"
        sizes = [("Training units n", held), ("Units scored in each run", scored)]
    rows = [
        *sizes,
        ("Shortest document", f"{first['min_targets']:,} targets, its end-of-text among them"),
        ("Vocabulary V", f"{first['vocab_size']:,} tokens"),
        ("Confidence", confidence),
        ("Base", first[f"{BASE_PREFIX}kind"]),
        (f"sha256 of the base{'s' * (runs[f'{BASE_PREFIX}sha256'].nunique() > 1)}", _base_hashes(runs)),
        ("Hash of the data", _distinct(runs, "data_hash")),
        ("Commit", _distinct(runs, "commit")),
        ("GPU", _distinct(runs, "gpu")),
    ]
    packages = sorted(column for column in runs.columns if column.startswith(VERSION_PREFIX))
    versions = [f"{column.removeprefix(VERSION_PREFIX)} {_distinct(runs, column)}" for column in packages]
    return [*rows, ("Versions", ", ".join(versions))]


def _base_hashes(runs: pd.DataFrame) -> str:
    """One hash, or one per seed where every seed draws its own base."""
    column = f"{BASE_PREFIX}sha256"
    if runs[column].nunique() == 1:
        return runs[column].iloc[0]
    by_seed = runs.groupby("seed", sort=True)[column].unique()
    return ", ".join(f"seed {seed}: {' or '.join(hashes)}" for seed, hashes in by_seed.items())


def _distinct(runs: pd.DataFrame, column: str) -> str:
    values = sorted(set(runs[column]) - {""}) if column in runs else []
    return " or ".join(values) or NOT_RECORDED


def _stages(runs: pd.DataFrame) -> list[dict[str, str]]:
    """How long each stage took, all runs together and on average."""
    stages = []
    for key, label in STAGES:
        column = NESTED["seconds"] + key
        if column in runs:
            total, each = runs[column].sum(), runs[column].mean()
            stages.append({"label": label, "total": _duration(total), "each": _duration(each)})
    return stages


def _duration(seconds: float) -> str:
    if seconds < 100.0:
        return f"{seconds:.1f} s"
    minutes = seconds / 60.0
    return f"{minutes:.0f} min" if minutes < 100.0 else f"{minutes / 60.0:.1f} h"


def _download(path: Path) -> dict[str, Any]:
    data = _read(path)
    source = Markup(f"data:{MEDIA_TYPES[path.suffix]};charset=utf-8;base64," + base64.b64encode(data).decode())
    return {"name": path.name, "sha256": hashlib.sha256(data).hexdigest(), "source": source}


def _read_hypotheses(path: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """hypotheses.csv; UserError if it is no table, or does not hold the tests that the runs allow."""
    _read(path)
    try:
        check_last_line(path)
        table = pd.read_csv(path, dtype={"budget": str})
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a table ({' '.join(str(error).split())}); make it again") from None
    expected = hypothesis_table(runs)
    keys = ["hypothesis", "comparison", "metric", "budget"]
    if list(table.columns) != list(expected.columns) or _texts(table[keys]) != _texts(expected[keys]):
        raise UserError(
            f"{path}: {len(table)} tests that are not the {len(expected)} of these runs; delete it and make it again"
        )
    return table


def _texts(table: pd.DataFrame) -> list[list[str]]:
    texts: list[list[str]] = table.astype(object).fillna("").astype(str).to_numpy().tolist()
    return texts


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it with `snakemake {path}`") from None
