import torch, pytest
from torch import nn
import torch.nn.functional as F
from sppnet.network import SPPNet
from sppnet.backbones import build_backbone
from pretend_gpu import gpu  # noqa
from torch.optim import SGD

@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bf16", [True, False])
def test_step(gpu, bf16, fused):
    def step(device):
        torch.manual_seed(0)
        net = SPPNet(build_backbone("zf5", width=0.05), (3,2,1), num_classes=4, hidden=8, initialization="fan_in", dropout=0.0)
        ids=[id(p) for p in net.parameters()]
        net.to(device)
        print([id(p) for p in net.parameters()]==ids)
        opt = SGD(net.parameters(), 0.1, momentum=0.9, fused=fused)
        x = torch.randn(4,3,64,64).to(device)
        y = torch.arange(4).to(device)
        ls=[]
        for _ in range(2):
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(net(x), y)
            opt.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            opt.step()
            ls.append(loss.detach())
        return [float(l) for l in ls]
    import time
    t=time.time(); a = step("cuda"); print(time.time()-t)
    print(gpu.take_waits())
    with pytest.MonkeyPatch.context() as m:
        b = step("cpu")
    print(a, b); assert a == pytest.approx(b)
