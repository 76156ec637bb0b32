// What is beside the drawing: the prompt, the list of nodes, the card of the selected one, the tip at the pointer.
// Text of prompts and labels enters as text nodes only.
const LISTED = 200;
const STRONGEST = 8;
const SIGNS = { token: "■", position: "□", bias: "△", gelu: "▽", error: "◇", rest: "○", feature: "●", logit: "▬" };

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function bar(share, sign = "") {
  const filled = element("b", { class: sign });
  filled.style.width = `${100 * Math.min(1, share)}%`;
  return element("span", { class: "bar" }, filled);
}

class Panel {
  constructor(graph, { select, hover }) {
    Object.assign(this, { graph, select, hover });
    [this.list, this.card, this.search, this.found] = ["list", "card", "search", "found"].map((id) => document.getElementById(id));
    this.words = d3.range(graph.size).map((node) => graph.words(node));
    this.search.addEventListener("input", () => this.fill());
    this.search.addEventListener("keydown", (event) => this.walk(event));
    this.list.addEventListener("keydown", (event) => this.walk(event));
    this.prompt();
  }

  prompt() {
    const { graph } = this;
    const tokenNodes = new Map();
    for (const node of graph.order) if (graph.kindOf(node) === "token") tokenNodes.set(graph.pos[node], node);
    this.promptTokens = graph.tokens.map((token, pos) =>
      element("button", {
        type: "button",
        title: `position ${pos}`,
        class: pos === 0 && /^<\|.*\|>$/.test(token) ? "bos" : undefined,
        click: () => tokenNodes.has(pos) && this.select(tokenNodes.get(pos)),
      }, readable(token)));
    document.getElementById("prompt").append(...this.promptTokens);
  }

  matching() {
    const wanted = this.search.value.toLowerCase().trim();
    const number = /^#?\d+$/.test(wanted) ? Number(wanted.replace("#", "")) : null;
    const parts = wanted.split(/\s+/).filter(Boolean);
    return this.graph.order.filter((node) => {
      if (number !== null && this.graph.kindOf(node) === "feature" && this.graph.feature[node] === number) return true;
      return this.words[node].includes(wanted) || parts.every((part) => this.words[node].includes(part));
    });
  }

  fill() {
    const { graph } = this;
    const nodes = this.matching();
    const all = `${whole(nodes.length)} by ${data.ranked_by}`;
    this.found.textContent = nodes.length > LISTED ? `${all}, the first ${LISTED}` : all;
    this.list.replaceChildren(...nodes.slice(0, LISTED).map((node) => element("li", {}, element("button", {
      type: "button",
      "data-node": node,
      "aria-current": node === this.selected ? "true" : undefined,
      title: graph.name[node],
      click: () => this.select(node),
      focus: () => this.hover({ node }),
      blur: () => this.hover(null),
    }, ...this.named(node), bar(graph.importance[node] / graph.largest)))));
  }

  named(node) {
    const { graph } = this;
    return [
      element("span", {}, element("i", {}, SIGNS[graph.kindOf(node)]), graph.title(node)),
      element("span", { class: "where" }, readable(graph.place[node])),
    ];
  }

  // Arrow keys move through the list; Enter in the search takes its first node.
  walk(event) {
    const buttons = Array.from(this.list.querySelectorAll("button"));
    const at = buttons.indexOf(document.activeElement);
    if (event.key === "ArrowDown") buttons[Math.min(at + 1, buttons.length - 1)]?.focus();
    else if (event.key === "ArrowUp") (at > 0 ? buttons[at - 1] : this.search).focus();
    else if (event.key === "Enter" && at < 0 && buttons.length) this.select(Number(buttons[0].dataset.node));
    else return;
    event.preventDefault();
  }

  show(node) {
    const { graph, card } = this;
    this.selected = node;
    document.querySelector("aside").classList.toggle("open", node !== null);
    for (const button of this.list.querySelectorAll("button")) {
      button.toggleAttribute("aria-current", false);
      if (Number(button.dataset.node) === node) button.setAttribute("aria-current", "true");
    }
    this.promptTokens.forEach((token, pos) => token.classList.toggle("here", node !== null && graph.pos[node] === pos));
    card.hidden = node === null;
    card.replaceChildren();
    if (node === null) return;
    const kind = graph.kindOf(node);
    const found = graph.cardOf(node);
    card.append(
      element("button", { type: "button", class: "close", title: "Escape", click: () => this.select(null) }, "Release"),
      element("h2", {}, graph.title(node)),
      element("p", { class: "sub" }, graph.name[node]),
      element("dl", {}, ...this.facts(node, kind, found)),
      ...this.ends("Driven by", graph.into[node], graph.source, ["token", "position"].includes(kind) ? null : "no edge leads here"),
      ...this.together(graph.pairsOf(node)),
      ...this.ends("Drives", graph.outOf[node], graph.target, kind === "logit" ? null : "no edge leads on"),
    );
    if (found) card.append(...this.described(found));
    else if (kind === "feature" && data.card_note) card.append(element("p", { class: "none" }, data.card_note));
    card.scrollTop = 0;
  }

  facts(node, kind, found) {
    const { graph } = this;
    const rows = [];
    const add = (name, value, title) => rows.push(element("div", { title }, element("dt", {}, name), element("dd", {}, value)));
    if (graph.value[node] !== null) add(kind === "logit" ? "logit" : "activation", format(graph.value[node]));
    if (graph.probability[node] !== null) add("probability", format(graph.probability[node]));
    if (kind !== "logit") add(data.importance, format(graph.importance[node]), data.ranked_by);
    if (found) add("density", `${format(100 * found.density)} %`, "share of the corpus' tokens at which it is active");
    if (found) add("largest", format(found.max), "largest activation in the corpus");
    if (graph.cut[node]) add("edges cut", signed(graph.cut[node]), "sum of edges into it that are not in this graph");
    if (graph.value[node] !== null && Math.abs(graph.unexplained[node]) > 1e-3 * Math.abs(graph.value[node])) {
      add("unexplained", signed(graph.unexplained[node]), "value minus all edges into it");
    }
    return rows;
  }

  ends(title, edges, ends, none) {
    const { graph } = this;
    if (!edges.length) return none ? [element("h3", {}, title), element("p", { class: "none" }, none)] : [];
    const shown = edges.slice(0, STRONGEST);
    const largest = Math.abs(graph.weight[shown[0]]);
    const count = edges.length > shown.length ? ` the strongest ${shown.length} of ${whole(edges.length)}` : "";
    return [
      element("h3", {}, title, element("small", {}, count)),
      element("div", { class: "edges" }, ...shown.map((edge) => {
        const node = ends[edge];
        const weight = graph.weight[edge];
        return element("button", {
          type: "button",
          title: graph.name[node],
          click: () => this.select(node),
          focus: () => this.hover({ node }),
          blur: () => this.hover(null),
        }, ...this.named(node),
        bar(Math.abs(weight) / largest, weight < 0 ? "negative" : "positive"), element("span", { class: "weight" }, signed(weight)));
      })),
    ];
  }

  // Drivers that do not add up, ablated alone and both.
  together(pairs) {
    if (!pairs.length) return [];
    const { graph } = this;
    const largest = Math.abs(pairs[0][3]);
    return [
      element("h3", {}, "Pairs of drivers", element("small", {}, " that do not add up: AND-like solid, OR-like dashed")),
      element("div", { class: "edges pairs" }, ...pairs.map(([, a, b, interaction]) => element("button", {
        type: "button",
        title: `${graph.name[a]} and ${graph.name[b]}`,
        click: () => this.select(a),
        focus: () => this.hover({ node: a }),
        blur: () => this.hover(null),
      }, element("span", {}, `${graph.title(a)} and ${graph.title(b)}`), element("span", { class: "where" }, interaction > 0 ? "AND" : "OR"),
      bar(Math.abs(interaction) / largest, interaction < 0 ? "negative" : "positive"), element("span", { class: "weight" }, signed(interaction))))),
    ];
  }

  described(found) {
    const parts = [];
    const chips = (title, tokens) => {
      if (!tokens.length) return;
      parts.push(element("h3", {}, title), element("div", { class: "chips" }, ...tokens.map(([token, effect]) =>
        element("span", { title: signed(effect) }, readable(token)))));
    };
    parts.push(element("h3", {}, "Strongest examples", element("small", {}, ` in ${data.corpus}`)));
    if (!found.examples.length) parts.push(element("p", { class: "none" }, "never active there"));
    for (const { tokens, at, acts } of found.examples) {
      const strength = new Map(acts);
      parts.push(element("blockquote", { title: `activation ${format(strength.get(at))}` }, ...tokens.map((token, i) => {
        if (!strength.has(i)) return readable(token);
        const mark = element("mark", { class: i === at ? "peak" : "", title: format(strength.get(i)) }, readable(token));
        const share = Math.min(1, strength.get(i) / found.max);
        mark.style.backgroundColor = `color-mix(in srgb, var(--negative) ${Math.round(8 + 50 * share)}%, transparent)`;
        return mark;
      })));
    }
    chips("Promotes", found.promoted);
    chips("Suppresses", found.suppressed);
    return parts;
  }
}

// The tip at the pointer: a node with its strongest edges, or an edge.
function tip(graph, hovered) {
  const named = (node) => `${graph.title(node)} (${readable(graph.place[node])})`;
  if (hovered.edge !== undefined) {
    const { edge } = hovered;
    return [
      element("strong", {}, `${named(graph.source[edge])} → ${named(graph.target[edge])}`),
      element("div", {}, `weight ${signed(graph.weight[edge])}`),
      ...graph.parts.map(([name, part]) => element("div", {}, element("span", { class: "muted" }, name), ` ${signed(part[edge])}`)),
    ];
  }
  const { node } = hovered;
  const ends = (title, edges, other) => edges.slice(0, 3).map((edge) =>
    element("div", {}, element("span", { class: "muted" }, title), ` ${signed(graph.weight[edge])}  ${named(other[edge])}`));
  const value = graph.value[node];
  return [
    element("strong", {}, named(node)),
    ...(value === null ? [] : [element("div", {}, `${graph.kindOf(node) === "logit" ? "logit" : "activation"} ${format(value)}`)]),
    ...ends("from", graph.into[node], graph.source),
    ...ends("to", graph.outOf[node], graph.target),
  ];
}
