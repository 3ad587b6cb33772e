"""Applications that tests/test_wsgi.py has served by `python -m pylibevent.wsgi wsgi_apps:NAME`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

TEXT = [("Content-Type", "text/plain")]


def plain(environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
    """Answers with its process id, after ?SECONDS; /die kills it."""
    if environ["PATH_INFO"] == "/die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(environ["QUERY_STRING"] or 0))
    start("200 OK", TEXT)
    return [str(os.getpid()).encode()]


def endless(environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
    start("200 OK", TEXT)
    while True:
        yield bytes(65536)


def flask() -> WSGIApplication:
    from flask import Flask, Response, abort, jsonify, request, send_file, stream_with_context

    app = Flask(__name__)

    @app.post("/form")
    def form() -> Any:
        upload = request.files["file"]
        return jsonify(name=request.form["name"], size=len(upload.read()), file=upload.filename)

    @app.get("/hello/<who>")
    def hello(who: str) -> str:
        return f"Hello, {who} from {request.args['from']}"

    @app.get("/stream")
    def stream() -> Response:
        return Response(stream_with_context(f"part {n}\n" for n in range(3)))

    @app.get("/file")
    def file() -> Response:
        return send_file(os.environ["WSGI_TEST_FILE"], mimetype="application/octet-stream")

    @app.get("/cookie")
    def cookie() -> Response:
        response = Response(request.cookies["a"] + request.cookies["b"])
        response.set_cookie("one", "1")
        response.set_cookie("two", "2")
        return response

    @app.get("/teapot")
    def teapot() -> str:
        abort(418)

    @app.get("/raises")
    def raises() -> str:
        raise ZeroDivisionError

    return app


def django() -> WSGIApplication:
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
    from django.urls import path

    def hello(request: HttpRequest, who: str) -> HttpResponse:
        return HttpResponse(f"Hello, {who} from {request.GET['from']}")

    def form(request: HttpRequest) -> HttpResponse:
        return HttpResponse(f"{request.POST['name']}, {len(request.FILES['file'].read())}")

    def stream(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(f"part {n}\n" for n in range(3))

    def file(request: HttpRequest) -> FileResponse:
        return FileResponse(open(os.environ["WSGI_TEST_FILE"], "rb"))

    settings.configure(
        ALLOWED_HOSTS=["127.0.0.1"],
        MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
        ROOT_URLCONF=(
            path("hello/<who>", hello),
            path("form", form),
            path("stream", stream),
            path("file", file),
        ),
        SECRET_KEY="for tests",
    )
    app: WSGIApplication = get_wsgi_application()
    return app


def __getattr__(name: str) -> WSGIApplication:
    """flask_app and django_app are made when they are asked for."""
    return {"flask_app": flask, "django_app": django}[name]()
