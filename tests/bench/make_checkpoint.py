"""A checkpoint folder of full size with random weights, from a config.json; a tensor's rows at a time, so in little memory.

    python make_checkpoint.py config.json FOLDER [--vocabulary FILE ...] [--shard-bytes N]

`--vocabulary`: tokenizer files to copy into the folder, NAME=FILE to copy under another name. For measuring the converter on
real shapes: what such a model writes means nothing.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

PIECE = 8 << 20  # values made at once


def shapes_of(config_file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors as transformers saves them, without making the model."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(config_file)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {}) if config.tie_word_embeddings else set()
    return {
        name: tuple(t.shape) for name, t in model.state_dict().items() if name not in tied and not name.endswith("inv_freq")
    }


def bf16(values: np.ndarray) -> np.ndarray:
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    at, table = 0, {}
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        table[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    # A few million normal values, from another place for each tensor: making them all anew would take most of the time.
    pool = bf16(rng.standard_normal(PIECE + 4096, np.float32) * 0.02)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, shape in shapes.items():
            n = int(np.prod(shape))
            if len(shape) == 1:
                bias = name.endswith("bias")
                file.write(bf16(np.full(n, 0.0 if bias else 1.0) + rng.standard_normal(n) * 0.02).tobytes())
                continue
            for begin in range(0, n, PIECE):
                first = int(rng.integers(0, 4096))
                file.write(pool[first : first + min(PIECE, n - begin)].tobytes())


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("config", type=Path)
    p.add_argument("folder", type=Path)
    p.add_argument("--vocabulary", nargs="*", default=[], metavar="[NAME=]FILE")
    p.add_argument("--shard-bytes", type=int, default=1 << 30)
    a = p.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(a.config, a.folder / "config.json")
    for text in a.vocabulary:
        name, _, file = text.rpartition("=")
        shutil.copyfile(file, a.folder / (name or Path(file).name))
    shards, size = [{}], 0
    for name, shape in shapes_of(a.config).items():
        n_bytes = 2 * int(np.prod(shape))
        if shards[-1] and size + n_bytes > a.shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += n_bytes
    rng = np.random.default_rng(0)
    listed = {}
    for i, part in enumerate(shards):
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        write_shard(a.folder / name, part, rng)
        listed |= dict.fromkeys(part, name)
    (a.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    print(f"{a.folder}: {len(listed)} tensors in {len(shards)} files")


if __name__ == "__main__":
    main()
