"""The page and its files over HTTP: who gets it, under which policy, and that it loads nothing from elsewhere."""

import re
from pathlib import Path

import pytest

from server.api.web.router import FOLDER, MEDIA_TYPES
from tests.api.conftest import Serve

HTML = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES)
ADDRESS = re.compile(r"(?:https?:)?//[a-z0-9]", re.IGNORECASE)
NAMESPACE = "http://www.w3.org/2000/svg"


async def test_browsers_get_the_page_and_programs_are_told_that_the_process_lives(serve: Serve) -> None:
    """Monitors poll `/` and read its JSON."""
    async with serve() as served:
        page = await served.http.get("/", headers=HTML)
        assert page.status_code == 200 and page.text.startswith("<!doctype html>")
        for accept in ("*/*", "application/json", ""):
            health = await served.http.get("/", headers={"accept": accept})
            assert health.json() == {"status": "ok"} and health.headers["vary"] == "accept"
        head = await served.http.head("/", headers=HTML)
        assert head.status_code == 200 and head.headers["content-type"] == "text/html; charset=utf-8"


async def test_every_file_that_is_named_is_served_and_none_besides(serve: Serve) -> None:
    async with serve() as served:
        named = {"app.js", "style.css", "icon.svg", "sandbox.html"}
        for path in FILES:
            named |= set(re.findall(r'from "\./([\w.]+)"', path.read_text(encoding="utf-8")))
        assert named | {"index.html"} == {path.name for path in FILES}
        for name in named:
            file = await served.http.get(f"/web/{name}")
            assert file.status_code == 200 and file.headers["x-content-type-options"] == "nosniff"
        for name in ("none.js", "..%2frouter.py", "%2e%2e/router.py", "../router.py", ""):
            assert (await served.http.get(f"/web/{name}")).status_code == 404


async def test_the_policy_admits_this_server_alone(serve: Serve) -> None:
    async with serve() as served:
        page = (await served.http.get("/", headers=HTML)).headers
        frame = (await served.http.get("/web/sandbox.html")).headers
    for directive in (
        "default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'",
        "form-action 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'",
    ):  # fmt: skip
        assert directive in page["content-security-policy"]
    assert "unsafe" not in page["content-security-policy"] and page["x-frame-options"] == "DENY"
    assert frame["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none'")
    assert "allow-same-origin" not in frame["content-security-policy"] and "connect-src" not in str(frame)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_fetched_from_elsewhere_and_no_text_becomes_html(path: Path) -> None:
    """A font or a script of another server would tell it who tries which tools, and would fail offline."""
    text = path.read_text(encoding="utf-8").replace(NAMESPACE, "")
    assert not ADDRESS.search(text), ADDRESS.search(text)
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "srcdoc", "eval(", "new Function"):
        assert sink not in text, sink


async def test_the_page_needs_no_key_and_the_rest_does(serve: Serve) -> None:
    """The page asks for the key: a browser sends none with a link or a script."""
    async with serve(api_key="one") as served:
        for path in ("/", "/web/app.js", "/web/none.js"):
            assert (await served.http.get(path, headers=HTML)).status_code in (200, 404)
        for path in ("/v1/models", "/webs", "/web", "/v1/web/app.js"):
            assert (await served.http.get(path, headers=HTML)).status_code == 401


async def test_a_file_that_has_not_changed_is_not_sent_again(serve: Serve) -> None:
    async with serve() as served:
        first = await served.http.get("/web/app.js")
        again = await served.http.get("/web/app.js", headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"") and again.headers["etag"] == first.headers["etag"]


async def test_requests_of_the_page_pass_and_foreign_pages_do_not(serve: Serve) -> None:
    """What a browser sends from the page itself, and from a page of another site."""
    own = {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}
    foreign = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"}
    async with serve() as served:
        assert (await served.http.get("/v1/models", headers=own)).status_code == 200
        assert (await served.http.get("/web/app.js", headers=foreign)).status_code == 403
        framed = {**foreign, "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
        assert (await served.http.get("/web/sandbox.html", headers=framed)).status_code == 403
