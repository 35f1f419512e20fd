"""A model made up on the spot, run in every way this machine can: shows that an installation works, without any file."""

from __future__ import annotations

import os
import random
import struct
import tempfile
import time
from dataclasses import dataclass

from lmi import errors
from lmi._native import check, native
from lmi.machine import available_isas

LAYERS, WIDTH, HEADS, KV_HEADS, FEED, CONTEXT = 2, 64, 4, 2, 128, 128
U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5  # value types of GGUF
TYPE_F32, TYPE_Q8_0 = 0, 8  # tensor types
SCALE = 2.0**-9
EXACT = 1e-5  # of the largest logit: F32 kernels differ by the order of their sums only
HALF = 0.005  # the GPU rounds what many tokens are multiplied with to half precision
COARSE = 0.05  # Q8_0 kernels round activations to 8 bits, where a last bit can turn into a step


@dataclass(frozen=True)
class Outcome:
    """One check: `detail` says what was seen."""

    name: str
    passed: bool
    detail: str


def write_model(path: str, kind: int = TYPE_Q8_0, extra=()) -> None:
    """Writes a llama of random weights with a SentencePiece vocabulary: about 100 KB as Q8_0, the same every time. As F32 the
    weights are the same numbers. `extra`: more metadata as (key, type, value)."""
    draw = random.Random(5)
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + ["▁"] + [chr(c) for c in range(97, 123)]
    tokens += ["▁" + chr(c) for c in range(97, 123)]
    normal = len(tokens)
    tokens += ["<|user|>", "<|model|>", "<|end|>"]
    tokens += [f"<|control{i}|>" for i in range(-len(tokens) % 32)]
    n = len(tokens)
    kinds = [2, 3, 3] + [6] * 256 + [1] * (normal - 259) + [3] * (n - normal)  # unknown, control, byte, normal
    keys = [
        ("general.architecture", STRING, "llama"),
        ("general.name", STRING, "lmi self-test"),
        ("llama.block_count", U32, LAYERS),
        ("llama.context_length", U32, CONTEXT),
        ("llama.embedding_length", U32, WIDTH),
        ("llama.feed_forward_length", U32, FEED),
        ("llama.attention.head_count", U32, HEADS),
        ("llama.attention.head_count_kv", U32, KV_HEADS),
        ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        ("llama.rope.dimension_count", U32, WIDTH // HEADS),
        ("llama.rope.freq_base", F32, 10000.0),
        ("llama.vocab_size", U32, n),
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.tokens", (ARRAY, STRING), tokens),
        ("tokenizer.ggml.scores", (ARRAY, F32), [float(-i) for i in range(n)]),
        ("tokenizer.ggml.token_type", (ARRAY, I32), kinds),
        ("tokenizer.ggml.bos_token_id", U32, 1),
        ("tokenizer.ggml.eos_token_id", U32, 2),
        ("tokenizer.ggml.unknown_token_id", U32, 0),
        ("tokenizer.ggml.add_bos_token", BOOL, True),
        *extra,
    ]
    kv = WIDTH // HEADS * KV_HEADS
    shapes = [("token_embd.weight", (WIDTH, n)), ("output_norm.weight", (WIDTH,)), ("output.weight", (WIDTH, n))]
    for i in range(LAYERS):
        parts = [("attn_norm", (WIDTH,)), ("attn_q", (WIDTH, WIDTH)), ("attn_k", (WIDTH, kv)), ("attn_v", (WIDTH, kv))]
        parts += [
            ("attn_output", (WIDTH, WIDTH)),
            ("ffn_norm", (WIDTH,)),
            ("ffn_gate", (WIDTH, FEED)),
            ("ffn_up", (WIDTH, FEED)),
        ]
        shapes += [(f"blk.{i}.{name}.weight", shape) for name, shape in [*parts, ("ffn_down", (FEED, WIDTH))]]
    header = [b"GGUF", struct.pack("<IQQ", 3, len(shapes), len(keys))]
    header += [_string(key) + _value(kind, value) for key, kind, value in keys]
    data, offset = [], 0
    for name, shape in shapes:
        vector = len(shape) == 1
        body = struct.pack(f"<{shape[0]}f", *[1.0] * shape[0]) if vector else _matrix(draw, shape[0] * shape[1], kind)
        header.append(
            _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, TYPE_F32 if vector else kind, offset)
        )
        body += bytes(-len(body) % 32)
        data.append(body)
        offset += len(body)
    head = b"".join(header)
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % 32) + b"".join(data))


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(kind, value) -> bytes:
    if isinstance(kind, tuple):
        inner = kind[1]
        return struct.pack("<IIQ", ARRAY, inner, len(value)) + b"".join(_scalar(inner, v) for v in value)
    return struct.pack("<I", kind) + _scalar(kind, value)


def _scalar(kind: int, value) -> bytes:
    return _string(value) if kind == STRING else struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], value)


def _matrix(draw: random.Random, n: int, kind: int) -> bytes:
    """n whole numbers from -128 to 127 times 2^-9, as Q8_0 blocks (a half float and 32 bytes) or as floats."""
    codes = draw.randbytes(n)
    if kind == TYPE_Q8_0:
        scale = struct.pack("<e", SCALE)
        return b"".join(scale + codes[i : i + 32] for i in range(0, n, 32))
    return struct.pack(f"<{n}f", *[SCALE * c for c in memoryview(codes).cast("b")])


def run(gpu: bool = False) -> list[Outcome]:
    """All checks, on the GPU too if there is one; takes about two seconds. Nothing is raised: what fails is an Outcome."""
    outcomes = [_attempt("decode Q8_0", _decoder)]
    folder = tempfile.mkdtemp(prefix="lmi-doctor-")
    path, floats = os.path.join(folder, "q8_0.gguf"), os.path.join(folder, "f32.gguf")
    try:
        write_model(path)
        write_model(floats, TYPE_F32)
        reference: list[list[float]] = []
        for isa in available_isas():
            outcomes.append(_attempt(f"run F32 with {isa}", lambda isa=isa: _model(floats, isa, "f32", reference, EXACT)))
        for isa in available_isas():
            outcomes.append(_attempt(f"run Q8_0 with {isa}", lambda isa=isa: _model(path, isa, "f16", reference, COARSE)))
        if gpu:
            outcomes.append(_attempt("run F32 on the GPU", lambda: _model(floats, "auto", "f32", reference, HALF, "cuda")))
            outcomes.append(_attempt("run Q8_0 on the GPU", lambda: _model(path, "auto", "f16", reference, COARSE, "cuda")))
        outcomes.append(_attempt("constant memory", lambda: _constant(path)))
        outcomes.append(_attempt("save and go on", lambda: _state(path, folder)))
    except OSError as e:
        outcomes.append(Outcome("write a temporary file", False, f"{folder}: {e.strerror}"))
    finally:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def _attempt(name: str, body) -> Outcome:
    began = time.perf_counter()
    try:
        passed, detail = body()
    except errors.Error as e:
        return Outcome(name, False, e.message)
    return Outcome(name, passed, f"{detail}, {1000 * (time.perf_counter() - began):.0f} ms")


def _decoder() -> tuple[bool, str]:
    """A Q8_0 block is a half float and 32 bytes: value = scale * byte."""
    ffi, lib = native()
    block = struct.pack("<e32b", 0.5, *range(-16, 16))
    values, error = ffi.new("float[32]"), ffi.new("lmi_error *")
    check(lib.lmi_dequantize(b"Q8_0", block, len(block), values, 32, error), error)
    return list(values) == [0.5 * i for i in range(-16, 16)], "32 values"


PROMPT = [1] + [3 + (7 * i) % 256 for i in range(300)]  # longer than window and sinks


def _model(
    path: str, isa: str, kv_type: str, reference: list, tolerance: float, device: str = "cpu"
) -> tuple[bool, str]:
    """Reads in chunks, token by token and in chunks again; compares with the portable kernels on the F32 file."""
    from lmi.model import Model

    options = {"window": 64, "sinks": 8, "chunk": 32, "kv_type": kv_type}
    with Model(path, isa=isa, device=device) as model, model.session(**options) as session:
        session.read_tokens(PROMPT)
        logits = session.logits().tolist()
        session.rewind_to(0)
        for token in PROMPT[:80]:
            session.read_token(token)
        session.rewind_to(0)
        session.read_tokens(PROMPT)
        again = session.logits().tolist()
    if not reference:
        reference.append(logits)
    if logits != again or any(v != v for v in logits):
        return False, "two runs of the same differ"
    largest = max(abs(v) for v in reference[0])
    apart = max(abs(a - b) for a, b in zip(logits, reference[0])) / largest
    return apart < tolerance, f"{len(PROMPT)} tokens, {apart:.1e} from the portable F32 kernels"


def _constant(path: str) -> tuple[bool, str]:
    from lmi.machine import memory
    from lmi.model import Model

    with Model(path, device="cpu") as model, model.session(window=64, sinks=8, chunk=64) as session:
        session.read_tokens(PROMPT)
        before = memory().anonymous
        for _ in range(20):
            session.read_tokens(PROMPT)
        grown, allocations = memory().anonymous - before, session.hot_allocations
        view = session.view
    passed = grown < 256 * 1024 and allocations == 0 and view.forgotten > 0
    return passed, f"{session.position:,} tokens read, {grown // 1024} KiB more, {allocations} allocations"


def _state(path: str, folder: str) -> tuple[bool, str]:
    from lmi.model import Model

    saved = os.path.join(folder, "state")
    with Model(path, device="cpu") as model, model.session(window=64, sinks=8) as one, model.session(window=64, sinks=8) as two:
        one.read_tokens(PROMPT)
        one.save(saved)
        one.read_tokens(PROMPT[:20])
        two.load(saved)
        two.read_tokens(PROMPT[:20])
        return one.logits().tolist() == two.logits().tolist(), f"{os.path.getsize(saved) // 1024} KiB"
