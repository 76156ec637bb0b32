"""Whether the setting of the autoencoders that ship is a good one: short runs at several sparsities and objectives.

    python scripts/sweep_shipped.py --corpus train.txt --valid valid.jsonl --out runs/sweep

All runs of a hook point are trained at once on the same activations of the model that ships, each in the two phases
that made the shipped ones. `pareto.json` and `pareto.png` in --out say what each is worth on held-out text. Goes on
where it stopped; an hour on two cores at the default size.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from jaxcircuits.bundle import shipped_bundle
from jaxcircuits.files import read_json
from jaxcircuits.report.tables import print_tables, sweep_table
from jaxcircuits.training.runs import run_sweep
from jaxcircuits.training.settings import SAETraining

OBJECTIVES = {
    "power": {},
    "l1": {"penalty": "l1"},
    "batchtopk": {"activation": "batchtopk"},
    "topk": {"activation": "topk"},
    "jumprelu": {"activation": "jumprelu"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="training text")
    parser.add_argument("--valid", required=True, help="text the runs are judged on")
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"), help="run directory")
    parser.add_argument("--tokens", type=int, default=250_000, help="tokens a run (default 250,000)")
    parser.add_argument("--batch-tokens", type=int, default=SAETraining.batch_tokens)
    parser.add_argument("--l0", type=float, nargs="+", default=[12, 20, 26.5, 40, 60], help="sparsities")
    parser.add_argument("--objective", nargs="+", choices=OBJECTIVES, default=["power", "l1", "batchtopk"])
    parser.add_argument("--hook", nargs="+", help="hook points (default: every mlp.hook_post)")
    args = parser.parse_args()
    base = SAETraining(tokens=args.tokens, batch_tokens=args.batch_tokens)
    runs = {
        f"{objective},l0={l0:g}": replace(base, l0=l0, **OBJECTIVES[objective])
        for objective in args.objective
        for l0 in args.l0
    }
    run_sweep(shipped_bundle(), args.hook, args.corpus, runs, args.out, valid=args.valid, checkpoint_every=50)
    print_tables(sweep_table(read_json(args.out / "pareto.json", "sweep")["points"]))


if __name__ == "__main__":
    main()
