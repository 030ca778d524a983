"""A browser without a network."""

from __future__ import annotations

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in _NAMES if (path := shutil.which(name))), None)


@pytest.fixture(scope="package")
def chromium():
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("there is no Chromium on this machine")
        pytest.skip("needs Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """Opens a page, and sees to it that nothing goes wrong on it and nothing is fetched but a
    script that it is said to share."""
    said: list[str] = []
    contexts = []

    def open_page(path, script=None, **settings):
        own = {path.as_uri()} | ({script.as_uri()} if script else set())
        context = chromium.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
        page.on("request", lambda r: None if r.url in own else said.append(r.url[:80]))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [line for line in said if not line.startswith(("blob:", "data:"))] == []
