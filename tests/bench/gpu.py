"""A GPU: speed and memory at every depth, then a long text. Prints Markdown for native/cuda/MEASURED.md.

    python tests/bench/gpu.py [--folder DIR] [1b:Q4_K 8b:Q4_K 8b:Q8_0 8b:F16] [--soak 10000000]

Models have random weights and are made in the folder first. "of read": bytes a token fetches, times tokens a second, over the
rate at which the same GPU just read the same weights and did nothing with them. Memory: what is in use on the device while the
session is open, less what was in use before the model was opened, beside what the plan said.
"""

import argparse
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "tests" / "bench")]

import lmi  # noqa: E402
from lmi.bench import measure  # noqa: E402
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


def soak(n: int) -> None:
    """lmi-tiny reads n tokens of no meaning: the rate of each tenth, and what the device has in use since the first 4,096."""
    draw = random.Random(1)
    with lmi.Model(TINY, device="cuda") as model:
        ids = [draw.randrange(3, model.info.n_vocab) for _ in range(1 << 14)]
        with model.session(chunk=2048) as session:
            session.read_tokens(ids[:4096])
            first = used()
            for tenth in range(10):
                began, done = time.perf_counter(), 0
                while done < n // 10:
                    session.read_tokens(ids)
                    done += len(ids)
                rate = done / (time.perf_counter() - began)
                print(f"| {(tenth + 1) * done:,} | {rate:,.0f} | {(used() - first) / 2**20:+.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["1b:Q4_K", "8b:Q4_K", "8b:Q8_0"], help="SHAPE:TYPE")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--soak", type=int, default=10_000_000, help="tokens; 0: none")
    options = parser.parse_args()
    device = lmi.find_device()
    print(f"{device}\n")
    print("| model | test | t/s | GB/s | of read | device MiB (plan) |\n| --- | --- | ---: | ---: | ---: | ---: |", flush=True)
    for spec in options.models:
        shape, mix = spec.split(":")
        speeds(model_file(options.folder, SHAPES[shape], mix, None), f"{SHAPES[shape]} {mix}")
    if options.soak:
        print("\n| lmi-tiny has read | t/s | device memory, MiB |\n| ---: | ---: | ---: |", flush=True)
        soak(options.soak)


if __name__ == "__main__":
    main()
