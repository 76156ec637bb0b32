// Puts the parts together: what a slider, a click or a key changes, and what is drawn again after it.
const byId = (id) => document.getElementById(id);

class Explorer {
  constructor() {
    const graph = (this.graph = new Graph(data));
    const selection = (this.selection = new Selection(graph, data.shown, data.hidden));
    this.painter = new Painter(graph, selection, byId("stage"));
    this.panel = new Panel(graph, { select: (node) => this.select(node), hover: (what) => this.hover(what) });
    this.pointer = new Pointer(this.painter, (what, event) => this.hover(what, event), (node) => this.select(node));
    byId("about").textContent = data.about;
    this.sliders();
    this.kinds();
    this.theme();
    this.keys();
    this.resized();
    new ResizeObserver(() => this.resized()).observe(byId("stage"));
    this.panel.fill();
    this.panel.show(null);
  }

  resized() {
    const { width, height } = byId("stage").getBoundingClientRect();
    if (width === this.painter.width && height === this.painter.height) return;
    this.painter.resize();
    this.pointer.fit();
  }

  changed() {
    this.selection.update();
    this.say();
    this.painter.request();
  }

  select(node) {
    if (node !== null && !this.selection.sees(node)) this.toggle(this.graph.kindOf(node));
    this.selection.node = node === this.selection.node ? null : node;
    this.changed();
    byId("tip").hidden = true;
    this.panel.show(this.selection.node);
  }

  hover(what, event) {
    const { painter } = this;
    const shown = byId("tip");
    const same = what?.node === painter.hovered?.node && what?.edge === painter.hovered?.edge;
    if (!same) {
      painter.hovered = what;
      painter.paintNodes();
      painter.nodes.canvas.classList.toggle("over", what?.node !== undefined);
      if (what) shown.replaceChildren(...tip(this.graph, what));
    }
    shown.hidden = !what || !event || what.node === this.selection.node;
    if (shown.hidden) return;
    const [x, y] = d3.pointer(event, byId("stage"));
    const { width, height } = shown.getBoundingClientRect();
    shown.style.left = `${Math.max(4, x + 16 + width > painter.width ? x - width - 12 : x + 16)}px`;
    shown.style.top = `${Math.max(4, Math.min(y + 14, painter.height - height - 6))}px`;
  }

  // The first slider is the number of edges on a logarithmic scale; the threshold is what the last of them has.
  sliders() {
    const { selection, graph } = this;
    const [count, most] = [byId("count"), byId("most")];
    const total = graph.weight.length;
    const scale = d3.scaleSymlog().constant(20).domain([0, Math.max(1, total)]).range([0, 1000]);
    count.value = scale(Math.min(total, selection.count));
    most.value = EVERY;
    count.addEventListener("input", () => {
      selection.count = Math.round(scale.invert(Number(count.value)));
      this.changed();
    });
    most.addEventListener("input", () => {
      selection.most = Number(most.value);
      this.changed();
    });
    const by = byId("by");
    by.value = selection.by;
    by.disabled = !graph.influence.length;
    by.addEventListener("change", () => {
      selection.by = by.value;
      this.changed();
    });
    byId("reach").addEventListener("change", (event) => {
      selection.reach = event.target.value;
      this.changed();
    });
    byId("fit").addEventListener("click", () => this.pointer.fit());
    this.say();
  }

  say() {
    const { count, available, threshold, most } = this.selection;
    const number = count < available ? `${whole(count)} of ${whole(available)}` : `all ${whole(available)}`;
    byId("count-said").textContent = count && available ? `${number}, ≥ ${d3.format(".2~g")(threshold)}` : number;
    byId("most-said").textContent = most < EVERY ? `${most}` : "all";
  }

  kinds() {
    const { graph, selection } = this;
    this.buttons = new Map(graph.kinds.map((kind) => {
      const pressed = String(!selection.hidden.has(kind));
      const attributes = { type: "button", "aria-pressed": pressed, click: () => this.toggle(kind) };
      return [kind, element("button", attributes, element("i", {}, SIGNS[kind]), data.kind_names[kind])];
    }));
    byId("kinds").append(...this.buttons.values());
  }

  toggle(kind) {
    const { hidden } = this.selection;
    if (!hidden.delete(kind)) hidden.add(kind);
    if (this.selection.node !== null && !this.selection.sees(this.selection.node)) this.select(null);
    this.buttons.get(kind).setAttribute("aria-pressed", String(!hidden.has(kind)));
    this.selection.update();
    this.painter.resize();
    this.pointer.fit();
    this.changed();
  }

  theme() {
    const names = ["auto", "light", "dark"];
    let at = 0;
    const redraw = () => {
      this.painter.readColours();
      this.painter.request();
    };
    byId("theme").addEventListener("click", () => {
      at = (at + 1) % names.length;
      if (at) document.documentElement.dataset.theme = names[at];
      else delete document.documentElement.dataset.theme;
      byId("theme").textContent = `Theme: ${names[at]}`;
      redraw();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  }

  keys() {
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.selection.node !== null) {
        this.select(null);
        event.preventDefault();
      } else if (event.key === "/" && document.activeElement !== byId("search")) {
        byId("search").focus();
        event.preventDefault();
      }
    });
  }
}

const made = new Explorer();

// For tests and the console: a look at what is shown.
window.explorer = Object.freeze({
  get state() {
    const { selection, painter, panel } = made;
    return {
      drawn: selection.edges.length,
      painted: painter.painted,
      selected: selection.node,
      near: selection.near ? Array.from(selection.near) : null,
      hovered: painter.hovered,
      listed: panel.matching().length,
    };
  },
  // Where a node is, in pixels of the window.
  where(node) {
    const { left, top } = made.painter.nodes.canvas.getBoundingClientRect();
    const [x, y] = made.painter.at(node);
    return [left + x, top + y];
  },
});
