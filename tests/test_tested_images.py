"""Images of a test found again: only exactly these, with their sizes and as thumbnails."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import make_image_folder
from made_reports import make_tested_run
from sppnet.data.images import read_image_size
from sppnet.data.sources import open_data
from sppnet.results.runs import read_runs
from sppnet.results.tested_images import find_tested_images, thumbnail


@pytest.fixture
def place(tmp_path):
    """A folder with images/ and the scores of a run on them."""
    make_image_folder(tmp_path / "images", train=1, val=4)
    make_tested_run(tmp_path / "runs", tmp_path / "images", views=("center",))
    (run,) = read_runs([str(tmp_path / "runs")])
    return tmp_path, run.scores["center"]


def found(place):
    folder, scores = place
    return find_tested_images(open_data("folder", root=str(folder / "images")), scores)


def test_the_images_are_in_the_order_of_the_scores_with_their_sizes(place):
    tested = found(place)
    folder, scores = place
    assert [tested.images.name(i) for i in range(8)] == scores.names.tolist()
    sizes = [read_image_size(folder / "images" / name, name) for name in scores.names]
    assert tested.sizes.tolist() == [list(size) for size in sizes]
    with Image.open(io.BytesIO(tested.thumbnail(3))) as small:
        assert (small.format, small.size) == ("JPEG", sizes[3][::-1])  # small images keep their size


def test_moved_images_are_found(place):
    folder, scores = place
    (folder / "images").rename(folder / "moved")
    assert len(find_tested_images(open_data("folder", root=str(folder / "moved")), scores).sizes) == 8


def swap_two(folder):
    first, second = folder / "val" / "cat" / "0.jpg", folder / "val" / "dog" / "0.jpg"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_two, "the same names, but other labels or contents"),
        (lambda folder: (folder / "val/cat/1.jpg").unlink(), "found 7 images, .* of 8, val/cat/1.jpg is not there"),
        (lambda folder: shutil.copy(folder / "val/cat/1.jpg", folder / "val/cat/9.jpg"), "found 9 images, .* are of 8"),
        (lambda folder: (folder / "val/cat/1.jpg").rename(folder / "val/cat/x.jpg"), "val/cat/1.jpg is not there"),
        (lambda folder: (folder / "val/cat/1.jpg").write_bytes(b"no"), "val/cat/1.jpg: not an image that can be read$"),
    ],
)
def test_other_images_are_refused(place, change, message):
    change(place[0] / "images")
    with pytest.raises(ValueError, match=message):
        found(place)


def test_scores_that_do_not_say_of_what_they_are_are_refused(place):
    place[1].about.pop("part")
    with pytest.raises(ValueError, match="do not say of which images"):
        found(place)


def test_an_image_that_vanishes_has_no_thumbnail(place):
    tested = found(place)
    (place[0] / "images" / tested.images.name(0)).unlink()
    assert tested.thumbnail(0) is None


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1, 1), (1, 1)), ((320, 160), (160, 80)), ((7, 1000), (1, 160)), ((1000, 1), (160, 1)), ((160, 13), (160, 13))],
)
def test_thumbnails_keep_the_aspect_and_at_least_a_pixel(size, expected):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    with Image.open(io.BytesIO(thumbnail(image))) as small:
        assert small.size[::-1] == expected


def test_a_thumbnail_shows_the_image():
    pixels = np.zeros((200, 300, 3), np.uint8)
    pixels[:, 150:] = (250, 20, 20)
    small = np.asarray(Image.open(io.BytesIO(thumbnail(torch.from_numpy(pixels).permute(2, 0, 1)))))
    assert abs(small[50, 30].astype(int) - [0, 0, 0]).max() < 12
    assert abs(small[50, 130].astype(int) - [250, 20, 20]).max() < 12
