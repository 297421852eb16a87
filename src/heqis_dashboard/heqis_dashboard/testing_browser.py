# SPDX-License-Identifier: Apache-2.0
"""A real browser for tests and benchmarks: the machine's Chromium, driven by playwright.

Nothing else imports it. Playwright downloads no browser here: it takes the one that is installed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

NAMES = ('chromium', 'chromium-browser', 'google-chrome')
NICE = 15
"""More than the node of the page takes."""
SIZE = {'width': 1440, 'height': 1000}

# What the page has drawn, with the time at which it was seen first: asked 50 times a second inside
# the browser, so that the way back to the test does not count.
_WATCH_MARKS = """
() => {
  const seen = window.heqisSeen = new Map();
  const look = () => {
    const chart = document.querySelector('#chart .js-plotly-plot');
    if (!chart || !chart.data || chart.data.length < 5) return;
    const now = Date.now();
    for (const trace of [2, 3]) {
      for (const label of chart.data[trace].x) {
        const key = chart.data[trace].name + ' ' + label;
        if (!seen.has(key)) seen.set(key, now);
      }
    }
  };
  look();
  setInterval(look, 20);
}
"""


def why_no_browser() -> str:
    """Return why there is no browser to test with; empty if there is one."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return 'playwright is not installed (requirements/development.txt)'
    if not any(map(shutil.which, NAMES)):
        return f'no Chromium on this machine (Debian package chromium; looked for {NAMES})'
    return ''


@dataclass
class Watched:
    """One open page, and what its console has complained about.

    Attributes:
        page: playwright's.
        complaints: errors and warnings of the console, uncaught errors, failed requests.
        foreign: addresses asked for elsewhere than where the page is from.
    """

    page: Any
    url: str
    complaints: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def listen(self) -> None:
        """Begin to take notes."""
        note = self.complaints.append
        self.page.on(
            'console',
            lambda m: note(f'{m.type}: {m.text}') if m.type in ('error', 'warning') else None,
        )
        self.page.on('pageerror', lambda error: note(f'uncaught: {error}'))
        self.page.on('requestfailed', lambda r: note(f'failed: {r.url} {r.failure}'))
        self.page.on('request', self._note_foreign)

    def _note_foreign(self, request: Any) -> None:
        own = (self.url, self.url.replace('http', 'ws'), 'blob:', 'data:')
        if not request.url.startswith(own):
            self.foreign.append(request.url)

    def chart(self, expression: str) -> Any:
        """Return an expression of Plotly's `chart` element, or None if it is not drawn yet."""
        return self.page.evaluate(
            """(expression) => {
              const chart = document.querySelector('#chart .js-plotly-plot');
              return chart && chart.data ? new Function('chart', 'return ' + expression)(chart)
                                         : null;
            }""",
            expression,
        )

    def watch_marks(self) -> None:
        """Begin to note when each mark is seen first; those that are there count as seen now."""
        self.page.evaluate(_WATCH_MARKS)

    def marks_seen(self) -> dict[str, int]:
        """Return when each mark was seen first, wall clock in ms, by `BUY label`."""
        found: dict[str, int] = self.page.evaluate('() => Object.fromEntries(window.heqisSeen)')
        return found

    def choose(self, symbol: str) -> None:
        """Choose a symbol as a person does."""
        self.page.click('#symbol')
        self.page.get_by_role('option', name=symbol).first.click()
        # The menu stays open on the symbol that was chosen already.
        self.page.keyboard.press('Escape')


@contextmanager
def browser() -> Iterator[Any]:
    """Yield a headless Chromium."""
    from playwright.sync_api import sync_playwright

    binary = next(filter(None, map(shutil.which, NAMES)))
    with sync_playwright() as playwright:
        # As root, as in a container, Chromium runs without its sandbox only.
        chromium = playwright.chromium.launch(executable_path=binary, args=['--no-sandbox'])
        _stand_back()
        try:
            yield chromium
        finally:
            chromium.close()


def _stand_back() -> None:
    # A browser's place is another machine: here the graph and the page's node go first. Processes
    # that it starts later inherit this.
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if 'chrom' in process.name():
                process.nice(NICE)


def open_page(chromium: Any, url: str) -> Watched:
    """Open the page in a session of its own and wait until it is connected."""
    page = chromium.new_context(viewport=SIZE).new_page()
    watched = Watched(page, url)
    watched.listen()
    page.goto(url)
    page.wait_for_function("() => Number(document.querySelector('#beat')?.textContent) > 0")
    return watched
