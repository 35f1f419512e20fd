"""Registers, spills and shared memory of every CUDA kernel, as ptxas says, against the table native/cuda/resources.txt.

    check_cuda_resources.py BUILD [--rewrite]     BUILD: where liblmi_cuda.so was built; its logs *.o.log are read

A kernel that takes more than the table has is slower than it was, whatever else it does right. Fails on that, on warnings of
nvcc, and on kernels that the table lacks or has too many. Another version of nvcc than the table's counts otherwise: then only
warnings fail.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

TABLE = Path(__file__).resolve().parent.parent / "native" / "cuda" / "resources.txt"
ENTRY = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\d+)'")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")

HEADER = """\
# What kernels take, by nvcc {nvcc}: checked and written by tests/check_cuda_resources.py ('make cuda-resources').
# Bytes of static shared memory, then registers of a thread by architecture; +n: bytes that it spills, stores and loads.
"""

Row = tuple[int, dict[str, tuple[int, int]]]  # shared bytes, then by architecture registers and spilled bytes


def demangled(names: list[str]) -> dict[str, str]:
    """Names as written, without their parameters and the types of template arguments."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = {}
    for mangled, name in zip(names, text.splitlines()):
        name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
        name = re.sub(r"\(\w+\)(?=-?\d)", "", name)
        short[mangled] = re.sub(r"\((?:[^()]|\([^()]*\))*\)$", "", name).replace(" ", "")
    return short


def read_logs(build: Path) -> tuple[dict[str, Row], list[str]]:
    """What the compiler said: kernels by 'file kernel', warnings."""
    found: list[tuple[str, str, str, int, int, int]] = []
    warnings = []
    for log in sorted(build.rglob("*.o.log")):
        entry, spilled = None, 0
        for line in log.read_text().splitlines():
            if match := ENTRY.search(line):
                entry, spilled = match.groups(), 0
            elif match := SPILLS.search(line):
                spilled = int(match[1]) + int(match[2])
            elif (match := USED.search(line)) and entry:
                found.append((log.name.removesuffix(".o.log"), *entry, int(match[1]), spilled, int(match[2] or 0)))
                entry = None
            elif re.search(r"\bwarning\b", line, re.I):
                warnings.append(f"{log.name.removesuffix('.o.log')}.cu: {line.strip()}")
    names = demangled([mangled for _, mangled, *_ in found])
    kernels: dict[str, Row] = {}
    for file, mangled, arch, registers, spilled, shared in found:
        key = f"{file}.cu {names[mangled]}"
        before, by_arch = kernels.get(key, (0, {}))
        kernels[key] = (max(before, shared), by_arch | {arch: (registers, spilled)})
    return kernels, warnings


def write_table(kernels: dict[str, Row], nvcc: str) -> str:
    archs = sorted({arch for _, by_arch in kernels.values() for arch in by_arch}, key=int)
    width = max(map(len, kernels))
    lines = [f"{'# kernel':{width}} {'shared':>7}" + "".join(f"{'sm_' + arch:>9}" for arch in archs)]
    for key, (shared, by_arch) in sorted(kernels.items()):
        cells = [str(by_arch[arch][0]) + (f"+{by_arch[arch][1]}" if by_arch[arch][1] else "") for arch in archs]
        lines.append(f"{key:{width}} {shared:7d}" + "".join(f"{cell:>9}" for cell in cells))
    return HEADER.format(nvcc=nvcc) + "\n".join(lines) + "\n"


def read_table(text: str) -> tuple[dict[str, Row], str]:
    nvcc = re.search(r"by nvcc (\S+):", text)[1]
    kernels: dict[str, Row] = {}
    archs: list[str] = []
    for line in text.splitlines():
        if line.startswith("# kernel"):
            archs = [word.removeprefix("sm_") for word in line.split()[3:]]
        elif not line.startswith("#"):
            file, name, shared, *cells = line.split()
            values = [(int(cell.split("+")[0]), int((cell + "+0").split("+")[1])) for cell in cells]
            kernels[f"{file} {name}"] = (int(shared), dict(zip(archs, values)))
    return kernels, nvcc


def compare(kernels: dict[str, Row], table: dict[str, Row]) -> list[str]:
    problems = [f"{key}: not in the table" for key in kernels.keys() - table.keys()]
    problems += [f"{key}: in the table only" for key in table.keys() - kernels.keys()]
    for key in kernels.keys() & table.keys():
        (shared, by_arch), (shared_before, before) = kernels[key], table[key]
        if shared > shared_before:
            problems.append(f"{key}: {shared} bytes of shared memory, {shared_before} in the table")
        for arch, (registers, spilled) in by_arch.items():
            allowed, spilled_before = before.get(arch, (registers, spilled))
            if registers > allowed:
                problems.append(f"{key}, sm_{arch}: {registers} registers, {allowed} in the table")
            if spilled > spilled_before:
                problems.append(f"{key}, sm_{arch}: {spilled} bytes spilled, {spilled_before} in the table")
    return sorted(problems)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--nvcc", default="nvcc", help="the compiler that the build used")
    parser.add_argument("--rewrite", action="store_true", help="write the table anew")
    options = parser.parse_args()
    kernels, problems = read_logs(options.build)
    if not kernels:
        print(f"no kernels in the logs under {options.build}: 'make cuda' writes them")
        return 1
    release = subprocess.run([options.nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    nvcc = re.search(r"release ([\d.]+)", release)[1]
    if options.rewrite:
        TABLE.write_text(write_table(kernels, nvcc))
        print(f"{TABLE.name}: {len(kernels)} kernels")
    else:
        table, nvcc_of_table = read_table(TABLE.read_text())
        if nvcc == nvcc_of_table:
            problems += compare(kernels, table)
        else:
            print(f"this is nvcc {nvcc}, the table is of {nvcc_of_table}: registers are not compared")
    for problem in problems:
        print(problem)
    print(f"check_cuda_resources: {len(kernels)} kernels: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
