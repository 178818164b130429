"""What runs, and what runs again: exactly the jobs whose numbers may have changed."""

import re
from pathlib import Path

import pytest
import yaml

from workflow.toy import REPOSITORY, SMALL_GRID, SMALL_GRID_RUNS, Toy

EVERY_SCORE = {"score": SMALL_GRID_RUNS, "bound": SMALL_GRID_RUNS}
EVERY_RUN = {"train": SMALL_GRID_RUNS} | EVERY_SCORE
YARDSTICKS = {"yardsticks": 1}
PACKAGES = {"kind": "docstrings", "packages": ["numpy"]}
OPTIMIZATION = {
    **{"steps": 10, "tokens_per_step": 1024, "micro_batch_sequences": 1, "eval_interval_steps": 5},
    **{"learning_rate": 0.01, "final_learning_rate": 0.001, "warmup_fraction": 0.1, "betas": [0.9, 0.95]},
    **{"epsilon": 1.0e-8, "weight_decay": 0.1, "gradient_clip": 1.0, "eval_sequences": 4},
    **{"log_interval_steps": 1, "save_interval_steps": 5},
}
TRAINED = OPTIMIZATION | {
    **{"kind": "trained", "name": "apart", "corpus": PACKAGES},
    **{"min_characters": 1, "val_documents": 5, "seed": 1, "threads": 1},
}
PRETRAINED = {
    **{"kind": "pretrained", "path": "models/small", "revision": None},
    "independence": {"training_cutoff": "2017", "document_dates": "2024", "how_checked": "by their dates"},
}


def stages(plan: dict[str, int]) -> dict[str, int]:
    """The planned jobs without tables and figures."""
    rules = ("prepare", "base", "scales", "yardsticks", "train", "score", "bound")
    return {rule: count for rule, count in plan.items() if rule in rules}


@pytest.mark.slow
def test_the_full_reproduction_is_thirty_runs(toy: Toy) -> None:
    toy.write("config/config.yaml", (REPOSITORY / "config/config.yaml").read_text())
    assert stages(toy.plan()) == {"prepare": 1, "yardsticks": 1, "train": 30, "score": 30, "bound": 30}
    one_budget = {"prepare": 1, "yardsticks": 1, "train": 15, "score": 15, "bound": 15, "runs_of_budget": 1}
    assert toy.plan("results/figures/compression_d1000.png") == one_budget | {"figures_of_budget": 1}


def test_the_demo_is_the_same_workflow_in_its_own_folder(toy: Toy) -> None:
    in_demo = ("--profile", "profiles/demo")
    once = {"prepare": 1, "base": 1, "scales": 1, "yardsticks": 1}
    assert stages(toy.plan(*in_demo)) == once | {"train": 30, "score": 30, "bound": 30}
    target = "results/runs/d1000_learned_seed42/best_ckpt.pt"
    assert toy.snakemake(*in_demo, target).exit_code == 0
    assert (toy.root / "demo" / target).exists()
    assert not (toy.root / "results").exists()


def test_a_finished_workflow_has_nothing_to_do(finished: Toy) -> None:
    outcome = finished.snakemake()
    assert outcome.exit_code == 0
    assert "Nothing to be done" in outcome.text
    assert len(finished.calls) == 2 + 3 * SMALL_GRID_RUNS


def test_jobs_call_the_command_line(finished: Toy) -> None:
    folder = "results/runs/d40_fixed-0.2_seed1"
    for command in (
        "sublora prepare --config results/settings.yaml",
        "sublora yardsticks --config results/settings.yaml",
        f"sublora train --config results/settings.yaml --budget 40 --allocation fixed-0.2 --seed 1 --out {folder}",
        f"sublora score {folder} --config results/settings.yaml",
        f"sublora bound {folder} --config results/settings.yaml",
    ):
        assert finished.calls.count(command) == 1


def test_every_job_has_a_log_and_a_benchmark(finished: Toy) -> None:
    jobs = sum(finished.plan("--forceall").values())
    for suffix in (".log", ".benchmark.tsv"):
        # Copies of the logs of earlier starts have a number before their suffix.
        found = [
            path for path in (finished.root / "logs").rglob(f"*{suffix}") if not re.search(r"\.\d+\.log$", path.name)
        ]
        assert len(found) == jobs, sorted(map(str, found))


@pytest.mark.parametrize("name", ["best_ckpt.pt", "metrics.csv", "gating_trace.csv"])
def test_a_deleted_training_output_reruns_one_run_and_what_hangs_on_it(finished: Toy, name: str) -> None:
    (finished.root / "results/runs/d40_learned_seed1" / name).unlink()
    plan = finished.plan()
    assert stages(plan) == {"train": 1, "score": 1, "bound": 1}
    assert plan["figures_of_budget"] == 1  # the other budget's stay
    assert plan["runs"] == plan["tables_of_grid"] == plan["figures_of_grid"] == 1


@pytest.mark.parametrize("name", ["results/runs.csv", "results/runs_d40.csv"])
def test_a_deleted_table_between_results_is_made_again(finished: Toy, name: str) -> None:
    (finished.root / name).unlink()
    outcome = finished.snakemake()
    assert outcome.exit_code == 0 and (finished.root / name).exists(), outcome.text
    assert not outcome.jobs.keys() & {"train", "score", "bound"}


@pytest.mark.parametrize(("name", "rerun"), [("losses.npz", {"score": 1, "bound": 1}), ("bounds.json", {"bound": 1})])
def test_a_deleted_later_output_retrains_nothing(finished: Toy, name: str, rerun: dict[str, int]) -> None:
    (finished.root / "results/runs/d60_uniform_seed1" / name).unlink()
    assert stages(finished.plan()) == rerun


@pytest.mark.parametrize(
    ("section", "keys", "rerun"),
    [
        ("training", {"learning_rate": 0.0123}, EVERY_RUN),
        ("data", {"min_characters": 173}, {"prepare": 1} | YARDSTICKS | EVERY_RUN),
        ("bound", {"delta": 0.123}, YARDSTICKS | EVERY_SCORE),
        ("message", {"extra_bits": 3.0}, EVERY_SCORE),
        ("training", {"log_interval_steps": 7}, {}),
    ],
)
def test_a_changed_setting_reruns_the_stages_it_reaches(
    finished: Toy, section: str, keys: dict[str, object], rerun: dict[str, int]
) -> None:
    """One setting of each stage; which stages every other one reaches is in test_config.py, without a workflow."""
    before = finished.settings
    finished.write_settings(**{"grid": SMALL_GRID, section: keys})
    assert finished.settings != before
    plan = finished.plan()
    assert stages(plan) == rerun
    assert bool(rerun) == ("figures_of_budget" in plan)


def test_the_layout_of_the_settings_file_is_no_change(finished: Toy) -> None:
    path = finished.root / "config/config.yaml"
    values = yaml.safe_load(path.read_text())
    path.write_text("# a comment\n" + yaml.safe_dump(dict(reversed(values.items())), default_flow_style=True))
    assert finished.plan() == {}


def test_a_dry_run_says_which_setting_differs(finished: Toy) -> None:
    finished.write_settings(grid=SMALL_GRID, training={"learning_rate": 0.0123})
    text = finished.snakemake("--dry-run").text
    assert re.search(r"before: 'training\.learning_rate: [\d.]+' now: 'training\.learning_rate: 0\.0123'", text)


@pytest.mark.parametrize(
    ("stage", "rerun"),
    [
        ("data", {"prepare": 1} | YARDSTICKS | EVERY_RUN),
        ("base", {}),
        ("train", EVERY_RUN),
        ("score", EVERY_SCORE),
        ("yardsticks", YARDSTICKS),
        ("bound", {"bound": SMALL_GRID_RUNS}),
        ("figures", {}),
    ],
)
def test_a_new_numerics_version_reruns_its_stage(finished: Toy, stage: str, rerun: dict[str, int]) -> None:
    plan = finished.plan(numerics={stage: 1000})
    assert stages(plan) == rerun
    assert plan.get("figures_of_budget", 0) == (0 if stage == "base" else 2)


def test_a_new_rule_for_units_leaves_documents_as_they_are(finished: Toy) -> None:
    assert finished.plan(units_version=1000) == {}


def test_a_new_rule_for_units_prepares_data_in_units_again(toy: Toy) -> None:
    without_sources = {"sources": None, "base_sources": None}
    toy.write_settings(grid=SMALL_GRID, data={"unit": "source"}, scoring=without_sources)
    assert toy.snakemake("--until", "prepare").exit_code == 0
    assert "prepare" not in toy.plan()
    assert toy.plan(units_version=1000)["prepare"] == 1


def test_a_new_seed_trains_only_the_new_runs_but_all_pay_for_the_larger_sweep(finished: Toy) -> None:
    finished.write_settings(grid=SMALL_GRID | {"seeds": [1, 2]})
    twice = 2 * SMALL_GRID_RUNS
    assert stages(finished.plan()) == {"train": SMALL_GRID_RUNS, "score": twice, "bound": twice}


def test_an_edited_script_makes_again_what_it_makes(finished: Toy) -> None:
    script = finished.root / "workflow/scripts/tables.py"
    script.write_text(script.read_text() + "# wider columns\n")
    assert finished.plan() == {"tables_of_grid": 1, "html_report": 1}


def test_another_function_redraws_the_figures_of_its_kind(finished: Toy) -> None:
    """As the table of figures names it; figures of one budget are drawn together, those of the grid stay."""
    rules = finished.root / "workflow/rules/figures.smk"
    changed = rules.read_text().replace('"Loss against KL", "tradeoff"', '"Loss against KL", "another_module"')
    assert changed != rules.read_text()
    rules.write_text(changed)
    assert finished.plan() == {"figures_of_budget": 2, "html_report": 1}


def test_a_figure_is_a_line_of_the_table(finished: Toy) -> None:
    rules = finished.root / "workflow/rules/figures.smk"
    row = '    Figure("residuals", "Residuals", "training", "metrics", "budget", ALLOCATIONS),\n'
    rules.write_text(re.sub(r"(FIGURES = \[\n)", rf"\1{row}", rules.read_text()))
    finished.write("workflow/report/residuals.rst", "**Residuals.** Of what.\n")
    assert finished.plan() == {"figures_of_budget": 2, "html_report": 1}


def test_an_edited_caption_rewrites_only_the_page(finished: Toy) -> None:
    caption = finished.root / "workflow/report/pareto.rst"
    caption.write_text(caption.read_text() + "More words.\n")
    assert finished.plan() == {"html_report": 1}


def test_the_page_waits_for_near_duplicates_where_the_settings_ask_for_them(finished: Toy) -> None:
    """Once they are measured the page keeps them up to date, whatever the settings say."""
    finished.write_settings(grid=SMALL_GRID, data={"near_duplicates": True})
    assert finished.plan() == {"near_duplicates_in_data": 1, "near_duplicates": 1, "html_report": 1}
    assert finished.snakemake().exit_code == 0
    finished.write_settings(grid=SMALL_GRID)
    assert finished.plan() == {}
    finished.write("results/near_duplicates.json", "other")
    assert finished.plan() == {"html_report": 1}


def test_another_name_of_the_settings_file_is_no_change(finished: Toy) -> None:
    (finished.root / "config/mine.yaml").write_text((finished.root / "config/config.yaml").read_text())
    assert finished.plan("--configfile", "config/mine.yaml") == {}


@pytest.mark.slow
def test_preparing_the_same_data_again_retrains_nothing(finished: Toy) -> None:
    again = ("--forcerun", "prepare", "--until", "prepare")
    assert finished.snakemake(*again).exit_code == 0
    assert finished.plan() == {}
    assert finished.snakemake(*again, DATA_CONTENT="second").exit_code == 0
    assert stages(finished.plan()) == YARDSTICKS | EVERY_RUN


def test_finished_runs_do_not_need_the_data(finished: Toy) -> None:
    for path in (finished.root / "data").rglob("*.*"):
        path.unlink()
    assert finished.plan() == {}


def test_a_grid_without_the_learned_arm_has_no_gate_figures(toy: Toy) -> None:
    toy.write_settings(grid=SMALL_GRID | {"allocations": ["uniform", "fixed-0.2"]})
    plan = toy.plan()
    assert stages(plan) == {"prepare": 1, "yardsticks": 1, "train": 4, "score": 4, "bound": 4}
    assert plan["figures_of_budget"] == 2
    planned = toy.snakemake("--dry-run").text
    assert "results/figures/pareto_d40.png" in planned and "results/figures/gating" not in planned


def test_a_larger_grid_needs_no_code(toy: Toy) -> None:
    ratios = [f"fixed-{ratio}" for ratio in (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)]
    toy.write_settings(grid={"budgets": [250, 500, 1000, 2000], "allocations": ratios, "seeds": [1, 2]})
    plan = toy.plan()
    assert stages(plan) == {"prepare": 1, "yardsticks": 1, "train": 56, "score": 56, "bound": 56}
    assert plan["figures_of_budget"] == 4
    assert plan["figures_of_grid"] == plan["tables_of_grid"] == plan["html_report"] == 1


def on_a_base(toy: Toy, base: dict[str, object], **changes: object) -> Toy:
    toy.write_settings(grid=SMALL_GRID, base=base | changes)
    return toy


@pytest.fixture(scope="module", params=["trained", "pretrained"])
def finished_on_a_base_once(request, tmp_path_factory) -> tuple[Toy, dict[str, object]]:
    base = {"trained": TRAINED, "pretrained": PRETRAINED}[request.param]
    toy = on_a_base(Toy.build(tmp_path_factory.mktemp("base") / "toy"), base)
    outcome = toy.snakemake("bounds", "yardsticks")
    assert outcome.exit_code == 0, outcome.text
    return toy, base


@pytest.fixture
def finished_on_a_base(finished_on_a_base_once, tmp_path: Path) -> tuple[Toy, dict[str, object]]:
    toy, base = finished_on_a_base_once
    return toy.copy(tmp_path / "toy"), base


def plan_of_runs(toy: Toy, **options: object) -> dict[str, int]:
    return stages(toy.plan("bounds", "yardsticks", **options))


def test_a_base_is_made_once_before_any_training(finished_on_a_base) -> None:
    toy, base = finished_on_a_base
    commands = [call.split()[1] for call in toy.calls]
    assert commands.count("base") == commands.count("prepare") == 1
    made = commands.index("base")
    assert made < commands.index("train") and made < commands.index("yardsticks")
    assert "sublora base --config results/settings.yaml --out results/base" in toy.calls
    if base is TRAINED:
        assert commands.index("prepare") < made
        assert (toy.root / "data/apart/meta.json").exists()
    assert plan_of_runs(toy) == {}


def test_other_settings_of_the_base_reach_its_stages(finished_on_a_base) -> None:
    toy, base = finished_on_a_base
    everything = {"base": 1} | YARDSTICKS | EVERY_RUN
    changed = {"steps": 20} if base is TRAINED else {"path": "models/other"}
    assert plan_of_runs(on_a_base(toy, base, **changed)) == everything
    if base is TRAINED:
        corpus = {"corpus": PACKAGES | {"packages": ["scipy"]}}
        assert plan_of_runs(on_a_base(toy, base, **corpus)) == {"prepare": 1} | everything
        assert plan_of_runs(on_a_base(toy, base, log_interval_steps=7)) == {}
    else:
        words = {"independence": PRETRAINED["independence"] | {"how_checked": "by hand"}}
        assert plan_of_runs(on_a_base(toy, base, **words)) == EVERY_SCORE
    assert plan_of_runs(on_a_base(toy, base), numerics={"base": 1000}) == everything


@pytest.mark.slow
@pytest.mark.parametrize("finished_on_a_base_once", ["trained"], indirect=True)
def test_scales_are_measured_once_for_all_exponents(finished_on_a_base) -> None:
    """Another exponent trains again without measuring again; other matrices or another kind are measured again."""
    toy, base = finished_on_a_base

    def plan_with(scale: str | None, **lora: object) -> dict[str, int]:
        toy.write_settings(grid=SMALL_GRID, base=base, subspace={"scale": scale}, lora=lora)
        return plan_of_runs(toy)

    assert plan_with(None) == {}
    assert plan_with("gradient(-0.5)") == {"scales": 1} | YARDSTICKS | EVERY_RUN
    assert toy.snakemake("bounds", "yardsticks").exit_code == 0
    commands = [call.split()[1] for call in toy.calls]
    assert commands.count("scales") == 1 and commands.count("base") == 1
    assert plan_with(" gradient(-.50)") == {}
    assert plan_with("gradient(-0.25)") == EVERY_RUN
    assert plan_with("fisher(-0.25)") == {"scales": 1} | YARDSTICKS | EVERY_RUN
    assert plan_with("gradient(-0.5)", rank=2) == {"scales": 1} | YARDSTICKS | EVERY_RUN


@pytest.mark.slow
def test_the_hash_of_the_base_decides_whether_runs_are_trained_again(finished_on_a_base) -> None:
    """base.json says it; a base that is made again and is the same one retrains nothing, nor does its file's date."""
    toy, _ = finished_on_a_base
    (toy.root / "results/base/base.safetensors").touch()
    assert plan_of_runs(toy) == {}
    again = ("--forcerun", "base", "--until", "base")
    assert toy.snakemake(*again).exit_code == 0
    assert plan_of_runs(toy) == {}
    assert toy.snakemake(*again, BASE_CONTENT="second").exit_code == 0
    assert plan_of_runs(toy) == YARDSTICKS | EVERY_RUN


def test_another_kind_of_base_is_another_training(finished_on_a_base) -> None:
    toy, base = finished_on_a_base
    found = plan_of_runs(on_a_base(toy, {"kind": "random"}))
    # Documents that were dropped for the trained base come back.
    assert found == ({"prepare": 1} if base is TRAINED else {}) | YARDSTICKS | EVERY_RUN


def test_a_failed_training_keeps_its_state_and_leaves_no_output(toy: Toy) -> None:
    folder = toy.root / "results/runs/d40_learned_seed1"
    outcome = toy.snakemake("--keep-going", "bounds", FAIL=folder.name)
    assert outcome.exit_code == 1
    assert f"logs/train/{folder.name}.log: step 8: the loss is not finite" in outcome.text
    assert (folder / "state/state.pt").read_text() == "step 7\n"
    assert not (folder / "best_ckpt.pt").exists()
    assert stages(toy.plan("bounds")) == {"train": 1, "score": 1, "bound": 1}
    assert toy.snakemake("bounds").exit_code == 0
    assert (folder / "best_ckpt.pt").read_text() == "toy best_ckpt.pt\n"


def test_a_killed_workflow_does_not_accept_half_an_output(finished: Toy) -> None:
    """Snakemake marks outputs of running jobs; what a kill leaves behind is made again."""
    path = finished.root / "results/runs/d40_uniform_seed1/best_ckpt.pt"
    marker = _incomplete_marker(finished.root, path.relative_to(finished.root))
    marker.parent.mkdir(exist_ok=True)
    marker.touch()
    refused = finished.snakemake("--dry-run")
    assert refused.exit_code != 0
    assert "--rerun-incomplete" in refused.text
    assert stages(finished.plan("--rerun-incomplete")) == {"train": 1, "score": 1, "bound": 1}


def test_what_finished_while_nobody_looked_can_be_kept(finished: Toy) -> None:
    """As docs/cluster.md says for jobs that outlive a killed main process: all of a run's outputs are marked."""
    run = Path("results/runs/d40_uniform_seed1")
    outputs = [str(run / name) for name in ("best_ckpt.pt", "metrics.csv", "gating_trace.csv")]
    for output in outputs:
        marker = _incomplete_marker(finished.root, Path(output))
        marker.parent.mkdir(exist_ok=True)
        marker.touch()
    assert stages(finished.plan("--rerun-incomplete"))["train"] == 1
    assert finished.snakemake("--cleanup-metadata", *outputs).exit_code == 0
    assert "train" not in finished.plan("--rerun-incomplete")


def _incomplete_marker(root: Path, path: Path) -> Path:
    from base64 import urlsafe_b64encode

    return root / ".snakemake/incomplete" / urlsafe_b64encode(str(path).encode()).decode()
