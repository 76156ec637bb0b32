"""Are honest autoencoders taken and misread ones refused? `jaxcircuits.readings` on bundles of trained ones.

    python scripts/check_readings.py [BUNDLE ...]     by default the shipped one

For each autoencoder: what it explains as it was trained; the best other reading, and how much of the unexplained
variance that leaves (at 0.5 and below, an honest one would be refused); and of the readings that are wrong, how many
are refused with the right one named.
"""

import sys

from jaxcircuits import load_bundle, read_corpus
from jaxcircuits.bundle import shipped_bundle
from jaxcircuits.readings import check_readings, other_readings, sample_rows


def main() -> None:
    print(f"{'SAE':60} {'explains':>8} {'L0':>6} {'other':>6} {'left':>5} {'refused':>8}  best other reading")
    for path in sys.argv[1:] or [shipped_bundle()]:
        bundle = load_bundle(path)
        sample = sample_rows(bundle.tokenize, read_corpus(shipped_bundle() / "stories.txt"), bundle.cfg.n_ctx)
        assert sample is not None
        for name, sae in bundle.saes.items():
            others = other_readings(bundle.params, bundle.cfg, sae, *sample)
            wrong = {other.how: read for other, read in others}
            found = check_readings(bundle.params, bundle.cfg, {"": sae, **wrong}, *sample)
            given = found.pop("").given
            best = max((other for other, _ in others), key=lambda other: other.variance_explained)
            # Another hook point of the same value is no misreading.
            same = [how for how, one in found.items() if abs(one.given.mse / given.mse - 1) < 1e-3]
            refused = sum(one.better is not None for one in found.values())
            left = (1 - best.variance_explained) / (1 - given.variance_explained)
            print(
                f"{f'{path}: {name}'[-60:]:60} {given.variance_explained:8.3f} {given.l0:6.1f} "
                f"{best.variance_explained:6.3f} {left:5.2f} {refused:3d} of {len(found) - len(same):2d}  {best.how}",
                flush=True,
            )


if __name__ == "__main__":
    main()
