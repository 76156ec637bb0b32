"""The rules of the graph JSON that circuit-tracer's and Neuronpedia's viewers read, checked offline.

Source: written anew from a description of Neuronpedia's `graph-schema.json` (draft 07) and of circuit-tracer 0.4.
"""

import math
from collections.abc import Mapping
from typing import Any

FEATURE_TYPES = (
    "embedding",
    "bias",
    "mlp reconstruction error",
    "cross layer transcoder",
    "logit",
    "lorsa",
    "lorsa error",
)
"""What the viewers know as kinds of nodes."""

_TEXT, _NUMBER, _NULL = str, (int, float), type(None)
_RULES: dict[str, dict[str, tuple[Any, ...]]] = {
    "metadata": {"slug": (_TEXT,), "scan": (_TEXT,), "prompt_tokens": (list,), "prompt": (_TEXT,)},
    "qParams": {},
    "nodes": {
        "node_id": (_TEXT,),
        "feature": (int, _NULL),
        "layer": (_TEXT, int),
        "ctx_idx": (int,),
        "feature_type": (_TEXT,),
        "jsNodeId": (_TEXT,),
        "clerp": (_TEXT,),
    },
    "links": {"source": (_TEXT,), "target": (_TEXT,), "weight": (*_NUMBER,)},
}
_OPTIONAL: dict[str, dict[str, tuple[Any, ...]]] = {
    "metadata": {
        "node_threshold": (*_NUMBER, _NULL),
        "transcoder_list": (list,),
        "schema_version": (int,),
        "info": (dict,),
        "generation_settings": (dict,),
        "pruning_settings": (dict,),
        "feature_details": (dict,),
    },
    "qParams": {n: (list,) for n in ("pinnedIds", "supernodes")}
    | {n: (_TEXT,) for n in ("linkType", "clickedId", "sg_pos")},
    "nodes": {
        "token_prob": (*_NUMBER,),
        "is_target_logit": (bool,),
        "run_idx": (int,),
        "reverse_ctx_idx": (int,),
        "influence": (*_NUMBER, _NULL),
        "activation": (*_NUMBER, _NULL),
        "qk_tracing_results": (dict,),
    },
    "links": {},
}
_SHOWN = 20


def schema_problems(content: Mapping[str, Any]) -> list[str]:
    """What an object breaks of the viewers' published schema, and of what they take for granted; empty where nothing.

    Fields and their types; ids that are unique; links between nodes that exist; finite weights; positions inside the
    prompt; known types of nodes. Written anew from the schema's description; at most 20 sentences.
    """
    found: list[str] = []
    for name, kind in (("metadata", dict), ("qParams", dict), ("nodes", list), ("links", list)):
        if not isinstance(content.get(name), kind):
            return [f"{name}: expected {'a list' if kind is list else 'an object'}, got {content.get(name)!r:.40}"]
        entries = content[name] if kind is list else [content[name]]
        for number, entry in enumerate(entries):
            found += _field_problems(entry, name, f"{name}[{number}]" if kind is list else name)
            if len(found) >= _SHOWN:
                return found[:_SHOWN]
    if found:
        return found
    return _meaning_problems(content)[:_SHOWN]


def _field_problems(entry: Any, name: str, where: str) -> list[str]:
    if not isinstance(entry, Mapping):
        return [f"{where}: expected an object, got {entry!r:.40}"]
    found = [f"{where}: {field} is missing" for field in _RULES[name] if field not in entry]
    known = _RULES[name] | _OPTIONAL[name]
    for field, value in entry.items():
        if field not in known:
            found.append(f"{where}: unknown field {field}")
        elif not isinstance(value, known[field]) or (isinstance(value, bool) and bool not in known[field]):
            found.append(f"{where}: {field} has the wrong type, {value!r:.40}")
        elif isinstance(value, float) and not math.isfinite(value):
            found.append(f"{where}: {field} must be finite, got {value}")
    return found


def _meaning_problems(content: Mapping[str, Any]) -> list[str]:
    found, ids = [], set()
    length = len(content["metadata"]["prompt_tokens"])
    for node in content["nodes"]:
        if node["node_id"] in ids:
            found.append(f"the id {node['node_id']} belongs to two nodes")
        ids.add(node["node_id"])
        if node["feature_type"] not in FEATURE_TYPES:
            found.append(f"node {node['node_id']}: unknown feature_type {node['feature_type']!r}")
        if not 0 <= node["ctx_idx"] < length:
            found.append(f"node {node['node_id']}: ctx_idx {node['ctx_idx']} lies outside the prompt's {length} tokens")
    pairs = set()
    for link in content["links"]:
        pair = link["source"], link["target"]
        found += [f"a link names {end}, which is no node" for end in pair if end not in ids]
        if pair in pairs or pair[0] == pair[1]:
            found.append(f"the link {pair[0]} → {pair[1]} is there twice, or leads nowhere")
        pairs.add(pair)
    found += [f"pinned {name} is no node" for name in content["qParams"].get("pinnedIds", []) if name not in ids]
    return found
