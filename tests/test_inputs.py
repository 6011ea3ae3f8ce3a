"""Inputs of networks: made in loader processes or threads, handed over in one tensor, grouped by shape."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from conftest import PngImages, make_image_folder, random_images
from sppnet.data.images import UnreadableImage
from sppnet.data.inputs import (
    ImageInputs,
    Inputs,
    images_per_pass,
    load_groups,
    load_inputs,
    loader_batch_size,
    pack,
    unpack,
)
from sppnet.data.sources import open_data


def whole(image):
    """The image, and its top left corner as a stack of one: tensors of different numbers of dimensions."""
    pixels = image.permute(1, 2, 0).contiguous()
    return [pixels, pixels[None, :5, :7]]


def same(before, after):
    return before.image_index == after.image_index and all(map(torch.equal, before.tensors, after.tensors))


def groups(images, per_pass, workers=0):
    return list(load_groups(images, whole, range(len(images)), pixels=10_000, per_pass=per_pass, workers=workers))


def test_inputs_are_unpacked_as_they_were_packed_in_one_tensor():
    dataset = ImageInputs(random_images(), whole)
    sent = [dataset[i] for i in range(len(dataset))]
    packed = pack(sent)
    assert packed.pixels.dtype == torch.uint8
    assert packed.pixels.ndim == 1
    received = unpack(packed)
    packed.pixels.zero_()  # images that wait keep no shared memory
    assert all(map(same, sent, received))


@pytest.mark.parametrize("workers", [0, 2])
def test_inputs_come_in_the_order_that_was_asked_for(workers):
    images, order = random_images(), [3, 0, 5, 1]
    loaded = list(load_inputs(images, whole, order, pixels=10_000, workers=workers))
    assert [inputs.image_index for inputs in loaded] == order
    assert all(torch.equal(i.tensors[0], torch.from_numpy(images.pixels[i.image_index])) for i in loaded)


@pytest.mark.parametrize("workers", [0, 1])
def test_groups_have_equal_shapes_and_together_every_image_once(workers):
    images = random_images([(7, 11), (11, 7), (13, 13), (7, 11), (1, 1), (11, 7), (7, 11)])
    made = groups(images, per_pass=10**6, workers=workers)
    assert sorted(sorted(inputs.image_index for inputs in group) for group in made) == [[0, 3, 6], [1, 5], [2], [4]]


def test_a_group_holds_as_many_images_as_a_pass_takes_but_at_least_one():
    images = random_images([(10, 10)] * 7)
    assert [len(group) for group in groups(images, per_pass=399)] == [3, 3, 1]
    assert [len(group) for group in groups(images, per_pass=400)] == [4, 3]
    assert [len(group) for group in groups(images, per_pass=99)] == [1] * 7


def test_a_pass_is_counted_by_the_largest_tensor():
    tensors = [torch.zeros(2, 3, 3, dtype=torch.uint8), torch.zeros(4, 5, 3, dtype=torch.uint8)]
    assert images_per_pass(Inputs(0, tensors), 59) == 2
    assert images_per_pass(Inputs(0, tensors), 60) == 3
    assert images_per_pass(Inputs(0, tensors), 1) == 1


def test_the_shape_that_takes_most_memory_goes_first_when_too_many_images_wait(monkeypatch):
    images = random_images([(10, 10), (20, 20), (10, 10), (30, 10), (10, 10)])
    monkeypatch.setattr("sppnet.data.inputs.MAX_WAITING_BYTES", 3 * (100 + 35 + 400 + 35))
    assert [[i.image_index for i in group] for group in groups(images, 10**6)] == [[1], [3], [0, 2, 4]]


def test_a_loader_batch_holds_up_to_eight_images_and_four_megabytes():
    assert loader_batch_size(1) == 8
    assert loader_batch_size((4 << 20) // 3 // 5) == 5
    assert loader_batch_size(10**9) == 1


def test_an_unreadable_image_is_an_error_with_its_name_and_how_to_skip_it(tmp_path):
    root = make_image_folder(tmp_path / "images", train=2, val=2)
    (root / "val" / "dog" / "1.jpg").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"val/dog/1\.jpg: not an image .* exclude=\[val/dog/1\.jpg\]"):
        groups(open_data("folder", root=str(root)).val, 10**6)


def test_no_images_make_no_groups():
    assert groups(PngImages([]), 10**6) == []


# Threads, where there are no loader processes.


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def in_threads(images, prepare=whole, pixels=10**9):
    """Loads one image per thread at once, as for images of so many pixels."""
    return load_inputs(images, prepare, range(len(images)), pixels=pixels, workers=0)


@pytest.mark.usefixtures("three_threads")
def test_as_many_images_are_loaded_at_once_as_torch_has_threads():
    together = threading.Barrier(3, timeout=60)

    def prepare_together(image):
        together.wait()
        return whole(image)

    loaded = in_threads(random_images([(7, 11)] * 6), prepare_together)
    assert [inputs.image_index for inputs in loaded] == [0, 1, 2, 3, 4, 5]


@pytest.mark.usefixtures("three_threads")
def test_threads_load_only_while_inputs_are_waited_for():
    prepared = []

    def prepare_and_note(image):
        prepared.append(image.shape[2])
        return whole(image)

    loaded = in_threads(random_images([(1, width) for width in range(1, 9)]), prepare_and_note)
    for taken in range(1, 9):
        next(loaded)
        assert sorted(prepared) == list(range(1, min(8, -(-taken // 3) * 3) + 1))


@pytest.mark.usefixtures("three_threads")
def test_each_of_the_threads_computes_in_one_thread_of_torch_and_others_keep_theirs():
    seen = []

    def prepare_and_note(image):
        seen.append(torch.get_num_threads())
        return whole(image)

    list(in_threads(random_images(), prepare_and_note))
    assert set(seen) == {1}
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3


@pytest.mark.usefixtures("three_threads")
def test_inputs_before_an_unreadable_image_come_first(tmp_path):
    root = make_image_folder(tmp_path / "images", train=2, val=2)
    (root / "val" / "dog" / "0.jpg").write_bytes(b"no image")
    loaded = in_threads(open_data("folder", root=str(root)).val)
    assert [next(loaded).image_index, next(loaded).image_index] == [0, 1]
    with pytest.raises(UnreadableImage, match=r"val/dog/0\.jpg"):
        next(loaded)


@pytest.mark.usefixtures("three_threads")
def test_threads_leave_the_filters_of_warnings_alone():
    """Decoding ignores warnings for a moment; interleaved, the last to end would restore what another had set."""
    before = warnings.filters
    list(in_threads(random_images([(13, 11)] * 30)))
    assert warnings.filters is before
