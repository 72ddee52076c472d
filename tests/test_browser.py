"""One visitor in a real browser: page -> ad -> click -> landing page -> the next choice differs.

Chromium, from the system, driven by Selenium; without it these tests skip. The pages are those of
examples/shop.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from banditads import events
from banditads.journal.file import scan

SHOP = Path(__file__).parent.parent / "examples/shop"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--no-proxy-server"),
    "--window-size=900,900",
]

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium to drive: apt-get install chromium chromium-driver"
)


@contextmanager
def browser(folder, javascript=True):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    if not javascript:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    driver = webdriver.Chrome(
        options, webdriver.ChromeService(DRIVER, env={**os.environ, "HOME": str(folder)})
    )
    driver.set_page_load_timeout(30)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def shop(start, tmp_path):
    """Opens it: (the server of ads, where the shop is); the shop has a port, hence an origin, of its own."""
    processes = []

    def opened(*arguments):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        origin = f"http://127.0.0.1:{port}"
        catalog = tmp_path / "shop.jsonl"
        catalog.write_text((SHOP / "ads.jsonl").read_text("utf-8").replace("http://127.0.0.1:8000", origin))
        given = (
            "--catalog",
            str(catalog),
            "--cors-origins",
            origin,
            "--policy",
            "vw",
            "--option",
            "exploration=squarecb",
        )
        server = start(*given, *arguments)
        command = [sys.executable, str(SHOP / "shop.py"), "--port", str(port), "--ads", server.url]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert processes[0].stdout.readline().strip().endswith(origin)
        return server, origin

    yield opened
    for process in processes:
        process.terminate()
        process.communicate(timeout=30)


def becomes(wanted, found, seconds=15):
    """Wait for what a browser does in its own time."""
    until = time.monotonic() + seconds
    while (seen := found()) != wanted and time.monotonic() < until:
        time.sleep(0.05)
    assert seen == wanted


def likely(server):
    """The probability of each ad for a visitor who likes the outdoors."""
    body = {"placement": "home", "context": {"likes": "outdoors"}}
    return server("POST", "/predict", body).json()["propensities"]


def decided(server):
    """Every decision, oldest first."""
    found = [events.decode(record) for _, record in scan(server.folder)]
    return [server.data(f"/decisions/{each.event_id}") for each in found if isinstance(each, events.Chosen)]


def signals(server):
    stats = server.data("/stats")
    return {"impression": stats["impressions"], **{k: s["count"] for k, s in stats["signals"].items()}}


def test_a_visitor_without_any_script_clicks_and_lands_and_the_next_choice_differs(shop, tmp_path):
    server, origin = shop()
    with browser(tmp_path, javascript=False) as page:
        page.get(f"{origin}/script")
        assert not page.find_element("id", "ad").is_displayed()  # there is really no script here
        page.get(origin)
        becomes({"impression": 1}, lambda: signals(server))
        before, event = likely(server), page.find_element("id", "ad").get_attribute("href").split("/")[-1]
        chosen = server.data(f"/decisions/{event}")["ad"]
        page.find_element("id", "ad").click()

        assert page.current_url == f"{origin}/product/{chosen}?from={event}"
        assert signals(server) == {"impression": 1, "click": 1}
        assert likely(server)[chosen] > before[chosen]

        page.find_element("id", "buy").click()
        becomes({"impression": 1, "click": 1, "conversion": 1}, lambda: signals(server))
        page.get(origin)
        following = page.find_element("id", "ad").get_attribute("href").split("/")[-1]
    decisions = [server.data(f"/decisions/{each}") for each in (event, following)]
    assert decisions[0]["reward"] == 1.0
    assert decisions[1]["propensities"] != decisions[0]["propensities"]
    assert server.data("/stats")["reward_sum"] == 1.0  # the click counted, the purchase was noted


def test_a_page_of_another_origin_does_the_same_by_script(shop, tmp_path):
    server, origin = shop(
        *("--reward-aggregation", "sum", "--click-reward", "0.5", "--conversion-reward", "0.5")
    )
    with browser(tmp_path) as page:
        page.get(f"{origin}/script")
        becomes(True, page.find_element("id", "ad").is_displayed)
        becomes({"impression": 1}, lambda: signals(server))
        before, [decision] = likely(server), decided(server)
        page.find_element("id", "ad").click()
        becomes(f"{origin}/product/{decision['ad']}?from={decision['event_id']}", lambda: page.current_url)
        becomes({"impression": 1, "click": 1}, lambda: signals(server))
        assert likely(server) == before  # more may come

        page.find_element("id", "buy").click()
        becomes({"impression": 1, "click": 1, "conversion": 1}, lambda: signals(server))
        assert likely(server)[decision["ad"]] > before[decision["ad"]]
        page.get(f"{origin}/script")
        becomes(2, lambda: len(decided(server)))
        assert page.execute_script("return document.cookie") == "likes=outdoors"  # the shop's own
        severe = [each for each in page.get_log("browser") if each["level"] == "SEVERE"]
    assert severe == []
    first, second = decided(server)
    assert (first["reward"], first["status"]) == (1.0, "rewarded")
    assert first["propensities"] != second["propensities"]


def test_an_ad_out_of_view_was_not_seen_until_it_is_scrolled_to(shop, tmp_path):
    server, origin = shop()
    with browser(tmp_path) as page:
        page.get(f"{origin}/product/boots")
        page.execute_script("""
            document.body.insertAdjacentHTML("beforeend", "<p style='height:4000px'><p id=ad>Buy");
            const script = document.createElement("script");
            script.src = arguments[0];
            script.onload = () => banditads.choose({context: {likes: "books"}}).then(
                choice => { banditads.watch(document.getElementById("ad"), choice); window.watched = true });
            document.body.append(script);
        """, f"{server.url}/banditads.js")  # fmt: skip
        becomes(True, lambda: page.execute_script("return !!window.watched"))
        time.sleep(1.5)  # longer than it takes to be seen
        assert signals(server) == {"impression": 0}
        page.execute_script("document.getElementById('ad').scrollIntoView()")
        becomes({"impression": 1}, lambda: signals(server))


def test_a_page_of_an_origin_that_is_not_listed_gets_no_ad(shop, tmp_path):
    server, origin = shop()
    with browser(tmp_path) as page:
        page.get(origin.replace("127.0.0.1", "localhost") + "/script")  # another origin to a browser
        becomes(True, lambda: any("CORS" in each["message"] for each in page.get_log("browser")))
        assert not page.find_element("id", "ad").is_displayed()
    assert server.data("/stats")["choices"] == 0  # the browser asked first, and did not go on


def test_a_click_that_a_browser_fetches_ahead_counts_when_it_is_made_and_not_before(shop, tmp_path):
    server, origin = shop()
    with browser(tmp_path) as page:
        page.get(origin)
        page.execute_script("""
            const rules = document.createElement("script");
            rules.type = "speculationrules";
            rules.textContent = JSON.stringify({prefetch: [{urls: [document.getElementById("ad").href],
                eagerness: "immediate"}]});
            document.body.append(rules);
        """)
        becomes(True, lambda: '/click/{id}",status="403"' in server("GET", "/metrics").text)
        assert "click" not in signals(server)
        page.find_element("id", "ad").click()
        becomes(True, lambda: "/product/" in page.current_url)
        assert signals(server)["click"] == 1
