"""Decoded images: what they take on disk, and a cache that gives back what was put in, in every process."""

import multiprocessing
import os
import pickle
import resource
import signal
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import jpeg
from sppnet.data import pixels
from sppnet.data.pixels import PixelCache, bytes_on_disk, cached, mean_pixels


def image(height, width, seed=0):
    """A random uint8 image (3, height, width), in channels-last as decoded ones are."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return torch.from_numpy(values).permute(2, 0, 1)


sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(st.lists(st.tuples(st.integers(0, 9), sizes), max_size=20))
def test_an_image_is_given_back_as_it_was_put_in(puts):
    cache, kept = PixelCache(10, 10**9), {}
    for seed, (index, size) in enumerate(puts):
        kept[index] = image(*size, seed)
        cache.put(index, kept[index])
    for index in range(10):
        found = cache.get(index)
        assert (found is None) == (index not in kept)
        if found is not None:
            assert torch.equal(found, kept[index])
            assert found.permute(1, 2, 0).is_contiguous()


def test_a_copy_is_given_back():
    cache = PixelCache(1, 10**9)
    cache.put(0, image(7, 5))
    cache.get(0).zero_()
    assert torch.equal(cache.get(0), image(7, 5))


def test_contiguous_images_and_crops_are_kept_as_well():
    cache, whole = PixelCache(2, 10**9), image(11, 13)
    cache.put(0, whole.contiguous())
    cache.put(1, whole[:, 2:7, 3:13])
    assert torch.equal(cache.get(0), whole)
    assert torch.equal(cache.get(1), whole[:, 2:7, 3:13])


def test_an_image_is_loaded_once():
    loads = []

    def load(index):
        loads.append(index)
        return image(4, 6, index)

    cache = PixelCache(3, 10**9)
    for index in (2, 0, 2, 2, 0):
        assert torch.equal(cached(cache, index, load), image(4, 6, index))
    assert loads == [2, 0]
    assert torch.equal(cached(None, 2, load), image(4, 6, 2))
    assert loads == [2, 0, 2]


def test_processes_that_were_forked_before_share_the_images():
    cache, context = PixelCache(4, 10**9), multiprocessing.get_context("fork")
    for index in (1, 3):
        process = context.Process(target=cache.put, args=(index, image(9, 8, index)))
        process.start()
        process.join(60)
        assert process.exitcode == 0
    assert [cache.get(index) is not None for index in range(4)] == [False, True, False, True]
    assert torch.equal(cache.get(3), image(9, 8, 3))


def test_in_a_process_that_is_spawned_it_stays_empty():
    cache = PixelCache(2, 10**9)
    cache.put(0, image(3, 3))
    other = pickle.loads(pickle.dumps(cache))
    other.put(1, image(3, 3))
    assert other.get(0) is other.get(1) is None


def test_nothing_is_kept_above_the_limit():
    cache = PixelCache(50, 200_000)
    for index in range(50):
        cache.put(index, image(64, 64, index))  # 12,288 bytes each
    kept = [index for index in range(50) if cache.get(index) is not None]
    assert kept == list(range(len(kept)))
    assert 10 <= len(kept) <= 16
    assert cache.nbytes <= 200_000 + 4096
    assert torch.equal(cache.get(9), image(64, 64, 9))


@pytest.mark.parametrize(("images", "size"), [(1_281_167, (256, 1365)), (100, (2400, 2400))])
def test_the_last_of_many_images_and_large_ones_of_few_are_kept(images, size):
    """ImageNet's would not fit into a file of ext4 at 16 MB each, and photos of 6 megapixels not into 16 MB."""
    cache, last = PixelCache(images, 10**9), image(*size)
    cache.put(images - 1, last)
    assert torch.equal(cache.get(images - 1), last)


def test_images_larger_than_their_place_are_not_kept(monkeypatch):
    monkeypatch.setattr(pixels, "FILE_BYTES", 3 * 4096)
    cache = PixelCache(3, 10**9)
    cache.put(0, image(37, 37))  # 4,107 bytes
    cache.put(1, image(35, 39))  # 4,095 bytes
    cache.put(2, image(5, 5))
    assert cache.get(0) is None
    assert torch.equal(cache.get(1), image(35, 39))
    assert torch.equal(cache.get(2), image(5, 5))


@contextmanager
def file_size_limit(size):
    """Lets this process write no file beyond `size` bytes: the system refuses as it does when a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_ends_caching_and_nothing_else():
    cache = PixelCache(4, 10**9)
    cache.put(0, image(20, 20))
    with file_size_limit(cache._slot + 500):
        cache.put(1, image(20, 20, 1))  # the first 500 of 1,200 bytes are written
        cache.put(2, image(20, 20, 2))  # none
    cache.put(3, image(20, 20, 3))
    assert [cache.get(index) is not None for index in range(4)] == [True, False, False, False]
    # Other processes still have their limit, and write behind the part of image 1, which must not come back.
    cache.limit = 10**9
    cache.put(3, image(20, 20, 3))
    assert [cache.get(index) is not None for index in range(4)] == [True, False, False, True]
    assert torch.equal(cache.get(0), image(20, 20))


def test_an_image_that_is_no_longer_whole_in_the_file_is_not_given_back():
    cache = PixelCache(2, 10**9)
    cache.put(1, image(20, 20))
    os.ftruncate(cache._file, cache._slot + 1199)
    assert cache.get(1) is None


def test_a_tenth_of_the_disk_that_was_free_is_left_to_checkpoints_and_others(monkeypatch):
    disk = SimpleNamespace(f_bavail=10_000, f_frsize=1000)
    monkeypatch.setattr("sppnet.data.pixels.os.fstatvfs", lambda file: disk)
    cache = PixelCache(3, 10**9)
    for index, disk.f_bavail in enumerate((1001 + 2, 1001, 1001 + 2)):
        cache.put(index, image(20, 30))  # 1,800 bytes
    assert [cache.get(index) is not None for index in range(3)] == [True, False, True]


def test_a_closed_cache_takes_no_disk_and_keeps_nothing():
    cache = PixelCache(2, 10**9)
    cache.put(0, image(20, 20))
    cache.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(cache._file)
    cache.put(1, image(20, 20))
    assert cache.get(0) is cache.get(1) is None
    cache.close()  # again


def test_no_file_is_left_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache = PixelCache(2, 10**9)
    cache.put(0, image(20, 20))
    assert list(tmp_path.iterdir()) == []
    assert os.fstat(cache._file).st_dev == tmp_path.stat().st_dev


def test_the_file_ends_with_the_cache():
    cache = PixelCache(2, 10**9)
    file = cache._file
    del cache
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


@pytest.mark.parametrize("size", [(1, 1), (37, 37), (64, 64), (171, 256)])
def test_the_bytes_on_disk_are_those_that_images_take(size, tmp_path):
    cache = PixelCache(10, 10**9)
    for index in range(10):
        cache.put(index, image(*size))
    assert cache.nbytes == pytest.approx(10 * bytes_on_disk(size[0] * size[1]), abs=4096)


class Files:
    """Encoded images in memory, with the interface of `sppnet.data.images.Images`."""

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def read(self, index):
        return self.files[index]

    def name(self, index):
        return f"{index}.jpg"


def test_the_mean_size_of_few_images_is_exact_without_those_that_cannot_be_read():
    files = [jpeg(np.zeros(shape, np.uint8)) for shape in ((7, 10, 3), (13, 11, 3))]
    assert mean_pixels(Files([*files, b"no image"])) == (70 + 143) / 2
    assert mean_pixels(Files(files), shorter_side=14) == (14 * 20 + 17 * 14) / 2  # 13 * 14 / 11 = 16.5, half up
    assert mean_pixels(Files([b"no image"])) == 0


def test_of_many_images_some_from_all_parts_are_read():
    small, large = (jpeg(np.zeros((side, side, 3), np.uint8)) for side in (4, 8))
    files, reads = Files([small] * 500 + [large] * 500), []
    files.read = lambda index: reads.append(index) or files.files[index]
    assert mean_pixels(files) == 40
    assert len(reads) < 100
    assert {0, 999} <= set(reads)
