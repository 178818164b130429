"""Bits flipped and files cut at random: what is read is what was written, or nothing is and one line says so."""

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from faults.scene import Scene
from sublora import config
from sublora.coding.certificate import read_certificate
from sublora.data.dataset import TokenDataset
from sublora.runs.losses_file import LossesFile, read_losses
from sublora.runs.message import read_message
from sublora.system.errors import UserError
from sublora.system.files import read_json
from sublora.system.streams import generator
from sublora.training import checkpoint

FLIPS = 200
CUTS = 30


def damaged(data: bytes, name: str) -> Iterator[bytes]:
    """The file with one bit flipped, each in turn where there are few, and cut to other lengths."""
    rng = generator("faults", name)
    for bit in rng.choice(8 * len(data), size=min(FLIPS, 8 * len(data)), replace=False).tolist():
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)
    for length in [0, 1, len(data) - 1, *rng.integers(0, len(data), size=CUTS).tolist()]:
        yield data[:length]


def one_line_or_equal(read: Callable[[Path], Any], path: Path, equal: Callable[[Any, Any], bool]) -> int:
    """Damage the file in every way; how often it was read all the same, as what it was."""
    data, whole, taken = path.read_bytes(), read(path), 0
    for content in damaged(data, path.name):
        path.write_bytes(content)
        try:
            found = read(path)
        except UserError as error:
            assert str(path.name) in str(error) and "\n" not in str(error)
        else:
            assert equal(found, whole)
            taken += 1
    path.write_bytes(data)
    return taken


def same(found: Any, whole: Any) -> bool:
    if isinstance(whole, LossesFile):
        return same(found.arrays, whole.arrays) and found.provenance == whole.provenance
    if isinstance(whole, dict):
        return found.keys() == whole.keys() and all(same(found[key], value) for key, value in whole.items())
    if isinstance(whole, list | tuple):
        return len(found) == len(whole) and all(map(same, found, whole))
    if isinstance(whole, torch.Tensor):
        return bool(torch.equal(found, whole))
    if isinstance(whole, np.ndarray):
        return found.dtype == whole.dtype and np.array_equal(found, whole)
    return bool(found == whole)


def test_no_bit_of_a_checkpoint_may_change(scene: Scene) -> None:
    assert one_line_or_equal(checkpoint.load, scene.run / "best_ckpt.pt", same) == 0


def test_no_bit_of_a_resume_state_may_change(scene: Scene) -> None:
    assert one_line_or_equal(checkpoint.load, scene.root / "state.pt", same) == 0


def test_no_bit_of_the_published_numbers_may_change(scene: Scene) -> None:
    assert one_line_or_equal(checkpoint.load, scene.run / "bounds_metrics.pt", same) == 0


def test_no_bit_of_a_certificate_may_change(scene: Scene) -> None:
    assert one_line_or_equal(read_certificate, scene.run / "certificate.bin", lambda found, whole: False) == 0


def test_losses_are_read_as_they_were_or_not(scene: Scene) -> None:
    """Facts of the archive that no reader looks at, such as dates, may change: then the arrays are equal.

    Every bit of the directory's first entry and of its end is flipped in turn: compression, encryption, sizes, places.
    """
    path = scene.run / "losses.npz"
    content, whole = path.read_bytes(), read_losses(path)
    first, end = content.index(b"PK\x01\x02"), len(content) - 22
    for bit in (*range(8 * first, 8 * (first + 46)), *range(8 * end, 8 * len(content))):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert same(read_losses(path), whole)
        except UserError as error:
            assert "losses.npz" in str(error)
    path.write_bytes(content)
    assert one_line_or_equal(read_losses, scene.run / "losses.npz", same) < FLIPS / 2


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "test.bin", "eot_indices.npy", "doc_lengths.npy"])
def test_no_bit_of_prepared_data_may_change(scene: Scene, name: str) -> None:
    data = config.load_settings(scene.root / "config/config.yaml").data
    path = scene.data / name
    content, flip = path.read_bytes(), generator("faults", name)
    for bit in flip.integers(0, 8 * len(content), size=20).tolist():
        scene.flip(f"data/markov/{name}", bit)
        with pytest.raises(UserError, match=name):
            TokenDataset.open(scene.root, data).verified()
        path.write_bytes(content)
    TokenDataset.open(scene.root, data).verified()


def test_meta_json_is_taken_or_refused(scene: Scene) -> None:
    """It has no checksum: what is changed and still makes sense is another dataset, which its hash says."""
    settings = config.load_settings(scene.root / "config/config.yaml")
    path = scene.data / "meta.json"
    data = path.read_bytes()
    for content in damaged(data, "meta.json"):
        path.write_bytes(content)
        try:
            TokenDataset.open(scene.root, settings.data).verified()
        except UserError as error:
            assert "\n" not in str(error)


def test_bounds_json_is_shown_or_damaged(scene: Scene) -> None:
    from sublora.tools.status import run_status

    path = scene.run / "bounds.json"
    for content in damaged(path.read_bytes(), "bounds.json"):
        path.write_bytes(content)
        assert run_status(scene.run, scene.root / "logs").state in ("done", "damaged")


def test_headers_with_other_values_are_taken_or_refused(scene: Scene) -> None:
    """Keys of a certificate's header and of its settings gone, or a list, a text, a huge number in their place."""
    path = scene.run / "certificate.bin"
    header, whole = read_certificate(path).header, path.read_bytes()
    sections = {"": header} | {f"settings.{name}": value for name, value in header["settings"].items()}
    places = [(place, key) for place, keys in sections.items() for key in keys]
    rng = generator("faults", "headers")
    for value in (None, [], "text", 10**400, -1):
        for index in rng.choice(len(places), size=12, replace=False).tolist():
            path.write_bytes(whole)
            scene.reseal(functools.partial(edited, place=places[index], value=value))
            try:
                read_message(path)
            except UserError as error:
                assert "certificate.bin" in str(error) and "\n" not in str(error)


def edited(header: dict[str, Any], place: tuple[str, str], value: object) -> None:
    """Set a key of a section of a header, or with None delete it."""
    section, key = place
    values = header["settings"][section.removeprefix("settings.")] if section else header
    if value is None:
        del values[key]
    else:
        values[key] = value


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5_000, '{"a":' * 50_000, "\x00", "nan", '{"a": 1e999}'])
def test_json_that_breaks_readers(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    try:
        read_json(path, missing="", fix="mend")
    except UserError as error:
        assert "not valid JSON" in str(error)
    else:
        json.loads(text)


def test_a_verdict_on_damaged_files_is_no_traceback(scene: Scene, whole: Scene) -> None:
    """Arrays of other types and shapes in losses.npz: refused (1) or damaged (2), never a traceback."""
    for name in ("indices", "losses_bits", "target_counts"):
        for change in (np.array("x"), np.zeros((3, 4, 5)), np.array([1j])):
            shutil.copy(whole.run / "losses.npz", scene.run / "losses.npz")
            scene.edit_losses(lambda arrays, name=name, change=change: arrays.update({name: change}))
            status, _, errors = scene.call("verify", "results/runs/d40_learned_seed1", "--root", ".")
            assert status in (1, 2) and "Traceback" not in errors
