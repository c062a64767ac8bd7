"""The page in a real browser: what it shows, and what it does when people use it."""

import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from statsfs.model.fields import counter, gauge, log_hist, u64
from statsfs.model.stats import Stats
from statsfs.model.values import Kind, Unit, Value
from statsfs.monitoring.exposition import serve_metrics
from statsfs.monitoring.http_server import MetricsServer
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.browsers import Browser, Keys, browsing
from tests.support.deadlines import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

EVIL = '<img src=x onerror="hacked=1"><script>hacked=1</script>'
TREE, PANE = "#tree", "#source"


class Web(Stats):
    """What a worker counts."""

    requests: int = counter(description="Requests answered")
    sent: int = counter(unit=Unit.BYTES)
    open: int = gauge()
    late = log_hist(20, unit=Unit.SECONDS, exponent=-9, description="Time until the answer")
    large: int = counter(unit=Unit.CYCLES)
    secret: int = u64(mode=0o640)


def add(parent: Source | Registry, name: str, stats: Stats | None = None, **more: Any) -> Source:
    """Add a source that counts."""
    source = Source("%s", name, **more)
    if stats is not None:
        source.add_values(type(stats), stats)
    if isinstance(parent, Registry):
        parent.register(source)
    else:
        parent.add_subordinate(source)
    return source


@pytest.fixture(scope="module")
def shared_browser() -> Iterator[Browser]:
    """One browser; starting it takes longest."""
    with browsing() as browser:
        yield browser


@pytest.fixture
def browser(shared_browser: Browser) -> Iterator[Browser]:
    """A browser, whose scripts must not have failed in the end."""
    shared_browser.emulate()
    yield shared_browser
    assert shared_browser.problems() == []
    shared_browser.driver.get("about:blank")


@pytest.fixture
def workers(registry: Registry) -> list[Web]:
    """What the workers of a service count."""
    web = add(registry, "web")
    stats = [Web(requests=10 * number) for number in (1, 2, 3)]
    for number, one in enumerate(stats):
        info = {"version": f"1.{number}"}
        add(web, f"worker{number}", one, label="worker", info=info)
    return stats


@pytest.fixture
def page(registry: Registry, workers: list[Web]) -> Iterator[str]:
    """Where the page of the service is."""
    with serve_metrics(registry) as server:
        yield url_of(server)


def url_of(server: MetricsServer) -> str:
    """Where the page of a server is."""
    return server.url.removesuffix("metrics")


def test_totals_and_rates(browser: Browser, page: str, workers: list[Web]) -> None:
    """The tree has the totals; once something counts, rates and lines that move."""
    browser.open(page)
    browser.wait_for(TREE, "web", "60")
    ended = threading.Event()

    def count() -> None:
        while not ended.wait(0.01):
            workers[0].requests += 1

    counting = threading.Thread(target=count)
    counting.start()
    try:
        browser.wait(lambda: re.search(r"[1-9][\d.]*/s", browser.text(TREE)), "a rate")
        line = "return document.querySelector('.row svg path').getAttribute('d')"
        browser.wait(lambda: browser.run(line).count("L") >= 2, "a line")
    finally:
        ended.set()
        counting.join()


def test_a_source(browser: Browser, page: str, workers: list[Web]) -> None:
    """Its page has labels, info, descriptions, units, and integers of 64 bits to the last digit."""
    workers[1].large = (1 << 63) + 1
    workers[1].sent = 5 << 30
    for nanoseconds in (1, 100, 100, 100_000):
        workers[1].late.observe(nanoseconds)
    browser.open(f"{page}#/web/worker1")
    browser.wait_for(f"{PANE} h2", "worker1")
    browser.wait_for(f"{PANE} dl", "worker", "version", "1.1")
    browser.wait_for(f"{PANE} table", "requests", "Requests answered", "20", "5 GiB")
    large = "return document.querySelector('#source td.number[title*=cycles]').title"
    assert browser.run(large) == "9,223,372,036,854,775,809 cycles"
    browser.wait_for(f"{PANE} .hist", "late", "4 observations", "25.1 µs on average")
    browser.wait_for(f"{PANE} .quantiles", "≤ 127 ns", "≤ 131 µs")
    assert browser.run("return document.querySelectorAll('.bar').length") == 17
    assert "secret" not in browser.run("return document.body.textContent")


def test_no_rate_is_negative(
    browser: Browser, page: str, registry: Registry, workers: list[Web]
) -> None:
    """Counters that are cleared, and sources that begin anew, have a gap and no rate for once."""
    browser.open(f"{page}#/web/worker2")
    browser.run(
        "window.seen = []; new MutationObserver(() => {"
        " for (const one of document.querySelectorAll('.number, svg path'))"
        "  seen.push(one.textContent + (one.getAttribute('d') ?? ''));"
        "}).observe(document.body, {subtree: true, childList: true, attributes: true})"
    )
    web = registry.sources[0]
    for turn in range(3):
        workers[2].requests += 1000 + turn
        browser.wait_for(f"{PANE} table", f"{1000 + turn + (30 if turn == 0 else 0):,}")
        if turn == 1:
            former = web.subordinates[2]
            web.remove_subordinate(former)
            workers[2] = Web(requests=1)
            add(web, "worker2", workers[2], label="worker")
            browser.wait_for(f"{PANE} tbody tr:first-child", "1")
            workers[2].requests = 0
        else:
            web.clear_value("requests")
        browser.wait_for(f"{PANE} tbody tr:first-child td:nth-child(2)", "0")
    seen = browser.run("return seen")
    assert any("/s" in text for text in seen)
    assert [text for text in seen if "-" in text] == []


def test_names_that_try_to_be_html(browser: Browser, registry: Registry) -> None:
    """Whatever a program calls something is shown as text."""
    evil = EVIL.replace("/", "&sol;")
    top = add(registry, evil)
    described = Value(evil[:60], description=EVIL)
    hist = Value("h" + evil[:60], kind=Kind.LOG_HIST, size=4, description=EVIL)
    child = add(top, f"child {evil}", label="a", info={"note": EVIL, "b": "</script>" + EVIL})
    child.add_values([described, hist], {described.name: 1, hist.name: [1, 2, 3, 4]})
    for name in ("__proto__", "constructor", "1", "%2F", "a b\\"):
        add(top, name).add_values([described], {described.name: 2})
    with serve_metrics(registry) as server:
        browser.open(url_of(server))
        browser.press(Keys.TAB)
        browser.run("document.querySelector('#tree').focus()")
        browser.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
        browser.wait_for(TREE, evil, f"child {evil}", "__proto__", "constructor", "%2F", "a b\\")
        # There are no totals: the tree has the numbers of what is below.
        browser.wait_for("#tree .number", "1", "2")
        browser.wait_for("#of", described.name)
        for name in ("__proto__", "constructor", "%2F", "a b\\", f"child {evil}"):
            browser.click(".row", name)
            browser.wait_for(f"{PANE} h2", name)
            browser.wait_for(f"{PANE} table", described.name, EVIL, "1" if "child" in name else "2")
        browser.wait_for(f"{PANE} dl", EVIL, "</script>" + EVIL)
        browser.wait_for(f"{PANE} .hist", hist.name, EVIL, "10 observations")
        assert browser.run("return typeof hacked") == "undefined"
        assert browser.run("return document.querySelectorAll('img, script').length") == 1
        browser.picture("hostile")


def test_another_script_is_not_run(browser: Browser, page: str) -> None:
    """What gets into the page in spite of all is refused by its policy."""
    browser.open(page)
    browser.run(
        "const one = document.createElement('script'); one.textContent = 'window.hacked = 1';"
        "const two = document.createElement('div'); two.innerHTML = arguments[0];"
        "document.body.append(one, two)",
        '<b onclick="window.hacked = 1">b</b>',
    )
    browser.run("document.querySelector('div > b[onclick]').click()")
    assert browser.run("return window.hacked") is None
    refused = browser.problems()
    assert len(refused) == 2
    assert all("Content Security Policy" in text for text in refused)


def test_keys(browser: Browser, page: str) -> None:
    """All of it can be done without a mouse."""
    browser.open(page)
    focus = "return document.activeElement.id"
    browser.press("/")
    assert browser.run(focus) == "filter"
    browser.press("worker1")
    browser.wait_for("#state", "1 found")
    browser.wait(lambda: browser.text(".row .name").split() == ["▾web", "worker1"], "one")
    browser.press(Keys.ESCAPE)
    assert browser.run(focus) == "tree"
    browser.wait_for("#state", "1 shown")
    browser.press(Keys.HOME, Keys.ARROW_RIGHT)
    browser.wait_for(TREE, "worker0", "worker2")
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    browser.wait_for(f"{PANE} h2", "worker1")
    active = "return document.getElementById(arguments[0].getAttribute('aria-activedescendant'))"
    tree = browser.driver.find_element("id", "tree")
    assert "worker1" in browser.run(f"{active}.innerText", tree)
    assert browser.run(f"{active}.getAttribute('aria-level')", tree) == "2"
    assert browser.run("return location.hash") == "#/web/worker1"
    browser.press(Keys.ARROW_UP, Keys.ARROW_LEFT)
    browser.wait_for(f"{PANE} h2", "web")
    browser.press(Keys.ARROW_LEFT)
    browser.wait(lambda: "worker" not in browser.text(".row .name"), "a closed branch")
    browser.press(Keys.ENTER)
    assert browser.run(focus) == "source"


def test_sorted(browser: Browser, page: str) -> None:
    """By what there is most of, and the other way round."""
    browser.open(f"{page}#/web/worker0")
    browser.wait_for(TREE, "worker2")
    browser.click(".head button", "total")
    shown = "return rows.map(one => one.name)"
    assert browser.run(shown) == ["web", "worker2", "worker1", "worker0"]
    browser.click(".head button", "total")
    assert browser.run(shown) == ["web", "worker0", "worker1", "worker2"]


def test_the_value_of_the_tree(browser: Browser, page: str, workers: list[Web]) -> None:
    """It is chosen, and chosen still when the page is loaded again."""
    workers[0].open = 77
    browser.open(page)
    browser.run(
        "const one = document.getElementById('value'); one.value = 'open';"
        "one.dispatchEvent(new Event('change'))"
    )
    browser.wait_for(TREE, "77")
    browser.open(page)
    browser.wait_for(TREE, "77")
    browser.run("localStorage.clear()")


def test_hold(browser: Browser, page: str, workers: list[Web]) -> None:
    """Nothing moves until it is let go."""
    browser.open(page)
    browser.click("#hold")
    browser.wait_for("#state", "held")
    # What was asked for before may come yet.
    browser.wait(lambda: browser.run("return !busy"), "the last answer")
    asked = "return performance.getEntriesByType('resource').length"
    before = browser.run(asked)
    workers[0].requests += 1000
    browser.run("window.ended = false; setTimeout(() => { ended = true }, 1500)")
    browser.wait(lambda: browser.run("return ended"), "some time")
    assert browser.run(asked) == before
    browser.click("#hold")
    browser.wait_for(TREE, "1,060")


def test_a_source_that_goes_and_comes_back(
    browser: Browser, page: str, registry: Registry, workers: list[Web]
) -> None:
    """The page says so, and shows the next one of that name."""
    browser.open(f"{page}#/web/worker1")
    browser.wait_for(f"{PANE} table", "20")
    web = registry.sources[0]
    web.remove_subordinate(web.subordinates[1])
    browser.wait_for(f"{PANE} .note", "gone")
    browser.wait(lambda: "worker1" not in browser.text(".row"), "a shorter tree")
    workers[1] = Web(requests=4321)
    add(web, "worker1", workers[1], label="worker")
    browser.wait_for(f"{PANE} table", "4,321")
    assert "gone" not in browser.text(PANE)


def test_a_server_that_goes_and_comes_back(
    browser: Browser, registry: Registry, workers: list[Web]
) -> None:
    """The page says that its numbers are old, and goes on by itself."""
    with serve_metrics(registry) as server:
        browser.open(url_of(server))
    browser.wait_for("#state", "no answer")
    workers[0].requests += 5000
    with serve_metrics(registry, server.host, server.port):
        browser.wait_for("#state", "live")
        browser.wait_for(TREE, "5,060")


def test_ten_thousand_sources(browser: Browser, registry: Registry) -> None:
    """Only rows that can be seen are in the document; a filter finds one among all."""
    many = add(registry, "many")
    for number in range(10_000):
        add(many, f"vm{number}", Web(requests=number), label="vm")
    with serve_metrics(registry) as server:
        browser.open(url_of(server))
        browser.run("document.querySelector('#tree').focus()")
        browser.press(Keys.HOME, Keys.ARROW_RIGHT)
        browser.wait_for("#state", "10,001 shown")
        assert browser.run("return document.querySelectorAll('.row').length") < 60
        browser.press(Keys.END)
        browser.wait_for(TREE, "vm9999", "9,999")
        browser.wait_for(f"{PANE} h2", "vm9999")
        browser.picture("many")
        browser.press("/", "vm123 4")
        browser.wait(
            lambda: browser.text(".row .name").split() == ["▾many", "vm1234"], "what is found"
        )
        assert browser.run("return document.querySelectorAll('.row').length") < 60


def test_a_phone(browser: Browser, page: str) -> None:
    """The tree and the source are two screens; nothing is wider than the phone."""
    browser.emulate(phone=True)
    wide = "return document.scrollingElement.scrollWidth > innerWidth"
    browser.open(page)
    browser.wait_for(TREE, "web")
    assert browser.text(PANE) == ""
    assert not browser.run(wide)
    browser.picture("phone-tree")
    browser.click(".row .fold")
    browser.wait_for(TREE, "worker1")
    assert browser.run("return document.querySelector('.row').offsetHeight") >= 44
    browser.click(".row", "worker1")
    browser.wait_for(f"{PANE} h2", "worker1")
    browser.wait_for(f"{PANE} table", "requests", "20")
    assert browser.text(TREE) == ""
    assert not browser.run(wide)
    browser.picture("phone-source")
    browser.driver.back()
    browser.wait_for(TREE, "worker1")
    browser.click(".row", "worker2")
    browser.wait_for(f"{PANE} h2", "worker2")
    browser.click("#back")
    browser.wait_for(TREE, "worker1")


def test_light_and_dark(browser: Browser, page: str) -> None:
    """As the system has it."""
    seen = []
    for dark in (False, True):
        browser.emulate(dark=dark)
        browser.open(f"{page}#/web/worker1")
        browser.wait_for(f"{PANE} table", "requests")
        browser.picture("dark" if dark else "light")
        color = "const style = getComputedStyle(document.body); return style.backgroundColor"
        seen.append(sum(map(int, re.findall(r"\d+", browser.run(color)))))
    assert seen[0] > 600
    assert seen[1] < 150


def test_little_is_asked_for(browser: Browser, page: str) -> None:
    """Two small requests a turn; what did not change is not sent again."""
    browser.open(page)
    sizes = (
        "return performance.getEntriesByType('resource').filter(one => one.name.includes('stats'))"
        ".map(one => [one.name, one.encodedBodySize])"
    )
    browser.wait(lambda: len(browser.run(sizes)) >= 8, "some turns")
    last = browser.run(sizes)[-4:]
    assert len({name for name, _ in last}) == 2
    assert {size for _, size in last} == {0}


def test_a_title(browser: Browser, page: str) -> None:
    """A tab says what is in it."""
    browser.open(f"{page}#/web/worker1")
    wait_until(lambda: browser.driver.title == "web/worker1 – statsfs", "the title")
