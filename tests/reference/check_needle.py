#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Compare tests/data/<model>/golden.json of the shipped models with transformers; print the largest difference of a logit.

Checks the ids of each prompt, the top 20 logits of its last position, the mean logit and the greedy tokens. Exits with 1
when ids or greedy tokens differ or a logit is off by more than --tolerance. --make writes the file anew: the same prompts, as
many greedy tokens as it has of each (8 where it has none).
"""
import argparse
import json
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, logging

ROOT = Path(__file__).resolve().parent.parent.parent


def last_logits(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0, -1]


def greedy(model, ids, n):
    tokens = list(ids)
    for _ in range(n):
        tokens.append(int(last_logits(model, tokens).argmax()))
    return tokens[len(ids):]


def encode(tokenizer, prompt):
    return [0, *tokenizer.encode(prompt, add_special_tokens=False).ids]


def make(model, tokenizer, prompts):
    """The file's contents for these prompts."""
    made = []
    for old in prompts:
        ids = encode(tokenizer, old["prompt"])
        logits = last_logits(model, ids)
        top = logits.topk(20)
        tokens = greedy(model, ids, len(old.get("greedy_ids", range(8))))
        made.append(dict(prompt=old["prompt"], ids=ids, last_logits_top20_ids=top.indices.tolist(),
                         last_logits_top20=[round(x, 6) for x in top.values.tolist()], mean_logit=round(logits.mean().item(), 6),
                         greedy_ids=tokens, greedy_text=tokenizer.decode(tokens)))
    version = ".".join(transformers.__version__.split(".")[:2])
    return dict(note=f"Hugging Face transformers {version}, eager attention, float32 compute on the bf16 weights; ids start with "
                     "BOS = 0; logits of the last position", prompts=made)


def check(name, tolerance, make_anew):
    """Whether a model answers as its golden file says."""
    directory, golden_file = ROOT / "examples" / "models" / name, ROOT / "tests" / "data" / name / "golden.json"
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    prompts = json.loads(golden_file.read_text(encoding="utf-8"))["prompts"]
    if make_anew:
        golden_file.write_text(json.dumps(make(model, tokenizer, prompts), indent=1) + "\n", encoding="utf-8")
        return True
    worst, failures = 0.0, 0
    for i, golden in enumerate(prompts):
        ids = golden["ids"]
        same_ids = encode(tokenizer, golden["prompt"]) == ids
        logits = last_logits(model, ids)
        delta = (logits[golden["last_logits_top20_ids"]] - torch.tensor(golden["last_logits_top20"])).abs().max().item()
        delta = max(delta, abs(logits.mean().item() - golden["mean_logit"]))
        same_tokens = greedy(model, ids, len(golden["greedy_ids"])) == golden["greedy_ids"]
        worst = max(worst, delta)
        failures += not (same_ids and same_tokens)
        print(f"{name}, prompt {i}: {len(ids):5} tokens, ids {'equal' if same_ids else 'DIFFER'}, "
              f"greedy {'equal' if same_tokens else 'DIFFERS'} ({golden['greedy_text']!r}), max |delta logit| {delta:.2e}")
    print(f"{name}: max |delta logit| {worst:.2e}")
    return not failures and worst <= tolerance


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["needle", "needle_trace"], help="of examples/models (default: all)")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest difference of a logit (default: 1e-3)")
    parser.add_argument("--make", action="store_true", help="write the golden files for the models as they are now")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    sys.exit(0 if all([check(name, args.tolerance, args.make) for name in args.models]) else 1)


if __name__ == "__main__":
    main()
