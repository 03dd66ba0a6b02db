"""The page itself: rendered here, without a script and without anything from elsewhere."""

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from sgps.card import card
from sgps.command import of_disk
from sgps.errors import RefusedError, SgpsError
from sgps_client.making import UNKNOWN
from sgps_client.serve_desk import Desk
from sgps_client.serve_door import COOKIE, HEADERS, Door
from sgps_client.serve_form import Form, TooLarge, read_form

SEE_OTHER, BAD, FORBIDDEN, LARGE, FAULT = 303, 400, 403, 413, 500
_STYLE = (files("sgps_client") / "serve.css").read_text(encoding="utf-8")
_SUM = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_SUM}'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
_PAGES = Environment(loader=PackageLoader("sgps_client", "."), autoescape=True, undefined=StrictUndefined)
Next = Callable[[Request], Awaitable[Response]]
Tell = Callable[[str], None]


def create(desk: Desk, door: Door, tell: Tell) -> FastAPI:
    """The application. tell: takes one line about a fault of the program; the line never holds a name or a value of a request."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    here, busy = f"/{door.room}/", asyncio.Lock()
    names = [(e.name, ", ".join(e.synonyms[:3])) for e in desk.catalogue().entries]

    def page(status: int = 200, error: str = "", form: Form | None = None) -> Response:
        record = desk.made.classifier.record if desk.made else None
        text = _PAGES.get_template("serve.html.j2").render(
            style=_STYLE, here=here, stamp=door.stamp, names=names, desk=desk, record=record, error=error, unknown=UNKNOWN,
            card=card(record) if record else "", typed={n: form.text(n) if form else "" for n in ("disease", "text", "name")},
        )  # fmt: skip
        return HTMLResponse(text, status)

    def plain(error: str, status: int) -> Response:
        return HTMLResponse(
            _PAGES.get_template("serve_word.html.j2").render(style=_STYLE, error=error, here=here), status
        )

    @app.middleware("http")
    async def guard(request: Request, go_on: Next) -> Response:
        try:
            door.check(request)
            response = await go_on(request)
        except RefusedError as error:
            response = plain(str(error), FORBIDDEN)
        except Exception as error:  # noqa: BLE001  its message may name a picture: it stays here
            tell(f"{type(error).__name__} {_place(error)}")
            response = plain("a fault of the program: the place is on the terminal", FAULT)
        response.headers.update({**HEADERS, "Content-Security-Policy": POLICY})
        return response

    async def post(request: Request, step: Callable[[Form], None], anchor: str) -> Response:
        form = None
        try:
            async with busy:  # one question at a time: pictures are held in memory
                form = await read_form(request)
                door.check_stamp(form.text("stamp"))
                await asyncio.to_thread(step, form)
        except RefusedError as error:
            return plain(str(error), FORBIDDEN)
        except TooLarge as error:
            return page(LARGE, str(error))
        except SgpsError as error:
            return page(BAD, str(error), form)
        except OSError as error:  # a full disk, a share that is away; what lies on the desk stays there
            return page(BAD, " - ".join(filter(None, of_disk(error))), form)
        except ClientDisconnect:
            return plain("the browser went away", BAD)
        return RedirectResponse(here + anchor, SEE_OTHER)

    @app.get("/open")
    async def enter(request: Request) -> Response:
        try:
            door.open(request.query_params.get("token", ""))
        except RefusedError as error:
            return plain(str(error), FORBIDDEN)
        # Not a redirect: that would still count as coming from the page, of a terminal in the browser, where the address was clicked.
        response = plain("", 200)
        response.headers["Refresh"] = f"0; url={here}"
        response.set_cookie(COOKIE, door.key, path=here, httponly=True, samesite="strict")
        return response

    @app.get(here)
    async def look(request: Request) -> Response:
        return page()

    @app.post(here + "make")
    async def make(request: Request) -> Response:
        def step(f: Form) -> None:
            desk.make(f.files.get("exemplar", []), f.text("disease"), f.text("text"))

        return await post(request, step, "#classifier")

    @app.post(here + "ask")
    async def ask(request: Request) -> Response:
        return await post(request, lambda f: desk.ask(f.files.get("pictures", [])), "#answers")

    @app.post(here + "save")
    async def save(request: Request) -> Response:
        return await post(request, lambda f: desk.save(f.text("name")), "#save")

    @app.post(here + "forget")
    async def forget(request: Request) -> Response:
        return await post(request, lambda f: desk.forget(), "")

    return app


def _place(error: BaseException) -> str:
    """File and line where it was raised, without the message: that could name a picture."""
    trace: Any = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"at {trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}" if trace else ""
