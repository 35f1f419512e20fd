"""A GPU: speed and memory at every depth, then a long text. Prints Markdown for native/cuda/MEASURED.md.

    python tests/bench/gpu.py [--folder DIR] [--soak 10000000] [--seconds N] [1b:Q4_K 8b:Q4_K 8b:Q8_0 8b:F16 | none]

With --seconds, models that there is hardly time for are left out, and the long text ends early.

Models have random weights and are made in the folder first. "of read": bytes a token fetches, times tokens a second, over the
rate at which the same GPU just read the same weights and did nothing with them. Memory: what is in use on the device while the
session is open, less what was in use before the model was opened, beside what the plan said.
"""

import argparse
import math
import sys
import time
from itertools import cycle
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "tests" / "bench")]

import lmi  # noqa: E402
from lmi.bench import measure  # noqa: E402
from lmi.perplexity import measure as score  # noqa: E402
from peers import model_file  # noqa: E402

SHAPES = {"tiny": "tinyllama", "1b": "llama3.2-1b", "7b": "llama2-7b", "8b": "llama3-8b"}
DEPTHS = (0, 4096, 131072, 1000000)
TINY = ROOT / "models" / "lmi-tiny" / "lmi-tiny.gguf"


def used() -> int:
    device = lmi.find_device()
    return device.total - device.free


def speeds(path: Path, name: str) -> None:
    before = used()
    taken: list[int] = []
    with lmi.Model(path, device="cuda") as model:
        plan = model.plan(chunk=2048)
        planned = plan.device_weight_bytes + plan.device_context_bytes + plan.device_work_bytes

        def show(row) -> None:
            taken.append(used() - before)
            share = f"{row.bytes_per_second / row.read_speed:.0%} of {row.read_speed / 1e9:.0f}" if row.read_speed else ""
            print(
                f"| {name} | {row.name} | {row.median:.1f} ± {row.deviation:.1f} | {row.bytes_per_second / 1e9:.0f} | {share} "
                f"| {taken[-1] / 2**20:.0f} ({planned / 2**20:.0f}) |",
                flush=True,
            )

        measure(model, n_prompt=(2048,), n_gen=(128,), depths=DEPTHS, repetitions=3, row=show, chunk=2048)
        for what, rate in zip(("text", "text, the GPU waits"), writing(model, 256)):
            print(f"| {name} | {what} | {rate:.1f} | | | |", flush=True)


def writing(model, n: int) -> tuple[float, float]:
    """Tokens a second of drawn text: the GPU goes on by itself, and it waits, for a penalty too small to matter."""
    rates = []
    for penalty in (0.0, 1e-6):
        with model.session() as session:
            session.read_tokens(range(1, 33))
            stats = session.generate(max_tokens=n, seed=1, presence_penalty=penalty).stats
            rates.append(stats.written / stats.write_seconds)
    return rates[0], rates[1]


def soak(n: int, deadline: float) -> None:
    """lmi-tiny reads the shipped texts over and over: how well it predicts, how fast, what the device has in use."""
    texts = [path.read_bytes() for path in sorted((ROOT / "models" / "texts").glob("*.txt"))]
    marks: list[tuple[int, float, int]] = []  # position, time, bytes in use
    latest = (0, 0.0, 0)

    def until_then():
        for text in cycle(texts):
            if time.perf_counter() > deadline:
                return
            yield text

    def look(session, report) -> None:
        nonlocal latest
        latest = session.position, time.perf_counter(), latest[2]
        if session.position >= 1_000_000 * len(marks):
            latest = *latest[:2], used()
            marks.append(latest)

    with lmi.Model(TINY, device="cuda") as model:
        report = score(model, until_then(), every=1_000_000, limit=n, progress=look, chunk=2048)
    print("| tokens | NLL of this million | t/s | device memory since the start, MiB |\n| ---: | ---: | ---: | ---: |")
    for (begin, _, nll), before, after in zip(report.curve, marks, [*marks[1:], latest]):  # the last may not be a whole one
        rate = (after[0] - before[0]) / (after[1] - before[1])
        print(f"| {begin:,}-{after[0]:,} | {nll.mean:.4f} | {rate:,.0f} | {(after[2] - marks[0][2]) / 2**20:+.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["1b:Q4_K", "8b:Q4_K", "8b:Q8_0"], help="SHAPE:TYPE, or none")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--soak", type=int, default=10_000_000, help="tokens; 0: none")
    parser.add_argument("--seconds", type=float, default=math.inf, help="for all of it, about")
    options = parser.parse_args()
    deadline = time.perf_counter() + options.seconds
    device = lmi.find_device()
    print(f"{device}\n")
    specs, longest = [s for s in options.models if s != "none"], 0.0
    if specs:
        print(
            "| model | test | t/s | GB/s | of read | device MiB (plan) |\n| --- | --- | ---: | ---: | ---: | ---: |", flush=True
        )
    for spec in specs:
        shape, mix = spec.split(":")
        began = time.perf_counter()
        if began + 1.5 * longest > deadline:
            print(f"| {SHAPES[shape]} {mix} | no time |")
            continue
        speeds(model_file(options.folder, SHAPES[shape], mix, None), f"{SHAPES[shape]} {mix}")
        longest = max(longest, time.perf_counter() - began)
    if options.soak:
        print(flush=True)
        soak(options.soak, deadline)


if __name__ == "__main__":
    main()
