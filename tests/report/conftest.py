"""One browser for all tests of pages: Debian's Chromium, driven by Playwright."""

import shutil
from contextlib import contextmanager

import pytest


@pytest.fixture(scope="session")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def watched(chromium):
    """Yields what opens the file at a path; complaints on the console, and requests, are errors when it is over."""

    @contextmanager
    def watching(path):
        said, asked, contexts = [], [], []

        def open_file(**context):
            contexts.append(chromium.new_context(**context))
            page = contexts[-1].new_page()
            page.set_default_timeout(300_000.0)  # against a hang, on a machine that does other things, too
            page.on("console", lambda message: said.append(message.text) if message.type != "log" else None)
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-ready]", state="attached")
            return page

        yield open_file
        for context in contexts:
            context.close()
        assert said == []
        assert asked == [path.as_uri()] * len(contexts)

    return watching
