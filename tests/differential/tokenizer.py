#!/usr/bin/env python3
"""Random texts through `steelyard tokenize` and through the reference library (pip: tokenizers).

usage: tokenizer.py [--count N] [--seed N] [--program FILE] TOKENIZER.json...
Prints every difference, and per tokenizer how many texts were compared; exit 1 on a difference.
"""
import argparse, json, os, random, subprocess, sys, tempfile
from tokenizers import Tokenizer

SPACES = " \t\n\r\x0b\x0c\x85\xa0\u1680\u180e\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff"
BLOCKS = [(0x20, 0x7E), (0xA0, 0x17F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0xDFF),
          (0xE00, 0xFFF), (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x2BFF), (0x3000, 0x30FF),
          (0x3400, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFDFF), (0xFE00, 0xFFFF), (0x10000, 0x1FFFF),
          (0x1D100, 0x1D7FF), (0x1F300, 0x1FAFF), (0x20000, 0x323AF), (0xE0000, 0xE01EF), (0, 0x1F)]
WORDS = ["the", "The", "HELLO", "camelCase", "don't", "I'LL", "we've", "it's", "IT'S", "\u017f's", "x86", "3.14", "12345",
         "2024-01-01", "http://a.b/c?d=e", "foo_bar", "<div>", "</p>", "&amp;", "/* c */", "日本語", "ひらがな", "カタカナ",
         "中文", "한국어", "Привет", "Ελλάδα", "עברית", "العربية", "हिन्दी", "ไทย", "é", "e\u0301", "n\u0303\u0323", "ﬁ", "½", "²", "①",
         "👩‍👩‍👧‍👦", "🇫🇷", "👍🏽", "😀", "...", "!!!", "---", "\r\n", "\n\n", "'", "’s", "``", "\\", "{}", "[]", "()", "<0x0A>", "▁", "Ġ", "Ċ",
         "def f(x):\n    return x", "\t\tif", "  ", "    ", "\u0b95\u0bcd\u0bb7", "K", "ẞ", "ß", "İ", "ı", "Å", "\u1100\u1161\u11a8"]


def scalar(low, high, rng):
    while True:
        point = rng.randint(low, high)
        if not 0xD800 <= point < 0xE000:
            return chr(point)


def part(rng, added):
    kind = rng.randrange(10)
    if kind == 0:
        return scalar(0, 0x10FFFF, rng)
    if kind <= 2:
        block = rng.choice(BLOCKS)
        return "".join(scalar(*block, rng) for _ in range(rng.randint(1, 8)))
    if kind == 3:
        return "".join(rng.choice(SPACES + "    \n\n") for _ in range(rng.randint(1, 6)))
    if kind == 4 and added:
        return rng.choice(added)
    if kind == 5 and rng.random() < 0.1:
        return rng.choice(["a", " ", "\n", "1", "=", "é", "あ", "A", "\u0301", "\u0316\u0301"]) * rng.randint(20, 400)
    if kind == 6:
        return str(rng.randrange(10 ** rng.randint(1, 12)))
    if kind == 7:
        return "".join(rng.choice("aAbBsStTlLdD'’ .,-_/\n") for _ in range(rng.randint(1, 12)))
    return rng.choice(WORDS) + rng.choice(["", " ", ""])


def texts(count, seed, added):
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(part(rng, added) for _ in range(rng.randint(0, 25)))


def ours(program, model, folder, names, flags):
    out = subprocess.run([program, "tokenize", model, *names, *flags], cwd=folder, capture_output=True, text=True)
    if out.returncode:
        sys.exit(out.stderr)
    return [[int(x) for x in line.split()] for line in out.stdout.split("\n")[:-1]]


def compare(program, model, count, seed):
    reference = Tokenizer.from_file(model)
    reference.no_truncation(), reference.no_padding()
    added = [t["content"] for t in json.load(open(model))["added_tokens"]]
    added += [t.strip(" ") + " " for t in added] + [t[:-1] for t in added] + [" " + t for t in added]
    docs = list(texts(count, seed, added))
    different = 0
    for base in range(0, len(docs), 1000):
        with tempfile.TemporaryDirectory() as folder:
            batch = docs[base:base + 1000]
            for i, text in enumerate(batch):
                open(os.path.join(folder, str(i)), "wb").write(text.encode())
            for flags in ([], ["--special"]):
                got = ours(program, model, folder, [str(i) for i in range(len(batch))], flags)
                for text, ids in zip(batch, got):
                    want = reference.encode(text, add_special_tokens=bool(flags)).ids
                    if ids != want:
                        different += 1
                        if different <= 5:
                            at = next((i for i, (a, b) in enumerate(zip(ids, want)) if a != b), min(len(ids), len(want)))
                            print(f"{model}: {text!r}\n  at {at}: got {ids[at:at + 8]} expected {want[at:at + 8]}",
                                  [reference.id_to_token(x) for x in want[at:at + 8]])
    print(f"{model}: {len(docs)} texts, {different} differences (with and without special tokens)")
    return different


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--program", default="build/steelyard")
    parser.add_argument("models", nargs="+")
    args = parser.parse_args()
    program = os.path.abspath(args.program)
    sys.exit(any([compare(program, os.path.abspath(m), args.count, args.seed) for m in args.models]))


main()
