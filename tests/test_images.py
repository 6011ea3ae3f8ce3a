"""Decoding of files made here, and crops of an image whose pixels say where they are."""

import io
import os
import resource
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from conftest import run_process, without_rights
from sppnet.data import images
from sppnet.data.images import (
    BYTES_PER_PIXEL,
    UnreadableImage,
    crop,
    decode_image,
    encode_pixels,
    encoded_image_size,
    is_encoded_pixels,
    resize_shorter_side,
)
from sppnet.geometry import LONGEST_ASPECT, POSITIONS, window_at


def encode(pixels, file_format, **options):
    """The bytes of an image file; `pixels` are an array or a Pillow image."""
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, file_format, **options)
    return file.getvalue()


def corners(height=48, width=64):
    """(height, width, 3) uint8: red top left, green top right, blue bottom left, white bottom right."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[: height // 2, : width // 2] = 255, 0, 0
    pixels[: height // 2, width // 2 :] = 0, 255, 0
    pixels[height // 2 :, : width // 2] = 0, 0, 255
    return pixels


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def assert_shows(decoded, pixels, tolerance=0):
    """Checks that `decoded`, uint8 (3, h, w), is `pixels`, (h, w, 3), up to `tolerance` on average."""
    assert decoded.dtype == torch.uint8
    assert decoded.shape == (3, *pixels.shape[:2])
    difference = decoded.permute(1, 2, 0).numpy().astype(int) - pixels.astype(int)
    assert np.abs(difference).mean() <= tolerance


@pytest.fixture(params=["torchcodec", "pillow only"])
def _decoder(request, monkeypatch):
    if request.param == "pillow only":
        monkeypatch.setattr(images, "_torchcodec", None)
    elif images._torchcodec is None:
        pytest.skip("TorchCodec does not load on this machine")


on_both_decoders = pytest.mark.usefixtures("_decoder")

# A file shows `corners()` before it is turned; Pillow's operation undoes what EXIF asks for.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@on_both_decoders
@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "PNG", "TIFF"])
def test_orientation_is_applied(file_format, orientation):
    image = Image.fromarray(corners())
    if STORED[orientation] is not None:
        image = image.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(image, file_format, exif=exif)
    assert_shows(decode_image(encoded, "turned"), corners(), tolerance=6)


@on_both_decoders
@pytest.mark.parametrize("options", [{"quality": 95}, {"quality": 95, "progressive": True}])
def test_jpeg(options):
    assert_shows(decode_image(encode(corners(), "JPEG", **options), "a.jpg"), corners(), tolerance=6)


@on_both_decoders
def test_gray_jpeg_has_three_equal_channels():
    gray = np.tile(np.arange(0, 200, 4, dtype=np.uint8), (30, 1))
    decoded = decode_image(encode(gray, "JPEG", quality=95), "gray.jpg")
    assert_shows(decoded, np.repeat(gray[:, :, None], 3, axis=2), tolerance=2)


@on_both_decoders
def test_cmyk_jpeg_keeps_its_colors():
    # Pillow writes the Adobe marker and inverted inks, as Photoshop does.
    encoded = encode(Image.fromarray(corners()).convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in encoded
    assert_shows(decode_image(encoded, "cmyk.jpg"), corners(), tolerance=6)


@pytest.mark.skipif(images._torchcodec is None, reason="TorchCodec does not load on this machine")
def test_torchcodec_reads_jpeg_as_pillow_does(monkeypatch):
    encoded = encode(noise(37, 53), "JPEG", quality=80)
    fast = decode_image(encoded, "noise.jpg")
    monkeypatch.setattr(images, "_torchcodec", None)
    assert (fast.int() - decode_image(encoded, "noise.jpg").int()).abs().max() <= 1


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_other_formats(file_format):
    options = {"lossless": True} if file_format == "WEBP" else {}
    assert_shows(decode_image(encode(noise(9, 14), file_format, **options), "named.jpg"), noise(9, 14))


def test_transparency_is_laid_over_white():
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[:, 1] = 100, 0, 200, 255
    pixels[:, 2] = 100, 0, 200, 51  # one fifth opaque
    decoded = decode_image(encode(pixels, "PNG"), "rgba.png")
    assert decoded[:, 0].T.tolist() == [[255, 255, 255], [100, 0, 200], [224, 204, 244]]


def test_palette_with_transparency():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    decoded = decode_image(encode(image, "PNG", transparency=b"\xff\x00\xff"), "palette.png")
    assert decoded[:, 0].T.tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]


def test_gray_with_alpha():
    decoded = decode_image(encode(Image.new("LA", (2, 2), (40, 0)), "PNG"), "la.png")
    assert decoded.unique().tolist() == [255]


def png(width, height, bit_depth, color_type, rows):
    """A PNG file by hand, because Pillow writes no 16-bit RGB."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled(file_format):
    pixels = np.array([[0, 128, 129, 100 * 257, 65535]], np.uint16)
    decoded = decode_image(encode(pixels, file_format), "gray16")
    assert decoded[:, 0].tolist() == [[0, 0, 1, 100, 255]] * 3


def test_sixteen_bit_rgb_is_scaled():
    row = np.array([0, 0, 65535, 100 * 257, 200 * 257, 0], ">u2").tobytes()
    assert decode_image(png(2, 1, 16, 2, [row]), "rgb16.png")[:, 0].T.tolist() == [[0, 0, 255], [100, 200, 0]]


@pytest.mark.parametrize("pixels", [np.array([[0, 70000]], np.int32), np.array([[0.5, 1]], np.float32)])
def test_pixels_of_unknown_range_are_refused(pixels):
    with pytest.raises(UnreadableImage, match=r"^deep\.tif: "):
        decode_image(encode(pixels, "TIFF"), "deep.tif")


def test_first_frame_of_an_animation_under_another_name():
    frames = [Image.new("RGB", (5, 4), color) for color in ("red", "blue")]
    encoded = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert_shows(decode_image(encoded, "animation.jpg"), np.full((4, 5, 3), (255, 0, 0)))


@on_both_decoders
def test_one_pixel():
    assert decode_image(encode(np.full((1, 1, 3), 7, np.uint8), "JPEG"), "tiny.jpg").flatten().tolist() == [7] * 3


@on_both_decoders
def test_a_damaged_exif_block_is_ignored_without_a_warning():
    # An EXIF block that promises 12 bytes of entries and ends: Pillow warns, and warnings are errors here.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01"
    assert_shows(decode_image(encode(corners(), "JPEG", quality=95, exif=exif), "a.jpg"), corners(), tolerance=6)


# A PNG that says 100,000 x 100,000 pixels and holds none; refused before any is looked for.
BOMB = png(100_000, 100_000, 1, 0, [])
JPEG = encode(noise(60, 80), "JPEG")

UNREADABLE = {
    "empty": (b"", "the file is empty"),
    "text": (b"not a picture\n", "not an image"),
    "html": (b"<html><body>404</body></html>", "not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "header": (JPEG[:20], "not an image"),
    "half_jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "jpeg_without_end": (JPEG[:-2], "truncated"),
    "half_png": (encode(noise(60, 80), "PNG")[:5000], ""),
    "half_gif": (encode(noise(60, 80), "GIF")[:2000], ""),
    "half_tiff": (encode(noise(60, 80), "TIFF")[:5000], ""),
    "half_webp": (encode(noise(60, 80), "WEBP")[:2000], ""),
    "broken_png": (b"\x89PNG\r\n\x1a\n" + bytes(30), ""),
    "bomb": (BOMB, "pixels, more than SPPNET_MAX_PIXELS=178956970"),
}


@on_both_decoders
@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable(case):
    encoded, reason = UNREADABLE[case]
    with pytest.raises(UnreadableImage) as caught:
        decode_image(encoded, f"folder/{case}")
    message = str(caught.value)
    assert message.startswith(f"folder/{case}: ")
    assert reason in message
    assert "\n" not in message
    assert ".cpp" not in message
    assert len(message) > len(f"folder/{case}: ")


@on_both_decoders
def test_size_limit_counts_pixels_before_decoding():
    assert decode_image(JPEG, "a.jpg", max_pixels=80 * 60).shape == (3, 60, 80)
    with pytest.raises(UnreadableImage, match=r"a\.jpg: 80x60 pixels, more than SPPNET_MAX_PIXELS=4799"):
        decode_image(JPEG[:-200], "a.jpg", max_pixels=80 * 60 - 1)  # truncated: decoding it would say so


def test_the_environment_sets_how_much_is_decoded(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    code = "from sppnet.data.images import decode_image; decode_image(open('a.jpg', 'rb').read(), 'a.jpg')"
    environment = os.environ | {"SPPNET_MAX_PIXELS": "4799", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = run_process([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    assert done.stderr.strip().endswith("a.jpg: 80x60 pixels, more than SPPNET_MAX_PIXELS=4799")


def test_pillow_takes_as_many_pixels_as_the_environment_sets(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 178956970)
    for limit, most in (("4799", 178956970), ("400000000", 400000000)):
        monkeypatch.setenv("SPPNET_MAX_PIXELS", limit)
        assert images._max_pixels() == int(limit)
        assert most == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("limit", ["1e9", "0", "-1", ""])
def test_a_limit_that_is_no_number_of_pixels_is_refused(limit, monkeypatch):
    monkeypatch.setenv("SPPNET_MAX_PIXELS", limit)
    with pytest.raises(ValueError, match=f"^SPPNET_MAX_PIXELS={limit}: must be a whole number above 0$"):
        images._max_pixels()


# Reading.


def test_a_file_is_read_unchanged(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    assert images.read_image_file(str(tmp_path / "a.jpg"), "a") == JPEG
    assert images.read_image_file(str(tmp_path / "a.jpg"), "a", max_bytes=len(JPEG)) == JPEG
    with pytest.raises(UnreadableImage, match=f"^a: {len(JPEG)} bytes, more than {len(JPEG) - 1}$"):
        images.read_image_file(str(tmp_path / "a.jpg"), "a", max_bytes=len(JPEG) - 1)


def test_a_file_that_may_not_be_read_is_unreadable(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / "a.jpg").chmod(0)
    with without_rights(), pytest.raises(UnreadableImage, match=r"^a: Permission denied$"):
        images.read_image_file(str(tmp_path / "a.jpg"), "a")


def test_too_many_open_files_are_not_the_fault_of_an_image(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            images.read_image_file(str(tmp_path / "a.jpg"), "a")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_names_are_escaped_in_errors():
    with pytest.raises(UnreadableImage, match=r"^a\\n\\x1b\[31mb\\xff: the file is empty$"):
        decode_image(b"", os.fsdecode(b"a\n\x1b[31mb\xff"))


MEASURE = """
import io, os, re, sys
from pathlib import Path
from PIL import Image
from sppnet.data import batches, images

def kilobytes(kind):
    return int(re.search(rf"{kind}:\\s+([0-9]+)", Path("/proc/self/status").read_text())[1])

if sys.argv[1] == "pillow":
    images._torchcodec = None
turned = Image.Exif()
turned[0x0112] = 6
for name in sys.argv[2:]:
    encoded = Path(name).read_bytes()
    image = Image.open(io.BytesIO(encoded))
    small = io.BytesIO()
    Image.new("RGB", (16, 16)).save(small, image.format, exif=turned)
    if os.fork() == 0:  # so that the highest memory is counted from here
        images.decode_image(small.getvalue(), "small")  # what a decoder loads once is not the memory of an image
        before = kilobytes("VmRSS")
        decoded = images.decode_image(encoded, name)
        print(name, 1024 * (kilobytes("VmHWM") - before), flush=True)
        os._exit(0)
    os.wait()
"""


def large_images(side=2500):
    """Files whose pixels Pillow stores in all the ways there are: {name: bytes}."""
    image = Image.fromarray(corners(8, 8)).resize((side, side))
    palette, gray = image.quantize(16), np.asarray(image.convert("L"))
    turned = Image.Exif()
    turned[0x0112] = 6
    fast = {"compress_level": 1}
    return {
        "rgb.png": encode(image, "PNG", **fast),
        "turned.png": encode(image, "PNG", exif=turned, **fast),
        "rgba.png": encode(image.convert("RGBA"), "PNG", **fast),
        "la.png": encode(image.convert("LA"), "PNG", **fast),
        "palette.png": encode(palette, "PNG", transparency=bytes(range(0, 160, 10)), **fast),
        "gray16.png": encode(200 * gray.astype(np.uint16), "PNG", **fast),
        "palette.gif": encode(palette, "GIF", transparency=3),
        "cmyk.tif": encode(image.convert("CMYK"), "TIFF"),
        "rgb.bmp": encode(image, "BMP"),
        "rgb.jpg": encode(image, "JPEG"),
        "turned.jpg": encode(image, "JPEG", exif=turned),
        "cmyk.jpg": encode(image.convert("CMYK"), "JPEG"),
        "progressive.jpg": encode(image.convert("CMYK"), "JPEG", progressive=True, subsampling=0),
        "rgba.webp": encode(image.convert("RGBA"), "WEBP", method=0),
        "rgb.avif": encode(image, "AVIF", speed=10, subsampling="4:4:4"),
    }


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's accounts of memory")
@pytest.mark.parametrize("decoder", ["torchcodec", "pillow"])
def test_decoding_takes_no_more_memory_than_stated(tmp_path, decoder):
    files = large_images()
    if decoder == "pillow":  # the other formats are Pillow's anyway
        files = {name: encoded for name, encoded in files.items() if name.endswith("jpg")}
    for name, encoded in files.items():
        (tmp_path / name).write_bytes(encoded)
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, decoder, *files]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = run_process(command, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    measured = dict(line.split() for line in done.stdout.splitlines())
    assert measured.keys() == files.keys(), done.stderr
    for name, encoded in files.items():
        fewest = least_max_pixels(encoded, name)  # what the image counts as
        assert int(measured[name]) < BYTES_PER_PIXEL * fewest + 8e6, name


def least_max_pixels(encoded, name):
    """The lowest limit at which an image is decoded, of those that count its pixels once, twice or three times."""
    for times in (1, 2, 3):
        width, height = Image.open(io.BytesIO(encoded)).size
        try:
            images._check_pixels(Image.open(io.BytesIO(encoded)), times * width * height)
        except ValueError:
            continue
        return times * width * height
    raise AssertionError(f"{name} is not decoded")


@pytest.mark.parametrize(
    ("file_format", "options", "times", "kind"),
    [
        ("WEBP", {}, 3, "WEBP"),
        ("AVIF", {}, 3, "AVIF"),
        ("JPEG", {"progressive": True}, 2, "progressive JPEG"),
    ],
)
def test_pixels_that_take_more_memory_count_several_times(file_format, options, times, kind):
    encoded = encode(noise(60, 80), file_format, **options)
    assert decode_image(encoded, "a", max_pixels=times * 80 * 60).shape == (3, 60, 80)
    message = f"^a: 80x60 pixels, which count {times} times as {kind}, more than SPPNET_MAX_PIXELS={times * 4800 - 1}$"
    with pytest.raises(UnreadableImage, match=message):
        decode_image(encoded, "a", max_pixels=times * 80 * 60 - 1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "I;16", "1"])
@pytest.mark.parametrize("orientation", [1, 3, 8])
def test_an_image_converted_in_strips_is_that_converted_at_once(mode, orientation, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = Image.fromarray(noise(37, 53))
    image = Image.fromarray(200 * np.asarray(pixels.convert("L")).astype(np.uint16)) if mode == "I;16" else pixels
    encoded = encode(image if mode == "I;16" else image.convert(mode), "TIFF", exif=exif)
    whole = decode_image(encoded, "a.tif")
    monkeypatch.setattr(images, "_STRIP_PIXELS", 200)
    assert torch.equal(decode_image(encoded, "a.tif"), whole)


# Sizes and crops.


@pytest.mark.parametrize("size", [(50, 71), (71, 50), (33, 33), (64, 64), (19, 200), (20, 21)])
@pytest.mark.parametrize("side", [20, 64, 101])
def test_shorter_side_is_exact_and_pixels_are_torchvisions(size, side):
    image = torch.from_numpy(noise(*size)).permute(2, 0, 1)
    resized = resize_shorter_side(image, side)
    expected = [round(length * side / min(size) + 1e-9) for length in size]
    assert min(resized.shape[1:]) == side
    assert list(resized.shape[1:]) == expected
    assert torch.equal(resized, reference.resize(image, expected, antialias=True))


def test_resize_keeps_what_fits():
    image = torch.zeros(3, 30, 41, dtype=torch.uint8)
    assert resize_shorter_side(image, 30).data_ptr() == image.data_ptr()


def test_longer_side_is_rounded_half_up():
    assert resize_shorter_side(torch.zeros(3, 4, 6, dtype=torch.uint8), 3).shape == (3, 3, 5)  # 4.5


@pytest.mark.parametrize("size", [(2000, 1), (3, 2000)])
def test_thin_pictures_stay_small_and_keep_their_middle(size):
    image = torch.zeros(3, *size, dtype=torch.uint8)
    middle = image.movedim(1 + size.index(2000), 1)[:, 998:1002]
    middle[:] = 200
    resized = resize_shorter_side(image, 64)
    assert min(resized.shape[1:]) == 64
    assert max(resized.shape[1:]) == 64 * LONGEST_ASPECT
    assert resized[:, resized.shape[1] // 2, resized.shape[2] // 2].tolist() == [200] * 3


def coordinates(height, width):
    """int64 (2, height, width): every pixel says its row and column."""
    return torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))


@pytest.mark.parametrize("position", POSITIONS)
def test_a_crop_is_a_view_of_the_pixels_of_its_window(position):
    image = coordinates(8, 12)
    x0, y0, x1, y1 = window_at(position, 5, 8, 12)
    view = crop(image, 5, position)
    assert view.shape == (2, 5, 5)
    assert view[:, 0, 0].tolist() == [y0, x0]
    assert view[:, -1, -1].tolist() == [y1 - 1, x1 - 1]
    assert view.untyped_storage().data_ptr() == image.untyped_storage().data_ptr()


def test_a_crop_of_its_own_size_is_the_image():
    for position in POSITIONS:
        assert torch.equal(crop(coordinates(7, 7), 7, position), coordinates(7, 7))


# Pixels without compression.


@pytest.mark.parametrize("size", [(1, 1), (1, 13), (11, 7), (256, 341)])
def test_pixels_without_compression_are_decoded_as_they_were(size):
    image = torch.from_numpy(noise(*size)).permute(2, 0, 1)
    for stored in (image, image.contiguous()):
        encoded = encode_pixels(stored)
        assert is_encoded_pixels(encoded)
        decoded = decode_image(encoded, "a.ppm")
        assert torch.equal(decoded, image)
        assert decoded.permute(1, 2, 0).is_contiguous()
        assert encoded_image_size(encoded, "a.ppm") == size
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(encoded))), noise(*size))


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (encode_pixels(torch.zeros(3, 5, 7, dtype=torch.uint8))[:-1], "truncated"),
        (b"P6\n100000 100000\n255\n" + bytes(300), "more than"),
        (b"P6\n0 5\n255\n", "not an image"),
        (b"P6\n99999999999999999999 1\n255\n" + bytes(3), "."),
    ],
)
def test_damaged_pixels_are_an_error_of_one_line(encoded, reason):
    with pytest.raises(UnreadableImage, match=f"^a.ppm: .*{reason}"):
        decode_image(encoded, "a.ppm")


@pytest.mark.parametrize(
    "header", [b"P6\n# a comment\n7 5\n255\n", b"P6 7 5 255\n", b"P6\n7 5\n254\n", b"P6\n7\t5\n255\n"]
)
def test_files_of_other_programs_in_the_same_format_are_read_by_pillow(header):
    pixels = noise(5, 7) // 2
    assert not is_encoded_pixels(header)
    decoded = decode_image(header + pixels.tobytes(), "a.ppm").permute(1, 2, 0)
    expected = np.asarray(Image.open(io.BytesIO(header + pixels.tobytes())))
    assert np.array_equal(decoded, expected)
    assert np.abs(decoded.numpy().astype(int) - pixels).max() <= 1
