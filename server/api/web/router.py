"""Page to try tools on: its files, served from memory under a policy that admits nothing from elsewhere."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.errors import json_response
from server.api.info.health import Health

FOLDER = Path(__file__).parent / "page"
PAGE, SANDBOX = "index.html", "sandbox.html"
FILES_PATH = "/web/"  # of the files that the page loads; without a key, which a browser could not send
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing inline, nothing from elsewhere, and no text becomes HTML or script: there is no trusted type.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
# The frame that runs functions of the user: an origin of its own, without network, in which anything may run.
SANDBOX_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' blob:; worker-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file as it is sent."""

    body: bytes
    headers: Mapping[str, str]


def read_file(path: Path) -> PageFile:
    """A file of the page with its headers. Browsers ask each time whether it has changed."""
    body = path.read_bytes()
    is_sandbox = path.name == SANDBOX
    headers = {
        "content-type": MEDIA_TYPES[path.suffix],
        "content-security-policy": SANDBOX_POLICY if is_sandbox else PAGE_POLICY,
        "x-content-type-options": "nosniff",
        "x-frame-options": "SAMEORIGIN" if is_sandbox else "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=()",
        "cache-control": "no-cache",
        "vary": "accept",
        "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
    }
    return PageFile(body, headers)


def web_router() -> APIRouter:
    """Routes of the page, and of its files. Other requests for `/` get the health reply."""
    files = {path.name: read_file(path) for path in sorted(FOLDER.iterdir()) if path.suffix in MEDIA_TYPES}
    router = APIRouter()

    async def root(request: Request) -> Response:
        if accepts_html(request.headers.get("accept", "")):
            return send(request, files[PAGE])
        reply = json_response(Health("ok"))
        reply.headers["vary"] = "accept"
        return reply

    async def file(request: Request) -> Response:
        found = files.get(request.path_params["name"])
        return Response(status_code=404) if found is None else send(request, found)

    router.add_api_route("/", root, methods=["GET", "HEAD"], include_in_schema=False)
    router.add_route(f"{FILES_PATH}{{name}}", file, methods=["GET", "HEAD"])
    return router


def send(request: Request, file: PageFile) -> Response:
    """The file, or that it has not changed."""
    if request.headers.get("if-none-match") == file.headers["etag"]:
        return Response(status_code=304, headers=file.headers)
    return Response(file.body, headers=file.headers)


def accepts_html(accept: str) -> bool:
    """Whether a client asks for HTML by name, as browsers do; programs take anything."""
    return any(part.partition(";")[0].strip().lower() == "text/html" for part in accept.split(","))
