"""`sublora adapt`: from documents and a small Llama to a verified certificate, stopped in between, refused, planned.

The command is that of docs/guide/own_documents.md, with fewer steps, and prints what the page shows.
"""

import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from adapt_samples import write_adapt_inputs
from conftest import REPOSITORY
from killing import exit_status, in_child, killing_itself_at, outcome
from typer.testing import CliRunner
from workflow.toy import Toy

import sublora
from sublora import config
from sublora.cli import app
from sublora.coding.certificate import read_certificate
from sublora.system.errors import UserError
from sublora.tools import throughput
from sublora.tools.adapt import adapt as adapt_module
from sublora.tools.adapt import settings as adapt_settings_module
from sublora.tools.adapt.display import Display
from sublora.tools.adapt.plan import BUDGETS, candidate_budgets, choose_budget, chosen_steps, shortfall
from sublora.tools.adapt.settings import (
    COUNTED,
    AdaptRequest,
    DocumentFacts,
    ModelFacts,
    adapt_settings,
    fixed_revision,
    located,
    peft_targets,
    write_settings_file,
)
from sublora.tools.expected_bound import KnownData
from sublora.tools.throughput import Throughput
from sublora.training import checkpoint

pytest.importorskip("transformers")

DOCUMENTS, STEPS, RUN = 600, 60, "results/runs/d50_uniform_seed42"
PAGE = (REPOSITORY / "docs/guide/own_documents.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```sh\n(sublora adapt [^\n]*)\n```\n\n```text\n(.*?)```", PAGE, re.DOTALL)
"""The page's commands with what they print: the whole one, and the dry run."""
OPTIONS = ["--device", "cpu", "--steps", str(STEPS)]
COMMAND = [*shlex.split(EXAMPLES[0][0])[2:], *OPTIONS]
UNSTATED = [*COMMAND[:3], "--device", "cpu", "--steps", str(STEPS)]
STATED = "the tickets were written after the model was published"
LLAMA = ModelFacts(layers=2, context=64, targets=("q_proj", "v_proj"))


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """One thread, and no long measurement of the speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "MEASURE_SECONDS", 0.1)
        patch.setattr(adapt_settings_module, "_threads", lambda: 1)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory: tickets/documents/ and tickets/model/."""
    folder = tmp_path_factory.mktemp("adapt")
    write_adapt_inputs(folder / "tickets", documents=DOCUMENTS)
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def call(*words: str, command: str = "adapt") -> tuple[int, str, str]:
    """(exit status, stdout, stderr or the error's line)."""
    result = CliRunner().invoke(app, [command, *words])
    if result.exception is not None and not isinstance(result.exception, UserError | SystemExit):
        raise result.exception
    error = str(result.exception) if isinstance(result.exception, UserError) else result.stderr
    return (2 if isinstance(result.exception, UserError) else result.exit_code), result.stdout, error


@pytest.fixture(scope="module")
def finished(place: Path) -> tuple[Path, str, str]:
    """(the folder, stdout, stderr) of the whole command."""
    status, out, err = call(*COMMAND)
    assert status == 0, err
    return place / "tickets", out, err


@pytest.fixture
def copy_of_finished(finished: tuple[Path, str, str], place: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the working directory with the finished folder."""
    shutil.copytree(place / "tickets", tmp_path / "tickets")
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(place)


# The whole command


def test_the_command_ends_with_a_card_and_a_readme_that_say_what_the_bound_says(finished) -> None:
    folder, out, err = finished
    record = json.loads((folder / RUN / "bounds.json").read_text())
    sentence = out.splitlines()[0]
    bound, base, gain = (float(each) for each in re.findall(r"at (?:most|least) ([\d.]+\d)", sentence))
    assert 0.0 <= bound - record["bound_value"] < 1e-3 and 0.0 <= base - record["anchor"]["base_bound"] < 1e-3
    assert gain > 0.0 and 0.0 <= record["certified_gain_bits"] - gain < 1e-3
    n, bits = record["n_units"], math.ceil(record["code_bits"])
    assert "(95 %)" in sentence and f"n = {n:,} texts, message {bits:,} bits." in sentence
    held_out = out.splitlines()[1]
    (gain,) = (float(each) for each in re.findall(r"at least ([\d.]+\d)", held_out))
    assert 0.0 <= record["anchor"]["base_bound"] - record["bound_held_out"] - gain < 2e-3
    page = (folder / "README.md").read_text()
    assert sentence in page and held_out in page and f"fixed without these documents: {STATED}." in page
    assert "Verified on this machine" in page
    # Plain lines, each with its stage.
    lines = err.splitlines()
    assert all(re.match(r"[1-8]/8 \w+: ", line) for line in lines), err
    assert [line for line in lines if re.fullmatch(r"5/8 train: step \d+ of 60, .+ left", line)]
    assert "$ " in (folder / "logs/adapt/train.log").read_text()


def shape(text: str) -> str:
    """Text without its numbers and times."""
    text = re.sub(r"\d[\d,.]*\d|\d", "N", text)
    return re.sub(r"(, about )?N (s|min|h)\b", lambda found: "" if found[1] else "TIME", text)


def test_the_page_shows_what_the_command_prints(finished) -> None:
    assert shape(finished[2] + finished[1]) == shape(EXAMPLES[0][1])


def test_the_command_that_the_readme_names_verifies_the_claim(finished, place) -> None:
    (block,) = re.findall(r"```sh\n(sublora verify .*?)```", (finished[0] / "README.md").read_text(), re.DOTALL)
    os.chdir(finished[0])
    try:
        status, out, err = call(*shlex.split(block)[2:], command="verify")
    finally:
        os.chdir(place)
    assert status == 0 and "verified" in out, (out, err)


def test_the_settings_are_those_that_a_person_would_write(finished) -> None:
    written = yaml.safe_load((finished[0] / "config/config.yaml").read_text())
    statement = dict.fromkeys(("training_cutoff", "document_dates"), "see how_checked") | {"how_checked": STATED}
    assert written == {
        "grid": {"budgets": [50], "allocations": ["uniform"], "seeds": [42]},
        "data": {
            "name": "documents",
            "corpus": {"kind": "folder", "path": "documents"},
            "unit": "document",
            "tokenizer": "base",
            "min_tokens": 10,
            "val_documents": 30,
            "test_documents": 60,
            "workers": 1,
        },
        "base": {"kind": "pretrained", "path": "model", "independence": statement},
        "model": {"kind": "huggingface", "n_layer": 2, "context_length": 64},
        "lora": {"targets": ["q_proj", "v_proj"]},
        "training": {
            "steps": STEPS,
            "tokens_per_step": 512,
            "micro_batch_sequences": 8,
            "learning_rate": 0.02,
            "final_learning_rate": 0.001,
        },
        "compute": {"device": "cpu"},
        "message": {"extra_bits": 0.0},
        "scoring": {
            "documents": "all",
            "sliding_window": 64,
            "anchor_k0": 12,
            "base_documents": "all",
            "val_documents": 30,
            "test_documents": 60,
        },
        "bound": {"delta": 0.05, "delta_sample": 0.045, "delta_base": 0.01},
    }


def test_the_same_command_again_computes_nothing(finished) -> None:
    folder, out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*") if path.is_file()}
    status, again, err = call(*COMMAND)
    assert status == 0 and again == out
    assert err.count("done before") == len(adapt_module.STAGES) and "done in" not in err
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_snakemake_takes_the_folder_as_it_is(finished, place) -> None:
    """It finds the run complete, and would run the other stages of a larger grid on the same data and base."""

    def dry_run(*words: str) -> str:
        done = Toy(place).snakemake("--directory", "tickets", "-n", *words)
        assert done.exit_code == 0, done.text
        return done.text

    (place / "workflow").symlink_to(REPOSITORY / "workflow")
    assert "Nothing to be done" in dry_run("bounds", "results/yardsticks.json")
    larger = dry_run("trainings", "--config", "grid={budgets: [50, 100], allocations: [uniform, learned], seeds: [42]}")
    assert re.search(r"^train +3$", larger, re.MULTILINE) and not re.search("^(prepare|base) ", larger, re.MULTILINE)


# Stopped in between


@pytest.mark.slow
def test_it_goes_on_after_ctrl_c_and_after_a_kill_and_ends_with_the_same_run(finished, place) -> None:
    def start(before_step):
        places = {"model": "tickets/model", "out": "stopped"}
        return sublora.adapt("tickets/documents", **places, device="cpu", steps=STEPS, before_step=before_step)

    def press(step: int) -> None:
        if step == 23:
            signal.raise_signal(signal.SIGINT)

    # The first Ctrl-C saves the state after the step.
    with pytest.raises(KeyboardInterrupt):
        start(press)
    (state,) = (place / "stopped" / RUN / "state").glob("*.pt")
    assert checkpoint.load(state)["history"]["step"] == 24
    # A kill loses the steps since the last save, which is made every 20 steps.
    assert exit_status(in_child(lambda: start(killing_itself_at(47, while_saving=False)))) == -signal.SIGKILL
    assert checkpoint.load(state)["history"]["step"] == 40
    status, out, err = call(*UNSTATED, "--out", "stopped")
    assert status == 0 and "train: goes on at step 40 of 60" in err
    assert err.count("done before") == 4  # prepare, base, plan, yardsticks
    found, wanted = (outcome(place / name / RUN) for name in ("stopped", "tickets"))
    assert found == wanted
    certificates = [read_certificate(place / name / RUN / "certificate.bin") for name in ("stopped", "tickets")]
    assert certificates[0].payload_bytes == certificates[1].payload_bytes
    # Nothing was stated on independence; it may be stated later, and the training is not repeated.
    assert "note: why the model has not read these documents is not stated" in err
    assert "fixed without these documents: not stated." in out
    status, out, err = call(*UNSTATED, "--out", "stopped", "--independence", STATED)
    assert status == 0 and f"fixed without these documents: {STATED}." in out and "note: why" not in err
    assert set(re.findall(r"(\w+): done before", err)) == {"prepare", "base", "plan", "yardsticks", "train"}
    header = read_certificate(place / "stopped" / RUN / "certificate.bin").header
    assert header["settings"]["base"]["independence"]["how_checked"] == STATED


# Planned, and refused


def test_a_dry_run_prints_the_plan_and_decides_nothing(place) -> None:
    status, out, err = call(*shlex.split(EXAMPLES[1][0])[2:], *OPTIONS)
    assert status == 0, err
    assert shape(out) == shape(EXAMPLES[1][1])
    assert re.search(r"^n = 510 texts; the frozen model needs \d\.\d{3} bits per token on val$", out, re.MULTILINE)
    assert "budget d = 50" in out and "a certified gain of" in out and f"time: {STEPS} steps, about" in out
    assert "GiB (measured" in out
    assert (place / "planned/data/documents/meta.json").exists() and (place / "planned/results/base").exists()
    for name in ("config", "README.md", "results/adapt.json", "results/runs", "results/yardsticks.json"):
        assert not (place / "planned" / name).exists()


def test_too_few_documents_are_refused_before_the_training_with_the_n_that_would_do(place, monkeypatch) -> None:
    lines = (place / "tickets/documents/tickets.jsonl").read_text().splitlines()
    (place / "few").mkdir()
    (place / "few/tickets.jsonl").write_text("\n".join(lines[:150]))
    command = ["few/tickets.jsonl", *UNSTATED[1:], "--out", "refused"]
    status, _, line = call(*command)
    assert status == 2 and "\n" not in line
    found = re.fullmatch(
        r"n = 110 documents are too few to certify a gain over the frozen model with any d from 25 to 500: it would "
        r"take about n = ([\d,]+), if adapting gains what it gained in the demo; give more documents, or go on with "
        r"--anyway",
        line,
    )
    assert found is not None, line
    assert 110 < int(found[1].replace(",", "")) < 10_000
    assert not (place / "refused/config").exists() and not (place / "refused/results/runs").exists()

    # With --anyway it would train.
    def ran(job, settings, plan) -> adapt_module.Adapted:
        return adapt_module.Adapted(job.root, plan, "ran")

    monkeypatch.setattr(adapt_module._Job, "run", ran)
    status, out, _ = call(*command, "--anyway")
    assert status == 0 and out == "ran\n" and (place / "refused/config/config.yaml").exists()


def known(base_loss: float, n: int) -> KnownData:
    losses_U = np.random.default_rng(1).normal(base_loss, 0.3, 200)
    return KnownData(n, 50_000, 60.0, losses_U)


def large_settings(**arguments) -> config.Settings:
    request = AdaptRequest("documents", "model", device="cpu", **arguments)
    return adapt_settings(request, LLAMA, DocumentFacts(5000, 200), revision=None, n_units=4250)


SOME_BUDGETS = (25, 250, 2000)


@pytest.mark.slow
def test_more_documents_get_a_larger_budget() -> None:
    settings = large_settings()
    chosen = []
    for n in (300, 100_000):
        data = known(4.0, n)
        choice = choose_budget(settings, data, SOME_BUDGETS, data.base_losses_U)
        assert (shortfall(settings, data, SOME_BUDGETS, choice) is None) == choice.certifies
        chosen.append(choice.prediction.budget)
    assert chosen[0] < chosen[1]


@pytest.mark.slow
def test_the_n_that_would_do_is_the_smallest_at_which_some_budget_pays() -> None:
    settings = large_settings()
    data = known(4.0, 40)
    choice = choose_budget(settings, data, SOME_BUDGETS, data.base_losses_U)
    n = int(re.search(r"about n = ([\d,]+)", shortfall(settings, data, SOME_BUDGETS, choice))[1].replace(",", ""))
    predictions = [choose_budget(settings, data, [d], data.base_losses_U).prediction for d in SOME_BUDGETS]
    assert [any(each.pays_at(count) for each in predictions) for count in (n - 1, n)] == [False, True]


def test_a_model_that_is_worse_than_guessing_is_refused() -> None:
    data = known(17.0, 1000)
    with pytest.raises(UserError, match="guessing among its 50,000 tokens 15.610; give a model that fits"):
        choose_budget(large_settings(), data, BUDGETS, data.base_losses_U)


@pytest.mark.parametrize(
    ("arguments", "rate", "expected"),
    [({}, 1000.0, 300), ({"steps": 20}, 1000.0, 20), ({"hours": 0.5}, 256.0, 225), ({"hours": 9e4}, 1e4, 5000)],
)
def test_steps_follow_from_hours_and_speed(arguments, rate, expected) -> None:
    settings = large_settings(**arguments)
    assert settings.training.tokens_per_step == 2048 // 4  # the context is the model's own, 64
    request = AdaptRequest("documents", "model", **arguments)
    steps = chosen_steps(request, settings, Throughput(rate * 512 / 2048, None, "a test"))
    assert steps == expected


def test_too_few_hours_and_too_large_budgets_are_refused() -> None:
    request = AdaptRequest("documents", "model", hours=0.001)
    with pytest.raises(UserError, match=r"--hours 0.001: enough for 0 steps here \(100 tokens/s\)"):
        chosen_steps(request, large_settings(), Throughput(100.0, None, "a test"))
    with pytest.raises(UserError, match="--budget 900: more than the 448 parameters of the adapters"):
        candidate_budgets(AdaptRequest("documents", "model", budget=900), 448)
    assert candidate_budgets(AdaptRequest("documents", "model"), 448) == (25, 50, 125, 250)


# What settings are derived


def test_splits_scoring_and_context_follow_from_documents_model_and_device() -> None:
    facts = DocumentFacts(COUNTED, 700)
    request = AdaptRequest("documents", "org/model", unit="customer", device="cuda", independence="by dates")
    settings = adapt_settings(request, ModelFacts(30, 2048, ("q",)), facts, revision="a" * 40, n_units=43_000)
    assert (settings.data.val_documents, settings.data.test_documents) == (500, 1000)
    assert settings.data.unit == "source" and settings.data.corpus.unit_field == "customer"
    assert settings.model.context_length == 1024 and settings.scoring.documents == 10_000
    assert settings.bound.delta_excess_sample == 0.036 and settings.base.revision == "a" * 40
    assert settings.base.independence.how_checked == "by dates"
    on_cpu = adapt_settings(AdaptRequest("a", "b", device="cpu"), LLAMA, DocumentFacts(150, 30), revision=None)
    assert (on_cpu.data.val_documents, on_cpu.data.test_documents, on_cpu.model.context_length) == (20, 20, 32)


@pytest.mark.parametrize("name", ["demo/config/config.yaml", "config/config.yaml", "config/smollm2.yaml"])
def test_a_settings_file_without_defaults_says_the_same(name, tmp_path) -> None:
    settings = config.load_settings(REPOSITORY / name)
    write_settings_file(settings, tmp_path / "config.yaml")
    assert config.load_settings(tmp_path / "config.yaml") == settings
    # Every key is needed: without it the file is refused, or means something else.
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    for section, keys in written.items():
        for key in keys:
            fewer = written | {section: {name: value for name, value in keys.items() if name != key}}
            try:
                assert config.parse_settings(fewer, source="fewer") != settings, key
            except UserError:
                continue


def test_targets_are_those_of_peft_or_are_asked_for(monkeypatch) -> None:
    assert peft_targets("llama") == ("q_proj", "v_proj") and peft_targets("gpt_neox") == ("query_key_value",)
    for kind in ("gemma4", "unheard_of"):  # a regular expression, and nothing
        with pytest.raises(UserError, match=f"no list of maps to adapt for models of type {kind}; name them"):
            peft_targets(kind)
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.delitem(sys.modules, "peft.utils", raising=False)
    with pytest.raises(UserError, match=r"pip install 'sublora\[hf\]', or name them with --targets"):
        peft_targets("llama")


def test_a_model_of_the_hub_is_named_with_its_commit(place, tmp_path, monkeypatch) -> None:
    """A branch may move while the stages run."""
    snapshot = tmp_path / "snapshots" / ("0123456789" * 4)
    monkeypatch.setattr("sublora.tools.adapt.settings.pretrained_folder", lambda model, revision, root: snapshot)
    documents = Path("tickets/documents")
    assert located(documents, "org/model", "main", Path("new")) == ("../tickets/documents", "org/model")
    assert fixed_revision("org/model", "main", tmp_path) == (snapshot, snapshot.name)
    # A folder has no revision.
    assert located(documents, "tickets/model", None, Path("new"))[1] == "../tickets/model"
    monkeypatch.setattr("sublora.tools.adapt.settings.pretrained_folder", lambda model, revision, root: root / model)
    assert fixed_revision("../tickets/model", None, place / "new") == (place / "new/../tickets/model", None)


# Errors


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "nowhere: no such file or folder; give the documents' file or folder"),
        (["tickets/documents", "--out", "tickets/documents/new"], "lies in the folder of the documents"),
        (
            ["tickets/documents", "--model", "./nothing"],
            "--model ./nothing: no such folder; expected a folder with",
        ),
        (["tickets/documents", "--model", "ten/tickets.jsonl"], "--model ten/tickets.jsonl: a file; expected"),
        (
            ["tickets/documents", "--model", "ten"],
            "expected config.json and safetensors, or one .gguf file; give",
        ),
        (
            ["tickets/documents", "--revision", "main"],
            "--revision main: tickets/model is a folder, which has no revisions",
        ),
        (["tickets/documents", "--hours", "1", "--steps", "50"], "--hours and --steps: give one of them"),
        (["tickets/documents", "--hours", "-1"], "--hours -1: expected more than 0"),
        (["tickets/documents", "--steps", "3"], "--steps 3: expected at least 10"),
        (["tickets/documents", "--budget", "0"], "--budget 0: expected at least 1"),
        (["tickets/documents", "--independence", " "], "--independence: blank; say in words"),
        (["tickets/documents", "--text", "body"], "no key 'body', found 'text', 'customer'; fix --text"),
        (["tickets/documents", "--unit", "author"], "no key 'author', found 'text', 'customer'; fix --unit"),
        (["ten"], "10 distinct documents of at least 10 tokens (10 of any length), expected at least 100"),
        (["tickets/documents", "--targets", "nothing_like_it"], "lora.targets: "),
    ],
)
def test_every_error_is_one_line(place, words, line) -> None:
    ten = place / "ten"
    if not ten.exists():
        ten.mkdir()
        lines = (place / "tickets/documents/tickets.jsonl").read_text().splitlines()
        (ten / "tickets.jsonl").write_text("\n".join(lines[:10] * 3))
    options = [("--model", "tickets/model"), ("--out", "erroneous"), ("--device", "cpu")]
    words = [*words, *(word for pair in options if pair[0] not in words for word in pair)]
    status, _, found = call(*words)
    assert status == 2 and line in found and "\n" not in found, found
    assert not (place / "erroneous/config").exists()


def test_a_folder_that_holds_something_else_is_left_alone(copy_of_finished, finished) -> None:
    status, _, line = call(*COMMAND[:-1], "61")
    assert status == 2 and "(steps: 60 there, 61 here); give another folder with --out" in line
    # Documents that have changed.
    path = copy_of_finished / "tickets/documents/tickets.jsonl"
    path.write_text(path.read_text() + '\n{"text": "one more", "customer": "new"}')
    status, _, line = call(*COMMAND)
    assert status == 2 and "the documents have changed since" in line
    # Files that were there before.
    for name in ("config/config.yaml", "README.md"):
        target = copy_of_finished / "own" / name
        target.parent.mkdir(parents=True)
        target.write_text("mine")
        status, _, line = call(*UNSTATED, "--out", "own")
        assert status == 2 and f"{name}: not written by sublora adapt" in line and target.read_text() == "mine"
        shutil.rmtree(copy_of_finished / "own")
    # A damaged state.
    state = copy_of_finished / "tickets/results/adapt.json"
    for text in ("{", "{}", '{"format": 1, "request": {}, "plan": {}, "stages": {}}'):
        state.write_text(text)
        status, _, line = call(*COMMAND)
        assert status == 2 and "adapt.json" in line and "\n" not in line


# The display


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_a_bar_for_each_stage_and_notes_are_shown_once(tmp_path, monkeypatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Display(("base", "train"), tmp_path) as display:
        display.skip("base")
        for _ in range(2):
            with display.stage("train", "20 steps", steps=20) as advance:
                for step in range(8, 20):
                    advance(step)
                print("$ a start line\nnote: 3 files are not read", file=sys.stderr)
                kept = sys.stderr
    print("written later", file=kept)
    text = terminal.getvalue()
    assert "1/2 base" in text and "done before" in text and "2/2 train" in text
    assert text.count("note: 3 files are not read") == 1 and "$ a start line" not in text and "written later" in text
    assert (tmp_path / "train.log").read_text().count("$ a start line") == 2


def test_the_time_left_of_a_resumed_training_counts_its_own_steps_alone(tmp_path, monkeypatch, capsys) -> None:
    now = [100.0]
    monkeypatch.setattr("sublora.tools.adapt.display.time.monotonic", lambda: now[0])
    with Display(("train",), tmp_path) as display, display.stage("train", "training", steps=100, seconds=50) as advance:
        for step in range(40, 100):
            advance(step)
            now[0] += 2.0
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "1/1 train: training, about 50 s",
        "1/1 train: goes on at step 40 of 100",
        "1/1 train: step 50 of 100, 2 min left",
    ]
    assert "1/1 train: step 90 of 100, 20 s left" in lines and lines[-1] == "1/1 train: done in 2 min"


def test_a_stage_that_fails_leaves_stderr_as_it_was(tmp_path, capsys) -> None:
    before = sys.stderr
    with pytest.raises(UserError), Display(("base",), tmp_path) as display, display.stage("base", "importing"):
        raise UserError("no model")
    assert sys.stderr is before and capsys.readouterr().err == "1/1 base: importing\n"
