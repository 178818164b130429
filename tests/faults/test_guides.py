"""The guides say what is true: messages are the real ones, and the tutorial's commands do what it says."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import TINY, TRAINED, demo_values, merged
from workflow.toy import Toy

from faults.scene import Scene
from faults.table import PAGE, REPOSITORY

GUIDE = REPOSITORY / "docs/guide"
TUTORIAL = (GUIDE / "tutorial.md").read_text(encoding="utf-8")
TROUBLESHOOTING = (GUIDE / "troubleshooting.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands() -> list[str]:
    """Commands of the tutorial, in order."""
    return [line for block in blocks(TUTORIAL, "sh") for line in block.splitlines()]


def real_messages() -> set[str]:
    rows = [line.strip("| ").split(" | ", 1) for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return {row[1].replace("\\|", "|") for row in rows if len(row) == 2}


@pytest.mark.parametrize("message", blocks(TROUBLESHOOTING, "text"))
def test_the_messages_explained_are_those_that_are_printed(message: str) -> None:
    (line,) = message.splitlines()
    found = {re.sub(r"\b\d+ bytes, expected \d+", "N bytes, expected N", real) for real in real_messages()}
    assert line in found


def small(folder: Path) -> dict:
    """The demo's settings and grid with a network, a base and data that take seconds."""
    texts = "".join(f'{{"text": "the base reads text number {i}, which is long enough"}}\n' for i in range(60))
    (folder / "texts.jsonl").write_text(texts)
    corpus = {"kind": "folder", "path": str(folder), "text_field": "text", "unit_field": None}
    values = merged(demo_values(), TINY) | {"grid": demo_values()["grid"], "base": TRAINED | {"corpus": corpus}}
    values["lora"] = values["lora"] | {"rank": 4}
    values["subspace"] = values["subspace"] | {"scale": "gradient(-0.5)"}
    return values


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    """Its commands, as they stand on the page, on settings that are the demo's but for their sizes."""
    toy = Toy.build(tmp_path.resolve() / "checkout")
    (tmp_path / "texts").mkdir()
    (toy.root / "demo/config/config.yaml").write_text(yaml.safe_dump(small(tmp_path.resolve() / "texts")))
    scene, outputs = Scene(toy.root), []
    for command in commands():
        expected = re.search(r"# exits with (\d)$", command)
        words = shlex.split(command, comments=True)
        if words[0] in ("make", "."):
            continue  # the environment that this test runs in
        if words[0] == "sublora":
            status, out, errors = scene.call(*words[1:])
            assert status == int(expected[1] if expected else 0), (command, errors)
            outputs.append((words, out))
        elif words[0] == "snakemake":
            outcome = toy.snakemake(*words[1:])
            assert outcome.exit_code == 0 and re.search(r"^train +28$", outcome.text, re.MULTILINE), outcome.text
        else:
            subprocess.run(words, cwd=toy.root, check=True)
    tables = [out for words, out in outputs if words[1] == "status"]
    assert "30 missing" in tables[0] and "2 done, 28 missing" in tables[1]
    assert (toy.root / "tutorial/results/yardsticks.json").exists()


def test_the_tutorial_names_every_stage() -> None:
    stages = {shlex.split(command)[1] for command in commands() if command.startswith("sublora")}
    assert {"prepare", "base", "train", "score", "bound", "verify", "yardsticks", "status"} <= stages


@pytest.mark.parametrize("text", [TUTORIAL, TROUBLESHOOTING, PAGE.read_text(encoding="utf-8")])
def test_links_lead_somewhere(text: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert any((folder / target).exists() for folder in (GUIDE, PAGE.parent)), target
