"""The wire: list, detail, live stream, health."""

from ..tokens import AccessError
from .app import CatalogApp, build_app
from .events import EventHub
from .mounted import create_app
from .security import AccessPolicy

__all__ = ["AccessError", "AccessPolicy", "CatalogApp", "EventHub", "build_app", "create_app"]
