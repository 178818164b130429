"""What the pages tell a reader to type works: targets and options exist, and the first pages' commands plan."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sublora.cli import app
from workflow.toy import REPOSITORY, Toy

PAGES = [
    REPOSITORY / name
    for name in (
        "README.md",
        "docs/guide/installation.md",
        "docs/guide/running.md",
        "docs/guide/results.md",
        "docs/guide/full_reproduction.md",
    )
]


GUIDES = sorted({*PAGES, *(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / "CONTRIBUTING.md"})


def commands(program: str, pages: list[Path] = PAGES) -> list[list[str]]:
    """Words of each command of a program that the pages show in a shell block."""
    blocks = re.findall(r"```sh\n(.*?)```", "\n".join(page.read_text() for page in pages), re.DOTALL)
    lines = [line.split(" #")[0].split() for line in "\n".join(blocks).replace("\\\n", " ").splitlines()]
    return [words[1:] for words in lines if words and words[0] == program]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9.-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in GUIDES for name in re.findall(r"`make ([a-z0-9.-]+)", page.read_text())}
    assert {"demo", "test"} <= {words[0] for words in commands("make", GUIDES)} | named <= targets


@pytest.mark.slow
def test_snakemake_commands_plan(toy: Toy) -> None:
    toy.write("config/config.yaml", (REPOSITORY / "config/config.yaml").read_text())
    found = [words for words in commands("snakemake") if not {"--report", "--touch"} & set(words)]
    assert len(found) > 4
    for words in found:
        outcome = toy.snakemake("--dry-run", *(word for word in words if word != "-n"))
        assert outcome.exit_code == 0, (words, outcome.text)
        assert outcome.jobs["train"] == (15 if "pareto_d1000" in words[-1] else 30)
    assert any("-p" in words for words in found)


def test_all_training_commands_can_be_printed(toy: Toy) -> None:
    toy.write("config/config.yaml", (REPOSITORY / "config/config.yaml").read_text())
    text = toy.snakemake("-n", "-p", "trainings").text
    assert len(set(re.findall(r"^Shell command: start_job \S+; (sublora train .*) > ", text, re.MULTILINE))) == 30


@pytest.mark.parametrize("words", commands("sublora", GUIDES), ids=" ".join)
def test_options_of_the_command_line_exist(words: list[str]) -> None:
    help_text = CliRunner().invoke(app, [words[0], "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    for option in (word for word in words if word.startswith("--")):
        assert option in help_text


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_linked_files_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target
