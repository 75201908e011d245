"""Fixtures of all tests: the event loop's backend, and a guard that fails a test whose loop is blocked."""

import logging
import pathlib
from collections.abc import Iterator

import hypothesis
import pytest
from blockbuster import BlockBuster, blockbuster_ctx

# Whatever else the profile of the place says (in CI: the same examples each time). No test asserts a timing.
hypothesis.settings.register_profile("ckptd", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("ckptd")


LONG = {
    *("catalog/callbacks/test_distributed.py", "catalog/test_training_guide.py"),
    *("daemon/test_commands_metadata_stopped.py", "faults/test_campaign.py"),
    *("faults/test_failing_disk.py", "faults/test_flat_directory.py"),
    *("scripts/test_page_backend.py", "service/test_real_systemd.py", "service/test_schemathesis.py"),
    *("validators/test_architecture.py", "web/test_accessible.py", "web/test_large.py", "web/test_live.py"),
}
"""Files whose slow tests take minutes; one that is missing here is only begun later."""
_TESTS = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of campaigns come first, then other long ones: what begins last would be waited for by all."""
    campaigns = {item.path for item in items if item.get_closest_marker("campaign")}
    long = {_TESTS / name for name in LONG}
    items.sort(key=lambda item: 0 if item.path in campaigns else 1 if item.path in long else 2)


@pytest.fixture
def anyio_backend() -> str:
    """The service runs on asyncio; so do its tests."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_blocking_calls_on_the_loop() -> Iterator[BlockBuster]:
    """A blocking call made by our own code on the event loop fails the test that made it."""
    # Not "ckptd": the name of the three packages has no path of its own, so nothing would be guarded.
    with blockbuster_ctx(scanned_modules=["ckptd.daemon"]) as guard:
        # It only asks for the working directory, and tests build settings and roots where they need them.
        guard.functions["os.path.abspath"].deactivate()
        # A logged exception shows its lines; the service does not log them by the dozen.
        for function in guard.functions.values():
            function.can_block_in("linecache.py", {"checkcache", "updatecache"})
            function.can_block_in("rich/traceback.py", {"_render_stack"})
            # Served from a thread; the tests' own check of every answer asks for it where it stands.
            function.can_block_in("daemon/http/openapi.py", {"describe"})
        yield guard


@pytest.fixture(autouse=True)
def _logging_stays_as_it_was() -> Iterator[None]:
    """Commands and services set the root logger; the next test is to hear what it would hear alone."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in [handler for handler in root.handlers if handler not in handlers and not _is_of_pytest(handler)]:
        root.removeHandler(handler)


def _is_of_pytest(handler: logging.Handler) -> bool:
    return type(handler).__module__.startswith("_pytest.")
