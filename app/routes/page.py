"""GET /: the page for people, static files of this service that bring nothing in from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from app.errors import ServiceError

router = APIRouter(include_in_schema=False)

# A token is typed into the page, and names out of checkpoints are shown on it: nothing but its own files may do
# anything there, and none of them makes markup of a text.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)

_FOLDER = Path(__file__).resolve().parent.parent / "page"
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_ASSETS = {path.name: path for path in _FOLDER.iterdir() if path.suffix in _MEDIA_TYPES}


@router.get("/")
async def page() -> FileResponse:
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
    return FileResponse(_FOLDER / "index.html", media_type="text/html", headers=headers)


@router.get("/page/{asset}")
async def page_asset(asset: str) -> FileResponse:
    path = _ASSETS.get(asset)
    if path is None:
        raise ServiceError("not_found", f"There is no {asset} here; / is the page.")
    # Unversioned, so that a new release's files are asked for.
    headers = {"Cache-Control": "no-cache"}
    return FileResponse(path, media_type=_MEDIA_TYPES[path.suffix], headers=headers)
