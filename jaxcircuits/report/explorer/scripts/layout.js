// Where nodes are: a column a token, a row a layer; within a cell the most important first, in lines of a brick pattern.
const PITCH = 20; // between nodes, at zoom 1
const SHAPES = [2.4, 1.2, 0.7, 0.4]; // of a cell, width by height: the one is taken at which everything is largest

function layout(graph, selection, width, height, context) {
  const cells = new Map();
  for (const node of graph.order) {
    if (!selection.sees(node)) continue;
    const key = `${graph.row[node]} ${graph.pos[node]}`;
    if (!cells.has(key)) cells.set(key, { row: graph.row[node], pos: graph.pos[node], nodes: [] });
    cells.get(key).nodes.push(node);
  }
  const first = d3.min(cells.values(), (cell) => Math.min(0, cell.pos)) ?? 0; // -1: what has no position
  const texts = d3.range(first, graph.tokens.length).map((pos) => (pos < 0 ? "everywhere" : readable(graph.tokens[pos]).trim() || "␣"));
  const least = texts.map((text) => Math.max(34, 14 + Math.min(110, context.measureText(text).width)));

  const measured = SHAPES.map((shape) => {
    const columns = texts.map((text, i) => ({ pos: i + first, text, width: least[i] }));
    const rows = graph.rows.map((row) => ({ ...row, height: 46 }));
    for (const cell of cells.values()) {
      const column = columns[cell.pos - first];
      column.width = Math.max(column.width, acrossOf(graph, cell, shape) * PITCH + 16);
    }
    for (const cell of cells.values()) {
      const room = Math.floor((columns[cell.pos - first].width - 12) / PITCH);
      const most = Math.min(room, acrossOf(graph, cell, Math.max(shape, 1.2)));
      const lines = Math.ceil(cell.nodes.length / Math.max(1, most));
      rows[cell.row].height = Math.max(rows[cell.row].height, lines * PITCH + 26);
    }
    const zoom = Math.min(1, width / d3.sum(columns, (column) => column.width), height / d3.sum(rows, (row) => row.height));
    return { columns, rows, zoom };
  });
  const { columns, rows, zoom } = d3.greatest(measured, (one) => one.zoom);
  const world = { columns, rows, place: [] };
  world.width = stretched(columns, "width", width / zoom);
  world.height = stretched(rows, "height", height / zoom);
  let x = 0;
  for (const column of columns) [column.x, x] = [x, x + column.width];
  let y = world.height;
  for (const row of rows) [row.y, y] = [y - row.height, y - row.height];

  for (const cell of cells.values()) {
    const column = columns[cell.pos - first];
    const row = rows[cell.row];
    const most = Math.floor((row.height - 18) / PITCH); // lines that there is room for
    const widest = Math.max(1, Math.floor((column.width - 12) / PITCH));
    const across = Math.min(widest, Math.max(Math.ceil(cell.nodes.length / most), acrossOf(graph, cell, 1.2)));
    const lines = Math.ceil(cell.nodes.length / across);
    const even = Math.ceil(cell.nodes.length / lines);
    const pitch = Math.min(1.7 * PITCH, (column.width - 12) / (even + (lines > 1 ? 0.5 : 0)));
    const step = Math.min(1.7 * PITCH, (row.height - 18) / lines);
    cell.nodes.forEach((node, i) => {
      const line = Math.floor(i / even);
      const inLine = Math.min(even, cell.nodes.length - line * even);
      const brick = lines > 1 && even > 1 ? (line % 2 ? 0.25 : -0.25) : 0;
      world.place[node] = [
        column.x + column.width / 2 + ((i % even) - (inLine - 1) / 2 + brick) * pitch,
        row.y + row.height / 2 + (line - (lines - 1) / 2) * step,
      ];
    });
  }
  return world;
}

// Nodes beside each other in a cell of some shape; logits stand one a line, their names beside them.
function acrossOf(graph, cell, shape) {
  const { length } = cell.nodes;
  return graph.kindOf(cell.nodes[0]) === "logit" ? 1 : Math.max(Math.min(2, length), Math.ceil(Math.sqrt(length * shape)));
}

// Widens columns or rows to the room there is, each in proportion; returns what they then take.
function stretched(parts, key, room) {
  const total = d3.sum(parts, (part) => part[key]);
  const factor = Math.max(1, room / total);
  for (const part of parts) part[key] *= factor;
  return total * factor;
}
