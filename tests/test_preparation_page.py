"""The page about a prepared data set: counts against counting by hand, findings with thumbnails."""

import html
import json
import re
from collections import Counter

import pytest

from conftest import jpeg, make_image_folder
from sppnet.data.images import read_image_size
from sppnet.data.prepare import prepare
from sppnet.data.shards import Settings
from sppnet.data.sources import open_data
from sppnet.data.survey import LARGER, RATIOS, count_image, no_findings, survey
from sppnet.results.preparation_page import preparation_page
from test_prepare import saved, smooth

SMALL = Settings(short_side=48, quality=95)
CLASSES = ("<b>cat", "dog $x$")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data set with odd files, and the report of its preparation."""
    place = tmp_path_factory.mktemp("prepared")
    make_image_folder(place / "images", CLASSES, train=4, val=2)
    for name, content in {
        "broken.jpg": b"\xff\xd8 no image",
        "png.jpg": saved(smooth(70, 140, 51), "PNG"),
        "twice.jpg": jpeg(smooth(96, 131, 54)),
        "twice again.jpg": jpeg(smooth(96, 131, 54)),
    }.items():
        (place / "images" / "train" / CLASSES[0] / name).write_bytes(content)
    data = open_data("folder", root=str(place / "images"))
    return data, prepare(data, place / "store", SMALL, workers=0)


def test_images_are_counted_by_class_size_and_shape(prepared):
    data, report = prepared
    assert report["train"]["labels"] == {"0": 7, "1": 4}
    assert report["validation"]["labels"] == {"0": 2, "1": 2}

    sides, ratios = Counter(), Counter()
    for i in range(len(data.val)):
        height, width = read_image_size(f"{data.val.root}/{data.val.name(i)}", "")
        sides[next(end for end in (16, 24, 32, 48, 64, 96) if min(height, width) <= end)] += 1
        ratios[min(RATIOS, key=lambda r: max(a := eval(r.replace(":", "/")) * height / width, 1 / a))] += 1
    assert report["validation"]["shorter_sides"] == {str(end): count for end, count in sides.items()}
    assert report["validation"]["ratios"] == ratios


@pytest.mark.parametrize(
    ("size", "side", "ratio"),
    [
        ((1, 1), "16", "1:1"),
        ((16, 17), "16", "1:1"),
        ((17, 17), "24", "1:1"),
        ((300, 400), "384", "4:3"),
        ((400, 300), "384", "3:4"),
        ((1000, 10), "16", "1:4"),
        ((4096, 9000), "4096", "2:1"),
        ((5000, 5001), LARGER, "1:1"),
    ],
)
def test_sizes_fall_into_bins(size, side, ratio):
    facts = no_findings()
    count_image(facts, 3, *size)
    assert (facts["labels"], facts["shorter_sides"], facts["ratios"]) == ({"3": 1}, {side: 1}, {ratio: 1})


def test_counts_of_shards_are_added_up():
    shards = []
    for label in (0, 1, 1):
        shards.append(no_findings())
        count_image(shards[-1], label, 20, 20)
    total = survey({"train": shards, "validation": []}, {"train": [], "validation": []})
    assert total["train"]["labels"] == {"0": 1, "1": 2}
    assert total["train"]["shorter_sides"] == {"24": 3}
    assert total["validation"]["labels"] == {}


def test_the_page_shows_findings_and_escapes_names(prepared):
    data, report = prepared
    page = preparation_page(report, data)
    text = page.html()
    assert "<b>cat" not in text
    kinds = ("misnamed", "cmyk", "rotated", "tiny", "duplicate")
    found = [report[split][kind] for split in ("train", "validation") for kind in kinds]
    assert text.count("<img") == sum(min(5, len(names)) for names in found) > 2
    for line in ("Training images that cannot be read: 1.", "Training images that have the same bytes", "is PNG"):
        assert line in text
    rows = re.findall(r"<tr><td>(.*?)</td><td class=\"number\">(\d+)</td><td class=\"number\">(\d+)</td></tr>", text)
    assert {html.unescape(name): (int(a), int(b)) for name, a, b in rows if "cat" in name or "dog" in name} == {
        CLASSES[0]: (7, 2),
        CLASSES[1]: (4, 2),
    }


def test_a_report_of_an_old_version_has_no_counts(prepared):
    data, report = prepared
    old = json.loads(json.dumps(report))
    for split in ("train", "validation"):
        for key in ("labels", "shorter_sides", "ratios"):
            del old[split][key]
    text = preparation_page(old, data).markdown()
    assert "An earlier version prepared some of it" in text
    assert "Training images that cannot be read: 1." in text


def test_a_data_set_without_findings_says_so(tmp_path):
    data = open_data("folder", root=str(make_image_folder(tmp_path / "images", train=1, val=1)))
    report = survey({"train": [], "validation": []}, {"train": [], "validation": []})
    assert "No image is odd" in preparation_page(report, data).markdown()


def test_many_classes_are_drawn_as_a_curve(tmp_path):
    data = open_data("folder", root=str(make_image_folder(tmp_path / "i", tuple(map(str, range(61))), train=1, val=1)))
    shard = no_findings() | {"images": 61}
    for label in range(61):
        count_image(shard, label, 20, 20)
    report = survey({"train": [shard], "validation": [shard]}, {"train": [], "validation": []})
    assert "Training images per class: 1." in preparation_page(report, data).html()
