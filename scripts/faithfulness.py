"""How faithful circuits are that are chosen in different ways: the tables of docs/graph.md.

    python scripts/faithfulness.py --out runs/faithfulness

Sentences of the shipped stories, one a story, each cut to a length drawn at random, so that answers differ; three
fills; circuits of features and of edges; the logit of the likeliest token. Tables go to the screen and to `tables.md`,
every number to a directory a fill.
"""

import argparse
import re
import time
from itertools import islice
from pathlib import Path

import numpy as np

from jaxcircuits import load_bundle
from jaxcircuits.bundle import Bundle, shipped_bundle
from jaxcircuits.corpus import read_corpus
from jaxcircuits.graph import Faithfulness, Question, faithfulness
from jaxcircuits.graph.faithfulness import FILLS, UNITS
from jaxcircuits.report.graph_faithfulness import methods_of, write_faithfulness

AREAS = {
    "gap": "area of the distance from the model, prompt by prompt (gap)",
    "cmd": "area of the distance from the model, of all prompts together (cmd)",
}


def questions(bundle: Bundle, prompts: int, shortest: int, longest: int, seed: int) -> list[Question]:
    """The beginning of a sentence within each of that many stories; openings are much alike."""
    rng, found = np.random.default_rng(seed), []
    for story in islice(read_corpus(shipped_bundle() / "stories.txt"), prompts):
        length = int(rng.integers(shortest, longest + 1))
        sentences = [bundle.tokenize(sentence) for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", story)]
        long = [ids for ids in sentences[1:] if len(ids) > length] or sentences
        found.append(Question(long[int(rng.integers(len(long)))][:length]))
    return found


def area_table(measured: dict[str, Faithfulness], unit: str, area: str) -> str:
    """Markdown: a row a way to choose, and under each fill its area and how far the first way is ahead."""
    first, *_ = methods = methods_of(next(iter(measured.values())))
    lines = [f"| {unit}: {AREAS[area]} | " + " | ".join(f"{fill} | Δ" for fill in measured) + " |"]
    lines.append("|---|" + "---:|" * 2 * len(measured))
    for method in methods:
        cells = []
        for found in measured.values():
            value, ahead = found.areas(unit, method)[area], found.against(unit, first, method)[area]
            cells += [f"{value.value:.4f}", "" if method == first else f"{ahead.low:+.4f} … {ahead.high:+.4f}"]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def size_table(measured: dict[str, Faithfulness], unit: str) -> str:
    """Markdown: at how many sizes the first way's gap is smaller, larger, or neither by its interval."""
    first, *others = methods_of(next(iter(measured.values())))
    lines = [f"| {unit}: {first} at equal size, against | " + " | ".join(measured) + " |"]
    lines.append("|---|" + "---|" * len(measured))
    for method in others:
        cells = []
        for found in measured.values():
            inside = [e for s, e in zip(found.shares, found.gaps(unit, first, method), strict=True) if 0 < s < 1]
            closer = [e.high < 0 for e in inside]
            farther = [e.low > 0 for e in inside]
            cells.append(
                f"{sum(closer)} closer, {sum(farther)} farther, {len(inside) - sum(closer) - sum(farther)} open"
            )
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="default: the weights that ship")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--lengths", type=int, nargs=2, default=(8, 12), metavar=("SHORTEST", "LONGEST"))
    parser.add_argument("--fills", nargs="+", choices=FILLS, default=list(FILLS))
    parser.add_argument("--units", nargs="+", choices=UNITS, default=list(UNITS))
    parser.add_argument("--metric", default="logit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    bundle, out, start = load_bundle(args.bundle), Path(args.out), time.perf_counter()
    shortest, longest = args.lengths
    asked = questions(bundle, args.prompts, shortest, longest, args.seed)
    measured = {}
    for fill in args.fills:
        found = faithfulness(bundle, asked, metric=args.metric, fill=fill, units=args.units, seed=args.seed, quiet=True)
        write_faithfulness(found, out / fill, overwrite=True)
        measured[fill] = found
        print(f"{fill}: {time.perf_counter() - start:.0f} s", flush=True)
        report(measured, args, time.perf_counter() - start)


def report(measured: dict[str, Faithfulness], args: argparse.Namespace, seconds: float) -> None:
    """Prints the tables of what has been measured, and writes them."""
    tables = [area_table(measured, unit, area) for area in AREAS for unit in args.units]
    tables += [size_table(measured, unit) for unit in args.units]
    sizes = [int(n) for found in measured.values() for unit in args.units for n in found.sizes[unit]]
    note = (
        f"{args.prompts} prompts of {args.lengths[0]} to {args.lengths[1]} tokens, {min(sizes)} to {max(sizes)} "
        f"{' or '.join(args.units)} each, {seconds:.0f} s. Δ: the first way minus this, 95 % "
        "interval over prompts; below 0, the first is better."
    )
    text = "\n\n".join([*tables, note]) + "\n"
    Path(args.out, "tables.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
