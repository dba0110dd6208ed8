#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Make small random models of every family the example transformer reads, and what they must answer.

Each model is a directory in Hugging Face form plus expected.json: the logits of transformers (eager attention, float32
arithmetic on the weights as they are stored) for a few prompts. Nothing is trained. Weights are scaled so that attention is
far from uniform and logits spread over several units, and norm weights and biases are random, so that a missing norm, bias,
rotation, scaling or mask moves the logits by far more than rounding does: --check-sensitivity prints by how much.

Weights come from numpy's PCG64 and are the same bytes everywhere; logits agree to about 1e-5 between machines.
"""
import argparse
import importlib
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, logging

VOCAB = 272  # 256 bytes, 3 special tokens, 13 rows that no token uses (as published checkpoints pad theirs)
N_TOKENS_IN_VOCAB = 259
PROMPT_LENGTHS = (1, 7, 64, 200, 600)
N_GREEDY = 12
MIN_LEAD = 0.05  # of a greedy token over the next best, so that rounding does not change the continuation

COMMON = dict(vocab_size=VOCAB, hidden_act="silu", bos_token_id=256, eos_token_id=257, pad_token_id=258,
              attention_dropout=0.0, max_position_embeddings=4096, use_cache=True)
LLAMA3_SCALING = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64,
                      rope_type="llama3")

# name -> (config as the file states it, dtype, number of shards). Configs keep the spelling of published checkpoints:
# most have "rope_theta" and "rope_scaling" at the top level, newer ones "rope_parameters"; head_dim may be absent; Qwen
# states a sliding_window that use_sliding_window switches off.
MODELS = {
    "llama": (dict(COMMON, model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=64, intermediate_size=112,
                   num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
                   rope_theta=500000.0, rope_scaling=LLAMA3_SCALING, tie_word_embeddings=False, attention_bias=False,
                   mlp_bias=False, eos_token_id=[257, 258]), torch.bfloat16, 1),
    "llama_f32": (dict(COMMON, model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=48,
                       intermediate_size=80, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3,
                       head_dim=16, rms_norm_eps=1e-5, rope_parameters=dict(LLAMA3_SCALING, rope_theta=10000.0),
                       tie_word_embeddings=True, attention_bias=False, mlp_bias=False), torch.float32, 1),
    "llama_f16": (dict(COMMON, model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=64,
                       intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1,
                       rms_norm_eps=1e-6, rope_theta=10000.0, rope_scaling=None, tie_word_embeddings=True,
                       attention_bias=False, mlp_bias=False), torch.float16, 1),
    "llama_sharded": (dict(COMMON, model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=64,
                           intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                           rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling=None, tie_word_embeddings=False,
                           attention_bias=False, mlp_bias=False), torch.bfloat16, 3),
    "qwen2": (dict(COMMON, model_type="qwen2", architectures=["Qwen2ForCausalLM"], hidden_size=80, intermediate_size=144,
                   num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6,
                   rope_theta=1000000.0, use_sliding_window=False, sliding_window=16, max_window_layers=1,
                   tie_word_embeddings=True), torch.bfloat16, 1),
    "qwen3": (dict(COMMON, model_type="qwen3", architectures=["Qwen3ForCausalLM"], hidden_size=64, intermediate_size=96,
                   num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32, rms_norm_eps=1e-6,
                   rope_theta=1000000.0, rope_scaling=None, use_sliding_window=False, sliding_window=None,
                   max_window_layers=2, tie_word_embeddings=False, attention_bias=False), torch.bfloat16, 1),
    # As published: every fourth layer without positions, no window.
    "smollm3": (dict(COMMON, model_type="smollm3", architectures=["SmolLM3ForCausalLM"], hidden_size=64,
                     intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                     rms_norm_eps=1e-6, rope_theta=5000000.0, rope_scaling=None, no_rope_layers=[1, 1, 1, 0],
                     no_rope_layer_interval=4, layer_types=["full_attention"] * 4, use_sliding_window=False,
                     sliding_window=None, tie_word_embeddings=True, attention_bias=False, mlp_bias=False),
                torch.bfloat16, 1),
    # Every pairing of (rotated, not) and (window, full). Whether a layer rotates and whether it has a window are two facts.
    "smollm3_window": (dict(COMMON, model_type="smollm3", architectures=["SmolLM3ForCausalLM"], hidden_size=64,
                            intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                            head_dim=16, rms_norm_eps=1e-6, rope_parameters=dict(rope_theta=10000.0, rope_type="default"),
                            no_rope_layers=[1, 0, 1, 0], no_rope_layer_interval=2,
                            layer_types=["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
                            use_sliding_window=True, sliding_window=24, tie_word_embeddings=True, attention_bias=False,
                            mlp_bias=False), torch.bfloat16, 1),
}


def random_weights(model, rng, dtype):
    """Random values for every parameter of `model`, rounded to `dtype`, as {name: tensor}."""
    config = model.config
    weights = {}
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        normal = rng.standard_normal(shape).astype(np.float32)
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            value = 0.7 + 0.6 * rng.random(shape)  # with unit rows, a logit's deviation is about this squared
        elif name.endswith("norm.weight"):
            value = 0.5 + rng.random(shape)
        elif name.endswith("bias"):
            value = 0.5 * normal
        elif "embed_tokens" in name or "lm_head" in name:
            value = 1.5 / np.sqrt(config.hidden_size) * normal
        elif "q_proj" in name or "k_proj" in name:
            value = 1.0 / np.sqrt(config.hidden_size) * normal  # default initialisation would leave attention uniform
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            # Mistakes then move logits by 0.5 to 10, and rounding keys and values to bf16 by less than 0.02. Larger blocks
            # amplify both: at 1.0 a bf16 cache alone moves logits by 0.1.
            value = 0.18 / np.sqrt(shape[1]) * normal
        else:
            value = 1.0 / np.sqrt(shape[1]) * normal
        weights[name] = torch.from_numpy(np.asarray(value, dtype=np.float32)).to(dtype).contiguous()
    return weights


def byte_tokenizer():
    """tokenizer.json of 256 bytes and three special tokens: enough for a model directory to be complete."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    symbol = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    special = ["<|bos|>", "<|eos|>", "<|eot|>"]
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    added = [dict(id=256 + i, content=s, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
             for i, s in enumerate(special)]
    return dict(version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None,
                pre_tokenizer=byte_level, post_processor=None, decoder=byte_level,
                model=dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None,
                           end_of_word_suffix=None, fuse_unk=False, byte_fallback=False, ignore_merges=False,
                           vocab={symbol[b]: b for b in range(256)}, merges=[]))


def write_json(path, value, **kwargs):
    path.write_text(json.dumps(value, ensure_ascii=False, **kwargs) + "\n", encoding="utf-8")


def write_model(directory, config, weights, n_shards):
    """Write config, tokenizer and weights in one or more safetensors files."""
    dtype_name = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    # Older checkpoints say torch_dtype, newer ones dtype.
    key = "dtype" if "rope_parameters" in config else "torch_dtype"
    write_json(directory / "config.json", dict(sorted({**config, key: dtype_name}.items())), indent=1)
    write_json(directory / "tokenizer.json", byte_tokenizer())
    write_json(directory / "tokenizer_config.json",
               dict(bos_token="<|bos|>", eos_token="<|eos|>", tokenizer_class="PreTrainedTokenizerFast"), indent=1)
    if n_shards == 1:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        (directory / "model.safetensors").chmod(0o644)
        return
    names = sorted(weights)
    weight_map = {}
    for shard in range(n_shards):
        file_name = f"model-{shard + 1:05d}-of-{n_shards:05d}.safetensors"
        part = {name: weights[name] for name in names[shard::n_shards]}  # interleaved: a layer lies across the shards
        save_file(part, directory / file_name, metadata={"format": "pt"})
        (directory / file_name).chmod(0o644)
        weight_map |= dict.fromkeys(part, file_name)
    total = sum(w.numel() * w.element_size() for w in weights.values())
    write_json(directory / "model.safetensors.index.json",
               dict(metadata=dict(total_size=total), weight_map=dict(sorted(weight_map.items()))), indent=1)


@torch.no_grad()
def logits_of(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0].float()


@torch.no_grad()
def greedy(model, ids, n_tokens):
    """Greedy continuation, and by how much each choice led the next best one."""
    ids, out, margins = list(ids), [], []
    for _ in range(n_tokens):
        best = torch.topk(logits_of(model, ids)[-1], 2)
        out.append(int(best.indices[0]))
        margins.append(round(float(best.values[0] - best.values[1]), 4))
        ids.append(out[-1])
    return out, margins


def positions_to_store(length):
    """The last position, the first ones, and both sides of the edge of a 24-token window."""
    return sorted({p for p in (0, 1, 23, 24, 25, length // 2, length - 2, length - 1) if 0 <= p < length})


def expected_of(model, rng):
    prompts = []
    for length in PROMPT_LENGTHS:
        margins = [0.0]
        while min(margins) < MIN_LEAD:
            ids = rng.integers(0, N_TOKENS_IN_VOCAB, length).tolist()
            tokens, margins = greedy(model, ids, N_GREEDY)
        logits = logits_of(model, ids)
        positions = positions_to_store(length)
        prompts.append(dict(ids=ids, positions=positions,
                            logits=[[round(float(x), 4) for x in logits[p]] for p in positions],
                            greedy_ids=tokens, greedy_margins=margins))
    return dict(note="transformers, eager attention, float32 arithmetic on the stored weights; logits[i] belongs to "
                     "positions[i], one value per vocabulary entry; no BOS is added to ids",
                prompts=prompts)


def rounded_kv_delta(model, ids):
    """Largest change of any logit when keys (after rotation) and values are rounded to bf16, as a bf16 cache does."""
    module = importlib.import_module(type(model).__module__)
    eager = module.eager_attention_forward

    def rounded(layer, query, key, value, *args, **kwargs):
        return eager(layer, query, key.bfloat16().float(), value.bfloat16().float(), *args, **kwargs)

    exact = logits_of(model, ids)
    module.eager_attention_forward = rounded
    try:
        return float((logits_of(model, ids) - exact).abs().max())
    finally:
        module.eager_attention_forward = eager


def sensitivity(directory, config, weights, ids):
    """Largest change of a logit for each typical mistake of a reader, as {mistake: change}."""
    def with_config(**change):
        try:
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**config, **change}),
                                                    attn_implementation="eager")
        except Exception as error:  # a change that this family does not have
            raise SystemExit(f"{directory.name}: {change}: {error}")

    def run(model, new_weights):
        model.load_state_dict(new_weights, strict=False)
        model.tie_weights()
        return logits_of(model.float().eval(), ids)

    exact = run(with_config(), weights)
    cases = {}
    if config.get("rope_scaling") or config.get("rope_parameters", {}).get("factor"):
        theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        cases["no rope scaling"] = run(with_config(rope_scaling=None, rope_theta=theta, rope_parameters=dict(
            rope_type="default", rope_theta=theta)), weights)
    for part in ("input_layernorm", "post_attention_layernorm", "model.norm", "q_norm", "k_norm", "bias"):
        if any(part in name for name in weights):
            plain = {n: (torch.zeros_like(w) if part == "bias" else torch.ones_like(w)) if part in n else w
                     for n, w in weights.items()}
            cases[f"no {part}"] = run(with_config(), plain)
    if config["model_type"] == "smollm3":
        n_layers = config["num_hidden_layers"]
        cases["rotate every layer"] = run(with_config(no_rope_layers=[1] * n_layers), weights)
        if config["use_sliding_window"]:
            cases["no window"] = run(with_config(layer_types=["full_attention"] * n_layers), weights)
            for w in (-1, 1):
                cases[f"window {w:+d}"] = run(with_config(sliding_window=config["sliding_window"] + w), weights)
    return {name: float((value - exact).abs().max()) for name, value in cases.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_out = Path(__file__).resolve().parent.parent / "data" / "models"
    parser.add_argument("--out", type=Path, default=default_out, help="directory to write to (default: tests/data/models)")
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS), help="make these models only")
    parser.add_argument("--check-sensitivity", action="store_true", help="print what typical mistakes do to the logits")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for name in args.only:
        config, dtype, n_shards = MODELS[name]
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        directory = args.out / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        # for_model() standardises the two spellings of the rotation parameters; the file keeps the one given here.
        empty = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        weights = random_weights(empty, rng, dtype)
        write_model(directory, config, weights, n_shards)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
        expected = expected_of(model, rng)
        write_json(directory / "expected.json", expected, separators=(",", ":"))
        ids = expected["prompts"][3]["ids"]
        logits = logits_of(model, ids)
        size = sum(f.stat().st_size for f in directory.iterdir())
        print(f"{name:15} {size / 1e3:6.0f} KB  logits' deviation {float(logits.std()):.2f}  "
              f"bf16 keys and values move a logit by at most {rounded_kv_delta(model, ids):.4f}  "
              f"smallest greedy lead {min(m for p in expected['prompts'] for m in p['greedy_margins']):.3f}")
        if args.check_sensitivity:
            for mistake, change in sensitivity(directory, config, weights, ids).items():
                print(f"    {mistake:28} {change:.3f}")


if __name__ == "__main__":
    main()
