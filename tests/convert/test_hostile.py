"""Checkpoints that were made to harm, or by accident do: a conversion ends well or with an error of ours, never otherwise."""

import copy
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import lmi
import pytest
from lmi.errors import Error, FileFormatError, InternalError, InvalidArgument, UnsupportedModel
from lmi_convert import families, pretokenizers
from lmi_convert.config import Config
from lmi_convert.convert import convert
from oracle import tiny_hf

FAMILIES = ("llama-3", "qwen2moe", "gemma3", "phi3-longrope", "gpt-oss", "mpt")

# ---- random changes ---------------------------------------------------------------------------------------------

HALF = "\ud800"  # of a pair: JSON can say it, UTF-8 cannot
NUMBERS = [0, -1, 1, 3, 7, 10**6, 2**31, 2**32, 2**63, 10**400, -(10**30), 0.5, 1e-300, 1e300, float("inf"), float("nan"), 3.0]
TEXTS = ["", "x", "3", HALF, "\0", "a" * 5000, "../../x", "\x1b[2J"]
TABLES = [[], [1], [None], ["x"], [[]], {}, {"type": "x"}, {"a": {"b": []}}]
STRETCHED = [
    {"rope_type": "yarn"},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1e30},
    {"rope_type": "yarn", "factor": 1e-3},
    {"rope_type": "longrope", "long_factor": [1.0] * 8, "short_factor": [1.0] * 8, "original_max_position_embeddings": 1},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
]
VALUES = [None, True, False, *NUMBERS, *TEXTS, *TABLES, *STRETCHED]
KEYS = {
    "config.json": "head_dim rope_scaling rope_parameters rope_theta sliding_window layer_types num_experts num_local_experts "
    "num_key_value_heads partial_rotary_factor attention_bias tie_word_embeddings text_config vocab_size eos_token_id "
    "query_pre_attn_scalar attn_logit_softcapping num_experts_per_tok attn_config max_position_embeddings model_type",
    "tokenizer.json": "model added_tokens normalizer pre_tokenizer post_processor decoder",
    "tokenizer_config.json": "chat_template bos_token eos_token add_bos_token added_tokens_decoder",
    "generation_config.json": "temperature top_k eos_token_id do_sample",
}
OTHERWISE = {
    "tokenizer_config.json": {
        "added_tokens_decoder": {"312": {"content": "<|im_end|>", "special": True}},
        "chat_template": [{"name": "default", "template": "x"}, {"name": "t", "template": "y"}],
    },
    "generation_config.json": {"temperature": 0.6, "top_k": 20, "do_sample": True, "eos_token_id": [0, 1]},
}


def places(node) -> list[tuple]:
    """(table or list, key or index) of the values in a JSON document; of long ones the first."""
    found, todo = [], [node]
    while todo:
        part = todo.pop()
        keys = list(part)[:400] if isinstance(part, dict) else range(min(40, len(part))) if isinstance(part, list) else ()
        found += [(part, key) for key in keys]
        todo += [part[key] for key in keys]
    return found


def mutated(document: dict, keys: list[str], rng: random.Random) -> dict:
    changed = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = places(changed)
        node, key = rng.choice(found) if found and rng.random() < 0.8 else (changed, rng.choice(keys))
        value, kind = node[key] if isinstance(node, list) or key in node else None, rng.random()
        if kind < 0.15:
            node.pop(key, None) if isinstance(node, dict) else node.pop(key)
        elif kind < 0.25 and isinstance(node, dict):
            node.pop(key, None)
            node[rng.choice(("x", HALF, "", "type", f"{key}_"))] = value
        elif kind < 0.4 and found:
            other, name = rng.choice(found)
            if isinstance(other, list) or name in other:
                node[key] = copy.deepcopy(other[name]) if name in other or isinstance(other, list) and name < len(other) else 0
        elif kind < 0.55 and type(value) in (int, float):
            node[key] = value * rng.choice((-1, 2, 0.5, 3, 1000, 0)) + rng.choice((0, 1, -1))
        else:
            node[key] = copy.deepcopy(rng.choice(VALUES))
    return changed


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    return [tiny_hf.save(tiny_hf.make_model(tiny_hf.BY_NAME[name]), tmp_path_factory.mktemp(name)) for name in FAMILIES]


@pytest.mark.parametrize("file", KEYS)
def test_random_changes(native, folders, tmp_path, file):
    """LMI_MUTATIONS: how many, where the usual number is too few."""
    n = int(os.environ.get("LMI_MUTATIONS", {"config.json": 120, "tokenizer.json": 60}.get(file, 40)))
    went_well = 0
    for seed in range(n):
        rng = random.Random(f"{file} {seed}")
        source = rng.choice(folders)
        folder = tmp_path / "folder"
        shutil.copytree(source, folder, copy_function=os.symlink)
        document = json.loads((source / file).read_text()) if (source / file).exists() else {}
        (folder / file).unlink(missing_ok=True)
        changed = mutated({**document, **OTHERWISE.get(file, {})}, KEYS[file].split(), rng)
        (folder / file).write_text(json.dumps(changed))
        try:
            pre = None if file == "tokenizer.json" else "gpt-2"  # to tell it takes the time of a process
            convert(folder, tmp_path / "m.gguf", quant=rng.choice(("auto", "Q8_0", "F16")), pre=pre)
            went_well += 1
        except InternalError:
            raise
        except Error as e:
            assert "\n" not in e.message and e.message.isprintable() and len(e.message) < 400, (seed, e.message)
            assert e.remedy, (seed, e.message)
            assert not list(tmp_path.glob("m.gguf*")), seed
        shutil.rmtree(folder)
        (tmp_path / "m.gguf").unlink(missing_ok=True)
    assert 0 < went_well < n


# ---- chosen ones ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(folders, tmp_path) -> Path:
    return Path(shutil.copytree(folders[0], tmp_path / "folder"))


def refused(folder: Path, out: Path, **options) -> Error:
    with pytest.raises(Error) as caught:
        convert(folder, out / "m.gguf", **options)
    assert not list(out.glob("m.gguf*"))
    assert "\n" not in caught.value.message and caught.value.message.isprintable() and caught.value.remedy
    assert not isinstance(caught.value, InternalError)
    return caught.value


@pytest.mark.parametrize(
    "values, match",
    [
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"vocab_size": -5}, "vocab_size is -5, not a whole number"),
        ({"hidden_size": 64.5}, "hidden_size is 64.5"),
        ({"hidden_act": "a" * 10**6}, "hidden_act is 'aaa"),
        ({"architectures": ["X\x1b[2J" * 50]}, "architecture 'X"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_type is ['yarn']"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type is 'longrope'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"head_dim": 12, "hidden_size": 64}, "q_proj.weight has the shape"),
        ({"head_dim": 17}, "not a number of pairs"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ],
)
def test_configurations(folder, tmp_path, values, match):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    assert match in refused(folder, tmp_path).message


def test_large_and_deep_files(folder, tmp_path):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.rstrip().removesuffix("}") + ', "x": "' + "y" * 100_000_000 + '"}')
    convert(folder, tmp_path / "m.gguf")
    os.unlink(tmp_path / "m.gguf")
    (folder / "config.json").write_text('{"a":' * 10**5 + "1" + "}" * 10**5)
    assert "nested deeper" in refused(folder, tmp_path).message
    (folder / "config.json").write_text('{"a": ' + "1" * 5000 + "}")
    assert "is not JSON" in refused(folder, tmp_path).message
    with open(folder / "config.json", "wb") as file:
        file.truncate(300 << 20)
    assert "more than 268,435,456" in refused(folder, tmp_path).message


def test_texts_that_cannot_be_written(folder, tmp_path):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {HALF: 311}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    e = refused(folder, tmp_path)
    assert isinstance(e, FileFormatError) and "half a character" in e.message


@pytest.mark.parametrize(
    "pattern, match",
    [
        (r"(\S+)\s(.*)*\1\1\1", "retry-limit"),  # of its library, which panics
        (r"(", "Onig"),
        (r"(?:a{90000}){90000}", "cannot be used"),
    ],
)
def test_patterns(folder, tmp_path, pattern, match):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    byte_level = tokenizer["pre_tokenizer"]
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    e = refused(folder, tmp_path)
    assert isinstance(e, FileFormatError) and match in e.message and "--pre NAME" in e.remedy
    convert(folder, tmp_path / "m.gguf", pre="gpt-2")


def test_patterns_that_do_not_end(folder, monkeypatch):
    monkeypatch.setattr(pretokenizers, "LONGEST", 0.01)
    with pytest.raises(pretokenizers.NotCut, match="takes it more than"):
        pretokenizers.pieces_apart(json.loads((folder / "tokenizer.json").read_text()))


def test_few_tokens_with_large_ids(folder, tmp_path):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {"far": 4_000_000}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "reach up to 4,000,000" in refused(folder, tmp_path).message


def test_names_that_are_given(folder, tmp_path):
    for options, match in (({"pre": "foo"}, '"foo" is not supported'), ({"pre": ""}, "''"), ({"name": "a\udcff"}, "udcff")):
        e = refused(folder, tmp_path, **options)
        assert isinstance(e, InvalidArgument) and match in e.message
    strange = str(tmp_path / os.fsdecode(b"m\xff"))
    shutil.copytree(folder, strange)
    convert(strange, tmp_path / "n.gguf", pre="qwen2")
    assert gguf.GGUFReader(tmp_path / "n.gguf").fields["general.name"].contents() == "m?"


def test_names_of_tensors(folder, tmp_path):
    table = {"a\x1b[2J\n" + "b" * 3000: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(table).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    assert "is not the name of a tensor" in refused(folder, tmp_path).message
    index = {"weight_map": {"a": "x\n\x1b[2J"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names a file outside the folder" in refused(folder, tmp_path).message


def test_the_command_shows_no_traceback(folder, tmp_path):
    (folder / "config.json").write_text("[" * 100)
    command = [sys.executable, "-m", "lmi", "convert", str(folder), "-o", str(tmp_path / "m.gguf")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3 and not done.stdout and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 2


# ---- models that the window does nothing for --------------------------------------------------------------------

CLASSES = {
    "state": "MambaForCausalLM Mamba2ForCausalLM FalconMambaForCausalLM RwkvForCausalLM Rwkv6ForCausalLM RWKV7ForCausalLM "
    "JambaForCausalLM BambaForCausalLM Zamba2ForCausalLM NemotronHForCausalLM FalconH1ForCausalLM RecurrentGemmaForCausalLM "
    "GraniteMoeHybridForCausalLM Qwen3NextForCausalLM Qwen3_5ForCausalLM Qwen3_5MoeForConditionalGeneration "
    "KimiLinearForCausalLM MiniMaxM1ForCausalLM",
    "compressed": "DeepseekV2ForCausalLM DeepseekV3ForCausalLM DeepseekV32ForCausalLM KimiK25ForConditionalGeneration "
    "MiniCPM3ForCausalLM GlmMoeDsaForCausalLM",
    "convolutions": "Lfm2ForCausalLM Lfm2MoeForCausalLM",
}


@pytest.mark.parametrize("why", CLASSES)
def test_classes_without_lambda(why):
    for name in CLASSES[why].split():
        with pytest.raises(UnsupportedModel) as caught:
            families.find(Config({"architectures": [name]}), Path("x"))
        assert why in caught.value.message and name in caught.value.message
        assert "does not apply" in caught.value.message and "smollm3" in caught.value.remedy


@pytest.mark.parametrize("name", ["MiniMaxM2ForCausalLM", "DeepseekForCausalLM", "GPT2LMHeadModel"])
def test_other_classes(name):
    """Of which the reason would be wrong."""
    with pytest.raises(UnsupportedModel) as caught:
        families.find(Config({"architectures": [name]}), Path("x"))
    assert caught.value.message == f"architecture {name!r} is not supported" and "smollm3" in caught.value.remedy


def test_told_by_the_configuration():
    for key, why in (("kv_lora_rank", "compressed"), ("mamba_d_state", "state"), ("linear_num_key_heads", "linear attention")):
        with pytest.raises(UnsupportedModel, match=why):
            families.find(Config({"architectures": ["NewForCausalLM"], key: 64}), Path("x"))
    vision = {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "text_config": {"model_type": "mistral"},
        "vision_config": {},
    }
    with pytest.raises(UnsupportedModel, match="read more than text, only Gemma 3"):
        families.find(Config(vision), Path("x"))


STATE = ("SSM_", "TIME_MIX_", "SHORTCONV_")
MLA = ("ATTN_KV_A_MQA", "ATTN_KV_B")


@pytest.mark.parametrize("kind", gguf.MODEL_TENSORS, ids=lambda kind: gguf.MODEL_ARCH_NAMES[kind])
def test_files_without_lambda(native, tmp_path, kind):
    """Every architecture that the `gguf` package knows: supported, or refused by name; with the reason where its tensors say
    that it keeps a state or compresses its keys."""
    name = gguf.MODEL_ARCH_NAMES[kind]
    w = gguf.GGUFWriter(tmp_path / "m.gguf", name)
    w.add_block_count(1)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    supported = {f.architecture for f in families.families()}
    with pytest.raises(FileFormatError if name in supported else UnsupportedModel) as caught:
        lmi.Model(tmp_path / "m.gguf").close()
    if name in supported:
        return
    assert f'architecture "{name}" is not supported' in caught.value.message
    assert all(other in caught.value.remedy for other in supported)
    tensors = {t.name for t in gguf.MODEL_TENSORS[kind]}
    telling = any(t.startswith(STATE) or t in MLA for t in tensors)
    assert ("does not apply" in caught.value.message) == telling, tensors
