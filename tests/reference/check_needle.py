#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Compare tests/data/needle/golden.json with transformers on a model directory; print the largest difference of a logit.

Checks the ids of each prompt, the top 20 logits of its last position, the mean logit and the greedy tokens. Exits with 1
when ids or greedy tokens differ or a logit is off by more than --tolerance.
"""
import argparse
import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, logging

ROOT = Path(__file__).resolve().parent.parent.parent


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "models" / "needle")
    parser.add_argument("--golden", type=Path, default=ROOT / "tests" / "data" / "needle" / "golden.json")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest difference of a logit (default: 1e-3)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager").eval()
    worst, failures = 0.0, 0
    for i, golden in enumerate(json.loads(args.golden.read_text(encoding="utf-8"))["prompts"]):
        ids = golden["ids"]
        same_ids = [0, *tokenizer.encode(golden["prompt"], add_special_tokens=False).ids] == ids
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        delta = (logits[golden["last_logits_top20_ids"]] - torch.tensor(golden["last_logits_top20"])).abs().max().item()
        delta = max(delta, abs(logits.mean().item() - golden["mean_logit"]))
        tokens = list(ids)
        for _ in golden["greedy_ids"]:
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        same_tokens = tokens[len(ids):] == golden["greedy_ids"]
        worst = max(worst, delta)
        failures += not (same_ids and same_tokens)
        print(f"prompt {i}: {len(ids):5} tokens, ids {'equal' if same_ids else 'DIFFER'}, "
              f"greedy {'equal' if same_tokens else 'DIFFERS'} ({golden['greedy_text']!r}), max |delta logit| {delta:.2e}")
    print(f"max |delta logit| {worst:.2e}")
    sys.exit(1 if failures or worst > args.tolerance else 0)


if __name__ == "__main__":
    main()
