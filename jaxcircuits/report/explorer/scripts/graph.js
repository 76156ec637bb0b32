// The graph as the page carries it. Edges come strongest first, so an edge's number is its rank.
const data = JSON.parse(document.getElementById("data").textContent);

const format = d3.format(".3~g");
const signed = d3.format("+.3~g");
const whole = d3.format(",");
const readable = (text) => text.replace(/\r?\n/g, "⏎").replace(/\t/g, "⇥");

class Graph {
  constructor({ tokens, saes, rows, kinds, nodes, edges, cards, labels, pairs }) {
    Object.assign(this, { tokens, saes, rows, kinds, cards, labels, pairs });
    Object.assign(this, nodes); // a column each: kind, sae, row, pos, feature, name, short, place, importance, value, probability, cut, unexplained
    this.source = Uint32Array.from(edges.source);
    this.target = Uint32Array.from(edges.target);
    this.weight = Float64Array.from(edges.weight);
    this.influence = edges.influence;
    this.byWeight = d3.range(this.weight.length);
    this.byInfluence = d3.sort(this.byWeight, (edge) => -this.influence[edge]);
    this.parts = Object.entries(edges.parts);
    this.size = this.kind.length;
    this.into = grouped(this.target, this.size);
    this.outOf = grouped(this.source, this.size);
    this.order = d3.range(this.size).sort((a, b) => this.importance[b] - this.importance[a] || a - b);
    this.largest = d3.max(this.importance) || 1;
    this.largestFeature = d3.max(this.order, (node) => (this.kindOf(node) === "feature" ? this.importance[node] : 0)) || 1;
  }

  kindOf(node) {
    return this.kinds[this.kind[node]];
  }

  cardOf(node) {
    return this.kindOf(node) === "feature" ? this.cards[`${this.sae[node]}:${this.feature[node]}`] : undefined;
  }

  // A feature's given label; failing that, the token at which it is strongest, in quotation marks.
  labelOf(node) {
    if (this.kindOf(node) !== "feature") return "";
    const peak = this.cardOf(node)?.peak;
    return readable(this.labels[`${this.sae[node]}:${this.feature[node]}`] ?? (peak ? `“${peak}”` : ""));
  }

  title(node) {
    const label = this.labelOf(node);
    return readable(this.short[node]) + (label && ` ${label}`);
  }

  // The first pairs of drivers of a node: [target, a, b, interaction], the largest first.
  pairsOf(node) {
    return this.pairs.filter(([target]) => target === node).slice(0, 8);
  }

  // What a search looks through.
  words(node) {
    return `${this.title(node)} ${this.place[node]} ${this.name[node]}`.toLowerCase();
  }
}

// For each end, its edges in order of rank.
function grouped(ends, size) {
  const lists = Array.from({ length: size }, () => []);
  ends.forEach((end, edge) => lists[end].push(edge));
  return lists;
}
