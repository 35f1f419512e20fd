"""lmi's encoders beside llama.cpp's: the error each leaves on the same tensors, the time it takes, the models that result.

    python tests/bench/quant_quality.py                         all types, tensors of lmi-tiny and random ones
    python tests/bench/quant_quality.py --tensors weights.npz   your own matrices
    python tests/bench/quant_quality.py --speed Q4_K_M -r 5     256 MiB of float32, two threads, taking turns
    python tests/bench/quant_quality.py --perplexity book.txt --tensors model-f32.gguf Q4_K_M Q2_K

Errors are root mean squares, weighted by importance where a name has a star; printed are ours over theirs, below 1 where ours
is smaller. llama.cpp is llama-cpp-python (the extra `peers`), in this Python or in that of LMI_PEERS_PYTHON.
"""

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "convert")]

from lmi.quantize import dequantize, quantize, type_info  # noqa: E402

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4")
MIXES_READ = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K")


class Peer:
    """llama.cpp's quantizer; None from `find` where it is not installed."""

    def __init__(self, library: str):
        self.lib = ctypes.CDLL(library)
        self.call = self.lib.ggml_quantize_chunk
        self.call.restype = ctypes.c_size_t
        number, pointer = ctypes.c_int64, ctypes.c_void_p
        self.call.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
        self.lib.ggml_quantize_init.argtypes = [ctypes.c_int]

    @staticmethod
    def find() -> "Peer | None":
        python = os.environ.get("LMI_PEERS_PYTHON", sys.executable)
        where = "import importlib.util as u; print(u.find_spec('llama_cpp').submodule_search_locations[0])"
        found = subprocess.run([python, "-c", where], capture_output=True, text=True)
        library = Path(found.stdout.strip() or "/nowhere") / "lib" / "libggml-base.so"
        return Peer(str(library)) if found.returncode == 0 and library.is_file() else None

    def quantize(self, values: np.ndarray, kind: str, importance: np.ndarray | None = None, threads: int = 1) -> np.ndarray:
        info = type_info(kind)
        rows, cols = values.shape
        blocks = np.empty((rows, info.row_bytes(cols)), np.uint8)
        self.lib.ggml_quantize_init(info.number)
        weights = None if importance is None else importance.ctypes.data

        def part(first: int, last: int) -> None:
            self.call(info.number, values.ctypes.data, blocks.ctypes.data, first * cols, last - first, cols, weights)

        if threads == 1:
            part(0, rows)
        else:
            step = max(1, 32 * 512 // cols)  # as llama-quantize cuts it
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda at: part(at, min(rows, at + step)), range(0, rows, step)))
        return blocks


def error(values: np.ndarray, blocks: np.ndarray, kind: str, importance: np.ndarray | None = None) -> float:
    """Root mean square, columns weighted."""
    difference = dequantize(blocks, kind).astype(np.float64) - values
    weights = 1.0 if importance is None else importance.astype(np.float64)
    return float(np.sqrt(np.mean(difference**2 * weights)))


def random_tensors(rows: int = 256, cols: int = 1024) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "normal": (0.02 * rng.normal(size=(rows, cols))).astype(np.float32),
        "laplace": (0.02 * rng.laplace(size=(rows, cols))).astype(np.float32),
        "student3": (0.02 * np.clip(rng.standard_t(3, size=(rows, cols)), -60, 60)).astype(np.float32),
    }


def trained_tensors(path: Path, most: int = 4) -> dict[str, np.ndarray]:
    """Matrices of a GGUF file whose rows every type can hold."""
    from lmi_convert.stored import open_stored

    found = [t for t in open_stored(str(path)).tensors if len(t.shape) == 2 and t.shape[-1] % 256 == 0]
    chosen = found[:: max(1, len(found) // most)][:most]
    return {t.name.removesuffix(".weight"): dequantize(t.read(), t.type.name)[:512] for t in chosen}


def importance_of(cols: int) -> np.ndarray:
    """As activations have it: most columns small, a few large."""
    return (np.random.default_rng(5).chisquare(1, cols) ** 2 + 1e-3).astype(np.float32)


def ratios(peer: Peer, kind: str, tensors: dict[str, np.ndarray]) -> dict[str, float]:
    """Ours over theirs, by tensor, and with importance under NAME*."""
    found = {}
    for mark, weighted in (("", False), ("*", True)):
        for name, values in tensors.items():
            weights = importance_of(values.shape[1]) if weighted else None
            ours = error(values, quantize(values, kind, importance=weights), kind, weights)
            theirs = error(values, peer.quantize(values, kind, weights), kind, weights)
            found[name + mark] = ours / theirs if theirs else 1.0 if not ours else float("inf")
    return found


def compare_speed(peer: Peer, mix: str, rounds: int, threads: int, mebibytes: int) -> None:
    """A model's matrices of one width, typed as the mix says, ours and theirs in turn."""
    from lmi_convert.mix import Shape, choose

    n_layers, width = 8, 2048
    shapes = [(f"blk.{i}.{stem}.weight", (rows, width)) for i in range(n_layers) for stem, rows in LAYER]
    kinds = choose(mix, [*shapes, ("output.weight", (256, width))], Shape("llama", n_layers, 32, 8))
    total = sum(rows * width * 4 for _, (rows, _) in shapes)
    scale = mebibytes * (1 << 20) / total
    rng = np.random.default_rng(1)
    work = [
        ((0.02 * rng.normal(size=(max(1, int(r * scale)), width))).astype(np.float32), k)
        for (_, (r, _)), k in zip(shapes, kinds)
    ]
    n = sum(values.size for values, _ in work)
    times = {"lmi": [], "llama.cpp": []}
    for _ in range(rounds):
        for name, call in (("lmi", quantize), ("llama.cpp", peer.quantize)):
            began = time.perf_counter()
            for values, kind in work:
                call(values, kind, threads=threads)
            times[name].append(time.perf_counter() - began)
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{name:10} {mix}  {threads} threads  {n * 4 / 2**20:.0f} MiB  {middle:.2f} s  {n / middle / 1e6:.1f} M values/s")


def compare_perplexity(source: Path, text: Path, mixes: list[str], n_tokens: int) -> None:
    """The same file quantized by both, mix by mix, reading the same text inside the trained context."""
    import json
    import tempfile

    from lmi_convert.mix import find_mix
    from lmi_convert.requantize import requantize

    def measure(path: Path) -> float:
        options = ["--window", "448", "--max-tokens", str(n_tokens), "--json", "--quiet"]
        command = [sys.executable, "-m", "lmi", "perplexity", str(path), str(text), *options]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[:2])}
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)["nll"]

    python = os.environ.get("LMI_PEERS_PYTHON", sys.executable)
    program = ROOT / "tests" / "convert" / "peer_mixes.py"
    exact = measure(source)
    print(f"{source.name}: nll {exact:.4f}; what quantization adds:", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for mix in mixes:
            ours, theirs = Path(folder, "lmi.gguf"), Path(folder, f"{mix}.gguf")
            requantize(str(source), str(ours), mix, overwrite=True)
            number = find_mix(mix).file_type
            subprocess.run([python, str(program), str(source), folder, f"{mix}={number}"], check=True, capture_output=True)
            print(f"{mix:8} lmi {measure(ours) - exact:+.4f}  llama.cpp {measure(theirs) - exact:+.4f}", flush=True)


LAYER = (
    ("attn_q", 2048),
    ("attn_k", 512),
    ("attn_v", 512),
    ("attn_output", 2048),
    ("ffn_gate", 5632),
    ("ffn_up", 5632),
    ("ffn_down", 5632),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", default=TYPES)
    parser.add_argument("--tensors", type=Path, help="an .npz of float32 matrices, or a GGUF file")
    parser.add_argument("--speed", metavar="MIX")
    parser.add_argument("--perplexity", metavar="TEXT", type=Path, help="of --tensors FILE.gguf in the mixes named")
    parser.add_argument("-n", "--n-tokens", type=int, default=30000)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--mib", type=int, default=256)
    args = parser.parse_args()
    peer = Peer.find()
    if peer is None:
        print(
            "llama-cpp-python is not installed: pip install '.[peers]', or name its Python in LMI_PEERS_PYTHON", file=sys.stderr
        )
        return 1
    if args.speed:
        compare_speed(peer, args.speed, args.rounds, args.threads, args.mib)
        return 0
    if args.perplexity:
        if args.tensors is None or args.tensors.suffix != ".gguf":
            parser.error("--perplexity needs --tensors FILE.gguf, with weights that were not quantized before")
        compare_perplexity(args.tensors, args.perplexity, args.types if args.types != TYPES else MIXES_READ, args.n_tokens)
        return 0
    tensors = random_tensors()
    source = args.tensors or ROOT / "models" / "lmi-tiny" / "lmi-tiny.gguf"
    if source.suffix == ".npz":
        with np.load(source) as file:
            tensors |= {name: np.ascontiguousarray(file[name], np.float32) for name in file.files}
    elif source.is_file():
        tensors |= trained_tensors(source)
    worst = 0.0
    print("type     " + " ".join(f"{name:>18}" for name in [*tensors, *(f"{t}*" for t in tensors)]))
    for kind in args.types:
        found = ratios(peer, kind, tensors)
        worst = max(worst, *found.values())
        print(f"{kind:8} " + " ".join(f"{r:18.4f}" for r in found.values()), flush=True)
    print(f"largest ratio {worst:.4f}")
    return int(worst > 1)


if __name__ == "__main__":
    sys.exit(main())
