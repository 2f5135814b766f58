"""What several tests of phantoms share."""

import hashlib
from pathlib import Path


def digests(folder: Path) -> dict[str, str]:
    """The contents of every image of a data set of phantoms, by case and file name."""
    files = sorted(folder.glob("BraTS2021_*/*.nii.gz"))
    return {f"{f.parent.name}/{f.name}": hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
