"""Real image files, made on the fly."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

# As many test processes as cores run side by side.
os.environ["OMP_NUM_THREADS"] = "1"  # for what they start
torch.set_num_threads(1)


def jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    """uint8 (h, w, 3) -> the bytes of a JPEG file without chroma subsampling."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def make_image_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), train: int = 6, val: int = 4) -> Path:
    """A tree of small JPEG files in which the class decides the colour: learnable in a few steps."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = random.integers(40, 90, 2)
                pixels = random.integers(0, 120, (height, width, 3), dtype=np.uint8)
                pixels[..., label % 3] += 120
                (folder / f"{i}.jpg").write_bytes(jpeg(pixels))
    return root


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "images")
