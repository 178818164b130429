"""Copies of the history for TensorBoard and W&B: every row, and never a changed number."""

import csv
import struct
import sys
import types
from pathlib import Path

import pytest
from base_samples import TRAINED, base_settings, complaint, prepared_root, root_of_its_own
from conftest import write_settings

from sublora import config
from sublora.runs.base import make_base
from sublora.runs.train import train_run
from sublora.system.digests import tensors_sha256
from sublora.system.names import BASE_FOLDER, GATES_NAME, METRICS_NAME
from sublora.training import checkpoint

pytest.importorskip("tensorboardX")


class StandIn(types.ModuleType):
    """What this library uses of wandb. `refuses`: the error that `init` raises online."""

    class errors:  # noqa: N801 - named as in wandb
        class Error(Exception):
            pass

        class CommError(Error):
            pass

        class UsageError(Error):
            pass

    def __init__(self, refuses: str | None = None) -> None:
        super().__init__("wandb")
        self.refuses, self.options, self.rows, self.open = refuses, {}, {}, False
        self.ids: set[object] = set()

    def init(self, *, mode: str, **options: object) -> "StandIn":
        assert options["id"] not in self.ids, "run ID is in use"
        self.ids.add(options["id"])
        if mode == "online" and self.refuses:
            raise getattr(self.errors, self.refuses)("no\nway")
        self.options, self.open = {"mode": mode, **options}, True
        return self

    def __enter__(self) -> "StandIn":
        return self

    def __exit__(self, *_: object) -> None:
        self.open = False

    def log(self, values: dict, *, step: int) -> None:
        assert self.open
        self.rows.setdefault(step, {}).update(values)


def trained(root: Path, out: Path, tracking: dict) -> Path:
    settings = config.load_settings(root / "config/config.yaml")
    changed = settings.model_copy(update={"tracking": settings.tracking.model_copy(update=tracking)})
    train_run(changed, config.parse_run(40, "learned", 1), root=root, out=out)
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """(name, step) to value of every event in a folder of TensorBoard: records of a length, its sum, data, its sum."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in folder.iterdir():
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            data = data[16 + size :]
    return found


@pytest.fixture(scope="module")
def plain(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tiny_root, tmp_path_factory.mktemp("plain"), {})


def test_every_row_arrives_and_no_number_changes(
    plain: Path, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    out = trained(tiny_root, tmp_path / "out", {"tensorboard": True, "wandb": "offline", "wandb_project": "p"})
    before, after = (checkpoint.load(folder / "best_ckpt.pt") for folder in (plain, out))
    assert tensors_sha256(before["raw_model"].items()) == tensors_sha256(after["raw_model"].items())
    assert before["digest"] == after["digest"]
    assert (plain / GATES_NAME).read_bytes() == (out / GATES_NAME).read_bytes()
    assert not (plain / "tensorboard").exists()

    expected = {}
    for row in rows_of(out / METRICS_NAME):
        expected |= {(name, int(row["step"])): float(value) for name, value in row.items() if value}
    for row in rows_of(out / GATES_NAME):
        expected[f"gamma/{row['group']}", int(row["step"])] = float(row["gamma"])
    assert len(expected) > 40
    assert scalars(out / "tensorboard") == pytest.approx(expected, rel=1e-6)
    sent = {(name, step): value for step, values in wandb.rows.items() for name, value in values.items()}
    assert sent == pytest.approx(expected, rel=1e-6)
    assert not wandb.open
    assert wandb.options["mode"] == "offline" and wandb.options["dir"] == str(out)
    assert wandb.options["id"] == after["digest"][:16] and wandb.options["name"] == "d40_learned_seed1"


def test_nothing_is_imported_unasked(plain: Path, tiny_root: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("wandb", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    trained(tiny_root, tmp_path / "out", {})
    for name, tracking in {"wandb": {"wandb": "offline"}, "tensorboardX": {"tensorboard": True}}.items():
        found = complaint(lambda tracking=tracking: trained(tiny_root, tmp_path / "other", tracking))
        assert f"the package {name} is not installed; pip install" in found


def test_a_server_out_of_reach_stops_no_training(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", wandb := StandIn(refuses="CommError"))
    trained(tiny_root, tmp_path / "out", {"wandb": "online"})
    assert wandb.options["mode"] == "offline" and wandb.rows
    assert "no server (no way); writing offline" in capfd.readouterr().err.replace("\n", " ")
    monkeypatch.setitem(sys.modules, "wandb", StandIn(refuses="UsageError"))
    assert "tracking.wandb: no way; log in" in complaint(
        lambda: trained(tiny_root, tmp_path / "other", {"wandb": "online"})
    )


def test_the_training_of_a_base_is_tracked_as_well(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    root = root_of_its_own(prepared_root(tmp_path_factory.getbasetemp()), tmp_path / "root")
    make_base(base_settings(TRAINED, tracking={"tensorboard": True}), root=root)
    found = scalars(root / BASE_FOLDER / "tensorboard")
    rows = rows_of(root / BASE_FOLDER / METRICS_NAME)
    assert len(rows) == 3
    for row in rows:
        assert found["val_loss_bits", int(row["step"])] == pytest.approx(float(row["val_loss_bits"]))


def test_settings_of_tracking_are_part_of_a_file(tmp_path: Path) -> None:
    path = write_settings(tmp_path, {"tracking": {"wandb": "sometimes"}})
    assert "tracking.wandb" in complaint(lambda: config.load_settings(path))
