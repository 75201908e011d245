"""PageFiles: the built page, read once and held in memory, compressed in advance."""

import gzip
import hashlib
import importlib.metadata
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

import structlog

from ..settings import Settings

DIRECTORY = os.path.join(os.path.dirname(os.path.dirname(__file__)), "web", "dist")
"""Where the build backend puts the page: package data of `ckptd.daemon`; in a checkout, the same beside the sources."""
CONFIG_MARK = '<meta name="ckptd" content="" />'
"""In `daemon/web/index.html`, for what the server tells the page."""
STYLE_OF_SIGN_IN = "sign-in.css"
ASSETS = "assets"
"""Directory of the files that Vite names by their contents."""
MAX_FILES = 200
MAX_FILE_BYTES = 4 << 20
MAX_TOTAL_BYTES = 16 << 20
"""The page has a twentieth of each; this is against a directory that is something else."""
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""What may be in a page; the operating system's own table (`mimetypes`) differs from machine to machine."""
_HASHED = re.compile(r"\w[\w.-]*-[\w-]{8}\.\w+", re.ASCII)


class PageError(Exception):
    """Raised when the built page cannot be used; the message says why and what to do."""


class PageFile(NamedTuple):
    """One file, ready to be sent."""

    body: bytes
    gzipped: bytes | None
    """None where it would save nothing."""
    media_type: str
    digest: str
    is_immutable: bool
    """Its name changes with its contents."""


class PageFiles(NamedTuple):
    """The built page."""

    before: str
    """`index.html` up to where the server tells the page about itself."""
    after: str
    version: str
    """Of ckptd: looked up once, because it is on disk."""
    files: Mapping[str, PageFile]
    """By path beneath the page's own address; all that can ever be asked for."""

    def get(self, name: str) -> PageFile | None:
        """The file of that name, compared as a whole: no path is ever made from what a client sent."""
        return self.files.get(name)


def page_for(settings: Settings, log: structlog.stdlib.BoundLogger) -> PageFiles | None:
    """The page that the settings ask for, where there is one. Without a page the service is whole all the same."""
    if not settings.page:
        return None
    try:
        return load_page()
    except PageError as error:
        log.error("the page is not served", error=str(error))
        return None


def load_page(directory: str = DIRECTORY) -> PageFiles | None:
    """Read the built page; takes a few milliseconds, so not on the event loop.

    Returns:
        None where there is none: it was left out of this installation.

    Raises:
        PageError: there is one, and it cannot be read or is no page of ours.
    """
    try:
        with open(os.path.join(directory, "index.html"), encoding="utf-8") as file:
            index = file.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise PageError(f"{directory}/index.html cannot be read ({error}); build the page again") from error
    before, mark, after = index.partition(CONFIG_MARK)
    if not mark:
        raise PageError(f"{directory}/index.html has no {CONFIG_MARK}; build the page again")
    try:
        return PageFiles(before, after, importlib.metadata.version("ckptd"), _read_files(directory))
    except OSError as error:
        raise PageError(f"the page in {directory} cannot be read ({error}); build it again") from error


def _read_files(directory: str) -> dict[str, PageFile]:
    files: dict[str, PageFile] = {}
    total = 0
    for folder, prefix in ((directory, ""), (os.path.join(directory, ASSETS), f"{ASSETS}/")):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            media_type = _MEDIA_TYPES.get(os.path.splitext(entry.name)[1])
            if media_type is None or entry.name.endswith(".html") or not entry.is_file():
                continue
            size = entry.stat().st_size
            total += size
            if size > MAX_FILE_BYTES or total > MAX_TOTAL_BYTES or len(files) >= MAX_FILES:
                raise PageError(f"{entry.path} is more than a page can be; build the page again")
            with open(entry.path, "rb") as file:
                body = file.read()
            files[prefix + entry.name] = _page_file(entry.name, body, media_type, is_asset=bool(prefix))
    return files


def _page_file(name: str, body: bytes, media_type: str, *, is_asset: bool) -> PageFile:
    gzipped = gzip.compress(body, mtime=0)
    return PageFile(
        body,
        gzipped if len(gzipped) < len(body) else None,
        media_type,
        hashlib.blake2b(body, digest_size=9).hexdigest(),
        is_asset and _HASHED.fullmatch(name) is not None,
    )
