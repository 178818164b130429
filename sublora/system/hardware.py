"""What this machine has, found without the seconds that importing torch takes."""

import os
import shutil
import subprocess
from pathlib import Path


def gpu_is_present() -> bool:
    """Whether a process started here would see an NVIDIA GPU; a GPU hidden by CUDA_VISIBLE_DEVICES does not count."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    command = shutil.which("nvidia-smi")
    if command:
        listing = subprocess.run([command, "-L"], capture_output=True, text=True, check=False)
        return listing.returncode == 0 and "GPU " in listing.stdout
    return any(Path("/dev").glob("nvidia[0-9]*"))
