"""Reproduces everything in weights/: language model, autoencoders, stories, evaluation. Goes on where it stopped.

    python scripts/train_shipped.py --corpus train.txt --valid valid.jsonl --runs runs --out weights

About an hour and a half on two cores. The two `jaxcircuits train` commands do the same as the first two steps. With
`--lm weights` the language model that is there stays, and its autoencoders are trained on it as it is stored.
"""

import argparse
import json
from pathlib import Path

from ngram_baseline import evaluate_ngram

from jaxcircuits import load_bundle, read_corpus, save_bundle
from jaxcircuits.corpus import END_OF_TEXT
from jaxcircuits.evaluation import evaluate, evaluate_lm
from jaxcircuits.files import write_bytes, write_json
from jaxcircuits.generation import sample_stories
from jaxcircuits.training.runs import run_lm, run_sae
from jaxcircuits.training.settings import LMTraining, SAETraining

COMMANDS = (
    "jaxcircuits train lm --corpus train.txt --out runs/lm",
    "jaxcircuits train sae --bundle weights --corpus train.txt --activation batchtopk --out runs/sae",
)
AUTOENCODERS = SAETraining(activation="batchtopk")
DATA = {
    "name": "TinyStories (roneneldan/TinyStories)",
    "paper": "R. Eldan and Y. Li, TinyStories (2023), arXiv:2305.07759",
    "license": "CDLA-Sharing-1.0",
}
FIRST = 220
"""Texts at the head of the validation split that are also scored on their own: prose like the training text's."""
STORIES, SEED, TEMPERATURE, MAX_TOKENS = 200, 0, 0.8, 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="training text")
    parser.add_argument("--valid", required=True, help="text for evaluation")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="run directories")
    parser.add_argument("--out", type=Path, default=Path("weights"), help="where bundle, stories and evaluation go")
    parser.add_argument("--lm", type=Path, help="a bundle whose language model stays")
    args = parser.parse_args()
    lm = args.lm or run_lm(args.corpus, LMTraining(), args.runs / "lm", source={"data": DATA, "command": COMMANDS[0]})
    sae = run_sae(lm, None, args.corpus, AUTOENCODERS, args.runs / "sae", source={"command": COMMANDS[1]})
    ship(sae, args.out)
    if args.lm is None:
        write_stories(args.out)
    write_evaluation(args.out, args.corpus, args.valid)


def ship(run: Path, out: Path) -> None:
    """Puts a run's bundle where the package finds it, beside what else is there."""
    bundle = load_bundle(run, processed=False)
    origin = {k: v for k, v in bundle.manifest.items() if k not in ("schema", "jaxcircuits", "sha256")}
    with_names = out.with_name(f".{out.name}.new")
    save_bundle(
        with_names,
        bundle.cfg,
        bundle.params,
        bundle.saes,
        bundle.tokenizer,
        source=origin,
        dtype="float16",
        overwrite=True,
    )
    for file in sorted(p for p in with_names.rglob("*") if p.is_file()):
        target = out / file.relative_to(with_names)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    for directory in sorted((p for p in with_names.rglob("*")), reverse=True):
        directory.rmdir()
    with_names.rmdir()


def write_stories(out: Path) -> None:
    """Samples the default corpus from the model that ships."""
    # A few texts do not end within MAX_TOKENS; enough are sampled to leave them out.
    stories = sample_stories(
        load_bundle(out), STORIES * 6 // 5, seed=SEED, temperature=TEMPERATURE, max_tokens=MAX_TOKENS
    )[:STORIES]
    write_bytes(out / "stories.txt", f"\n{END_OF_TEXT}\n".join(stories).encode() + b"\n")


def write_evaluation(out: Path, corpus: str, valid: str) -> None:
    """Evaluates the weights as they ship on held-out text, beside n-gram models of the same training text."""
    bundle, texts = load_bundle(out), list(read_corpus(valid))
    train = list(read_corpus(corpus))
    report = {
        "text": Path(valid).name,
        "conventions": "every token scored, end of text included; splicing and ablation cover BOS, "
        "activation statistics leave it out; float32 on the stored float16 weights",
        "lm": evaluate_lm(bundle, texts),
        "lm_first_texts": evaluate_lm(bundle, texts[:FIRST]),
        "ngram_kneser_ney": [evaluate_ngram(bundle, train, texts, order) for order in (3, 4, 5)],
        **evaluate(bundle, texts, quiet=False).report,
        "stories": {"n": STORIES, "seed": SEED, "temperature": TEMPERATURE, "max_tokens": MAX_TOKENS},
    }
    write_json(out / "evaluation.json", report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
