"""Hardware is asked without torch and agrees with it. pytest tests/tasks/test_hardware.py"""

import os

import pytest

from tasks import hardware
from tasks.errors import UsageError


def test_the_device_is_the_one_that_torch_sees():
    torch = pytest.importorskip("torch")
    assert (hardware.device_kind() == "cuda") == torch.cuda.is_available()
    assert hardware.device_kind("cpu") == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            hardware.device_kind("cuda")


def test_dtype_and_threads_are_explicit_or_found():
    assert hardware.compute_dtype("cpu", "float32") == "float32" and hardware.compute_dtype("cuda") == "bfloat16"
    assert hardware.compute_dtype("cpu") in ("bfloat16", "float32")
    assert hardware.thread_count(3) == 3 and hardware.thread_count() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: hardware.device_kind("tpu"),
        lambda: hardware.compute_dtype("cpu", "float16"),
        lambda: hardware.thread_count(-1),
    ],
)
def test_what_does_not_exist_is_refused_by_name(call):
    with pytest.raises(UsageError, match=r"^pretrain\."):
        call()
