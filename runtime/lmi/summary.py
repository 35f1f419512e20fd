"""What a model and a run are, in the lines that people read: the plan before, the account after."""

from __future__ import annotations

from collections import Counter

from lmi.formats import duration, human_bytes, human_count, one_line, rate

# general.file_type of GGUF: what the maker says most weights are.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip


def tensor_mix(model) -> list[tuple[str, int, int]]:
    """(type, tensors, bytes) of the weights, largest first."""
    tensors, size = Counter(), Counter()
    for t in model.tensors():
        tensors[t.type] += 1
        size[t.type] += t.n_bytes
    return [(kind, tensors[kind], n) for kind, n in size.most_common()]


def quant_name(model, mix=None) -> str:
    """ "Q4_K_M" as the file says, else the type that most bytes have."""
    named = model.metadata("general.file_type")
    if isinstance(named, int) and named in _FILE_TYPES:
        return _FILE_TYPES[named]
    mix = mix or tensor_mix(model)
    return mix[0][0] if mix else "no weights"


def model_name(model) -> str:
    """ "Qwen3 8B": the file's own name and size, else its file name."""
    import os

    name, size = (v if isinstance(v, str) else "" for v in map(model.metadata, ("general.name", "general.size_label")))
    name = name or os.path.basename(os.fsdecode(model.path)).removesuffix(".gguf")
    size = "" if size.lower() in name.lower() else size
    return one_line(" ".join(f"{name} {size}".split())[:80])


def device_text(info, plan=None) -> str:
    """Who runs the layers, by a plan."""
    cpu = f"CPU, {info.n_threads} thread{'s' if info.n_threads != 1 else ''}, {info.isa}"
    n = plan.device_layers if plan else 0
    if n == info.n_layers:
        return info.device
    return f"{info.device}, {n} of {info.n_layers} layers, and {cpu}" if n else cpu


def device_lines(plan, head: str) -> list[str]:
    """What the GPU would hold, and why it does not run everything."""
    lines = [f"{head}{plan.device_note}"] if plan.device_note else []
    if plan.device_layers:
        parts = [
            f"weights {human_bytes(plan.device_weight_bytes)}",
            f"context {human_bytes(plan.device_context_bytes)}",
            f"work {human_bytes(plan.device_work_bytes)}",
        ]
        free = f"{human_bytes(plan.device_available_bytes)} free"
        lines.append(f"{head}{' + '.join(parts)} = {human_bytes(plan.device_total_bytes)} of {free}")
    return lines


def plan_lines(model, plan, *, prompt: str, template: str) -> list[str]:
    """The three lines before a run."""
    info = model.info
    mapped = " (mapped)" if plan.weights_mapped else ""
    parts = [f"weights {human_bytes(plan.weight_bytes)}{mapped}"] if plan.weight_bytes else []
    parts += [f"context {human_bytes(plan.context_bytes)}"] if plan.context_bytes else []
    parts.append(f"work {human_bytes(plan.work_bytes)}")
    parts += [f"tokenizer {human_bytes(plan.tokenizer_bytes)}"] if 100 * plan.tokenizer_bytes >= plan.total_bytes else []
    memory = f"{' + '.join(parts)} = {human_bytes(plan.total_bytes)} of {human_bytes(plan.available_bytes)} free"
    what = f"{model_name(model)} · {quant_name(model)} · {human_bytes(info.weight_bytes)} · {info.n_layers} layers"
    lines = [
        f"model   {what}   device  {device_text(info, plan)}",
        f"memory  {memory}",
        *device_lines(plan, "gpu     "),
        f"context {context_text(plan)}   prompt  {prompt}, {template}",
    ]
    return lines


def context_text(plan) -> str:
    first = f"first {plan.sinks:,} + " if plan.sinks else ""
    text = f"{first}last {plan.window:,} tokens, any length"
    if plan.recall_bytes:
        where = "on disk" if plan.recall_file_bytes else "of it"
        kept = f"{plan.recall_tokens:,} kept, {human_bytes(plan.recall_bytes)} {where}"
        text += f"; recalls {plan.recall_seen:,} of at most {kept}"
    return text


def account_lines(stats, reason: str) -> list[str]:
    """The three lines after a run."""
    read = f"read {stats.read:,} tok"
    if stats.read:
        read += f" in {duration(stats.read_seconds)} ({rate(stats.read, stats.read_seconds)} tok/s)"
    parts = [read]
    if stats.written:
        parts.append(
            f"wrote {stats.written:,} tok in {duration(stats.write_seconds)} ({rate(stats.written, stats.write_seconds)} tok/s)"
        )
        parts.append(f"first token {duration(stats.first_token_seconds or 0)}")
    if stats.guessed:
        parts.append(f"{stats.came_true:,} of {stats.guessed:,} guesses came true")
    size = human_bytes(stats.context_bytes)
    context = f"at most {size}" if stats.view.kept else f"{size}, constant"  # what is recalled takes pages as it fills
    memory = f"memory peak {human_bytes(stats.peak_bytes)} (context {context})"
    return [" · ".join(parts), f"{memory} · {stats.view}", f"stopped: {reason} · seed {stats.seed}"]


def info_lines(model, mix) -> list[str]:
    """The head of `lmi info`."""
    info = model.info
    size = f"{human_bytes(info.file_bytes)}, {info.n_tensors} tensors, {info.n_metadata} metadata keys"
    lines = [f"name        {model_name(model)}", f"format      GGUF {info.gguf_version}, {size}"]
    if not info.vocab_only:
        lines += _shape_lines(model, mix)
    if info.has_tokenizer:
        v = model.vocabulary
        parts = [f"{v.kind} ({v.pretokenizer})" if v.pretokenizer else v.kind, f"{v.n_vocab:,} tokens"]
        parts += [f"{name} {i}" for name, i in (("BOS", v.bos), ("EOS", v.eos)) if i is not None]
        parts += ["begins with BOS"] if v.add_bos else []
        lines.append(f"tokenizer   {', '.join(parts)}")
    return lines


def _shape_lines(model, mix) -> list[str]:
    info = model.info
    heads = f"{info.n_heads} heads of {info.head_dim}"
    if info.n_kv_heads != info.n_heads:
        heads += f" ({info.n_kv_heads} for keys and values)"
    trained = f"{info.trained_context:,} tokens"
    trained += f", RoPE base {info.rope_theta:,.0f}" if info.rope_theta else ", positions by ALiBi"
    if info.native_window:
        trained += f", window {info.native_window:,} in {info.n_native_layers} of {info.n_layers} layers"
    bits = 8 * info.weight_bytes / info.n_parameters if info.n_parameters else 0
    types = ", ".join(f"{kind} {human_bytes(n)} in {count}" for kind, count, n in mix)
    forward = f"feed-forward {info.n_ff:,}"
    if info.n_experts:
        forward = f"{info.n_experts} experts of feed-forward {info.n_ff:,}, {info.n_experts_used} for each token"
    size = f"{human_count(info.n_parameters)} parameters"
    if info.n_experts:
        size += f" ({human_count(info.n_parameters_active)}, {human_bytes(info.weight_bytes_active)} of weights for each token)"
    return [
        f"shape       {info.architecture}, {size}, {info.n_layers} layers, width {info.n_embd:,}, {heads}, {forward}",
        f"trained on  {trained}",
        f"weights     {quant_name(model, mix)}, {bits:.2f} bits each: {types}",
    ]
