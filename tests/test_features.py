"""Features equal a slow reference, image by image; extraction resumes, and stops for what is wrong with one line."""

import io
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from conftest import PngImages, make_image_folder, random_images
from forks import exit_code, in_a_process, kill_this_process, locked_by_another_process, start_process
from sppnet.backbones import build_backbone
from sppnet.data.batches import to_network_input
from sppnet.data.images import UnreadableImage, decode_image
from sppnet.data.sources import content_digests, open_data
from sppnet.geometry import cut_to_longest_aspect, size_at_shorter_side
from sppnet.network import SPPNet, weights_digest
from sppnet.runtime.hardware import Hardware
from sppnet.transfer import features as features_module
from sppnet.transfer.features import FeatureExtractor, check_view, extract_features
from sppnet.windows import pool_image_windows

CPU = Hardware(accelerator="cpu", workers=0, precision="float32")
# Every image by itself, so that features do not depend on which images are left: batches may round differently.
ONE_BY_ONE = Hardware(accelerator="cpu", workers=0, precision="float32", megapixels=1e-6)
AWKWARD = [(33, 47), (47, 33), (1, 1), (1, 9), (64, 64), (5, 200), (70, 93), (93, 70), (33, 47)]
LAYERS = ("conv1", "pool1", "conv5", "pool5", "pool5_3x3", "fc6", "fc7", "fc8", "pixels")


def build(backbone="zf5", levels=(3, 2, 1), seed=0, **options):
    torch.manual_seed(seed)
    options = {"hidden": 16, "initialization": "fan_in", "input_std": (58.0, 57.0, 56.0)} | options
    if isinstance(backbone, str):
        backbone = build_backbone(backbone, width=0.05)
    return SPPNet(backbone, levels, 4, **options).eval()


@pytest.fixture
def network():
    return build()


def extract(network, images, layers, folder, **options):
    return extract_features(network, images, layers, folder=folder, **({"scale": 64, "hardware": CPU} | options))


def values(found):
    """layer -> float16 (n, d), a copy."""
    return {layer: np.array(features.values) for layer, features in found.items()}


def assert_same(found, expected):
    """Bit for bit."""
    assert list(found) == list(expected)
    for layer, rows in values(found).items():
        assert np.array_equal(rows, expected[layer].values if hasattr(expected[layer], "values") else expected[layer])


# The slow and obvious version: one image, one layer.


def resized(image, size):
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def viewed(pixels, view, scale):
    """uint8 (h, w, 3) -> uint8 (3, h', w')."""
    image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    if view == "warp":
        return resized(image, (scale, scale))
    height, width = cut_to_longest_aspect(*image.shape[1:])
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    image = resized(image[:, top : top + height, left : left + width], size_at_shorter_side(height, width, scale))
    if view == "full":
        return image
    top, left = (image.shape[1] - scale) // 2, (image.shape[2] - scale) // 2
    return image[:, top : top + scale, left : left + scale]


@torch.inference_mode()
def reference_row(network, pixels, layer, view, scale):
    image = viewed(pixels, view, scale)
    mean, std = (torch.tensor(channels)[:, None, None] for channels in (network.input_mean, network.input_std))
    if layer == "pixels":
        output = (resized(image.float(), (16, 16)) - mean) / std
    else:
        output = network.features(((image.float() - mean) / std)[None], layer)[0]
    if output.ndim == 3 and layer != "pixels" and view == "full":
        output = F.adaptive_max_pool2d(output, max(network.levels))
    row = output.flatten().double()
    return (row / row.norm()).half().numpy()


def assert_equal_to_reference(found, network, images, view, scale):
    for layer, features in found.items():
        expected = np.stack([reference_row(network, pixels, layer, view, scale) for pixels in images.pixels])
        assert features.values.dtype == np.float16
        assert features.values.shape == expected.shape
        # One rounding of float16 is 1/1024 of a value.
        np.testing.assert_allclose(features.values, expected, rtol=0.002, atol=2e-6, err_msg=layer)


@pytest.mark.parametrize("view", ["full", "crop", "warp"])
@pytest.mark.parametrize("backbone", ["zf5", "overfeat5"])
def test_features_of_every_layer_equal_a_reference_image_by_image(tmp_path, view, backbone):
    network, images = build(backbone), random_images(AWKWARD)
    layers = [*network.layers, "pixels"]
    found = extract(network, images, layers, tmp_path, view=view, scale=71)
    assert list(found) == layers
    assert_equal_to_reference(found, network, images, view, 71)


@pytest.mark.parametrize("view", ["full", "crop"])
def test_aligned_features_are_those_of_the_aligned_network(network, tmp_path, view):
    images = random_images(AWKWARD)
    found = extract(network, images, LAYERS, tmp_path, view=view, aligned=True)
    assert_equal_to_reference(found, network.aligned().eval(), images, view, 64)


@pytest.mark.parametrize("view", ["crop", "warp"])
def test_a_network_without_a_pyramid_takes_square_views_of_its_own_side(tmp_path, view):
    network, images = build(levels=None, input_side=96), random_images(AWKWARD[:5])
    found = extract(network, images, ["conv5", "pool5", "fc7"], tmp_path, view=view, scale=96)
    assert_equal_to_reference(found, network, images, view, 96)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_features_of_a_timm_backbone(tmp_path, name):
    torch.manual_seed(0)
    network, images = build(build_backbone("timm", name=name)), random_images(AWKWARD[:5])
    found = extract(network, images, ["conv5", "pool5", "pool5_2x2", "pixels"], tmp_path, scale=96)
    assert_equal_to_reference(found, network, images, "full", 96)


def test_bf16_features_are_close_and_pixels_the_same(network, tmp_path):
    images, layers = random_images(AWKWARD), ("conv5", "pool5", "fc7", "pixels")
    exact = values(extract(network, images, layers, tmp_path / "float32"))
    bf16 = Hardware(accelerator="cpu", workers=0, precision="bf16")
    found = values(extract(network, images, layers, tmp_path / "bf16", hardware=bf16))
    assert np.array_equal(found["pixels"], exact["pixels"])
    for layer in ("conv5", "pool5", "fc7"):
        assert not np.array_equal(found[layer], exact[layer])
        np.testing.assert_allclose(found[layer], exact[layer], atol=0.03)


@pytest.mark.parametrize("layer", ["conv1", "conv5", "pool5", "fc7", "pixels"])
def test_all_scales_of_an_image_give_features_of_the_same_length(network, tmp_path, layer):
    images = random_images(AWKWARD[:4])
    lengths = {
        extract(network, images, [layer], tmp_path / str(scale), scale=scale)[layer].length for scale in (48, 64, 101)
    }
    assert len(lengths) == 1


def test_the_feature_of_a_window_equals_that_of_the_map_cut_there(network):
    with torch.inference_mode():
        maps = network.maps(to_network_input(torch.rand(2, 3, 150, 190) * 255, network.input_mean, network.input_std))
        windows = np.array([[0, 0, 190, 150], [16, 0, 100, 90], [50, 60, 70, 140]])
        pooled = pool_image_windows(network, maps, windows, network.classify)
        for k, window in enumerate(windows.tolist()):
            columns = cells_inside(network, maps.shape[3], window[0], window[2])
            rows = cells_inside(network, maps.shape[2], window[1], window[3])
            cut = maps[:, :, rows][..., columns]
            torch.testing.assert_close(pooled[:, k], network.classify(network.pool(cut)), rtol=1e-5, atol=1e-6)


def cells_inside(network, cells, start, end):
    """The cells, of one side of a map, whose centres lie between two pixels."""
    backbone = network.backbone
    return [i for i in range(cells) if start < backbone.offset + backbone.stride * i < end]


# Numbers.


def test_rows_have_unit_length_and_features_of_zeros_stay_zero(network, tmp_path):
    images = random_images(AWKWARD)
    with torch.no_grad():
        network.fc6.bias.fill_(-1e6)
    found = extract(network, images, ["conv1", "pool5", "fc6"], tmp_path)
    for layer in ("conv1", "pool5"):
        lengths = found[layer].rows(slice(0, 9)).double().norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones(9, dtype=torch.float64), rtol=0, atol=1e-6)
    assert not found["fc6"].values.any()
    assert not found["fc6"].rows(np.array([2, 0])).any()


@pytest.mark.parametrize("factor", [2.0**100, 2.0**-100])
def test_huge_and_tiny_activations_give_the_same_features(tmp_path, factor):
    """Their squares are no numbers of float32."""
    network, images = build(), random_images(AWKWARD)
    expected = values(extract(network, images, ["conv5", "pool5"], tmp_path / "plain"))
    with torch.no_grad():
        network.backbone.conv5.weight.mul_(factor)
    assert_same(extract(network, images, ["conv5", "pool5"], tmp_path / "scaled"), expected)


def test_features_that_are_not_finite_are_an_error_that_names_image_and_layer(tmp_path):
    network = build(input_mean=(0.0, 0.0, 0.0))  # black images give zeros
    with torch.no_grad():
        network.fc6.weight.mul_(1e38)
    pixels = [np.zeros((64, 64, 3), np.uint8) for _ in range(4)]
    pixels[2][:] = 255
    with pytest.raises(ValueError, match=r"^2\.png: fc6 is not finite for this image; the network is damaged$"):
        extract(network, PngImages(pixels), ["fc6", "pool5"], tmp_path, hardware=ONE_BY_ONE)
    done = [features_module.open_features(tmp_path / layer).done.tolist() for layer in ("fc6", "pool5")]
    assert done == 2 * [[True, True, False, False]]


# Image files.


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


class Encoded(PngImages):
    """Images of given files."""

    def read(self, index):
        return self.pixels[index]


def test_odd_image_files_have_the_features_of_their_decoded_pixels(network, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image, rotated = Image.fromarray(pixels), Image.Exif()
    rotated[0x0112] = 6
    files = [
        encoded(Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG"),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image.convert("P"), "PNG", transparency=3),
        encoded(image, "JPEG", exif=rotated),
        encoded(image, "GIF", save_all=True, append_images=[Image.new("RGB", image.size)]),
        encoded(image.convert("L"), "PNG"),
    ]
    decoded = [decode_image(file, "odd").permute(1, 2, 0).numpy() for file in files]
    assert decoded[3].shape == (80, 60, 3)
    expected = extract(network, PngImages(decoded), ["pool5", "pixels"], tmp_path / "decoded")
    assert_same(extract(network, Encoded(files), ["pool5", "pixels"], tmp_path / "files"), expected)


# Which images and layers are run.


class Watched(PngImages):
    """Images that note which of them were read."""

    def __init__(self, pixels):
        super().__init__(pixels)
        self.was_read = []

    def read(self, index):
        self.was_read.append(index)
        return super().read(index)


def watched(sizes=AWKWARD, seed=0):
    return Watched(random_images(sizes, seed).pixels)


def digests_of(images):
    return content_digests(PngImages(images.pixels), "reading")


def count_passes(network):
    """A list that grows by the number of images of every forward pass."""
    passes = []
    network.backbone.conv1.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    return passes


def test_a_second_call_reads_no_image_and_runs_no_forward_pass(network, tmp_path, capsys):
    images = watched()
    digests = digests_of(images)
    first = extract(network, images, LAYERS, tmp_path, digests=digests)
    assert sorted(images.was_read) == list(range(9))
    passes = count_passes(network)
    images.was_read.clear()
    again = extract(network, images, LAYERS, tmp_path, digests=digests, title="photos")
    assert (passes, images.was_read) == ([], [])
    assert_same(again, first)
    assert f"photos: extracted already ({tmp_path})" in capsys.readouterr().out


def test_more_layers_later_run_the_network_but_leave_the_rest(network, tmp_path):
    images = random_images(AWKWARD)
    extract(network, images, ["pool5"], tmp_path)
    features_module.open_features(tmp_path / "pool5", writable=True).values[:] = 7
    found = extract(network, images, ["fc7", "pool5", "fc7"], tmp_path)
    assert list(found) == ["fc7", "pool5"]
    assert (found.pop("pool5").values == 7).all()
    assert_equal_to_reference(found, network, images, "full", 64)


@pytest.mark.parametrize(
    "options",
    [
        {"view": "warp"},
        {"scale": 72},
        {"aligned": True},
        {"hardware": Hardware(accelerator="cpu", workers=0, precision="bf16")},
        {"network": build(seed=1)},
        {"network": build(input_mean=(1.0, 2.0, 3.0))},
        {"images": random_images(AWKWARD, seed=1)},
    ],
)
def test_whatever_changes_features_extracts_them_again(network, tmp_path, options):
    base = {"network": network, "images": random_images(AWKWARD), "layers": ["fc7", "conv5"], "view": "crop"}
    extract(**base, folder=tmp_path / "both")
    found = extract(**base | options, folder=tmp_path / "both")
    assert_same(found, extract(**base | options, folder=tmp_path / "fresh"))


def test_other_rules_extract_features_again(network, tmp_path, monkeypatch):
    images = watched()
    extract(network, images, ["fc7"], tmp_path, digests=digests_of(images))
    monkeypatch.setattr(features_module, "FEATURE_RULES", features_module.FEATURE_RULES + 1)
    extract(network, images, ["fc7"], tmp_path, digests=digests_of(images))
    assert len(images.was_read) == 18


def test_only_images_with_new_names_or_contents_are_extracted_again(network, tmp_path):
    images = watched([(64, 64)] * 6)
    extract(network, images, ["fc7"], tmp_path, digests=digests_of(images), hardware=ONE_BY_ONE)
    other = Watched([*images.pixels, images.pixels[0]])
    other.pixels[2] = images.pixels[3]
    found = extract(network, other, ["fc7"], tmp_path, digests=digests_of(other), hardware=ONE_BY_ONE)
    assert other.was_read == [2, 6]
    assert_same(found, extract(network, other, ["fc7"], tmp_path / "fresh", hardware=ONE_BY_ONE))


def test_as_many_images_as_the_memory_allows_go_through_the_network_at_once(network, tmp_path):
    passes = count_passes(network)
    hardware = Hardware(accelerator="cpu", workers=0, precision="float32", megapixels=3 * 64 * 64 / 1e6)
    extract(network, random_images([(64, 64)] * 8), ["fc7"], tmp_path, hardware=hardware)
    assert passes == [1, 3, 3, 2]  # first a black image, for the length


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_change_nothing(network, tmp_path, workers):
    images = random_images(AWKWARD)
    hardware = Hardware(accelerator="cpu", workers=workers, precision="float32")
    found = extract(network, images, ["fc7"], tmp_path, hardware=hardware)
    assert_equal_to_reference(found, network, images, "full", 64)


def test_the_digest_of_weights_does_not_depend_on_how_they_lie_in_memory(network):
    digest = weights_digest(network)
    assert weights_digest(network.to(memory_format=torch.channels_last)) == digest
    assert weights_digest(build()) == digest
    assert weights_digest(build(seed=1)) != digest
    assert weights_digest(build(input_mean=(1.0, 2.0, 3.0))) != digest
    with torch.no_grad():
        network.fc8.bias[-1] += 1e-6
    assert weights_digest(network) != digest


# Interruptions.


class Stopping(PngImages):
    """Images of which one does something before it is read."""

    def __init__(self, pixels, index, stop):
        super().__init__(pixels)
        self.index, self.stop = index, stop

    def read(self, index):
        if index == self.index:
            self.stop()
        return super().read(index)


def interrupt():
    raise KeyboardInterrupt


MANY = random_images([(64, 64), (64, 70)] * 12).pixels


def check_resumes(network, folder, fresh, *, first):
    """Checks that extraction reads only what is left, at most 24 - `first` images, and ends as without a stop."""
    layers = ["conv5", "fc7"]
    done = [int(features_module.open_features(folder / layer).done.sum()) for layer in layers]
    assert min(done) >= first
    images = Watched(MANY)
    found = extract(network, images, layers, folder, hardware=ONE_BY_ONE, digests=digests_of(images))
    assert len(images.was_read) == 24 - min(done)
    assert_same(found, extract(network, PngImages(MANY), layers, fresh, hardware=ONE_BY_ONE))


def test_a_killed_extraction_resumes_and_ends_bit_for_bit_as_an_uninterrupted_one(network, tmp_path, monkeypatch):
    monkeypatch.setattr(features_module, "SECONDS_BETWEEN_MARKS", 0)
    images = Stopping(MANY, 17, kill_this_process)
    digests = digests_of(images)

    def work():
        extract(network, images, ["conv5", "fc7"], tmp_path / "killed", hardware=ONE_BY_ONE, digests=digests)

    assert in_a_process(work) == -signal.SIGKILL
    check_resumes(network, tmp_path / "killed", tmp_path / "fresh", first=16)


def test_ctrl_c_keeps_what_was_done(network, tmp_path):
    images = Stopping(MANY, 17, interrupt)
    with pytest.raises(KeyboardInterrupt):
        extract(network, images, ["conv5", "fc7"], tmp_path / "a", hardware=ONE_BY_ONE, digests=digests_of(images))
    check_resumes(network, tmp_path / "a", tmp_path / "fresh", first=16)


def test_an_image_that_cannot_be_decoded_stops_with_its_name_and_keeps_what_was_done(network, tmp_path, capsys):
    root = make_image_folder(tmp_path / "images", train=12, val=2)
    (root / "train" / "dog" / "9.jpg").write_bytes(b"no image")
    images = open_data("folder", root=str(root)).train
    with pytest.raises(UnreadableImage, match=r"^train/dog/9\.jpg: .*exclude=\[train/dog/9\.jpg\]$"):
        extract(network, images, ["fc7"], tmp_path / "features", hardware=ONE_BY_ONE)
    (root / "train" / "dog" / "9.jpg").write_bytes((root / "train" / "dog" / "8.jpg").read_bytes())
    capsys.readouterr()
    found = extract(network, images, ["fc7"], tmp_path / "features", hardware=ONE_BY_ONE, title="photos")
    assert "photos: resuming after 23 of 24 images" in capsys.readouterr().out
    assert_same(found, extract(network, images, ["fc7"], tmp_path / "fresh", hardware=ONE_BY_ONE))


class KilledOnce(PngImages):
    """Images that note in a file which were read, and of which the first time one kills the process that reads it."""

    def __init__(self, pixels, folder):
        super().__init__(pixels)
        self.flag, self.notes = folder / "killed", folder / "reads"

    def read(self, index):
        with self.notes.open("a") as file:
            file.write(f"{index}\n")
        if index == 19 and not self.flag.exists():
            self.flag.touch()
            time.sleep(1)
            kill_this_process()
        return super().read(index)


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_two_devices_of_which_one_is_killed_resume_and_give_the_same(network, tmp_path):
    hardware = Hardware(accelerator="cpu", workers=0, precision="float32", megapixels=1e-6, devices=2)
    images, layers = KilledOnce(MANY, tmp_path), ["conv5", "fc7"]
    digests = digests_of(images)
    with pytest.raises(ChildProcessError, match="killed"):
        extract(network, images, layers, tmp_path / "two", hardware=hardware, digests=digests)
    done = [features_module.open_features(tmp_path / "two" / layer).done for layer in layers]
    left = np.flatnonzero(~np.all(done, axis=0)).tolist()
    assert 19 in left

    images.notes.unlink()
    found = extract(network, images, layers, tmp_path / "two", hardware=hardware, digests=digests)
    assert sorted(map(int, images.notes.read_text().split())) == left
    assert_same(found, extract(network, PngImages(MANY), layers, tmp_path / "one", hardware=ONE_BY_ONE))


def test_two_processes_at_once_wait_for_each_other_and_share_the_work(network, tmp_path):
    """With their layers in different orders, which must not make each wait for the other."""
    reads = tmp_path / "reads"

    class Slow(PngImages):
        def read(self, index):
            with reads.open("a") as file:
                file.write(f"{index}\n")
            time.sleep(0.01)
            return super().read(index)

    images = Slow(MANY)
    digests = digests_of(images)

    def start(layers):
        return start_process(
            lambda: extract(network, images, layers, tmp_path / "both", hardware=ONE_BY_ONE, digests=digests)
        )

    assert [*map(exit_code, [start(["conv5", "fc7"]), start(["fc7", "conv5"])])] == [0, 0]
    assert len(reads.read_text().split()) == 24
    found = extract(network, images, ["conv5", "fc7"], tmp_path / "both", hardware=ONE_BY_ONE)
    assert_same(found, extract(network, PngImages(MANY), ["conv5", "fc7"], tmp_path / "one", hardware=ONE_BY_ONE))


def test_locks_are_taken_in_the_same_order_whatever_that_of_the_layers(network, tmp_path, monkeypatch):
    monkeypatch.setattr("sppnet.transfer.feature_files.LOCK_TIMEOUT", -1)
    with locked_by_another_process(tmp_path / "conv5"), pytest.raises(TimeoutError, match="conv5"):
        extract(network, random_images(AWKWARD[:2]), ["fc7", "conv5"], tmp_path)
    assert not (tmp_path / "fc7").exists()


# Wrong arguments: one line before any image is read.


class Unread(PngImages):
    def read(self, index):
        raise AssertionError("an image was read")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["conv6"]}, r"^layers='conv6': must be one of conv1, .*fc8, pixels$"),
        ({"layers": []}, r"^layers=\[\]: must name at least one layer"),
        ({"view": "whole"}, r"^view='whole': must be one of full, crop, warp$"),
        ({"scale": 5}, r"^a scale of 5: must be from \d+ to 4096 pixels"),
        ({"scale": 4097}, r"^a scale of 4097: must be from"),
        ({"images": Unread([])}, r"^features: no images$"),
        ({"network": build().train()}, r"^features: the network is in training mode.*eval\(\)"),
        ({"network": build(levels=None, input_side=96)}, r"^view=full at a scale of 64: .*view=warp at a scale of 96$"),
    ],
)
def test_wrong_arguments_are_refused_before_an_image_is_read(network, tmp_path, options, message):
    options = {"network": network, "images": Unread(MANY), "layers": ["fc7"], "folder": tmp_path / "f"} | options
    with pytest.raises(ValueError, match=message) as caught:
        extract(**options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "f").exists()


def test_square_views_of_another_side_are_refused_without_a_pyramid():
    network = build(levels=None, input_side=96)
    check_view(network, ["fc7"], "crop", 96)
    with pytest.raises(ValueError, match=r"takes 96 x 96 images only; use view=crop or view=warp at a scale of 96"):
        check_view(network, ["fc7"], "warp", 97)


# Memory.


def test_features_take_more_space_than_the_memory_that_extraction_may_use(tmp_path):
    network, images = build(), PngImages([np.full((1, 1, 3), i, np.uint8) for i in range(100)])
    extractor = FeatureExtractor(network, layers=["conv1"], view="crop", scale=400)
    matrix = 2 * 100 * extractor.lengths()["conv1"]
    allowed = 24 << 20
    assert matrix > 1.5 * allowed

    def work():
        used = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0])
        resource.setrlimit(resource.RLIMIT_DATA, ((used << 10) + allowed,) * 2)
        extract(network, images, ["conv1"], tmp_path, view="crop", scale=400, hardware=ONE_BY_ONE)

    assert in_a_process(work) == 0
    assert (tmp_path / "conv1" / "features.npy").stat().st_size > matrix
