"""A small shop whose pages show one ad: with no JavaScript at all at `/`, with banditads.js at `/script`.

    banditads serve --catalog examples/shop/ads.jsonl --cors-origins http://127.0.0.1:8000
    python examples/shop/shop.py            # then open http://127.0.0.1:8000

Nothing to install. Say what you like, click on ads, buy things, and watch the probabilities at the bottom.
"""

from __future__ import annotations

import argparse
import json
import secrets
import urllib.request
from contextlib import suppress
from html import escape
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, urlencode, urlsplit

HERE = Path(__file__).parent
TASTES = ("outdoors", "kitchen", "books")
PRODUCTS = {ad["id"]: ad for ad in map(json.loads, (HERE / "ads.jsonl").read_text("utf-8").splitlines())}
FRAME, HOME, SCRIPT, PRODUCT, THANKS = (
    (HERE / f"{name}.html").read_text("utf-8") for name in ("frame", "home", "script", "product", "thanks")
)


def fill(template: str, **values: str) -> str:
    """The template with `$name` replaced; everything is escaped but what ends in `_html`."""
    for name in sorted(values, key=len, reverse=True):
        value = values[name]
        template = template.replace(f"${name}", value if name.endswith("_html") else escape(value))
    return template


class Shop(BaseHTTPRequestHandler):
    """The pages."""

    ads = ""  # where banditads answers

    def do_GET(self) -> None:
        """One page."""
        url = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        likes = SimpleCookie(self.headers.get("Cookie", "")).get("likes")
        taste = asked.get("likes") or (likes.value if likes else "")
        taste = taste if taste in TASTES else TASTES[0]
        match url.path.strip("/").split("/"):
            case [""]:
                self.show("Home", self.home(taste), taste)
            case ["script"]:
                self.show("Home, with banditads.js", fill(SCRIPT, ads=self.ads, taste=taste), taste)
            case ["product", name] if name in PRODUCTS:
                ad = PRODUCTS[name]
                page = fill(
                    PRODUCT,
                    **{key: ad["creative"][key] for key in ("title", "text", "icon")},
                    price=str(ad["creative"]["price"]),
                    thanks="/thanks?" + urlencode({"product": name, "from": asked.get("from", "")}),
                )
                self.show(ad["creative"]["title"], page, taste)
            case ["thanks"] if asked.get("product") in PRODUCTS:
                self.show("Thank you", self.thanks(asked), taste)
            case _:
                self.send_error(404)

    def home(self, taste: str) -> str:
        """The ad as a link and a picture; the visitor's browser needs to know nothing."""
        said = self.ask("/choose", {"placement": "home", "context": {"likes": taste}})
        rows = "".join(
            fill('<tr><td>$id<td><meter value="$p"></meter><td>$percent', id=ad, p=str(p), percent=f"{p:.0%}")
            for ad, p in said["propensities"].items()
        )
        return fill(
            HOME,
            **{key: said["ad"]["creative"][key] for key in ("title", "text", "icon")},
            click=self.ads + said["click_url"],
            pixel=self.ads + said["impression_url"],
            rows_html=rows,
        )

    def thanks(self, asked: dict[str, str]) -> str:
        """With a picture that says what was bought, where there is no script to say it."""
        price, order = str(PRODUCTS[asked["product"]]["creative"]["price"]), secrets.token_hex(4)
        event = asked.get("from", "")
        bought = urlencode({"value": price, "order_id": order})
        picture = f"{self.ads}/conversion/{quote(event, safe='')}?{bought}" if event else ""
        return fill(THANKS, ads=self.ads, price=price, order=order, event=event, picture=picture)

    def ask(self, path: str, body: dict[str, object]) -> dict[str, object]:
        """What banditads answers."""
        request = urllib.request.Request(
            self.ads + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request, timeout=10))

    def show(self, title: str, page: str, taste: str) -> None:
        """The page in its frame."""
        tastes = "".join(
            fill(
                '<a href="?likes=$each" $now>$each</a>',
                each=each,
                now="aria-current=true" if each == taste else "",
            )
            for each in TASTES
        )
        body = fill(FRAME, title=title, tastes_html=tastes, page_html=page).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", f"likes={taste}; Path=/; SameSite=Lax")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing: the terminal is for the URL."""


def main() -> None:
    """Open the shop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ads", default="http://127.0.0.1:8080", help="where banditads answers")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    given = parser.parse_args()
    Shop.ads = given.ads.rstrip("/")
    with ThreadingHTTPServer(("127.0.0.1", given.port), Shop) as server:
        print(f"the shop is open at http://127.0.0.1:{server.server_port}", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
