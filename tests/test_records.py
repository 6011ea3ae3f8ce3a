import json

import pytest

from sppnet.records import clock, environment, read_result, result_text, write_json

RESULT = {
    "network": "zf5 (width 0.25), pyramid 6, 3, 2, 1, 1,000 parameters",
    "data": "shapes",
    "n": 500,
    "num_classes": 10,
    "protocol": "centre crop 224",
    "top1_error": 0.1,
    "top1_wrong": 50,
    "top5_wrong": 5,
    "epochs": 4,
    "seconds": 3725.0,
    "hardware": "2 cores of a processor",
}


def test_a_result_comes_back_as_it_was_written(tmp_path):
    write_json(tmp_path / "result.json", RESULT)
    assert read_result(tmp_path) == RESULT
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_an_unfinished_run_has_no_result(tmp_path):
    assert read_result(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"top1_error": "abc"}'])
def test_a_damaged_result_is_named(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"result\.json: not a result of a run"):
        read_result(tmp_path)


def test_a_value_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "result.json", RESULT)
    with pytest.raises(TypeError):
        write_json(tmp_path / "result.json", {"top1_error": object()})
    assert read_result(tmp_path) == RESULT
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_the_table_gives_errors_with_interval_n_and_protocol(tmp_path):
    text = result_text(RESULT, tmp_path)
    assert "10.00 %  (95 % interval 7.67 to 12.94 %)" in text
    assert "500 validation images, 10 classes" in text
    assert "4 epochs in 1 h 2 min on 2 cores" in text
    assert f"tensorboard --logdir {tmp_path}" in text


def test_the_environment_is_plain_and_names_versions_and_hardware():
    found = json.loads(json.dumps(environment()))
    assert found["versions"]["torch"]
    assert found["versions"]["sppnet"]
    assert found["hardware"]


def test_clock():
    assert [clock(seconds) for seconds in (0, 59.4, 61, 3599, 3600)] == ["0:00", "0:59", "1:01", "59:59", "1:00:00"]
