"""What a killed process leaves, hashes that are remembered, and two runs in one folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from faults.scene import DATA, RUN, Scene
from sublora import config
from sublora.data import dataset_files
from sublora.data.dataset import TokenDataset
from sublora.data.dataset_files import HASHES_FILE
from sublora.system.errors import UserError
from sublora.system.files import atomic_path, os_error_line, remove_stale_temporaries, sha256_of_file

KILLED = """
import os, signal, sys
from pathlib import Path
from sublora.system.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_while_writing(path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert process.returncode == -9 and list(path.parent.glob(f".{path.name}.*.tmp"))


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*.tmp")]


def test_what_a_killed_prepare_left_is_removed_by_the_next(scene: Scene) -> None:
    killed_while_writing(scene.data / "train.bin")
    assert scene.call("prepare", "--config", "config/config.yaml")[0] == 0
    assert temporaries(scene.data) == []


@pytest.mark.parametrize("name", ["best_ckpt.pt", "state/0123456789abcdef.pt"])
def test_what_a_killed_training_left_is_removed_by_the_next(scene: Scene, name: str) -> None:
    scene.half_trained()
    killed_while_writing(scene.run / name)
    options = ("--budget", "40", "--allocation", "learned", "--seed", "1", "--out", str(scene.run))
    assert scene.call("train", "--config", "config/config.yaml", *options)[0] == 0
    assert temporaries(scene.run) == []


def test_only_temporaries_are_removed(tmp_path: Path) -> None:
    kept = [".lock", ".train.bin.tmp", "train.bin.17.tmp", ".hidden", ".a.b.tmp"]
    for name in (*kept, ".train.bin.17.tmp"):
        (tmp_path / name).touch()
    remove_stale_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_errors_of_the_system_name_the_file_and_the_reason_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    expected = r"file/a/b: cannot be written \(Not a directory\); a file stands"
    with pytest.raises(UserError, match=expected), atomic_path(tmp_path / "file/a/b"):
        pass
    with pytest.raises(OSError) as other, atomic_path(tmp_path / "a"):
        open(tmp_path / "elsewhere/b")  # noqa: SIM115 - there is none
    line = os_error_line(other.value)
    assert line == f"{tmp_path}/elsewhere/b: No such file or directory; correct the path"
    assert not (tmp_path / "a").exists() and temporaries(tmp_path) == []


def test_data_are_read_once_and_again_only_where_they_changed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    data, read = config.load_settings(scene.root / "config/config.yaml").data, []

    def noted(path: Path) -> str:
        read.append(path.name)
        return sha256_of_file(path)

    monkeypatch.setattr(dataset_files, "sha256_of_file", noted)
    files = sorted(TokenDataset.open(scene.root, data).verified().files)
    assert sorted(read) == files, "a copy has other inodes"
    TokenDataset.open(scene.root, data).verified()
    assert sorted(read) == files
    os.utime(scene.data / "val.bin")
    TokenDataset.open(scene.root, data).verified()
    assert read[len(files) :] == ["val.bin"]


@pytest.mark.parametrize("known", ["", "{", "[]", '{"train.bin": 3}', '{"train.bin": ["a", "b", "c", "d"]}'])
def test_remembered_hashes_that_do_not_fit_are_not_believed(scene: Scene, known: str) -> None:
    data = config.load_settings(scene.root / "config/config.yaml").data
    TokenDataset.open(scene.root, data).verified()
    scene.write(f"{DATA}/{HASHES_FILE}", known)
    scene.flip(f"{DATA}/train.bin", 77)
    with pytest.raises(UserError, match=r"train\.bin: sha256"):
        TokenDataset.open(scene.root, data).verified()


def test_a_damaged_file_is_found_by_every_stage_though_its_size_and_time_are_right(scene: Scene) -> None:
    """What is remembered is a hash: one of a file that was wrong already does not help it."""
    data = config.load_settings(scene.root / "config/config.yaml").data
    TokenDataset.open(scene.root, data).verified()
    scene.flip(f"{DATA}/train.bin", 77)
    found = (scene.data / "train.bin").stat()
    known = json.loads((scene.data / HASHES_FILE).read_text())
    wrong = sha256_of_file(scene.data / "train.bin")
    known["train.bin"] = [found.st_mtime_ns, found.st_size, found.st_ino, wrong]
    scene.write(f"{DATA}/{HASHES_FILE}", json.dumps(known))
    with pytest.raises(UserError, match=r"train\.bin: sha256"):
        TokenDataset.open(scene.root, data).verified()


def test_a_checkpoint_of_a_version_without_checksums_is_refused_as_such(scene: Scene) -> None:
    import torch

    value = torch.load(scene.run / "best_ckpt.pt", weights_only=True)
    torch.save(value | {"format": 2}, scene.run / "best_ckpt.pt")
    status, _, errors = scene.call("score", str(scene.run))
    assert status == 2 and "no checksum at its end: cut short, or written by an older version" in errors


def test_sealed_checkpoints_are_read_by_torch_alone(scene: Scene) -> None:
    import torch

    value = torch.load(scene.run / "best_ckpt.pt", weights_only=True)
    assert config.RunSpec.model_validate(value["run"]) == RUN and value["raw_model"]["subspace_params"].shape == (40,)
