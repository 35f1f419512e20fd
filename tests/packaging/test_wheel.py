"""What `pip install` gives: one wheel for every Python, the library inside, nothing needed but the dependencies."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel's files, unpacked where nothing else is."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    pip += ["--config-settings=cmake.define.LMI_CUDA=OFF"]  # minutes where there is nvcc: 'make cuda' builds it
    built = subprocess.run(pip, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    assert re.fullmatch(r"lmi-[0-9.]+-py3-none-(linux|manylinux|macosx)\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LMI_")}
    environment |= {"PYTHONPATH": str(installed), "PATH": "/nowhere"}
    command = [sys.executable, "-m", "lmi", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=installed)


def test_holds_the_package_and_the_library_and_nothing_else(installed):
    files = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert {"lmi/__init__.py", "lmi/cli/main.py", "lmi/lib/liblmi.so", "lmi/lib/lmi.h"} <= files
    assert {"lmi_convert/convert.py", "lmi_convert/families/llama.py"} <= files
    outside = {name for name in files if not name.startswith(("lmi/", "lmi_convert/")) and ".dist-info/" not in name}
    assert not outside
    assert not [name for name in files if name.endswith(".a") or "internals" in name]


def test_runs_without_a_compiler(installed, shipped_model):
    result = run(installed, "run", str(shipped_model), "--text", "Once upon a time", "-n", "5", "--temp", "0", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["text"]
    assert str(installed) in run(installed, "doctor").stdout


def test_one_version_everywhere(installed, native):
    import lmi

    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    assert lmi.__version__ == version
    assert native[0].string(native[1].lmi_version()).decode() == version
    assert version in run(installed, "--version").stdout


def test_asks_for_an_old_c_library_only(installed):
    """What was built here starts on systems that are years old: nothing newer than glibc 2.34 (2021) on this one."""
    library = (installed / "lmi" / "lib" / "liblmi.so").read_bytes()
    wanted = {tuple(map(int, match.groups())) for match in re.finditer(rb"GLIBC_(\d+)\.(\d+)", library)}
    assert max(wanted) <= (2, 34)


def test_kernels_of_an_instruction_set_are_not_in_the_baseline(installed):
    """Only functions named after AVX may hold AVX code: a CPU without it must be able to load and run the rest."""
    objdump = next((path for path in ("/usr/bin/objdump", "/usr/local/bin/objdump") if Path(path).exists()), None)
    if objdump is None or os.uname().machine != "x86_64":
        pytest.skip("needs objdump and x86-64")
    objects = sorted((ROOT / "build" / "native").rglob("lmi_objects.dir/**/*.o"))
    if not objects:
        pytest.skip("no object files in build/native")
    for path in objects:
        code = subprocess.run([objdump, "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True).stdout
        uses_avx = re.search(r"\t(v[a-z0-9]+)\b.*%[xyz]mm", code)
        assert not uses_avx or re.search(r"_(avx(2|vnni|512)|amx)", path.name), f"{path.name}: {uses_avx[1]}"
