import time
import pytest
import torch
from conftest import make_image_folder
from pretend_gpu import PretendGpu, gpu  # noqa: F401
from sppnet.classify.machine import Machine
from sppnet.classify.plan import TrainingPlan
from sppnet.classify.recipe import Recipe
from sppnet.classify.schedules import Sizes
from sppnet.classify.training import train_classifier

def make_plan(folder, machine=None, levels=(3,2,1), backbone=("zf5", {"width": 0.05}), hidden=8, **options):
    recipe = {"epochs": 2, "batch_size": 4, "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 0.01, "warmup_epochs": 0, "initialization":"fan_in", "input_std": [58.]*3}
    return TrainingPlan(architecture=backbone[0], backbone_options=backbone[1], levels=None if levels is None else list(levels), hidden=hidden,
      sizes=Sizes(cycle=[64,48] if levels else [64]), source="folder", data_options={"root": str(folder)}, recipe=Recipe(**recipe|options),
      machine=Machine(**{"accelerator":"gpu","precision":"bf16-mixed","compile":False,"workers":0}|(machine or {})), seed=0)

@pytest.mark.filterwarnings("ignore:The `srun`")
@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9, "label_smoothing": 0.1, "class_weights": True, "mixup": 0.2, "cutmix": 1.0, "clip_gradient_norm": 1.0, "optimizer":"adamw"}])
def test_training(gpu, tmp_path, capsys, options):
    folder = make_image_folder(tmp_path/"images", train=6, val=3)
    plan = make_plan(folder, **options)
    data = plan.open_data()
    t=time.time()
    result = train_classifier(plan, plan.build_network(data.classes), data, tmp_path/"run")
    with capsys.disabled():
        print(time.time()-t)
        for k,v in gpu.take_waits().items(): print(v,k)
        print(result.history)
