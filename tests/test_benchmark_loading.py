"""Peers load what ours loads; limits and parts are of the same images. No timing is tested."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet.benchmark import loading, loading_parts
from sppnet.benchmark.bench import Bench
from sppnet.benchmark.comparisons import fastest
from sppnet.benchmark.loaders import (
    Loading,
    our_epoch,
    our_loader,
    plain_works,
    random_area,
    random_place,
    timm_epochs,
    torchvision_epochs,
)
from sppnet.benchmark.loading_parts import Parts, bound_of, files, kept, our_loading, parts_of, random_areas, raw
from sppnet.data.image_files import ImageFiles
from sppnet.data.images import decode_image, resize_shorter_side
from sppnet.data.sources import open_data
from sppnet.network import IMAGENET_MEAN, IMAGENET_STD

LOADING = Loading(batch_size=4, workers=0, device=torch.device("cpu"))
STD = torch.tensor(IMAGENET_STD)[:, None, None]
MEAN = torch.tensor(IMAGENET_MEAN)[:, None, None]


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    """43 files of 300 x 400, brighter from left to right by 200 in all, of two classes, and two to validate."""
    root = tmp_path_factory.mktemp("ramps")
    pixels = np.broadcast_to(np.linspace(20, 220, 400), (300, 400)).astype(np.uint8)
    for i in range(45):
        folder = root / ("val" if i >= 43 else "train") / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.stack([pixels, 255 - pixels, pixels // 2], axis=2)).save(folder / f"{i}.png")
    return root


def our_peers(root, augmentation):
    return {"ours": our_epoch(our_loader(open_data("folder", root=str(root)), LOADING, augmentation), LOADING.device)}


AREAS = {
    "ours": lambda root: our_peers(root, random_areas()),
    "torchvision": lambda root: torchvision_epochs(root / "train", LOADING, random_area()),
    "timm": lambda root: timm_epochs(root / "train", LOADING),
}
PLACES = {
    "ours": lambda root: our_peers(root, None),
    "torchvision": lambda root: torchvision_epochs(root / "train", LOADING, random_place()),
}


def loaded(epoch):
    """Returns the pixels (40, 3, 224, 224) of an epoch as they were in the files, and its labels."""
    torch.manual_seed(0)
    random.seed(0)
    batches = list(epoch())
    images, labels = torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])
    assert images.dtype == torch.float32
    assert images.shape == (40, 3, 224, 224)  # the smaller last batch is left out
    assert labels.dtype == torch.int64
    assert 18 <= labels.sum() <= 21
    return images * STD + MEAN


def widths_of(pixels):
    """Returns which part of the width of its file each crop has; negative for mirrored ones."""
    return (pixels[:, 0, 112, -1] - pixels[:, 0, 112, 0]) / 200


def check_colors(pixels):
    """All channels follow from the first, as in the files: normalized with the right mean and deviation."""
    for i in (0, 39):
        red, green, blue = pixels[i]
        torch.testing.assert_close(green, 255 - red, atol=1.6, rtol=0)
        torch.testing.assert_close(blue, red / 2, atol=1.6, rtol=0)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # by timm, which leaves them to Python
@pytest.mark.parametrize("side", AREAS)
def test_all_sides_crop_random_areas_and_mirror_half_of_them(ramps, side):
    for epoch in AREAS[side](ramps).values():
        pixels = loaded(epoch)
        check_colors(pixels)
        widths = widths_of(pixels)
        assert 8 <= (widths < 0).sum() <= 32
        assert widths.abs().min() < 0.45
        assert widths.abs().max() > 0.75
        assert widths.abs().std() > 0.08


@pytest.mark.parametrize("side", PLACES)
def test_all_sides_crop_224_of_256_pixels_and_mirror_half_of_them(ramps, side):
    for epoch in PLACES[side](ramps).values():
        pixels = loaded(epoch)
        check_colors(pixels)
        widths = widths_of(pixels)
        assert 8 <= (widths < 0).sum() <= 32
        torch.testing.assert_close(widths.abs(), torch.full((40,), 224 / 341), atol=0.02, rtol=0)
        assert pixels[:, 0].mean(dim=(1, 2)).std() > 5  # at different places


def test_peers_have_two_settings_each(ramps):
    assert list(AREAS["torchvision"](ramps)) == ["Pillow", "tensors"]
    assert list(AREAS["timm"](ramps)) == ["in workers", "prefetcher"]


def test_the_plain_side_has_one_thread_and_malloc_as_it_comes(monkeypatch):
    calls = []
    monkeypatch.setattr("sppnet.benchmark.timing.keep_freed_memory", lambda keep=True: calls.append(keep))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)

    def epoch():
        yield calls.append(torch.get_num_threads())

    try:
        plain_works({"a": epoch})["a"]()
        assert calls == [False, 1, True]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_the_fastest_setting_is_chosen_after_warming_up(monkeypatch):
    calls, seconds = [], {"a": 3.0, "b": 1.0, "c": 2.0}
    works = {name: partial(calls.append, name) for name in seconds}
    monkeypatch.setattr("sppnet.benchmark.comparisons.seconds_of", lambda work: seconds[work.args[0]])
    assert fastest(works) == ("b", works["b"])
    assert calls == ["a", "b", "c"]


@pytest.fixture
def bench():
    with Bench("cpu", batch_size=2, files=6, hidden=16) as bench:
        bench.workers = 0
        yield bench


def test_every_width_is_compared_with_all_peers(bench):
    names = [comparison.name for comparison in loading.comparisons(bench)]
    for width in ("300", "500", "1,600"):
        rows = [name for name in names if name.startswith(f"files, {width} wide, ")]
        assert len(rows) == 5
        for peer in ("timm's loader", "RandomResizedCrop", "Resize and RandomCrop", "alone", "conversion"):
            assert sum(peer in row for row in rows) == 1
    goals = {comparison.name.partition("wide, ")[2]: comparison.goal.cpu for comparison in loading.comparisons(bench)}
    assert [goals[name] for name in goals if name] == [2, 1.5, 2, 0.9, 0.75]


@pytest.mark.parametrize("width", [300, 500, 1600])
def test_drawn_files_have_their_width(bench, width):
    file = next((bench.files(width, 2) / "train").rglob("*.jpg"))
    with Image.open(file) as image:
        assert image.size == (width, width * 3 // 4)


def test_the_limit_is_the_share_of_one_core_of_decoding_and_resizing_an_epoch(bench, monkeypatch):
    bench.workers, done = 3, []
    decode, resize = loading.decode_image, loading.resize_shorter_side
    monkeypatch.setattr(loading, "decode_image", lambda *file: done.append(file[1]) or decode(*file))
    monkeypatch.setattr(loading, "resize_shorter_side", lambda image, side: done.append(side) or resize(image, side))
    images = open_data("folder", root=str(bench.files())).train
    loading.decoding_and_resizing(bench, images)()
    assert done == [images.name(0), 256, images.name(1), 256]  # 6 images, 3 cores


def test_the_loader_alone_converts_nothing(bench, monkeypatch):
    seen = []
    monkeypatch.setattr("sppnet.classify.datamodule.training_input", lambda *arguments: seen.append(arguments))
    photos = files(bench, 300, None)
    loading.loader_alone(bench, photos).ours()
    assert seen == []
    loading.loader_and_conversion(bench, photos).ours()
    assert [len(batch[0]) for batch in seen] == [2, 2, 2]


@pytest.mark.parametrize("augmentation", [None, random_areas()], ids=["five positions", "random areas"])
def test_parts_add_up_to_the_whole_and_are_measured_once(bench, augmentation, monkeypatch):
    seen, times = [], iter([0.001, 0.002, 0.003, 0.010, 0.020])

    def timed(function, items):
        seen.append([function(item) for item in items])
        return next(times)

    monkeypatch.setattr(loading_parts, "_processor_time", timed)
    monkeypatch.setattr(loading_parts, "_whole_epoch", lambda bench, photos: (0.05, 0.03))
    photos = files(bench, 300, augmentation)
    parts = parts_of(bench, photos).milliseconds
    conversion = 20 / 6  # milliseconds: 6 images at once
    assert parts == pytest.approx(
        {
            "reading": 1,
            "decoding": 2,
            "resizing": 3,
            "cropping and random numbers": 4,
            "conversion": conversion,
            "handing over": 20 - conversion,
            "waiting": 20,
        }
    )
    read, decoded, resized, items, converted = (kind[0] for kind in seen)
    assert read.startswith(b"\xff\xd8")
    assert decoded.shape == (3, 225, 300)
    assert resized.shape == ((3, 256, 341) if augmentation is None else (3, 224, 224))
    assert items["image"].shape == (224, 224, 3)
    assert (converted.shape, converted.dtype) == ((6, 3, 224, 224), torch.float32)
    assert parts_of(bench, photos).milliseconds is parts  # the times have run out
    assert bound_of(bench, photos) == "waiting 40 %, handing over 33 %, cropping and random numbers 8 %"


def test_the_whole_epoch_counts_all_cores_and_all_processes(bench, monkeypatch):
    monkeypatch.setattr(loading_parts, "our_loading", lambda bench, photos: lambda: None)
    monkeypatch.setattr(loading_parts, "seconds_of", lambda work, calls: 2.0)
    processors = iter([10.0, 28.0])
    monkeypatch.setattr(loading_parts, "_seconds_of_processes", lambda: next(processors))
    bench.workers = 3
    assert loading_parts._whole_epoch(bench, files(bench, 300, None)) == pytest.approx((3 * 2 / 6, 18 / (3 * 6)))


def test_parts_are_measured_of_every_size_and_of_a_store(bench, monkeypatch):
    monkeypatch.setattr(loading_parts, "_measured_parts", lambda bench, photos: {"all": 1.0})
    names = [parts.photos for parts in loading_parts.loading_parts(bench)]
    widths, crops = ("300", "500", "1,600"), ("five positions", "random areas")
    every = [f"files, {width} wide, {crop}" for width in widths for crop in crops]
    stores = ["a prepared store, five positions", "a prepared store of pixels, five positions"]
    assert names == [*every, *stores, "decoded images that are kept, five positions"]
    assert loading_parts.loading_parts(bench)[0] == Parts(names[0], {"all": 1.0})


def test_images_that_are_kept_are_read_and_decoded_in_the_first_epoch_only(bench, monkeypatch):
    reads = []
    read = ImageFiles.read
    monkeypatch.setattr(ImageFiles, "read", lambda images, index: reads.append(index) or read(images, index))
    bench.workers = 0
    work = our_loading(bench, kept(bench))
    work()
    assert sorted(reads) == sorted(set(reads)) != []
    once = len(reads)
    work()
    work()
    images = len(kept(bench).open().train)
    assert once <= len(reads) <= images  # those of a last batch that was left out come later
    parts = parts_of(bench, kept(bench)).milliseconds
    assert (parts["reading"], parts["decoding"], parts["resizing"]) == (0, 0, 0)


def test_a_store_of_pixels_holds_the_pixels_of_the_files(bench):
    originals, images = files(bench, 500, None).open().train, raw(bench).open().train
    assert len(images) == len(originals)
    for i in range(len(images)):
        expected = resize_shorter_side(decode_image(originals.read(i), ""), 256)
        assert torch.equal(decode_image(images.read(i), ""), expected)
