"""The folder that `make gpu` works in, and what of it travels to a machine without internet access.

    tokens.tar.xz   a prepared dataset in one file
    wheels/         packages that the machine's own Python may lack
    runs.tar.xz     the runs of the sittings so far: bring it back, and carry it along to go on

Torch and numpy are always the machine's own.
"""

import importlib
import importlib.metadata
import lzma
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from sublora.system.errors import UserError
from sublora.system.files import atomic_path

ROOT = Path(__file__).resolve().parents[1]

TOKENS, WHEELS, RUNS, SITE = "tokens.tar.xz", "wheels", "runs.tar.xz", "site"
MOST_BYTES_OF_TOKENS = 60_000_000
CARRIED = {
    "pydantic": ("pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions"),
    "constriction": ("constriction",),
    "pyyaml": ("PyYAML",),
    "rich": ("rich", "markdown-it-py", "mdurl", "Pygments"),
    "typer": ("typer", "click", "shellingham", "annotated-doc"),
    "safetensors": ("safetensors",),
    "pytest": ("pytest", "iniconfig", "pluggy", "packaging", "Pygments"),
}
"""Packages that the parts import, and the wheels that bring each of them; used only where the machine lacks it."""
OWN = ("torch", "numpy")
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux_2_12", "manylinux1")


# Packages


def pack_wheels(folder: Path, python: str) -> None:
    """Download the wheels of CARRIED, in the versions of requirements.lock, for a version of Python on x86-64 Linux."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pins = {_canonical(line.partition("==")[0]): line for line in text.splitlines() if "==" in line}
    wanted = sorted({pins[_canonical(name)] for names in CARRIED.values() for name in names})
    wheels = folder / WHEELS
    shutil.rmtree(wheels, ignore_errors=True)
    platforms = [part for name in PLATFORMS for part in ("--platform", f"{name}_{platform.machine()}")]
    command = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", python]
    _pip(command + ["--implementation", "cp", *platforms, "--dest", str(wheels), *wanted])


def use_packages(folder: Path) -> list[str]:
    """Make what this Python lacks importable from the folder's wheels; return the wheels that are used.

    UserError if torch or numpy is missing or too old, or a wheel that is needed is not in the folder.
    """
    for name in OWN:
        if _is_lacking(name):
            raise UserError(f"{sys.executable}: {name} {_minimum(name)} or newer is needed, found {_found(name)}")
    site = folder / SITE
    sys.path.insert(0, str(site))
    if any(_is_lacking(name) for name in CARRIED):
        # Afresh: pip would leave the facts of an older version beside those of a newer one.
        shutil.rmtree(site, ignore_errors=True)
        lacking = [name for name in CARRIED if _is_lacking(name)]
        names = {_canonical(wheel) for name in lacking for wheel in CARRIED[name]}
        wheels = [path for path in (folder / WHEELS).glob("*.whl") if _canonical(path.name.split("-")[0]) in names]
        if absent := sorted(names - {_canonical(path.name.split("-")[0]) for path in wheels}):
            version = ".".join(platform.python_version_tuple()[:2])
            raise UserError(
                f"{folder / WHEELS}: no wheels of {', '.join(absent)}, which {sys.executable} lacks; where there "
                f"is internet access, run `make gpu-folder GPU_PYTHON_VERSION={version}`, and carry the folder"
            )
        _pip(["install", "--quiet", "--no-index", "--no-deps", "--target", str(site), *map(str, wheels)])
        importlib.invalidate_caches()
        if still := [name for name in lacking if _is_lacking(name)]:
            raise UserError(f"{folder / WHEELS}: its wheels of {', '.join(still)} are too old; run `make gpu-folder`")
    return sorted(path.stem for path in site.glob("*.dist-info"))


def _pip(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check", "--no-cache-dir"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode:
        lines = (outcome.stderr or outcome.stdout).strip().splitlines() or [f"exit status {outcome.returncode}"]
        raise UserError(f"pip {arguments[0]}: {lines[0]}")


def _is_lacking(name: str) -> bool:
    found = _found(name)
    return found is None or _numbers(found) < _numbers(_minimum(name))


def _found(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _minimum(name: str) -> str:
    """Return the oldest version that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return next(text.partition(">=")[2] for text in texts if re.match(rf"{re.escape(name)}\s*>=", text, re.IGNORECASE))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])[:2]))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# Tokens and runs


def pack_tokens(dataset: Path, archive: Path) -> None:
    """Pack a prepared dataset, whose files are checked first, into one compressed file.

    Raises UserError for damaged files and for an archive above MOST_BYTES_OF_TOKENS.
    """
    from sublora.data.dataset_files import META_FILE, check_hashes, dataset_files, read_checked_meta

    meta = read_checked_meta(dataset, None)
    check_hashes(dataset, meta)
    _pack(archive, dataset, (META_FILE, *dataset_files(meta)))
    if (size := archive.stat().st_size) > MOST_BYTES_OF_TOKENS:
        raise UserError(f"{archive}: {size:,} bytes, expected at most {MOST_BYTES_OF_TOKENS:,}; use a smaller corpus")


def unpack_tokens(archive: Path, dataset: Path) -> None:
    """Unpack a dataset, unless it is there already; UserError if a file is not the one that meta.json names."""
    from sublora.data.dataset_files import META_FILE, check_hashes, read_checked_meta

    if (dataset / META_FILE).exists():
        check_hashes(dataset, read_checked_meta(dataset, None))
        return
    dataset.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dataset.parent) as temporary:
        unpacked = Path(temporary) / dataset.name
        _unpack(archive, unpacked)
        check_hashes(unpacked, read_checked_meta(unpacked, None))
        unpacked.rename(dataset)


def pack_runs(folder: Path) -> None:
    """Pack results/ and the settings of the runs."""
    names = [path.relative_to(folder) for part in ("config", "results") for path in sorted((folder / part).rglob("*"))]
    _pack(folder / RUNS, folder, [str(name) for name in names if (folder / name).is_file()])


def unpack_runs(folder: Path) -> None:
    """Unpack the runs of an earlier sitting, unless there are runs already."""
    if (folder / RUNS).exists() and not (folder / "results").exists():
        _unpack(folder / RUNS, folder)


def _pack(archive: Path, folder: Path, names: Iterable[str]) -> None:
    """Write an archive whose bytes depend on nothing but the files and their names; it appears whole."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime = member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with atomic_path(archive) as temporary, tarfile.open(temporary, "w:xz") as packed:
        for name in names:
            packed.add(folder / name, arcname=name, recursive=False, filter=anonymous)


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    except FileNotFoundError:
        raise UserError(f"{archive}: no such file; run `make gpu-folder` where there is internet access") from None
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise UserError(f"{archive}: damaged ({error}); carry it again") from None
