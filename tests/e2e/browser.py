"""Chromium without a window, driven by Playwright.

`python -m tests.e2e.browser` installs what the tests marked `browser` need, where Debian's packages are available.
"""

import contextlib
import shutil
import sys
from collections.abc import Iterator

from playwright.sync_api import Browser, ConsoleMessage, Page, ViewportSize, sync_playwright

from sandbox.servers import apt
from sandbox.servers.sources import Unavailable
from tests.e2e import nginx

#: The programs that are used if Debian's, the first one, is not installed.
PROGRAMS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
#: No sandbox: it is not available to root and in containers. Nothing but the tests' own requests leaves the browser.
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PHONE: ViewportSize = {"width": 390, "height": 844}


def program() -> str | None:
    """The path of the installed browser."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextlib.contextmanager
def running() -> Iterator[Browser]:
    """A browser; each test opens pages in a context of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def errors_of(page: Page) -> list[str]:
    """The errors and warnings of the page's console from now on, as they come."""
    errors: list[str] = []

    def add(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            errors.append(f"{message.text} ({message.location})")

    page.on("console", add)
    page.on("pageerror", lambda error: errors.append(str(error)))
    return errors


def overflow(page: Page) -> int:
    """By how many pixels the page is wider than its viewport."""
    pixels: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return pixels


def main() -> None:
    """Install Debian's packages of the programs that are missing; end with the reason if that is not possible."""
    missing = [name for name, path in {"chromium": program(), "nginx": nginx.PROGRAM}.items() if not path]
    try:
        for package in missing:
            apt.install(package, say=print)
    except Unavailable as reason:
        sys.exit(f"make test-browser needs nginx, and Chromium or Google Chrome: {reason}")


if __name__ == "__main__":
    main()
