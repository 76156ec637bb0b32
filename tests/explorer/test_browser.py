"""The page clicked in a real Chromium, from a file, with the network off."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcircuits.report.explorer import content, write_page
from tests.explorer.graphs import HOOKS, HOSTILE, large_graph, random_graph
from tests.explorer.test_page import card

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = CHROMIUM is None or shutil.which("chromedriver") is None
pytestmark = [
    pytest.mark.skipif(MISSING, reason="no Chromium with its chromedriver is installed"),
    pytest.mark.xdist_group("chromium"),  # one browser, not one a worker
]

ALWAYS = 10
"""Edges each way that a selected node keeps."""

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,900", "--disable-dev-shm-usage"),
    *("--disable-quic", "--disable-sync", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND"),
    *("--disable-background-networking", "--disable-component-update"),
]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page whose prompt, labels, names and examples are full of HTML."""
    graph, path = random_graph(), tmp_path_factory.mktemp("page") / "circuit.html"
    feature = feature_of(graph)
    cards = [card(HOOKS[graph.nodes.sae[feature]], int(graph.nodes.feature[feature]))]
    other = int(np.flatnonzero(graph.nodes.are("feature"))[0])
    labels = {(HOOKS[0], int(graph.nodes.feature[other])): "<img src=x onerror=hacked=3> wolves"}
    data = content(graph, cards, labels, shown=120) | {"by": "weight"}
    write_page(path, data, "<script>hacked=4</script>")
    return path


@pytest.fixture
def opened(chromium: Any, file: Path) -> Iterator["Page"]:
    yield Page(chromium, file)
    assert chromium.get_log("browser") == []


class Page:
    """An open page, as a person uses it."""

    def __init__(self, driver: Any, file: Path) -> None:
        self.driver = driver
        driver.get(file.as_uri())
        self.state()

    def state(self) -> dict[str, Any]:
        """What is shown, once all of it is painted."""
        from selenium.webdriver.support.ui import WebDriverWait

        def painted(driver: Any) -> Any:
            state = driver.execute_script("return window.explorer?.state")
            return state if state and state["painted"] == state["drawn"] else False

        return WebDriverWait(self.driver, 60, 0.02).until(painted)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def move(self, x: float, y: float, *, click: bool = False) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        actions = ActionChains(self.driver)
        actions.w3c_actions.pointer_action.move_to_location(round(x), round(y))
        (actions.click() if click else actions).perform()

    def click(self, node: int) -> dict[str, Any]:
        self.move(*self.run("return explorer.where(arguments[0])", node), click=True)
        return self.state()

    def slide(self, slider: str, value: float) -> dict[str, Any]:
        self.run(
            "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
            "s.dispatchEvent(new Event('input'))",
            slider,
            value,
        )
        return self.state()

    def press(self, *keys: str) -> dict[str, Any]:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()
        return self.state()


def feature_of(graph: Any) -> int:
    """A feature of the second layer with many edges on both sides."""
    nodes = graph.nodes
    into, out_of = (np.bincount(ends, minlength=len(nodes)) for ends in (graph.target, graph.source))
    return int(np.argmax(np.where(nodes.are("feature") & (nodes.sae == 1), np.minimum(into, 100 * out_of), -1)))


def passing(graph: Any, count: int, most: int | None = None, hidden: tuple[str, ...] = ("bias",)) -> list[int]:
    """Numbers of the edges that the sliders let through, strongest first."""
    ranked = np.argsort(-np.abs(graph.weight), kind="stable")
    ranked = [e for e in ranked.tolist() if graph.nodes.kind[graph.source[e]] not in hidden][:count]
    taken: dict[int, int] = {}
    found = []
    for edge in ranked:
        target = int(graph.target[edge])
        taken[target] = taken.get(target, 0) + 1
        if most is None or taken[target] <= most:
            found.append(edge)
    return found


def isolated(graph: Any, node: int, edges: list[int], *, paths: bool) -> set[int]:
    """The edges that stay around a node, by the definition."""
    every = passing(graph, len(graph.weight))
    found = set(
        [e for e in every if graph.target[e] == node][:ALWAYS] + [e for e in every if graph.source[e] == node][:ALWAYS]
    )
    before, after, grown = {node}, {node}, paths
    while grown:
        up = {int(graph.target[e]) for e in edges if graph.source[e] in after} - after
        down = {int(graph.source[e]) for e in edges if graph.target[e] in before} - before
        after, before, grown = after | up, before | down, bool(up or down)
    return found | {e for e in edges if graph.target[e] in before or graph.source[e] in after}


def test_what_is_hostile_shows_as_text(opened: Page) -> None:
    shown = [token.replace("\n", "⏎") for token in HOSTILE]
    assert opened.texts("#prompt button") == shown
    assert opened.driver.title == "<script>hacked=4</script>"
    opened.click(feature_of(random_graph()))
    assert "<b>peak</b>" in opened.texts("#card h2")[0]
    assert opened.texts("#card blockquote") == ["</script><b>peak</b> end"]
    assert opened.texts("#card blockquote mark.peak") == ["<b>peak</b>"]
    assert opened.texts("#card .chips span") == ["</script>", "&amp;"]
    assert "' <b>0</b>'" in " ".join(opened.texts("#list button"))
    assert opened.run("return [typeof hacked, document.scripts.length, document.images.length]") == ["undefined", 3, 0]


def test_the_policy_lets_nothing_in(opened: Page) -> None:
    refused = opened.driver.execute_async_script(
        "const done = arguments[0]; const seen = [];"
        "document.addEventListener('securitypolicyviolation', (e) => {"
        "  seen.push(e.effectiveDirective); if (seen.length === 3) done(seen); });"
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 5'; document.body.append(s);"
        "const i = document.createElement('img'); i.src = 'https://example.org/x.png'; document.body.append(i);"
        "fetch('https://example.org').catch(() => {});"
    )
    assert sorted(refused) == ["connect-src", "img-src", "script-src-elem"]
    assert opened.run("return typeof hacked") == "undefined"
    opened.driver.get_log("browser")  # the three refusals


@pytest.mark.parametrize("paths", [False, True])
def test_a_click_isolates_what_drives_a_node_and_what_it_drives(opened: Page, paths: bool) -> None:
    graph = random_graph()
    node, edges = feature_of(graph), passing(graph, 120)
    assert opened.state()["drawn"] == len(edges) == 120
    if paths:
        opened.run("document.querySelector('[value=paths]').click()")
    state = opened.click(node)
    expected = isolated(graph, node, edges, paths=paths)
    ends = {int(end[e]) for e in expected for end in (graph.source, graph.target)}
    assert state["selected"] == node and set(state["near"]) == ends | {node}
    assert state["drawn"] == len(expected) < 120
    opened.press("\ue00c")  # Escape
    state = opened.state()
    assert (state["selected"], state["near"], state["drawn"]) == (None, None, 120)
    assert not opened.all("#card")[0].is_displayed()


def test_sliders_and_kinds_choose_edges(opened: Page) -> None:
    graph = random_graph()
    assert opened.slide("count", 1000)["drawn"] == len(passing(graph, 300))
    assert opened.slide("most", 2)["drawn"] == len(passing(graph, 300, 2))
    assert opened.slide("count", 0)["drawn"] == 0
    opened.slide("count", 1000)
    (biases,) = (button for button in opened.all("#kinds button") if "biases" in button.text)
    assert biases.get_attribute("aria-pressed") == "false"
    biases.click()
    assert opened.state()["drawn"] == len(passing(graph, 300, 2, hidden=()))
    assert biases.get_attribute("aria-pressed") == "true"


def test_edges_by_influence(opened: Page) -> None:
    graph = random_graph()
    data = content(graph)["edges"]
    names = [k for k in graph.nodes.kind[data["source"]]]
    seen = [e for e in np.argsort(-np.array(data["influence"]), kind="stable").tolist() if names[e] != "bias"]
    opened.run("const s = document.getElementById('by'); s.value = 'influence'; s.dispatchEvent(new Event('change'))")
    opened.slide("most", 1)
    ends: dict[int, int] = {}
    for edge in seen[:120]:
        ends.setdefault(data["target"][edge], edge)
    assert opened.state()["drawn"] == len(ends)
    assert f"120 of {len(seen)}, ≥ {data['influence'][seen[119]]:.2g}" in opened.texts("#count-said")[0]


def test_search_finds_numbers_tokens_and_labels_by_keyboard_alone(opened: Page) -> None:
    graph = random_graph()
    nodes = graph.nodes
    number = int(nodes.feature[nodes.are("feature")][0])
    opened.press("/", f"#{number}")
    expected = {int(node) for node in np.flatnonzero(nodes.are("feature") & (nodes.feature == number))}
    listed = {int(button.get_attribute("data-node")) for button in opened.all("#list button")}
    assert expected <= listed and opened.state()["listed"] == len(listed)
    search = opened.all("#search")[0]
    for text, found in (
        ("WOLVES", nodes.are("feature") & (nodes.feature == number) & (nodes.sae == 0)),
        ("a'b", nodes.pos == HOSTILE.index(' "a\'b"')),
    ):
        search.clear()
        search.send_keys(text)
        listed = {int(button.get_attribute("data-node")) for button in opened.all("#list button")}
        assert listed == set(np.flatnonzero(found & ~nodes.are("logit")).tolist())
    opened.press("\ue015", "\ue015")  # two down
    second = int(opened.run("return document.activeElement.dataset.node"))
    assert opened.state()["hovered"] == {"node": second}
    assert opened.press("\ue007")["selected"] == second  # Enter
    assert opened.press("\ue00c")["selected"] is None


def test_hovering_names_nodes_and_edges(opened: Page) -> None:
    graph = random_graph()
    strongest = passing(graph, 1)[0]
    assert opened.slide("count", 18)["drawn"] == 1
    ends = [opened.run("return explorer.where(arguments[0])", int(n[strongest])) for n in (graph.source, graph.target)]
    opened.move(*np.mean(ends, axis=0))
    rank = np.argsort(-np.abs(graph.weight), kind="stable").tolist().index(strongest)
    assert opened.state()["hovered"] == {"edge": rank}
    assert f"{graph.weight[strongest]:+.3g}" in opened.texts("#tip")[0].replace("−", "-")
    opened.move(*ends[1])
    assert opened.state()["hovered"] == {"node": int(graph.target[strongest])}
    assert opened.all("#tip")[0].is_displayed()


def test_cards_lead_on(opened: Page) -> None:
    graph = random_graph()
    node = feature_of(graph)
    opened.click(node)
    into = sorted(np.flatnonzero(graph.target == node).tolist(), key=lambda e: -abs(graph.weight[e]))
    shown = [float(text.replace("−", "-")) for text in opened.texts("#card .edges .weight")][: min(8, len(into))]
    np.testing.assert_allclose(shown, graph.weight[into[:8]], rtol=6e-3)
    opened.run("document.querySelector('#card .edges button').click()")
    assert opened.state()["selected"] == int(graph.source[into[0]])


def test_zoom_pan_and_fit(opened: Page) -> None:
    node = feature_of(random_graph())
    before = opened.run("return explorer.where(arguments[0])", node)
    opened.run(
        "const [x, y] = explorer.where(arguments[0]); document.getElementById('nodes').dispatchEvent("
        "new WheelEvent('wheel', {deltaY: -400, clientX: x - 50, clientY: y, bubbles: true, view: window}))",
        node,
    )
    opened.state()
    after = opened.run("return explorer.where(arguments[0])", node)
    assert after[0] - before[0] > 10
    assert opened.click(node)["selected"] == node
    opened.all("#fit")[0].click()
    opened.state()
    assert opened.run("return explorer.where(arguments[0])", node) == pytest.approx(before)


def test_light_and_dark(opened: Page) -> None:
    def paper() -> list[int]:
        colour = opened.run("return getComputedStyle(document.body).backgroundColor")
        return [int(part) for part in colour[4:-1].split(",")]

    def prefer(value: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": value}
        opened.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    prefer("dark")
    assert max(paper()) < 60
    switch = opened.all("#theme")[0]
    switch.click()
    assert (switch.text, min(paper()) > 200) == ("Theme: light", True)
    prefer("light")
    switch.click()
    assert (switch.text, max(paper()) < 60) == ("Theme: dark", True)
    switch.click()
    assert (switch.text, min(paper()) > 200) == ("Theme: auto", True)


@pytest.mark.slow
def test_twenty_thousand_edges_paint_soon(chromium: Any, tmp_path: Path) -> None:
    every_edge = content(large_graph(20_000), shown=20_000) | {"hidden": []}
    write_page(tmp_path / "large.html", every_edge, "large")
    times = []
    for _ in range(3):
        page = Page(chromium, tmp_path / "large.html")
        assert page.state()["painted"] == 20_000
        paint = page.run("return performance.getEntriesByType('paint').find((p) => p.name === 'first-paint').startTime")
        times.append((paint, page.run("return performance.now()")))
    first, all_of_it = np.median(times, axis=0) / 1000
    print(f"20,000 edges: first paint after {first:.2f} s, every edge painted after {all_of_it:.2f} s")
    assert first < 2 and all_of_it < 10
    assert chromium.get_log("browser") == []
