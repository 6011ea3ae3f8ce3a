"""Encoded images by index; one image on the CPU: read, decode, resize, crop.

Letters: h and w pixels of height and width. Channels are R, G, B; values run from 0 to 255.
"""

import errno
import io
import os
import re
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sppnet.geometry import cut_to_longest_aspect, size_at_shorter_side, window_at
from sppnet.runtime.names import first_line, printable

_torchcodec: ModuleType | None
try:
    import torchcodec.decoders as _torchcodec
except (ImportError, OSError, RuntimeError):  # not installed, or its libraries do not load on this machine
    _torchcodec = None


def _max_pixels() -> int:
    """The largest image to decode, in pixels: SPPNET_MAX_PIXELS, which worker processes inherit, or the default.

    Real cameras make images of 150 megapixels. At BYTES_PER_PIXEL the default takes 1.25 GB while it is decoded.
    """
    value = os.environ.get("SPPNET_MAX_PIXELS", "178956970")
    if not value.isdecimal() or int(value) == 0:
        raise ValueError(f"SPPNET_MAX_PIXELS={value}: must be a whole number above 0")
    if Image.MAX_IMAGE_PIXELS is not None:  # Pillow itself refuses twice as many as this
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, int(value))
    return int(value)


_MAX_PIXELS = _max_pixels()
MAX_FILE_BYTES = 3 * _MAX_PIXELS + 2**24  # the largest image without compression, and 16 MB for metadata

# The most memory that decoding takes, with the 3 bytes of the result. A test measures it for every kind of image.
BYTES_PER_PIXEL = 7
# A pixel counts several times against the limit if its decoder needs more. These keep whole frames beside the result.
_BYTES_PER_PIXEL_OF = {"WEBP": 21, "AVIF": 21}
_BYTES_PER_PIXEL_PROGRESSIVE = 14  # of JPEG, whose coefficients are all kept until the last pass
_STRIP_PIXELS = 1 << 18  # converted at once

# The header of an image without compression, as `encode_pixels` writes it: width and height.
_PIXELS_HEADER = re.compile(rb"P6\n([1-9]\d{0,8}) ([1-9]\d{0,8})\n255\n")

# Formats that image data sets contain. Pillow reads forty more; decoding one of them (EPS) would start another program.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "PPM")

# EXIF tag 0x0112, "Orientation" -> a view of an upright image (h, w, 3) in the order in which its file stores it.
_ORIENTATION_TAG = 0x0112
_AS_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: upright.transpose(1, 0, 2)[::-1],
    7: lambda upright: upright.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda upright: upright.transpose(1, 0, 2)[:, ::-1],
}


class Images(Protocol):
    """Encoded images by index, from 0."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The content of an image file. Raises `UnreadableImage` if it cannot be read."""

    def name(self, index: int) -> str:
        """The name of an image, unique in all splits of a data set together."""

    def fingerprint(self) -> str:
        """A hash that changes with names and labels, and with contents if known without reading every file."""


class UnreadableImage(ValueError):  # noqa: N818 (names what is wrong with the file, as errors of data sets do)
    """An image file that cannot be read or decoded. The message is one printable line: its name and the reason."""


# Errors of opening a file that are not the fault of the file: the process or the machine has run out of something.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def read_image_file(path: str, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Reads an image file.

    Raises UnreadableImage, with `name` and the reason, for a file that cannot be opened or read, has more than
    `max_bytes`, or is not a regular file: pipes and devices are neither read nor waited for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:  # without a file object, this takes a third of the time of Path.read_bytes
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableImage(printable(f"{name}: not a regular file"))
            if status.st_size > max_bytes:
                raise UnreadableImage(printable(f"{name}: {status.st_size} bytes, more than {max_bytes}"))
            return os.read(descriptor, status.st_size)  # not up to the end: files in /proc may have none
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _EXHAUSTED:
            raise
        raise UnreadableImage(printable(f"{name}: {error.strerror}")) from error


def read_image_size(path: str, name: str) -> tuple[int, int]:
    """Reads the (height, width) of a file's upright image, as `decode_image` returns it, from the header alone.

    Raises UnreadableImage, with `name` and the reason, if there is no such file or header.
    """
    if not Path(path).is_file():
        raise UnreadableImage(printable(f"{name}: there is no such file"))
    return _size_in_header(path, name)


def encoded_image_size(encoded: bytes, name: str) -> tuple[int, int]:
    """Returns what `read_image_size` does, from the content of a file."""
    return _size_in_header(io.BytesIO(encoded), name)


def _size_in_header(file: str | io.BytesIO, name: str) -> tuple[int, int]:
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=_FORMATS) as image:
            width, height = image.size
            return (width, height) if _orientation(image) >= 5 else (height, width)
    except UnidentifiedImageError as error:  # whose message is an address in memory
        raise UnreadableImage(printable(f"{name}: not an image that can be read")) from error
    except Exception as error:  # damaged files raise almost any error
        raise UnreadableImage(printable(f"{name}: {first_line(error)}")) from error


def decode_image(encoded: bytes, name: str, max_pixels: int = _MAX_PIXELS) -> Tensor:
    """Decodes an image file as an image viewer shows it: uint8 RGB (3, h, w), upright.

    Reads JPEG, PNG, GIF, WebP, BMP, TIFF, AVIF and PPM by content, whatever the file is called, and the first
    frame of animations. Grey and CMYK become RGB, transparency is laid over white, EXIF orientation is applied,
    16 bits are scaled to 8. In memory the tensor is channels-last: a view of (h, w, 3), and of `encoded` for files of
    `encode_pixels`, so do not write to it.

    Raises UnreadableImage, with `name` and the reason, for other files, for damaged or truncated ones, and without
    decoding for those whose header states more than `max_pixels` pixels; the environment variable SPPNET_MAX_PIXELS
    sets the default. Memory use stays below BYTES_PER_PIXEL * `max_pixels`: pixels of WebP, AVIF and progressive JPEG,
    which need more, count two or three times.
    """
    try:
        # Pillow warns about harmless things such as a damaged EXIF block.
        with warnings.catch_warnings(action="ignore"):
            return _decode(encoded, max_pixels)
    except Exception as error:  # damaged files raise almost any error, from SyntaxError to zlib.error
        raise UnreadableImage(printable(f"{name}: {_reason(encoded, error)}")) from error


def encode_pixels(image: Tensor) -> bytes:
    """Encodes uint8 RGB (3, h, w) without compression, as a PPM file, which `decode_image` does not have to copy."""
    height, width = image.shape[1:]
    return b"P6\n%d %d\n255\n" % (width, height) + image.permute(1, 2, 0).contiguous().numpy().tobytes()


def is_encoded_pixels(encoded: bytes) -> bool:
    """Whether this is an image without compression, as `encode_pixels` writes it."""
    return _PIXELS_HEADER.match(encoded) is not None


def _pixels_of(encoded: bytes, max_pixels: int) -> Tensor | None:
    """Returns the image (3, h, w) of `encode_pixels`, a view of its bytes that must not be written to.

    None for any other file, for a damaged one, and for more than `max_pixels`.
    """
    header = _PIXELS_HEADER.match(encoded)
    if header is None:
        return None
    width, height = map(int, header.groups())
    if width * height > max_pixels or len(encoded) != header.end() + 3 * width * height:
        return None
    pixels = np.frombuffer(encoded, np.uint8, offset=header.end())
    return torch.from_numpy(pixels.reshape(height, width, 3)).permute(2, 0, 1)


def _decode(encoded: bytes, max_pixels: int) -> Tensor:
    pixels = _pixels_of(encoded, max_pixels)
    if pixels is not None:
        return pixels
    image = Image.open(io.BytesIO(encoded), formats=_FORMATS)  # reads the header only
    _check_pixels(image, max_pixels)
    # TorchCodec decodes to the same pixels as Pillow, with CMYK and orientation, 1.3 to 1.5 times as fast.
    if image.format in ("JPEG", "MPO") and _torchcodec is not None:
        decoded: Tensor = _torchcodec.decode_jpeg(encoded)
        return decoded
    image.load()
    return torch.from_numpy(_upright_rgb(image)).permute(2, 0, 1)


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    """Raises ValueError for more pixels than `max_pixels`, weighted by the memory that their format needs."""
    width, height = image.size
    kind, bytes_per_pixel = image.format, _BYTES_PER_PIXEL_OF.get(image.format or "", BYTES_PER_PIXEL)
    if image.info.get("progressive"):
        kind, bytes_per_pixel = "progressive JPEG", _BYTES_PER_PIXEL_PROGRESSIVE

    times = bytes_per_pixel // BYTES_PER_PIXEL
    if width * height * times > max_pixels:
        counted = f", which count {times} times as {kind}" if times > 1 else ""
        raise ValueError(f"{width}x{height} pixels{counted}, more than SPPNET_MAX_PIXELS={max_pixels}")


def _upright_rgb(image: Image.Image) -> np.ndarray:
    """Converts a loaded image to upright RGB: uint8 (h, w, 3).

    Works in strips: Pillow keeps 4 bytes per pixel, and every copy of the whole image in another mode would add 4.
    """
    width, height = image.size
    orientation = _orientation(image)
    pixels = np.empty((width, height, 3) if orientation >= 5 else (height, width, 3), np.uint8)
    stored = _AS_STORED[orientation](pixels)  # a view: filling it in the order of the file turns the image

    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        stored[top : top + rows] = np.asarray(_to_rgb(strip))
    return pixels


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, if there is none or it cannot be read."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a damaged block, for which `ImageOps.exif_transpose` would refuse the image
        return 1
    return orientation if orientation in _AS_STORED else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to RGB, transparency over white. ValueError for floating-point pixels."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if image.mode.startswith("I"):
        return _from_16_bits(image).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Converts 16-bit to 8-bit grey. Pillow's own conversion clips at 255, which turns most images white."""
    values = np.asarray(image).astype(np.int32)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"integer pixels from {values.min()} to {values.max()}, outside of 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _reason(encoded: bytes, error: Exception) -> str:
    """Why a file cannot be decoded, in one line."""
    if not encoded:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image that can be read ({', '.join(_FORMATS)})"
    if isinstance(error, Image.DecompressionBombError) and (pixels := re.search(r"\d+", str(error))):
        return f"{pixels[0]} pixels, more than SPPNET_MAX_PIXELS={_MAX_PIXELS}"
    return re.sub(r"^.*\.cpp:\d+, ", "", first_line(error))  # TorchCodec starts with the place in its source


def resize_shorter_side(image: Tensor, side: int) -> Tensor:
    """uint8 (3, h, w) -> uint8 (3, h', w') of `size_at_shorter_side`: bilinear, antialiased, aspect kept.

    An image longer than LONGEST_ASPECT times its shorter side is first cut to that, around its middle. An image that
    already has this size is returned as a view of the same memory.
    """
    height, width = cut_to_longest_aspect(*image.shape[-2:])
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    image = image[:, top : top + height, left : left + width]
    if min(height, width) == side:
        return image

    return resize(image, size_at_shorter_side(height, width, side))


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3, h, w) -> uint8 (3, *size): bilinear, antialiased."""
    # Not image[None]: its batch stride would make torch convert a channels-last image, and return it contiguous.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, size, mode="bilinear", antialias=True)[0]


def crop(image: Tensor, side: int, position: str) -> Tensor:
    """(..., h, w) -> (..., side, side): a view of `image` at one of `sppnet.geometry.POSITIONS`.

    Raises ValueError as `window_at` does.
    """
    x0, y0, x1, y1 = window_at(position, side, *image.shape[-2:])
    return image[..., y0:y1, x0:x1]
