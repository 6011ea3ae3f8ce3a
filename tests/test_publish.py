"""Published networks: the same network from a folder and from a hub, model cards made of records, damaged files."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from conftest import run_process
from made_runs import make_run
from sppnet.backbones import build_backbone
from sppnet.commands.configs import CONFIGS
from sppnet.commands.evaluated_runs import read_tested_run
from sppnet.commands.publish import publish
from sppnet.commands.scoring import _print_notes
from sppnet.commands.settings import resolved
from sppnet.network import SPPNet, load_network, save_network
from sppnet.results.model_card import CardAbout, model_card
from sppnet.results.runs import read_runs
from sppnet.runtime.published import check_local, is_hub_address, local_folder, parse_hub_address
from sppnet.runtime.run_directory import checkpoint_digest, folder_beside
from sppnet.use.publish import FILES, check_folder, upload, write_published
from stub_hub import stub_hub

CLASSES = ("cat", "<b>dog</b>", "new\nline")


def made_network(seed=0, levels=(3, 1), **options):
    torch.manual_seed(seed)
    options |= {"input_side": 48} if levels is None else {}
    return SPPNet(build_backbone("zf5", width=0.05), levels, 3, hidden=7, classes=CLASSES, **options).eval()


def same(network, other):
    first, second = network.state_dict(), other.state_dict()
    return network.description() == other.description() and all(first[name].equal(second[name]) for name in first)


@pytest.fixture
def folder(tmp_path):
    write_published(tmp_path / "net", made_network(), "# A card\n", crop_side=48)
    return tmp_path / "net"


# The folder.


@pytest.mark.parametrize("levels", [(3, 1), None])
def test_a_published_network_loads_as_the_same(tmp_path, levels):
    network = made_network(levels=levels).to(memory_format=torch.channels_last)
    write_published(tmp_path / "a" / "net", network, "# A card\n", crop_side=48)
    for path in (tmp_path / "a" / "net", str(tmp_path / "a" / "net" / "model.safetensors")):
        loaded = load_network(path)
        assert same(network, loaded)
        assert not loaded.training
    images = torch.randn(2, 3, 48, 48)
    assert loaded(images).equal(network(images))
    assert sorted(path.name for path in (tmp_path / "a" / "net").iterdir()) == sorted(FILES)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["net"]


def test_others_can_read_the_files_without_this_package(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["network"] == made_network().description()
    assert (config["library_name"], config["crop_side"]) == ("sppnet", 48)
    weights = load_file(folder / "model.safetensors")
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in made_network().state_dict().items()
    }
    assert (folder / "README.md").read_text() == "# A card\n"
    assert {oct(path.stat().st_mode) for path in folder.iterdir()} == {oct((folder / "README.md").stat().st_mode)}


def test_a_published_network_is_replaced(folder):
    network = made_network(seed=1)
    write_published(folder, network, "# Another\n", crop_side=64)
    assert same(load_network(folder), network)
    assert (folder / "README.md").read_text() == "# Another\n"


@pytest.mark.parametrize("count", [1, 2])
def test_files_of_two_networks_are_not_taken_for_one(folder, tmp_path, count):
    """As when replacing is interrupted after the first file."""
    write_published(tmp_path / "other", made_network(seed=1), "", crop_side=48)
    (tmp_path / "other" / FILES[count - 1]).replace(folder / FILES[count - 1])
    with pytest.raises(ValueError, match=r"config\.json describes other weights than these; download or publish both"):
        load_network(folder)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", b"", "config.json: not the description of a published network"),
        ("config.json", b"[1]", "must be keys with values"),
        ("config.json", b"{}", "network is missing"),
        ("config.json", b'{"network": 1, "weights": "x", "crop_side": 1}', "network must be a section"),
        ("config.json", b'{"network": {}, "weights": "x", "crop_side": 0}', "crop_side must be a whole number from 1"),
        ("config.json", b"[" * 100_000, "not the description"),
        ("model.safetensors", b"", "config.json describes other weights than these"),
    ],
)
def test_damaged_files_are_named(folder, file, content, words):
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"not a checkpoint of sppnet .*{words}"):
        load_network(folder)


@pytest.mark.parametrize("change", ["missing", "more", "shape", "kind"])
def test_weights_of_another_network_are_refused(folder, change):
    weights = load_file(folder / "model.safetensors")
    name = "fc7.weight"
    if change == "missing":
        del weights[name]
    elif change == "more":
        weights["fc9.weight"] = torch.zeros(1)
    else:
        weights[name] = weights[name].int() if change == "kind" else torch.zeros(1, 7)
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "weights": checkpoint_digest(folder)}))
    with pytest.raises(ValueError, match=r"model\.safetensors: not a checkpoint of sppnet \(fc[79]\.weight"):
        load_network(folder)


def test_a_folder_with_anything_else_is_left_as_it_is(tmp_path, folder):
    check_folder(tmp_path / "new")
    check_folder(folder)
    (tmp_path / "mine").mkdir()
    check_folder(tmp_path / "mine")
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"^out=.*mine: must be a new folder, .*; it has notes\.txt$"):
        check_folder(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"^out=.*file: must be a folder, and is a file$"):
        check_folder(tmp_path / "file")


def test_a_folder_on_another_disk_than_its_parent_is_filled(folder, tmp_path, monkeypatch):
    def other_disk(*_):
        raise OSError(18, "Invalid cross-device link")

    (tmp_path / "mounted").mkdir()
    monkeypatch.setattr("pathlib.Path.rename", other_disk)
    write_published(tmp_path / "mounted", made_network(), "", crop_side=48)
    assert same(load_network(tmp_path / "mounted"), made_network())


def test_the_current_folder_can_be_published_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_published(Path(), made_network(), "", crop_side=48)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_what_an_interrupted_command_left_is_no_other_file(folder):
    (folder / "model.safetensors.partial1234567").write_bytes(b"half")
    check_folder(folder)
    write_published(folder, made_network(), "", crop_side=48)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_a_description_that_is_no_regular_file_is_refused_and_not_waited_for(folder, kind):
    (folder / "config.json").unlink()
    if kind == "pipe":
        os.mkfifo(folder / "config.json")
    else:
        (folder / "config.json").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"config\.json: not the description .*\(not a regular file\)"):
        load_network(folder)


def test_tests_and_explanations_go_beside_a_published_folder_and_not_into_it(folder, tmp_path):
    assert folder_beside(folder, "scores") == tmp_path / "net.scores"
    assert folder_beside(tmp_path / "a.ckpt", "scores") == tmp_path / "a.ckpt.scores"
    (tmp_path / "run").mkdir()
    assert folder_beside(tmp_path / "run", "scores") == tmp_path / "run" / "scores"


def test_nothing_is_said_of_the_training_of_a_published_network(folder, capsys):
    config = OmegaConf.create({"views": {"full": {"full_scales": [55]}}, "crop_side": None, "scales": None})
    _print_notes(read_tested_run(config, folder), expected=False)
    assert capsys.readouterr().out == ""


def test_weights_that_would_take_more_memory_than_the_file_has_are_refused(folder):
    weights = {name: value.to(torch.float8_e4m3fn) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "weights": checkpoint_digest(folder)}))
    with pytest.raises(ValueError, match=r"is of torch\.float8_e4m3fn"):
        load_network(folder)


@pytest.mark.parametrize("classes", ["abc", [["x"], "b", "c"], [1, 2, 3]])
def test_classes_that_are_no_names_are_refused(folder, classes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "network": {**config["network"], "classes": classes}}))
    with pytest.raises(ValueError, match="must be a list of names"):
        load_network(folder)


def test_a_run_directory_with_a_stray_file_is_no_published_network(tmp_path):
    save_network(made_network(), tmp_path / "checkpoints" / "last.ckpt")
    assert same(load_network(tmp_path), made_network())


def test_views_are_for_the_crops_of_training(folder):
    config = OmegaConf.create({"views": {"full": {"full_scales": ["256/224"]}}, "crop_side": None, "scales": None})
    assert read_tested_run(config, folder).protocols["full"].full_scales == [55]


# The card.


def test_a_card_has_the_results_of_the_run(tmp_path):
    make_run(tmp_path, "single", wrong={"center": 10, "full": 3})
    (run,) = read_runs([str(tmp_path)])
    card = model_card(made_network(), run, CardAbout("net", "hf://me/net", "cc-by-4.0"))
    _, front, text = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert (metadata["license"], metadata["library_name"]) == ("cc-by-4.0", "sppnet")
    (model,) = metadata["model-index"]
    values = {metric["name"]: metric["value"] for one in model["results"] for metric in one["metrics"]}
    assert values == {"top-1 error, center": 0.25, "top-1 error, full": 0.075}

    rows = {cells[1]: cells for line in text.splitlines() if len(cells := re.split(r" *\| *", line)) > 4}
    assert rows["views"][2:4] == ["images", "top-1 error in % (95 % interval over images)"]
    assert rows["center"][2:4] == ["40", "25.00 (14.19 to 40.19)"]
    assert rows["full"][2:4] == ["40", "7.50 (2.58 to 19.86)"]
    for words in ("sppnet predict run=hf://me/net", "100 training images", "seed: 0", "licence: cc-by-4.0"):
        assert words in text
    assert "classes: 3: `cat`, `<b>dog</b>`, `new\\nline`" in text
    assert "images of any size" in text


def test_a_card_without_tests_has_the_errors_of_validation(tmp_path):
    path = make_run(tmp_path, "none")
    for file in path.glob("scores/*"):
        file.unlink()
    (run,) = read_runs([str(tmp_path)])
    card = model_card(made_network(levels=None), run, CardAbout("net", "net", "unknown"))
    error = 100 * run.result.top1_error
    assert re.search(rf"\| validation in training \| +{run.result.n} \| +{error:.2f} \(", card)
    assert "has no pyramid and takes images of 48 x 48 pixels only" in card


def test_the_card_of_a_checkpoint_claims_nothing():
    card = model_card(made_network(), None, CardAbout("net", "net", "unknown"))
    assert "Nothing is recorded" in card
    assert "%" not in card
    assert "## Training" not in card
    assert "model-index" not in card


# The command and the hub.


@pytest.fixture(scope="module")
def defaults():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("publish", ["run=none"])


def published(defaults, **settings):
    publish(resolved(OmegaConf.merge(defaults, settings)))


def test_a_finished_run_is_published_with_its_card(tmp_path, defaults, capsys):
    path = make_run(tmp_path / "runs", "single", wrong={"center": 10})
    save_network(made_network(), path / "checkpoints" / "last.ckpt")
    published(defaults, run=str(path), out=str(tmp_path / "flowers"), license="mit")
    out = tmp_path / "flowers"
    assert capsys.readouterr().out == f"written: {', '.join(str(out / name) for name in FILES)}\n"
    assert same(load_network(out), made_network())
    card = (out / "README.md").read_text()
    assert "# flowers\n" in card
    assert str(tmp_path) not in card
    assert json.loads((out / "config.json").read_text())["crop_side"] == 224


def test_a_checkpoint_is_published_with_the_crop_side_that_is_given(tmp_path, defaults):
    save_network(made_network(), tmp_path / "a.ckpt")
    published(defaults, run=str(tmp_path / "a.ckpt"), out=str(tmp_path / "net"), crop_side=64, name="Mine")
    assert json.loads((tmp_path / "net" / "config.json").read_text())["crop_side"] == 64
    assert "# Mine\n" in (tmp_path / "net" / "README.md").read_text()


def test_a_run_that_is_not_finished_is_refused(tmp_path, defaults):
    path = make_run(tmp_path / "runs", "single", finished=False)
    save_network(made_network(), path / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=r"has not finished training; its card would have no result$"):
        published(defaults, run=str(path), out=str(tmp_path / "net"))
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("hf://me/net", ("me/net", None)),
        ("hf://a-b/c.d_e@v1.0", ("a-b/c.d_e", "v1.0")),
        ("hf://a/b@refs/pr/1", ("a/b", "refs/pr/1")),
    ],
)
def test_addresses_of_the_hub(address, parts):
    assert is_hub_address(address)
    assert parse_hub_address(address) == parts
    with pytest.raises(ValueError, match=r"^run=hf://.* must be a folder on this machine; `hf download "):
        check_local("run", address)


@pytest.mark.parametrize("address", ["hf://", "hf://net", "hf://me/net/more", "hf://me/net@", "hf://../net", "hf:///n"])
def test_other_forms_of_addresses_are_refused(address):
    with pytest.raises(ValueError, match=re.escape(f"{address}: must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION")):
        local_folder(address)


@pytest.mark.parametrize("path", ["me/net", "hf:/me/net", "/hf://me/net", "https://huggingface.co/me/net"])
def test_nothing_without_the_prefix_is_downloaded(path):
    assert not is_hub_address(path)
    check_local("run", path)
    with pytest.raises(FileNotFoundError):
        load_network(path)


@pytest.mark.slow
def test_a_network_goes_to_the_hub_and_comes_back(tmp_path):
    """In other processes, as huggingface_hub reads the address of its hub when it is imported."""
    save_network(made_network(), tmp_path / "a.ckpt")
    with stub_hub() as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_x", "HF_HOME": str(tmp_path / "home")}
        code = (
            "import sys; from sppnet.network import *; from sppnet.use.publish import *; from pathlib import Path\n"
            "place, folder = Path(sys.argv[1]), Path(sys.argv[1]) / 'net'\n"
            "write_published(folder, load_network(place / 'a.ckpt'), '# first', crop_side=48)\n"
            "print(upload(folder, 'me/net', private=True))\n"
            "network = load_network('hf://me/net')\n"
            "network.fc8.bias.data.fill_(3)\n"
            "write_published(folder, network, '# second', crop_side=48)\n"
            "upload(folder, 'me/net', private=None)\n"
            f"for revision in ('{2:040x}', 'main'):\n"
            "    print(load_network(f'hf://me/net@{revision}').fc8.bias.tolist())\n"
            "for address in ('hf://me/other', 'hf://me/empty'):\n"
            "    try: load_network(address)\n"
            "    except ValueError as error: print(error)\n"
        )
        hub.commits["me/empty"] = [{"README.md": b"nothing"}]
        done = run_process([sys.executable, "-c", code, tmp_path], env=environment)
        assert done.returncode == 0, done.stderr
        page, first, second, other, empty = done.stdout.splitlines()
    assert page == f"{hub.address}/me/net"
    assert "private" in str(hub.created[0])
    assert "private" not in str(hub.created[1])
    assert sorted(hub.files("me/net", "main")) == sorted(FILES)
    assert hub.files("me/net", "main")["README.md"] == b"# second"
    assert json.loads(first) == made_network().fc8.bias.tolist()
    assert json.loads(second) == [3, 3, 3]
    assert other.startswith("hf://me/other: cannot be downloaded (")
    assert empty == "hf://me/empty: holds no network of sppnet (model.safetensors is missing)"


def test_what_the_hub_refuses_is_one_line(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError("401 Unauthorized\nmore lines")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refused)
    with pytest.raises(ValueError, match=r"^to=hf://me/net: cannot be uploaded \(401 Unauthorized\)$"):
        upload(tmp_path, "me/net", private=None)
