"""What people take for the effect of a source on a target, as predictions of what ablating the source does."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.attribution.edges import Columns
from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.validation.activity import Activity

PREDICTORS = {
    "exact": "minus exact gradient × activation",
    "frozen": "the same, attention patterns and norm scales held, GELUs replaced by their tangents",
    "integrated": "the same, the gradient's mean while all sources rise from zero together",
    "virtual_weight": "minus decoder direction → W_out → W_in → encoder direction × activation, at any offset",
    "cosine": "minus the cosine of these directions × activation, at any offset",
    "co_activation": "minus correlation of the two activations at that offset over the stories × activation",
    "random": "a random number",
}
"""Every predictor and what it says that ablation adds to the target. Of weights and correlations the sign is kept."""

LABELS = {name: name.replace("virtual_", "virtual ").replace("co_", "co-") for name in PREDICTORS}
"""Their names for people."""

KEY = ("target_pos", "target_feature", "source_pos", "source_feature")


class Predictors:
    """Every prediction for every active source of some targets; holds what all stories share.

    Args:
        bundle: Model and autoencoders.
        activity: Of the stories.
        settings: Ends and positions.
        targets: How many are asked for at a time.

    Raises:
        InputError: Weights alone say nothing of the pair, so there is nothing to compare with.
    """

    def __init__(self, bundle: Bundle, activity: Activity, settings: Settings, targets: int) -> None:
        self.activity = activity
        derivatives = ("exact", "frozen", "integrated")
        self.engines = {
            name: Engine(bundle, replace(settings, derivative=name, completeness=False)) for name in derivatives
        }
        exact = self.engines["exact"]
        if exact.tables.products is None:
            raise InputError(
                "cosines of weights are what attributions are compared with, so the SAEs must sit on mlp.hook_post of "
                f"adjacent layers, got {exact.problem.source_hook} and {exact.problem.target_hook}; name two others."
            )
        # Each length is some more programs to compile, of which a job this short has too many already.
        lengths = np.quantile([len(ids) for ids in activity.stories], (0.5, 0.8, 1), method="higher").tolist()
        some = list(enumerate(activity.stories[:4]))
        for engine in self.engines.values():
            plan = engine.make_plan(some, [(1, feature) for feature in range(targets)], lengths)
            shapes = tuple(replace(shape, batch=1, sequences_at_once=1) for shape in plan.shapes)
            engine.plan = replace(plan, shapes=shapes)  # each story has targets of its own
        self.directions = np.asarray(exact.tables.writes), np.asarray(exact.tables.products.reads)
        self._norms = (exact.tables.products.writes_norm, exact.tables.products.reads_norm)

    def padded(self, story: int) -> int:
        """The length that a story is padded to."""
        plan = self.engines["exact"].plan
        assert plan is not None
        return plan.shape(len(self.activity.stories[story])).length

    def virtual_weight(
        self, source: Int[np.ndarray, "edge"], target: Int[np.ndarray, "edge"]
    ) -> Float[np.ndarray, "edge"]:
        """Product of what sources write and targets read, on processed weights."""
        writes, reads = self.directions
        return (writes[source].astype(np.float64) * reads[target]).sum(1)

    def cosine(self, source: Int[np.ndarray, "edge"], target: Int[np.ndarray, "edge"]) -> Float[np.ndarray, "edge"]:
        """The same product, normalised; 0 where a direction is none."""
        size = self._norms[0][source] * self._norms[1][target]
        return self.virtual_weight(source, target) / np.where(size > 0, size, np.inf)

    def cosines(self, sources: slice) -> Float[np.ndarray, "_source d_sae_target"]:
        """Cosines of some sources with every target."""
        writes, reads = self.directions
        size = self._norms[0][sources, None] * self._norms[1]
        return writes[sources] @ reads.T / np.where(size > 0, size, np.inf)

    def attributions(
        self,
        story: int,
        targets: Int[np.ndarray, "target 2"],
        names: Sequence[str] = ("exact", "frozen", "integrated"),
    ) -> Columns:
        """Edges from every active source to some targets of a story, with a column of attributions for each derivative.

        Edges without a path, whose exact derivative is zero, are left out: no predictor gets credit for them.
        """
        prompts = [(story, self.activity.stories[story])]
        named = [(int(pos), int(feature)) for pos, feature in targets]
        exact, *others = (self.engines[name].run(prompts, named)[0] for name in names)
        columns: Columns = {name: exact[name] for name in (*KEY, "source_act", "target_act", "gradient")}
        columns["exact"] = exact["attribution"]
        for name, edges in zip(names[1:], others, strict=True):
            columns[name] = _matched(edges, exact)
        kept = (columns["gradient"] != 0) & np.all([np.isfinite(columns[name]) for name in names], axis=0)
        return {name: values[kept] for name, values in columns.items()}

    def predictions(self, edges: Columns, rng: np.random.Generator) -> Columns:
        """What each of `PREDICTORS` says that ablation adds to the target, for edges of `attributions`."""
        source, target, act = edges["source_feature"], edges["target_feature"], edges["source_act"].astype(np.float64)
        offsets = edges["target_pos"] - edges["source_pos"]
        together = np.array(
            [self.activity.correlation(*map(int, e)) for e in zip(source, target, offsets, strict=True)]
        )
        return {
            **{name: -edges[name].astype(np.float64) for name in self.engines},
            "virtual_weight": -self.virtual_weight(source, target) * act,
            "cosine": -self.cosine(source, target) * act,
            "co_activation": -together.reshape(len(act)) * act,
            "random": rng.standard_normal(len(act)),
        }


def _matched(edges: Columns, exact: Columns) -> Float[np.ndarray, "n"]:
    """Attributions in the order of other edges; NaN where rounding made a source active in one run alone."""
    rows, wanted = (np.stack([e[name] for name in KEY], axis=1) for e in (edges, exact))
    if np.array_equal(rows, wanted):
        return edges["attribution"]
    at = {tuple(row): i for i, row in enumerate(rows.tolist())}
    index = np.array([at.get(tuple(row), -1) for row in wanted.tolist()], np.int64)
    return np.where(index >= 0, edges["attribution"][index], np.nan)
