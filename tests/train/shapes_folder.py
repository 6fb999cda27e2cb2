"""What a folder of toco-shapes holds."""

import hashlib
from pathlib import Path


def tree_hash(folder: Path) -> str:
    """Hash the names and bytes of every file under a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def read_ids(dataset: Path, name: str, kind: str = "Segmentation") -> list[str]:
    return (dataset / "ImageSets" / kind / f"{name}.txt").read_text().split()
