"""Stores at s3:// addresses, on a server of this machine: downloaded once, resumed, checked, and trained from."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import assert_refuses, make_image_folder, rows, started_process
from s3_server import s3_server
from sppnet.data import remote_stores
from sppnet.data.prepare import prepare
from sppnet.data.shards import Settings
from sppnet.data.sources import open_data
from sppnet.runtime.files import is_temporary

pytest.importorskip("moto")
pytest.importorskip("s3fs")

SHARD = "store/train/data-00001.arrow"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An S3 with an empty bucket; what finds it and the rights for it is in the environment."""
    with s3_server() as (server, address), pytest.MonkeyPatch.context() as patch:
        for variable, value in {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "name",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(variable, value)
        for variable in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy"):
            patch.delenv(variable, raising=False)
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store with three shards of training images and one of validation images."""
    root = tmp_path_factory.mktemp("data")
    images = open_data("folder", root=str(make_image_folder(root / "images", train=20, val=4)))
    prepare(images, root / "store", Settings(64, 95), workers=0)
    return root / "store"


@pytest.fixture
def bucket(server, folder, tmp_path, monkeypatch):
    """The file system of the server with the store in the bucket, copied as docs/data.md says, and an empty cache."""
    import datasets
    import fsspec

    server.lost = server.stalled = None
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # Every test makes connections of its own, with its own waiting times.
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    monkeypatch.setattr(
        fsspec.config, "conf", {"s3": {"config_kwargs": {"read_timeout": 1, "retries": {"max_attempts": 0}}}}
    )
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 2)
    filesystem = fsspec.filesystem("s3")
    if not server.uploaded or _tags(filesystem) != server.uploaded:
        if server.uploaded:
            filesystem.rm("bucket", recursive=True)
        filesystem.mkdir("bucket")
        filesystem.put(f"{folder}/", "s3://bucket/store/", recursive=True)
        server.uploaded = _tags(filesystem)
    server.read.clear()
    yield filesystem
    server.lost = server.stalled = None
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def _tags(filesystem):
    return {name: entry["ETag"] for name, entry in filesystem.find("bucket", detail=True, refresh=True).items()}


def opened(root="s3://bucket/store"):
    return open_data("prepared", root=root)


def test_a_copied_store_is_the_same_data_set(bucket, folder, capsys):
    data, expected = opened(), opened(str(folder))
    assert rows(data.train) == rows(expected.train)
    assert rows(data.val) == rows(expected.val)
    assert data.fingerprint() == expected.fingerprint()
    assert "downloading s3://bucket/store: 0." in capsys.readouterr().out
    bucket.put(f"{folder}/", "s3://bucket/store/", recursive=True)  # as it may be typed twice
    assert sorted(bucket.ls("bucket/store")) == [
        f"bucket/store/{name}" for name in sorted(path.name for path in folder.iterdir())
    ]


def test_a_store_is_downloaded_once(bucket, server, capsys):
    opened()
    assert server.read.count(f"bucket/{SHARD}") == 1
    capsys.readouterr()
    opened()
    opened("s3://bucket/store/")
    assert server.read.count(f"bucket/{SHARD}") == 1
    assert capsys.readouterr().out == ""


def test_a_file_that_is_cut_in_the_copy_is_downloaded_again(bucket, server, tmp_path):
    expected = rows(opened().train)
    (copy,) = tmp_path.rglob("data-00001.arrow")
    content = copy.read_bytes()
    copy.unlink()  # other processes have it mapped into memory
    copy.write_bytes(content[: len(content) // 2])
    server.read.clear()
    assert rows(opened().train) == expected
    assert server.read.count(f"bucket/{SHARD}") == 1
    assert "bucket/store/train/data-00000.arrow" not in server.read


def test_only_the_files_of_the_store_are_downloaded(bucket, server, tmp_path):
    bucket.pipe("bucket/store/other.bin", b"1")
    bucket.pipe("bucket/store/train/other.bin", b"2")
    opened()
    assert not any(path.endswith(("other.bin", "data-00000.json")) for path in server.read)
    assert not any(is_temporary(path.name) for path in tmp_path.rglob("*"))


def test_a_process_waits_for_one_that_is_downloading(bucket, server, tmp_path):
    opened()
    (lock,) = tmp_path.rglob("lock")
    (lock.parent / "dataset_dict.json").unlink()
    server.read.clear()
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started_process([sys.executable, "-c", code, lock], **pipes) as other, ThreadPoolExecutor() as pool:
        other.stdout.readline()
        waiting = pool.submit(opened)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=1)
        (lock.parent / "dataset_dict.json").write_bytes(bucket.cat("bucket/store/dataset_dict.json"))
        server.read.clear()
        other.communicate("\n")
        assert len(waiting.result(timeout=60).train) == 40
    assert server.read == []


def test_a_replaced_store_is_downloaded_again_and_the_old_copy_stays(bucket, tmp_path, folder):
    old = opened()
    images = open_data("folder", root=str(make_image_folder(tmp_path / "images", train=18, val=4)))
    prepare(images, tmp_path / "store", Settings(64, 95), workers=0)
    bucket.rm("bucket/store", recursive=True)
    bucket.put(f"{tmp_path / 'store'}/", "s3://bucket/store/", recursive=True)
    new = opened()
    assert (len(old.train), len(new.train)) == (40, 36)
    assert rows(old.train) == rows(opened(str(folder)).train)
    assert old.fingerprint() != new.fingerprint()


def test_a_lost_connection_is_one_line_and_the_rest_is_downloaded_later(bucket, server, tmp_path, capsys):
    server.lost = SHARD
    message = assert_refuses("^s3://bucket/store: cannot be read ", "prepared", root="s3://bucket/store")
    assert message.endswith("; the same command resumes the download)")
    assert not list(tmp_path.rglob("dataset_dict.json"))
    assert not any(is_temporary(path.name) for path in tmp_path.rglob("*"))

    server.lost = None
    server.read.clear()
    capsys.readouterr()
    assert len(opened().train) == 40
    assert "bucket/store/train/data-00000.arrow" not in server.read
    assert "resuming after 0." in capsys.readouterr().out


@pytest.mark.parametrize("place", ["dataset_dict.json", SHARD])
def test_a_server_that_stops_answering_is_given_up(bucket, server, place):
    server.stalled = place
    assert_refuses("(?i)^s3://bucket/store: cannot be read .*time", "prepared", root="s3://bucket/store")


def test_a_file_that_is_replaced_during_the_download_is_refused(bucket, monkeypatch):
    original = remote_stores._download

    def replaced_before(store, folder):
        bucket.pipe(f"bucket/{SHARD}", b"other")
        original(store, folder)

    monkeypatch.setattr(remote_stores, "_download", replaced_before)
    assert_refuses("^s3://bucket/store: cannot be read .*resumes the download", "prepared", root="s3://bucket/store")


def test_without_a_connection_the_copy_is_used(bucket, server, monkeypatch, capsys):
    expected = rows(opened().train)
    bucket.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    data = opened()
    assert rows(data.train) == expected
    assert "warning: s3://bucket/store: no connection (" in capsys.readouterr().err
    assert_refuses("127.0.0.1:9", "prepared", root="s3://bucket/other")


def test_without_a_connection_the_newest_copy_is_used(bucket, tmp_path, monkeypatch):
    opened()
    (old,) = tmp_path.rglob("dataset_dict.json")
    for _ in range(2):  # folders are found in any order
        bucket.pipe("bucket/store/report.json", bucket.cat("bucket/store/report.json") + b" ")
        opened()
    for number, finished in enumerate(sorted(tmp_path.rglob("dataset_dict.json"))):
        os.utime(finished, (number, 3 if finished == old else number))
    bucket.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert remote_stores.local_copy("s3://bucket/store") == old.parent


def test_the_copy_of_an_address_with_the_letters_of_patterns_is_found(bucket, folder, monkeypatch):
    bucket.put(f"{folder}/", "s3://bucket/stores [1]/", recursive=True)
    expected = rows(opened("s3://bucket/stores [1]").train)
    bucket.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert rows(opened("s3://bucket/stores [1]").train) == expected


@pytest.mark.parametrize("file", [SHARD, "store/train/state.json", "store/validation/dataset_info.json"])
def test_a_store_without_one_of_its_files_is_refused_before_the_download(bucket, server, file):
    bucket.rm(f"bucket/{file}")
    name = file.removeprefix("store/")
    message = f"{name} is missing: not a prepared store, or not copied there completely"
    assert_refuses(message, "prepared", root="s3://bucket/store")
    assert not any(path.endswith(".arrow") for path in server.read)


@pytest.mark.parametrize("root", ["s3://bucket/nothing", "s3://nothing/store", "s3://bucket/store/report.json/x"])
def test_an_address_with_nothing_is_refused(bucket, root):
    assert_refuses(f"^{root}: cannot be read .nothing is there; check the names", "prepared", root=root)


def test_wrong_or_missing_rights_are_one_line(bucket, monkeypatch):
    bucket.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert_refuses("^s3://bucket/store: cannot be read .*credentials", "prepared", root="s3://bucket/store")


def test_a_store_writes_no_file_outside_of_its_copy(bucket, tmp_path):
    state = json.loads(bucket.cat("bucket/store/train/state.json"))
    state["_data_files"][0]["filename"] = "../../../secret"
    bucket.pipe("bucket/store/train/state.json", json.dumps(state).encode())
    bucket.pipe("bucket/secret", b"1")
    assert_refuses("'../../../secret' is not the name of a file", "prepared", root="s3://bucket/store")
    bucket.pipe("bucket/store/dataset_dict.json", b'{"splits": [".."]}')
    assert_refuses("'..' is not the name of a file", "prepared", root="s3://bucket/store")


def test_a_full_disk_is_noticed_before_the_download(bucket, monkeypatch, server):
    monkeypatch.setattr(remote_stores.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert_refuses("needs 0.* MB in .*HF_DATASETS_CACHE=FOLDER", "prepared", root="s3://bucket/store")
    assert not any(path.endswith(".arrow") for path in server.read)


def test_ctrl_c_stops_the_download(bucket, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(remote_stores, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened()
    assert not any(is_temporary(path.name) for path in tmp_path.rglob("*"))
    assert not list(tmp_path.rglob("dataset_dict.json"))


def test_what_save_to_disk_writes_there_is_a_store(bucket):
    hub = sys.modules["datasets"]
    hub.load_from_disk("s3://bucket/store").save_to_disk("s3://bucket/saved")
    assert rows(opened("s3://bucket/saved").val) == rows(opened().val)


PARQUET = {"train": "s3://bucket/train.parquet", "validation": "s3://bucket/validation.parquet"}


def test_parquet_files_there_are_a_data_set_of_hub(bucket, server, folder, tmp_path, monkeypatch):
    hub = sys.modules["datasets"]
    splits = hub.load_from_disk(str(folder))
    for split, file in PARQUET.items():
        splits[split].to_parquet(tmp_path / "file")
        bucket.put(str(tmp_path / "file"), file)
    options = {"name": "parquet", "data_files": PARQUET, "cache": str(tmp_path / "cache")}
    assert [row[:2] for row in rows(open_data("hub", **options).val)] == [
        row[:2] for row in rows(opened(str(folder)).val)
    ]

    options["cache"] = str(tmp_path / "empty")
    server.stalled = "train.parquet"
    place = r"^parquet \(s3://bucket/train.parquet, s3://bucket/validation.parquet\): "
    assert_refuses(f"(?i){place}.*time", "hub", **options)
    server.stalled = None
    bucket.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert_refuses(f"{place}Could not connect", "hub", **options)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    bucket.clear_instance_cache()
    assert_refuses(f"{place}Unable to locate credentials", "hub", **options)


def test_a_store_there_is_not_a_name_of_hub():
    assert_refuses("data=prepared data.root=s3://bucket/store", "hub", name="s3://bucket/store")


def test_a_command_trains_from_it_as_from_the_folder(bucket, folder, tmp_path, run_here):
    import torch

    small = [
        *("data=prepared", "recipe=fast", "trainer=cpu", "trainer.precision=32-true", "trainer.workers=0"),
        *("backbone.width=0.05", "hidden=16", "sizes.cycle=[64,48]", "recipe.epochs=2", "recipe.batch_size=8"),
    ]
    for root, run in ((folder, "here"), ("s3://bucket/store", "there")):
        done = run_here("train", *small, f"data.root={root}", f"run={run}", "recipe.warmup_epochs=0", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    here, there = (
        torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in ("here", "there")
    )
    assert here.keys() == there.keys()
    assert all(torch.equal(here[key], there[key]) for key in here)

    done = run_here("evaluate", "run=here", "data.root=s3://bucket/store", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "s3:").exists()
