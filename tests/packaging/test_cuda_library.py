"""liblmi_cuda.so as 'make cuda' builds it: one door, and nothing needed that a machine with an NVIDIA driver might lack."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "build" / "cuda" / "cuda" / "liblmi_cuda.so"

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="no liblmi_cuda.so in build/cuda: 'make cuda' builds it")


def read(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    return subprocess.run([*command, str(LIBRARY)], capture_output=True, text=True, check=True).stdout


def test_exports_its_entry_and_nothing_else():
    symbols = [line.split()[-1] for line in read("nm", "-D", "--defined-only").splitlines()]
    assert symbols == ["lmi_cuda_backend"]


def test_needs_the_c_library_only():
    needed = set(re.findall(r"\(NEEDED\).*\[(\S+?)\.so", read("readelf", "-d")))
    assert needed <= {"libc", "libm", "libdl", "librt", "libpthread", "ld-linux-x86-64", "ld-linux-aarch64"}
    wanted = {tuple(map(int, match.groups())) for match in re.finditer(rb"GLIBC_(\d+)\.(\d+)", LIBRARY.read_bytes())}
    assert max(wanted) <= (2, 34)


def test_opens_without_a_driver_and_for_its_own_version_only():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    entry = ctypes.CDLL(str(LIBRARY)).lmi_cuda_backend
    entry.restype = ctypes.c_void_p
    assert entry(version.encode())
    assert entry(b"0.0.0") is None
