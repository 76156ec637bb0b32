"""An n-gram baseline on the same tokens as the language model: interpolated modified Kneser-Ney.

    python scripts/ngram_baseline.py --bundle weights --corpus train.txt --valid valid.jsonl

Source: S. Chen and J. Goodman, An Empirical Study of Smoothing Techniques for Language Modeling (1999).
"""

import argparse
import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from jaxcircuits import load_bundle, read_corpus
from jaxcircuits.evaluation.lm import rates
from jaxcircuits.rows import bundle_rows


class KneserNey:
    """Interpolated modified Kneser-Ney on rows of token ids that begin with BOS.

    An n-gram is one integer, its tokens as digits, oldest first. All counts of an order lie in a sorted table.
    """

    def __init__(self, rows: Sequence[Int[np.ndarray, "_row"]], d_vocab: int, order: int) -> None:
        if d_vocab**order >= 2**63:
            raise ValueError(f"{order}-grams over {d_vocab} tokens do not fit 63 bits; use a lower order")
        self.d_vocab, self.order = d_vocab, order
        self._tables = []
        bos = int(rows[0][0])
        higher = None
        for n in range(order, 0, -1):
            grams = np.concatenate([_grams(row, n, d_vocab) for row in rows])
            keys, counts = np.unique(grams, return_counts=True)
            if higher is not None:
                # Lower orders count what can stand before an n-gram, except at the start, where nothing can.
                after, kinds = np.unique(higher % d_vocab**n, return_counts=True)
                at = np.minimum(np.searchsorted(after, keys), len(after) - 1)
                counts = np.where(keys // d_vocab ** (n - 1) == bos, counts, np.where(after[at] == keys, kinds[at], 0))
                if n == 1:  # BOS is never predicted; the id as end of text is, and has its predecessors
                    counts = np.where(after[at] == keys, kinds[at], 0)
            kept = counts > 0
            higher = keys
            self._tables.append(_Table(keys[kept], counts[kept], d_vocab))
        self._tables.reverse()

    def nll(self, row: Int[np.ndarray, "row"]) -> Float[np.ndarray, "pos"]:
        """Negative log-likelihood, in nats, of every token after BOS."""
        probability = np.full(len(row) - 1, 1.0 / self.d_vocab)
        for n, table in enumerate(self._tables, 1):
            grams = _grams(row, n, self.d_vocab)[1 if n == 1 else 0 :]
            late = slice(len(probability) - len(grams), None)
            probability[late] = table.interpolate(grams, probability[late])
        return -np.log(probability)


class _Table:
    """The counts of one order, with what smoothing needs of them."""

    def __init__(self, keys: Int[np.ndarray, "n"], counts: Int[np.ndarray, "n"], d_vocab: int) -> None:
        self._keys, self._counts, self._d_vocab = keys, counts, d_vocab
        n1, n2, n3, n4 = (max(1, int((counts == k).sum())) for k in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        discounts = np.clip([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3], 0, [0, 1, 2, 3])
        self._discount = discounts[np.minimum(counts, 3)]
        self._contexts, start = np.unique(keys // d_vocab, return_index=True)
        self._totals = np.add.reduceat(counts, start)
        self._left = np.add.reduceat(self._discount, start)

    def interpolate(self, grams: Int[np.ndarray, "pos"], lower: Float[np.ndarray, "pos"]) -> Float[np.ndarray, "pos"]:
        """Probabilities of the last tokens of n-grams, given those of the next lower order."""
        at = np.minimum(np.searchsorted(self._keys, grams), len(self._keys) - 1)
        kept = np.where(self._keys[at] == grams, self._counts[at] - self._discount[at], 0.0)
        contexts = grams // self._d_vocab
        at = np.minimum(np.searchsorted(self._contexts, contexts), len(self._contexts) - 1)
        return np.where(self._contexts[at] == contexts, (kept + self._left[at] * lower) / self._totals[at], lower)


def _grams(row: Int[np.ndarray, "row"], n: int, d_vocab: int) -> Int[np.ndarray, "grams"]:
    windows = np.lib.stride_tricks.sliding_window_view(row.astype(np.int64), n) if len(row) >= n else np.zeros((0, n))
    return (windows @ d_vocab ** np.arange(n - 1, -1, -1)).astype(np.int64)


def evaluate_ngram(bundle, train: Sequence[str], valid: Sequence[str], order: int) -> dict[str, float | int]:
    """Nats a token and bits a character of the n-gram model on the rows that the language model is scored on."""
    model = KneserNey(bundle_rows(bundle, train), bundle.cfg.d_vocab, order)
    rows = bundle_rows(bundle, valid)
    return {
        "order": order,
        **rates(float(sum(model.nll(row).sum() for row in rows)), sum(map(len, rows)) - len(rows), valid),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--valid", required=True)
    parser.add_argument("--orders", type=int, nargs="+", default=[3, 4, 5])
    args = parser.parse_args()
    bundle, train, valid = load_bundle(args.bundle), list(read_corpus(args.corpus)), list(read_corpus(args.valid))
    for order in args.orders:
        print(json.dumps(evaluate_ngram(bundle, train, valid, order)), flush=True)


if __name__ == "__main__":
    main()
