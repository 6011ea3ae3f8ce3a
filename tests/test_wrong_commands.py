"""Wrong commands: one short line that names the key, the value and what is allowed; nothing is made."""

import os
import runpy
import signal
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from command_line import claim_run_directory, one_line_errors, run_directory
from conftest import make_image_folder, run_process, without_rights
from sppnet.backbones import build_backbone
from sppnet.datasets import open_data
from sppnet.network import SPPNet, save_network
from test_configs import composed

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a data set, a trained run, and things that are not what they should be."""
    place = tmp_path_factory.mktemp("place")
    make_image_folder(place / "images", train=3, val=2)
    make_image_folder(place / "alone", ("cat",), train=1, val=1)
    (place / "empty").mkdir()
    (place / "file").write_text("not a folder")
    network = SPPNet(build_backbone("zf5", width=0.05), num_classes=2, hidden=8, classes=("cat", "dog"))
    config = composed("data=folder", f"data.root={place / 'images'}", "backbone.width=0.05", "hidden=8")
    claim_run_directory(place / "run", run_directory(config)[1])
    (place / "run" / "checkpoints").mkdir()
    save_network(network, place / "run" / "checkpoints" / "last.ckpt")
    (place / "damaged" / "checkpoints").mkdir(parents=True)
    (place / "damaged" / "checkpoints" / "last.ckpt").write_bytes(b"PK\x03\x04 no more")
    (place / "unfinished").mkdir()
    return place


TRAIN = [
    # Misspelt keys, at every depth.
    ("recipe.epochz=3", "recipe.epochz: no such key; did you mean epochs?"),
    ("+recipe.epochz=3", "recipe.epochz: no such key; did you mean epochs?"),
    ("+recpie.epochs=3", "recpie: no such key; did you mean recipe?"),
    ("sead=1", "sead: no such key; did you mean seed?"),
    ("+sead=1", "sead: no such key; did you mean seed?"),
    ("+backbone.widht=1", "backbone.widht: no such key; did you mean width?"),
    ("+pooling.level=[1]", "pooling.level: no such key; did you mean levels?"),
    ("+sizes.cycles=[224]", "sizes.cycles: no such key; did you mean cycle?"),
    ("+data.roots=x", "data.roots: no such key; did you mean root?"),
    ("+trainer.device=1", "trainer.device: no such key; did you mean devices?"),
    ("data=floder", "data=floder: must be one of", "folder"),
    ("backbone=zf6", "backbone=zf6: must be one of", "zf5"),
    ("pooling=spp51", "pooling=spp51: must be one of", "spp50"),
    ("experiment=table2_zf6_none", "experiment=table2_zf6_none: must be one of"),
    ("recipe=slow", "recipe=slow: must be one of fast, paper"),
    ("trainer=tpu", "trainer=tpu: must be one of"),
    ("sizes=double", "sizes=double: must be one of"),
    ("backbones=zf5", "backbones: no such key; did you mean backbone?"),
    ("datta.root=x", "datta: no such section; did you mean data?"),
    ("data=folder data.root=images data.train=60", "data.train: the chosen data has no such key"),
    ("demo", "demo: must be KEY=VALUE"),
    # Wrong types.
    ("recipe.epochs=soon", "recipe.epochs: Value 'soon'"),
    ("recipe.epochs=2.5", "recipe.epochs: Value '2.5'"),
    ("recipe.learning_rate=fast", "recipe.learning_rate: Value 'fast'"),
    ("recipe.color=perhaps", "recipe.color: Value 'perhaps'"),
    ("recipe.input_mean=[1,2]", "recipe.input_mean"),
    ("recipe.input_std=[1,1,0]", "recipe.input_std"),
    ("pooling.levels=6", "pooling.levels"),
    ("pooling.levels=[6,x]", "pooling.levels", "x"),
    ("sizes.cycle=224", "sizes.cycle"),
    ("seed=x", "seed: Value 'x'"),
    ("hidden=many", "hidden: Value 'many'"),
    ("trainer.workers=some", "trainer.workers: Value 'some'"),
    ("trainer.compile=maybe", "trainer.compile: Value 'maybe'"),
    ("backbone.width=wide", "backbone.width: Value 'wide'"),
    # Out of range.
    ("recipe.epochs=0", "recipe.epochs=0: must be at least 1"),
    ("recipe.batch_size=0", "recipe.batch_size=0: must be at least 1"),
    ("recipe.learning_rate=-1", "recipe.learning_rate=-1.0: must be above 0"),
    ("recipe.epochs=99999999999999999999", "recipe.epochs=99999999999999999999: must be at most 100000"),
    ("recipe.learning_rate=nan", "recipe.learning_rate=nan: must be finite"),
    ("recipe.learning_rate=inf", "recipe.learning_rate=inf: must be finite"),
    ("recipe.weight_decay=inf", "recipe.weight_decay=inf: must be finite"),
    ("recipe.momentum=nan", "recipe.momentum=nan: must be finite"),
    ("recipe.clip_gradient_norm=inf", "recipe.clip_gradient_norm=inf: must be finite"),
    ("recipe.input_mean=[inf,0,0]", "recipe.input_mean=[inf, 0.0, 0.0]: must be finite"),
    ("recipe.input_std=[1,nan,1]", "recipe.input_std=[1.0, nan, 1.0]: must be finite"),
    ("recipe=fast recipe.warmup_epochs=inf", "recipe.warmup_epochs=inf: must be finite"),
    ("recipe.momentum=1", "recipe.momentum=1.0: must be below 1"),
    ("recipe.dropout=1", "recipe.dropout=1.0"),
    ("recipe.label_smoothing=1", "recipe.label_smoothing=1.0"),
    ("recipe.clip_gradient_norm=0", "recipe.clip_gradient_norm=0.0: must be above 0, or null"),
    ("recipe.initialization=xavier", "initialization", "xavier"),
    ("pooling.levels=[]", "levels=[]"),
    ("pooling.levels=[6,0]", "levels=[6, 0]: level 0"),
    ("pooling.levels=[-1]", "levels=[-1]"),
    ("sizes.cycle=[]", "sizes=[]"),
    ("sizes.cycle=[20]", "20 pixels are too few for this backbone"),
    ("sizes=random sizes.uniform=[224,180]", "sizes.uniform=[224, 180]"),
    ("seed=-1", "seed=-1: must be from 0 to 2**63 - 1"),
    (f"seed={2**64}", f"seed={2**64}: must be from 0 to 2**63 - 1"),
    ("hidden=0", "hidden=0"),
    ("backbone.width=0", "width=0"),
    ("backbone.normalization=batch", "normalization", "batch"),
    ("trainer.workers=-1", "workers=-1: must be at least 0"),
    ("trainer.save_every_steps=0", "trainer.save_every_steps=0: must be above 0, or null"),
    ("trainer.save_every_minutes=-1", "trainer.save_every_minutes=-1.0: must be above 0, or null"),
    ("trainer.max_unreadable=2", "trainer.max_unreadable=2.0: must be from 0 to 1"),
    ("trainer.validate_every=0", "trainer.validate_every=0: must be at least 1"),
    # What does not go together, or is not there.
    ("pooling=none sizes=alternate", "224 pixels; a network without a pyramid (pooling=none) trains at one size only"),
    ("pooling=none sizes.cycle=[224,180]", "use sizes=single, or sizes.cycle=[224]"),
    ("sizes.cycle=[20] backbone=convnet5", "20 pixels are too few for this backbone"),
    ("sizes.cycle=[100000]", "sizes=[100000]: must be one or more sides in pixels, from 1 to 4096"),
    ("data=folder data.root=images pooling.levels=[100000]", "levels=[100000]", "at most 1,000,000,000"),
    ("data=folder data.root=images hidden=1000000000", "hidden=1000000000", "at most 1,000,000,000"),
    ("backbone.width=inf", "width=inf: must be above 0 and at most 8"),
    ("backbone.width=nan", "width=nan: must be above 0 and at most 8"),
    (
        "backbone=timm backbone.name=test_maxvit sizes.cycle=[160,180]",
        "sizes: 180 pixels; backbone.name='test_maxvit': the model takes no images of 180 x 180 pixels (",
    ),
    ("recipe.plateau_patience=null", "recipe.plateau_patience=None"),
    ("recipe=fast recipe.warmup_epochs=60", "recipe.warmup_epochs=60"),
    ("trainer.validate_every=3", "trainer.validate_every=3: must be 1", "recipe.plateau_patience=6"),
    ("recipe=fast recipe.epochs=3 recipe.warmup_epochs=3", "recipe.warmup_epochs=3.0: must be", "recipe.epochs=3"),
    ("trainer.accelerator=gpu", "trainer.accelerator=gpu: torch finds no GPU"),
    ("trainer.accelerator=toaster", "trainer.accelerator=toaster: must be one of auto, cpu, gpu"),
    ("trainer.devices=x", "trainer.devices=x: must be auto, a number from 1, -1 for all, or which: '0,2'"),
    ("trainer.devices=0", "trainer.devices=0: must be"),
    ("trainer.devices=-1", "trainer.devices=-1: must be auto or a number from 1 on a CPU"),
    ("trainer.devices=99999 recipe.batch_size=99999", "trainer.devices=99999: must be at most"),
    (
        "data=folder data.root=images trainer.devices=3 recipe.batch_size=4",
        "recipe.batch_size=4: must be a multiple of the",
    ),
    ("trainer.precision=16-mixed", "trainer.precision=16-mixed: must be one of 32-true, bf16-mixed, or null"),
    ("trainer.workers=1000000", "workers=1000000: must be at most"),
    ("trainer.save_every_minutes=inf", "trainer.save_every_minutes=inf: must be above 0, or null"),
    ("trainer.num_nodes=0", "trainer.num_nodes=0: must be at least 1"),
    ("trainer.strategy=fsdp", "trainer.strategy=fsdp: must be one of auto, ddp"),
    ("trainer.precision=7", "trainer.precision=7: must be one of 32-true, bf16-mixed, or null"),
    ("backbone=timm backbone.name=resnet17", "resnet17"),
    # Data.
    ("data=folder", "data.root: missing; give it as data.root=VALUE"),
    ("data=folder data.root=nowhere", "nowhere: there is no such folder"),
    ("data=folder data.root=file", "file: found a file, expected a folder"),
    ("data=folder data.root=empty", "empty: found", "expected a folder for each of two or more classes"),
    ("data=folder data.root=alone/train", "train: found", "expected a folder for each of two or more classes"),
    ("data=folder data.root=images", "recipe.batch_size=128: must be at most 6, the number of training images"),
    ("data=folder data.root=images data.val_fraction=0.5", "val_fraction=0.5"),
    ("data=imagenet data.root=images", "images", "1000"),
    ("data=caltech101 data.root=images", "expected Caltech101's 102"),
    ("data=prepared data.root=images", "images: not a prepared store"),
    ("data=hub data.name=empty", "empty"),
    ("data.train=-1", "train=-1"),
    # Where the run would be.
    ("name=../x", "name=../x: may hold letters, digits, dots, dashes and underscores only"),
    ("name=${oc.env:HOME}", "may hold letters, digits"),
    ("data=folder data.root=images run=images", "images: found train, val, expected a new folder or a run directory"),
    ("data=folder data.root=images run=file", "file: found a file, expected a new folder or a run directory"),
    ("data=folder data.root=images recipe.batch_size=6 runs=file", "file", "Not a directory"),
]

EVALUATE = [
    ("", "run: missing; give it as run=VALUE"),
    ("run=nowhere", "run=nowhere: "),
    ("run=unfinished", "unfinished/checkpoints/last.ckpt: no such checkpoint"),
    ("run=damaged", "damaged/checkpoints/last.ckpt: "),
    ("run=run views=[centre]", "views=centre: must be one of"),
    ("run=run views=[]", "views"),
    ("run=run views=[center] views.center.scales=[]", "scales"),
    ("run=run views=[center] views.center.view_size=300", "300"),
    ("run=run views=[center] views.center.positions=[middle]", "middle"),
    ("run=run views=[center] +views.center.flip=true", "views.center.flip: no such key"),
    ("run=run views=[full] data.root=nowhere", "nowhere"),
    ("run=run views=[center] part=most", "part='most': must be one of train, val, all"),
    ("run=run views=[center] hardware.devices=0", "hardware.devices=0"),
    ("run=run views=[center] hardware.megapixels=0", "hardware.megapixels=0"),
    ("run=run views=[center] hardware.accelerator=gpu", "hardware.accelerator=gpu: torch finds no GPU"),
    ("run=run views=[center] exclude=[val/cat/7.jpg]", "exclude=val/cat/7.jpg: no image of val has this name"),
]

PREPARE = [
    ("data.root=images", "out: missing; give it as out=VALUE"),
    ("data.root=images out=file", "file: found a file, expected a new folder"),
    ("data.root=images out=images", "expected a new folder or an unfinished store"),
    ("data.root=images out=new quality=0", "quality 1 to 100"),
    ("data.root=images out=new short_side=0", "short_side >= 1"),
    ("data.root=images out=new workers=0", "workers=0: must be 1 to "),
    ("data.root=images out=new workers=1000000", "workers=1000000: must be 1 to "),
]

TABLES = [
    ("table5", "table5", "table2"),
    ("table2 runs=nowhere", "nowhere"),
    ("table2 rnus=x", "rnus: no such key; did you mean runs?"),
]

COMMANDS = [
    *(("train", *row) for row in TRAIN),
    *(("evaluate", *row) for row in EVALUATE),
    *(("prepare_data", *row) for row in PREPARE),
    *(("tables", *row) for row in TABLES),
    ("benchmark", "seconds=0", "seconds=0"),
    ("benchmark", "rounds=x references", "rounds=x: must be a number above 0"),
    ("benchmark", "referencs", "referencs: must be KEY=VALUE"),
]


def run(script, arguments, monkeypatch):
    """Calls a script as its command line would, in this process."""
    GlobalHydra.instance().clear()
    for name in ("HYDRA_FULL_ERROR", "SPPNET_ONE_LINE"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    path = str(PROJECT / "scripts" / f"{script}.py")
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        runpy.run_path(path, run_name="__main__")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("script", "arguments", "words"), [(c[0], c[1], c[2:]) for c in COMMANDS], ids=lambda v: str(v)
)
def test_a_wrong_command_says_what_is_wrong(place, script, arguments, words, monkeypatch, capfd):
    monkeypatch.chdir(place)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = sorted(place.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        run(script, arguments.split(), monkeypatch)
    said = capfd.readouterr().err
    assert stopped.value.code not in (0, None)
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1, said
    for word in words:
        assert word in said
    assert sorted(place.rglob("*")) == before


def test_a_folder_that_may_not_be_read_is_named(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    closed = place / "empty"
    closed.chmod(0)
    try:
        with without_rights(), pytest.raises(SystemExit) as stopped, one_line_errors():
            open_data("folder", root="empty")
    finally:
        closed.chmod(0o755)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: [Errno 13] Permission denied: 'empty'\n"


def test_there_are_enough():
    assert len(COMMANDS) >= 60


@pytest.mark.slow
def test_the_traceback_is_there_for_who_wants_it(place):
    command = [sys.executable, str(PROJECT / "scripts" / "train.py"), "seed=-1"]
    environment = os.environ | {"HYDRA_FULL_ERROR": "1"}
    done = run_process(command, cwd=place, env=environment)
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "ValueError: seed=-1: must be from 0 to 2**63 - 1" in done.stderr
