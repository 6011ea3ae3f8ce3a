"""The command `explain`: its pages against what the network computes, and what happens to wrong images."""

import base64
import io
import re
import subprocess
from collections import Counter

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from conftest import jpeg, make_image_folder, names, random_images
from sppnet.commands.configs import CONFIGS
from sppnet.commands.explain import explain
from sppnet.commands.naming import run_directory
from sppnet.commands.settings import plain, resolved
from sppnet.data.images import decode_image
from sppnet.data.photos import find_photos
from sppnet.data.sources import open_data
from sppnet.network import load_network, save_network
from sppnet.results.page import Page
from sppnet.runtime.names import listing
from sppnet.runtime.run_directory import RunDirectory
from sppnet.use.evidence import class_evidence, predicted_class
from sppnet.use.explain import explain_image
from sppnet.use.explanation_pages import add_photo
from sppnet.use.explanation_pictures import fields_picture, map_picture, square_around
from sppnet.use.network_views import MapCells, NetworkView
from sppnet.use.responses import response_maps
from test_configs import composed
from test_network_views import small_network

CPU = ["hardware.accelerator=cpu", "hardware.workers=0"]
CHANNELS = {"conv5": 13, "pool1": 5}
CLASSES = ("a&b", "<i>cat", "dog")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a data set, a run whose filter 5 is dead, checkpoints and photos."""
    place = tmp_path_factory.mktemp("place")
    make_image_folder(place / "images", CLASSES[1:], train=1, val=4)
    network = small_network(classes=CLASSES)
    torch.nn.init.zeros_(network.backbone.conv5.weight[5])
    config = composed(
        "recipe=paper", "data=folder", f"data.root={place / 'images'}", "backbone.width=0.05", "sizes.cycle=[56]"
    )
    RunDirectory(place / "run", run_directory(config).config).claim()
    (place / "run" / "checkpoints").mkdir()
    save_network(network, place / "run" / "checkpoints" / "last.ckpt")
    save_network(small_network(), place / "unnamed.ckpt")
    save_network(small_network(levels=None, input_side=48, classes=CLASSES), place / "flat.ckpt")

    images = random_images([(70, 93), (1, 1), (50, 40)])
    (place / "photos").mkdir()
    for index, name in enumerate(("a.png", "<b>.png", "c.png")):
        (place / "photos" / name).write_bytes(images.read(index))
    return place


@pytest.fixture(scope="module")
def defaults():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("explain", ["run=run", *CPU])


@pytest.fixture
def run(place, defaults, monkeypatch, capfd, tmp_path):
    """Runs the command in `place`; returns its exit code and its outputs, and the page, which is elsewhere."""
    monkeypatch.chdir(place)

    def run(**settings):
        code, page = 0, tmp_path / "page.html"
        try:
            explain(resolved(OmegaConf.create({**plain(defaults), "page": str(page), **settings})))
        except SystemExit as stopped:
            code = stopped.code
        html = page.read_text() if page.exists() else ""
        return subprocess.CompletedProcess(["explain"], code, *capfd.readouterr()), html

    return run


def brute_force(network, images, view, layer, number, top):
    """(value, class, name, x, y) of a filter's strongest responses above 0, from the maps of all images."""
    found = []
    for i in range(len(images)):
        values = response_maps(network, view.image(decode_image(images.read(i), "")), layer, "")[number]
        y, x = divmod(int(values.argmax()), values.shape[1])
        place = MapCells.of(network, layer).centers(np.array([x, y]))
        found.append((float(values.max()), images.classes[images.labels[i]], images.name(i), *place))
    return sorted((row for row in found if row[0] > 0), key=lambda row: -row[0])[:top]


@pytest.mark.parametrize(("layer", "filters"), [("conv5", None), ("pool1", [3, 0])])
def test_the_page_of_a_data_set_has_the_strongest_responses_of_every_filter(place, run, layer, filters):
    done, html = run(layer=layer, filters=filters, top=3)
    assert done.returncode == 0, done.stderr
    network = load_network(place / "run")
    images = open_data("folder", root=str(place / "images")).val
    view = NetworkView(64)  # 8/7 of the crops of training

    shown = [int(number) for number in re.findall(r"<h2>Filter (\d+)</h2>", html)]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]
    assert [int(row[0]) for row in rows[2:]] == shown
    expected = [brute_force(network, images, view, layer, number, 3) for number in range(CHANNELS[layer])]
    responding = [number for number in range(CHANNELS[layer]) if expected[number]]
    assert shown == (filters or sorted(responding, key=lambda number: -expected[number][0][0]))
    captions = iter(re.findall(r"<figcaption>(.*?)\n(.*?)\nat \((\d+), (\d+)\)</figcaption>", html))
    for number, row in zip(shown, rows[2:], strict=True):
        assert row[1] == f"{expected[number][0][0]:.3g}"
        counts = Counter(class_name for _, class_name, *_ in expected[number])
        assert row[2] == ", ".join(f"{class_name} {count}" for class_name, count in counts.most_common())
        for value, class_name, name, x, y in expected[number]:
            escaped = [text.replace("<", "&lt;").replace(">", "&gt;") for text in (f"{class_name}: {value:.3g}", name)]
            assert next(captions) == (*escaped, str(round(x)), str(round(y)))
    assert next(captions, None) is None

    assert len(re.findall(r'<img src="data:image/jpeg;base64,', html)) == 2 * sum(
        len(expected[number]) for number in shown
    )
    assert not re.search(r'(src|href)="?https?:', html)
    assert "<i>cat" not in html
    assert "images/s\nwritten: " in done.stdout
    dead = [str(number) for number in range(CHANNELS[layer]) if number not in responding]
    assert ("5" in dead) == (layer == "conv5")
    assert (f"{len(dead)} filters respond to no image: {listing(dead)}." in html) == (layer == "conv5")
    field = MapCells.of(network, layer).side
    assert f"A cell of {layer} sees {field} x {field} pixels, its receptive field." in html
    assert "whole images at shorter side 64" in html


def test_a_dead_filter_that_is_asked_for_is_said_to_be_dead(run):
    done, html = run(filters=[5])
    assert re.search(r"\| +5 \| none +\|", done.stdout)
    assert "<h2>Filter 5</h2>\n<p>It responds to no image.</p>" in html


def test_the_page_is_in_the_run_unless_another_place_is_given(place, run):
    done, html = run(page=None, filters=[0], layer="conv1", top=1)
    page = place / "run" / "explain" / "conv1.html"
    assert done.stdout.endswith("written: run/explain/conv1.html\n")
    assert page.read_text().count("<h2>") == 1
    assert html == ""
    done, _ = run(run="unnamed.ckpt", images="photos", page=None)
    assert (place / "unnamed.ckpt.explain" / "photos.html").is_file()


def test_filters_of_a_layer_and_the_data_may_be_any(place, run):
    """The classes of the data need not be those of the network, and a checkpoint has no data of its own."""
    done, html = run(
        run="flat.ckpt", data={"source": "folder", "root": str(place / "images" / "val")}, part="all", filters=[5]
    )
    assert done.returncode == 0, done.stderr
    assert "8 images of folder (all)" in done.stdout
    assert "central 48 x 48 pixels of whole images at shorter side 55" in html


def test_a_check_is_printed_and_on_the_page(run):
    for _ in range(2):
        done, html = run(filters=[1], check=6, grey=20)
        (sentence,) = re.findall(r"^Greying 20 x 20 pixels .*", done.stdout, re.MULTILINE)
        assert re.search(r" by -?0\.\d{3} \(-?0\.\d{3} to -?0\.\d{3}\), around a random cell by ", sentence)
        assert sentence.endswith("more. Means over 6 images with 95 % intervals.")
        assert sentence in html


@pytest.mark.parametrize(("checkpoint", "side"), [("run", None), ("unnamed.ckpt", None), ("flat.ckpt", 48)])
def test_the_page_of_photos_has_what_speaks_for_the_predicted_class(place, run, checkpoint, side):
    done, html = run(run=checkpoint, images="photos", scale=64)
    assert done.returncode == 0, done.stderr
    network, view, photos = load_network(place / checkpoint), NetworkView(64, side), find_photos(str(place / "photos"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]
    assert rows[0] == ["photo", "class", "probability", "log odds"]
    assert [row[0] for row in rows[2:]] == names(photos) == ["<b>.png", "a.png", "c.png"]
    for index, row in enumerate(rows[2:]):
        image = view.image(decode_image(photos.read(index), ""))
        target = predicted_class(network, image)
        evidence = class_evidence(network, image, target)
        title = CLASSES[target] if network.classes else f"class {target}"
        assert row[1:] == [title, f"{100 * evidence.probabilities[target]:.1f} %", f"{evidence.score:+.2f}"]
        cells = "".join(f'<td class="number">{value:+.2f}</td>' for value in (*evidence.by_level, evidence.total))
        assert f"<tr>{cells}</tr>" in html
    assert "&lt;b&gt;.png" in html
    assert "<b>" not in html
    assert html.count("<img") == 3 * (2 + 10)


def test_another_class_is_explained_and_compared(place, run):
    done, html = run(images="photos/a.png", **{"class": "dog", "against": "a&b"})
    image = NetworkView(64).image(decode_image((place / "photos" / "a.png").read_bytes(), ""))
    score = class_evidence(load_network(place / "run"), image, 2, 0).score
    assert "| logit minus that of a&b |" in done.stdout
    assert f" {score:+.2f} |" in done.stdout
    assert f"The logit of dog minus that of a&amp;b is {score:+.2f}." in html
    assert "what speaks for dog; blue: against it" in html


def test_unusable_photos_are_listed_and_the_others_explained(run, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    (tmp_path / "photos" / "b.jpg").write_bytes(jpeg(np.zeros((40, 50, 3), np.uint8)))
    done, html = run(images=str(tmp_path / "photos"))
    assert done.returncode == 1
    assert done.stderr == "warning: 1 of 2 photos could not be used: a.jpg\n"
    assert re.search(r"\| a\.jpg \| a\.jpg: the file is empty +\|", done.stdout)
    assert "<td>a.jpg: the file is empty</td>" in html
    assert "<h2>b.jpg</h2>" in html


def test_a_page_has_a_limited_number_of_photos(run, monkeypatch):
    monkeypatch.setattr("sppnet.commands.explanations.MOST_PHOTOS", 2)
    done, html = run(images="photos", filters=[0])
    assert "the first 2 of 3 photos\n" in done.stdout
    assert html.count("<h2>") == 2


def test_an_interrupted_command_leaves_the_old_page(place, run_here, tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    page.write_text("before")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sppnet.commands.explanations.add_photo", interrupted)
    done = run_here("explain", "run=run", "images=photos", f"page={page}", *CPU, cwd=place)
    assert (done.returncode, done.stderr) == (130, "interrupted; no file was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert page.read_text() == "before"


def test_an_image_to_which_no_filter_responds_is_said():
    network = small_network(classes=CLASSES)
    for parameter in network.backbone.parameters():
        torch.nn.init.zeros_(parameter)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    explained = explain_image(network, image, "a.png", layer="conv5", target=1)
    assert explained.filters == []
    page = Page("")
    add_photo(page, network, explained, "conv5")
    assert "No filter of conv5 responds to this image." in page.markdown()
    assert "Nothing speaks for &lt;i&gt;cat." in page.html()


# Pictures.


def pixels_of(file):
    return np.asarray(Image.open(io.BytesIO(file)), int)


@pytest.mark.parametrize(
    ("center", "side", "expected"),
    [
        ((50, 30), 11, (45, 25, 56, 36)),
        ((50, 30), 139, (26, 6, 76, 56)),  # half of the shorter side
        ((0, 99), 10, (0, 90, 10, 100)),
        ((199, -5), 10, (190, 0, 200, 10)),
    ],
)
def test_the_square_around_a_cell_lies_inside_the_image(center, side, expected):
    assert square_around(np.array(center, float), side, 100, 200) == expected
    assert square_around(np.array([0.0, 0.0]), 7, 1, 1) == (0, 0, 1, 1)


def test_a_map_is_coloured_where_its_values_are():
    cells = MapCells.of(small_network(), "conv5")  # every 16 pixels from 15 on
    values = torch.zeros(5, 7)
    values[1, 4], values[3, 2] = 2.0, -2.0
    picture = pixels_of(map_picture(torch.full((3, 90, 120), 128, dtype=torch.uint8), values, cells))
    red, green, blue = picture[31, 79]  # y, x of the cell (4, 1)
    assert min(red, green) > 200 > blue + 50
    red, green, blue = picture[63, 47]
    assert blue > 200 > green > red
    assert np.abs(picture[85, 110] - 128).max() < 8
    assert np.abs(pixels_of(map_picture(torch.full((3, 9, 9), 99).byte(), values[:1, :1], cells)) - 99).max() < 8


def test_windows_and_their_centres_are_drawn():
    cells = MapCells(stride=8, center=20.0, window=(10, 10, 31, 31), is_receptive_field=True)
    image = torch.full((3, 80, 100), 128, dtype=torch.uint8)
    picture = pixels_of(fields_picture(image, np.array([[2, 0], [0, 4]]), cells, ["", ""], ["#ff0000", "#0000ff"]))
    # On the left side of each window, and of the dot in its middle, x and y of the cell times 8 further.
    for y, x, strongest in ((20, 27, 0), (20, 34, 0), (60, 11, 2), (52, 18, 2)):
        assert picture[y, x].argmax() == strongest, (y, x)
        assert picture[y, x].max() > np.median(picture[y, x]) + 80, (y, x)
    assert np.abs(picture[20, 80] - 128).max() < 8


def test_pictures_of_a_page_are_files_that_a_browser_shows(run):
    _, html = run(images="photos/c.png", filters=[0])
    for encoded in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html):
        assert Image.open(io.BytesIO(base64.b64decode(encoded))).format == "JPEG"
