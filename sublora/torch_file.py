"""Writing a file that `torch.load` reads, without torch, whose import takes longer than computing a bound.

The format is that of torch.save: a zip archive, nothing compressed, with the pickled object and a version number.
"""

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

from sublora.files import write_bytes

PICKLE_PROTOCOL = 2
"""torch.save's own."""
ARCHIVE_VERSION = b"3\n"
ALWAYS_THE_SAME_DATE = (1980, 1, 1, 0, 0, 0)


def save_numbers(path: Path, numbers: Mapping[str, int | float]) -> None:
    """Write plain numbers by name, such that torch.load(path, weights_only=True) returns them as a dict.

    TypeError for anything but Python's own int and float: a reader with weights_only=True takes nothing else.
    """
    for name, value in numbers.items():
        if type(value) not in (int, float):
            raise TypeError(f"{name} is {type(value).__name__}, expected int or float")
    content = {"data.pkl": pickle.dumps(dict(numbers), protocol=PICKLE_PROTOCOL), "version": ARCHIVE_VERSION}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}", ALWAYS_THE_SAME_DATE), data)
    write_bytes(path, buffer.getvalue())
