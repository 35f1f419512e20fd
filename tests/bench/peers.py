"""lmi beside llama.cpp: the same files, threads and run, taking turns.

    make bench-peers                       all types of the TinyLlama-1.1B shape
    python tests/bench/peers.py Q4_0 -r 7  one type, seven rounds
    python tests/bench/peers.py Q4_0 --text 0,2048,8192    writing after so much text, lmi with a window of 2,048 tokens
    python tests/bench/peers.py --tokenize book.txt vocab.gguf ...           text to tokens, one thread

Models have random weights under a real shape, made once in build/bench. Each engine works in a process of its own, so that its
memory can be told apart; in every round each reads 512 tokens and then writes 64 (one at a time, logits of each), and the rate
at which the same threads can read the weights at all is probed beside it: a busy or throttled machine shows there. Figures are
medians over the rounds.

llama.cpp is compiled for the machine at hand. On a CPU with AMX it ends with a signal if gcc 12 compiled it, whose function for
loading the tile registers' configuration does not say what memory it reads: use another compiler (CC=clang CXX=clang++), or
install it without AMX: CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON".
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "runtime")]

N_PREFILL, N_DECODE = 512, 64
MIXES = {  # type of all matrices, or by stem; "" for the others
    "Q4_0": {"": "Q4_0", "output": "Q6_K"},
    "Q4_K": {"": "Q4_K", "output": "Q6_K"},
    "Q6_K": "Q6_K",
    "Q8_0": "Q8_0",
    "Q5_K": {"": "Q5_K", "output": "Q6_K"},
    "F16": "F16",
}
SHAPES = {
    "tinyllama": {
        "n_layers": 22, "n_embd": 2048, "n_heads": 32, "n_kv_heads": 4, "n_ff": 5632, "n_vocab": 32000, "context": 2048,
    },
    "llama3.2-1b": {
        "n_layers": 16, "n_embd": 2048, "n_heads": 32, "n_kv_heads": 8, "n_ff": 8192, "n_vocab": 128256, "context": 8192,
        "tied": True,
    },
    "llama3-8b": {
        "n_layers": 32, "n_embd": 4096, "n_heads": 32, "n_kv_heads": 8, "n_ff": 14336, "n_vocab": 128256, "context": 8192,
    },
    "llama2-7b": {
        "n_layers": 32, "n_embd": 4096, "n_heads": 32, "n_kv_heads": 32, "n_ff": 11008, "n_vocab": 32000, "context": 4096,
    },
}  # fmt: skip


def model_file(folder: Path, shape: str, mix: str, n_layers: int | None) -> Path:
    from oracle import tiny_models

    sizes = SHAPES[shape] | ({"n_layers": n_layers} if n_layers else {})
    path = folder / f"{shape}-{sizes['n_layers']}-{mix}.gguf"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"making {path}", file=sys.stderr)
        partial = path.with_suffix(".partial")
        tiny_models.make_llama(partial, **sizes, weight_type=MIXES[mix], decode=False)
        partial.rename(path)
    return path


# ---- the engines, each in its own process -----------------------------------------------------------------------


class Lmi:
    def __init__(self, path: str, threads: int, depth: int, isa: str) -> None:
        import door
        from lmi import _native

        self.native, self.depth = _native.native(), depth
        self.open = door.open_model(self.native, Path(path), threads=threads, isa=isa or None)
        model = self.open.__enter__()
        self.context = model.session(window=max(depth, N_PREFILL) + 1024, sinks=0, kv="f16", chunk=512, all_logits=False)
        self.session = self.context.__enter__()
        self.name = self.native[0].string(model.info.isa).decode()

    def clear(self) -> None:
        self.session.rewind(0)

    def read(self, tokens: np.ndarray) -> None:
        self.session.read(tokens)


class LlamaCpp:
    def __init__(self, path: str, threads: int, depth: int, isa: str) -> None:
        import llama_cpp

        self.api = llama_cpp
        self.silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.silent, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = max(depth, N_PREFILL) + 1024
        options.n_batch = options.n_ubatch = 512
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.name = llama_cpp.__version__

    def clear(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def read(self, tokens: np.ndarray) -> None:
        for begin in range(0, len(tokens), 512):
            part = tokens[begin : begin + 512]
            ids = (self.api.llama_token * len(part))(*part.tolist())
            if self.api.llama_decode(self.context, self.api.llama_batch_get_one(ids, len(part))) != 0:
                raise RuntimeError("llama_decode failed")
        self.api.llama_get_logits_ith(self.context, -1)


ENGINES = {"llama.cpp": LlamaCpp, "lmi": Lmi}
TEXT_WINDOW, TEXT_SINKS = 2032, 16


def text_worker(engine: str, path: str, threads: int, isa: str, depths: list[int]) -> None:
    """For each depth, which rise: reads on to there, then writes 32 tokens three times. Prints a line of seconds for the text
    that was read, seconds for 32 tokens (median), peak MiB."""
    rng, n_vocab = np.random.default_rng(0), vocabulary(path)
    subject = ENGINES[engine](path, threads, max(depths), isa) if engine != "lmi" else None
    if engine == "lmi":
        import lmi
        from lmi.bench import Tokens, reach_depth

        model = lmi.Model(path, threads=threads, isa=isa or "auto")
        source = Tokens(model)
    print("ready", engine, flush=True)
    done = 0
    for depth in depths:
        began = time.perf_counter()
        if engine == "lmi":
            session = model.session(window=TEXT_WINDOW, sinks=TEXT_SINKS, rollback=512)
            reach_depth(session, depth, source)
        elif depth > done:
            subject.read(rng.integers(300, n_vocab, depth - done).astype(np.int32))
            done = depth
        read = time.perf_counter() - began
        samples = []
        for _ in range(3):
            began = time.perf_counter()
            for token in rng.integers(300, n_vocab, 32).tolist():
                if engine == "lmi":
                    session.read_token(token)
                else:
                    subject.read(np.array([token], np.int32))
                    done += 1
            samples.append(time.perf_counter() - began)
        if engine == "lmi":
            session.close()
        status = Path("/proc/self/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        print(depth, read, statistics.median(samples), peak / 1024, flush=True)


def compare_texts(path: Path, mix: str, options: argparse.Namespace) -> None:
    """llama.cpp reads every token and keeps all of it in view; lmi has a buffer of the same size at any depth."""
    found: dict[str, dict[int, tuple]] = {}
    for engine in ENGINES:
        depths = [d for d in options.text if engine == "lmi" or d <= options.longest]
        command = [sys.executable, __file__, "--text-worker", engine, path, options.threads, options.isa or "-", *depths]
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True)
        rows = [line.split() for line in done.stdout.splitlines()[1:]]
        found[engine] = {int(d): (float(read), 32 / float(written), float(peak)) for d, read, written, peak in rows}
    for depth in options.text:
        _, ours, peak = found["lmi"][depth]
        theirs = found["llama.cpp"].get(depth)
        cells = f"{theirs[1]:.2f} | {ours / theirs[1]:.2f} | {theirs[2]:.0f}" if theirs else "not measured | |"
        print(f"| {mix} | {depth:,} | {ours:.2f} | {cells} | {peak:.0f} |", flush=True)


def worker(engine: str, path: str, threads: int, depth: int, isa: str) -> None:
    """Answers each line on stdin with "prefill-seconds decode-seconds"; ends with its peak memory."""
    rng, n_vocab = np.random.default_rng(0), vocabulary(path)
    prompt = rng.integers(300, n_vocab, N_PREFILL).astype(np.int32)
    before = rng.integers(300, n_vocab, depth).astype(np.int32)
    subject = ENGINES[engine](path, threads, depth, isa)
    subject.read(prompt[:8])
    print("ready", subject.name, flush=True)
    for _ in sys.stdin:
        subject.clear()
        began = time.perf_counter()
        subject.read(prompt)
        read = time.perf_counter() - began
        if depth:
            subject.clear()
            subject.read(before)
        began = time.perf_counter()
        for token in prompt[:N_DECODE]:
            subject.read(np.array([token], np.int32))
        print(read, time.perf_counter() - began, flush=True)
    status = Path("/proc/self/status").read_text()
    peak = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith(("VmHWM", "RssAnon"))}
    print(peak["VmHWM"] / 1024, peak["RssAnon"] / 1024, flush=True)


def compare_tokenizers(text: bytes, vocabulary: Path, rounds: int) -> None:
    """Both from bytes in memory to lists or an array of ids, which have to be the same."""
    import llama_cpp
    import lmi

    silent = llama_cpp.llama_log_callback(lambda level, line, data: None)
    llama_cpp.llama_log_set(silent, None)
    options = llama_cpp.llama_model_default_params()
    options.vocab_only = True
    handle = llama_cpp.llama_model_load_from_file(str(vocabulary).encode(), options)
    theirs, room = llama_cpp.llama_model_get_vocab(handle), (llama_cpp.llama_token * (len(text) + 16))()
    ours = lmi.Model(vocabulary, vocab_only=True)
    seconds: dict[str, list[float]] = {"lmi": [], "llama.cpp": []}
    for _ in range(rounds):
        began = time.perf_counter()
        parts = list(ours.iter_tokens(text, bos=False))
        seconds["lmi"].append(time.perf_counter() - began)
        began = time.perf_counter()
        n = llama_cpp.llama_tokenize(theirs, text, len(text), room, len(room), False, False)
        seconds["llama.cpp"].append(time.perf_counter() - began)
    ids = [i for part in parts for i in part]
    start = [ours.vocabulary.bos] if ours.vocabulary.bos is not None and ours.vocabulary.add_bos else []
    same = "yes" if ids == room[:n] or start + ids == room[:n] else "NO"
    speed = {name: len(text) / statistics.median(s) / 1e6 for name, s in seconds.items()}
    ratio = speed["lmi"] / speed["llama.cpp"]
    print(f"| {vocabulary.stem} | {speed['lmi']:.1f} | {speed['llama.cpp']:.1f} | {ratio:.1f} | {same} |", flush=True)


class Worker:
    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, __file__, "--worker", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ)
        self.name = self._answer().split()[-1]

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"worker ended with {self.process.wait()}")
        return line

    def measure(self) -> tuple[float, float]:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        read, written = map(float, self._answer().split())
        return N_PREFILL / read, N_DECODE / written

    def close(self) -> tuple[float, float]:
        self.process.stdin.close()
        peak, anonymous = map(float, self._answer().split())
        self.process.wait()
        return peak, anonymous


def vocabulary(path: str) -> int:
    import gguf

    return next(int(t.shape[1]) for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")


def bytes_per_token(path: Path) -> int:
    """Weights that one token reads: all but an embedding table that is not the output too."""
    import gguf

    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    return sum(sizes.values()) - (sizes["token_embd.weight"] if "output.weight" in sizes else 0)


def compare(path: Path, mix: str, options: argparse.Namespace) -> None:
    workers = {name: Worker(name, path, options.threads, options.depth, options.isa) for name in ENGINES}
    import lmi
    from lmi.bench import read_speed

    mapped = lmi.Model(path, threads=options.threads)
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
    probes = []
    for i in range(options.rounds):
        probes.append(read_speed(mapped) / 1e9)
        for name in list(workers)[:: 1 if i % 2 else -1]:
            results[name].append(workers[name].measure())
            time.sleep(0.3)  # the other's idle threads go to sleep
    probes.append(read_speed(mapped) / 1e9)
    medians = {name: [statistics.median(column) for column in zip(*rounds)] for name, rounds in results.items()}
    bests = {name: [max(column) for column in zip(*rounds)] for name, rounds in results.items()}
    for name, subject in workers.items():
        peak, anonymous = subject.close()
        ratios = [ours / theirs for ours, theirs in zip(medians[name], medians["llama.cpp"])]
        cells = [f"{medians[name][i]:.1f} ({bests[name][i]:.1f})" for i in (0, 1)]
        rate = bytes_per_token(path) * medians[name][1] / 1e9
        print(
            f"| {mix} | {name} {subject.name} | {cells[0]} | {ratios[0]:.2f} | {cells[1]} | {ratios[1]:.2f} | {rate:.1f} "
            f"| {min(probes):.0f}-{max(probes):.0f} | {peak:.0f} ({anonymous:.0f}) |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mixes", nargs="*", default=["Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16"], help=" ".join(MIXES))
    parser.add_argument("-m", "--shape", default="tinyllama", choices=SHAPES)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-d", "--depth", type=int, default=0, help="tokens read before the 64 are written")
    parser.add_argument("--isa", default="", help="for lmi: ref, avx2, avxvnni, avx512, amx")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--file", type=Path, help="any GGUF file instead of one with random weights")
    parser.add_argument("--text", type=lambda s: [int(n) for n in s.split(",")], help="depths of text, rising")
    parser.add_argument("--tokenize", type=Path, metavar="TEXT", help="compare the tokenizers of the vocabularies (GGUF) given")
    parser.add_argument("--longest", type=int, default=8192, help="deepest text that llama.cpp is made to read")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    options = parser.parse_args()
    if options.tokenize:
        print("| vocabulary | lmi MB/s | llama.cpp MB/s | ratio | same ids |")
        print("| --- | --- | --- | --- | --- |")
        for vocabulary in options.mixes:
            compare_tokenizers(options.tokenize.read_bytes(), Path(vocabulary), options.rounds)
        return
    if options.file:
        options.mixes, options.shape = [options.file.stem], options.file.name
    if options.text:
        print(f"{options.shape}, {options.threads} threads, lmi: first {TEXT_SINKS} + last {TEXT_WINDOW} tokens\n")
        print("| weights | text | lmi t/s | llama.cpp t/s | ratio | llama.cpp RSS MiB | lmi RSS MiB |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for mix in options.mixes:
            compare_texts(options.file or model_file(options.folder, options.shape, mix, options.layers), mix, options)
        return
    print(f"{options.shape}, {options.threads} threads, depth {options.depth}, {options.rounds} rounds; median (best)\n")
    print("| weights | engine | pp512 t/s | ratio | tg64 t/s | ratio | tg GB/s | probe GB/s | peak RSS MiB (anon) |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for mix in options.mixes:
        compare(options.file or model_file(options.folder, options.shape, mix, options.layers), mix, options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--text-worker"]:
        engine, path, threads, isa = sys.argv[2:6]
        sys.exit(text_worker(engine, path, int(threads), isa.strip("-"), [int(d) for d in sys.argv[6:]]))
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6] if len(sys.argv) > 6 else "")
    else:
        main()
