// What is shown: which edges pass the sliders, and what is left of them around a selected node.
const ALWAYS = 10; // edges each way that a selected node keeps whatever the sliders say
const EVERY = 31; // the second slider's last place: no limit

class Selection {
  constructor(graph, shown, hidden) {
    this.graph = graph;
    this.count = shown;
    this.by = data.by;
    this.most = EVERY;
    this.hidden = new Set(hidden);
    this.reach = "direct";
    this.node = null;
    this.update();
  }

  sees(node) {
    return !this.hidden.has(this.graph.kindOf(node));
  }

  // Recomputes `passing` (edges by the sliders), `edges` (those drawn) and `near` (nodes of a selection, else null).
  update() {
    const { graph, count, most } = this;
    const visible = Uint8Array.from(graph.kind, (_, node) => this.sees(node));
    const taken = new Uint32Array(graph.size);
    this.passing = [];
    this.threshold = 0;
    this.available = 0;
    const influence = this.by === "influence";
    for (const edge of influence ? graph.byInfluence : graph.byWeight) {
      if (!visible[graph.source[edge]] || !visible[graph.target[edge]]) continue;
      if (++this.available > count) continue;
      this.threshold = influence ? graph.influence[edge] : Math.abs(graph.weight[edge]);
      if (most < EVERY && taken[graph.target[edge]]++ >= most) continue;
      this.passing.push(edge);
    }
    this.passing.sort((a, b) => a - b); // strongest first
    this.edges = this.node === null ? this.passing : this.around(this.node, visible);
    this.near = this.node === null ? null : new Set([this.node]);
    if (this.near) for (const edge of this.edges) this.near.add(graph.source[edge]).add(graph.target[edge]);
    this.linked = new Set();
    for (const edge of this.edges) this.linked.add(graph.source[edge]).add(graph.target[edge]);
  }

  around(node, visible) {
    const { graph } = this;
    const seen = (edge) => visible[graph.source[edge]] && visible[graph.target[edge]];
    const found = new Set([graph.into, graph.outOf].flatMap((way) => way[node].filter(seen).slice(0, ALWAYS)));
    const before = new Set([node]);
    const after = new Set([node]);
    if (this.reach === "paths") {
      // Nodes are numbered so that edges lead upwards: one pass each way finds every path.
      const byTarget = d3.sort(this.passing, (edge) => -graph.target[edge]);
      for (const edge of byTarget) if (before.has(graph.target[edge])) before.add(graph.source[edge]);
      const bySource = d3.sort(this.passing, (edge) => graph.source[edge]);
      for (const edge of bySource) if (after.has(graph.source[edge])) after.add(graph.target[edge]);
    }
    for (const edge of this.passing) {
      if (before.has(graph.target[edge]) || after.has(graph.source[edge])) found.add(edge);
    }
    return Array.from(found).sort((a, b) => a - b);
  }
}
