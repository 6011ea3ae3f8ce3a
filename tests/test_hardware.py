"""Hardware settings of evaluations: values out of range are refused."""

import pytest

from sppnet.classify.hardware import Hardware


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator": "cuda"}, "hardware.accelerator=cuda: must be one of auto, cpu, gpu"),
        ({"accelerator": "cpu", "devices": 0}, "hardware.devices=0: must be 1 to"),
        ({"precision": "half"}, "hardware.precision=half: must be bf16, float32 or null"),
        ({"megapixels": 0}, "hardware.megapixels=0: must be above 0, at most 10,000"),
        ({"megapixels": float("inf")}, "hardware.megapixels=inf: must be above 0, at most 10,000"),
        ({"megapixels": float("nan")}, "hardware.megapixels=nan: must be above 0, at most 10,000"),
        ({"workers": -1}, "hardware.workers=-1: must be from 0 to"),
        ({"workers": 1_000_000}, "hardware.workers=1000000: must be from 0 to"),
    ],
)
def test_hardware_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Hardware(**options)
