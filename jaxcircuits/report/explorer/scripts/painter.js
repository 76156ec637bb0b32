// Three canvases: the ground; edges, painted strongest first in slices so that a large graph never blocks; nodes.
const SLICE = 12; // milliseconds
const LEVELS = 24; // of width and opacity
const LYING = 30; // height of the tokens at the bottom
const UPRIGHT = 84; // and where columns are too narrow for them
const FONT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', sans-serif";

// Corners of each kind's shape, in radii; the others are round.
const box = (width, height) => [[-width, -height], [width, -height], [width, height], [-width, height]];
const CORNERS = {
  token: box(1, 1),
  position: box(0.85, 0.85),
  logit: box(1.6, 0.9),
  error: [[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]],
  bias: [[-1.1, 0.8], [1.1, 0.8], [0, -1]],
  gelu: [[-1.1, -0.8], [1.1, -0.8], [0, 1]],
};

class Painter {
  constructor(graph, selection, stage) {
    Object.assign(this, { graph, selection, stage });
    [this.ground, this.edges, this.nodes] = ["ground", "edges", "nodes"].map((id) => document.getElementById(id).getContext("2d"));
    this.transform = d3.zoomIdentity;
    this.hovered = null;
    this.painted = 0;
    this.strongest = Math.abs(graph.weight[0] ?? 1);
    this.readColours();
  }

  readColours() {
    const probe = document.createElement("i");
    document.body.append(probe);
    this.colour = {};
    for (const name of ["paper", "band", "ink", "muted", "rule", "node", "positive", "negative"]) {
      probe.style.color = `var(--${name})`;
      this.colour[name] = getComputedStyle(probe).color;
    }
    probe.remove();
  }

  resize() {
    const { width, height } = this.stage.getBoundingClientRect();
    this.width = width;
    this.height = height;
    this.density = window.devicePixelRatio || 1;
    for (const context of [this.ground, this.edges, this.nodes]) {
      context.canvas.width = Math.round(width * this.density);
      context.canvas.height = Math.round(height * this.density);
    }
    this.nodes.font = FONT;
    this.gutter = width < 600 ? 100 : 112; // for names of rows
    for (this.bottom of [LYING, UPRIGHT]) {
      this.world = layout(this.graph, this.selection, width - this.gutter - 12, height - this.bottom - 8, this.nodes);
      if (!this.upright(this.whole().k)) break;
    }
  }

  // Zoom at which everything is seen.
  whole() {
    const [width, height] = [this.width - this.gutter - 12, this.height - this.bottom - 8];
    const k = Math.min(1, width / this.world.width, height / this.world.height);
    const x = this.gutter + (width - k * this.world.width) / 2;
    return d3.zoomIdentity.translate(x, 4 + (height - k * this.world.height) / 2).scale(k);
  }

  at(node) {
    return this.transform.apply(this.world.place[node]);
  }

  radius(node) {
    const zoom = Math.min(1.7, Math.max(0.55, this.transform.k ** 0.6));
    if (this.graph.kindOf(node) !== "feature") return 4 * zoom;
    return (2.8 + 5 * Math.sqrt(this.graph.importance[node] / this.graph.largestFeature)) * zoom;
  }

  // Paints at the next frame, once however often it is asked for.
  request() {
    cancelAnimationFrame(this.next);
    this.painted = 0;
    this.points = this.world.place.map((point) => this.transform.apply(point));
    this.next = requestAnimationFrame(() => this.paint());
  }

  paint() {
    this.paintGround();
    this.start(this.edges);
    this.edges.globalCompositeOperation = "destination-over";
    this.slice();
    this.paintNodes();
  }

  start(context) {
    context.setTransform(this.density, 0, 0, this.density, 0, 0);
    context.globalCompositeOperation = "source-over";
    context.globalAlpha = 1;
    context.clearRect(0, 0, this.width, this.height);
  }

  paintGround() {
    const { ground: context, world, transform, colour } = this;
    this.start(context);
    context.fillStyle = colour.band;
    for (const column of world.columns) {
      if (column.pos % 2) context.fillRect(transform.applyX(column.x), 0, column.width * transform.k, this.height);
    }
    context.strokeStyle = colour.rule;
    context.lineWidth = 1;
    context.beginPath();
    for (const row of world.rows.slice(0, -1)) {
      const y = Math.round(transform.applyY(row.y)) + 0.5;
      context.moveTo(0, y);
      context.lineTo(this.width, y);
    }
    context.stroke();
  }

  slice() {
    const { edges } = this.selection;
    const end = performance.now() + SLICE;
    while (this.painted < edges.length && performance.now() < end) {
      const next = Math.min(edges.length, this.painted + 128);
      this.strokes(this.edges, edges, this.painted, next);
      this.painted = next;
    }
    if (this.painted < edges.length) this.next = requestAnimationFrame(() => this.slice());
  }

  // Strokes a run of edges; neighbours of one style share a path.
  strokes(context, edges, from, to, bold = 1) {
    const { graph, points, colour } = this;
    const crowd = Math.min(1, Math.max(0.25, (600 / edges.length) ** 0.45));
    let style = null;
    for (let i = from; i < to; i++) {
      const edge = edges[i];
      const level = Math.ceil(LEVELS * Math.sqrt(Math.abs(graph.weight[edge]) / this.strongest));
      const wanted = graph.weight[edge] < 0 ? -level : level;
      if (wanted !== style) {
        if (style !== null) context.stroke();
        style = wanted;
        const share = level / LEVELS;
        context.strokeStyle = wanted < 0 ? colour.negative : colour.positive;
        context.globalAlpha = Math.min(1, (0.16 + 0.8 * share) * Math.max(crowd, share) * bold);
        context.lineWidth = 0.5 + 3.2 * share * Math.sqrt(crowd);
        context.beginPath();
      }
      const [x, y] = points[graph.source[edge]];
      const [toX, toY] = points[graph.target[edge]];
      const middle = (y + toY) / 2;
      context.moveTo(x, y);
      context.bezierCurveTo(x, middle, toX, middle, toX, toY);
    }
    if (style !== null) context.stroke();
  }

  paintNodes() {
    const { nodes: context, graph, selection, colour } = this;
    this.start(context);
    const { near, linked } = selection;
    const focus = this.hovered?.node ?? null;
    if (focus !== null) {
      const mine = selection.edges.filter((edge) => graph.source[edge] === focus || graph.target[edge] === focus);
      this.strokes(context, mine, 0, mine.length, 3);
    }
    if (this.hovered?.edge !== undefined) this.strokes(context, [this.hovered.edge], 0, 1, 4);
    const drawn = graph.order.filter((node) => selection.sees(node));
    for (const node of drawn.toReversed()) {
      const lit = near ? near.has(node) : linked.has(node) || graph.kindOf(node) === "token";
      context.globalAlpha = lit || node === focus ? 1 : 0.22;
      this.shape(context, node);
    }
    this.arcs(context);
    context.globalAlpha = 1;
    for (const node of [selection.node, focus]) {
      if (node === null || !this.points[node]) continue;
      context.strokeStyle = colour.ink;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(...this.points[node], this.radius(node) + 4, 0, 2 * Math.PI);
      context.stroke();
    }
    this.names(drawn);
    this.rowNames();
    this.strip();
  }

  // Pairs of drivers of the selected node: AND-like solid, OR-like dashed, the wider the larger.
  arcs(context) {
    const pairs = this.graph.pairsOf(this.selection.node).filter(([, a, b]) => this.selection.sees(a) && this.selection.sees(b));
    context.strokeStyle = this.colour.ink;
    for (const [, a, b, interaction] of pairs) {
      const [[x, y], [toX, toY]] = [this.points[a], this.points[b]];
      const share = Math.abs(interaction / pairs[0][3]);
      context.globalAlpha = 0.35 + 0.5 * share;
      context.lineWidth = 0.8 + 1.4 * share;
      context.setLineDash(interaction < 0 ? [5, 3] : []);
      context.beginPath();
      context.moveTo(x, y);
      context.quadraticCurveTo((x + toX) / 2, Math.max(y, toY) + 26, toX, toY);
      context.stroke();
    }
    context.setLineDash([]);
  }

  shape(context, node) {
    const kind = this.graph.kindOf(node);
    const [x, y] = this.points[node];
    const r = this.radius(node);
    context.beginPath();
    if (kind in CORNERS) for (const [right, down] of CORNERS[kind]) context.lineTo(x + r * right, y + r * down);
    else context.arc(x, y, r, 0, 2 * Math.PI);
    context.closePath();
    const solid = ["feature", "token", "logit"].includes(kind);
    context.fillStyle = solid ? this.colour.node : this.colour.paper;
    context.strokeStyle = solid ? this.colour.paper : this.colour.node;
    context.lineWidth = solid ? 1 : 1.3;
    context.fill();
    context.stroke();
  }

  // Names of nodes where there is room, the most important first.
  names(drawn) {
    const { nodes: context, graph, selection, points, colour } = this;
    const { near, linked, node: chosen } = selection;
    const taken = [];
    context.font = `11px ${FONT.slice(5)}`;
    const free = (box) => taken.every((other) => box[0] > other[2] || box[2] < other[0] || box[1] > other[3] || box[3] < other[1]);
    const boxOf = (node, grow) => {
      const [x, y] = points[node];
      const r = this.radius(node) + grow;
      return [x - r, y - r, x + r, y + r];
    };
    const wanted = drawn.filter((node) => ["feature", "logit"].includes(graph.kindOf(node)) && (near ?? linked).has(node));
    for (const node of drawn) if ((near ?? linked).has(node)) taken.push(boxOf(node, -2));
    if (chosen !== null) wanted.sort((a, b) => (b === chosen) - (a === chosen));
    for (const node of wanted.slice(0, 250)) {
      const [x, y] = points[node];
      if (x < 0 || y < 0 || x > this.width || y > this.height - this.bottom) continue;
      const text = this.cut(graph.title(node), 110);
      const width = context.measureText(text).width;
      const r = this.radius(node);
      const beside = [x + r + 3, y - 7, x + r + 5 + width, y + 7];
      const spots = graph.kindOf(node) === "logit"
        ? [[x - r - width - 9, y - 7, x - r - 7, y + 7], beside.map((at, i) => (i % 2 ? at : at + 3))]
        : [[x - width / 2, y + r + 1, x + width / 2, y + r + 14], [x - width / 2, y - r - 15, x + width / 2, y - r - 2], beside];
      const spot = spots.find((box) => box[0] > 0 && box[2] < this.width && free(box)) ?? (node === chosen && spots[0]);
      if (!spot) continue;
      taken.push(spot);
      context.textBaseline = "middle";
      context.textAlign = "left";
      context.lineWidth = 3;
      context.lineJoin = "round";
      context.strokeStyle = colour.paper;
      context.fillStyle = colour.ink;
      context.strokeText(text, spot[0], (spot[1] + spot[3]) / 2);
      context.fillText(text, spot[0], (spot[1] + spot[3]) / 2);
    }
  }

  cut(text, room) {
    const { nodes: context } = this;
    if (context.measureText(text).width <= room) return text;
    let length = text.length;
    while (length > 1 && context.measureText(`${text.slice(0, length)}…`).width > room) length--;
    return `${text.slice(0, length)}…`;
  }

  rowNames() {
    const { nodes: context, world, transform, colour } = this;
    context.fillStyle = colour.paper;
    context.globalAlpha = 0.88;
    context.fillRect(0, 0, this.gutter - 8, this.height);
    context.globalAlpha = 1;
    context.textBaseline = "middle";
    context.textAlign = "left";
    for (const row of world.rows) {
      const y = transform.applyY(row.y + row.height / 2);
      const twoLines = row.detail && row.height * transform.k > 36;
      context.fillStyle = colour.ink;
      context.font = `600 ${FONT}`;
      context.fillText(this.cut(row.title, this.gutter - 20), 14, twoLines ? y - 8 : y);
      context.fillStyle = colour.muted;
      context.font = `11px ${FONT.slice(5)}`;
      if (twoLines) context.fillText(this.cut(row.detail, this.gutter - 20), 14, y + 8);
    }
  }

  // Whether tokens do not fit beside each other at a zoom.
  upright(k) {
    this.nodes.font = FONT;
    const special = /^(<\|.*\|>|everywhere)$/; // may be cut
    return this.world.columns.some(({ text, width }) => !special.test(text) && this.nodes.measureText(text).width > width * k);
  }

  // The tokens along the bottom: they stay in view.
  strip() {
    const { nodes: context, world, transform, colour, graph, selection } = this;
    const upright = this.bottom > LYING && this.upright(transform.k);
    context.textBaseline = "middle";
    context.fillStyle = colour.paper;
    context.fillRect(0, this.height - this.bottom, this.width, this.bottom);
    let free = -Infinity;
    const here = selection.node === null ? -1 : graph.pos[selection.node];
    for (const column of world.columns) {
      const x = transform.applyX(column.x + column.width / 2);
      const room = column.width * transform.k;
      if (x < this.gutter - 10 || x > this.width || (upright && x < free)) continue;
      context.fillStyle = column.pos < 0 ? colour.muted : colour.ink;
      context.font = column.pos >= 0 && column.pos === here ? `600 ${FONT}` : FONT;
      context.save();
      context.translate(x, upright ? this.height - 6 : this.height - this.bottom / 2);
      if (upright) context.rotate(-Math.PI / 2);
      context.textAlign = upright ? "left" : "center";
      context.fillText(this.cut(column.text, upright ? UPRIGHT - 10 : room - 2), 0, 0);
      context.restore();
      free = x + 13;
    }
  }
}
