"""Wrong commands: one short line that names the key, the value and what is allowed; nothing is made."""

import os
import sys
from pathlib import Path

import pytest
import torch

from conftest import make_image_folder, random_images, run_process, without_rights
from made_detections import made_objects, make_test
from sppnet.backbones import build_backbone
from sppnet.commands.errors import one_line_errors
from sppnet.commands.naming import run_directory
from sppnet.data.sources import open_data
from sppnet.detect.detector import save_detector
from sppnet.network import SPPNet, save_network
from sppnet.runtime.run_directory import RunDirectory
from test_configs import composed
from test_detect_image import made_detector

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a data set, a trained run, and damaged or empty files and folders."""
    place = tmp_path_factory.mktemp("place")
    make_image_folder(place / "images", train=3, val=2)
    make_image_folder(place / "alone", ("cat",), train=1, val=1)
    (place / "empty").mkdir()
    (place / "file").write_text("not a folder")
    paths = [f"images/train/{name}/{i}.jpg" for name in ("cat", "dog") for i in range(3)]
    paths += [f"images/val/{name}/0.jpg" for name in ("cat", "dog")]
    (place / "photos.csv").write_text("path,label\n" + "".join(f"{path},{Path(path).parts[2]}\n" for path in paths))
    (place / "fake.parquet").write_text((place / "photos.csv").read_text())
    (place / "cats.csv").write_text("path,label\n" + "".join(f"{path},cat\n" for path in paths[:3]))
    (place / "list").write_text("train/cat/0.jpg\ntrain/dog/0.jpg\n")
    (place / "twice.csv").write_text(f"path,label\n{paths[0]},cat\n{paths[0]},dog\n")
    network = SPPNet(build_backbone("zf5", width=0.05), num_classes=2, hidden=8, classes=("cat", "dog"))
    config = composed("recipe=paper", "data=folder", f"data.root={place / 'images'}", "backbone.width=0.05", "hidden=8")
    RunDirectory(place / "run", run_directory(config).config).claim()
    (place / "run" / "checkpoints").mkdir()
    save_network(network, place / "run" / "checkpoints" / "last.ckpt")
    (place / "damaged" / "checkpoints").mkdir(parents=True)
    (place / "damaged" / "checkpoints" / "last.ckpt").write_bytes(b"PK\x03\x04 no more")
    (place / "unfinished").mkdir()
    (place / "model.onnx").write_bytes(b"exported")
    objects = made_objects(6)
    for name, row, of_images in (("one", "ftfc7", objects), ("other", "ftfc7_bb", made_objects(5))):
        make_test(place / name, of_images, row)
    lost = make_test(place / "lost", objects)
    lost.with_name("objects.jsonl").unlink()
    cut = make_test(place / "cut", objects)
    cut.write_text(cut.read_text()[:-40])
    make_test(place / "headless", objects).write_text("{")
    make_test(place / "old", objects, scales=None)
    save_detector(made_detector(), place / "detector" / "detectors" / "fc7.ckpt")
    of_file = made_detector(proposals={"proposer": "file", "most": 9, "seed": 0})
    save_detector(of_file, place / "of_file.ckpt")
    (place / "photos").mkdir()
    (place / "folder.html").mkdir()
    (place / "folder.onnx").mkdir()
    (place / "photos" / "a.png").write_bytes(random_images([(20, 30)]).read(0))
    flat = SPPNet(build_backbone("zf5", width=0.05), None, 2, hidden=8, input_side=64)
    save_network(flat, place / "flat.ckpt")
    return place


TRAIN = [
    ("runs=2026 find_rates=2026", "find_rates=2026: must end in .png, .svg or .pdf"),  # years are names, too
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
    ("recipe=slow", "recipe=slow: must be one of auto, fast, finetune, paper, small"),
    ("trainer=tpu", "trainer=tpu: must be one of"),
    ("sizes=double", "sizes=double: must be one of"),
    ("backbones=zf5", "backbones: no such key; did you mean backbone?"),
    ("datta.root=x", "datta: no such section; did you mean data?"),
    ("data=folder data.root=images data.train=60", "data.train: data=folder has no such key; data=shapes has"),
    ("backbone.name=resnet18", "backbone.name: backbone=zf5 has no such key; backbone=timm has"),
    ("sizes.uniform=[180,224]", "sizes.uniform: sizes=single has no such key; sizes=random has"),
    ("backbone.widht=1", "backbone.widht: no such key; did you mean width?"),
    ("pooling.level=[1]", "pooling.level: no such key; did you mean levels?"),
    ("epochs=3", "epochs: no such key; did you mean recipe.epochs?"),
    ("+epochs=3", "epochs: no such key; did you mean recipe.epochs?"),
    ("width=0.5", "width: no such key; did you mean backbone.width?"),
    ("lr=0.1", "lr: no such key; did you mean recipe.learning_rate?"),
    ("rate=0.1", "rate: no such key; did you mean recipe.learning_rate?"),
    ("batch=3", "batch: no such key; did you mean recipe.batch_size?"),
    ("size=64", "size: no such key; did you mean sizes?"),
    ("dataset=folder", "dataset: no such key; did you mean data?"),
    ("model=zf5", "model: no such key; allowed: name, seed, hidden, initial_weights, runs, run,"),
    ("recipe.lr=0.1", "recipe.lr: no such key; did you mean learning_rate?"),
    ("+recipe.lr=0.1", "recipe.lr: no such key; did you mean learning_rate?"),
    ("recipe.bs=8", "recipe.bs: no such key; did you mean batch_size?"),
    ("recipe.width=1", "recipe.width: no such key; did you mean backbone.width?"),
    ("trainer.epochs=3", "trainer.epochs: no such key; did you mean recipe.epochs?"),
    ("hydra.nothing=1", "hydra.nothing: no such key; allowed: run, sweep, launcher"),
    ("recipe.epochs.x=3", "recipe.epochs.x: recipe.epochs is a value, not a section"),
    ("seed.x=3", "seed.x: seed is a value, not a section"),
    ("~nothing", "nothing"),
    ("~seed", "seed: missing; give it as seed=VALUE"),
    ("~data", "data: missing; give it as data=VALUE"),
    ("recipe=paper ~recipe.epochs", "recipe.epochs: missing; give it as recipe.epochs=VALUE"),
    ("+seed=1", "An item is already at 'seed'"),
    ("++nothing=1", "nothing: no such key; allowed: name"),
    ("+a.b.c=1", "a: no such key"),
    ("=3", "=3: must be KEY=VALUE"),
    ("a=", "a: no such key"),
    ("recipe@x=fast", "recipe@x: no such key"),
    # Choices that do not exist.
    ("backbone=resnet18", "backbone=resnet18: must be one of", "backbone=timm backbone.name=resnet18"),
    ("backbone=convnext_tiny", "backbone=timm backbone.name=convnext_tiny"),
    ("backbone=zf-5", "backbone=zf-5: must be one of", "did you mean zf5?"),
    ("data=Folder", "data=Folder: must be one of", "did you mean folder?"),
    ("backbone=", "backbone=: must be one of"),
    ("backbone=null", "backbone=null: must be one of convnet5"),
    ("recipe=3", "recipe=3: must be one of auto, fast, finetune, paper, small"),
    ("hydra/launcher=nothing", "hydra/launcher=nothing: must be one of basic"),
    ("data.source=[a]", "data.source=['a']: must be one of"),
    ("data.source=null", "data.source=None: must be one of"),
    # Options, and words that Hydra cannot parse.
    ("--epochs=3", "--epochs=3: keys have no dashes; did you mean recipe.epochs=3?"),
    ("--epochs 3", "--epochs: keys have no dashes; did you mean recipe.epochs=3?"),
    ("--recipe.epochs=3", "did you mean recipe.epochs=3?"),
    ("--lr 0.1", "did you mean recipe.learning_rate=0.1?"),
    ("--nonsense", "--nonsense: no such option; keys are given as KEY=VALUE, without dashes"),
    ("-x", "-x: no such option"),
    ("---", "---: no such option"),
    ("--cfg", "--cfg/-c: expected one argument"),
    ("--cfg everything", "--cfg/-c: invalid choice: 'everything'"),
    ("--cfg job --info", "Only one of --run, --multirun, --cfg"),
    ("--info everything", "--info/-i: invalid choice: 'everything'"),
    ("--resolve", "--resolve flag can only be used"),
    ("--config-name", "--config-name/-cn: expected one argument"),
    ("--config-name=x", "--config-name=x: must be one of benchmark, detect, evaluate, explain, export, predict,"),
    ("--config-dir=nowhere", "nowhere' not found"),
    ("--config-path=nowhere", "--config-path=nowhere: must be an absolute folder", "--config-dir=FOLDER"),
    ("--config-path=/nowhere", "Primary config directory not found"),
    ("--multirun=yes", "ignored explicit argument 'yes'"),
    ("--experimental-rerun file", "--experimental-rerun: not supported"),
    ("--shell-completion", "Expecting one subcommand"),
    ("-", "-: must be KEY=VALUE"),
    ("name=日本", "name=日本: a value with such letters needs quotes: \"name='日本'\""),
    ("seed=é", "seed=é: a value with such letters needs quotes"),
    ("data.root=/home/jürgen", "\"data.root='/home/jürgen'\""),
    ("seed='a", "seed='a: cannot be read as KEY=VALUE; check its brackets and quotes"),
    ("seed={a", "seed={a: cannot be read"),
    ("pooling.levels=[6,3", "pooling.levels=[6,3: cannot be read"),
    ("seed=(1)", "seed=(1): cannot be read"),
    (".seed=1", ".seed=1: cannot be read"),
    ("a..b=1", "a..b=1: cannot be read"),
    ("séed=1", "séed=1: cannot be read"),
    ("name=${oc.env:HOME", "name=${oc.env:HOME: cannot be read"),
    # Interpolations.
    ("seed=${x}", "seed: Interpolation key 'x' not found"),
    ("pooling.levels=[${x}]", "pooling.levels[0]: Interpolation key 'x' not found"),
    ("seed=${seed}", "seed: Recursive interpolation detected"),
    ("recipe.epochs=${recipe}", "recipe.epochs"),
    ("seed=${hidden.x}", "seed: ConfigTypeError", "hidden.x"),
    ("seed=${oc.env:NOT_THERE}", "seed: KeyError", "'NOT_THERE' not found"),
    ("seed=${nothing:1}", "seed: Unsupported interpolation type nothing"),
    ("recipe=${x}", "recipe=${x}", "${x}"),
    # What Hydra is told.
    ("hydra.run.dir=null seed=-1", "hydra.run.dir=null", "not Optional"),
    ("hydra.run.dir=file", "File exists: 'file'"),
    ("hydra.mode=x", "hydra.mode=x"),
    ("hydra=null", "hydra=null: "),
    ("+hydra.callbacks.x=1", "Cannot instantiate config of type int"),
    ("experiment=[demo,table2_zf5_none]", "data.root: missing"),
    ("experiment=transfer_caltech51", "experiment=transfer_caltech51: is for another command: ", "transfer"),
    ("+experiment=[demo,transfer_caltech51]", "experiment=transfer_caltech51: is for another command: "),
    ("-m experiment=glob(transfer_caltech*) data.root=images", "is for another command", "(job 1 of 1: experiment="),
    # Sweeps: all jobs are checked before the first one runs.
    ("seed=0,1", "seed=0,1"),
    ("seed=range(3)", "seed=range(3)", "requires --multirun"),
    ("-m seed=0,-1", "seed=-1: must be from 0 to 2**63 - 1 (job 2 of 2: seed=-1)"),
    ("seed=-1 -m", "seed=-1: must be from 0 to 2**63 - 1 (job 1 of 1: seed=-1)"),
    ("seed=0 -m recipe.epochs=0", "recipe.epochs=0: must be at least 1 (job 1 of 1: seed=0 recipe.epochs=0)"),
    ("hydra.mode=MULTIRUN seed=0,-1", "(job 2 of 2: seed=-1)"),
    ("-m hidden=16,none", "hidden=none: must be a whole number", "(job 2 of 2: hidden=none)"),
    ("-m backbone=zf5,zf6", "backbone=zf6: must be one of", "(job 2 of 2: backbone=zf6)"),
    ("-m pooling.levels=[2],[] sizes.cycle=[96]", "levels=[]", "(job 2 of 2: pooling.levels=[] sizes.cycle=[96])"),
    ("-m backbone.width=0.05,inf", "(job 2 of 2: backbone.width=inf)"),
    ("-m experiment=glob(nothing*)", "experiment=glob(nothing*): a sweep of no jobs"),
    ("-m seed=", "seed=: must be a whole number", "(job 1 of 1: seed=)"),
    ("-m seed=0,", "seed=0,: cannot be read"),
    ("-m seed=interval(0,1)", "BasicSweeper does not support sweep type : INTERVAL_SWEEP"),
    ("-m seed=0,1 bogus=3", "bogus: no such key"),
    ("demo", "demo: must be KEY=VALUE"),
    # Wrong types.
    ("recipe.epochs=soon", "recipe.epochs=soon: must be a whole number"),
    ("recipe.epochs=2.5", "recipe.epochs=2.5: must be a whole number"),
    ("recipe.learning_rate=fast", "recipe.learning_rate=fast: must be a number"),
    ("recipe.color=perhaps", "recipe.color=perhaps: must be true or false"),
    ("recipe.input_mean=[1,2]", "recipe.input_mean"),
    ("recipe.input_std=[1,1,0]", "recipe.input_std"),
    ("pooling.levels=6", "pooling.levels=6: must be a list, as in pooling.levels=[6], or null"),
    ("pooling.levels=[6,x]", "pooling.levels[1]=x: must be a whole number"),
    ("sizes.cycle=224", "sizes.cycle"),
    ("seed=x", "seed=x: must be a whole number"),
    ("seed=null", "seed=null: must be a whole number"),
    ("seed=", "seed=: must be a whole number"),
    ("seed=???", "seed: missing; give it as seed=VALUE"),
    ("seed=a:b", "seed=a:b: must be a whole number"),
    ("hidden={}", "hidden={}: must be a whole number"),
    ("hidden=true", "hidden=true: must be a whole number"),
    ("name=[a]", "name=[a]: must be text, or null"),
    ("name=", "name: empty; give it as name=VALUE, or leave it out"),
    ("run={a:1}", "run={a:1}: must be text, or null"),
    ("runs=null", "runs=null: must be text"),
    ("data=folder data.root=", "data.root: empty"),
    ("data=folder data.root=[images]", "data.root=[images]: must be text"),
    ("data=folder data.root=5", "5: there is no such folder"),
    ("data=hub data.name=null", "data.name=null: must be text"),
    (
        "data=hub data.data_files=[file]",
        "data.data_files=[file]: must be keys with values, as in data.data_files={KEY:VALUE}",
    ),
    ("recipe.initialization=[a]", "recipe.initialization=[a]: must be text"),
    ("recipe.input_mean=[null,1,1]", "recipe.input_mean[0]=null: must be a number"),
    ("recipe.color=null", "recipe.color=null: must be true or false"),
    ("pooling.levels=[[1]]", "pooling.levels=[[1]]: level [1] must be an integer"),
    ("pooling.levels={a:1}", "pooling.levels={a:1}"),
    ("backbone.normalization=null", "backbone.normalization=null: must be text"),
    ("trainer.devices=[0,1]", "trainer.devices=[0,1]: must be a whole number, or text"),
    ("trainer.precision=[32]", "trainer.precision=[32]: must be text, or null"),
    ("hidden=many", "hidden=many: must be a whole number"),
    ("trainer.workers=some", "trainer.workers=some: must be a whole number"),
    ("trainer.compile=maybe", "trainer.compile=maybe: must be true or false, or null"),
    ("backbone.width=wide", "backbone.width=wide: must be a number"),
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
    ("recipe.initialization=xavier", "error: recipe.initialization=xavier"),
    ("pooling.levels=[]", "error: pooling.levels=[]"),
    ("pooling.levels=[6,0]", "error: pooling.levels=[6, 0]: level 0"),
    ("pooling.levels=[-1]", "error: pooling.levels=[-1]"),
    ("sizes.cycle=[]", "error: sizes.cycle=[]"),
    ("sizes.cycle=[20]", "20 pixels are too few for this backbone"),
    ("sizes=random sizes.uniform=[224,180]", "sizes.uniform=[224, 180]"),
    ("sizes.every=step", "sizes.every=step: must be one of epoch, batch"),
    ("sizes.every=batch", "sizes.every=batch: needs more sizes than 224"),
    ("sizes=random sizes.multiple=32", "sizes.uniform=[180, 224]: must be multiples of sizes.multiple=32"),
    ("sizes.multiple=32", "sizes.multiple=32: is for sizes.uniform"),
    ("recipe.crop_area=[0.5]", "recipe.crop_area=[0.5]: must be [smallest, largest], from 0.0001 to 1"),
    ("recipe.crop_area=0.5", "recipe.crop_area=0.5: must be a list of numbers, in brackets, or null"),
    ("recipe.crop_aspect=[2,1]", "recipe.crop_aspect=[2.0, 1.0]: must be [smallest, largest], from 0.01 to 100"),
    ("recipe.crop_aspect=null", "recipe.crop_aspect=null: must be a list of numbers, in brackets"),
    ("recipe.mirror=maybe", "recipe.mirror=maybe: must be true or false"),
    ("recipe.rand_augment=31", "recipe.rand_augment=31: must be from 0 to 30, or null"),
    ("recipe.rand_augment=9 recipe.trivial_augment=true", "recipe.trivial_augment=True: set one of them, not both"),
    ("recipe.erasing=2", "recipe.erasing=2.0: must be from 0 to 1"),
    ("recipe.mixup=-1", "recipe.mixup=-1.0: must be 0, or from 0.001 to 1000"),
    ("recipe.cutmix=nan", "recipe.cutmix=nan: must be finite"),
    ("recipe.balanced=true recipe.class_weights=true", "recipe.balanced=True: set one of them, not both"),
    ("seed=-1", "seed=-1: must be from 0 to 2**63 - 1"),
    (f"seed={2**64}", f"seed={2**64}: must be from 0 to 2**63 - 1"),
    ("hidden=0", "hidden=0: must be at least 1, or null for a linear classifier"),
    ("backbone.width=0", "error: backbone.width=0.0: must be above 0 and at most 8"),
    ("backbone.normalization=batch", "error: backbone.normalization='batch': must be one of"),
    ("trainer.workers=-1", "error: trainer.workers=-1: must be at least 0"),
    ("trainer.save_every_steps=0", "trainer.save_every_steps=0: must be above 0, or null"),
    ("trainer.save_every_minutes=-1", "trainer.save_every_minutes=-1.0: must be above 0, or null"),
    ("trainer.max_unreadable=2", "trainer.max_unreadable=2.0: must be from 0 to 1"),
    ("trainer.validate_every=0", "trainer.validate_every=0: must be at least 1"),
    # The update of the weights.
    ("recipe.optimizer=adanw2", "recipe.optimizer=adanw2: timm has no such optimizer (close: adan"),
    ("recipe.optimizer=fusedadam", "recipe.optimizer=fusedadam: "),
    ("recipe.optimizer=adamw recipe.optimizer_options={beta:1}", "recipe.optimizer=adamw, recipe.optimizer_options"),
    ("recipe.optimizer_options=3", "recipe.optimizer_options"),
    ("recipe.optimizer_options={lr:1}", "set recipe.learning_rate instead"),
    ("recipe=paper recipe.schedule=tanh", "recipe.schedule=tanh, recipe.plateau_patience=6: set one of them"),
    ("recipe=fast recipe.schedule=tan", "recipe.schedule=tan: must be one of", "did you mean tanh?"),
    ("recipe=fast recipe.schedule=step recipe.schedule_options={decay:1}", "recipe.schedule_options.decay: must be"),
    ("recipe=fast recipe.schedule_options={min_lr:1}", "are of recipe.schedule, which is null"),
    ("recipe.layer_decay=1.5", "recipe.layer_decay=1.5: must be above 0 and at most 1, or null"),
    ("recipe.backbone_rate=0", "recipe.backbone_rate=0.0: must be above 0"),
    ("recipe.frozen_epochs=99", "recipe.frozen_epochs=99: must be from 0 to recipe.epochs=60"),
    ("recipe.ema_decay=1", "recipe.ema_decay=1.0: must be above 0 and below 1, or null"),
    ("recipe.base_batch_size=0", "recipe.base_batch_size=0: must be at least 1, or null"),
    ("recipe.stop_patience=0", "recipe.stop_patience=0: must be at least 1, or null"),
    ("recipe=fast recipe.stop_patience=3 trainer.validate_every=2", "trainer.validate_every=2: must be 1", "the end"),
    *(
        (f"trainer.cache={wrong}", f"={wrong}: must be auto, or gigabytes from 0")
        for wrong in ("x", -1, "nan", "1e+300")
    ),
    ("trainer.accumulate=0", "trainer.accumulate=0: must be auto or a number from 1"),
    ("trainer.accumulate=many", "trainer.accumulate=many: must be auto or a number from 1"),
    ("data=folder data.root=images recipe.batch_size=6 trainer.accumulate=4", "must divide the 6 images of a step"),
    ("find_rates=rates", "find_rates=rates: must end in .png, .svg or .pdf"),
    ("find_rates=folder.html/rates.png data=folder data.root=nowhere", "nowhere"),
    ("find_rates=file/rates.png", "file/rates.png: must be in a folder, and", "is a file"),
    # What does not go together, or is not there.
    ("pooling=none sizes=alternate", "224 pixels; a network without a pyramid (pooling=none) trains at one size only"),
    ("pooling=none sizes.cycle=[224,180]", "use sizes=single, or sizes.cycle=[224]"),
    ("sizes.cycle=[20] backbone=convnet5", "20 pixels are too few for this backbone"),
    ("sizes.cycle=[100000]", "error: sizes.cycle=[100000]: must be one or more sides in pixels, from 1 to 4096"),
    (
        "data=folder data.root=images recipe.batch_size=6 pooling.levels=[100000]",
        "pooling.levels=[100000]",
        "at most 1,000,000,000",
    ),
    (
        "data=folder data.root=images recipe.batch_size=6 hidden=1000000000",
        "hidden=1000000000",
        "at most 1,000,000,000",
    ),
    ("backbone.width=inf", "error: backbone.width=inf: must be above 0 and at most 8"),
    ("backbone.width=nan", "error: backbone.width=nan: must be above 0 and at most 8"),
    (
        "backbone=timm backbone.name=test_maxvit sizes.cycle=[160,180]",
        "sizes: 180 pixels; backbone.name='test_maxvit': the model takes no images of 180 x 180 pixels (",
    ),
    ("recipe=paper recipe.plateau_patience=null", "recipe.plateau_patience=None"),
    ("recipe=fast recipe.warmup_epochs=60", "recipe.warmup_epochs=60"),
    ("recipe=paper trainer.validate_every=3", "trainer.validate_every=3: must be 1", "recipe.plateau_patience=6"),
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
    ("trainer.workers=1000000", "error: trainer.workers=1000000: must be at most"),
    ("trainer.save_every_minutes=inf", "trainer.save_every_minutes=inf: must be above 0, or null"),
    ("trainer.num_nodes=0", "trainer.num_nodes=0: must be at least 1"),
    ("trainer.strategy=fsdp", "trainer.strategy=fsdp: must be one of auto, ddp"),
    ("trainer.precision=7", "trainer.precision=7: must be one of 32-true, bf16-mixed, or null"),
    ("backbone=timm backbone.name=resnet17", "resnet17"),
    # Data.
    ("data=folder", "data.root: missing; give it as data.root=VALUE"),
    ("data=folder data.root=nowhere", "nowhere: there is no such folder"),
    ("data=folder data.root=~/nowhere", f"{Path.home()}/nowhere: there is no such folder"),
    ("data=folder data.root='~/nowhere'", f"{Path.home()}/nowhere: there is no such folder"),
    ("data=folder data.root=file", "file: found a file, expected a folder"),
    ("data=folder data.root=empty", "empty: found", "expected a folder for each of two or more classes"),
    ("data=folder data.root=alone/train", "train: found", "expected a folder for each of two or more classes"),
    (
        "recipe=paper data=folder data.root=images",
        "recipe.batch_size=128: must be at most 6, the number of training images; recipe.bat",
    ),
    ("data=folder data.root=images data.val_fraction=0.5", "data.val_fraction=0.5"),
    (
        "data=folder data.root=images data.classes=[cat,dgo]",
        "error: data.classes: images has no class dgo; did you mean dog?",
    ),
    (
        "data=folder data.root=images data.classes=[bee,cat]",
        "error: data.classes: images has no class bee; there are cat, dog",
    ),
    ("data=folder data.root=images data.classes=[cat,cat]", "error: data.classes: cat is there twice"),
    (
        "data=folder data.root=images data.classes=[]",
        "error: data.classes=[]: must name at least one class, or be null for all",
    ),
    (
        "data=folder data.root=images data.classes=cat",
        "data.classes=cat: must be a list, as in data.classes=[cat], or null",
    ),
    ("data=imagenet data.root=images data.classes=[cat]", "data.classes: data=imagenet has no such key; data="),
    ("data=voc2007 data.root=images", "data.source=voc2007: has several labels per image", "sppnet transfer"),
    ("data=imagenet data.root=images", "images", "1000"),
    ("data=folder data.root=images data.class_pattern=x_", "error: data.class_pattern=x_: has 0 groups, expected one"),
    (
        "data=folder data.root=images data.class_pattern='(x)_'",
        "data.class_pattern=(x)_ finds no class in 6 of 6 names: train/",
    ),
    (
        "data=folder data.root=images data.class_pattern='(x'",
        "error: data.class_pattern=(x: is no regular expression (missing )",
    ),
    ("data=folder data.root=images data.class_pattern=^(x)_", "a value with such letters needs quotes"),
    (
        "data=folder data.root=images data.train_list=a.txt",
        "error: data.train_list=a.txt: found neither val_list nor val_fraction",
    ),
    (
        "data=folder data.root=images data.val_list=a.txt",
        "error: data.val_list=a.txt: needs data.train_list=FILE beside it",
    ),
    ("data=folder data.root=images data.train_list=a.txt data.val_list=b.txt", "images/a.txt: there is no such file"),
    (
        "data=folder data.root=images data.train_list=../list data.val_list=../list",
        "list: lists 2 images of train_list too",
    ),
    ("data=table", "data.file: missing; give it as data.file=VALUE"),
    ("data=table data.file=nowhere.csv", "nowhere.csv: there is no such file"),
    ("data=table data.file=images", "images: found a folder, expected a CSV or parquet file"),
    (
        "data=table data.file=file",
        "file: found the columns not a folder, expected data.path_column=path and data.label_column=label",
    ),
    (
        "data=table data.file=photos.csv data.label_column=class",
        "photos.csv: found the columns path, label, expected data.label_column=class",
    ),
    (
        "data=table data.file=photos.csv data.root=empty",
        "photos.csv:2: there is no images/train/cat/0.jpg in empty (no file for 8 of 8 rows)",
    ),
    ("data=table data.file=photos.csv data.root=nowhere", "nowhere: there is no such folder"),
    ("data=table data.file=photos.csv data.split_column=label", "photos.csv:2: label is 'cat', expected one of train"),
    (
        "data=table data.file=photos.csv data.val_file=photos.csv",
        "photos.csv:2: images/train/cat/0.jpg is among the tr",
    ),
    (
        "data=table data.file=photos.csv data.val_fraction=2",
        "error: data.val_fraction=2.0: must be above 0 and below 1",
    ),
    (
        "data=table data.file=photos.csv data.val_file=x.csv data.val_fraction=0.2",
        "error: data.val_file=x.csv and data.val_fraction=0.2: must be one of them",
    ),
    ("data=table data.file=photos.csv data.classes=[dgo]", "has no class dgo; did you mean dog?"),
    ("data=table data.file=photos.csv data.colum=x", "data.colum: no such key"),
    (
        "data=table data.file=photos.csv data.label_column=labels",
        "photos.csv: found the columns path, label, expected data.label_column=labels; did you mean label?",
    ),
    ("data=table data.file=fake.parquet", "fake.parquet: is not a parquet file, as its name says"),
    (
        "data=table data.file=photos.csv data.classes=[cat]",
        "error: data.classes=[cat]: found only the class cat in 3 training images, expected two or more",
    ),
    (
        "data=table data.file=cats.csv recipe=paper",
        "error: cats.csv: found only the class cat in 2 training images, expected two or more",
    ),
    ("data=folder data.root=alone", "error: alone: found only the class cat in 1 training image, expected two or more"),
    (
        "data=folder data.root=images data.classes=[cat] find_rates=rates.png",
        "error: data.classes=[cat]: found only the class cat in 3",
    ),
    ("data=table data.file=[a,b]", "data.file=[a,b]: must be text"),
    ("data=table data.root=images", "data.file: missing; give it as data.file=VALUE"),
    ("data=table data.file=twice.csv", "twice.csv:3: found images/train/cat/0.jpg a second time, after", "multilabel"),
    ("data=multilabel data.file=photos.csv", "data.source=multilabel: has several labels per image", "sppnet transfer"),
    ("data=caltech101 data.root=images", "expected Caltech101's 102"),
    ("data=prepared data.root=images", "images: not a prepared store"),
    ("data=hub data.name=empty", "empty"),
    ("data=hub data.name=json data.data_files={train:file,validation:file}", "json: JSON parse error"),
    ("data=hub data.name=parquet data.data_files={train:file,validation:file}", "parquet: Parquet magic bytes"),
    (
        "data=hub data.name=imagefolder data.data_files={train:nowhere,validation:nowhere}",
        "imagefolder: Unable to find",
    ),
    ("data=hub data.name=images data.train_split=x", 'images: Unknown split "x"'),
    # Found when the trainer is built; the run directory is gone again.
    ("data=folder data.root=images recipe.batch_size=2 trainer=cpu trainer.devices=99", "99"),
    (
        "data=folder data.root=images recipe.batch_size=6 sizes=random trainer.compile=true",
        "trainer.compile=true: this run trains at",
    ),
    ("data.train=-1", "train=-1"),
    # Where the run would be.
    ("name=../x", "name=../x: may hold letters, digits, dots, dashes and underscores only"),
    ("name=${oc.env:HOME}", "may hold letters, digits"),
    (
        "data=folder data.root=images recipe.batch_size=6 run=images",
        "images: found train, val, expected a new folder or a run directory",
    ),
    (
        "data=folder data.root=images recipe.batch_size=6 run=file",
        "file: found a file, expected a new folder or a run directory",
    ),
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
    ("run=run view=center", "view: no such key; did you mean views?"),
    ("run=run batch_size=3", "batch_size: no such key; allowed: run, scales, crop_side, data, part,"),
    ("run=run devices=2", "devices: no such key; did you mean hardware.devices?"),
    ("run=run --views=center", "--views=center: keys have no dashes; did you mean views=center?"),
    ("run=run recipe.epochs=3", "recipe: no such section; allowed: run, scales, crop_side, data,"),
    ("run=run +seed=3", "seed: no such key; allowed: run, views, scales, crop_side, data, part,"),
    ("run=run views.centre.scales=[256]", "views.centre: no such section"),
    ("run=run views.center.scale=[256]", "views.center.scale: no such key; did you mean scales?"),
    ("run=run views=null", "views=null: must be one of center"),
    ("run=run views=[center,centre]", "views=centre: must be one of", "did you mean center?"),
    ("run=run data=nothing", "data=nothing: must be one of caltech101"),
    ("run=run data.rot=images", "data.rot: no such key; did you mean root?"),
    ("run=run views=[center] data=voc2007 data.root=images", "data.source=voc2007: has several labels per image"),
    (
        "run=run views=[center] data=folder data.root=images data.classes=[dog]",
        "the data has 1 class and the network 2",
    ),
    ("run=run data.root=~/nowhere", f"{Path.home()}/nowhere: there is no such folder"),
    ("run=run scales=[x]", "scales[0]=x: must be a whole number"),
    ("run=run hardware.precision=fp8", "fp8"),
    ("run=run hardware=null", "hardware"),
    ("run=run exclude=x", "exclude=x: must be a list, as in exclude=[x]"),
    ("run=${oc.env:NOT_THERE}", "run: KeyError", "'NOT_THERE' not found"),
    ("run=~/nowhere", f"run={Path.home()}/nowhere: no such run directory or checkpoint"),
    ("-m run=run,nowhere", "run=nowhere: no such run directory or checkpoint (job 2 of 2: run=nowhere)"),
    ("-m run=run hardware.devices=1,0", "hardware.devices=0", "(job 2 of 2: run=run hardware.devices=0)"),
    ("run=run views=[center] exclude=[val/cat/7.jpg]", "exclude=val/cat/7.jpg: no image of val has this name"),
]

PREPARE = [
    ("data.root=images", "out: missing; give it as out=VALUE"),
    ("data.root=images out=file", "file: found a file, expected a new folder"),
    ("data.root=images out=images", "expected a new folder or an unfinished store"),
    ("data.root=images out=new quality=0", "quality=0: must be 1 to 100"),
    ("data.root=images out=new format=png", "format=png: must be jpeg or raw"),
    ("data.root=images out=new format=raw quality=90", "quality=90: is for format=jpeg"),
    ("-m data.root=images out=new format=raw,ppm", "format=ppm: must be jpeg or raw (job 2 of 2"),
    ("data.root=images out=new short_side=0", "short_side=0: must be at least 1"),
    ("data.root=images out=", "out: empty; give it as out=VALUE"),
    ("data.root=images out=null", "out=null: must be text"),
    ("data.root=images out=[a]", "out=[a]: must be text"),
    ("data.root=images ot=new", "ot: no such key; did you mean out?"),
    ("root=images out=new", "root: no such key; did you mean data.root?"),
    ("--root images out=new", "--root: keys have no dashes; did you mean data.root=images?"),
    (
        "data.root=images out=new backbone=zf5",
        "backbone: no such key; allowed: out, short_side, format, quality",
    ),
    ("data.root=images out=new quality=x", "quality=x: must be a whole number"),
    ("data=null out=new", "data=null: must be one of caltech101"),
    ("data=table data.file=nowhere.csv out=new", "nowhere.csv: there is no such file"),
    ("data=multilabel data.file=photos.csv out=new", "data.source=multilabel: has several labels per image"),
    ("data=voc2007 data.root=images out=new", "data.source=voc2007: has several labels per image"),
    ("data.root=~/nowhere out=new", f"{Path.home()}/nowhere: there is no such folder"),
    ("data.root=images out=new exclude=[val/cat/9.jpg]", "exclude=val/cat/9.jpg: no image has this name"),
    ("-m data.root=images,nowhere out=", "out: empty", "(job 1 of 2: data.root=images out=)"),
    ("data.root=images out=new workers=-1", "workers=-1: must be 0 to "),
    ("data.root=images out=new workers=1000000", "workers=1000000: must be 0 to "),
]

TABLES = [
    ("table5", "table5", "table2"),
    ("table2 runs=nowhere", "nowhere"),
    ("table2 rnus=x", "rnus: no such key; did you mean runs?"),
    ("table2 runs=", "runs: empty"),
    ("table2 runs=null", "runs=null: must be a folder, a pattern, or a list of them: runs=[A,B]"),
    ("table2 runs=5", "runs=5: must be a folder, a pattern, or a list of them"),
    ("table2 runs=[5]", "runs=[5]: must be a folder"),
    ("table2 runs=[]", "runs=[]: must be a folder"),
    ("table2 runs={a:1}", "runs={'a': 1}: must be a folder"),
    ("table2 runs=[a", "runs=[a: cannot be read as KEY=VALUE; check its brackets and quotes"),
    ("table2 runs=*x", "runs=*x: no run directories there"),
    ("table2 runs=${x}", "runs: Interpolation key 'x' not found"),
    ("table2 runs=~/nowhere", f"runs={Path.home()}/nowhere: no run directories there"),
    ("table2 out=[a]", "out=[a]: must be text"),
    ("table2 out=s3://bucket/tables", "s3://bucket/tables: must be a place on this machine"),
    ("table2 --runs=x", "--runs=x: must be runs=PATTERN, out=FOLDER or combine=A+B"),
    ("table2 table3", "table3: must be runs=PATTERN, out=FOLDER or combine=A+B"),
    ("table2 =x", "=x: must be KEY=VALUE"),
    ("transfer combine=5", "combine=5: must be A+B, or a list of such: combine=[A+B,A+C]"),
    ("transfer combine=[]", "combine=[]: must be A+B"),
    ("transfer combine=[[fc6,fc7]]", "combine=[['fc6', 'fc7']]: must be A+B"),
    ("transfer combin=fc6+fc7", "combin: no such key; did you mean combine?"),
    ("table2 combine=fc6+fc7", "combine=fc6+fc7: is for transfer, table12, detection; compare combines classifiers by"),
    ("table9 combine=fc6+fc7", "combine=fc6+fc7: is for transfer, table12, detection"),
    ("table13 runs=one", "table13: must be one of table2"),
    ("detection runs=run", "no detections in these runs; do it with ", "detect network=RUN data=voc data.root=PATH"),
    ("table9 runs=empty", "runs=empty: no run directories there"),
    ("table9 runs=headless", "headless/detections/ftfc7.jsonl:1: not a file of detections"),
    ("table10 runs=old", "old/detections/ftfc7.jsonl:1: not detections of a detector (scales must be a list of whole"),
    ("table11 runs=cut", "cut/detections/ftfc7.jsonl:7: not a file of detections"),
    ("detection runs=lost", "lost/detections/objects.jsonl: missing; it has the objects that ftfc7.jsonl is compared"),
    ("table12 runs=one", "table12: needs ftfc7_bb of two networks that differ in seed only, found none; or name two"),
    ("table12 runs=other", "found 1 in other/detections/ftfc7_bb.jsonl; or name two with combine=A+B"),
    ("table12 runs=one combine=ftfc7", "combine=ftfc7: must be two or more names of detections joined by +"),
    ("table12 runs=one combine=ftfc7+ftfc8", "combine=ftfc7+ftfc8: no detections of ftfc8; there are ftfc7"),
    ("table12 runs=[one,lost] combine=ftfc7+fc6", "ftfc7 is the name of 2 files, such as one/detections/ftfc7 and "),
    ("detection runs=[one,other] combine=ftfc7+ftfc7_bb", "trained or tested on different images or classes"),
    ("detection runs=[one,lost]", "one/detections/ftfc7.jsonl and lost/detections/ftfc7.jsonl: the same detector"),
    ("detection runs=one combine=[]", "combine=[]: must be A+B"),
    ("Table2", "Table2: must be one of table2"),
]

PHOTOS = "run=run data=folder data.root=images"
BUILT = "backbone=zf5 backbone.width=0.05 data=folder data.root=images"
REPORT = [
    ("report", "report: must be runs=PATTERN, out=FOLDER, views=NAME or data.root=PATH"),
    ("--out=x", "--out=x: must be runs=PATTERN"),
    ("runs=run out=s3://bucket/report", "s3://bucket/report: must be a place on this machine"),
    ("run=run", "run: no such key; did you mean runs?"),
    ("runs=nowhere", "runs=nowhere: no run directories there"),
    ("runs=empty", "runs=empty: no run directories there"),
    ("runs=images", "runs=images: no run directories there"),
    ("runs=null", "runs=null: must be a folder, a pattern, or a list of them"),
    ("runs=[run,nowhere]", "runs=nowhere: no run directories there"),
    ("runs=[run", "cannot be read"),
    ("runs=run out=file", "out=file: found a file, expected a new folder or the one of a report"),
    ("runs=run out=file/x", "Not a directory"),
    ("runs=run out=", "out: empty"),
    ("runs=run views=center", "views=center: no run was tested by it; must be one of none"),
    ("runs=run views=[center]", "views=[center]: must be text"),
    ("runs=run root=images", "root: no such key"),
    ("runs=run data=images", "data=images: must be keys with values"),
    ("runs=cut/detections", "ftfc7.jsonl:7: not a file of detections"),
]

TRANSFER = [
    # Networks.
    ("", "run: missing; give run=RUN, a run directory or a checkpoint, or backbone=NAME"),
    ("data=folder data.root=images", "run: missing; give run=RUN"),
    ("run=run backbone=zf5 data=folder data.root=images", "run=run: a run has its own network; give run=RUN or backb"),
    (f"{PHOTOS} pooling=spp30", "pooling: a run has its own pyramid; pooling=NAME is for backbone=NAME"),
    ("run=nowhere data=folder data.root=images", "run=nowhere: no such run directory or checkpoint"),
    ("run=[] data=folder data.root=images", "run=[]: must be a run directory, a checkpoint, a pattern, or a list"),
    ("run=5 data=folder data.root=images", "run=5: must be a run directory"),
    ("run= data=folder data.root=images", "run: empty; give it as run=VALUE"),
    ("run=~/nowhere data=folder data.root=images", f"run={Path.home()}/nowhere: no such run directory or checkpoint"),
    ("run=unfinished data=folder data.root=images", "unfinished/checkpoints/last.ckpt: no such checkpoint"),
    ("run=damaged data=folder data.root=images", "damaged/checkpoints/last.ckpt: not a checkpoint of sppnet"),
    ("run=[run,damaged] data=folder data.root=images", "damaged/checkpoints/last.ckpt: not a checkpoint of sppnet"),
    ("run=file data=folder data.root=images", "file: not a checkpoint of sppnet"),
    ("run=emp* data=folder data.root=images", "run=emp*: no such run directory or checkpoint"),
    ("run=flat.ckpt data=folder data.root=images", "view=full at a scale of 224: the network has no pyramid"),
    ("backbone=zf6 data=folder data.root=images", "backbone=zf6: must be one of", "zf5"),
    ("backbone=resnet18 data=folder data.root=images", "backbone=timm backbone.name=resnet18"),
    ("backbone=timm backbone.name=resnet17 data=folder data.root=images", "resnet17"),
    (f"{BUILT} backbone.width=wide", "backbone.width=wide: must be a number"),
    (f"{BUILT} +backbone.widht=1", "backbone.widht: no such key; did you mean width?"),
    (f"{BUILT} backbone.width=0", "width=0"),
    (f"{BUILT} layers=[fc7]", "layers=[fc7]: fc7 has random weights, as this network was not trained here; use lay"),
    (f"{BUILT} pooling=spp51", "pooling=spp51: must be one of none, spp30, spp50"),
    (f"{BUILT} pooling=spp50 pooling.levels=[0]", "error: pooling.levels=[0]: level 0"),
    (f"{BUILT} pooling=none", "view=full at a scale of 224: the network has no pyramid", "at a scale of 224"),
    (f"{BUILT} seed=-1", "seed=-1: must be from 0 to 2**63 - 1"),
    (f"{BUILT} seed={2**64}", f"seed={2**64}: must be from 0 to 2**63 - 1"),
    (f"{BUILT} runs=file", "file", "Not a directory"),
    ("backbone=timm backbone.weights=nowhere data=folder data.root=images", "backbone.weights=nowhere: no such"),
    (
        "backbone=timm backbone.weights=file data=folder data.root=images",
        "backbone.weights=file: not a file of weights",
    ),
    # Layers and views.
    (f"{PHOTOS} layers=[]", "layers=[]: must name at least one layer, as in layers=[pool5,fc7]"),
    (f"{PHOTOS} layers=[conv6]", "layers='conv6': must be one of conv1", "fc8, pixels"),
    (f"{BUILT} layers=[conv6]", "layers='conv6': must be one of conv1", "pool5_1x1, pixels"),
    (f"{PHOTOS} layers=fc7", "layers=fc7: must be a list, as in layers=[fc7]"),
    (f"{PHOTOS} layer=fc7", "layer: no such key; did you mean layers?"),
    (f"{PHOTOS} view=centre", "view=centre: must be one of full, crop, warp"),
    (f"{PHOTOS} views=[full]", "views: no such key; did you mean view?"),
    (f"{PHOTOS} scales=[]", "scales=[]: must be one or more sides from 1 to 4096 pixels"),
    (f"{PHOTOS} scales=[0]", "scales=[0]: must be one or more sides"),
    (f"{PHOTOS} scales=[100000]", "scales=[100000]: must be one or more sides"),
    (f"{PHOTOS} scales=[224,224]", "scales=[224, 224]: must not repeat a side"),
    (f"{PHOTOS} scales=[20]", "a scale of 20: must be from "),
    (f"{PHOTOS} scales=[big]", "scales[0]=big: must be a whole number"),
    (f"{PHOTOS} scales=224", "scales=224: must be a list, as in scales=[224]"),
    (f"{PHOTOS} aligned=perhaps", "aligned=perhaps: must be true or false"),
    (f"{PHOTOS} baselines=[noise]", "baselines=['noise']: noise must be one of pixels, untrained"),
    (f"{PHOTOS} baselines=null", "baselines=null: must be a list of text, in brackets"),
    # Data.
    ("run=run", "data: missing; give it as data=folder data.root=PATH, data=caltech101 or data=voc2007"),
    ("run=run data=folder", "data.root: missing; give it as data.root=VALUE"),
    ("run=run data.root=images", "data: no such section"),
    ("run=run data=floder data.root=images", "data=floder: must be one of", "did you mean folder?"),
    ("run=run data=folder data.root=nowhere", "nowhere: there is no such folder"),
    ("run=run data=folder data.root=~/nowhere", f"{Path.home()}/nowhere: there is no such folder"),
    ("run=run data=folder data.root=empty", "empty: found", "expected a folder for each of two or more classes"),
    ("run=run data=folder data.root=alone", "the data has one class, cat: transfer needs two or more"),
    ("run=run data=voc2007 data.root=images", "expected ImageSets/Main there"),
    ("run=run data=caltech101 data.root=images", "expected Caltech101's 102"),
    (f"{PHOTOS} data.classes=[cat,dgo]", "classes: ", "no class dgo; did you mean dog?"),
    ("run=run data=multilabel", "data.file: missing; give it as data.file=VALUE"),
    ("run=run data=multilabel data.file=nowhere.csv", "nowhere.csv: there is no such file"),
    ("run=run data=multilabel data.file=photos.csv splits=2", "splits=2: the parts of this data are fixed"),
    (
        "run=run data=multilabel data.file=photos.csv data.val_fraction=7",
        "data.val_fraction=7.0: must be above 0 and below 1",
    ),
    (f"{PHOTOS} data.splits=3", "data.splits: no such key; did you mean"),
    (f"{PHOTOS} splits=0", "splits=0: must be from 1 to 1000, or null"),
    (f"{PHOTOS} splits=10", "splits=10: the parts of this data are fixed; give splits=1 or leave it out"),
    (
        "run=run data=voc2007 data.root=images splits=3",
        "splits=3: the parts of this data are fixed; give splits=1 or le",
    ),
    (f"-m {PHOTOS} splits=1,3", "splits=3: the parts of this data are fixed", "(job 2 of 2: "),
    (f"{PHOTOS} splits=ten", "splits=ten: must be a whole number"),
    (
        f"{PHOTOS} exclude=[cat.jpg]",
        "exclude=cat.jpg: no image of these splits has this name; such a name is train/cat",
    ),
    (f"{PHOTOS} exclude=x", "exclude=x: must be a list, as in exclude=[x]"),
    # SVMs, hardware, the rest.
    *(
        (f"{PHOTOS} svm.C={value}", f"svm.C={value}: must be a number above 0, and finite")
        for value in ("0.0", "-1.0", "nan", "inf")
    ),
    (f"{PHOTOS} svm.C=abc", "svm.C=abc: must be a number"),
    (f"{PHOTOS} svm.c=1", "svm.c: no such key; allowed: C, jobs, gigabytes"),
    (f"{PHOTOS} C=1", "C: no such key; did you mean svm.C?"),
    (f"{PHOTOS} svm.gigabytes=1e-9", "SVMs on the features of 6 training images take ", "svm.gigabytes allows 1e-09"),
    (f"{PHOTOS} svm.jobs=0", "svm.jobs=0: must be from 1 to 1024"),
    (f"{PHOTOS} svm.gigabytes=-1", "svm.gigabytes=-1.0: must be a number above 0, and below 1,000,000"),
    (f"{PHOTOS} svm=null", "svm=null: must be keys with values"),
    (f"{PHOTOS} hardware.devices=0", "hardware.devices=0: must be 1 to"),
    (f"{PHOTOS} hardware.accelerator=gpu", "hardware.accelerator=gpu: torch finds no GPU"),
    (f"{PHOTOS} hardware.precision=fp8", "hardware.precision=fp8: must be bf16, float32 or null"),
    (f"{PHOTOS} hardware.workers=-1", "hardware.workers=-1: must be from 0"),
    (f"{PHOTOS} --layers=[fc7]", "--layers=[fc7]: keys have no dashes; did you mean layers=[fc7]?"),
    (f"{PHOTOS} recipe.epochs=3", "recipe: no such section"),
    (f"{PHOTOS} run=${{x}}", "run: Interpolation key 'x' not found"),
    ("experiment=demo run=run", "experiment=demo: is for another command: ", "train", " experiment=demo"),
    ("experiment=demmo run=run", "experiment=demmo: must be one of ", "transfer_caltech51"),
    # Sweeps.
    ("-m run=run,nowhere data=folder data.root=images", "run=nowhere: no such run directory", "(job 2 of 2: run=nowh"),
    (f"-m {PHOTOS} view=full,half", "view=half: must be one of full, crop, warp (job 2 of 2: "),
    (f"-m {PHOTOS} svm.C=1,0", "svm.C=0.0: must be a number above 0, and finite (job 2 of 2: "),
    (f"-m {PHOTOS} splits=1,0", "splits=0: must be from 1 to 1000, or null (job 2 of 2: "),
    (f"-m {BUILT} layers=[pool5],[fc6]", "layers=[fc6]: fc6 has random weights", "(job 2 of 2: "),
    (f"-m {BUILT} seed=1,-1", "seed=-1: must be from 0 to 2**63 - 1 (job 2 of 2: "),
    (f"-m {BUILT} backbone.width=0.05,wide", "backbone.width=wide: must be a number", "(job 2 of 2: "),
    (f"{PHOTOS} view=full,crop", "Ambiguous value for argument 'view=full,crop'"),
]

SCENES = "network=run data=scenes"
DETECT = [
    ("", "network: missing; give network=RUN, the run directory or a checkpoint of a trained classifier"),
    ("network=run", "data: missing; give it as data=scenes, data=voc data.root=PATH or data=coco"),
    ("network=nowhere data=scenes", "nowhere: no such checkpoint"),
    ("network=unfinished data=scenes", "unfinished/checkpoints/last.ckpt: no such checkpoint"),
    ("network=damaged data=scenes", "damaged/checkpoints/last.ckpt: not a checkpoint of sppnet"),
    ("network=file data=scenes", "file: not a checkpoint of sppnet"),
    ("network= data=scenes", "network: empty"),
    ("network=run data=shapes", "data.source=shapes: must be one of voc, coco, scenes"),
    ("network=run data=vok", "data=vok: must be one of coco, scenes, voc"),
    ("network=run data=voc", "data.root: missing"),
    ("network=run data=voc data.root=nowhere", "nowhere: there is no such folder"),
    ("network=run data=voc data.root=images", "images: found"),
    (f"{SCENES} data.root=images", "images holds no readable scenes.json"),
    (f"{SCENES} data.train=9", "data.train=9, data.test=60: must be at least 10"),
    (f"{SCENES} data.trian=20", "data.trian: no such key; did you mean train?"),
    (f"{SCENES} rows=[]", "rows=[]: must name one or more detectors, each once"),
    (f"{SCENES} rows=[fc7,fc7]", "rows=['fc7', 'fc7']: must name one or more detectors, each once"),
    (
        f"{SCENES} rows=[conv5]",
        "rows: conv5 must be one of pool5, fc6, fc7, ftfc6 or ftfc7, with _bb",
    ),
    (f"{SCENES} rows=fc7", "rows=fc7: must be a list"),
    (f"{SCENES} scales=[]", "scales=[]: must be sides in pixels"),
    (f"{SCENES} scales=[300,300]", "scales=[300, 300]: must be sides in pixels, each once"),
    (f"{SCENES} scale_rule=best", "scale_rule='best': must be one of area, release"),
    (f"{SCENES} cell_rule=best", "cell_rule='best': must be one of centers, release"),
    (f"{SCENES} context=5", "context=5.0: must be from 1 to 4"),
    (f"{SCENES} seed=-1", "seed=-1: must be from 0 to 2**63 - 1"),
    (f"{SCENES} tune_fraction=1", "tune_fraction=1.0: must be above 0 and below 1"),
    (f"{SCENES} most_windows=0", "most_windows=0: must be from 1 to 1,000,000"),
    (f"{SCENES} proposals=dens", "proposals=dens: must be one of dense, edge_boxes, file, selective_search"),
    (f"{SCENES} proposals.ratio=1", "proposals.ratio=1.0: must be from 1.1 to 100"),
    (f"{SCENES} proposals=file", "proposals.path: missing"),
    (f"{SCENES} proposals=file proposals.path=nowhere", "nowhere"),
    (f"{SCENES} finetune.steps=0", "finetune.steps=0: must be at least 1"),
    (f"{SCENES} finetune.steps=2001", "finetune.steps=2001: must be a multiple of finetune.validate_every=2000"),
    (f"{SCENES} finetune.rate=1", "finetune.rate: no such key"),
    (f"{SCENES} svm.C=0", "svm.C=0.0: must be above 0"),
    (f"{SCENES} svm.easy_score=0", "svm.easy_score=0.0"),
    (f"{SCENES} regression.ridge=x", "regression.ridge=x: must be a number"),
    (f"{SCENES} test.suppression_overlap=2", "test.suppression_overlap=2.0: must be from 0 to 1"),
    (f"{SCENES} hardware.accelerator=gpu", "hardware.accelerator=gpu: torch finds no GPU on this machine"),
    (f"{SCENES} name=a/b", "name=a/b: may hold letters, digits, dots, dashes and underscores only"),
    (f"-m {SCENES} seed=1,-1", "seed=-1: must be from 0 to 2**63 - 1 (job 2 of 2: "),
    (f"{SCENES} experiment=demo", "experiment=demo: is for another command"),
]

# Detectors used on photos.
OWN = "run=detector images=photos"
DETECT += [
    ("images=photos", "run: missing; give run=RUN, the run directory of a detector, or run=FILE.ckpt"),
    (f"{OWN} network=run", "images=photos: uses a detector that is trained; network and data are to train one"),
    ("run=nowhere images=photos", "run=nowhere: no such run directory or detector"),
    ("run=run images=photos", "run=run: no detectors there; ", "detect", " network=RUN data=... trains them"),
    ("run=run/checkpoints/last.ckpt images=photos", "last.ckpt: not a detector of sppnet"),
    (f"{OWN} row=fc8", "row=fc8: no such detector in detector; there are fc7"),
    ("run=detector/detectors/fc7.ckpt row=fc7 images=photos", "row=fc7: is for a run directory, and run=detector/"),
    ("run=detector images=nowhere", "images=nowhere: there is no such file or folder, and no file matches"),
    ("run=detector images=empty", "images=empty: no images there, expected files such as .jpg, .jpeg"),
    ("run=detector images=", "images: empty; give it as images=VALUE"),
    (f"{OWN} out=boxes.txt", "out=boxes.txt: must end in .csv, .json, .jsonl, .parquet"),
    (f"{OWN} page=boxes.pdf", "page=boxes.pdf: must end in .html"),
    (f"{OWN} out=file/boxes.csv", "file/boxes.csv: must be in a folder, and ", "file is a file"),
    (f"{OWN} page=folder.html", "folder.html: must be a file, and is a folder"),
    (f"{OWN} score=nan", "score=nan: must be finite"),
    (f"{OWN} score=-3", "score=-3.0: must be at least 0.1, below which this detector keeps nothing"),
    (f"{OWN} finetune.steps=3", "finetune.steps=3: is for training; a detector on images=... has its own settings"),
    (
        f"{OWN} proposals=edge_boxes",
        "proposals: are those that the detector was trained with, or your own by proposals",
    ),
    (f"{OWN} proposals=file proposals.path=file", "file:1: cannot be read as JSON"),
    ("run=of_file.ckpt images=photos", "proposals: the detector was trained on windows of a file; give those of the p"),
    (f"{OWN} hardware.devices=2", "hardware.devices=2: "),
    (f"{SCENES} out=boxes.csv", "out=boxes.csv: is for images=PLACE"),
    (f"{SCENES} score=1", "score=1.0: is for images=PLACE"),
    ("image=photos", "image: no such key; did you mean images?"),
]

# Of `predict`, and what detectors share with `detect images=...`.
SHOWN = "run=run images=photos"
PREDICT = [
    ("images=photos", "run: missing; give it as run=VALUE"),
    ("run=run", "images: missing; give it as images=VALUE"),
    ("run=nowhere images=photos", "run=nowhere: no such run directory or checkpoint"),
    ("run=empty images=photos", "run=empty: no such run directory with a checkpoint, or detector"),
    ("run=file images=photos", "file: not a checkpoint of sppnet"),
    (f"{SHOWN} min_score=50", "min_score=50.0: must be from 0 to 1, as scores are probabilities"),
    ("run=model.onnx images=photos", "run=model.onnx: is an exported file; give the run directory or checkpoint"),
    ("run=. images=photos", "run=.: no such run directory with a checkpoint, or detector; there is damaged, run"),
    ("run=damaged images=photos", "last.ckpt: not a checkpoint of sppnet"),
    ("run=run images=nowhere", "images=nowhere: there is no such file or folder, and no file matches"),
    ("run=run images=[photos,nowhere]", "images=nowhere: there is no such file or folder, and no file matches"),
    ("run=run images=[photos,-]", "images=['photos', '-']: - is for standard input, and cannot be one of several"),
    ("run=run images=empty", "images=empty: no images there, expected files such as .jpg, .jpeg"),
    ("run=run images=[]", "images=[]: must be a file, a folder, a pattern, a list of them, or - for standard input"),
    ("run=run images=3", "images=3: must be a file, a folder, a pattern"),
    ("run=run images=[photos,3]", "images=['photos', 3]: must be a file, a folder, a pattern"),
    ("run=run images={a:b}", "images={'a': 'b'}: must be a file, a folder, a pattern"),
    (f"{SHOWN} top=0", "top=0: must be at least 1"),
    (f"{SHOWN} top=x", "top=x: must be a whole number"),
    (f"{SHOWN} min_score=nan", "min_score=nan: must be finite"),
    (f"{SHOWN} scores=logit", "scores=logit: must be probabilities or logits"),
    (f"{SHOWN} views=[center,full]", "views=['center', 'full']: must be one protocol, as in views=ten_crop"),
    (f"{SHOWN} views=centre", "views=centre: must be one of center"),
    (f"{SHOWN} views=center views.center.scales=[3]", "scales=[3]: must be at least view_size=224"),
    (f"{SHOWN} crop_side=0", "crop_side=0: must be from 1 to 4096"),
    (f"{SHOWN} out=a.txt", "out=a.txt: must end in .csv, .json, .jsonl, .parquet"),
    (f"{SHOWN} out=predictions", "out=predictions: must end in .csv, .json, .jsonl, .parquet"),
    (f"{SHOWN} out=file/a.csv", "file/a.csv: must be in a folder, and", "file is a file"),
    (f"{SHOWN} page=a.htm", "page=a.htm: must end in .html"),
    (f"{SHOWN} page=folder.html", "folder.html: must be a file, and is a folder"),
    (f"{SHOWN} row=fc7", "row=fc7: is for detectors, and run=run is a classifier"),
    (f"{SHOWN} hardware.devices=2", "hardware.devices=2: this command runs on one device"),
    (f"{SHOWN} image=photos", "image: no such key; did you mean images?"),
    ("run=flat.ckpt images=photos views=full crop_side=64", "whole images: the network has no pyramid and takes 64 x"),
    ("run=detector images=photos top=3", "top=3: is for classifiers, and run=detector is a detector"),
    ("run=detector images=photos views=full", "views=full: is for classifiers, and run=detector is a detector"),
    ("run=detector images=photos row=fc8", "row=fc8: no such detector in detector; there are fc7"),
    ("run=detector images=photos min_score=-3", "min_score=-3.0: must be at least 0.1, below which this detector"),
    ("run=of_file.ckpt images=photos", "the detector was trained on windows of a file", "detect", "proposals=file"),
]

PUBLISH = [
    ("out=net", "run: missing; give it as run=VALUE"),
    ("run=run", "out: missing; give out=FOLDER, to=hf://OWNER/NAME, or both"),
    ("run=run out=net", "run=run: has not finished training; its card would have no result"),
    ("run=nowhere out=net", "run=nowhere: no such run directory with a checkpoint, and no checkpoint"),
    ("run=empty out=net", "run=empty: no such run directory with a checkpoint, and no checkpoint"),
    ("run=file out=net", "file: not a checkpoint of sppnet"),
    ("run=damaged out=net", "last.ckpt: not a checkpoint of sppnet"),
    ("run=of_file.ckpt out=net", "run=of_file.ckpt: is a detector, whose .ckpt file holds all of it"),
    (
        "run=flat.ckpt out=photos",
        "out=photos: must be a new folder, or one with a published network only; it has a.png",
    ),
    ("run=flat.ckpt out=file", "out=file: must be a folder, and is a file"),
    ("run=flat.ckpt to=me/net", "to=me/net: must be hf://OWNER/NAME"),
    ("run=flat.ckpt to=hf://net", "hf://net: must be hf://OWNER/NAME"),
    ("run=flat.ckpt to=hf://me/net@main", "to=hf://me/net@main: must be hf://OWNER/NAME"),
    ("run=flat.ckpt out=net private=true", "private=True: is for to=hf://OWNER/NAME"),
    ("run=flat.ckpt out=net private=2", "private"),
    ("run=flat.ckpt out=net crop_side=0", "crop_side=0: must be at least 1"),
    ("run=flat.ckpt out=net licence=mit", "licence: no such key; did you mean license?"),
    ("run=flat.ckpt out=", "out: empty"),
]

EXPLAIN = [
    ("", "run: missing; give it as run=VALUE"),
    ("run=nowhere", "run=nowhere: no such run directory or checkpoint"),
    ("run=[run,flat.ckpt]", "names 2 runs, and one at a time is explained"),
    ("run=unfinished", "unfinished/checkpoints/last.ckpt: no such checkpoint"),
    ("run=damaged", "damaged/checkpoints/last.ckpt: not a checkpoint of sppnet"),
    ("run=detector", "detector/checkpoints/last.ckpt: no such checkpoint"),
    ("run=flat.ckpt", "flat.ckpt: has no config.yaml that names its data; give data=GROUP and its keys"),
    ("run=run layer=fc6", "layer=fc6: has no maps; the layers with maps are conv1, norm1, pool1,", ", conv5"),
    ("run=run layer=conv6", "layer=conv6: no such layer; the layers with maps are conv1"),
    ("run=run layers=[conv5]", "layers: no such key; did you mean layer?"),
    ("run=run filters=[13]", "filters=[13]: must be from 0 to 12 in conv5"),
    ("run=run filters=[-1]", "filters=[-1]: must be one or more numbers from 0, each once"),
    ("run=run filters=[]", "filters=[]: must be one or more numbers from 0, each once"),
    ("run=run filters=3", "filters=3: must be a list, as in filters=[3]"),
    ("run=run most_filters=0", "most_filters=0: must be from 1 to 1,000"),
    ("run=run top=0", "top=0: must be from 1 to 100"),
    ("run=run scale=30", "scale=30: must be from 31 to 4096 pixels for this network"),
    ("run=flat.ckpt images=photos scale=63", "scale=63: must be from 64 to 4096 pixels for this network"),
    ("run=run scale=5000", "scale=5000: must be from 1 to 4,096"),
    ("run=run check=1", "check=1: must be from 2, as one image has no interval"),
    ("run=run data.root=alone check=2", "check=2: an interval needs two images or more, and the data has one"),
    ("run=run check=many", "check=many: must be a whole number"),
    ("run=run grey=0", "grey=0: must be from 1 to 4,096"),
    ("run=run seed=-1", "seed=-1: must be from 0 to 2**63 - 1"),
    ("run=run page=page.pdf", "page=page.pdf: must end in .html"),
    ("run=run page=folder.html", "folder.html: must be a file, and is a folder"),
    ("run=run page=file/page.html", "file/page.html: must be in a folder, and "),
    ("run=run class=cat", "class=cat: is for images=PLACE"),
    ("run=run clas=cat", "clas: no such key; did you mean class?"),
    ("run=run part=half", "part='half': must be one of train, val, all"),
    ("run=run data.root=nowhere", "nowhere: there is no such folder"),
    ("run=run data=voc2007 data.root=images", "data.source=voc2007: has several labels per image"),
    ("run=run data=scenes", "data.source=scenes: must be one of shapes, folder"),
    ("run=run exclude=[x.jpg]", "exclude=x.jpg: no image of val has this name"),
    ("run=run hardware.devices=2", "hardware.devices=2: "),
    (f"{SHOWN} class=dgo", "class=dgo: must be one of the 2 classes of the network; did you mean dog?"),
    (f"{SHOWN} class=elephant", "class=elephant: must be one of the 2 classes of the network, such as cat, dog"),
    (f"{SHOWN} class=cat against=cat", "against=cat: must be another class than class=cat"),
    ("run=flat.ckpt images=photos class=cat", "class=cat: the network knows no names; must be a number from 0 to 1"),
    (f"{SHOWN} check=9", "check=9: is for data, not images=PLACE"),
    (f"{SHOWN} part=all", "part=all: is for data, not images=PLACE"),
    (f"{SHOWN} data=shapes", "is for data, not images=PLACE"),
    ("run=run images=nowhere", "images=nowhere: there is no such file or folder"),
    ("run=run images=empty", "images=empty: no images there"),
    ("run=run images=", "images: empty; give it as images=VALUE"),
    ("-m run=run top=1,0", "top=0: must be from 1 to 100 (job 2 of 2: run=run top=0)"),
]

MODEL = "run=run out=model.onnx"
EXPORT = [
    ("run=zf5.ckpt out=2026", "out=2026: must end in .onnx or .pt2"),
    ("", "run: missing; give it as run=VALUE"),
    ("run=run", "out: missing; give it as out=VALUE"),
    ("run=nowhere out=model.onnx", "run=nowhere: no such run directory or checkpoint"),
    ("run=unfinished out=model.onnx", "unfinished/checkpoints/last.ckpt: no such checkpoint"),
    ("run=damaged out=model.onnx", "damaged/checkpoints/last.ckpt: not a checkpoint of sppnet"),
    ("run=file out=model.onnx", "file: not a checkpoint of sppnet"),
    ("run= out=model.onnx", "run: empty"),
    ("run=detector out=model.onnx", "run=detector: is a detector, and only classifiers are exported", "images=PLACE"),
    ("run=detector/detectors/fc7.ckpt out=model.onnx", "fc7.ckpt: is a detector, and only classifiers are exported"),
    ("run=run out=model.pb", "out=model.pb: must end in .onnx or .pt2"),
    ("run=run out=model", "out=model: must end in .onnx or .pt2"),
    ("run=run out=model.pt2 format=onnx", "out=model.pt2: must end in .onnx, or format null"),
    (f"{MODEL} format=tflite", "format=tflite: must be one of onnx, pt2"),
    ("run=run out=file/model.onnx", "file/model.onnx: must be in a folder, and ", "file is a file"),
    ("run=run out=folder.onnx", "folder.onnx: must be a file, and is a folder"),
    (f"{MODEL} opset=17", "opset=17: must be from 18 to 23"),
    (f"{MODEL} opset=24", "opset=24: must be from 18 to 23"),
    (f"{MODEL} opset=new", "opset=new: must be a whole number"),
    ("run=run out=model.pt2 opset=18", "opset=18: must be null: it is for format=onnx"),
    (f"{MODEL} crop_side=0", "crop_side=0: must be from 1 to 4096"),
    ("run=flat.ckpt out=model.onnx crop_side=65", "crop_side=65: this network takes images of 64 pixels only"),
    (f"{MODEL} fromat=onnx", "fromat: no such key; did you mean format?"),
    ("run=[run] out=model.onnx", "run=[run]: must be text"),
    (f"-m {MODEL} opset=18,3", "opset=3: must be from 18 to 23 (job 2 of 2: "),
]

COMMANDS = [
    ("report", "out=photos", "out=photos: found a folder with other files, expected a new one or that of a report"),
    *(("publish", *row) for row in PUBLISH),
    ("predict", "run=hf://net images=photos", "hf://net: must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION"),
    (
        "evaluate",
        "run=hf://me/net",
        "run=hf://me/net: must be a folder on this machine; `hf download me/net --local-dir",
    ),
    ("detect", "network=hf://me/net data=scenes", "network=hf://me/net: must be a folder on this machine"),
    *(("predict", *row) for row in PREDICT),
    *(("export", *row) for row in EXPORT),
    *(("explain", *row) for row in EXPLAIN),
    *(("detect", *row) for row in DETECT),
    *(("train", *row) for row in TRAIN),
    *(("evaluate", *row) for row in EVALUATE),
    *(("prepare_data", *row) for row in PREPARE),
    *(("tables", *row) for row in TABLES),
    *(("report", *row) for row in REPORT),
    *(("transfer", *row) for row in TRANSFER),
    ("benchmark", "seconds=0", "seconds=0"),
    ("benchmark", "seconds=inf", "seconds=inf: must be a number above 0, at most 1000000"),
    ("benchmark", "seconds=nan", "seconds=nan: must be a number above 0"),
    ("benchmark", "rounds=x references", "rounds=x: must be a whole number above 0"),
    ("benchmark", "rounds=1.5 references", "rounds=1.5: must be a whole number above 0"),
    ("benchmark", "--jsn", "--jsn: no such option"),
    ("benchmark", "round=3", "round: no such key; did you mean rounds?"),
    ("benchmark", "views=[nothing]", "views=nothing: must be one of center"),
    ("benchmark", "data=folder data.root=images views.center.scales=x", "views.center.scales"),
    ("benchmark", "-m rounds=3,0", "rounds=0: must be a whole number above 0", "(job 2 of 2: rounds=0)"),
    ("benchmark", "referencs", "referencs: must be KEY=VALUE"),
    ("benchmark", "detection references", "references, detection: must be one of them"),
    ("benchmark", "references only=lading", "only='lading': must be one of step, loading, epoch, views, transfer,"),
    ("benchmark", "references only=[step,export,testing]", "only='testing': must be one of step, loading"),
    ("benchmark", "references only=[]", "only=[]: must be a group or several, as in only=[loading,views]"),
    ("benchmark", "references only=3", "only=3: must be a group or several"),
    ("benchmark", "only=loading", "only=loading: must be null: it is for benchmark.py references"),
    ("benchmark", "detection only=loading", "only=loading: must be null: it is for benchmark.py references"),
    ("benchmark", "detection windows=[200,0]", "windows=[200, 0]: must be numbers from 1 to 100,000"),
    ("benchmark", "detection windows=200", "windows=200: must be a list, as in windows=[200]"),
    ("benchmark", "detection scales=[]", "scales=[]: must be sides in pixels, each once"),
    ("benchmark", "detection precisions=[float16]", "precisions='float16': must be one of float32, bf16"),
    ("benchmark", "detection threads=0", "threads=0: must be from 1 to"),
    ("benchmark", "detection image=nowhere.jpg", "nowhere.jpg"),
    ("benchmark", "detection image=file", "file: not"),
    ("benchmark", "detection proposals=dens", "proposals=dens: must be one of dense"),
    ("benchmark", "detection pooling=none hidden=8 backbone.width=0.1", "the network has no pyramid"),
    ("benchmark", "detection scales=[5] hidden=8 backbone.width=0.1", "scales=[5]: 5 must be from"),
    ("benchmark", "-m detection threads=1,0", "threads=0: must be from 1 to", "(job 2 of 2: threads=0)"),
]


@pytest.mark.parametrize(
    ("script", "arguments", "words"), [(c[0], c[1], c[2:]) for c in COMMANDS], ids=lambda v: str(v)
)
def test_a_wrong_command_is_refused_in_one_line(place, script, arguments, words, monkeypatch, run_here):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = sorted(place.rglob("*"))
    done = run_here(script, *arguments.split(), cwd=place)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr
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
def test_hydra_full_error_shows_the_traceback(place):
    command = [sys.executable, str(PROJECT / "scripts" / "train.py"), "seed=-1"]
    environment = os.environ | {"HYDRA_FULL_ERROR": "1"}
    done = run_process(command, cwd=place, env=environment)
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "ValueError: seed=-1: must be from 0 to 2**63 - 1" in done.stderr
