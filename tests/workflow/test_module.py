"""The workflow as a module of another one, whose config counts."""

import json
import re
import shutil
import subprocess

import pytest
import yaml
from conftest import TINY, demo_values, merged

from sublora.config import load_settings
from workflow.test_rerun import stages
from workflow.toy import SMALL_GRID, Toy

PARENT = """configfile: "config/config.yaml"

config["grid"]["seeds"] = [7, 8]

module sublora:
    snakefile: "{snakefile}"
    config: config
    {prefix}

use rule * from sublora{name}
"""
FIGURE = "results/figures/pareto_d40.png"


def parent_of(toy: Toy, *, prefix: str = "", name: str = "") -> Toy:
    """The toy moved into a folder of its own beside a parent workflow, which has the config and the commands."""
    home = toy.root / "elsewhere/sublora"
    home.mkdir(parents=True)
    (toy.root / "workflow").rename(home / "workflow")
    text = PARENT.format(snakefile="../elsewhere/sublora/workflow/Snakefile", prefix=prefix, name=name)
    toy.write("workflow/Snakefile", text)
    return toy


@pytest.fixture
def parent(toy: Toy) -> Toy:
    return parent_of(toy)


def test_the_config_of_the_parent_counts(parent: Toy) -> None:
    assert len([line for line in PARENT.splitlines() if line.strip()]) <= 10
    outcome = parent.snakemake(FIGURE)
    assert outcome.exit_code == 0, outcome.text
    trainings = [call for call in parent.calls if call.startswith("sublora train")]
    assert {re.search(r"--seed (\d+)", call)[1] for call in trainings} == {"7", "8"}
    assert all("--config results/settings.yaml " in call for call in trainings)
    assert load_settings(parent.root / "results/settings.yaml").grid.seeds == (7, 8)
    assert (parent.root / FIGURE).exists()
    assert parent.plan(FIGURE) == {}


@pytest.mark.slow
def test_the_parent_reruns_what_its_settings_reach(parent: Toy) -> None:
    assert parent.snakemake("results/runs_d40.csv").exit_code == 0
    parent.write_settings(grid=SMALL_GRID, bound={"delta": 0.07})
    runs = 6
    assert stages(parent.plan("results/runs_d40.csv")) == {"score": runs, "bound": runs}
    parent.write_settings(grid=SMALL_GRID)
    assert parent.plan("results/runs_d40.csv") == {}
    assert stages(parent.plan("results/runs_d40.csv", "--config", "bound={delta: 0.07}")) == {
        "score": runs,
        "bound": runs,
    }


@pytest.mark.slow
def test_everything_of_the_module_is_found_from_the_parent(parent: Toy) -> None:
    """Scripts, and the captions of both reports."""
    outcome = parent.snakemake()
    assert outcome.exit_code == 0, outcome.text
    caption = parent.root / "elsewhere/sublora/workflow/report/pareto.rst"
    assert parent.plan() == {}
    caption.write_text(caption.read_text() + "More words.\n")
    assert parent.plan() == {"html_report": 1}
    assert parent.snakemake("--report", "report.zip").exit_code == 0
    assert (parent.root / "report.zip").exists()


@pytest.mark.slow
def test_names_and_a_folder_of_its_own(toy: Toy) -> None:
    parent = parent_of(toy, prefix='prefix: "inner"', name=" as sublora_*")
    outcome = parent.snakemake("inner/" + FIGURE)
    assert outcome.exit_code == 0, outcome.text
    assert outcome.jobs["sublora_train"] == 6
    assert "sublora score inner/results/runs/d40_learned_seed8 --config inner/results/settings.yaml" in parent.calls
    assert not (parent.root / "results").exists()
    # Rules that run beside Snakemake do so under another name, too: here is no SLURM.
    (parent.root / "inner" / FIGURE).unlink()
    without_waiting = ("--latency-wait", "0", "--slurm-init-seconds-before-status-checks", "1")
    outcome = parent.snakemake("--profile", "profiles/slurm", *without_waiting, "inner/" + FIGURE)
    assert outcome.exit_code == 0, outcome.text
    assert outcome.jobs == {"sublora_figures_of_budget": 1}


@pytest.mark.slow
def test_real_jobs_follow_the_parent_to_their_bounds(parent: Toy) -> None:
    """No toy commands: a tiny network, one run a seed, each bounded with the seeds that the parent has."""
    (parent.root / "bin/sublora").unlink()
    grid = {"budgets": [40], "allocations": ["uniform"], "seeds": [1]}
    parent.write("config/config.yaml", yaml.safe_dump(merged(merged(demo_values(), TINY), {"grid": grid})))
    outcome = parent.snakemake("bounds")
    assert outcome.exit_code == 0, outcome.text
    for seed in (7, 8):
        record = json.loads((parent.root / f"results/runs/d40_uniform_seed{seed}/bounds.json").read_text())
        assert record["run"]["seed"] == seed
        assert record["sweep_size"] == 2 and record["code_items"]["arm"] == 1
        assert record["bound_value"] > record["empirical_bpd"]


def test_a_replaced_prefix_is_refused(toy: Toy) -> None:
    parent = parent_of(toy, prefix='replace_prefix: {"results/": "out/"}')
    outcome = parent.snakemake("--dry-run")
    assert outcome.exit_code == 1
    assert outcome.message == [
        "module: replace_prefix would part data/ and results/ from each other; use prefix, which moves both"
    ]


def test_a_wrong_config_of_the_parent_stops_in_one_line(parent: Toy) -> None:
    parent.write_settings(grid=SMALL_GRID, training={"learning_rat": 1.0})
    outcome = parent.snakemake()
    assert outcome.exit_code == 1
    assert outcome.message == [
        "the config of the module: unknown key 'training.learning_rat'; did you mean 'training.learning_rate'?"
    ]


def test_a_tag_of_a_repository_is_a_module_as_well(toy: Toy) -> None:
    """As snakedeploy writes it with github(...): nothing of the workflow lies beside the parent.

    To the bounds: gitfile(...), which needs no internet, cannot run a `script:` in Snakemake 9.27.
    """
    parent = parent_of(toy)
    home = parent.root / "elsewhere/sublora"
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"],
        ["tag", "v1"],
    ):
        subprocess.run(["git", *command], cwd=home, check=True)
    text = (parent.root / "workflow/Snakefile").read_text()
    source = f'gitfile("{home}", path="workflow/Snakefile", tag="v1")'
    parent.write("workflow/Snakefile", text.replace('"../elsewhere/sublora/workflow/Snakefile"', source))
    shutil.rmtree(home / "workflow")
    outcome = parent.snakemake("bounds")
    assert outcome.exit_code == 0, outcome.text
    assert parent.plan("bounds") == {}


def test_the_parent_may_stop_where_there_is_no_gpu(parent: Toy) -> None:
    """`onstart` and `onerror` of a module run where its parent calls them."""
    text = (parent.root / "workflow/Snakefile").read_text()
    hooks = "\nonstart:\n    sublora.onstart()\n\nonerror:\n    sublora.onerror()\n"
    parent.write("workflow/Snakefile", text + hooks)
    assert parent.snakemake("bounds", FAIL="d40_uniform_seed7").text.count("step 8: the loss is not finite") == 1
    parent.write_settings(grid=SMALL_GRID, compute={"device": "cuda"})
    parent.add_command("nvidia-smi", "#!/bin/sh\nexit 9\n")
    outcome = parent.snakemake("bounds")
    assert outcome.exit_code == 1
    assert re.search(
        r"the config of the module: compute.device is cuda and this machine \(\S+\) has no usable GPU", outcome.text
    )
