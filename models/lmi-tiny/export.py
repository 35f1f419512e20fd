"""Writes a checkpoint as GGUF v3: architecture llama, SentencePiece vocabulary, tied output.

    python export.py --work WORK [--checkpoint WORK/last.pt] [--type q8_0|f16|f32] [--out lmi-tiny.gguf]

The same checkpoint gives the same bytes.
"""
import argparse
import os
from pathlib import Path

import gguf
import sentencepiece as spm
import torch

DESCRIPTION = ("A 5.8M-parameter base model trained from scratch on public-domain books and synthetic recall "
               "exercises, for testing and showing attention over fixed buffers. Trained context 512.")


def names(layers):
    """Our parameter name -> GGUF tensor name, in file order."""
    table = {"embed.weight": "token_embd.weight"}  # no output.weight: the runtime reads it as tied
    parts = {"attn_norm": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
             "ffn_norm": "ffn_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
    for i in range(layers):
        table |= {f"blocks.{i}.{ours}.weight": f"blk.{i}.{theirs}.weight" for ours, theirs in parts.items()}
    return table | {"norm.weight": "output_norm.weight"}


def add_vocabulary(w, model_path):
    sp = spm.SentencePieceProcessor(model_file=str(model_path))
    n = sp.vocab_size()
    kind = gguf.TokenType
    w.add_tokenizer_model("llama")
    w.add_token_list([sp.id_to_piece(i).encode() for i in range(n)])
    w.add_token_scores([sp.get_score(i) for i in range(n)])
    w.add_token_types([kind.UNKNOWN if sp.is_unknown(i) else kind.CONTROL if sp.is_control(i) else
                       kind.BYTE if sp.is_byte(i) else kind.NORMAL for i in range(n)])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)
    w.add_add_space_prefix(True)
    w.add_remove_extra_whitespaces(False)
    return n


def export(checkpoint, vocabulary, out, kind):
    saved = torch.load(checkpoint, weights_only=True)
    c, weights = saved["config"], saved["model"]
    kind = gguf.GGMLQuantizationType[kind.upper()]
    temporary = str(out) + ".tmp"
    w = gguf.GGUFWriter(temporary, "llama")
    w.add_name("lmi-tiny")
    w.add_description(DESCRIPTION)
    w.add_license("MIT")
    w.add_size_label("5.8M")
    w.add_file_type(gguf.LlamaFileType["MOSTLY_Q8_0" if kind.name == "Q8_0" else
                                       "MOSTLY_F16" if kind.name == "F16" else "ALL_F32"])
    w.add_block_count(c["layers"])
    w.add_context_length(c["context"])
    w.add_embedding_length(c["dim"])
    w.add_feed_forward_length(c["ffn"])
    w.add_head_count(c["heads"])
    w.add_head_count_kv(c["kv_heads"])
    w.add_layer_norm_rms_eps(c["eps"])
    w.add_rope_dimension_count(c["dim"] // c["heads"])
    w.add_rope_freq_base(c["theta"])
    w.add_vocab_size(add_vocabulary(w, vocabulary))
    for ours, theirs in names(c["layers"]).items():
        t = weights[ours].float().numpy()
        if t.ndim == 2 and kind.name != "F32":  # norms stay float32
            w.add_tensor(theirs, gguf.quants.quantize(t, kind), raw_dtype=kind)
        else:
            w.add_tensor(theirs, t)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    os.replace(temporary, out)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--work", type=Path, required=True)
    p.add_argument("--checkpoint", type=Path)
    p.add_argument("--type", default="q8_0", choices=["q8_0", "f16", "f32"])
    p.add_argument("--out", type=Path, default=Path(__file__).with_name("lmi-tiny.gguf"))
    a = p.parse_args()
    export(a.checkpoint or a.work / "last.pt", a.work / "lmi-tiny.model", a.out, a.type)
    print(a.out, a.out.stat().st_size, "bytes")
