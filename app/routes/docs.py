"""GET /docs: the interface to try out, with every script and style from this service and none from elsewhere."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse, HTMLResponse

from app.errors import ServiceError

router = APIRouter(prefix="/docs", include_in_schema=False)

# A token is typed into this page: no other host may bring a script into it, or have it sent there.
# The user interface writes styles into its elements.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

# What the package has of Swagger UI; it is not asked for its routes, which bring scripts in the page.
_RESOURCES = Path(str(files("fastapi_swagger") / "resources"))
_ASSETS = ("favicon-32x32.png", "swagger-ui-bundle.js", "swagger-ui.css")

# Addresses are relative, for the service may stand behind a path of a proxy's.
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>migrate-ckpt</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""

_START = """\
SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true });
"""


@router.get("")
async def docs() -> HTMLResponse:
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": POLICY})


@router.get("/start.js")
async def start() -> Response:
    return Response(_START, media_type="text/javascript")


@router.get("/{asset}")
async def docs_asset(asset: str) -> FileResponse:
    if asset not in _ASSETS:
        raise ServiceError("not_found", f"There is no {asset} here; /docs is the page.")
    return FileResponse(_RESOURCES / asset)
