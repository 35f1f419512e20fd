"""Checks who may use whom: the floors of the house as a table, and calls that have no place in the library.

Prints what breaks a rule, one line each, and exits with 1 if there is any.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# A room may include what lies on floors below it, and itself.
FLOORS = {
    "base": 0,
    "gguf": 1,
    "quant": 1,
    "kernels": 2,
    "lambda": 2,
    "model": 3,
    "tokenizer": 3,
    "backend": 4,
    "cuda": 5,
    "engine": 6,
}
ARROWS = {("gguf", "quant")}  # on one floor, but allowed: (user, used)

# What may be used only in files that match.
ONLY_IN = [
    (r"#\s*include\s*<(immintrin|x86intrin|[a-z]mmintrin)\.h>", r"native/(kernels|quant)/\w+_avx(2|512)\.[ch]$"),
    (r"#\s*include\s*<arm_neon\.h>", r"native/kernels/\w+_neon\.[ch]$"),
    (r"#\s*include\s*<cuda", r"native/cuda/primitives\.cuh$"),
    (r"#\s*include\s*\"cuda/primitives\.cuh\"", r"native/cuda/"),
    (r"#\s*include\s*<(unistd|fcntl|sched|dirent|signal|sys/\w+)\.h>", r"native/base/"),
    (r"#\s*include\s*<pthread\.h>", r"native/(base/|kernels/kernels\.c$)"),  # the table of kernels is filled once
]
BANNED_IN_NATIVE = {
    r"\b(secure_)?getenv\s*\(": "reads the environment: options come through lmi.h",
    r"(?<![\w>.])(printf|fprintf|vprintf|vfprintf|puts|fputs|putchar|perror)\s*\(": "prints: errors go through fail()",
    r"(?<![\w>.])(abort|exit|_exit|quick_exit|assert)\s*\(": "ends the process: return a status",
    r"(?<![\w>.])(strto[a-z]+|ato[a-z]+|sscanf|strcpy|strcat|sprintf|gets|alloca)\s*\(": "cannot be used on untrusted data",
    r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b": "unfinished",
}
BANNED_IN_KERNELS = {r"\basm\b": "PTX has its place in cuda/primitives.cuh"}
BANNED_FLAGS = re.compile(r"-march=native|-mtune=native|-ffast-math|-Ofast|use_fast_math")
MAX_LINES = {".c": 800, ".h": 800, ".py": 800, ".cpp": 800, ".cu": 800, ".cuh": 800}


def strip_c(text: str) -> str:
    """Blanks comments and string literals, keeping line numbers (includes are looked for in the original)."""
    pattern = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.S)
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


def check_c(name: str, text: str) -> list[str]:
    """Problems of native/room/file, a line each."""
    room = name.split("/")[1]
    problems = []

    def report(offset: int, what: str) -> None:
        problems.append(f"{name}:{text.count(chr(10), 0, offset) + 1}: {what}")

    for match in re.finditer(r"^\s*#\s*include\s*\"([^\"]+)\"", text, re.M):
        target = match.group(1)
        if target == "lmi.h" or (name == "native/cuda/primitives.cuh" and target == "simt/simt.h"):
            continue  # the public types: below every floor; the emulator that stands in for a device
        used = target.split("/")[0]
        if "/" not in target or used not in FLOORS:
            report(match.start(), f'"{target}" is not room/file.h')
        elif room not in FLOORS:
            report(match.start(), f"{room} is not a room of the table")
        elif used != room and FLOORS[used] >= FLOORS[room] and (room, used) not in ARROWS:
            report(match.start(), f"{room} (floor {FLOORS[room]}) may not use {used} (floor {FLOORS[used]})")
    for pattern, where in ONLY_IN:
        if not re.search(where, name):
            for match in re.finditer(pattern, text):
                report(match.start(), f"{match.group().split('include')[1].strip()} belongs in {where}")
    code = strip_c(text)
    banned = BANNED_IN_NATIVE
    if name.endswith((".cu", ".cuh")) and name != "native/cuda/primitives.cuh":
        banned = banned | BANNED_IN_KERNELS
    for pattern, why in banned.items():
        for match in re.finditer(pattern, text if why == "unfinished" else code):
            report(match.start(), f"{match.group().strip(' (')}: {why}")
    return problems


def check_python(name: str, text: str) -> list[str]:
    """Problems of runtime/lmi/file.py, a line each: the command line uses the package, never the other way round."""
    tree = ast.parse(text, name)
    problems = []
    in_cli = name.startswith(("runtime/lmi/cli/", "runtime/lmi/server/")) or name.endswith("/__main__.py")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = ["." * node.level + (node.module or "")]
        else:
            continue
        for module in modules:
            if not in_cli and re.match(r"(lmi)?\.+(cli|server)\b", module):
                problems.append(f"{name}:{node.lineno}: the package may not use {module}")
            if re.match(r"lmi_convert\b", module) and not in_cli:
                problems.append(f"{name}:{node.lineno}: {module} stands beside the package, not below it")
    return problems


def main() -> int:
    problems = []
    c_files = sorted(path for path in (ROOT / "native").rglob("*") if path.suffix in {".c", ".h", ".cu", ".cuh"})
    for path in c_files:
        name = path.relative_to(ROOT).as_posix()
        if name != "native/include/lmi.h":
            problems += check_c(name, path.read_text())
    python_files = sorted((ROOT / "runtime").rglob("*.py"))
    for path in python_files:
        problems += check_python(path.relative_to(ROOT).as_posix(), path.read_text())
    n_all = 0
    for folder in ("native", "runtime", "tests", "convert", "models"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in MAX_LINES and path.is_file():
                n_all += 1
                lines = path.read_text().count("\n")
                if lines > MAX_LINES[path.suffix]:
                    problems.append(f"{path.relative_to(ROOT)}: {lines} lines; at most {MAX_LINES[path.suffix]}")
    rules = [ROOT / "Makefile", ROOT / "pyproject.toml"]
    for folder in (ROOT / "native", ROOT / "tests"):
        rules += [*folder.rglob("*.cmake"), *folder.rglob("CMakeLists.txt")]
    for path in rules:
        problems += [f"{path.relative_to(ROOT)}: {match.group()}" for match in BANNED_FLAGS.finditer(path.read_text())]
    for problem in problems:
        print(problem)
    print(f"lint_includes: {len(c_files)} C files, {len(python_files)} Python files, {n_all} lengths: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
