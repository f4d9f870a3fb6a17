"""What this machine's processor is fast at."""

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def quick_in_bf16() -> bool:
    """Whether a CPU multiplies faster in bf16 than in fp32: with AMX, and with AVX512_BF16 on AMD's.

    AMD's give AVX512_BF16 twice the rate of fp32. Intel's without AMX (or in a virtual machine that hides it) took 1.4
    times as long in it as in fp32 (perf/training.py).
    """
    import torch

    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and CPUINFO.is_file() and "AuthenticAMD" in CPUINFO.read_text()
