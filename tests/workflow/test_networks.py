"""Grids that compare what is trained, or sizes: their runs, figures and tables."""

from sublora import config
from workflow.toy import Toy

FOUR = ["lora-kronecker_qr", "lora-identity", "weights-kronecker_feistel", "weights-identity"]
GRID = {"budgets": [40], "allocations": ["uniform", "fixed-0.2"], "seeds": [1, 2]}
COMPARED = {"prepare": 1, "yardsticks": 1, "runs": 1, "tables_of_grid": 1}


def each(count: int, **others: int) -> dict[str, int]:
    return COMPARED | dict.fromkeys(("train", "score", "bound"), count) | others


def test_what_is_trained_is_compared_by_its_own_figure(toy: Toy) -> None:
    """The subspace of LoRA under two allocations, all others under one; a run's command names what it trains."""
    toy.write_settings(grid=GRID | {"trained": FOUR})
    targets = {"trainings": 1, "bounds": 1, "figures": 1, "tables": 1}
    plan = toy.plan()
    assert {rule: n for rule, n in plan.items() if rule not in targets} == each(10, figures_of_grid=1)
    out = "results/runs/weights-identity_dall_uniform_seed2"
    assert toy.snakemake(f"{out}/best_ckpt.pt").exit_code == 0
    assert toy.calls[-1] == (
        "sublora train --config results/settings.yaml --trained weights-identity --budget all --allocation uniform "
        f"--seed 2 --out {out}"
    )


def test_sizes_are_compared_by_their_own_figure(toy: Toy) -> None:
    toy.write_settings(grid=GRID | {"sizes": ["1x2x16", "gpt2"]})
    plan = toy.plan("figures", "tables")
    assert plan == each(8, figures_of_grid=1, figures=1, tables=1)
    settings = config.load_settings(toy.root / "config/config.yaml")
    out = f"results/runs/{settings.grid.runs()[-1].name}"
    assert out == "results/runs/gpt2_d40_fixed-0.2_seed2"
    assert toy.snakemake(f"{out}/best_ckpt.pt").exit_code == 0
    assert "--size gpt2 --budget 40 --allocation fixed-0.2 --seed 2" in toy.calls[-1]


def test_a_grid_without_comparisons_keeps_its_paths_and_commands(toy: Toy) -> None:
    assert toy.snakemake("results/runs/d40_learned_seed1/best_ckpt.pt").exit_code == 0
    assert toy.calls[-1] == (
        "sublora train --config results/settings.yaml --budget 40 --allocation learned --seed 1 "
        "--out results/runs/d40_learned_seed1"
    )
