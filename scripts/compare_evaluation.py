"""Our evaluation figures beside SAELens' on the same autoencoders and tokens, and how far they are apart.

    pip install sae-lens "transformer-lens>=3.9,<4" && python scripts/compare_evaluation.py --rows 24

The autoencoders of a bundle become SAELens' own objects in memory, its model a HookedTransformer; both programs get the
same rows of token ids, of one length, because SAELens has no padding. SAELens runs twice: on every token, and without
special tokens (`exclude_special_tokens`), which here is `BOS(False, False, False)`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch_model import transformer_lens_model

from jaxcircuits import BOS, evaluate, load_bundle, read_corpus
from jaxcircuits.bundle import Bundle, shipped_bundle

FIGURES = {
    "ce_loss_without_sae": "ce_clean",
    "ce_loss_with_sae": "ce_spliced",
    "ce_loss_with_ablation": "ce_zero_ablated",
    "ce_loss_score": "recovery_zero",
    "kl_div_with_sae": "kl_spliced",
    "kl_div_with_ablation": "kl_zero_ablated",
    "kl_div_score": "kl_recovery_zero",
    "l0": "l0",
    "l1": "l1",
    "mse": "mse",
    "explained_variance": "variance_explained",
    "cossim": "cosine",
    "l2_norm_in": "norm_in",
    "l2_norm_out": "norm_out",
    "l2_ratio": "norm_ratio",
    "relative_reconstruction_bias": "reconstruction_bias",
}
"""SAELens' name and ours."""
COLUMNS = {
    "feature_density": "density",
    "encoder_norm": "encoder_norm",
    "encoder_bias": "encoder_bias",
    "encoder_decoder_cosine_sim": "encoder_decoder_cosine",
}
"""The same, one number a feature."""


class _Rows:
    """What SAELens takes its tokens from: the same rows each time, all in one batch."""

    def __init__(self, rows: np.ndarray) -> None:
        import torch

        self._rows = torch.tensor(rows, dtype=torch.long)
        self.context_size = rows.shape[1]
        self.store_batch_size_prompts = len(rows)

    def get_batch_tokens(self, batch_size: int) -> Any:
        """The rows."""
        return self._rows

    def reset_input_dataset(self) -> None:
        """They begin anew by themselves."""


def saelens_sae(bundle: Bundle, name: str) -> Any:
    """An autoencoder of a bundle as one of SAELens'."""
    import torch
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig

    sae = bundle.saes[name]
    kinds = {"relu": (StandardSAE, StandardSAEConfig), "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig)}
    kind, config = kinds[sae.cfg.activation]
    made = kind(config(d_in=sae.cfg.d_in, d_sae=sae.cfg.d_sae, apply_b_dec_to_input=sae.cfg.subtract_b_dec))
    made.cfg.metadata.hook_name = sae.cfg.hook_name
    weights = {k: torch.tensor(np.asarray(w)) for k, w in sae.weights._asdict().items() if w is not None}
    made.load_state_dict(weights)
    return made.eval()


def saelens_figures(bundle: Bundle, model: Any, name: str, rows: np.ndarray, exclude: bool) -> tuple[dict, dict]:
    """SAELens' figures by its names, and its figures of single features."""
    import torch
    from sae_lens.evals import get_eval_everything_config, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler

    with torch.no_grad():
        metrics, features = run_evals(
            saelens_sae(bundle, name),
            _Rows(rows),  # pyright: ignore
            model,
            ActivationScaler(),
            get_eval_everything_config(n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1),
            exclude_special_tokens=[bundle.cfg.bos_token_id] if exclude else False,
        )
    flat = {key: value for group in metrics.values() for key, value in group.items()}
    return {key: flat[key] for key in FIGURES}, {key: np.array(features[key]) for key in COLUMNS}


def compare(bundle: Bundle, unprocessed: Bundle, rows: np.ndarray) -> list[dict[str, Any]]:
    """A record a figure: what, whose, both values, relative difference; of features the largest of any of them."""
    model = transformer_lens_model(bundle.cfg, unprocessed.params).requires_grad_(False)
    records = []
    for exclude in (False, True):
        bos = BOS(*[not exclude] * 3)
        found = evaluate(bundle, ids=list(rows), bos=bos)
        for name in bundle.saes:
            theirs, their_features = saelens_figures(bundle, model, name, rows, exclude)
            mine = found.report["saes"][name] | {"ce_clean": found.report["ce_clean"]}
            where = {"sae": name, "bos": "out" if exclude else "in"}
            for key, value in theirs.items():
                ours = mine[FIGURES[key]]
                records.append({**where, "figure": key, "ours": ours, "theirs": value, "relative": _apart(ours, value)})
            for key, values in their_features.items():
                ours = found.features[name][COLUMNS[key]]
                relative = float(np.abs(ours - values).max() / np.abs(values).max())
                pair = {"ours": float(np.mean(ours)), "theirs": float(np.mean(values))}
                records.append({**where, "figure": f"{key} (any feature)", **pair, "relative": relative})
    return records


def _apart(a: float, b: float) -> float:
    return abs(a - b) / abs(b) if b else abs(a)


def token_rows(bundle: Bundle, texts: Sequence[str], length: int, n: int) -> np.ndarray:
    """Rows of one length, each the beginning of a text, BOS first."""
    rows = [ids[:length] for ids in map(bundle.tokenize, texts) if len(ids) >= length][:n]
    return np.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="default: the weights that ship")
    parser.add_argument("--corpus", default=str(shipped_bundle() / "stories.txt"))
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args()
    bundle, unprocessed = load_bundle(args.bundle), load_bundle(args.bundle, processed=False)
    records = compare(bundle, unprocessed, token_rows(bundle, list(read_corpus(args.corpus)), args.length, args.rows))
    print("| SAE | BOS | SAELens' figure | here | SAELens | relative difference |")
    print("|---|---|---|---:|---:|---:|")
    for r in records:
        print(
            f"| {r['sae']} | {r['bos']} | {r['figure']} | {r['ours']:.6g} | {r['theirs']:.6g} | {r['relative']:.1e} |"
        )
    print(f"\nlargest: {max(r['relative'] for r in records):.1e}")
    if args.out:
        args.out.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()
