"""Tests, speed and the runs of config/gpt2_small.yaml on one GPU, each part within its own time limit: `make gpu`.

    python benchmarks/gpu.py [--device cuda] [--minutes 9] [--parts tests timing ...] [--steps N]
    python benchmarks/gpu.py --device cpu --toy                the same on a CPU, at toy size
    python benchmarks/gpu.py --pack DATASET --for-python 3.12  fill the folder that travels (`make gpu-folder`)

Needs torch 2.7 and numpy of the machine's own Python 3.11, or newer ones; what else is missing comes from wheels in the
folder. The parts are in the order of their worth. The results are written after each measurement, so that a part that
fails or runs out of time leaves what it had. A training that runs out of time saves its state, and the same command
continues it.
"""

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

if sys.version_info < (3, 11):  # noqa: UP036 - the Python of GPU_PYTHON may be any
    sys.exit(f"error: {sys.executable} is Python {sys.version.split()[0]}; GPU_PYTHON must be 3.11 or newer")

ROOT = Path(__file__).resolve().parents[1]
if Path(sys.path[0]).resolve() == ROOT / "benchmarks":
    # Started as a file, by a Python that need not have sublora.
    sys.path[0] = str(ROOT)

from benchmarks import gpu_folder  # noqa: E402
from sublora.system.errors import UserError  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
FOLDER, TOY_FOLDER = ROOT / "gpu", ROOT / "build" / "gpu_toy"
DEFAULT_MINUTES = 9.0


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(arguments: list[str] | None = None) -> None:
    """Pack the folder, or run the parts."""
    given = _parse(arguments)
    folder = (given.folder or (TOY_FOLDER if given.toy else FOLDER)).absolute()
    if given.pack is not None:
        gpu_folder.pack_tokens(given.pack, folder / gpu_folder.TOKENS)
        gpu_folder.pack_wheels(folder, given.for_python)
        print(folder)
        return
    # A command's process group does not get the signals of this one.
    signal.signal(signal.SIGTERM, _stop)
    used = gpu_folder.use_packages(folder)
    from benchmarks import gpu_parts, gpu_session

    parts = gpu_parts.chosen(given.parts, toy=given.toy)
    gpu_folder.unpack_runs(folder)
    session = gpu_session.Session(folder, given.out, given.device, given.minutes, given.toy, given.steps)
    if given.toy:
        gpu_parts.make_toy_tokens(folder)
    gpu_folder.unpack_tokens(folder / gpu_folder.TOKENS, gpu_parts.dataset(session))
    print(f"{sys.executable}, from the folder's wheels: {', '.join(used) or 'nothing'}", flush=True)
    gpu_session.run_parts(session, parts)
    print(f"written to {given.out}; runs in {folder / gpu_folder.RUNS}")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--minutes", type=float, default=DEFAULT_MINUTES, help="for all parts together")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="default: all")
    parser.add_argument("--steps", type=int, help="of a training; default: as many as the minutes allow")
    parser.add_argument("--toy", action="store_true", help="a tiny network on drawn text, to rehearse")
    parser.add_argument("--folder", type=Path, help="default: gpu, with --toy build/gpu_toy")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: benchmarks/results")
    parser.add_argument("--pack", type=Path, metavar="DATASET", help="a prepared dataset to pack, with wheels")
    parser.add_argument("--for-python", default="3.12", metavar="3.X", help="Python of the machine that it is for")
    given = parser.parse_args(arguments)
    if not given.minutes > 0 or (given.steps is not None and given.steps < 1):
        parser.error("--minutes and --steps are positive")
    return given


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
