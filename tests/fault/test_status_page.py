"""
The status page, in a browser: what it says, that it keeps itself up to date, what it looks like when a shard is down,
on a telephone, in the dark, and without JavaScript. One browser and one proxy for all of it.
"""
import json
import re

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

import servers
from stage import PASSWORD, Store, good, shard

PATIENCE_SECONDS = 30
QUICK = "interval = 200ms timeout = 1s fall = 2 rise = 1 max_interval = 200ms"
FLAGS = ("--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
         "--disable-sync --no-first-run --disable-dev-shm-usage").split()
PHONE, DESKTOP = (360, 740), (1440, 900)

# Texts whose contrast with what is behind them is below 4.5 to 1.
POOR_CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                         return [...canvas.getImageData(0, 0, 1, 1).data]; };
const light = colour => rgba(colour).slice(0, 3).map(part => part / 255)
  .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
  .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
const behind = element => { while (element && rgba(getComputedStyle(element).backgroundColor)[3] === 0)
                              element = element.parentElement;
                            return element ? getComputedStyle(element).backgroundColor : "white"; };
return [...document.querySelectorAll("body *")].filter(element => element.checkVisibility() &&
    [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())).flatMap(element => {
  const style = getComputedStyle(element), colour = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
  const [one, other] = [light(colour), light(behind(element))].sort((a, b) => b - a);
  const contrast = (one + 0.05) / (other + 0.05);
  return contrast < 4.5 ? [`${element.textContent.trim().slice(0, 40)}: ${contrast.toFixed(2)}`] : [];
});
"""
SEEN_ONCE = "return performance.getEntriesByType('navigation').length === 1 && window.marked === true"


class Script:
    """A store that may go away and come back."""

    is_down = False

    def __call__(self, peer):
        if not self.is_down:
            good(peer)


class Page:
    """The browser's window on one proxy's page."""

    def __init__(self, driver, url):
        self.driver, self.url = driver, url

    def resize(self, size):
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE})

    def prefer(self, scheme):
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def allow_scripts(self, allowed):
        self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not allowed})

    def load(self):
        self.driver.get(self.url)

    def open(self):
        """Loads it, and waits until it lives."""
        self.load()
        self.wait_for(lambda: self.text("#tiles") != "" and self.all("#charts .plot path"), "figures and graphs")

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.run("return [...document.querySelectorAll(arguments[0])].map(one => one.innerText).join('\\n')",
                        selector)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def tile(self, name):
        """The number of a tile, and what stands below it."""
        tiles = self.run("return [...document.querySelectorAll('#tiles > div')].map(one => one.innerText.split('\\n'))")
        return next(tuple(rest) for title, *rest in tiles if title.startswith(name))

    def wait_for(self, condition, what):
        return servers.wait_for(condition, what, PATIENCE_SECONDS)

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self):
        """Since the last call: what the browser has asked for."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def script():
    return Script()


@pytest.fixture(scope="module")
def proxy(start, script):
    with Store(script) as store, Store() as green:
        port = servers.free_port()
        one = start(shard("store", store.port, more="drain_time = 0s") + shard("green", green.port), workers=2,
                    routes={"bob": "green"}, health=QUICK,
                    more=f'http {{ address = "{servers.HOST}:{port}" }}\n')
        one.url = f"http://{servers.HOST}:{port}/"
        yield one


@pytest.fixture(scope="module")
def driver(folder):
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in [*FLAGS, f"--user-data-dir={folder}/chromium"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    one = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield one
    one.quit()


@pytest.fixture
def page(driver, proxy):
    one = Page(driver, proxy.url)
    one.resize(DESKTOP)
    one.prefer("light")
    one.allow_scripts(True)
    one.complaints(), one.requests()  # those of before
    yield one
    assert one.complaints() == []
    assert [url for url in one.requests() if not url.startswith((one.url, "data:"))] == []


def test_it_says_that_all_is_well(page):
    page.open()
    assert page.text("#headline") == "All well" and page.driver.title.startswith("All well – ")
    assert page.text("#summary").startswith("Both shards are up, certificates are good for ")
    assert re.findall(r"^(store|green)\b", page.text("#shard-rows"), re.MULTILINE) == ["store", "green"]
    assert page.text("#shard-rows .state").split() == ["up", "up"]
    assert re.search(r"^version \d+\.\d+\.\d+ · up ", page.text("#meta"))
    assert "localhost" in page.text("#cards") and "29 days" in page.text("#cards")
    assert "alice" not in page.driver.page_source and "bob" not in page.driver.page_source


def test_it_keeps_itself_up_to_date(page, proxy):
    page.open()
    page.run("window.marked = true")
    assert page.tile("Sessions")[0] == "0"
    with proxy.logged_in("alice"), proxy.logged_in("bob"):
        page.wait_for(lambda: page.tile("Sessions")[0] == "2", "two sessions on the page")
        page.wait_for(lambda: page.tile("Logins")[0] not in ("0 /s", "– /s"), "a rate of logins")
        assert page.text("#shard-rows td:nth-of-type(2)").split() == ["1", "1"]
    page.wait_for(lambda: page.tile("Sessions")[0] == "0", "their end")
    assert page.run(SEEN_ONCE)
    asked_for = [url.removeprefix(page.url) for url in page.requests() if not url.startswith("data:")]
    assert set(asked_for) == {"", "status.json", "history.json"}


def test_a_shard_that_goes_down_is_seen(page, proxy, script):
    page.open()
    page.run("window.marked = true")
    script.is_down = True
    try:
        page.wait_for(lambda: re.fullmatch(r"Shard store is down since \d\d:\d\d", page.text("#headline")), "the news")
        assert page.run("return document.documentElement.dataset.level") == "critical"
        assert re.search(r"^store\s+down\s+since \d\d:\d\d", page.text("#shard-rows tr:first-child"))
        assert re.search(r"^green\s+up\b", page.text("#shard-rows tr:last-child"))
        assert page.all("#shard-rows tr:first-child .state svg")  # not by its colour alone
        with proxy.wire() as wire:
            assert b"NO [UNAVAILABLE]" in wire.command(b"LOGIN alice " + PASSWORD.encode())
    finally:
        script.is_down = False
    page.wait_for(lambda: page.text("#headline") == "All well", "the end of it")
    assert page.run(SEEN_ONCE)
    page.driver.refresh()
    page.wait_for(lambda: page.all("#shard-rows .outage"), "a mark in the history")


def test_it_says_when_it_is_old(page, proxy):
    page.open()
    proxy.pause()
    try:
        page.wait_for(lambda: page.text("#stale").startswith("No answer since "), "the notice")
    finally:
        proxy.resume()
    page.wait_for(lambda: page.text("#stale") == "", "the notice to go")
    page.complaints()  # browsers do complain of what is not answered


@pytest.mark.parametrize("size", [PHONE, (768, 1024), DESKTOP], ids=["phone", "tablet", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read(page, size, scheme):
    page.resize(size)
    page.prefer(scheme)
    page.open()
    assert page.run("return document.documentElement.scrollWidth") <= size[0]
    background = page.run("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", background)[:3]) / 3
    assert brightness > 200 if scheme == "light" else brightness < 60
    assert page.run(POOR_CONTRAST) == []


def test_it_can_be_heard(page):
    page.open()
    once = ("header", "main", "footer", "h1", ".verdict[role=status]")
    assert [len(page.all(landmark)) for landmark in once] == [1] * len(once)
    assert page.run("return document.documentElement.lang") == "en"
    for plot in page.all("#charts svg.plot"):
        assert plot.accessible_name != ""
        assert re.search(r": (now|nothing)", page.run("return arguments[0].querySelector('desc').textContent", plot))
    assert all(table.get_attribute("role") == "table" for table in page.all("table.shards"))
    page.run("document.querySelector('.skip').focus()")
    assert page.run("return document.activeElement.getBoundingClientRect().height") > 10  # a link that shows itself


def test_graphs_can_be_read_as_tables_and_for_a_day(page):
    page.open()
    page.all("#charts summary")[0].click()
    rows = page.wait_for(lambda: page.all("#charts figure:first-child tbody tr"), "rows")
    assert re.fullmatch(r"\d\d:\d\d:\d\d \d+", rows[0].text)
    page.all("[data-range=day]")[0].click()
    assert page.text("#past") == "Last 24 hours"
    assert [button.get_attribute("aria-pressed") for button in page.all("[data-range]")] == ["false", "true"]


def test_it_works_without_a_script(page):
    page.allow_scripts(False)
    page.load()
    source = page.driver.page_source
    assert re.search(r'<h1 id="headline">All well</h1>', source)
    assert re.search(r"<dt>now</dt><dd>0</dd>", source) and "<td>store</td><td>up</td>" in source
    page.allow_scripts(True)
    assert page.run("return document.querySelector('#plain').checkVisibility()") is True


def test_only_its_own_script_may_run(page):
    page.open()
    page.run("""
        const script = document.createElement("script");
        script.textContent = "window.foreign = true";
        document.head.append(script);
        const image = new Image();
        image.src = "http://127.0.0.1:9/";
        document.body.append(image);
    """)
    complaints = page.wait_for(page.complaints, "the browser to refuse")
    assert any("Content Security Policy" in complaint for complaint in complaints)
    assert page.run("return window.foreign") is None
    page.complaints(), page.requests()
