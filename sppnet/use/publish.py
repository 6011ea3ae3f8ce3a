"""Publishes a trained network: a folder of weights, description and model card, and its upload to a hub."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save

from sppnet.network import SPPNet, load_network
from sppnet.runtime.files import atomic_file, check_local, is_temporary
from sppnet.runtime.names import first_line
from sppnet.runtime.published import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from sppnet.runtime.run_directory import file_digest

FILES = (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE)


def check_folder(folder: Path) -> None:
    """Raises ValueError for a folder that holds anything but a published network."""
    check_local(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out={folder}: must be a folder, and is a file")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if others := sorted(name for name in names - set(FILES) if not is_temporary(name)):
        raise ValueError(
            f"out={folder}: must be a new folder, or one with a published network only; it has {others[0]}"
        )


def write_published(
    folder: Path, network: SPPNet, card: str, *, crop_side: int, data: dict[str, Any] | None = None
) -> None:
    """Writes a network for `load_network` and for others, and checks that it loads as the same network.

    The files are model.safetensors, config.json (the description of the network) and README.md (the card). They are
    moved to `folder` when all are complete; an earlier network there is replaced.

    Args:
        folder: as `check_folder` allows.
        network: what is published.
        card: Markdown.
        crop_side: side in pixels of the crops that the network was trained on.
        data: how the images of its training were split, as `data_to_record` returns it; None: not recorded.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Renamed, if the folder is new; copied into one that exists, which can be on another disk than its parent.
    beside = None if folder.exists() else folder.parent
    with tempfile.TemporaryDirectory(prefix=".publishing.", dir=beside) as temporary:
        place = Path(temporary) / "network"
        place.mkdir()
        # Safetensors refuses channels_last.
        weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        (place / WEIGHTS_FILE).write_bytes(save(weights, metadata={"format": "pt"}))
        config = {
            "library_name": "sppnet",
            "crop_side": crop_side,
            "weights": file_digest(place / WEIGHTS_FILE),
            "network": network.description(),
            **({} if data is None else {"data": data}),
        }
        (place / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (place / CARD_FILE).write_text(card, encoding="utf-8")
        _check_same(network, load_network(place))
        _move(place, folder)


def _check_same(network: SPPNet, loaded: SPPNet) -> None:
    expected, found = network.state_dict(), loaded.state_dict()
    same = network.description() == loaded.description() and expected.keys() == found.keys()
    if not same or not all(value.cpu().equal(found[name]) for name, value in expected.items()):
        raise RuntimeError("the published files do not load as the same network; nothing was published")


def _move(place: Path, folder: Path) -> None:
    """Moves the files into a folder, each atomically. `load_network` refuses a folder with files of two networks."""
    if not folder.exists():
        place.rename(folder)
        return
    for name in FILES:
        with atomic_file(folder / name) as file, (place / name).open("rb") as source:
            shutil.copyfileobj(source, file)


def upload(folder: Path, repository: str, *, private: bool | None) -> str:
    """Uploads a published folder to the Hugging Face Hub, and returns the address of the page that shows it.

    Args:
        folder: from `write_published`.
        repository: OWNER/NAME, made if it does not exist.
        private: whether a repository that is made is private; None: as the owner's account has it.

    Raises ValueError with the reason if the Hub refuses.
    """
    from huggingface_hub import HfApi  # takes a second

    api = HfApi()
    try:
        page = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message="Upload a network of sppnet",
        )
    except Exception as error:  # of a dozen kinds, from the network and the Hub
        raise ValueError(f"to=hf://{repository}: cannot be uploaded ({first_line(error)})") from error
    return str(page)
