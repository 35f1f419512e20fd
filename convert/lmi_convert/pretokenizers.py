"""Which pre-tokenizer a `tokenizer.json` has: told by what it does to a text, not by what it or the model is called.

The text holds what the known ones treat differently; the pieces that a tokenizer cuts it into are its fingerprint. `KNOWN` was
made by `fingerprint` from the published definitions; a test makes it again and compares.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

TEXT = (
    "Hello world!  I'm sure they'll've DON'T'VE I'LL it's 'Sam's\t\ttabs\n\n  two\r\n \n\nlines   end  \n"
    "1 22 333 4444 55555 666666 7.5e10 1,000,000 x123y  12   345 ٣٤٥ Ⅻ ½²³ v2.0\n"
    "camelCase HTTPServer aB ABc ÀÉî straße ǅ ʰmod naïve e\u0301te\u0301 K\u0308 हिन्दी ก็ไทย 한국어 漢字かなカナ中文。、！ー\n"
    "_under__score -- --- ... ?!?! $5 €6 #tag @name a/b//c \\n `code` ~~ ^^ <|x|> {}[]() a+b=c |pipe| “q” ‘r’ «s» ¿t? …\n"
    "😀👍🏽👩‍👩‍👧 \u00a0nbsp\u3000wide\u200bzero \u2028sep  .,! ,.\n/path//to\r\n/x\n'\n''s'd'm't're 'Tis o'clock "
    "\u0e01\u0e33 a\u0600b\n"
    "x'sy isn'T\n\n\nEnd.   \n\n   "
)

# (fingerprint, whether a piece that is a token is taken as it is) -> name. Names are those that files use; where several do the
# same, one that readers have known for long.
KNOWN: dict[tuple[str, bool], str] = {
    ("4d188713b3afcc0b", False): "gpt-2",
    ("feb29d3131fb4d78", False): "starcoder",
    ("a00c2aa563ff4825", False): "default",
    ("d23e92416740ba0e", False): "falcon",
    ("f0de90364e5699bc", True): "llama-bpe",
    ("ba9e28c6650acfe8", False): "qwen2",
    ("56915cae7106f6da", False): "qwen35",
    ("9e2baf4f8c5326f0", False): "seed-coder",
    ("e7f4be20f009be20", True): "minicpm5",
    ("3119f543d5e432d1", True): "tekken",
    ("aedb1eb97b60c6ee", False): "gpt-4o",
    ("17a75d6484790201", False): "deepseek-llm",
    ("19026c266db8d370", False): "deepseek-coder",
    ("23304dfcb6095455", False): "deepseek-v3",
    ("375eb22c261cf4e5", False): "bloom",
    ("eb3a889fe0f55c7f", False): "viking",
    ("f0de90364e5699bc", False): "dbrx",
}


def fingerprint(pieces: list[str]) -> str:
    return hashlib.sha256("\0".join(pieces).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def pieces_of(pre_tokenizer) -> list[str]:
    """What one of the `tokenizers` library makes of the text."""
    return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(TEXT)]


class NotCut(Exception):
    """The library cannot make a pre-tokenizer of this, or it does not come to an end."""


def pieces_apart(tokenizer: dict) -> list[str]:
    """What the pre-tokenizer of a tokenizer.json makes of the text, found out in another process: its patterns may be made to
    run for hours or to end the process that they run in."""
    # The vocabulary is left out: what cuts a text does not need it, and large ones take seconds.
    small = {k: v for k, v in tokenizer.items() if k in ("version", "normalizer", "pre_tokenizer")}
    small |= {"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    given = json.dumps({"path": sys.path, "tokenizer": json.dumps(small), "text": TEXT})
    environment = {**os.environ, "RUST_BACKTRACE": "0"}
    try:
        command = [sys.executable, "-I", "-c", _PROGRAM]
        done = subprocess.run(command, input=given.encode(), capture_output=True, timeout=LONGEST, env=environment)
    except subprocess.TimeoutExpired:
        raise NotCut(f"a text of {len(TEXT):,} characters takes it more than {LONGEST} s") from None
    except OSError as e:
        raise NotCut(f"no other process can be started: {e.strerror}") from None
    if done.returncode:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        last = "".join(c if c.isprintable() else "?" for c in last)
        raise NotCut(last.removeprefix("pyo3_runtime.PanicException: ").removeprefix("Exception: ")[:200])
    return json.loads(done.stdout)


LONGEST = 20  # seconds; known ones take a few milliseconds
_PROGRAM = """
import json, sys
given = json.load(sys.stdin.buffer)
sys.path[:] = given["path"]
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
except (ImportError, ValueError, OSError):
    pass
from tokenizers import Tokenizer
cutter = Tokenizer.from_str(given["tokenizer"]).pre_tokenizer
pieces = [given["text"]] if cutter is None else [piece for piece, _ in cutter.pre_tokenize_str(given["text"])]
json.dump(pieces, sys.stdout)
"""


def identify(pieces: list[str], ignore_merges: bool) -> str | None:
    """The name, or None. Where a name is known only with the other way of `ignore_merges`, that one: it makes a difference only
    for tokens that no merge makes."""
    mark = fingerprint(pieces)
    return KNOWN.get((mark, ignore_merges)) or KNOWN.get((mark, not ignore_merges))
