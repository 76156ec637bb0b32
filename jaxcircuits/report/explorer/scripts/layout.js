// Where nodes are: a column a token, a row a layer; within a cell the most important first, in lines of a brick pattern.
const PITCH = 20; // between nodes, at zoom 1

function layout(graph, selection, width, height, context) {
  const cells = new Map();
  for (const node of graph.order) {
    if (!selection.sees(node)) continue;
    const key = `${graph.row[node]} ${graph.pos[node]}`;
    if (!cells.has(key)) cells.set(key, { row: graph.row[node], pos: graph.pos[node], nodes: [] });
    cells.get(key).nodes.push(node);
  }
  const named = (cell) => graph.kindOf(cell.nodes[0]) === "logit"; // one a line, its name beside it
  const without = Array.from(cells.values()).some((cell) => cell.pos < 0);
  const columns = d3.range(without ? -1 : 0, graph.tokens.length).map((pos) => {
    const text = pos < 0 ? "everywhere" : readable(graph.tokens[pos]).trim() || "␣";
    return { pos, text, width: Math.max(34, 14 + Math.min(110, context.measureText(text).width)) };
  });
  const column = (pos) => columns[pos + (without ? 1 : 0)];
  for (const cell of cells.values()) {
    const across = named(cell) ? 1 : Math.ceil(Math.sqrt(cell.nodes.length * 1.2));
    column(cell.pos).width = Math.max(column(cell.pos).width, across * PITCH + 16);
  }
  const stretched = (parts, key, room) => {
    const total = d3.sum(parts, (part) => part[key]);
    const factor = Math.max(1, room / total);
    for (const part of parts) part[key] *= factor;
    return total * factor;
  };
  const worldWidth = stretched(columns, "width", width);
  let x = 0;
  for (const each of columns) [each.x, x] = [x, x + each.width];

  const rows = graph.rows.map((row) => ({ ...row, height: 46 }));
  const place = [];
  for (const cell of cells.values()) {
    const room = column(cell.pos).width - 12;
    const most = named(cell) ? 1 : Math.max(1, Math.floor(room / PITCH));
    cell.lines = Math.ceil(cell.nodes.length / most);
    cell.across = Math.ceil(cell.nodes.length / cell.lines);
    rows[cell.row].height = Math.max(rows[cell.row].height, cell.lines * PITCH + 26);
  }
  const scale = Math.min(1, width / worldWidth); // at which the whole width is seen
  const worldHeight = stretched(rows, "height", height / scale);
  let y = worldHeight;
  for (const row of rows) [row.y, y] = [y - row.height, y - row.height];

  for (const cell of cells.values()) {
    const { x, width } = column(cell.pos);
    const row = rows[cell.row];
    const pitch = Math.min(1.7 * PITCH, (width - 12) / (cell.across + (cell.lines > 1 ? 0.5 : 0)));
    const step = Math.min(1.6 * PITCH, (row.height - 14) / cell.lines);
    cell.nodes.forEach((node, i) => {
      const line = Math.floor(i / cell.across);
      const inLine = Math.min(cell.across, cell.nodes.length - line * cell.across);
      const brick = cell.lines > 1 && !named(cell) ? (line % 2 ? 0.25 : -0.25) : 0;
      place[node] = [
        x + width / 2 + ((i % cell.across) - (inLine - 1) / 2 + brick) * pitch,
        row.y + row.height / 2 + (line - (cell.lines - 1) / 2) * step,
      ];
    });
  }
  return { place, columns, rows, width: worldWidth, height: worldHeight };
}
