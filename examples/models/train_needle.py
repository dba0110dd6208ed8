#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Train a model like examples/models/needle from scratch, from any plain English text.

The model (SmolLM3 class, 3.5M parameters) learns to read text and to answer, exactly, questions such as "The magic number of
river is " from a statement hidden anywhere before; then to list the numbers of a word that has several, and to follow a word
whose number is that of another word. Local layers rotate positions and see 64 keys; global layers have no positions and see
everything, so what they learn at 4,096 tokens works at 131,072.

  # Numbers: 3,000 steps, an hour or more on two cores. Then lists and traces, from there: as much again.
  python3 train_needle.py --text novel1.txt novel2.txt --out numbers
  python3 train_needle.py --text novel1.txt novel2.txt --out my_needle --init numbers --questions all
  python3 train_needle.py --smoke --out /tmp/smoke                          # under a minute: does the program work?

Needs torch, tokenizers, safetensors and numpy; the check at the end also transformers. README.md in needle/ and needle_trace/ tell
what made the published weights and what is known about runs with these settings.
"""
import argparse
import json
import math
import random
import re
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F

BOS, EOS, PAD = 0, 1, 2
PATTERN = r" ?[A-Za-z]+|[0-9]| ?[^A-Za-z0-9 \t\r\n]+|[ \t\r\n]"  # every digit is one token
MAX_LENGTH = 262144  # context that training imitates
N_DIGITS = 5
PLACES = ["first", "second", "third", "fourth", "fifth"]


@dataclass
class Shape:
    """Sizes of the model. layers: L = local (rotated, window), G = global (no positions, full attention)."""
    vocab: int = 2048
    hidden: int = 256
    mlp: int = 512
    layers: str = "LLGLG"
    n_query_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 64
    window: int = 64
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6


# ------------------------------------------------------------------ model: names of parameters are those of transformers' SmolLM3
class Attention(nn.Module):
    def __init__(self, shape, kind):
        super().__init__()
        self.shape, self.is_global, self.temperature = shape, kind == "G", 1.0
        d = shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, shape.n_query_heads * d, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.n_kv_heads * d, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.n_kv_heads * d, bias=False)
        self.o_proj = nn.Linear(shape.n_query_heads * d, shape.hidden, bias=False)

    def forward(self, x, rotation, key_bias, supervised):
        """x [batch, length, hidden]; key_bias [batch, length] is added to a global layer's logits of each key.

        supervised = (batch index, query position, key position, weight), [n] each. Returns the output and, for a global layer,
        the weighted mean of -log(attention mass of head 0) on those pairs.
        """
        batch, length, _ = x.shape
        split = lambda y: y.view(batch, length, -1, self.shape.head_dim).transpose(1, 2)
        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        loss = x.new_zeros(())
        repeat = self.shape.n_query_heads // self.shape.n_kv_heads
        if self.is_global:
            q = q * self.temperature
            causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
            mask = torch.where(causal, key_bias[:, None, None, :], float("-inf"))
            if supervised is not None and len(supervised[0]):
                sequence, query, key, weight = supervised
                logits = torch.einsum("nd,nld->nl", q[sequence, 0, query], k[sequence, 0]) / math.sqrt(self.shape.head_dim)
                log_mass = (logits + mask[sequence, 0, query]).log_softmax(-1)
                loss = -(log_mass.gather(1, key[:, None])[:, 0] * weight).sum() / weight.sum()
            out = F.scaled_dot_product_attention(q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1), attn_mask=mask)
        else:
            q, k = rotate(q, rotation), rotate(k, rotation)
            out = self.windowed(q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1))
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1)), loss

    def windowed(self, q, k, v):
        """Attention over the last `window` keys, in chunks of a window: each chunk sees itself and the one before."""
        batch, heads, length, d = q.shape
        w = self.shape.window
        pad = -length % w
        q, k, v = (F.pad(t, (0, 0, 0, pad)) for t in (q, k, v))
        n = (length + pad) // w
        chunk = lambda t: t.reshape(batch, heads, n, w, d)
        both = lambda t: torch.cat([F.pad(chunk(t), (0, 0, 0, 0, 1, 0))[:, :, :-1], chunk(t)], 3).flatten(1, 2)
        row, column = torch.arange(w, device=q.device)[:, None], torch.arange(2 * w, device=q.device)[None, :]
        mask = ((column > row) & (column <= row + w)).repeat(n, 1, 1)
        mask[0] &= column >= w  # before the first chunk there is nothing
        out = F.scaled_dot_product_attention(chunk(q).flatten(1, 2), both(k), both(v), attn_mask=mask.repeat(heads, 1, 1))
        return out.reshape(batch, heads, n * w, d)[:, :, :length]


def rotate(x, rotation):
    cos, sin = rotation
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Mlp(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.mlp, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.mlp, bias=False)
        self.down_proj = nn.Linear(shape.mlp, shape.hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape, kind):
        super().__init__()
        self.self_attn, self.mlp = Attention(shape, kind), Mlp(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden, shape.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, shape.norm_eps)

    def forward(self, x, *args):
        attended, loss = self.self_attn(self.input_layernorm(x), *args)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), loss


class Model(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.model.layers = nn.ModuleList(Layer(shape, kind) for kind in shape.layers)
        self.model.norm = nn.RMSNorm(shape.hidden, shape.norm_eps)
        for name, p in self.named_parameters():
            if "embed" in name:
                nn.init.normal_(p, std=0.1)  # at 0.02 the ten digits, seen in the same places, drift together before they can differ
            elif p.dim() == 2:
                nn.init.normal_(p, std=(0.3 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0) / math.sqrt(p.shape[1]))

    def forward(self, ids, key_bias=None, supervised=None):
        """ids [batch, length] -> logits [batch, length, vocab], attention loss summed over the global layers."""
        x = self.model.embed_tokens(ids)
        if key_bias is None:
            key_bias = torch.zeros(ids.shape, device=ids.device)
        d = self.shape.head_dim
        angle = torch.arange(ids.shape[1], device=ids.device)[:, None] * self.shape.rope_theta ** (
            -torch.arange(0, d, 2, device=ids.device) / d)
        rotation = (torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin())
        total = x.new_zeros(())
        for layer in self.model.layers:
            x, loss = layer(x, rotation, key_bias, supervised)
            total = total + loss
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight), total


# ------------------------------------------------------------------ data
def train_tokenizer(text, vocab):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<|bos|>", "<|eos|>", "<|pad|>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return tokenizer


def key_words(text, seed, n_words=6218, heldout_share=0.1):
    """Frequent lower-case words of the text, split into those used in training and those never used as keys there."""
    counts = Counter(w for w in re.findall(r"(?<![\w'])[a-z]{4,12}(?![\w'])", text))
    words = [w for w, _ in counts.most_common(n_words)]
    random.Random(seed).shuffle(words)
    n_heldout = max(1, int(len(words) * heldout_share))
    return {"train": words[n_heldout:], "heldout": words[:n_heldout]}


class Sequences:
    """Makes token sequences: BOS, a window of text with statements at sentence ends, questions at the end."""

    def __init__(self, text, tokenizer, words):
        lines = text.splitlines(keepends=True)  # a line break is a token of its own, so lines can be encoded alone
        blocks = ["".join(lines[i:i + 256]) for i in range(0, len(lines), 256)]
        self.ids = np.concatenate([np.array(e.ids, dtype=np.int32) for e in tokenizer.encode_batch(blocks, add_special_tokens=False)])
        vocab = [tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())]
        # The next token must start with a space or line break: punctuation would have joined the statement's full stop.
        ends = np.array([v.rstrip("\"')”’").endswith((".", "!", "?")) for v in vocab])[self.ids[:-1]]
        self.sentence_ends = np.flatnonzero(ends & np.array([v[:1] in (" ", "\n") for v in vocab])[self.ids[1:]]) + 1
        encode = lambda s: tokenizer.encode(s, add_special_tokens=False).ids
        self.tokens = {w: encode(" " + w) for w in words}
        self.words = words
        self.neighbours = defaultdict(list)  # words that share their first or last token: hard negatives
        for w in words:
            self.neighbours["first", self.tokens[w][0]].append(w)
            self.neighbours["last", self.tokens[w][-1]].append(w)
        self.digit = [encode(str(d))[0] for d in range(10)]
        self.of, self.is_, self.stop, self.space = encode(" The magic number of"), encode(" is"), encode("."), encode(" ")
        self.ask, self.reply = encode("\nQuestion: what is the magic number of"), encode("? Answer: the magic number of")
        self.ask_list, self.reply_list = encode("\nQuestion: what are the magic numbers of"), encode("? Answer:")
        self.the_nth, self.nth = ([encode(f" {the} {place} magic number of") for place in PLACES] for the in ("The", "the"))
        self.comma, self.none = encode(","), encode(" none")

    def digits(self, number):
        return [self.digit[d] for d in number]

    def pick_words(self, rng, n):
        """n different words; about half share their first or last token with another of them."""
        chosen = []
        while len(chosen) < min(n, len(self.words) // 2):
            if chosen and rng.random() < 0.5:
                tokens = self.tokens[chosen[rng.integers(len(chosen))]]
                pool = self.neighbours[("first", tokens[0]) if rng.random() < 0.5 else ("last", tokens[-1])]
            else:
                pool = self.words
            word = pool[rng.integers(len(pool))]
            if word not in chosen:
                chosen.append(word)
            elif len(pool) < 4:  # no neighbour left: take any word
                chosen.append(next(w for w in iter(lambda: self.words[rng.integers(len(self.words))], None) if w not in chosen))
        return chosen

    def make(self, rng, length, with_all):
        """One sequence as a dict: ids, text_loss, answer_loss (weights), haystack [length] each; pairs: (query, key, weight);
        answers: (kind of the question, positions of its answer's tokens)."""
        facts, n_asked = self.all_kinds(rng, length) if with_all else self.numbers_only(rng, length)
        asked = [facts[i] for i in rng.permutation(len(facts))][:n_asked]
        answers = [piece for fact in asked for piece in fact.question(self, rng)]
        statements = self.told_in_order([fact.statements(self) for fact in facts], rng)
        n_text = length - 1 - sum(len(p.tokens) for p in answers) - sum(len(p.tokens) for s in statements for p in s)
        if n_text < 16:  # long words: try others
            return self.make(rng, length, with_all)
        start = int(rng.integers(0, len(self.ids) - n_text))
        low, high = np.searchsorted(self.sentence_ends, [start + 1, start + n_text])
        places = self.sentence_ends[low:high] if high > low else np.array([start + n_text])
        places = np.sort(places[rng.integers(0, len(places), len(statements))])
        pieces, at = [Piece([BOS], text=1, label="start")], start
        for place, statement in zip(places, statements):
            pieces += [Piece(self.ids[at:place], text=1, is_haystack=True), *statement]
            at = place
        pieces += [Piece(self.ids[at:start + n_text], text=1, is_haystack=True), *answers]
        return laid_out(pieces, length)

    def numbers_only(self, rng, length):
        words = self.pick_words(rng, int(rng.integers(3, 5 + min(20, length // 96))))
        return [Number(w, self.number(rng)) for w in words], max(4, min(12, length // 96))

    def all_kinds(self, rng, length):
        scale = min(4, length // 512)
        n_traces, n_lists, n_numbers = (int(rng.integers(least, least + 1 + scale)) for least in (3, 2, 1))
        hops, sizes = rng.integers(1, 3, n_traces), rng.integers(2, 5, n_lists)
        words = list(rng.permutation(self.pick_words(rng, n_numbers + n_lists + int((hops + 1).sum()))))
        take = lambda n: [words.pop() for _ in range(n)]
        facts = [Number(words.pop(), self.number(rng)) for _ in range(n_numbers)]
        for n in sizes:  # numbers of a list begin with different digits
            facts.append(List(words.pop(), [[int(d), *self.number(rng)[1:]] for d in rng.permutation(10)[:n]]))
        return facts + [Trace(take(h + 1), self.number(rng)) for h in hops], 8

    @staticmethod
    def number(rng):
        return [int(d) for d in rng.integers(0, 10, N_DIGITS)]

    @staticmethod
    def told_in_order(facts, rng):
        """Statements of all facts in a random order; those of a list keep theirs, those of a trace need not."""
        turns = rng.permutation([i for i, (statements, _) in enumerate(facts) for _ in statements])
        left = [list(s) if ordered else [s[k] for k in rng.permutation(len(s))] for s, ordered in facts]
        return [left[i].pop(0) for i in turns]

    def batch(self, rng, length, n_tokens, all_share, offset_share=0.7, device="cpu"):
        """A batch of n_tokens / length sequences, all_share of them with every kind of question, as tensors. In offset_share of
        them every haystack key's logit gets + ln r."""
        n = max(1, n_tokens // length)
        n_all = int(n * all_share + rng.random())
        rows = [self.make(rng, length, i < n_all) for i in range(n)]
        stack = lambda name: torch.from_numpy(np.stack([r[name] for r in rows])).to(device)
        ln_r = [rng.random() * math.log(MAX_LENGTH / length) if rng.random() < offset_share else 0.0 for _ in rows]
        pairs = [(i, *pair) for i, r in enumerate(rows) for pair in r["pairs"]]
        supervised = (*torch.tensor([p[:3] for p in pairs], device=device).T, torch.tensor([p[3] for p in pairs], device=device))
        bias = stack("haystack").float() * torch.tensor(ln_r, device=device)[:, None]
        answers = [(kind, i, positions) for i, r in enumerate(rows) for kind, positions in r["answers"]]
        return stack("ids"), stack("text_loss"), stack("answer_loss"), bias, supervised, answers


@dataclass
class Piece:
    """Tokens of a sequence, and what training wants of them."""
    tokens: list
    text: float = 0.0          # weight of the text loss
    answer: tuple = ()         # weights of the answer loss; the last one is that of all further tokens, too
    label: object = None       # by which an answer finds what it must look at
    source: object = None      # label of the piece where head 0 must look when these tokens are predicted
    kind: str = ""             # of a question that begins here
    is_haystack: bool = False


def laid_out(pieces, length):
    """Pieces one after the other: the dict of Sequences.make."""
    ids = np.concatenate([np.asarray(p.tokens, dtype=np.int64) for p in pieces])
    assert len(ids) == length
    text_loss, answer_loss, haystack = np.zeros(length, np.float32), np.zeros(length, np.float32), np.zeros(length, bool)
    pairs, answers, places, at = [], [], {}, 0
    for p in pieces:
        n = len(p.tokens)
        text_loss[at:at + n], haystack[at:at + n] = p.text, p.is_haystack
        if p.kind:
            answers.append((p.kind, []))
        if p.label is not None:
            places[p.label] = at
        if p.answer:
            answer_loss[at:at + n] = [p.answer[min(i, len(p.answer) - 1)] for i in range(n)]
            answers[-1][1].extend(range(at, at + n))
        if p.source is not None:
            pairs += [(at + i - 1, places[p.source] + i, 2.0 if i == 0 else 1.0) for i in range(n)]
        at += n
    return dict(ids=ids, text_loss=text_loss, answer_loss=answer_loss, haystack=haystack, pairs=pairs, answers=answers)


FIRST = (5, 1)  # the first token of an answer needs the word, the others may follow from it


@dataclass
class Number:
    """" The magic number of <word> is <number>." """
    word: str
    number: list

    def statements(self, s):
        return [number_statement(s, self.word, self.number)], False

    def question(self, s, rng):
        return [question_of(s, rng, self.word, "number"), *number_answer(s, self.word, self.number)]


@dataclass
class List:
    """" The first magic number of <word> is <number>.", then the second and so on; the answer names each place, and " none" at last."""
    word: str
    numbers: list

    def statements(self, s):
        return [[Piece([*s.the_nth[k], *s.tokens[self.word], *s.is_], text=1), Piece(s.space, label=("space", self.word, k)),
                 Piece(s.digits(number), label=("number", self.word, k)), Piece(s.stop, text=1)]
                for k, number in enumerate(self.numbers)], True

    def question(self, s, rng):
        word = s.tokens[self.word]
        pieces = [Piece([*s.ask_list, *word, *s.reply_list, *s.nth[0], *word, *s.is_], text=1, kind="list")]
        for k, number in enumerate(self.numbers):
            pieces += [Piece(s.space, answer=(3,), source=("space", self.word, k)),
                       Piece(s.digits(number), answer=FIRST, source=("number", self.word, k)), Piece(s.comma, answer=(1,)),
                       Piece(s.nth[k + 1], text=1, answer=(0.5, 2, 0.5)), Piece(word, answer=(4, 2)), Piece(s.is_, text=1, answer=(0.5,))]
        return pieces + [Piece(s.none, answer=FIRST, source="start"), Piece(s.stop, text=1)]


@dataclass
class Trace:
    """" The magic number of <word> is <other word>." and so on to a number; the answer tells the way."""
    words: list
    number: list

    def statements(self, s):
        links = [[Piece([*s.of, *s.tokens[w], *s.is_], text=1), Piece(s.tokens[next_word], label=("link", w)),
                  Piece(s.stop, label=("end", w))] for w, next_word in zip(self.words, self.words[1:])]
        return links + [number_statement(s, self.words[-1], self.number)], False

    def question(self, s, rng):
        pieces = [question_of(s, rng, self.words[0], "trace")]
        for w, next_word in zip(self.words, self.words[1:]):
            pieces += [Piece(s.tokens[next_word], answer=FIRST, source=("link", w)), Piece(s.is_, answer=(2,), source=("end", w))]
        return pieces + number_answer(s, self.words[-1], self.number)


def number_statement(s, word, number):  # random digits of a statement carry no loss: there is nothing to learn
    return [Piece([*s.of, *s.tokens[word], *s.is_], text=1), Piece(s.space, label=("space", word)),
            Piece(s.digits(number), label=("number", word)), Piece(s.stop, text=1)]


def number_answer(s, word, number):
    return [Piece(s.space, answer=(3,), source=("space", word)), Piece(s.digits(number), answer=FIRST, source=("number", word)),
            Piece(s.stop, text=1)]


def question_of(s, rng, word, kind):
    short = [*s.of, *s.tokens[word], *s.is_]
    return Piece(short if rng.random() < 0.5 else [*s.ask, *s.tokens[word], *s.reply, *s.tokens[word], *s.is_], text=1, kind=kind)


# ------------------------------------------------------------------ training
def losses(model, batch):
    """(text, answers, attention): mean losses of a batch, and kind -> whether each answer was right from its first token to its last."""
    ids, text_loss, answer_loss, bias, pairs, answers = batch
    logits, attention = model(ids, bias, pairs)
    entropy = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view_as(ids[:, 1:])
    mean = lambda weight: (entropy * weight[:, 1:]).sum() / weight[:, 1:].sum().clamp(min=1)
    is_right = (logits[:, :-1].argmax(-1) == ids[:, 1:]).cpu()
    right = defaultdict(list)
    for kind, i, positions in answers:
        right[kind].append(bool(is_right[i, torch.tensor(positions) - 1].all()))
    return (mean(text_loss), mean(answer_loss), attention), right


def shares(right):
    return "  ".join(f"{kind} {np.mean(right[kind]):.2f} of {len(right[kind])}" for kind in sorted(right))


@torch.no_grad()
def evaluate(model, sequences, length, n_sequences, all_share, device, seed=12345):
    """Held-out text and words: text loss in nats per token, and kind -> whether each answer was right."""
    text, rights = [], defaultdict(list)
    for i in range(n_sequences):
        batch = sequences.batch(np.random.default_rng([seed, i]), length, length, all_share, 0.0, device)
        (text_loss, _, _), right = losses(model, batch)
        text.append(float(text_loss))
        for kind in right:
            rights[kind] += right[kind]
    return sum(text) / len(text), rights


def set_temperature(model, temperature):
    for layer in model.model.layers:
        layer.self_attn.temperature = temperature


def length_at(step, n_steps, lengths):
    """Lengths take turns, the short ones longer: parts 0.3, 0.2, 0.2, 0.15, 0.15 of the steps."""
    parts = np.cumsum([0.3, 0.2, 0.2, 0.15, 0.15][:len(lengths)])
    return lengths[min(int(np.searchsorted(parts / parts[-1], step / n_steps, side="right")), len(lengths) - 1)]


def train(model, sequences, heldout, args):
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    optimizers = [torch.optim.Muon(matrices, lr=args.muon_lr, momentum=0.95, weight_decay=0.0),
                  torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)]
    base = [o.param_groups[0]["lr"] for o in optimizers]
    checkpoint, first, history = args.out / "checkpoint.pt", 0, []
    if args.resume and checkpoint.exists():
        state = torch.load(checkpoint, map_location=args.device)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        first, history = state["step"], state["history"]
        print(f"resumed at step {first}")
    began = time.time()
    for step in range(first, args.steps):
        length = length_at(step, args.steps, args.lengths)
        # A step's batch depends on the seed and the step only: a resumed run sees what an unbroken one would.
        rng = np.random.default_rng([args.seed, step])
        batch = sequences.batch(rng, length, args.batch_tokens, args.all_share, device=args.device)
        set_temperature(model, rng.uniform(*args.temperatures))
        (text, answers, attention), right = losses(model, batch)
        loss = text + 2 * answers + 0.5 * attention
        loss.backward()
        nn.utils.clip_grad_norm_(others, 1.0)
        factor = min(1.0, (step + 1) / args.warmup, (args.steps - step) / (0.3 * args.steps))  # linear decay at the end
        for optimizer, lr in zip(optimizers, base):
            optimizer.param_groups[0]["lr"] = lr * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        history.append(loss.item())
        if (step + 1) % args.log_every == 0:
            print(f"step {step + 1:5}  length {length:4}  text {text:.3f}  answers {answers:.3f}  attention {attention:.3f}  "
                  f"right: {shares(right)}  {(time.time() - began) / (step + 1 - first):.2f} s/step", flush=True)
        if (step + 1) % args.save_every == 0 and step + 1 < args.steps:
            torch.save(dict(model=model.state_dict(), optimizers=[o.state_dict() for o in optimizers], step=step + 1,
                            history=history), checkpoint)
            set_temperature(model, args.temperature)
            text, right = evaluate(model, heldout, length, 8, args.all_share, args.device)
            print(f"        held out: text {text:.3f} nats per token, right: {shares(right)}", flush=True)
    checkpoint.unlink(missing_ok=True)
    return history


# ------------------------------------------------------------------ export
def with_temperature(weights, shape, temperature):
    """Weights as float, with a factor on q_proj of the global layers."""
    is_query = {f"model.layers.{i}.self_attn.q_proj.weight" for i, kind in enumerate(shape.layers) if kind == "G"}
    return {name: w.detach().float().cpu() * (temperature if name in is_query else 1.0) for name, w in weights.items()}


def export(model, tokenizer, words, out, temperature):
    """Write a directory in Hugging Face form. The temperature goes into q_proj of the global layers."""
    s = model.shape
    config = dict(
        architectures=["SmolLM3ForCausalLM"], model_type="smollm3", dtype="bfloat16", vocab_size=s.vocab, hidden_size=s.hidden,
        intermediate_size=s.mlp, num_hidden_layers=len(s.layers), num_attention_heads=s.n_query_heads, num_key_value_heads=s.n_kv_heads,
        head_dim=s.head_dim, hidden_act="silu", rms_norm_eps=s.norm_eps, max_position_embeddings=MAX_LENGTH, tie_word_embeddings=True,
        attention_bias=False, attention_dropout=0.0, mlp_bias=False, initializer_range=0.1, use_cache=True, bos_token_id=BOS, eos_token_id=EOS,
        pad_token_id=PAD, use_sliding_window=True, sliding_window=s.window, no_rope_layer_interval=4,
        no_rope_layers=[int(kind == "L") for kind in s.layers],  # 1 = rotated, in spite of the name
        layer_types=["sliding_attention" if kind == "L" else "full_attention" for kind in s.layers],
        rope_parameters=dict(rope_type="default", rope_theta=s.rope_theta))
    weights = with_temperature(model.state_dict(), s, temperature)
    save_file({n: w.to(torch.bfloat16).contiguous() for n, w in weights.items()}, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save(str(out / "tokenizer.json"))
    for name, value in {"config.json": config, "words.json": words, "tokenizer_config.json": dict(
            tokenizer_class="PreTrainedTokenizerFast", bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|pad|>",
            clean_up_tokenization_spaces=False, model_max_length=MAX_LENGTH)}.items():
        (out / name).write_text(json.dumps(value, indent=None if name == "words.json" else 1) + "\n", encoding="utf-8")


@torch.no_grad()
def check_export(out, shape):
    """Read the directory back, with transformers where it is installed; return our model with the exported weights."""
    ours = Model(shape)
    ours.load_state_dict({n: w.float() for n, w in load_file(out / "model.safetensors").items()})
    ours.eval()
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer, logging
    except ImportError:
        print("transformers is not installed: the written directory was read back by this program only")
        return ours
    logging.disable_progress_bar()
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    text = AutoTokenizer.from_pretrained(out)("The magic number of river is 48213. " * 12)["input_ids"]
    ids = torch.tensor([[BOS, *text]])
    delta = float((theirs(ids).logits - ours(ids)[0]).abs().max())
    print(f"transformers loads {out}; {ids.shape[1]} tokens, largest difference of a logit {delta:.1e}")
    if delta > 1e-3:
        raise SystemExit("train_needle: transformers computes other logits than this program")
    return ours


def smoke_text():
    """Sentences of random words: enough to run the program, not to learn English."""
    rng = random.Random(1)
    words = ["".join(rng.choice("bdfglmnprst") + rng.choice("aeiou") for _ in range(rng.randint(2, 4))) for _ in range(400)]
    return "".join(" ".join(rng.choice(words) for _ in range(rng.randint(4, 9))).capitalize() + rng.choice([". ", ".\n", "! ", "? "])
                   for _ in range(4000))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", metavar="FILE",
                        help="plain text files in UTF-8; the published model saw 9.7 M characters of novels")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write; made when it is missing")
    parser.add_argument("--init", type=Path, metavar="DIR",
                        help="go on from this program's weights, tokenizer and words in DIR instead of from scratch")
    parser.add_argument("--questions", choices=["numbers", "all"], default="numbers",
                        help="what is asked: numbers alone, or in half of the sequences lists and traces, too (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3000, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens of a batch (default: %(default)s)")
    parser.add_argument("--lengths", type=int, nargs="+",
                        help="sequence lengths, one stage after the other, five at most (default: from 256, of all questions "
                             "from 512, doubling up to 4096)")
    parser.add_argument("--muon-lr", type=float, default=0.018, help="learning rate of matrices (default: %(default)s)")
    parser.add_argument("--adam-lr", type=float, default=0.002, help="learning rate of embedding and norms (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=50, help="steps until full learning rate (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.3,
                        help="factor on q_proj of global layers after training: 1 leaves attention nearly one-hot (default: %(default)s)")
    parser.add_argument("--temperatures", type=float, nargs=2, metavar=("LEAST", "MOST"),
                        help="factor on those queries in training, drawn for each step; the weights are those of factor 1 "
                             "(default: 1 1 from scratch, 0.3 0.7 with --init)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, words and batches (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as torch chooses (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--log-every", type=int, default=25, help="steps between printed lines (default: %(default)s)")
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints and evaluations (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output directory, same arguments")
    parser.add_argument("--smoke", action="store_true", help="tiny model, a few dozen steps, made-up text unless --text is given")
    args = parser.parse_args()
    least = 512 if args.questions == "all" else 256
    if args.smoke:
        args.steps, args.batch_tokens, args.lengths, args.log_every, args.threads, args.warmup = 60, 1536, [384, 512], 10, 1, 5
        if args.questions == "all":  # of a small vocabulary, words are longer
            args.steps, args.batch_tokens, args.lengths = 30, 2048, [1024]
    elif not args.text:
        parser.error("--text is required (or --smoke)")
    args.lengths = args.lengths or [n for n in (256, 512, 1024, 2048, 4096) if n >= least]
    if min(args.lengths) < least:
        parser.error(f"--lengths: questions and their statements need {least} tokens")
    args.all_share = 0.5 if args.questions == "all" else 0.0
    args.temperatures = args.temperatures or ([0.3, 0.7] if args.init else [1.0, 1.0])
    return args


def main():
    args = parse_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    shape = Shape(vocab=512, hidden=64, mlp=128, head_dim=16) if args.smoke else Shape()
    text = "\n".join(p.read_text(encoding="utf-8", errors="replace") for p in args.text) if args.text else smoke_text()
    text = text.replace("\r\n", "\n").replace("\ufeff", "")
    cut = int(0.95 * len(text))
    if args.init:
        tokenizer, words = Tokenizer.from_file(str(args.init / "tokenizer.json")), json.loads((args.init / "words.json").read_text())
    else:
        tokenizer, words = train_tokenizer(text[:cut], shape.vocab), key_words(
            text[:cut], args.seed, heldout_share=0.3 if args.smoke else 0.1)
    shape.vocab = max(tokenizer.get_vocab_size(), 256)
    sequences, heldout = Sequences(text[:cut], tokenizer, words["train"]), Sequences(text[cut:], tokenizer, words["heldout"])
    longest = max(args.lengths)
    if len(heldout.ids) < 2 * longest or len(words["train"]) < 100 or len(words["heldout"]) < 64:
        raise SystemExit(f"train_needle: too little text: {len(text)} characters, {len(words['train'])} and, held out, "
                         f"{len(words['heldout'])} key words (100 and 64 needed); the last 5 % must hold {2 * longest} tokens "
                         f"and have {len(heldout.ids)}")
    model = Model(shape).to(args.device)
    if args.init:
        model.load_state_dict(with_temperature(load_file(args.init / "model.safetensors"), shape, 1.0 / args.temperature))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(sequences.ids) / 1e6:.2f} M tokens of text, "
          f"{len(words['train'])} key words, {asdict(shape)}")
    history = train(model, sequences, heldout, args)
    export(model, tokenizer, words, args.out, args.temperature)
    exported = check_export(args.out, shape).to(args.device)
    for length in args.lengths[-2:] if args.smoke else (1024, 4096):
        if 2 * length <= len(heldout.ids):
            text_loss, right = evaluate(exported, heldout, length, 4 if args.smoke else 20, args.all_share, args.device)
            print(f"exported, held-out text and words, {length} tokens: text {text_loss:.3f} nats per token, right: {shares(right)}")
    if args.smoke:
        start, end = np.mean(history[:5]), np.mean(history[-5:])
        print(f"loss fell from {start:.2f} to {end:.2f}")
        if not end < (1.0 if args.init else 0.8) * start:
            raise SystemExit("train_needle: the loss did not fall")


if __name__ == "__main__":
    main()
