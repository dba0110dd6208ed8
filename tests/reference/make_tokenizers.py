#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Train small byte-level BPE tokenizers in the form of published ones, and store what they make of a few thousand lines.

llama3, qwen2 and gpt2 carry the normalizer, pre-tokenizer, post-processor and decoder of Llama-3 (SmolLM3 uses the same),
Qwen2 / Qwen3 and GPT-2; their vocabularies are small and trained here on generated text. The lines mix scripts, combining
marks, emoji, code, odd whitespace, digits, contractions and special tokens; they are generated from a seed.

Writes llama3.json, qwen2.json, gpt2.json, lines.jsonl and decode.jsonl; tests/data/README.md says what they hold.
"""
import argparse
import json
import random
import unicodedata
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = Path(__file__).resolve().parent.parent.parent
NEEDLE = ROOT / "examples" / "models" / "needle"

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = CONTRACTION + LETTERS + r"\p{N}{1,3}" + REST
QWEN2_PATTERN = CONTRACTION + LETTERS + r"\p{N}" + REST

SPECIAL = {
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|start_header_id|>",
               "<|end_header_id|>", "<|eot_id|>"],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>"],
    "gpt2": ["<|endoftext|>"],
}
# Qwen's tool and thinking marks are added tokens that are not special: decoding keeps them.
NOT_SPECIAL = {"qwen2": ["<tool_call>", "</tool_call>", "<think>", "</think>"]}
# Whole words of the vocabulary that no merge makes: only ignore_merges finds them.
UNREACHABLE = {" retrieval": "Ġretrieval", " wavefront": "Ġwavefront", "clusters": "clusters", " мир": "ĠÐ¼Ð¸ÑĢ",
               " €": "Ġ\u00e2\u0124\u00ac", "==>>": "==>>", "'Tis": "'Tis"}
VOCAB_SIZE = {"llama3": 1400, "qwen2": 1200, "gpt2": 1000}

# Text in many scripts, plain phrases written for this file.
PHRASES = """The quick brown fox jumps over the lazy dog|It's what they've said: we'll go, I'd stay, you're right, I'm done
IT'S WHAT THEY'VE SAID: WE'LL GO, I'D STAY, YOU'RE RIGHT, I'M DONE|rock'n'roll o'clock 'tis 'twas y'all'd've|Don’t, it’s, l’été
naïve café déjà vu, où ça|Zażółć gęślą jaźń|Příliš žluťoučký kůň|Größe straße Übermut ẞ|El niño comió piñata|Þórður ætlar|Ağaç İstanbul ışık
Быстрая лиса прыгает через собаку|мир и клад|Щось їжак ґанок|Ταχεία αλώπηξ και μῆνιν ἄειδε θεά|მთვარე და ზღვა|Արևը ծագում է
שלום עולם, מה שלומך|בְּרֵאשִׁית בָּרָא|مرحبا بالعالم، كيف الحال؟|بِسْمِ اللَّهِ|سلام دنیا می‌خواهم|ہیلو دنیا
नमस्ते दुनिया, क्षत्रिय ज्ञान|আমার সোনার বাংলা|ਸਤ ਸ੍ਰੀ ਅਕਾਲ|வணக்கம் உலகம்|తెలుగు భాష|ಕನ್ನಡ ನುಡಿ|മലയാളം ഭാഷ|සිංහල භාෂාව
สวัสดีชาวโลก น้ำใจ|ສະບາຍດີ|မင်္ဂလာပါ|សួស្តី​ពិភពលោក|བཀྲ་ཤིས་བདེ་ལེགས།|ሰላም ለዓለም
你好，世界！今天天气很好。|漢字簡体字 混ざり|こんにちは世界、カタカナとひらがな。ﾊﾝｶｸ|안녕하세요 세계 여러분|𠀀𠀁 𡃁 rare ideographs|〇一二三 壱弐参
𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝕄𝕒𝕥𝕙 𝟘𝟙𝟚|ⅣⅧ ½ ¾ ² ³ ① ⑳ ㊿|١٢٣ ۴۵۶ ०१२३ ๑๒๓ 𝟏𝟐𝟑 １２３|3.14159 1,234,567 0x1F4A9 1e-10 2024-02-30 12:34:56|1234567890 12 345 6789
∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β = ¬(¬α ∨ β)|€100 £20 ¥3000 ₹5 ₿1|“quotes” ‘single’ «guillemets» „unten“ …—–|← ↑ → ↓ ↔ ⇒ ✓ ✗ ★ ☂ ♥ ░▒▓█
int main(int argc, char** argv) { return argc > 1 ? 0 : 1; }|for (auto& [key, value] : map) { sum += value * 2; }|def f(x, *args, **kw):\\n\\treturn x[1:-1] == 'a' or not x
    if not isinstance(x, (int, float)):\\n        raise TypeError(f"{x!r}")|#include <vector>\\r\\n#define MAX(a,b) ((a)>(b)?(a):(b))\\r\\n|{"a": [1, 2.5, null, true], "b": {"c": "\\\\n"}}|SELECT * FROM t WHERE a <> 'b' -- comment;
https://example.org/a/b.html?q=1&r=%20#top|user.name+tag@mail.example.com|C:\\\\Users\\\\me\\\\file.txt|/usr/lib/x86_64-linux-gnu/|a_b__c___d camelCase PascalCase kebab-case|== != <= >= === !== ==>> ->* <=> && || ::
<html><body class="x">text &amp; more</body></html>|## Heading\\n\\n- item one\\n- item two\\n\\n> quote|$$\\\\frac{a}{b}$$ and `code`|ſea ſaid ſhe to ſave ſea and 'ſea 'ſaid|!!! ??? ... ,,, ;;; --- ___ ***|(a) [b] {c} <d> "e" 'f'"""
EMOJI = ["😀", "👍", "👍🏽", "👩🏿‍🚀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "🇺🇳", "❤️", "❤", "☺️", "1️⃣", "#️⃣", "🤷🏻‍♂️", "🧑🏼‍❤️‍💋‍🧑🏾", "🐻‍❄️", "🫠", "✈︎"]
SPACES = [" ", "  ", "   ", "\t", "\t\t", "\n", "\n\n", "\r\n", "\r", "\u00a0", "\u3000", "\u2003", "\u2009", "\u202f", "\u205f",
          "\u1680", "\u2028", "\u2029", "\u0085", "\u000b", "\u000c", " \n", "\n ", " \t ", "\u00a0 ", " \u00a0", "        "]
INVISIBLE = ["\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u180e", "\u200e", "\u200f", "\u202e", "\ufe0f", "\u034f"]
CONTROL = ["\0", "\1", "\x07", "\x08", "\x1b[0m", "\x1c", "\x1f", "\x7f", "\u0080", "\u009f", "\ufffd", "\ufffe", "\U0010ffff", "\ue000"]
# Marks that NFC composes, reorders or leaves; letters whose canonical form is another letter; composition exclusions.
NFC_CASES = ["e\u0301", "a\u0323\u0307", "a\u0307\u0323", "o\u0302\u0301", "u\u0308\u0304", "s\u0323\u0307", "\u212b", "\u2126", "\u212a",
             "\u0958", "\u0915\u093c", "\u0f43", "\ufb1d", "\u05e9\u05c1", "\uf900", "\U0002f800", "\u1100\u1161", "\u1112\u1161\u11ab",
             "\uac00\u11a8", "\u1100\u1161\u11a8\u11a8", "\u0344", "\u0374", "\u037e", "\u1fef", "\u2000", "\u2329", "\u0340", "x\u0301\u0327",
             "\u0f71\u0f72\u0f74", "\u09c7\u09be", "\u0bc6\u0bbe", "\u3046\u3099", "\u0438\u0306", "\U0001d15e", "q\u0307\u0323",
             "\u0308\u0301", "\u1e9b\u0323", "\ufb01", "\u00bd", "\uff21", "\u03b1\u0313\u0301\u0345", "i\u0307", "\u0061\u0300" * 3]
# Case folding reaches beyond ASCII: U+017F folds to s. Apostrophes that are none.
CONTRACTION_CASES = ["'s", "'S", "'\u017f", "'t", "'T", "'Re", "'rE", "'VE", "'m", "'M", "'lL", "'Ll", "'d", "'D", "'x", "''s", "'sx",
                     "\u2019s", "'st", "'re's", "' s", "'l", "'L\u017f"]
# First and last code points of runs that were assigned in Unicode 3.2, whose properties every library agrees on.
RANGES = [(0xA1, 0xFF), (0x100, 0x17F), (0x180, 0x21F), (0x250, 0x2AD), (0x2B0, 0x2EE), (0x300, 0x34E), (0x391, 0x3CE), (0x400, 0x45F),
          (0x531, 0x556), (0x5D0, 0x5EA), (0x5B0, 0x5B9), (0x621, 0x63A), (0x64B, 0x655), (0x660, 0x669), (0x905, 0x939), (0x93E, 0x94D),
          (0x985, 0x98C), (0xE01, 0xE3A), (0xE40, 0xE4E), (0x10D0, 0x10F6), (0x1100, 0x1159), (0x1161, 0x11A2), (0x11A8, 0x11F9),
          (0x1E00, 0x1E9B), (0x1EA0, 0x1EF9), (0x1F00, 0x1F15), (0x2010, 0x2027), (0x2030, 0x2052), (0x2070, 0x2071), (0x2074, 0x208E),
          (0x20A0, 0x20B1), (0x2153, 0x2183), (0x2190, 0x21FF), (0x2200, 0x22FF), (0x2460, 0x24FE), (0x2500, 0x2595), (0x3001, 0x303F),
          (0x3041, 0x3096), (0x30A1, 0x30FF), (0x3105, 0x312C), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0xF900, 0xFA2D), (0xFB00, 0xFB06),
          (0xFF01, 0xFFBE), (0x10400, 0x10425), (0x1D400, 0x1D454), (0x1D7CE, 0x1D7FF), (0x20000, 0x2A6D6)]


class LineMaker:
    """Seeded generator of mixed lines."""

    def __init__(self, seed, training=False):
        self.random = random.Random(seed)
        self.phrases = [p.replace("\\n", "\n").replace("\\r", "\r").replace("\\t", "\t").replace("\\\\", "\\")
                        for p in PHRASES.replace("\n", "|").split("|") if p]
        self.words = json.loads((NEEDLE / "words.json").read_text(encoding="utf-8"))["train"]
        self.special = sorted({s for group in (*SPECIAL.values(), *NOT_SPECIAL.values(), ["<|bos|>", "<|eos|>"]) for s in group})
        self.makers = [(self.english, 6), (self.phrase, 8), (self.mixed_phrases, 3), (self.block, 5), (self.jumble, 4), (self.spaces, 4),
                       (self.nfc, 3), (self.digits, 3), (self.contractions, 2), (self.emoji, 2), (self.with_special, 3),
                       (self.invisible, 2), (self.code, 2), (self.repeated, 1), (self.whole_words, 0 if training else 2)]

    def line(self):
        maker = self.random.choices([m for m, _ in self.makers], [w for _, w in self.makers])[0]
        return maker()

    def some(self, items, low, high, separator=""):
        return separator.join(self.random.choice(items) for _ in range(self.random.randint(low, high)))

    def english(self):
        words = [self.random.choice(self.words) for _ in range(self.random.randint(2, 9))]
        style = self.random.random()
        if style < 0.15:
            words = [w.upper() for w in words]
        elif style < 0.4:
            words[0] = words[0].capitalize()
        return self.random.choice(["", "", " "]) + " ".join(words) + self.random.choice(["", ".", "?", "!", ", ", " .", ".\n", ":"])

    def phrase(self):
        text = self.random.choice(self.phrases)
        if self.random.random() < 0.3:  # a piece of it, at any code point
            start = self.random.randrange(len(text))
            text = text[start:start + self.random.randint(1, 24)]
        if self.random.random() < 0.2:
            text = unicodedata.ucd_3_2_0.normalize("NFD", text)
        if self.random.random() < 0.1:
            text = text.upper()
        return text

    def mixed_phrases(self):
        pieces = []
        for _ in range(self.random.randint(2, 3)):
            text = self.random.choice(self.phrases)
            start = self.random.randrange(len(text))
            pieces.append(text[start:start + self.random.randint(1, 12)])
        return self.some(SPACES, 1, 1).join(pieces)

    def character(self, low, high):
        while True:
            c = chr(self.random.randint(low, high))
            if unicodedata.ucd_3_2_0.category(c) != "Cn":
                return c

    def block(self):
        low, high = self.random.choice(RANGES)
        return self.random.choice(["", " ", "a", "1", "'"]) + "".join(
            self.random.choice(["", "", "", " ", "x"]) + self.character(low, high) for _ in range(self.random.randint(1, 9)))

    def jumble(self):
        pools = [lambda: self.character(*self.random.choice(RANGES)), lambda: chr(self.random.randint(33, 126)),
                 lambda: self.random.choice(SPACES), lambda: self.random.choice(NFC_CASES), lambda: self.random.choice("0123456789"),
                 lambda: self.random.choice(EMOJI), lambda: self.random.choice("abcXYZ"), lambda: " "]
        return "".join(self.random.choice(pools)() for _ in range(self.random.randint(1, 14)))

    def spaces(self):
        parts = ["", "a", "word", "1", "!", "é", "中", "...", "'s", "x = 1;", "#"]
        return "".join(self.some(SPACES, 0, 3) + self.random.choice(parts) for _ in range(self.random.randint(1, 4))) + self.some(SPACES, 0, 3)

    def nfc(self):
        return self.some(["", " ", "x"], 1, 1) + self.some(NFC_CASES, 1, 5, self.random.choice(["", " "]))

    def digits(self):
        zeros = ["0", "0", "0", "\u0660", "\u06f0", "\u0966", "\u0e50", "\uff10", "\U0001d7ce"]
        def number():
            zero = ord(self.random.choice(zeros))
            return "".join(chr(zero + self.random.randint(0, 9)) for _ in range(self.random.randint(1, 8)))
        return "".join(number() + self.some([" ", "", ".", ",", "-", "x", "½", "²", "Ⅷ", "％", " + "], 1, 1) for _ in range(self.random.randint(1, 4)))

    def contractions(self):
        if self.random.random() < 0.4:  # a quoted word: the pattern cuts 'Tell after 'T
            return " ".join("'" + self.random.choice([str.upper, str.capitalize, str.lower])(self.random.choice(self.words))
                            for _ in range(self.random.randint(1, 5))) + "'"
        return self.some(["I", "they", "Ü", "中", " ", "", "1", "\u0130"], 1, 1) + "".join(
            self.random.choice(CONTRACTION_CASES) + self.some(["", " ", "he", "."], 1, 1) for _ in range(self.random.randint(1, 4)))

    def whole_words(self):
        return "".join(self.random.choice([*UNREACHABLE, " the", " of", ".", " "]) for _ in range(self.random.randint(2, 6)))

    def emoji(self):
        return "".join(self.random.choice(EMOJI) + self.some(["", "", " ", "!", "a"], 1, 1) for _ in range(self.random.randint(1, 3)))

    def with_special(self):
        pieces = []
        for _ in range(self.random.randint(1, 3)):
            mark = self.random.choice(self.special)
            if self.random.random() < 0.15:  # not quite
                cut = self.random.randrange(1, len(mark))
                mark = self.random.choice([mark[:cut], mark[cut:], mark.upper(), mark[:cut] + " " + mark[cut:]])
            pieces.append(self.random.choice(["", " ", "user\n", "text", "e\u0301", "  \n"]) + mark)
        return "".join(pieces) + self.random.choice(["", " ", "\n", "Hello", "\u0301", " 's"])

    def invisible(self):
        return "".join(self.some(["", "a", " ", "word ", "中", "7"], 1, 1) + self.random.choice(INVISIBLE + CONTROL)
                       for _ in range(self.random.randint(1, 4))) + self.some(["", "b", " b"], 1, 1)

    def code(self):
        name = lambda: self.random.choice(self.words) + self.random.choice(["", "_", "_2", "Index", "::", "()"])
        indent = self.random.choice(["", "\t", "  ", "    ", "        ", "\t\t"])
        return indent + name() + self.random.choice([" = ", "=", " += ", "->", ".", "(", "[0] = ", " // ", " == "]) + name() + \
            self.random.choice([";", ";\n", ")", ":\n" + indent + "    pass", " {", "\r\n", ""])

    def repeated(self):
        return self.some([" ", "a", "ab", "-", "=", "\n", "\t", "哈", "0", "!", ".", "\u00a0", "'", "é", "e\u0301", "😀"], 1, 1) * self.random.randint(2, 40)


def corpus():
    """Text to train on: the same kinds of lines from another seed, more English among them."""
    maker = LineMaker(1, training=True)
    for _ in range(12000):
        yield maker.line()
        yield maker.english()


def byte_level(use_regex, **kwargs):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex, **kwargs)


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False), byte_level(False)])


def make_tokenizer(name, lines):
    tokenizer = Tokenizer(models.BPE())
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = {"llama3": split(LLAMA3_PATTERN), "qwen2": split(QWEN2_PATTERN), "gpt2": byte_level(True)}[name]
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=VOCAB_SIZE[name], min_frequency=2, show_progress=False,
                                                             initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    content = json.loads(tokenizer.to_str())
    if name == "llama3":
        content["model"]["ignore_merges"] = True
        for word in UNREACHABLE.values():
            content["model"]["vocab"].setdefault(word, len(content["model"]["vocab"]))
    tokenizer = Tokenizer.from_str(json.dumps(content))
    # GPT-2's end mark is matched in the normalized text, the others' marks in the raw text.
    tokenizer.add_special_tokens([AddedToken(s, normalized=(name == "gpt2"), special=True) for s in SPECIAL[name]])
    tokenizer.add_tokens([AddedToken(s, normalized=False, special=False) for s in NOT_SPECIAL.get(name, [])])
    if name == "llama3":
        bos = SPECIAL[name][0]
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=True),
            processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1",
                                          special_tokens=[(bos, tokenizer.token_to_id(bos))])])
    else:
        tokenizer.post_processor = processors.ByteLevel(add_prefix_space=name != "qwen2", trim_offsets=False, use_regex=name != "qwen2")
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def save_tokenizer(path, tokenizer, old_merges):
    """Write tokenizer.json; older files hold a merge as one string, newer ones as a pair."""
    content = json.loads(tokenizer.to_str())
    if old_merges:
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    assert Tokenizer.from_file(str(path)).to_str() == tokenizer.to_str()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "data" / "tokenizers", help="directory to write to")
    parser.add_argument("--lines", type=int, default=3600, help="number of lines (default: 3600)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    text = list(corpus())
    tokenizers = {}
    for name in SPECIAL:
        tokenizers[name] = make_tokenizer(name, text)
        save_tokenizer(args.out / f"{name}.json", tokenizers[name], old_merges=name != "qwen2")
    tokenizers["needle"] = Tokenizer.from_file(str(NEEDLE / "tokenizer.json"))

    maker = LineMaker(2)
    lines = dict.fromkeys(["", *SPACES, *CONTRACTION_CASES, *NFC_CASES, *EMOJI, *INVISIBLE, *CONTROL, *maker.phrases])
    while len(lines) < args.lines:
        lines[maker.line()] = None
    cuts = random.Random(3)
    n_tokens = dict.fromkeys(tokenizers, 0)
    with (args.out / "lines.jsonl").open("w", encoding="utf-8", newline="\n") as out, \
            (args.out / "decode.jsonl").open("w", encoding="utf-8", newline="\n") as decode_out:
        def write(file, record):
            file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
        for i, line in enumerate(lines):
            record, decoded = {"text": line}, {}
            for name, tokenizer in tokenizers.items():
                ids = tokenizer.encode(line).ids
                record[name] = ids
                n_tokens[name] += len(ids)
                back = tokenizer.decode(ids, skip_special_tokens=True)
                if back != line:
                    decoded[name] = back
                if i % 12 == 0 and len(ids) > 2:  # any run of tokens, characters cut apart included
                    start = cuts.randrange(len(ids) - 1)
                    part = ids[start:start + cuts.randint(1, 9)]
                    write(decode_out, {"tokenizer": name, "ids": part, "decoded": tokenizer.decode(part, skip_special_tokens=False)})
            if decoded:
                record["decoded"] = decoded
            write(out, record)
    for name, tokenizer in tokenizers.items():
        print(f"{name:8} vocabulary {tokenizer.get_vocab_size():5}, {n_tokens[name]} tokens on {len(lines)} lines")


if __name__ == "__main__":
    main()
