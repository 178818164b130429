"""The benchmarks at a tiny size: they run, and product and reference compute the same."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is not installed

from benchmarks import __main__ as command
from benchmarks import alternatives, coding, evaluation, growth, hardware, profiling, reference, synthetic, training
from benchmarks.flops import model_flops
from sublora import config
from sublora.bounds.smoothing import DocumentMixture, TokenSmoothing
from sublora.losses import TOP_K
from sublora.losses.documents import score_documents
from sublora.runs.build import build_run
from sublora.system.streams import generator

MODEL = {"kind": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 64, "init_std": 0.05}
SECTIONS = {
    "model": MODEL,
    "data": {"tokenizer": "bytes"},
    "lora": {"dropout": 0.0},
    "compute": {"dtype": "float32", "compile": False},
    "scoring": {"sliding_window": 10},
    "training": {"warmup_fraction": 0.0},
    "message": {"quantizer": "entropy"},
}
TRAINING = training.Size(
    micro_batch_sequences=2,
    micro_batches=2,
    reference_micro_batch_sequences=1,
    warmup_steps=1,
    product_steps=1,
    reference_steps=1,
    repetitions=2,
    context_length=64,
    train_documents=30,
    held_out_documents=4,
    variants=tuple(training.VARIANTS),
)
SMOOTHING = (TokenSmoothing(0.1), TokenSmoothing(0.5), DocumentMixture(1), DocumentMixture(8))
EVALUATION = evaluation.Size(
    documents=12,
    compared_documents={10: 3, 64: 4},
    reference_windows=4,
    scoring_batch_tokens=None,
    repetitions=2,
)


@pytest.fixture(scope="module")
def machine():
    torch.set_num_threads(1)
    return hardware.this_machine(1, use_gpu=False)


@pytest.fixture(scope="module")
def case(machine, tmp_path_factory):
    """(settings, dataset) with windows of one document and of several."""
    settings = training.settings_for(
        machine, sections=SECTIONS, held_out_documents=4, tokens_per_step=256, micro_batch_sequences=2
    )
    lengths = synthetic.document_lengths(40, mean_tokens=100)
    return settings, synthetic.write_random_dataset(tmp_path_factory.mktemp("random"), settings.data, lengths)


@pytest.mark.parametrize("smoothing", ["token(0.1)", "document(1)", "document(8)"])
def test_reference_and_product_train_alike(machine, case, tmp_path, smoothing):
    settings, dataset = case
    settings = settings.model_copy(
        update={"rate_phase": settings.rate_phase.model_copy(update={"smoothing": smoothing})}
    )
    product = training.trainer_of(settings, training.RUN, dataset, machine, tmp_path)
    plain = reference.ReferenceTrainer(settings, training.RUN, dataset, machine.device)
    for step in range(3):
        product._step(step)
        plain.step(step)
        ours, theirs = (s.subspace_params.grad.double() for s in (product.run.subspace, plain.subspace))
        assert theirs.norm() > 1e-6
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()
    assert product._loss_sum.item() == pytest.approx(plain.loss_sum.item(), rel=1e-6)


def test_reference_and_product_score_alike(machine, case, tmp_path):
    settings, dataset = case
    run = build_run(settings, training.RUN, dataset, tmp_path, machine.device)
    w = generator("test w").standard_normal(training.RUN.budget).astype(np.float32)
    documents = [dataset.document("train", i) for i in range(dataset.n_documents)]
    assert max(map(len, documents)) > 64 > min(map(len, documents))
    ours = score_documents(run.decoded(w, ()), documents, run.scoring_rule, run.device)
    network = reference.PlainGPT(settings, dataset.vocab_size, training.RUN.seed)
    with torch.no_grad():
        theta = run.subspace.theta(torch.from_numpy(w))
    losses, ranks = reference.score_documents(
        network,
        theta,
        documents,
        eot_id=dataset.eot_id,
        stride=settings.scoring.sliding_window,
        smoothing=SMOOTHING,
        windows_at_once=3,
    )
    np.testing.assert_allclose(ours.losses_DA(SMOOTHING, dataset.vocab_size), losses, atol=1e-5)
    parts = np.split(ranks, np.cumsum(ours.counts_D)[:-1])
    for column, k in enumerate(TOP_K):
        errors = [(part >= k).mean() for part in parts]
        # A near tie may fall the other way.
        assert np.abs(ours.topk_errors_DK()[:, column] - errors).max() <= 1 / ours.counts_D.min()


def test_lengths_are_those_of_the_distribution():
    lengths = synthetic.document_lengths(10_000)
    assert lengths.mean() == pytest.approx(synthetic.OPENWEBTEXT_MEAN_TOKENS, rel=0.01)
    assert np.log(lengths).std() == pytest.approx(synthetic.LENGTH_SIGMA, rel=0.01)
    few = synthetic.evenly_spread([np.zeros(n) for n in lengths], 4)
    assert [len(part) for part in few] == lengths[[1250, 3750, 6250, 8750]].tolist()


def test_flops_of_a_training_are_four_times_the_parameters():
    model = config.Model(kind="gpt2", n_layer=12, n_head=12, n_embd=768, context_length=1024, init_std=0.02)
    matrices, tokens = 12 * 12 * 768**2 + 50257 * 768, 8 * 1024
    without_attention = model_flops(model, 50257, [1] * tokens, tokens, training=True)
    assert without_attention == pytest.approx(4 * matrices * tokens, rel=1e-3)
    # Attention: both products of the forward pass, half of them masked, and twice as much backward.
    attention = 3 * 12 * 8 * (2 * 2 * 1024 * 1024 * 768) / 2
    with_attention = model_flops(model, 50257, [1024] * 8, tokens, training=True)
    assert with_attention == pytest.approx(4 * matrices * tokens + attention, rel=1e-6)
    scored = model_flops(model, 50257, [1024], 100, training=False)
    assert scored == pytest.approx(2 * (12 * 12 * 768**2 * 1024 + 50257 * 768 * 100) + attention / 3 / 8)


@pytest.mark.slow
def test_the_command_writes_and_prints_everything(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(training, "CPU", TRAINING)
    monkeypatch.setattr(evaluation, "CPU", EVALUATION)
    monkeypatch.setattr(coding, "REPETITIONS", 1)
    monkeypatch.setattr(command, "sections_of", lambda given: SECTIONS)
    monkeypatch.setattr(hardware, "matmul_peak", lambda machine: {"float32": 1e11, "bfloat16": 1e10})
    out = tmp_path / "results.json"
    command.main(["training", "evaluation", "coding", "--cpu", "--threads", "1", "--out", str(out)])
    results = json.loads(out.read_text())
    assert set(results) == {"machine", "started", "parts"}
    assert {"name", "cpu", "threads", "versions", "matmul_peak_flop_per_second"} <= set(results["machine"])
    assert set(results["parts"]) == {"training", "evaluation", "coding"}
    rows = [results["parts"]["training"], *results["parts"]["evaluation"]["strides"].values()]
    for row in rows:
        assert len(row["ratio_repetitions"]) == 2
        for side in ("product", "reference"):
            assert row[side]["tokens_per_second"] > 0 < row[side]["flop_per_second"]
            assert {"dtype", "memory_mib", "warmup_seconds"} <= set(row[side])
            assert row[side]["share_of_matmul_peak"] == pytest.approx(row[side]["flop_per_second"] / 1e11)
    for row in rows[1:]:
        assert row["largest_difference_of_a_document_loss_bits"] < 1e-5
        assert row["all"]["documents"] >= 12 and row["all"]["seconds"] > 0
    assert min(results["parts"]["training"]["variants_tokens_per_second"].values()) > 0
    assert results["parts"]["training"]["settings"]["model"] == MODEL
    assert results["parts"]["coding"]["entropy"]["1000"]["payload_bits"] > 1000
    shown = capsys.readouterr().out
    assert "training step (float32)" in shown and "evaluation, stride 64" in shown and "entropy, d = 2000" in shown


def test_a_part_without_its_packages_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(command, "_is_there", lambda package: package != "snakemake")
    with pytest.raises(command.UserError, match="missing here: workflow: package snakemake"):
        command.main(["training", "workflow"])


def test_a_profile_tells_matrix_products_from_the_rest(machine):
    left = torch.randn(512, 512)
    kinds, operations = profiling.shares(machine, lambda: (left @ left).sigmoid())
    assert kinds["matrix products"] > kinds["activation"] > 0
    assert set(operations) >= {"aten::mm", "aten::sigmoid"}


def test_the_name_of_a_machine_is_a_file_name(machine):
    assert machine.name.endswith("-1-threads")
    assert not set(machine.name) - set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_the_meter_sees_what_work_takes_and_gives_back(machine):
    kept = [np.ones(100_000) for _ in range(100)]
    del kept  # 76 MiB that the allocator may still hold
    meter = hardware.MemoryMeter(machine)
    assert [np.ones(100_000) for _ in range(50)]
    assert 30 < meter.peak_mib() < 60


def test_growth_is_measured_above_what_a_process_takes_anyway(capsys):
    growth.main(["bound=200,400"])
    line, record = capsys.readouterr().out.splitlines()
    assert line.startswith("bound: 100 take ") and " 400: " in line
    points = json.loads(record)["bound"]
    assert [point["size"] for point in points] == [100, 200, 400] and all(
        point["memory_mib"] > 10.0 for point in points
    )


@pytest.mark.slow
@pytest.mark.parametrize("part", ["hypotheses", "figures", "report"])
def test_what_grows_with_the_runs_is_measured(part, capsys):
    """These parts call the analysis by its own names, which may change."""
    growth.main([f"{part}=10"])
    assert capsys.readouterr().out.startswith(f"{part}: 10 take ")


def test_the_exponent_of_growth():
    points = [{"size": size, "cpu_seconds_above_tiny": 1e-6 * size**2} for size in (1000, 3000)]
    assert growth.exponent(*points) == pytest.approx(2.0)


def test_documents_of_a_template_are_equal_to_its_end_and_differ_afterwards():
    texts = growth.TemplateTexts(3)
    first, second = texts.document("train", 0), texts.document("train", 1)
    assert first[: growth.TEMPLATE_BYTES] == second[: growth.TEMPLATE_BYTES] and first != second


def test_documents_are_compared_whatever_their_order_and_files(tmp_path):
    documents = [np.array([*tokens, 50256], dtype=np.uint16) for tokens in ([1, 2], [3], [4, 5, 6])]
    np.concatenate(documents).tofile(tmp_path / "all.bin")
    np.concatenate(documents[2:]).tofile(tmp_path / "a.bin")
    np.concatenate(documents[1::-1]).tofile(tmp_path / "b.bin")
    whole = alternatives.documents_of([tmp_path / "all.bin"])
    assert whole == alternatives.documents_of([tmp_path / "a.bin", tmp_path / "b.bin"]) and len(whole) == 3
