"""What a grid costs: closed forms, agreement with what the stages really do, and nothing guessed."""

import shutil
from pathlib import Path

import pytest
from conftest import write_settings

from sublora import config
from sublora.data.dataset import TokenDataset
from sublora.models.gpt import GPT
from sublora.runs.bound import bound_run
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.system.errors import UserError
from sublora.tools import plan, throughput


@pytest.fixture(scope="module")
def finished(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and one finished run of the tiny grid, which has 20."""
    root = tmp_path_factory.mktemp("plan") / "root"
    shutil.copytree(tiny_root, root)
    settings = config.load_settings(root / "config/config.yaml")
    run = settings.grid.runs()[0]
    out = root / "results/runs" / run.name
    train_run(settings, run, root=root, out=out)
    score_run(out, root=root)
    bound_run(out)
    return root


def settings_of(root: Path) -> config.Settings:
    return config.load_settings(root / "config/config.yaml")


def run_folder(root: Path) -> Path:
    return root / "results/runs" / settings_of(root).grid.runs()[0].name


def test_hours_follow_from_tokens_and_throughput(finished: Path) -> None:
    settings = settings_of(finished)
    made = plan.make_plan(settings, finished, plan.Throughput(training=100.0, scoring=50.0, source="as given"))
    assert made.runs == 20
    assert made.training_tokens == settings.training.steps * settings.training.tokens_per_step == 2560
    assert made.training_hours == pytest.approx(25.6 / 3600)
    assert made.scoring_hours == pytest.approx(made.scoring_tokens / 50.0 / 3600)
    assert made.gpu_hours == pytest.approx(20 * (made.training_hours + made.scoring_hours))
    assert made.wall_hours(1) == pytest.approx(made.gpu_hours)
    assert made.wall_hours(6) == pytest.approx(4 * (made.training_hours + made.scoring_hours))  # four waves


def test_a_training_on_two_gpus_takes_half_the_time_and_the_same_gpu_hours(finished: Path) -> None:
    settings = settings_of(finished)
    two = settings.model_copy(update={"compute": settings.compute.model_copy(update={"gpus_per_training": 2})})
    throughput = plan.Throughput(100.0, 50.0, "as given")
    one, both = (plan.make_plan(each, finished, throughput) for each in (settings, two))
    assert both.gpu_hours == one.gpu_hours
    trainings = one.runs * one.training_hours / 2
    assert both.wall_hours(2) == pytest.approx(trainings + 10 * one.scoring_hours)
    with pytest.raises(UserError, match="--gpus 1: a training needs 2"):
        both.wall_hours(1)


def test_scoring_tokens_are_those_that_go_through_the_network(finished: Path, tmp_path: Path, monkeypatch) -> None:
    """Counted in the network itself while a run is encoded and scored."""
    shutil.copytree(finished, tmp_path / "root")
    # So few tokens at once that rows without a window, which fill the last batch of each width, hardly count.
    config_path = write_settings(tmp_path / "root", {"compute": {"scoring_batch_tokens": 32}})
    settings, seen = settings_of(finished), []
    original = GPT.hidden

    def counted(self, tokens, *arguments, **options):
        seen.append(tokens.numel())
        return original(self, tokens, *arguments, **options)

    monkeypatch.setattr(GPT, "hidden", counted)
    score_run(run_folder(tmp_path / "root"), config_path=config_path)
    expected = plan.scoring_tokens(settings, TokenDataset.open(finished, settings.data))
    # Documents drawn twice are scored once (50 draws of 240), and batches are padded.
    assert sum(seen) == pytest.approx(expected, rel=0.15)


def test_a_finished_run_gives_the_throughput(finished: Path) -> None:
    settings = settings_of(finished)
    throughput = plan.throughput_of_run(run_folder(finished), settings)
    assert throughput.training > 0 and throughput.scoring > 0 and "measured on a CPU" in throughput.source
    made = plan.make_plan(settings, finished, throughput)
    (size,) = made.measured_run_bytes
    files = [path.stat().st_size for path in run_folder(finished).rglob("*") if path.is_file()]
    assert sum(files) <= size
    assert sum(files) <= made.largest_run_bytes
    other = config.load_settings(write_settings(finished, {"lora": {"rank": 3}}))
    write_settings(finished)
    with pytest.raises(UserError, match="its lora settings differ"):
        plan.throughput_of_run(run_folder(finished), other)


def test_without_data_or_speed_numbers_stay_open(finished: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(throughput, "MEASURE_SECONDS", 0.05)
    path = write_settings(tmp_path)
    plan.print_plan(path)
    text = capsys.readouterr().out
    assert "needs the documents' lengths: sublora prepare" in text
    assert "measured for" in text and "1 CPU thread" in text
    made = plan.make_plan(settings_of(finished), finished, plan.Throughput(100.0, None, "as given"))
    assert made.scoring_hours is None and made.gpu_hours is None and made.wall_hours(1) is None
    plan.print_plan(finished / "config/config.yaml", tokens_per_second=100.0)
    assert "give --scoring-tokens-per-second" in capsys.readouterr().out
