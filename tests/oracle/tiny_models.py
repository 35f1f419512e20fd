"""Small llama files for tests: random weights of any shape and tensor type, or the trained stories260K.

A file is written with the `gguf` package; what comes back are the weights as the file holds them (dequantized by that
package), under their GGUF names, so that an oracle can run the same model.
"""

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

UNK, BOS, EOS = 0, 1, 2
FIRST_BYTE = 3
MIN_VOCAB = FIRST_BYTE + 256 + 27  # control tokens, bytes, the space mark and the small letters
SPACE = "\u2581"


@dataclass
class TinyModel:
    """What an oracle needs to know. Matrices are [out][in]; angles turn adjacent pairs (2i, 2i+1), as GGUF `llama` has it."""

    path: Path
    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ff: int
    n_vocab: int
    context: int
    eps: float
    rope_theta: float
    tied: bool
    rope_factors: np.ndarray | None = None  # [head_dim / 2], each divides its frequency
    rope_scaling: dict | None = None
    native_window: int | None = None
    weights: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def random_tokens(self, n: int, seed: int = 0) -> np.ndarray:
        """int32 [n], BOS first; any id but the control tokens."""
        ids = np.random.default_rng(seed).integers(FIRST_BYTE, self.n_vocab, n).astype(np.int32)
        ids[:1] = BOS
        return ids


# ---- vocabulary -------------------------------------------------------------------------------------------------


def spm_vocabulary(n_vocab: int, seed: int) -> tuple[list[str], list[float], list[int]]:
    """A sound SentencePiece vocabulary: every longer piece is two earlier ones joined; the later, the lower its score."""
    if n_vocab < MIN_VOCAB:
        raise ValueError(f"a vocabulary with all bytes and letters has at least {MIN_VOCAB} tokens")
    rng = np.random.default_rng(seed)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    pieces = [SPACE, *"abcdefghijklmnopqrstuvwxyz"]
    known = set(pieces)
    while len(tokens) + len(pieces) < n_vocab:
        left, right = (pieces[int(i)] for i in rng.integers(0, len(pieces), 2))
        piece = left + right
        if len(piece) <= 10 and piece not in known and SPACE not in piece[1:]:
            known.add(piece)
            pieces.append(piece)
    scores = [0.0] * len(tokens) + [-float(rank) for rank in range(len(pieces))]
    return tokens + pieces, scores, [int(kind) for kind in types] + [int(gguf.TokenType.NORMAL)] * len(pieces)


def add_spm_vocabulary(writer: gguf.GGUFWriter, tokens: list, scores: list[float], types: list[int]) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(UNK)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


# ---- weights in blocks ------------------------------------------------------------------------------------------

# Where a block keeps its float16 scale and, if it has one, the scale of its minimum, with the ratio of the two that gives a
# mean of about zero. The gguf package decodes all of these, but encodes only the first two.
_SCALES = {
    "Q4_0": (0, None, 0.0),
    "Q8_0": (0, None, 0.0),
    "Q2_K": (80, 82, 1.5),
    "Q3_K": (108, None, 0.0),
    "Q4_K": (0, 2, 7.5),
    "Q5_K": (0, 2, 15.5),
    "Q6_K": (208, None, 0.0),
    "IQ4_NL": (0, None, 0.0),
    "IQ4_XS": (0, None, 0.0),
}


def random_blocks(kind: gguf.GGMLQuantizationType, rows: int, cols: int, std: float, rng: np.random.Generator) -> np.ndarray:
    """uint8 [rows][bytes]: random codes under finite scales, so that the values have about this standard deviation."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if cols % block:
        raise ValueError(f"{cols} values are not whole blocks of {block}")
    data = rng.integers(0, 256, (rows * cols // block, size), dtype=np.uint8)
    scale_at, min_at, ratio = _SCALES[kind.name]

    def set_scale(blocks: np.ndarray, scale: np.ndarray) -> np.ndarray:
        blocks[:, scale_at : scale_at + 2] = scale.astype(np.float16)[:, None].view(np.uint8)
        if min_at is not None:
            blocks[:, min_at : min_at + 2] = (scale * ratio).astype(np.float16)[:, None].view(np.uint8)
        return blocks

    sample = set_scale(data[:256].copy(), np.full(min(256, len(data)), 1.0))
    unit = float(np.std(gguf.quants.dequantize(sample, kind)))
    spread = rng.uniform(0.7, 1.3, len(data)) * std / unit
    return set_scale(data, spread).reshape(rows, cols // block * size)


def encode(values: np.ndarray, kind_name: str) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as (bytes or floats to write, float32 values that they stand for). Types without an encoder get random codes
    under scales that keep the standard deviation."""
    kind = gguf.GGMLQuantizationType[kind_name]
    if kind_name == "F32":
        return values, values
    try:
        data = gguf.quants.quantize(values, kind)
    except NotImplementedError:
        rng = np.random.default_rng(values.reshape(-1)[:8].view(np.uint32))
        data = random_blocks(kind, *values.shape, float(np.std(values)), rng)
    return data, gguf.quants.dequantize(data, kind).astype(np.float32)


# ---- models -----------------------------------------------------------------------------------------------------


def llama3_factors(
    head_dim: int, theta: float, factor: float = 8.0, low: float = 1.0, high: float = 4.0, original: int = 64
) -> np.ndarray:
    """float32 [head_dim / 2]: Llama 3.1's stretching of slow rotations (its model card's formula), as rope_freqs.weight."""
    factors = []
    for i in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * i / head_dim)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def write_header(model: TinyModel, name: str) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(str(model.path), "llama")
    writer.add_name(name)
    writer.add_block_count(model.n_layers)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.n_embd)
    writer.add_feed_forward_length(model.n_ff)
    writer.add_head_count(model.n_heads)
    writer.add_head_count_kv(model.n_kv_heads)
    writer.add_layer_norm_rms_eps(model.eps)
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_rope_freq_base(model.rope_theta)
    writer.add_vocab_size(model.n_vocab)
    if model.head_dim * model.n_heads != model.n_embd:
        writer.add_key_length(model.head_dim)
        writer.add_value_length(model.head_dim)
    if model.native_window is not None:
        writer.add_sliding_window(model.native_window)
    if model.rope_scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(model.rope_scaling["type"]))
        writer.add_rope_scaling_factor(model.rope_scaling["factor"])
        if "original" in model.rope_scaling:
            writer.add_rope_scaling_orig_ctx_len(model.rope_scaling["original"])
    return writer


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_llama(
    path: Path,
    *,
    n_layers: int = 2,
    n_embd: int = 64,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    n_ff: int = 96,
    n_vocab: int = 320,
    context: int = 64,
    tied: bool = False,
    rope_theta: float = 10000.0,
    rope_factors: np.ndarray | None = None,
    rope_scaling: dict | None = None,
    weight_type: str | dict[str, str] = "F32",
    seed: int = 0,
    native_window: int | None = None,
    head_dim: int | None = None,
    chat_template: str | None = None,
    eps: float = 1e-5,
    decode: bool = True,
) -> TinyModel:
    """Writes a random llama. weight_type: one GGUF type for all matrices, or {stem: type} with "" for the others, where a
    stem is the last part of a name ("attn_q", "token_embd"). rope_scaling: {"type": "linear" | "yarn", "factor": 4.0,
    "original": 16}. decode False: random codes of block types at once, and no weights for an oracle: for large shapes."""
    head_dim = head_dim or n_embd // n_heads
    model = TinyModel(
        Path(path), n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab, context, eps, rope_theta, tied,
        rope_factors, rope_scaling, native_window,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    writer = write_header(model, f"tiny-{seed}")
    add_spm_vocabulary(writer, *spm_vocabulary(n_vocab, seed))
    if chat_template is not None:
        writer.add_chat_template(chat_template)

    def add_matrix(stem: str, rows: int, cols: int, std: float) -> None:
        kind = weight_type if isinstance(weight_type, str) else weight_type.get(stem.split(".")[-1], weight_type[""])
        raw = None if kind in ("F32", "F16") else gguf.GGMLQuantizationType[kind]
        if decode or raw is None:
            data, decoded = encode((rng.standard_normal((rows, cols)) * std).astype(np.float32), kind)
            model.weights[f"{stem}.weight"] = decoded
        else:
            data = random_blocks(raw, rows, cols, std, rng)
        writer.add_tensor(f"{stem}.weight", data, raw_dtype=raw)

    def add_vector(name: str, values: np.ndarray) -> None:
        writer.add_tensor(name, values)
        model.weights[name] = values

    def norm() -> np.ndarray:
        return (1.0 + 0.1 * rng.standard_normal(n_embd)).astype(np.float32)

    q_dim, kv_dim = n_heads * head_dim, n_kv_heads * head_dim
    add_matrix("token_embd", n_vocab, n_embd, 1.0)
    for i in range(n_layers):
        add_vector(f"blk.{i}.attn_norm.weight", norm())
        add_matrix(f"blk.{i}.attn_q", q_dim, n_embd, 1.3 * n_embd**-0.5)
        add_matrix(f"blk.{i}.attn_k", kv_dim, n_embd, 1.3 * n_embd**-0.5)
        add_matrix(f"blk.{i}.attn_v", kv_dim, n_embd, n_embd**-0.5)
        add_matrix(f"blk.{i}.attn_output", n_embd, q_dim, q_dim**-0.5)
        add_vector(f"blk.{i}.ffn_norm.weight", norm())
        add_matrix(f"blk.{i}.ffn_gate", n_ff, n_embd, n_embd**-0.5)
        add_matrix(f"blk.{i}.ffn_up", n_ff, n_embd, n_embd**-0.5)
        add_matrix(f"blk.{i}.ffn_down", n_embd, n_ff, n_ff**-0.5)
    add_vector("output_norm.weight", norm())
    if not tied:
        add_matrix("output", n_vocab, n_embd, n_embd**-0.5)
    if rope_factors is not None:
        add_vector("rope_freqs.weight", np.asarray(rope_factors, np.float32))
    finish(writer)
    return model


def make_from_stories(path: Path, folder: Path, weight_type: str = "F32") -> TinyModel:
    """Converts stories260K.bin and tok512.bin of `folder`. Its layout turns adjacent pairs, as GGUF `llama` does, so nothing is
    permuted; its output is tied."""
    data = (folder / "stories260K.bin").read_bytes()
    dim, n_ff, n_layers, n_heads, n_kv_heads, n_vocab, context = struct.unpack("<7i", data[:28])
    n_vocab, head_dim = abs(n_vocab), dim // n_heads
    model = TinyModel(Path(path), n_layers, dim, n_heads, n_kv_heads, head_dim, n_ff, n_vocab, context, 1e-5, 10000.0, True)
    floats = np.frombuffer(data, "<f4", offset=28)
    used = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal used
        values = floats[used : used + math.prod(shape)].reshape(shape)
        used += values.size
        return values

    kv_dim = n_kv_heads * head_dim
    model.weights["token_embd.weight"] = take(n_vocab, dim)
    for stem, shape in [
        ("attn_norm", (dim,)),
        ("attn_q", (dim, dim)),
        ("attn_k", (kv_dim, dim)),
        ("attn_v", (kv_dim, dim)),
        ("attn_output", (dim, dim)),
        ("ffn_norm", (dim,)),
        ("ffn_gate", (n_ff, dim)),
        ("ffn_down", (dim, n_ff)),
        ("ffn_up", (n_ff, dim)),
    ]:
        for i, values in enumerate(take(n_layers, *shape)):
            model.weights[f"blk.{i}.{stem}.weight"] = values
    model.weights["output_norm.weight"] = take(dim)
    writer = write_header(model, "stories260K")
    add_spm_vocabulary(writer, *read_llama2c_vocabulary(folder / "tok512.bin", n_vocab))
    for name, values in model.weights.items():
        kind = weight_type if values.ndim == 2 else "F32"
        written, model.weights[name] = encode(np.ascontiguousarray(values), kind)
        raw = None if kind in ("F32", "F16") else gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, written, raw_dtype=raw)
    finish(writer)
    return model


def read_llama2c_vocabulary(path: Path, n_vocab: int) -> tuple[list, list[float], list[int]]:
    """llama2.c's export: pieces with plain spaces in place of the space mark, scores beside them."""
    data = path.read_bytes()
    at, tokens, scores, types = 4, [], [], []
    for i in range(n_vocab):
        score, size = struct.unpack_from("<fi", data, at)
        piece = data[at + 8 : at + 8 + size]
        at += 8 + size
        if i < FIRST_BYTE:
            piece, kind = (b"<unk>", b"<s>", b"</s>")[i], gguf.TokenType.UNKNOWN if i == UNK else gguf.TokenType.CONTROL
        elif i < FIRST_BYTE + 256:
            piece, kind = b"<0x%02X>" % (i - FIRST_BYTE), gguf.TokenType.BYTE
        else:
            piece, kind = piece.replace(b" ", SPACE.encode()), gguf.TokenType.NORMAL
        tokens.append(piece)
        scores.append(score)
        types.append(int(kind))
    return tokens, scores, types


def split_file(path: Path, folder: Path, *, most: int = 5, exact: bool = False, **options) -> list[Path]:
    """A model as the `gguf` package writes it, in parts of up to `most` tensors each; 0: in one. `exact`: in F32, what its
    weights stand for."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(folder / "m.gguf", architecture, split_max_tensors=most, **options)
    for name, f in reader.fields.items():
        if name != "general.architecture" and not name.startswith("GGUF."):
            is_array = f.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(name, f.contents(), f.types[0], f.types[-1] if is_array else None)
    for t in reader.tensors:
        if exact:
            writer.add_tensor(t.name, gguf.quants.dequantize(t.data, t.tensor_type))
        else:
            writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    finish(writer)
    return sorted(folder.glob("m*.gguf"))
