"""Draws image files that cost as much to read as photographs."""

import os
from pathlib import Path

import numpy as np
from PIL import Image


def draw_images(root: Path, count: int, height: int = 375, width: int = 500, distinct: int | None = None) -> Path:
    """Draws a folder of `count` JPEG files in two classes, and two files to validate. Returns `root`.

    Only the first `distinct` files, by default all, differ from each other; the others are links to them.
    """
    random = np.random.default_rng(0)
    files: list[Path] = []
    for i in range(count + 2):
        folder = root / ("val" if i >= count else "train") / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f"{i}.jpg")
        if distinct is None or i < distinct:
            Image.fromarray(drawn_pixels(random, height, width)).save(files[i], quality=90)
        else:
            os.link(files[i % distinct], files[i])
    return root


def drawn_pixels(random: np.random.Generator, height: int = 375, width: int = 500) -> np.ndarray:
    """Draws a random image, uint8 (h, w, 3), with the 1/f spectrum of photos.

    Brightness varies more than colour.
    """
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falloff = 1 / np.maximum(np.hypot(rows, columns), 1 / max(height, width))
    noise = np.fft.rfft2(random.normal(size=(4, height, width)))
    layers = np.fft.irfft2(noise * falloff, (height, width))
    channels = layers[0] + 0.2 * layers[1:]  # (3, height, width): brightness, and a little colour
    pixels = (127 + 50 * channels / channels.std()).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))
