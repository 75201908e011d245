"""create_app: the whole service as an application that another one mounts."""

import contextlib
import logging
from collections.abc import AsyncIterator

import anyio.to_thread
import structlog
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from ..settings import Settings
from ..settings_loader import load_settings
from .app import CatalogApp, build_app
from .page_files import page_for
from .problems import ProblemError
from .security import AccessPolicy

_ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - nothing is bound: it stands for an address that we do not know


def create_app(settings: Settings | None = None) -> Starlette:
    """The catalog as an application: watching, describing and serving run while its lifespan does.

    Starlette and FastAPI do not run the lifespan of what they mount. The host's own must enter it:

        catalog = create_app(settings)

        @contextlib.asynccontextmanager
        async def lifespan(app):
            async with catalog.router.lifespan_context(catalog):
                yield

        app = FastAPI(lifespan=lifespan)
        app.mount("/inference", catalog)

    Where the host listens is not known here, so readers need the token as on any address that others reach,
    unless `allow_anonymous` leaves the question to the host. One process, one state directory: with several
    workers only the first one gets in. uvicorn waits for open streams before it ends the lifespan that would end
    them: give it `timeout_graceful_shutdown`.

    Args:
        settings: by default from the environment and the file that `CKPTD_CONFIG` names.

    Raises:
        SettingsError: the settings cannot be used.
    """
    return MountedApp(load_settings({}) if settings is None else settings)


class MountedApp(Starlette):
    """Answers 503 until its lifespan has begun, and hands every request to the catalog's application from then on."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(lifespan=_run)
        self.settings = settings
        self.catalog_app: CatalogApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
        elif self.catalog_app is not None:
            await self.catalog_app(scope, receive, send)
        else:
            problem = ProblemError(
                503,
                "the catalog does not run",
                remedy="have the host's lifespan enter the one of this application, see create_app",
                headers={"Retry-After": "1"},
            )
            await problem.response()(scope, receive, send)


@contextlib.asynccontextmanager
async def _run(app: MountedApp) -> AsyncIterator[None]:
    from ..service import Service  # the service imports this package for its stream

    log: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger("ckptd"),  # where and how it is written is the host's to say
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer(key_order=["event"])],
    )
    page = await anyio.to_thread.run_sync(page_for, app.settings, log)
    service = await anyio.to_thread.run_sync(Service.open, app.settings, log)
    clean = False
    try:
        access = await anyio.to_thread.run_sync(AccessPolicy.from_settings, app.settings, service.roots, [_ANY_ADDRESS])
        access.trust_unix_socket = False  # the host's socket may be a web server's, with everybody behind it
        async with service.running():
            app.catalog_app = build_app(service, access, log=log, page=page)
            yield
            app.catalog_app = None
        clean = True
    finally:
        app.catalog_app = None
        await anyio.to_thread.run_sync(lambda: service.close(clean=clean))
