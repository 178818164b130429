"""report.html: what it says, that it needs nothing beside itself, and that equal inputs give equal bytes."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from analysis_data import DATA_HASH, INDEPENDENCE, MANY_ARMS, SMALL
from report_data import captions, write_inputs

from sublora.analysis.report.facts import best_run, hypothesis_sections
from sublora.analysis.report.page import INTRODUCTION, TABLES, _caption, write_report
from sublora.analysis.runs_table import read_runs_csv
from sublora.analysis.tables import among_best
from sublora.config import Grid
from sublora.system.errors import UserError
from sublora.yardsticks.record import read_yardsticks, write_yardsticks

ONE_SEED = Grid(budgets=(1000,), allocations=("uniform", "fixed-0.2"), seeds=(7,))


def parsed(path: Path) -> ElementTree.Element:
    """The page as a tree; an error if a tag is left open or wrongly nested."""
    doctype, _, text = path.read_text(encoding="utf-8").partition("\n")
    assert doctype == "<!DOCTYPE html>"
    return ElementTree.fromstring(text)


def words(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, SimpleNamespace]:
    found = {}
    for name, grid, layers in (("small", SMALL, 4), ("large", MANY_ARMS, 12)):
        folder = tmp_path_factory.mktemp(name)
        inputs = write_inputs(folder, grid, layers=layers, all_scored=name == "large")
        write_report(folder / "report.html", **inputs)
        page = parsed(folder / "report.html")
        found[name] = SimpleNamespace(folder=folder, inputs=inputs, page=page, runs=read_runs_csv(inputs["runs_csv"]))
    return found


def test_the_certified_gain_is_said_where_runs_are_anchored(made, tmp_path):
    inputs = write_inputs(tmp_path, ONE_SEED, anchored=True)
    write_report(tmp_path / "report.html", **inputs)
    best = best_run(read_runs_csv(inputs["runs_csv"]))
    (sentence,) = [words(p) for p in parsed(tmp_path / "report.html").iter("p") if p.get("class") == "certified-gain"]
    for key in ("bound_all_runs", "anchor_base_bound"):
        assert f"needs at most {best[key]:.3f}" in sentence
    assert "certified-gain" not in [p.get("class") for p in made["small"].page.iter("p")]


@pytest.mark.parametrize("grid", ["small", "large"])
def test_the_page_is_whole_and_needs_nothing_beside_it(made, grid):
    page = made[grid].page
    assert not list(page.iter("script"))
    for element in page.iter():
        for attribute in ("src", "href"):
            assert element.get(attribute, "#").startswith(("data:", "#"))
    ids = [element.get("id") for element in page.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    named = {link.get("href")[1:] for link in page.iter("a") if link.get("href").startswith("#")}
    named |= {element.get("aria-labelledby") for element in page.iter() if element.get("aria-labelledby")}
    assert named <= set(ids)
    style = words(page.find("head/style"))
    assert "url(" not in style and "@import" not in style
    assert "{{" not in style and "prefers-color-scheme: dark" in style


@pytest.mark.parametrize("grid", ["small", "large"])
def test_headings_descend_without_gaps(made, grid):
    levels = [int(element.tag[1]) for element in made[grid].page.iter() if element.tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in zip(levels, levels[1:], strict=False))


@pytest.mark.parametrize(("grid", "count"), [("small", 2 * 7 + 3), ("large", 2 * 7 + 3)])
def test_every_figure_is_embedded_once_with_its_own_alternative_text(made, grid, count):
    images = list(made[grid].page.iter("img"))
    data = [base64.b64decode(image.get("src").removeprefix("data:image/png;base64,")) for image in images]
    assert sorted(data) == sorted(path.read_bytes() for path in made[grid].inputs["figures"])
    alternatives = [image.get("alt") for image in images]
    assert len(set(alternatives)) == len(images) == count
    assert "Chart: Loss against complexity at d = 2000" in alternatives
    kinds = [figure.get("id").removeprefix("figure-") for figure in made[grid].page.iter("figure")]
    order = [path.stem for path in captions()]
    assert kinds == [kind for kind in order if kind in kinds] and len(kinds) == 10
    assert all(len(words(caption)) > 100 for caption in made[grid].page.iter("figcaption"))


def test_the_best_run_is_chosen_by_the_bound_that_pays_for_choosing(made):
    runs = made["small"].runs.copy()
    runs["bound_all_runs"] = runs["bound_value"] + 0.01
    lucky = runs["bound_value"].idxmin()
    runs.loc[lucky, "bound_all_runs"] = runs["bound_all_runs"].max() + 1.0
    best = best_run(runs)
    assert best["name"] != runs["name"][lucky]
    assert best["bound_all_runs"] == runs["bound_all_runs"].min()
    (headline,) = [level for level in best["levels"] if level["headline"]]
    assert headline["bits"] == best["bound_all_runs"]
    assert max(level["percent"] for level in best["levels"]) == 100.0


def test_the_headline_names_value_run_confidence_and_documents(made):
    text = words(made["small"].page.find(".//section[@id='headline']"))
    row = made["small"].runs.sort_values("bound_all_runs").iloc[0]
    assert f"{row['bound_all_runs']:.3f} bits per token With probability 95 %" in text
    assert f"loss of run {row['name']} on new documents" in text
    assert "choosing the best of all 30 runs" in text
    assert "the 17,000 training documents are independent draws" in text
    assert "The bound is vacuous" not in text
    percent = round(100 * (1 - row["bound_all_runs"] / row["vacuous_bits"]))
    assert f"the bound lies {percent} % below that" in text


def test_the_first_section_says_what_the_network_adds(made):
    page = made["small"].page
    section = page.find(".//section")
    assert section.get("id") == "yardsticks"
    assert section.find(".//table") is next(page.iter("table"))
    text = words(section)
    assert "The network is worse than the order-3 model." in text
    assert "learned something:" not in text
    rows = section.findall(".//tbody/tr")
    assert len(rows) == 5 + 3
    best = made["small"].runs.sort_values("bound_all_runs").iloc[0]
    (row,) = [row for row in rows if row.get("class") == "best"]
    numbers = [words(cell) for cell in row.findall("td")]
    bounds = [f"{best[key]:.3f}" for key in ("test_loss_bits", "bound_all_runs")]
    assert numbers == [*bounds, f"{best['code_bits']:,.0f}", "17,000", "1,000", "document(8)"]
    assert len(section.findall(".//ul/li")) == 5


def test_a_network_that_learned_something_is_said_to(tmp_path):
    beaten = {"unigram": (6.0, 6.1), "bigram": (5.9, 6.0), "order3": (5.8, 5.9), "frozen_base": (5.7, 5.8)}
    inputs = write_inputs(tmp_path, ONE_SEED, yardsticks=beaten)
    inputs["figures"] = [path for path in inputs["figures"] if not path.name.startswith("gating")]
    write_report(tmp_path / "report.html", **inputs)
    text = words(parsed(tmp_path / "report.html").find(".//section[@id='yardsticks']"))
    assert "The network learned something: on new documents it is better than every trivial model." in text
    assert "The network is better than the frozen base by at least 0." in text
    assert "pays for picking the best of 2" in text


def test_what_was_scored_is_said(made):
    drawn, scored_all = (words(made[name].page.find(".//main")) for name in ("small", "large"))
    assert "and over the draw of those that are scored" in drawn and "m = 1,000, drawn with replacement" in drawn
    assert "of delta 0.045 for the draws of m" in drawn
    assert "over the training documents, the loss that the" in scored_all
    assert "the draw" not in scored_all and "all n = 17,000" in scored_all and "drawn with" not in scored_all


def with_base(inputs: dict, **columns: str) -> None:
    runs = pd.read_csv(inputs["runs_csv"], dtype=str, keep_default_na=False)
    runs.assign(**columns).to_csv(inputs["runs_csv"], index=False)


def test_a_pretrained_base_shows_what_its_independence_rests_on(tmp_path):
    inputs = write_inputs(tmp_path, ONE_SEED)
    columns = {f"base_{key}": text for key, text in INDEPENDENCE.items()}
    with_base(inputs, base_kind="pretrained", base_sha256="ab" * 32, **columns)
    yardsticks = read_yardsticks(inputs["yardsticks_json"], DATA_HASH)
    write_yardsticks(inputs["yardsticks_json"], yardsticks.model_copy(update={"base_sha256": "ab" * 32}))
    write_report(tmp_path / "report.html", **inputs)
    page = parsed(tmp_path / "report.html")
    beside_the_bound = page.find(".//section[@id='headline']//dl")
    assert [words(each) for each in beside_the_bound.findall("dd")] == list(INDEPENDENCE.values())
    assert "ab" * 32 in words(page.find(".//section[@id='provenance']"))


@pytest.mark.parametrize(
    ("kind", "sentence"), [("random", "The base is random"), ("trained", "trained on documents set")]
)
def test_other_bases_are_named(tmp_path, kind, sentence):
    inputs = write_inputs(tmp_path, ONE_SEED)
    with_base(inputs, base_kind=kind)
    write_report(tmp_path / "report.html", **inputs)
    page = parsed(tmp_path / "report.html")
    assert sentence in words(page.find(".//section[@id='headline']"))
    assert page.find(".//section[@id='headline']//dl") is None
    provenance = [words(each) for each in page.findall(".//section[@id='provenance']//dd")]
    assert kind in provenance


def test_random_bases_are_listed_by_seed(made):
    text = words(made["small"].page.find(".//section[@id='provenance']"))
    runs = made["small"].runs
    for seed, (sha256,) in runs.groupby("seed")["base_sha256"].unique().items():
        assert f"seed {seed}: {sha256}" in text


def test_a_vacuous_bound_is_called_so(tmp_path):
    inputs = write_inputs(tmp_path, ONE_SEED)
    runs = pd.read_csv(inputs["runs_csv"], dtype=str, keep_default_na=False)
    runs.assign(bound_all_runs="8.01").to_csv(inputs["runs_csv"], index=False)
    inputs["figures"] = [path for path in inputs["figures"] if not path.name.startswith("gating")]
    write_report(tmp_path / "report.html", **inputs)
    page = parsed(tmp_path / "report.html")
    assert "The bound is vacuous: guessing uniformly" in words(page.find(".//section[@id='headline']"))
    assert "Not testable with this grid." in words(page.find(".//section[@id='hypotheses']"))
    assert "±" not in words(page.find(".//section[@id='configurations']//tbody"))
    assert not [figure for figure in page.iter("figure") if "gating" in figure.get("id")]


@pytest.mark.parametrize("grid", ["small", "large"])
def test_the_table_holds_every_configuration(made, grid):
    runs = made[grid].runs
    bodies = made[grid].page.findall(".//section[@id='configurations']//tbody")
    assert [words(body[0]) for body in bodies] == [f"d = {budget}" for budget in sorted(runs["budget"].unique())]
    for body, (budget, rows) in zip(bodies, runs.groupby("budget"), strict=True):
        bounds = rows.groupby("allocation")["bound_value"].agg(["mean", "std"])
        shown = [row.findall("td")[2] for row in body[1:]]
        expected = [f"{mean:.3f} ± {std:.3f}" for mean, std in bounds.itertuples(index=False)]
        assert sorted(map(words, shown)) == sorted(expected)
        bold = [words(cell) for row in body[1:] for cell in row if "best" in cell.get("class", "")]
        best = [name for (of, name), is_best in among_best(runs).items() if of == budget and is_best]
        named = [text for text, name in zip(expected, bounds.index, strict=True) if name in best]
        assert sorted(bold) == sorted(named) and bounds["mean"].idxmin() in best


def test_hypotheses_stand_in_words(made):
    section = made["small"].page.find(".//section[@id='hypotheses']")
    text = words(section)
    assert (
        "H1. Do asymmetric fixed splits beat the equal one? Undecided over 3 seeds: fixed-0.2 − fixed-0.5 = +" in text
    )
    assert "Yes, gamma rises with depth: mean rank correlation" in text
    table = pd.read_csv(made["small"].inputs["hypotheses_csv"])
    assert len(section.findall(".//ul[@class='tests']/li")) == len(table)
    first = table[(table["role"] == "record") & (table["metric"] == "bound_value")].iloc[0]
    result = f"{first['estimate']:+.3f} bits/token (95 % interval {first['interval_low']:.3f} to"
    assert f"undecided {first['comparison'].replace(' - ', ' − ')}, bound: {result}" in text


def h1_rows(**changes) -> pd.DataFrame:
    """Two rows of record and one that decides nothing."""
    row = {"hypothesis": "H1", "role": "record", "comparison": "x - z", "metric": "bound_value", "budget": "all"}
    row |= {"estimate": -0.1, "unit": "bits/token", "interval_low": -0.2, "interval_high": -0.05, "p": 0.01}
    row |= {"p_holm": 0.3, "p_holm_if_budgets_independent": 0.001, "gain_at_most": 0.2, "n_seeds": 3}
    row |= {"seeds_to_decide": 7, "note": "", "verdict": "undecided"}
    other = row | {"role": "exploratory", "metric": "empirical_bpd", "verdict": "exploratory"}
    return pd.DataFrame([row | changes, row | {"comparison": "y - z", "gain_at_most": 0.1} | changes, other])


def test_answers_follow_the_tests_of_record():
    (section,) = hypothesis_sections(h1_rows())
    effect = "−0.100 bits/token (95 % interval −0.200 to −0.050)"
    assert section["answer"] == (
        f"Undecided over 3 seeds: x − z = {effect}; y − z = {effect}; with 95 % confidence at most 0.200."
    )
    assert section["record"][0]["result"] == (
        f"{effect}; p = 0.01, corrected 0.3; if budgets are independent given the seed 0.001; "
        "the limit of a gain is +0.200 bits/token; 7 seeds would decide in 80 % of experiments"
    )
    assert [test["decided"] for test in section["record"] + section["others"]] == [False] * 3
    yes = hypothesis_sections(h1_rows(p_holm=0.02, verdict="x beats z"))[0]
    assert yes["answer"].startswith("Yes, x beats z and x beats z in the bound over 3 seeds: x − z = ")
    assert [test["decided"] for test in yes["record"] + yes["others"]] == [True, True, False]
    no = hypothesis_sections(h1_rows(gain_at_most=-0.004, verdict="gains less than 0.01 bits/token"))[0]
    assert no["answer"].startswith(
        "No, the asymmetric splits gain less than 0.01 bits/token, with 95 % confidence they lose at least 0.004 over"
    )
    few = hypothesis_sections(h1_rows(gain_at_most=float("nan")))[0]
    assert few["answer"].endswith("with so few seeds nothing limits the gain.")


def test_the_tables_can_be_taken_out_again(made):
    links = {link.get("download"): link for link in made["small"].page.iter("a") if link.get("download")}
    provenance = words(made["small"].page.find(".//section[@id='provenance']"))
    for key, kind in (("runs_csv", "csv"), ("yardsticks_json", "json"), ("hypotheses_csv", "csv")):
        data = made["small"].inputs[key].read_bytes()
        href = links[made["small"].inputs[key].name].get("href")
        start, comma, content = href.partition(",")
        assert start + comma == f"data:{'text' if kind == 'csv' else 'application'}/{kind};charset=utf-8;base64,"
        assert base64.b64decode(content) == data
        assert hashlib.sha256(data).hexdigest() in provenance
    assert "d2" * 32 in provenance and "torch 2.13.0" in provenance


def test_text_from_files_cannot_become_markup(tmp_path):
    inputs = write_inputs(tmp_path, ONE_SEED)
    runs = pd.read_csv(inputs["runs_csv"], dtype=str, keep_default_na=False)
    runs.assign(gpu="<b>GPU</b> & co").to_csv(inputs["runs_csv"], index=False)
    write_report(tmp_path / "report.html", **inputs)
    page = parsed(tmp_path / "report.html")
    assert "<b>GPU</b> & co" in words(page.find(".//section[@id='provenance']"))
    assert not list(page.iter("b"))


PROGRAM = """
import sys
from pathlib import Path
from sublora.analysis.report.page import write_report
folder, *captions = map(Path, sys.argv[1:])
figures = sorted(folder.glob("figures/*.png"), reverse=True)
write_report("other.html", runs_csv=folder / "runs.csv", yardsticks_json=folder / "yardsticks.json",
             losses=folder.glob("runs/*/losses.npz"), hypotheses_csv=folder / "hypotheses.csv",
             figures=figures, captions=captions)
"""


@pytest.mark.slow
def test_another_process_in_another_folder_writes_equal_bytes(made, tmp_path):
    arguments = [str(made["small"].folder), *map(str, captions())]
    environment = os.environ | {"PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", PROGRAM, *arguments], check=True, env=environment, cwd=tmp_path)
    assert (tmp_path / "other.html").read_bytes() == (made["small"].folder / "report.html").read_bytes()


def test_a_caption_says_the_same_for_every_budget():
    """So that one stands for all of them."""
    for path in captions():
        if path.stem != INTRODUCTION:
            titles, texts = zip(*(_caption(path.read_text(), path.stem, budget) for budget in (10, 20)), strict=True)
            assert len(set(texts)) == 1, path
            assert path.stem not in TABLES or len(set(titles)) == 1


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda inputs, _: inputs["figures"][0].unlink(), r"pareto.*|allocation_grid\.png: no such file"),
        (lambda inputs, _: inputs["figures"][0].write_bytes(b"GIF89a"), r"allocation_grid\.png: is no PNG file"),
        (lambda inputs, _: inputs["captions"].remove(captions()[4]), r"pareto_d1000\.png: has no caption"),
        (lambda inputs, _: inputs["captions"].remove(captions()[2]), r"summary\.rst is not among the captions"),
        (lambda inputs, _: inputs["yardsticks_json"].unlink(), r"yardsticks\.json: no such file"),
        (lambda inputs, _: inputs["yardsticks_json"].write_text("{}"), r"yardsticks\.json: not a file of yardsticks"),
        (lambda inputs, _: inputs["hypotheses_csv"].write_bytes(b""), r"hypotheses\.csv: not a table"),
        (lambda inputs, tmp: write_caption(inputs, tmp, "No title."), r"pareto\.rst: starts with 'No title\.'"),
        (lambda inputs, tmp: write_caption(inputs, tmp, "**Title.** `open"), r"pareto\.rst: not valid"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, spoil, complaint):
    inputs = write_inputs(tmp_path, ONE_SEED)
    spoil(inputs, tmp_path)
    with pytest.raises(UserError, match=complaint):
        write_report(tmp_path / "report.html", **inputs)
    assert not (tmp_path / "report.html").exists()


def write_caption(inputs: dict, folder: Path, text: str) -> None:
    (folder / "pareto.rst").write_text(text)
    inputs["captions"] = [folder / "pareto.rst" if path.stem == "pareto" else path for path in inputs["captions"]]


def test_what_the_certificate_reveals_is_counted(made):
    for found in made.values():
        best = best_run(found.runs)
        (section,) = (each for each in found.page.iter("section") if each.get("id") == "certificate")
        text = words(section)
        assert f"{best['budget']:,} numbers, quantized to {best['compressed_size_bits']:,.0f} bits together" in text
        assert f"about the documents, where these are {best['n_documents']:,}" in text
        assert ("and the gates among them" in text) == (best["mode"] == "learned")
        for promise in (
            "No differential privacy",
            "No guarantee for a single document",
            "a population that has shifted",
        ):
            assert promise in text


def test_near_duplicates_are_said_where_they_were_measured(made, tmp_path):
    small = made["small"]
    best = best_run(small.runs)
    facts = {
        "format": 2,
        "data_hash": best["data_hash"],
        "rule": {"shingle_bytes": 32},
        "n_documents": 72354,
        "n_clusters": 68124,
        "n_mostly_new": 53723,
        "test_mostly_shared": 0.2575,
        "runs": {
            best["name"]: {
                "bound_value": best["bound_value"],
                "bound_value_by_clusters": 3.0649,
                "bound_value_by_mostly_new": 3.0989,
            }
        },
    }
    (tmp_path / "near_duplicates.json").write_text(json.dumps(facts))
    write_report(tmp_path / "report.html", **small.inputs, near_duplicates_json=tmp_path / "near_duplicates.json")
    text = words(parsed(tmp_path / "report.html"))
    assert "26% of the test documents share over half of their 32-byte shingles" in text
    assert f"would be 3.065 instead of {best['bound_value']:.3f} bits per token" in text
    assert "a sensitivity, not a certificate" in text
    assert "Near duplicates" not in words(small.page)
