"""report.html: everything the experiment found, in one page that needs neither Snakemake nor a network to be read."""

import base64
import hashlib
import html
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from docutils.core import publish_parts
from docutils.utils import SystemMessage
from markupsafe import Markup

from sublora import config
from sublora.analysis.figures.style import COLUMN_INCHES, PNG_DPI
from sublora.analysis.hypotheses import hypothesis_table
from sublora.analysis.report import facts
from sublora.analysis.report.facts import hypothesis_sections
from sublora.analysis.runs_table import (
    check_last_line,
    read_runs_csv,
)
from sublora.analysis.yardsticks import load_test_losses, load_yardsticks, yardstick_section
from sublora.system.errors import UserError
from sublora.system.files import write_bytes

INTRODUCTION = "workflow"
"""Caption that opens the page; those of the tables are named after them, all others after a kind of figure."""
TABLES = ("yardsticks", "summary", "hypotheses")
MEDIA_TYPES = {".csv": "text/csv", ".json": "application/json"}
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
    losses: Sequence[Path | str],
    hypotheses_csv: Path | str,
    figures: Sequence[Path | str],
    captions: Sequence[Path | str],
    near_duplicates_json: Path | str | None = None,
    settings: config.Settings | None = None,
) -> None:
    """Write the page. Equal files give equal bytes: it holds no date, and of paths only names.

    losses: losses.npz of the runs, of which that of the best is read.
    figures: PNG files {kind}.png or {kind}_d{budget}.png; they stand in the order of `captions`.
    captions: {kind}.rst of every kind of figure, of each of TABLES, and of "workflow", the introduction; each but the
    last starts with its title in bold. What follows the title is shown once for all budgets.

    near_duplicates_json: where it was measured, the report says what near duplicates mean for the best run.

    settings: those in force, which the yardsticks must have been made with.

    UserError if a file is missing or damaged, the yardsticks are not those of the runs, or a figure has no caption.
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
    best = facts.best_run(runs)
    page = environment.get_template("report.html.jinja").render(
        introduction=_html(texts[INTRODUCTION], INTRODUCTION),
        captions={name: _caption(texts[name], name) for name in TABLES},
        yardsticks=yardstick_section(
            runs, load_yardsticks(yardsticks_json, runs, settings), load_test_losses(losses, runs)
        ),
        best=best,
        near_duplicates=None
        if near_duplicates_json is None
        else facts.near_duplicates_sentence(near_duplicates_json, best),
        base=facts.base_of_runs(runs),
        grid=facts.grid(runs),
        configurations=facts.configuration_blocks(runs),
        hypotheses=hypothesis_sections(hypotheses),
        figures=_figure_groups(figures, texts, sorted(runs["budget"].unique())),
        runs=runs.to_dict("records"),
        provenance=facts.provenance(runs),
        stages=facts.stages(runs),
        downloads=[_download(Path(table)) for table in (runs_csv, yardsticks_json, hypotheses_csv)],
    )
    write_bytes(Path(path), page.encode())


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
    # Which tests there are follows from the arms, not from the number of seeds; those of one seed are quickly made.
    expected = hypothesis_table(runs[runs["seed"] == runs["seed"].iloc[0]])
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
