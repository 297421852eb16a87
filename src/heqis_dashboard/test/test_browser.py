# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, without a graph behind it: never blank, whatever is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from heqis_core.control import Event, Level
from heqis_core.simulator import MarketSimulator
from heqis_core.testing import wait_until
from heqis_core.testing_graph import make_beat
from heqis_dashboard.chart import Chart, blank_figure, local_time
from heqis_dashboard.live import PageData
from heqis_dashboard.testing_browser import browser, open_page, why_no_browser
from heqis_dashboard.views import Sources

pytestmark = pytest.mark.skipif(
    bool(why_no_browser()), reason=why_no_browser() or 'there is a browser'
)
DEADLINE_S = 20


# What Dash does on a loaded machine: the whole figure comes, and the resizing of the one before is
# finished only then.
_OVERTAKE = """
async ([first, whole]) => {
  const chart = document.body.appendChild(document.createElement('div'));
  chart.style.cssText = 'width: 900px; height: 460px';
  await Plotly.react(chart, first);
  const drawn = Plotly.react(chart, whole);
  await Plotly.relayout(chart, {autosize: true});
  await drawn;
  return chart.data.length;
}
"""


@pytest.fixture(scope='module')
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


def text_of(watched: Any, selector: str) -> str:
    return str(watched.page.inner_text(selector))


def test_a_page_of_a_dead_graph_says_so_and_waits(served: Any, data: PageData, chromium) -> None:
    data.sources = lambda: Sources('/desk in ROS domain 7', journal='no journal at run/x.db')
    watched = open_page(chromium, served.url)
    wait_until(lambda: 'no node is heard' in text_of(watched, '#banner'), DEADLINE_S, 'the banner')
    assert '/desk in ROS domain 7' in text_of(watched, '#banner')
    assert 'no journal at run/x.db' in text_of(watched, '#banner')
    wait_until(lambda: 'no bars of any symbol yet' in text_of(watched, '#chart'), DEADLINE_S, '')
    assert text_of(watched, '#clock') == 'no bar yet'

    block = MarketSimulator(3, 7).next_block()
    data.feed.add_bars('daily', 0, block)
    data.state.beat(make_beat('gateway', 1, 1), time.monotonic())
    data.bell.ring()
    wait_until(
        lambda: watched.chart('chart.data[0].x.length') == 1, DEADLINE_S, 'its first candle'
    )
    assert 'no bars' not in text_of(watched, '#chart')
    assert watched.complaints == []
    assert watched.foreign == []


def test_a_figure_that_overtakes_the_resizing_of_the_first_is_drawn_without_complaint(
    served: Any, data: PageData, chromium
) -> None:
    watched = open_page(chromium, served.url)
    watched.page.wait_for_function('() => window.Plotly')
    whole = Chart(data.style, 'daily', '').update(data.feed)
    assert watched.page.evaluate(_OVERTAKE, [blank_figure(data.style), whole]) == 5
    assert watched.complaints == []


def test_what_a_node_says_is_text_and_never_markup(served: Any, data: PageData, chromium) -> None:
    attack = '<img src=x onerror="document.title=1">'
    data.state.happened(Event(time.time_ns(), Level.ERROR, attack, attack, attack, attack))
    data.state.beat(make_beat('gateway', 1, 1, node=attack), time.monotonic())
    watched = open_page(chromium, served.url)
    wait_until(lambda: attack in text_of(watched, '#events'), DEADLINE_S, 'the event')
    assert attack in text_of(watched, '#nodes')
    assert watched.page.locator('img').count() == 0
    assert watched.page.title() == 'HEQIS /desk in ROS domain 7'


def test_a_page_whose_server_ends_says_so_and_is_there_again_with_it(
    serve: Callable[..., Any], data: PageData, chromium
) -> None:
    served = serve()
    watched = open_page(chromium, served.url)
    served.stop()
    offline = watched.page.locator('#offline')
    wait_until(lambda: offline.count() == 1, DEADLINE_S, 'the page says that it is cut off')
    assert 'what is shown is old' in offline.inner_text()
    served.start()
    wait_until(lambda: offline.count() == 0, 60, 'the page is connected again')
    wait_until(lambda: 'no node is heard' in text_of(watched, '#banner'), DEADLINE_S, 'the banner')


def test_one_page_too_many_is_told_so(served: Any, data: PageData, chromium) -> None:
    data.most = 1
    open_page(chromium, served.url)
    second = chromium.new_context().new_page()
    second.goto(served.url)
    wait_until(
        lambda: 'close one, then reload' in second.inner_text('#banner'), DEADLINE_S, 'the banner'
    )
    assert data.counters['pages_refused'] >= 1


def test_a_zoom_stays_when_the_figure_grows_and_when_it_is_made_anew(
    served: Any, data: PageData, chromium
) -> None:
    market = MarketSimulator(3, 7)
    seqs = iter(range(1000))

    def bars(n: int) -> None:
        for seq in (next(seqs) for _ in range(n)):
            data.feed.add_bars('daily', seq, market.next_block())
        data.bell.ring()

    bars(150)
    watched = open_page(chromium, served.url)
    wait_until(lambda: (watched.chart('chart.data[0].x.length') or 0) >= 90, DEADLINE_S, 'candles')
    box = watched.page.locator('#chart').bounding_box()
    assert box['height'] == 460
    watched.page.mouse.move(box['x'] + box['width'] / 2, box['y'] + box['height'] / 2)
    watched.page.mouse.wheel(0, -400)  # once: Plotly takes its time for each
    zoomed = 'chart.layout.xaxis.autorange === false && chart.layout.xaxis.range'
    wait_until(lambda: bool(watched.chart(zoomed)), DEADLINE_S, 'the wheel zooms')
    ranges = [None, watched.chart(zoomed)]
    wait_until(
        lambda: ranges.append(settle(watched, zoomed)) or ranges[-1] == ranges[-2],
        DEADLINE_S,
        'the zoom comes to rest',
    )
    settled = ranges[-1]
    first = watched.chart('chart.data[0].x[0]')
    for more in (5, 150):  # appended; then more than there is room for
        bars(more)
        last = market_label(data)
        drawn = f'chart.data[0].x.includes("{last}")'
        wait_until(lambda drawn=drawn: watched.chart(drawn), DEADLINE_S, 'news')
        assert watched.chart(zoomed) == pytest.approx(settled, abs=2)
    assert watched.chart('chart.data[0].x.length') <= 2 * data.style.candles
    assert first != watched.chart('chart.data[0].x[0]')


def settle(watched: Any, expression: str) -> Any:
    watched.page.wait_for_timeout(400)  # Plotly redraws some time after the wheel
    return watched.chart(expression)


def market_label(data: PageData) -> str:
    return local_time(data.feed.last_time_ns(), data.style.zone).strftime('%Y-%m-%d')


@pytest.mark.parametrize('width', [800, 1400])
def test_the_chart_has_its_height_in_any_window_and_without_any_signal(
    served: Any, chromium, width: int
) -> None:
    page = chromium.new_context(viewport={'width': width, 'height': 900}).new_page()
    page.goto(served.url)
    drawn = page.locator('#chart .js-plotly-plot')
    drawn.wait_for(timeout=DEADLINE_S * 1000)
    wait_until(lambda: drawn.bounding_box()['height'] == 460, DEADLINE_S, 'the height')
    assert page.evaluate(
        '() => { const m = document.querySelector("#market");'
        ' return m.scrollHeight <= m.clientHeight }'
    )


# --- the kill switch ---


class Gate:
    """Whom the buttons reach: as the risk gate does, it says in the page's state what it did."""

    def __init__(self, data: PageData) -> None:
        self.data, self.stuck = data, ''
        self.reasons: list[str] = []
        self.beats = 0
        self.say(False, '')

    def say(self, engaged: bool, reason: str) -> None:
        self.beats += 1
        beat = make_beat('risk_gate', 1, self.beats, kill_switch=int(engaged))
        info = f'kill switch engaged by service: {reason}' if engaged else 'event clock'
        node = msgspec.structs.replace(beat.nodes[0], info=info)
        beat = msgspec.structs.replace(beat, nodes=(node,))
        self.data.state.beat(beat, time.monotonic() + 3600)

    async def act(self, engage: bool, reason: str) -> tuple[bool, str]:
        self.reasons.append(reason)
        if not self.stuck:
            self.say(engage, reason)
        return engage ^ bool(self.stuck), self.stuck


def test_a_person_stops_everything_with_a_reason_and_lets_it_go_on(
    serve: Callable[..., Any], data: PageData, chromium
) -> None:
    gate = Gate(data)
    watched = open_page(chromium, serve(act=gate.act).url)
    page, state = watched.page, lambda: text_of(watched, '#kill')
    wait_until(lambda: state() == 'kill switch: not engaged', DEADLINE_S, 'the state')

    page.click('#kill-on')
    page.click('#ask >> text=cancel')
    assert page.locator('#ask').count() == 0
    assert gate.reasons == [], 'a click alone does nothing'

    page.click('#kill-on')
    assert 'stop all signals?' in text_of(watched, '#ask').lower()
    page.fill('#ask input', 'smoke <b>')
    page.click('#ask button >> text=stop all signals')
    wait_until(lambda: page.locator('#ask').count() == 0, DEADLINE_S, 'it was done')
    assert gate.reasons == ['the page, 127.0.0.1: smoke <b>']
    said = 'engaged by service: the page, 127.0.0.1: smoke <b>'
    wait_until(lambda: state() == f'kill switch: {said}', DEADLINE_S, 'the state')
    assert f'every signal is refused ({said})' in text_of(watched, '#banner')

    gate.stuck = 'the file is still there'
    page.click('#kill-off')
    page.click('#ask button >> text=let signals out')
    wait_until(lambda: gate.stuck in text_of(watched, '#ask'), DEADLINE_S, 'that it was not done')
    gate.stuck = ''
    page.click('#ask button >> text=let signals out')
    wait_until(lambda: state() == 'kill switch: not engaged', DEADLINE_S, 'the state')
    assert page.locator('#ask').count() == 0
    assert watched.complaints == []


def test_a_foreign_page_cannot_press_the_button(
    serve: Callable[..., Any], data: PageData, chromium
) -> None:
    """A page of another origin, in the same browser, tries all that a browser lets it try."""
    gate = Gate(data)
    target = f'{serve(act=gate.act).url}/kill-switch'
    other = serve()
    page = chromium.new_context().new_page()
    page.goto(f'{other.url}/assets/heqis.css')
    tried = page.evaluate(
        """async (target) => {
          const body = JSON.stringify({engage: true, reason: 'evil'});
          const ways = [
            {mode: 'no-cors', body: body},
            {mode: 'no-cors', body: body, headers: {'Content-Type': 'text/plain'}},
            {body: body, headers: {'Content-Type': 'application/json',
                                   'X-HEQIS-Action': 'kill-switch'}},
          ];
          const outcomes = [];
          for (const way of ways) {
            outcomes.push(await fetch(target, {method: 'POST', ...way}).then(
              (answer) => answer.type, () => 'failed'));
          }
          outcomes.push(navigator.sendBeacon(target, body) ? 'sent' : 'not sent');
          return outcomes;
        }""",
        target,
    )
    assert tried[:3] == ['opaque', 'opaque', 'failed']
    page.set_content(f'<form action="{target}" method="post"><button>x</button></form>')
    page.click('button')
    page.wait_for_url(target)
    assert 'refused' in page.inner_text('body')
    assert gate.reasons == []
