"""A GGUF file, opened: weights, tokenizer, metadata. It does not change, and any number of sessions may share it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from lmi import errors
from lmi._native import Handle, check, device_library, native, path_bytes, text_of
from lmi.machine import ISA_NAMES, MOST_THREADS, code_of, device_of, memory
from lmi.plan import MAX_INT32, Plan, integer, make_plan
from lmi.text import utf8_blocks


@dataclass(frozen=True)
class ModelInfo:
    """What the file holds. Sizes in bytes, `trained_context` and `native_window` (0: none) in tokens. `n_ff`: of one expert
    where there are `n_experts`; `..._active`: what one token meets, less the experts that it does not choose. `device`: name of
    the GPU that may run layers, "" for none, and then `no_device` says why, unless none was to be looked for or the system has
    no driver; how many layers it runs is in a session's plan."""

    architecture: str
    isa: str
    device: str
    no_device: str
    n_threads: int
    gguf_version: int
    vocab_only: bool
    has_tokenizer: bool
    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ff: int
    n_experts: int
    n_experts_used: int
    n_vocab: int
    trained_context: int
    native_window: int
    n_native_layers: int
    rope_theta: float
    n_parameters: int
    n_parameters_active: int
    weight_bytes: int
    weight_bytes_active: int
    file_bytes: int
    n_files: int
    n_metadata: int
    n_tensors: int

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Vocabulary:
    """`kind`: "spm" or "bpe"; `bos`, `eos`, `unk`: ids, or None where there is none; `add_bos`: texts begin with BOS."""

    kind: str
    pretokenizer: str
    n_vocab: int
    bos: int | None
    eos: int | None
    unk: int | None
    add_bos: bool
    add_eos: bool


@dataclass(frozen=True)
class Tensor:
    """`shape`: fastest-running dimension first, as GGUF has it; `offset`: byte of the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    n_bytes: int
    offset: int


class Model(Handle):
    """Opens a GGUF file.

    `window`, `sinks` (or `sink`), `kv_type` ("f16", "q8_0", "f32") and `chunk` are what its sessions get unless they say
    otherwise; None is the library's choice (16 sinks, a window of at most 4096 tokens). `threads`: None is one per usable
    core. `isa`: "auto", or one of lmi.machine.available_isas(). `vocab_only`: stop after the tokenizer; no sessions. `mmap`:
    False reads the file into memory.

    `device`: "cpu"; "cuda", or "cuda:1" for another GPU than the first, raises DeviceError where it cannot be used; "auto" is
    the GPU where there is one, else the CPU. `gpu_layers`: how many layers the GPU runs, the last ones; None: as many as fit
    it when the first session is opened. Weights are copied then: `progress(done, all)` is called with bytes; an exception in
    it stops that and is raised where the session was to be opened.

    Raises FileFormatError, UnsupportedModel, OutOfMemory, DeviceError, InvalidArgument.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        window: int | None = None,
        sinks: int | None = None,
        sink: int | None = None,
        kv_type: str = "f16",
        chunk: int | None = None,
        threads: int | None = None,
        isa: str = "auto",
        device: str = "auto",
        gpu_layers: int | None = None,
        vocab_only: bool = False,
        mmap: bool = True,
        progress: Callable[[int, int], object] | None = None,
    ):
        if sink is not None:
            if sinks is not None:
                raise errors.InvalidArgument("sink and sinks are the same thing: give one")
            sinks = sink
        device_code, device_index = device_of(device)
        self.path = os.fspath(path)
        self._defaults = {"window": window, "sinks": sinks, "kv_type": kv_type, "chunk": chunk}
        require_model_file(self.path)
        ffi, lib = native()
        options = ffi.new("lmi_model_options *")
        lib.lmi_model_options_default(options)
        options.n_threads = 0 if threads is None else integer(threads, "threads", 1, MOST_THREADS)
        options.isa = code_of(isa, ISA_NAMES, "isa")
        options.vocab_only = 1 if vocab_only else 0
        options.no_map = 0 if mmap else 1
        options.device, options.device_index = device_code, device_index
        options.gpu_layers = -1 if gpu_layers is None else integer(gpu_layers, "gpu_layers", 0, MAX_INT32)
        library = device_library()
        path_of_library = ffi.new("char[]", path_bytes(library)) if library else ffi.NULL
        options.device_library = path_of_library
        self._copying = Copying(progress)
        options.progress = self._copying.callback
        if not mmap and not vocab_only:
            _require_room(self.path)
        error, out = ffi.new("lmi_error *"), ffi.new("lmi_model **")
        check(lib.lmi_model_open(path_bytes(self.path), options, out, error), error)
        super().__init__(out[0], lib.lmi_model_close, "model")
        self._info: ModelInfo | None = None
        self._vocabulary: Vocabulary | None = None
        self._keys: list[tuple[str, str, int]] | None = None

    def __enter__(self) -> Model:
        return self

    def __repr__(self) -> str:
        return f"<lmi.Model {self.path!r}{' (closed)' if self.closed else ''}>"

    # ---- what it is ----

    @property
    def info(self) -> ModelInfo:
        """Shape, sizes and the kernels in use."""
        if self._info is None:
            ffi, lib = native()
            c = ffi.new("lmi_model_info *")
            with self.use() as m:
                lib.lmi_model_get_info(m, c)
                values = {name: getattr(c, name) for name in ModelInfo.__dataclass_fields__}
                values["architecture"], values["isa"] = text_of(c.architecture), text_of(c.isa)
                values["device"], values["no_device"] = text_of(c.device), text_of(c.no_device)
                values["vocab_only"], values["has_tokenizer"] = bool(c.vocab_only), bool(c.has_tokenizer)
            self._info = ModelInfo(**values)
        return self._info

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the file's metadata and tensor table, its size and samples of its data."""
        ffi, lib = native()
        digest = ffi.new("uint8_t[32]")
        with self.use() as m:
            lib.lmi_model_get_fingerprint(m, digest)
        return bytes(ffi.buffer(digest)).hex()

    @property
    def vocabulary(self) -> Vocabulary:
        """Its kind, size and special tokens. Raises UnsupportedModel if the file has no tokenizer."""
        if self._vocabulary is None:
            ffi, lib = native()
            c, error = ffi.new("lmi_vocab_info *"), ffi.new("lmi_error *")
            with self.use() as m:
                check(lib.lmi_model_get_vocab(m, c, error), error)
                ids = [i if i >= 0 else None for i in (c.bos, c.eos, c.unk)]
                self._vocabulary = Vocabulary(
                    text_of(c.kind), text_of(c.pretokenizer), c.n_vocab, *ids, bool(c.add_bos), bool(c.add_eos)
                )
        return self._vocabulary

    def metadata(self, key: str, default=None):
        """The value of a metadata key: int, float, bool, str or a list of these; `default` if the file lacks it."""
        names = [name for name, _, _ in self._metadata_keys()]
        return self._metadata_value(names.index(key)) if key in names else default

    def metadata_items(self, max_elements: int | None = None) -> Iterator[tuple[str, str, object]]:
        """(key, type, value) of all metadata, in file order. Arrays are cut after `max_elements`."""
        for i, (name, kind, _) in enumerate(self._metadata_keys()):
            yield name, kind, self._metadata_value(i, max_elements)

    def tensors(self) -> Iterator[Tensor]:
        """The tensors of the file, in file order."""
        ffi, lib = native()
        c, error = ffi.new("lmi_tensor *"), ffi.new("lmi_error *")
        for i in range(self.info.n_tensors):
            with self.use() as m:
                check(lib.lmi_model_get_tensor(m, i, c, error), error)
                name = ffi.unpack(c.name, c.name_size).decode("utf-8", "replace")
                tensor = Tensor(name, text_of(c.type), tuple(c.shape[d] for d in range(c.n_dims)), c.n_bytes, c.offset)
            yield tensor

    def _metadata_keys(self) -> list[tuple[str, str, int]]:
        if self._keys is None:
            ffi, lib = native()
            c, error, keys = ffi.new("lmi_metadata *"), ffi.new("lmi_error *"), []
            n = self.info.n_metadata
            with self.use() as m:
                for i in range(n):
                    check(lib.lmi_model_get_metadata(m, i, c, error), error)
                    keys.append((ffi.unpack(c.key, c.key_size).decode("utf-8", "replace"), text_of(c.type), c.n_elements))
            self._keys = keys
        return self._keys

    def _metadata_value(self, index: int, max_elements: int | None = None):
        ffi, lib = native()
        c, error = ffi.new("lmi_metadata *"), ffi.new("lmi_error *")
        with self.use() as m:
            check(lib.lmi_model_get_metadata(m, index, c, error), error)
            kind, n, data = text_of(c.type), c.n_elements, bytes(ffi.buffer(c.value, c.value_size))
        values = _values(kind.removeprefix("array of "), n if max_elements is None else min(n, max_elements), data)
        return values if kind.startswith("array") else values[0]

    # ---- tokens ----

    def tokenize(self, text, *, bos: bool | None = None, special: bool = False, errors: str = "strict") -> list[int]:
        """Ids of a text (str, bytes, file object or iterable of them). `bos`: begin with BOS; None: as the vocabulary says,
        which for `tokenize` means no BOS only if the vocabulary adds none. `special`: control tokens are recognised in it."""
        return [i for ids in self.iter_tokens(text, bos=bos, special=special, errors=errors) for i in ids]

    def iter_tokens(
        self, text, *, bos: bool | None = None, special: bool = False, errors: str = "strict", name: str = "text"
    ) -> Iterator[list[int]]:
        """The same in lists of a few thousand ids: neither the text nor its ids are ever in memory as a whole."""
        yield from self.iter_tokens_of_blocks(utf8_blocks(text, name=name, errors=errors), bos=bos, special=special)

    def iter_tokens_of_blocks(
        self, blocks: Iterator[bytes], *, bos: bool | None = None, special: bool = False
    ) -> Iterator[list[int]]:
        """The same for blocks of bytes that are known to be UTF-8."""
        from lmi.tokens import encode_blocks

        start = self.bos_tokens(bos)
        if start:
            yield start
        yield from encode_blocks(self, blocks, special)

    def bos_tokens(self, bos: bool | None = None) -> list[int]:
        """What a text begins with: [BOS] or []. True where the vocabulary has no BOS raises InvalidArgument."""
        v = self.vocabulary
        if bos and v.bos is None:
            raise errors.InvalidArgument("this vocabulary has no beginning-of-text token", "Leave out bos")
        return [v.bos] if (v.add_bos if bos is None else bos) and v.bos is not None else []

    def detokenize(self, tokens, *, special: bool = False) -> str:
        """The text of ids. Control tokens show only if `special`; invalid bytes become U+FFFD."""
        from lmi.tokens import Decoder

        n_vocab = self.vocabulary.n_vocab
        with Decoder(self, special) as d:
            return "".join([d.push(integer(t, "a token id", 0, n_vocab - 1)) for t in tokens] + [d.push(-1)])

    def token_text(self, token: int, *, special: bool = True) -> bytes:
        """Bytes of one token as they appear in text; b"" for an id outside the vocabulary."""
        ffi, lib = native()
        token = integer(token, "a token id", -MAX_INT32, MAX_INT32)
        with self.use() as m:
            text = ffi.new("char[]", 64)
            n = lib.lmi_model_token_text(m, token, 1 if special else 0, text, 64)
            if n > 64:
                text = ffi.new("char[]", n)
                lib.lmi_model_token_text(m, token, 1 if special else 0, text, n)
            return bytes(ffi.buffer(text, n))

    def is_end(self, token: int) -> bool:
        """True if generation ends at this token: end of text, of turn, of message."""
        token = integer(token, "a token id", -MAX_INT32, MAX_INT32)
        with self.use() as m:
            return bool(native()[1].lmi_model_is_end_token(m, token))

    @property
    def chat_template(self) -> str | None:
        """Source of the model's own chat template (Jinja), or None. Untrusted: render it with lmi.ChatTemplate."""
        source = self.metadata("tokenizer.chat_template")
        return source if isinstance(source, str) else None

    # ---- sessions ----

    def plan(self, **options) -> Plan:
        """What a session with these options would hold, without opening it. Options as for `session`."""
        from lmi.steer import resolve

        options, _ = resolve(self, options)
        with self.use() as m:
            return make_plan(m, **{**self._defaults, **options})

    def session(self, **options):
        """Opens a `Session`: window, sinks, kv_type, chunk, rollback (deepest rewind, tokens), placement ("ceiling",
        "contiguous" or "true"), all_logits, importance (for `Session.importance`), draft (tokens guessed ahead while writing,
        at most 7: the text is the same, bit for bit, and comes sooner where it repeats what was read), steer ([(file, alpha),
        ...]: see `Session.steer`), steer_rank (room for steers that come later), all_hidden (for `Session.hidden`). Raises
        OutOfMemory before anything is allocated if it cannot fit.

        `recall`: what becomes of tokens that left the window and are no sinks, instead of being forgotten. "blocks:8x32" keeps
        them in blocks of 32 tokens; each kv head of each layer sees the 8 blocks that it looks for most. "surprise:256" keeps
        the 256 tokens that the model expected least. "topk:5" is LM-Infinite's own, which keeps all and lets each query head
        of a token read alone see 5. A kind alone has the library's numbers. With it: `recall_budget`, bytes or "4G" (default
        1 GiB) that blocks and topk may keep; `recall_folder`, where keys and values lie in a nameless file instead of in
        memory; `recall_layer`, the first that recalls; `recall_distance`, at which recalled tokens seem to be (default: half
        a window); `recall_decay`, what surprise counts after another window of text (default 0.9). A GPU that
        has all layers recalls blocks, in memory; the rest runs on the CPU only."""
        from lmi.session import Session

        return Session(self, **{**self._defaults, **options})

    def stream(
        self, prompt, *, max_tokens: int = 512, stop=(), bos: bool | None = None, special: bool = False, steer=(), **sampling
    ):
        """Reads `prompt` in a session of its own and yields an `Event` for each piece of text that follows. The prompt is
        continued as it is: no chat template. `steer`: [(file, alpha), ...]. Sampling options as for `Session.stream`."""
        with self.session(steer=steer) as session:
            yield from session.stream(
                prompt, max_tokens=max_tokens, stop=stop, bos=bos, special=special, read_last=False, **sampling
            )

    def complete(
        self, prompt, *, max_tokens: int = 512, stop=(), bos: bool | None = None, special: bool = False, steer=(), **sampling
    ):
        """The same at once, as a `Result`."""
        from lmi.generate import gather

        return gather(self.stream(prompt, max_tokens=max_tokens, stop=stop, bos=bos, special=special, steer=steer, **sampling))


class Copying:
    """Watches weights being copied to a GPU. The native call asks now and then, so that signals get their turn; what is raised
    then stops it and is kept for who opened the session."""

    def __init__(self, progress: Callable[[int, int], object] | None):
        ffi, _ = native()
        self.raised: BaseException | None = None

        def step(_, done, whole) -> int:
            if progress:
                progress(done, whole)
            return 0

        def stop(kind, exception, traceback) -> None:
            self.raised = exception

        try:
            self.callback = ffi.callback("lmi_progress *", step, error=1, onerror=stop)
        except MemoryError:  # a system that lets no program make code: it is copied unwatched
            self.callback = ffi.NULL

    def reraise(self) -> None:
        raised, self.raised = self.raised, None
        if raised is not None:
            raise raised


_NUMBERS = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "u64": "Q", "i64": "q"}
_NUMBERS.update({"f32": "f", "f64": "d", "bool": "?"})


def _values(kind: str, n: int, data: bytes) -> list:
    """The first n elements of a metadata value, as the file has them. A f32 as the decimal that was meant: 1e-05."""
    if kind == "string":
        values, at = [], 0
        for _ in range(n):
            end = at + 8 + int.from_bytes(data[at : at + 8], "little")
            values.append(data[at + 8 : end].decode("utf-8", "replace"))
            at = end
        return values
    values = list(struct.unpack_from(f"<{n}{_NUMBERS[kind]}", data))
    return [float(f"{v:.9g}") for v in values] if kind == "f32" else values


def require_model_file(path: str) -> None:
    """Raises FileFormatError with what to do if there is no such file, or it is a folder or not a plain file."""
    import stat

    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise errors.FileFormatError(f"no such file: {path}", _similar(path)) from None
    except (OSError, ValueError) as e:
        raise errors.FileFormatError(f"cannot open {path}: {getattr(e, 'strerror', None) or e}") from None
    if stat.S_ISDIR(mode):
        from importlib.util import find_spec

        convert = f"lmi convert {path} -o model.gguf" if find_spec("lmi_convert") else "convert it to GGUF first"
        raise errors.FileFormatError(f"{path} is a directory", f"For a Hugging Face folder: {convert}")
    if not stat.S_ISREG(mode):
        raise errors.FileFormatError(f"{path} is not a plain file", "A model is mapped into memory: give a file on a disk")


def _similar(path: str) -> str:
    import difflib

    folder, name = os.path.split(path)
    try:
        with os.scandir(folder or ".") as entries:
            names = [e.name for _, e in zip(range(5000), entries) if e.name.endswith(".gguf") or "." not in e.name]
    except OSError:
        return f"there is no folder {folder} either"
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6) or [n for n in sorted(names) if n.endswith(".gguf")][:3]
    return "similar here: " + ", ".join(close) if close else ""


def _require_room(path: str) -> None:
    from lmi.formats import human_bytes

    size, free = os.stat(path).st_size, memory().available
    if size > free:
        raise errors.OutOfMemory(
            f"needs {human_bytes(size)} to read {path} into memory, {human_bytes(free)} free", "Leave out --no-mmap"
        )
