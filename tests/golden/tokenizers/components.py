#!/usr/bin/env python3
"""Makes components.json: every component in many settings over a small vocabulary, with the reference's ids.

usage: components.py [--count TEXTS] [--seed N] > components.json      (pip: tokenizers 0.23.3)
The vocabulary has a token for every pair of its characters, so that a cut between two words changes the ids.
"""
import argparse, itertools, json, random
from tokenizers import Tokenizer

CHARS = list("abA1 -.▁é²\n") + ["中", "\u0301"]
BYTES = [chr(b) for b in range(0x21, 0x7F)] + [chr(b) for b in range(0xA1, 0xAD)] + [chr(b) for b in range(0xAE, 0x100)] \
    + [chr(0x100 + i) for i in range(68)]


def model(chars, pairs, **more):
    vocab = ["<unk>"] + chars + ["".join(p) for p in pairs] + more.pop("extra", [])
    return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, **more,
            "vocab": {t: i for i, t in enumerate(dict.fromkeys(vocab))}, "merges": [list(p) for p in pairs]}


def plain(**more):
    return model(CHARS, list(itertools.product(CHARS, CHARS)), **more)


def byte_level(**more):
    some = "Ġab1A-.ĊÃ©"
    return model(BYTES, list(itertools.product(some, some)), **more)


def token(content, **flags):
    base = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=False)
    return {"id": 0, "content": content, **base, **flags}


def regex(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(key, *parts):
    return {"type": "Sequence", key: list(parts)}


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
BEHAVIORS = ["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
PATTERNS = [r"\p{N}{1,2}+", r"a{2}?b", r"[ab&&[^b]]+", r"[a[1-9]]+|\s+(?!\S)", r"[^a[1]]+", r"^[aA]|b$", r"(?i:a)\b", r"\h+", r"[^\S\n]+",
            r"[[:alpha:]]+|\W", r"(?<=a)[\W\d]", r"(?>a+)b?|(?m:1.)", r"x*", r"\p{^L}+", r"\P{L}", r"[\u0030-\x{39}\-.]+", r"(ab|1)*?-", r"a{,2}"]


def variants():
    def v(name, model, **parts):
        return name, {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                      "pre_tokenizer": None, "post_processor": None, "decoder": None, **parts, "model": model}
    for b in BEHAVIORS:
        for invert in (False, True):
            yield v(f"Split {b} {invert}", plain(), pre_tokenizer=regex(r"[a1 ]", b, invert))
        yield v(f"Split String {b}", plain(), pre_tokenizer=regex("-", b, kind="String"))
        yield v(f"Punctuation {b}", plain(), pre_tokenizer={"type": "Punctuation", "behavior": b})
    for p in PATTERNS:
        yield v(f"pattern {p}", plain(), pre_tokenizer=regex(p))
    for each in (False, True):
        yield v(f"Digits {each}", plain(), pre_tokenizer={"type": "Digits", "individual_digits": each})
    for scheme, split in itertools.product(("always", "first", "never"), (False, True)):
        yield v(f"Metaspace {scheme} {split}", plain(), added_tokens=[token("1-1")],
                pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split})
    yield v("Metaspace old", plain(), pre_tokenizer={"type": "Metaspace", "replacement": "▁", "add_prefix_space": True})
    for name in ("Whitespace", "WhitespaceSplit"):
        yield v(name, plain(), pre_tokenizer={"type": name})
    for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"):
        yield v(name, plain(), normalizer={"type": name})
    for left, right in ((True, True), (True, False), (False, True)):
        yield v(f"Strip {left} {right}", plain(), added_tokens=[token("1-1")], pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"},
                normalizer={"type": "Strip", "strip_left": left, "strip_right": right})
    yield v("Replace regex", plain(), normalizer={"type": "Replace", "pattern": {"Regex": r"\s+|1?"}, "content": "-"})
    yield v("Prepend and Replace", plain(unk_token="<unk>"), added_tokens=[token("1-1", normalized=True), token("b b", normalized=True), token("--")],
            normalizer=sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}))
    yield v("ByteLevel normalizer", byte_level(), normalizer=sequence("normalizers", {"type": "NFC"}, {"type": "ByteLevel"}))
    for prefix, use in itertools.product((False, True), (False, True)):
        yield v(f"ByteLevel {prefix} {use}", byte_level(), added_tokens=[token("1-1")],
                pre_tokenizer=dict(LEVEL, add_prefix_space=prefix, use_regex=use))
    yield v("Split after ByteLevel", byte_level(), pre_tokenizer=sequence("pretokenizers", LEVEL, regex("Ġ", "MergedWithNext", kind="String")))
    yield v("nested Sequence", byte_level(), pre_tokenizer=sequence("pretokenizers", sequence("pretokenizers", regex(r"\p{N}"), regex(r"\s", "MergedWithNext")), LEVEL))
    for flag in ("lstrip", "rstrip", "single_word", "normalized", "special"):
        yield v(f"added {flag}", plain(), normalizer={"type": "Lowercase"}, added_tokens=[token("ab", **{flag: True}), token("A1", **{flag: True}), token("ab1")])
    yield v("added overlap", plain(), added_tokens=[token("ab", rstrip=True), token(" -", lstrip=True), token("a"), token("ab-", special=True), token("ab-")])
    some = [c for c in CHARS if c not in "é²中\u0301"]
    few = model(some, list(itertools.product("ab", "ab")), unk_token="<unk>")
    for fuse in (False, True):
        yield v(f"unk fuse {fuse}", dict(few, fuse_unk=fuse))
    yield v("no unk", dict(few, unk_token=None))
    for known in (256, 0xC4):
        more = ["<0x%02X>" % b for b in range(known)]
        yield v(f"byte_fallback {known}", model(some, [("a", "b"), ("<0xC3>", "<0xA9>")] if known == 256 else [("a", "b")], unk_token="<unk>", byte_fallback=True,
                                                 fuse_unk=True, extra=more + ["<0xC3><0xA9>"]))
    yield v("ignore_merges", model(CHARS, [("a", "b")], ignore_merges=True, extra=["1-1", "a b", "  "]), pre_tokenizer=regex(r"\s|\p{L}+"))
    affixed = ["a", "b", "##a", "##b", "a##", "1", "##1", "a</w>", "##a</w>", "##b</w>", "1</w>", "##1</w>", "ab", "ab</w>", "##ab</w>", "-"]
    yield v("affixes", {**few, "vocab": {t: i for i, t in enumerate(["<unk>"] + affixed)}, "merges": [["a", "##b"], ["a", "##b</w>"], ["##a", "##b</w>"]],
                        "continuing_subword_prefix": "##", "end_of_word_suffix": "</w>", "unk_token": "<unk>"}, pre_tokenizer={"type": "WhitespaceSplit"})
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1, 2], "tokens": ["a", "b"]}, "</s>": {"id": "</s>", "ids": [3], "tokens": ["A"]}}}
    yield v("template", plain(), post_processor=template)
    yield v("templates", plain(), post_processor=sequence("processors", LEVEL, template))
    yield v("roberta", plain(), post_processor={"type": "RobertaProcessing", "sep": ["b", 2], "cls": ["a", 1], "trim_offsets": True, "add_prefix_space": False})
    yield v("bert", plain(), post_processor={"type": "BertProcessing", "sep": ["b", 2], "cls": ["a", 1]})


def texts(rng, count):
    parts = CHARS + ["ab", "ab1", "1-1", " ", " ", "aaaa", "b b", "<unk>", "\r\n", "İ", "ﬁ", "\u0316\u0301", "ſ", "－", "_", "①", "\u200d", "\xa0", "AB", "A1", "--", "ab-", "\U00011938"]
    yield from ("", " ", "a", "ab ab", " 1-1 ab")
    for _ in range(count - 5):
        yield "".join(rng.choice(parts) for _ in range(rng.randint(1, 14)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    out = []
    for number, (name, spec) in enumerate(variants()):
        size = len(spec["model"]["vocab"])
        missing = list(dict.fromkeys(t["content"] for t in spec["added_tokens"] if t["content"] not in spec["model"]["vocab"]))
        for t in spec["added_tokens"]:
            t["id"] = spec["model"]["vocab"].get(t["content"], size + missing.index(t["content"]) if t["content"] in missing else 0)
        reference = Tokenizer.from_str(json.dumps(spec))
        rng = random.Random(args.seed * 1000 + number)
        cases = [{"text": t, "ids": reference.encode(t, add_special_tokens=False).ids, "ids_with_special": reference.encode(t).ids}
                 for t in texts(rng, args.count)]
        out.append({"name": name, "tokenizer": json.dumps(spec, ensure_ascii=False), "cases": cases})
    print("[" + ",\n".join(json.dumps(o, ensure_ascii=False) for o in out) + "]")


main()
