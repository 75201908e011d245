"""The page in headless Chromium with 100,000 checkpoints: how soon they are there, and how it feels."""

import shutil
import statistics
from typing import Any

from list_backend import list_server
from report import Row, against, percentile, print_report

ENTRIES, QUICK_ENTRIES = 100_000, 20_000
REPETITIONS, QUICK_REPETITIONS = 3, 2
DEADLINE_MS = 120_000
FIRST_ROW_MS, ALL_ROWS_MS, LONGEST_TASK_MS, KEY_TO_PAINT_MS, FRAMES_PER_S, SCRIPT_KB = 500, 2_500, 100, 50, 55, 60
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
]

_WATCH = """
window.measured = {longest: 0, tasks: 0}
new PerformanceObserver((list) => {
  for (const { duration } of list.getEntries()) {
    measured.longest = Math.max(measured.longest, duration)
    measured.tasks += 1
  }
}).observe({ type: 'longtask', buffered: true })
const look = () => {
  const now = performance.now()
  if (!measured.first && document.querySelector('[role="row"][id^="row-"]')) measured.first = now
  if (document.querySelector('.count')?.textContent === '%s' && !document.querySelector('.loading')) measured.all = now
  else requestAnimationFrame(look)
}
requestAnimationFrame(look)
"""
"""A frame that shows a row counts from the next look on: at most one frame too late, never too early."""

_TYPE = """async (text) => {
  const search = document.getElementById('search')
  const count = document.querySelector('.count')
  const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))
  const times = []
  for (let end = 1; end <= text.length; end += 1) {
    const before = count.textContent
    const start = performance.now()
    search.value = text.slice(0, end)
    search.dispatchEvent(new Event('input', { bubbles: true }))
    await painted()
    for (let frame = 0; frame < 25 && count.textContent === before; frame += 1) await painted()
    if (count.textContent !== before) times.push(performance.now() - start)
    await new Promise((done) => setTimeout(done, 50))
  }
  search.value = ''
  search.dispatchEvent(new Event('input', { bubbles: true }))
  await painted()
  return times
}"""
"""Times of the keys that changed how many match; after the frame that shows it was painted."""

_SCROLL = """async (seconds) => {
  const grid = document.querySelector('[role="grid"]')
  const start = performance.now()
  let frames = 0
  while (performance.now() - start < 1000 * seconds) {
    await new Promise(requestAnimationFrame)
    grid.scrollTop += 250
    frames += 1
  }
  return frames / seconds
}"""

TYPED = ("run_0001", "parseq_v1", "epoch=07", "resnet50d_v")


def run(*, quick: bool = False) -> None:
    """Measure and print."""
    executable = shutil.which("chromium")
    if executable is None:
        raise SystemExit("scripts/bench page needs Chromium: apt install chromium")
    from playwright.sync_api import sync_playwright

    entries, repetitions = (QUICK_ENTRIES, QUICK_REPETITIONS) if quick else (ENTRIES, REPETITIONS)
    visits, keys, frames = [], [], []
    with list_server(entries, {0}) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        for _ in range(repetitions):
            visit, page = _visit(browser, server.port, entries)
            visits.append(visit)
            for text in TYPED:
                keys += page.evaluate(_TYPE, text)
            frames.append(page.evaluate(_SCROLL, 2))
            page.context.close()
        browser.close()
    _print(entries, visits, keys, frames)


def _visit(browser: Any, port: int, entries: int) -> tuple[dict[str, float], Any]:
    page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    page.set_default_timeout(DEADLINE_MS)
    page.add_init_script(_WATCH % f"{entries:,}")
    scripts: list[Any] = []
    page.on("requestfinished", lambda request: scripts.append(request) if request.url.endswith(".js") else None)
    page.goto(f"http://127.0.0.1:{port}/", wait_until="commit")
    page.wait_for_function("() => window.measured.all")
    measured = dict(page.evaluate("window.measured"))
    measured["script_kb"] = sum(request.sizes()["responseBodySize"] for request in scripts) / 1024
    return measured, page


def _print(entries: int, visits: list[dict[str, float]], keys: list[float], frames: list[float]) -> None:
    def median(name: str) -> float:
        return statistics.median(visit[name] for visit in visits)

    rows = [
        _row("first row, after navigation", median("first"), "ms", FIRST_ROW_MS),
        _row("all rows", median("all"), "ms", ALL_ROWS_MS),
        _row("longest task while loading", median("longest"), "ms", LONGEST_TASK_MS),
        _row("a key in the search → painted, median", statistics.median(keys), "ms", KEY_TO_PAINT_MS),
        Row("a key in the search → painted, p95", f"{percentile(keys, 0.95):.0f} ms"),
        _row("frames while scrolling", statistics.median(frames), "/s", FRAMES_PER_S, at_least=True),
        _row("script before the plot, gzip", median("script_kb"), "KB", SCRIPT_KB),
    ]
    print_report(f"the page, {entries:,} checkpoints, median of {len(visits)} visits", rows)


def _row(what: str, value: float, unit: str, budget: float, *, at_least: bool = False) -> Row:
    sign = "≥" if at_least else "≤"
    return Row(what, f"{value:.0f} {unit}", f"{sign} {budget} {unit}", against(value, budget, at_least=at_least))
