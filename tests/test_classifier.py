import torch
from pytorch_lightning import Trainer

from sppnet.backbones import build_backbone
from sppnet.classify.classifier import Classifier
from sppnet.classify.recipe import Recipe
from sppnet.network import SPPNet


def classifier(**options):
    recipe = {"epochs": 4, "batch_size": 2, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    network = SPPNet(build_backbone("zf5", width=0.05), num_classes=3, hidden=8, initialization="fan_in")
    return Classifier(network, Recipe(**(recipe | {"plateau_patience": 2} | options)), seed=0)


def test_weights_decay_and_biases_do_not():
    weights, biases = classifier().configure_optimizers().param_groups
    assert weights["weight_decay"] == 0.01
    assert biases["weight_decay"] == 0.0
    assert all(parameter.ndim > 1 for parameter in weights["params"])
    assert all(parameter.ndim == 1 for parameter in biases["params"])
    assert len(weights["params"]) == len(biases["params"]) == 8


def test_the_rate_drops_with_the_history_of_validation_errors():
    module = classifier(learning_rate=0.01)
    module.history = [{"top1_wrong": wrong, "n": 10} for wrong in (5, 5, 5)]
    assert module.learning_rate() == 0.001
    module.history = module.history[:2]
    assert module.learning_rate() == 0.01


def test_a_checkpoint_carries_the_description_and_the_history_in_plain_values(tmp_path):
    module, checkpoint = classifier(), {}
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.history = [{"epoch": 1, "top1_wrong": 1, "n": 2}]
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "file")
    loaded = torch.load(tmp_path / "file", weights_only=True)
    other = classifier()
    other.on_load_checkpoint(loaded)
    assert other.history == module.history
    assert loaded["network"]["levels"] == [6, 3, 2, 1]
