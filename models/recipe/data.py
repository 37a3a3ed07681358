"""Tokenizer and token streams.

  python models/recipe/data.py TEXT_DIR WORK_DIR     TEXT_DIR as corpus.sh train writes it

trains the tokenizer (byte-level BPE, vocabulary 2048, GPT-2's split) and writes one file of
uint16 token numbers per domain, documents in a random but fixed order, each ended by
<|endoftext|>."""
import pathlib
import random
import sys

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB = 2048
EOT = "<|endoftext|>"
# Share of the training rows taken from each domain.
MIX = {"bible": .36, "python": .14, "headers": .10, "manpages": .11, "french": .09,
       "german": .09, "metamath": .11}
MIX_BIBLE = {"bible": .50, "python": .11, "headers": .07, "manpages": .09, "french": .07,
             "german": .07, "metamath": .09}  # later part of the training


def documents(folder):
    return [f.read_text(errors="replace") for f in sorted(folder.glob("*.txt"))]


def train_tokenizer(docs):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=[EOT], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    sample = []
    for domain, share in MIX.items():  # text in the proportions of the mix
        left = int(share * 9e6)
        for d in random.Random(1).sample(docs[domain], len(docs[domain])):
            if left <= 0:
                break
            sample.append(d[:left])
            left -= len(d)
    tok.train_from_iterator(sample, trainer)
    return tok


def main(text, work):
    text, work = pathlib.Path(text), pathlib.Path(work)
    work.mkdir(parents=True, exist_ok=True)
    docs = {d: documents(text / d) for d in MIX}
    if not (work / "tokenizer.json").exists():
        train_tokenizer(docs).save(str(work / "tokenizer.json"))
    tok = Tokenizer.from_file(str(work / "tokenizer.json"))
    eot = tok.token_to_id(EOT)
    for domain in MIX:
        order = docs[domain]
        random.Random(2).shuffle(order)
        ids = []
        for e in tok.encode_batch(order):
            ids += e.ids + [eot]
        np.array(ids, np.uint16).tofile(work / f"{domain}.bin")
        print(f"{domain:9} {len(order):5} documents {len(ids):9} tokens "
              f"{sum(len(d.encode()) for d in order) / len(ids):.2f} bytes a token")


class Stream:
    """Batches of rows of length n + 1; every model sees the same ones in the same order."""

    def __init__(self, work, seed):
        self.data = {d: np.fromfile(f"{work}/{d}.bin", np.uint16) for d in MIX}
        self.left = {d: np.zeros(0, np.int64) for d in MIX}  # starts of rows not yet used
        self.rng, self.n = np.random.default_rng(seed), 0

    def batch(self, tokens, n, mix=MIX):
        if n != self.n:
            self.n, self.left = n, {d: np.zeros(0, np.int64) for d in MIX}
        rows = []
        for d in self.rng.choice(list(mix), tokens // n, p=list(mix.values())):
            a = self.data[d]
            if not len(self.left[d]):  # next epoch: cut elsewhere, in another order
                self.left[d] = self.rng.permutation(
                    np.arange(self.rng.integers(n), len(a) - n - 1, n))
            i, self.left[d] = self.left[d][-1], self.left[d][:-1]
            rows.append(a[i:i + n + 1])
        return np.stack(rows).astype(np.int64)

    def state(self):
        return {"left": self.left, "n": self.n, "rng": self.rng.bit_generator.state}

    def restore(self, s):
        self.left, self.n, self.rng.bit_generator.state = s["left"], s["n"], s["rng"]


if __name__ == "__main__":
    main(*sys.argv[1:3])
