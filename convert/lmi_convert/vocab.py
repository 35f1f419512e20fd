"""The vocabulary of a checkpoint as the keys of a GGUF file.

Read is, in this order: `tokenizer.model` (SentencePiece), `tokenizer.json`, `vocab.json` with `merges.txt`, a `.tiktoken` file.
Added tokens, special ids and the chat template come from whichever files have them.
"""

from __future__ import annotations

import os
from pathlib import Path

from lmi import Model
from lmi.errors import FileFormatError, InvalidArgument, UnsupportedModel

from lmi_convert.bpe import byte_letters, is_tiktoken, read_plain_bpe, read_tiktoken, read_tokenizer_json, vocab_and_merges
from lmi_convert.checkpoint import read_bytes, read_json, shown
from lmi_convert.config import Config
from lmi_convert.spm import read_sentencepiece
from lmi_convert.tokens import CONTROL, MOST_TOKENS, NORMAL, UNUSED, USER_DEFINED, Added, Vocabulary, token_id
from lmi_convert.writer import header, string

LARGEST_TEMPLATE = 256 << 10


def read_vocabulary(folder: Path, config: Config, *, pre: str | None = None) -> Vocabulary:
    """`pre`: the pre-tokenizer's name, where the files do not tell it or it is to be another."""
    folder = Path(folder)
    settings = Config(
        read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {},
        "tokenizer_config.json",
    )
    tokenizer = read_json(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else None
    added = _added_tokens(folder, settings, tokenizer)
    ranks = sorted(folder.glob("*.tiktoken"))
    model = folder / "tokenizer.model"
    if model.is_file() and is_tiktoken(model):
        ranks, model = ranks or [model], None
    if model is not None and model.is_file():
        v = read_sentencepiece(model, added)
    elif tokenizer is not None:
        v = read_tokenizer_json(tokenizer, added, pre)
    elif (names := vocab_and_merges(folder)) is not None:
        v = read_plain_bpe(*names, added, pre)
    elif ranks:
        v = read_tiktoken(ranks[0], added, pre)
    else:
        raise FileFormatError(
            f"{folder} has no vocabulary: no tokenizer.model, tokenizer.json, vocab.json with merges.txt or .tiktoken",
            "Download the whole folder again",
        )
    _special_ids(v, folder, config, settings, tokenizer)
    _chat_template(v, folder, settings)
    return v


# ---- added tokens -----------------------------------------------------------------------------------------------


def _added_tokens(folder: Path, settings: Config, tokenizer: dict | None) -> dict[int, Added]:
    found: dict[int, Added] = {}
    if (folder / "added_tokens.json").is_file():
        for text, token in read_json(folder / "added_tokens.json").items():
            found[token_id(token, "added_tokens.json")] = Added(text, _looks_special(text))
    for token, entry in settings.table("added_tokens_decoder").values.items():
        number = token.isascii() and token.isdigit() and len(token) < 10
        if not number or not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise FileFormatError(
                f"tokenizer_config.json: added_tokens_decoder has a strange entry {shown(token)}", "Download it again"
            )
        found[token_id(int(token), "tokenizer_config.json")] = Added(entry["content"], bool(entry.get("special")))
    listed = (tokenizer or {}).get("added_tokens") or []
    if not isinstance(listed, list):
        raise FileFormatError("tokenizer.json: added_tokens is not a list", "Download it again")
    for entry in listed:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise FileFormatError("tokenizer.json: added_tokens has a strange entry", "Download it again")
        found[token_id(entry.get("id"), "tokenizer.json")] = Added(entry["content"], bool(entry.get("special")))
    return {token: a for token, a in found.items() if a.text}


def _looks_special(text: str) -> bool:
    return (text.startswith("<|") and text.endswith("|>")) or text in ("<s>", "</s>", "<pad>", "<unk>", "[PAD]")


# ---- special ids and templates ----------------------------------------------------------------------------------


# Texts that end a turn, where no file says so.
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|return|>")


def _special_ids(v: Vocabulary, folder: Path, config: Config, settings: Config, tokenizer: dict | None) -> None:
    ids = {
        text if isinstance(text, str) else text.decode("utf-8", "replace"): i
        for i, text in enumerate(v.texts)
        if v.types[i] != UNUSED
    }
    generation = Config(read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {})
    named = read_json(folder / "special_tokens_map.json") if (folder / "special_tokens_map.json").is_file() else {}
    n = max(len(v.texts), config.integer("vocab_size", default=0, low=0, high=MOST_TOKENS))
    for name in ("bos", "eos", "unk", "pad", "sep"):
        for table in (settings.values, named):
            text = table.get(f"{name}_token")
            text = text.get("content") if isinstance(text, dict) else text
            if isinstance(text, str) and text in ids:
                v.special[name] = ids[text]
                break
        else:
            for source in (generation, config):
                token = source.get(f"{name}_token_id")
                token = token[0] if isinstance(token, list) and token else token
                if type(token) is int and 0 <= token < n and name not in ("unk",):
                    v.special[name] = token
                    break
    for text in TURN_ENDS:
        if text in ids and v.types[ids[text]] in (CONTROL, USER_DEFINED) and ids[text] != v.special.get("eos"):
            v.special["eot"] = ids[text]
            break
    v.special = {name: token for name, token in v.special.items() if token < n}
    for name, part in (("add_bos", "bos"), ("add_eos", "eos")):
        said = settings.get(f"{name}_token")
        if tokenizer is None or getattr(v, name) is None:
            if type(said) is bool:
                setattr(v, name, said)
            elif v.kind == "gpt2":
                setattr(v, name, False)
        elif v.kind == "llama" and type(said) is bool:
            setattr(v, name, said)
        if getattr(v, name) and part not in v.special:
            setattr(v, name, False)


def _chat_template(v: Vocabulary, folder: Path, settings: Config) -> None:
    found: dict[str, str] = {}
    listed = settings.get("chat_template")
    if (folder / "chat_template.json").is_file():
        listed = read_json(folder / "chat_template.json").get("chat_template", listed)
    if isinstance(listed, str):
        found["default"] = listed
    elif isinstance(listed, list):
        for entry in listed:
            if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str):
                found[entry["name"]] = entry["template"]
    if (folder / "chat_template.jinja").is_file():
        try:
            found["default"] = read_bytes(folder / "chat_template.jinja").decode()
        except UnicodeDecodeError as e:
            raise FileFormatError(f"chat_template.jinja is not UTF-8: {e}", "Download it again") from None
    for name in [n for n, text in found.items() if len(text.encode()) > LARGEST_TEMPLATE]:
        v.notes.append(f"the chat template {shown(name)} is larger than {LARGEST_TEMPLATE >> 10} KiB and was left out")
        del found[name]
    v.template = found.pop("default", None)
    v.templates = {n: t for n, t in found.items() if n and n.isascii() and n.replace("_", "").replace("-", "").isalnum()}


def check_pre(name: str) -> None:
    """Raises InvalidArgument for a pre-tokenizer that the library does not know, before any work is done."""
    if not name or not name.isascii() or len(name) > 64:
        raise InvalidArgument(f"{name!a} is not the name of a pre-tokenizer", "For example: --pre llama-bpe")
    if not hasattr(os, "memfd_create"):
        return  # the whole file is read back in the end
    # Asked is the library itself, by a file without tensors that is never on a disk.
    letters = byte_letters()
    v = Vocabulary("gpt2", list(letters), [NORMAL] * len(letters), merges=[], pre=name)
    fd = os.memfd_create("vocabulary")
    try:
        os.write(fd, header({"general.architecture": string("llama"), **v.keys()}, []))
        Model(f"/proc/self/fd/{fd}", vocab_only=True).close()
    except UnsupportedModel as e:
        raise InvalidArgument(e.message, "Name one that cuts texts in the same way") from None
    finally:
        os.close(fd)
