// Pan, zoom, hover and click on the drawing.
const REACH = 12; // pixels within which a node is hit
const NEAR = 4; // and an edge

// Height along an edge's curve by share of its width, and the other way round: the curve is the same for all edges.
const CURVE = d3.range(0, 1.0001, 1 / 256).map((t) => [1.5 * t * (1 - t) + t ** 3, 3 * t ** 2 - 2 * t ** 3]);
const HEIGHTS = CURVE.map(([height]) => height);

class Pointer {
  constructor(painter, onHover, onClick) {
    Object.assign(this, { painter, onHover });
    this.canvas = painter.nodes.canvas;
    this.zoom = d3.zoom().scaleExtent([0.1, 20]).clickDistance(4).on("zoom", ({ transform }) => {
      painter.transform = transform;
      this.tree = null;
      onHover(null);
      painter.request();
    });
    d3.select(this.canvas)
      .call(this.zoom)
      .on("dblclick.zoom", () => this.fit())
      .on("pointermove.hover", (event) => onHover(this.hit(event), event))
      .on("pointerleave.hover", (event) => onHover(null, event))
      .on("click.select", (event) => onClick(this.hit(event)?.node ?? null));
  }

  fit() {
    const { width, height } = this.painter;
    const whole = this.painter.whole();
    this.zoom.scaleExtent([0.6 * whole.k, 20]).extent([[0, 0], [width, height]]);
    this.zoom.translateExtent([[-0.5 * width, -0.5 * height], [this.painter.world.width + 0.5 * width, this.painter.world.height + 0.5 * height]]);
    d3.select(this.canvas).call(this.zoom.transform, whole);
  }

  // The node or edge under the pointer.
  hit(event) {
    const [x, y] = d3.pointer(event, this.canvas);
    const { painter } = this;
    const { near } = painter.selection;
    if (!this.tree || this.treeOf !== painter.world) {
      const nodes = painter.graph.order.filter((node) => painter.world.place[node]);
      this.tree = d3.quadtree(nodes, (node) => painter.at(node)[0], (node) => painter.at(node)[1]);
      this.treeOf = painter.world;
    }
    const node = this.tree.find(x, y, REACH);
    if (node !== undefined && (!near || near.has(node) || Math.hypot(painter.at(node)[0] - x, painter.at(node)[1] - y) < 6)) {
      return { node };
    }
    const edge = this.edgeAt(x, y);
    return edge === null ? null : { edge };
  }

  edgeAt(x, y) {
    const { graph, selection, points } = this.painter;
    let [found, least] = [null, NEAR];
    for (const edge of selection.edges) {
      const [fromX, fromY] = points[graph.source[edge]];
      const [toX, toY] = points[graph.target[edge]];
      const height = (y - fromY) / (toY - fromY);
      if (!(height > 0 && height < 1)) continue;
      const i = Math.max(1, d3.bisectLeft(HEIGHTS, height));
      const across = CURVE[i][1] * (toX - fromX);
      const slope = ((CURVE[i][1] - CURVE[i - 1][1]) * (toX - fromX)) / ((CURVE[i][0] - CURVE[i - 1][0]) * (toY - fromY));
      const distance = Math.abs(fromX + across - x) / Math.hypot(1, slope);
      if (distance < least) [found, least] = [edge, distance];
    }
    return found;
  }
}
