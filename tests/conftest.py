"""Image files made on the fly, and ways to run the commands: in a process of their own, or in this one."""

import gc
import io
import os
import pickle
import runpy
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

SCRIPTS = Path(__file__).parents[1] / "scripts"

# As many test processes as cores run side by side.
os.environ["OMP_NUM_THREADS"] = "1"  # for processes that they start
torch.set_num_threads(1)


def jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    """Encodes uint8 (h, w, 3) as a JPEG file without chroma subsampling."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


class PngImages:
    """Labelled images of given pixels, uint8 (h, w, 3) each, as PNG files in memory."""

    def __init__(self, pixels: Sequence[np.ndarray]) -> None:
        self.pixels, self.classes = pixels, ("a", "b", "c")
        self.labels = np.zeros(len(pixels), np.int64)

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        return f"{index}.png"

    def read(self, index: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(self.pixels[index]).save(file, "PNG")
        return file.getvalue()


SIZES = [(70, 93), (93, 70), (40, 160), (160, 40), (64, 64), (33, 47)]


def random_images(sizes: Sequence[tuple[int, int]] = SIZES, seed: int = 0) -> PngImages:
    """Returns images of random pixels, (height, width) each."""
    random = np.random.default_rng(seed)
    return PngImages([random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes])


def make_image_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), train: int = 6, val: int = 4) -> Path:
    """Makes folders of small JPEG files in which the class decides the colour: learnable in a few steps."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = random.integers(40, 90, 2)
                pixels = random.integers(0, 120, (height, width, 3), dtype=np.uint8)
                pixels[..., label % 3] += 120
                (folder / f"{i}.jpg").write_bytes(jpeg(pixels))
    return root


def rows(images: Any) -> list[tuple[bytes, int, str]]:
    """Returns (encoded, label, name) of every image of a `LabelledImages`."""
    return [(images.read(i), int(images.labels[i]), images.name(i)) for i in range(len(images))]


def names(images: Any) -> list[str]:
    """Returns the names of all images of an `Images`."""
    return [images.name(i) for i in range(len(images))]


def make_tree(root: Path, counts: dict[str, int]) -> Path:
    """Makes files `root`/FOLDER/image_0.jpg, ... for {folder: count}; the content of each is its own path."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / folder / f"image_{i}.jpg").write_text(f"{folder}/image_{i}.jpg")
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree", {"train/b": 3, "train/a": 2, "val/a": 1, "val/b": 2})


def assert_refuses(pattern: str, source: str = "folder", error: type[Exception] = ValueError, **options: Any) -> str:
    """Checks that `open_data` raises `error` with one line that matches `pattern`, and returns the line."""
    from sppnet.data.sources import open_data

    with pytest.raises(error, match=pattern) as caught:
        open_data(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@contextmanager
def started_process(
    command: Sequence[str | Path], *, limit: float = 300, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Starts a process in a group of its own, and kills the group at the end of the block, however that is left.

    After `limit` seconds the group is killed earlier, so that nothing waits for it, and the test fails.
    """
    process = subprocess.Popen(list(map(str, command)), text=True, start_new_session=True, **options)
    late = threading.Event()

    def kill_group() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(limit, lambda: (late.set(), kill_group()))
    timer.start()
    try:
        with process:
            try:
                yield process
            finally:
                kill_group()
    finally:
        timer.cancel()
    assert not late.is_set(), f"{command}: still running after {limit} seconds"


def run_process(
    command: Sequence[str | Path], *, limit: float = 300, **options: Any
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with both outputs captured and no input, and the limits of `started_process`."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started_process(command, limit=limit, **(pipes | options)) as process:
        output, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def call_script(name: str, *arguments: str, cwd: Path) -> int:
    """Runs a script in this process, as its command line would in the folder `cwd`, and returns its exit code.

    A process of its own would first import torch and Lightning for four seconds.
    """
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    path = SCRIPTS / f"{name}.py"
    environment = dict(os.environ)
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    handlers = {number: signal.getsignal(number) for number in stops}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("default")  # shown, not raised
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        patch.chdir(cwd)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "argv", [str(path), *arguments])
        for variable in ("HYDRA_FULL_ERROR", "SPPNET_ONE_LINE"):
            os.environ.pop(variable, None)
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as stopped:
            return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
        finally:
            os.environ.clear()
            os.environ.update(environment)
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return 0


@pytest.fixture(scope="session", autouse=True)
def configurations_are_read_and_composed_once() -> Iterator[None]:
    """Saves half of the time of the hundreds of commands that tests run in this process.

    Parsed YAML files are kept, and what Hydra makes of a list of the project's files before it applies values. And
    Hydra composes the configuration of every command first to look for `hydra.mode`, ignoring errors.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.hydra import Hydra
    from omegaconf import OmegaConf

    from sppnet.commands.configs import CONFIGS

    load, compose, get_mode = OmegaConf.load, ConfigLoaderImpl._compose_config_from_defaults_list, Hydra.get_mode
    parsed: dict[str, bytes] = {}
    composed: dict[str, bytes] = {}

    def load_once(file: Any) -> Any:
        if not hasattr(file, "read"):
            return load(file)
        text = file.read()
        if text not in parsed:
            file.seek(0)
            parsed[text] = pickle.dumps(load(file))
        return pickle.loads(parsed[text])

    def compose_once(self: ConfigLoaderImpl, defaults: Any, repo: Any) -> Any:
        places = {source.path for source in repo.get_sources() if source.provider in ("main", "command-line")}
        if places != {str(CONFIGS)}:
            return compose(self, defaults, repo)
        if (files := repr(defaults)) not in composed:
            composed[files] = pickle.dumps(compose(self, defaults, repo))
        return pickle.loads(composed[files])

    def get_mode_if_set(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        return get_mode(self, config_name, overrides) if "hydra.mode" in " ".join(overrides) else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", load_once)
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", compose_once)
        patch.setattr(Hydra, "get_mode", get_mode_if_set)
        yield


@pytest.fixture
def run_here(capfd: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `run_process`, by `call_script` in this process."""

    def run(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        code = call_script(name, *arguments, cwd=cwd)
        output, errors = capfd.readouterr()
        return subprocess.CompletedProcess([name, *arguments], code, output, errors)

    return run


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "images")


@contextmanager
def without_rights() -> Iterator[None]:
    """Runs a block without the rights of root, who may write anywhere.

    Everything the block needs must be imported before, and open or in the current folder.
    """
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def pytest_configure() -> None:
    """Lets tests press Ctrl-C where shells ignore it: in jobs in the background, whose processes inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects tests marked `gpu` where there is no GPU."""
    if not torch.cuda.is_available():
        left_out = [item for item in items if item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_collection() -> None:
    """Turns garbage collection off while tests are collected; afterwards it leaves out what is loaded by then.

    In a process with all tests and libraries, each full collection takes a second.
    """
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # else extensions warn at the end that their objects are still there
