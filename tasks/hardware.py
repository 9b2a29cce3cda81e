"""What this machine can do, asked without importing torch: `plan` needs the answers for the key of pretrain."""

import ctypes
import importlib.util
import os
import re
from functools import cache
from pathlib import Path

from .errors import UsageError


@cache
def _torch_has_cuda() -> bool:
    """Is the installed torch a CUDA build? Read from its version.py: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return False
    version = Path(next(iter(spec.submodule_search_locations)), "version.py")
    found = re.search(r"^cuda\s*(?::[^=]+)?=\s*(.+)$", version.read_text(), re.MULTILINE) if version.exists() else None
    return found is not None and found.group(1).strip() != "None"


@cache
def _cuda_devices() -> int:
    """Number of CUDA devices that the driver shows; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    number = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(number)) != 0:
        return 0
    return number.value


def device_count() -> int:
    """CUDA devices that the driver shows."""
    return _cuda_devices()


def device_kind(requested: str = "auto") -> str:
    """ "cuda" where torch and the driver both have it, else "cpu".

    Raises UsageError when "cuda" is asked for and not there.
    """
    if requested not in ("auto", "cpu", "cuda"):
        raise UsageError(f"pretrain.device is {requested!r}; use auto, cpu or cuda.")
    if requested == "cpu":
        return "cpu"
    available = _torch_has_cuda() and _cuda_devices() > 0
    if requested == "cuda" and not available:
        raise UsageError("pretrain.device is cuda, but no CUDA device is visible to torch; use auto or cpu.")
    return "cuda" if available else "cpu"


@cache
def _cpu_flags() -> frozenset[str]:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()


def compute_dtype(device: str, requested: str = "auto") -> str:
    """Type of the matrix products: bfloat16 where the hardware multiplies it natively, else float32."""
    if requested not in ("auto", "bfloat16", "float32"):
        raise UsageError(f"pretrain.dtype is {requested!r}; use auto, bfloat16 or float32.")
    if requested != "auto":
        return requested
    if device == "cuda":
        return "bfloat16"
    return "bfloat16" if _cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def thread_count(requested: int = 0) -> int:
    """Threads of a CPU computation: part of a training run's identity, since sums are split by thread.

    0 takes every core this process may use.
    """
    if requested < 0:
        raise UsageError(f"pretrain.threads is {requested}; use 0 for all cores, or a positive number.")
    return requested or len(os.sched_getaffinity(0))
