"""What a WSGI application is told of its server, whichever it is: whether others may be called at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyfanout.kind import WSGIApp
    from pyfanout.worker.worker import WorkerProcess


def informed(app: WSGIApp, worker: WorkerProcess, *, multithread: bool, multiprocess: bool = False) -> WSGIApp:
    """`app`, called with true values of `wsgi.multithread`, and of `wsgi.multiprocess`: whether there are to be several
    workers, or the server has several processes in each (`multiprocess`). The servers do not know of the former."""

    def call(environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsgi.multithread"] = multithread
        environ["wsgi.multiprocess"] = multiprocess or worker.has_siblings
        return app(environ, start_response)

    return call
