"""The gallery: three stories on a bundle, end to end. Writes a directory of figures and the page beside it.

    python scripts/gallery.py --out docs/gallery             # some minutes
    python scripts/gallery.py --quick --out quick/gallery    # few stories, examples and tokens

The page is made of what was computed: features, tokens and numbers are found, none is written down here.
`gallery.json` in the directory has the numbers before they were rounded.
"""

import argparse
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gallery_stories import Story, a_cosine_that_misleads, a_feature_drawn, a_feature_in_a_corpus

from jaxcircuits import Settings, load_bundle, read_corpus
from jaxcircuits.attribution import resolve
from jaxcircuits.bulk import attribute_to_run, read_prompts
from jaxcircuits.bundle import shipped_bundle
from jaxcircuits.files import GALLERY, new_directory, write_bytes, write_json
from jaxcircuits.statistics import without_nan
from jaxcircuits.validation.activity import find_activity
from jaxcircuits.validation.drivers import ablate_drivers
from jaxcircuits.validation.edges import tokenized_stories
from jaxcircuits.validation.predictors import Predictors

SIZES = {False: (200, 50, 512), True: (8, 3, 32)}
"""Stories, examples of the feature, and tokens of a story at most; in full and quick."""

COMPARED = 40
"""Stories whose same-position edges are compared with cosines: millions."""

TITLES = ("A feature that needs earlier words", "Its drivers in a corpus", "A cosine that misleads")

COMMANDS = (
    """jaxcircuits validate edges --feature {feature} --out runs/edges
jaxcircuits graph --prompt {quoted} --leading-to {feature} --conjunctions --out runs/sentence
jaxcircuits view runs/sentence""",
    """jaxcircuits attribute --truncate --positions all --edges none --out runs/stories    # of all features: long
jaxcircuits top runs/stories --drivers-of {feature} --figure drivers.png""",
    """jaxcircuits attribute --truncate --stages --out runs/stages
jaxcircuits top runs/stages --pair {source} {target}""",
)
"""What a reader does by hand to get there."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="default: the weights that ship")
    parser.add_argument("--corpus", help="default: the shipped stories")
    parser.add_argument("--out", type=Path, required=True, help="directory of the figures; the page is OUT.md")
    parser.add_argument("--quick", action="store_true", help="few stories, for a test")
    args = parser.parse_args(argv)
    n, examples, tokens = SIZES[args.quick]

    bundle = load_bundle(args.bundle)
    texts = read_corpus(args.corpus or shipped_bundle() / "stories.txt")
    stories = [ids[:tokens] for ids in tokenized_stories(bundle, texts, n)]
    settings = Settings(positions="all")
    pair = resolve(bundle, settings)
    activity = find_activity(bundle, pair, stories, quiet=args.quick)
    predictors = Predictors(bundle, activity, settings, targets=4)
    drivers = ablate_drivers(bundle, pair, activity, predictors, examples=examples, quiet=args.quick)
    with new_directory(args.out, overwrite=True, kind=GALLERY) as new, tempfile.TemporaryDirectory() as place:
        figures = new / args.out.name  # the links' directory, until it has its place
        figures.mkdir()
        head = min(map(len, stories))  # named targets must exist in every prompt
        write_json(Path(place, "ids.json"), [ids[:head].tolist() for ids in stories])
        prompts = read_prompts(bundle, ids_file=Path(place, "ids.json"))
        asked = replace(settings, min_attribution=0.0)  # of a feature that is off, every edge is zero
        everywhere = [(pos, drivers.feature) for pos in range(1, head)]
        run, _ = attribute_to_run(
            bundle, asked, prompts, Path(place, "run"), targets=everywhere, memory=2**31, quiet=args.quick
        )
        told = (
            a_feature_drawn(bundle, pair, activity, drivers, figures),
            a_feature_in_a_corpus(run, drivers.feature, figures),
            a_cosine_that_misleads(bundle, pair, stories[:COMPARED], figures),
        )
        for figure in figures.iterdir():
            figure.rename(new / figure.name)
        figures.rmdir()
        write_json(new / GALLERY, without_nan({"stories": [story.numbers for story in told]}))
    write_bytes(args.out.with_name(f"{args.out.name}.md"), page(told, args.quick).encode())
    return 0


def page(told: Sequence[Story], quick: bool) -> str:
    """The page in Markdown."""
    options = " --quick" if quick else ""
    parts = [
        "# A gallery\n\nThree questions to the shipped weights, answered on their own stories, end to end. "
        f"`python scripts/gallery.py{options} --out docs/gallery` makes this page, its figures and every number in it."
    ]
    for number, (title, story, commands) in enumerate(zip(TITLES, told, COMMANDS, strict=True), 1):
        by_hand = commands.format(**story.numbers)
        parts.append(f"## {number}. {title}\n{story.text}\nBy hand:\n\n```bash\n{by_hand}\n```")
    paragraphs = "\n\n".join(parts).split("\n\n")
    return "\n\n".join(p.strip() if p.strip()[:1] in ("|", "!", "`", "#") else _filled(p) for p in paragraphs) + "\n"


def _filled(paragraph: str) -> str:
    return textwrap.fill(paragraph.strip(), 120, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    raise SystemExit(main())
