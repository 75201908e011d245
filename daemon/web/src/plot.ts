/** Plots of metrics: uPlot, fetched when the first one is drawn, in the colours of the page's theme. */

import type uPlot from 'uplot'

export interface PlotLine {
  /** Null is a gap that the line is drawn across. */
  readonly values: readonly (number | null)[]
  /** Lines with the same scale share an axis. */
  readonly scale: string
}

export interface PlotSpec {
  readonly xs: readonly number[]
  readonly xLabel: string
  readonly lines: readonly PlotLine[]
  /** What is marked by a vertical line; null: nothing. */
  readonly marked: number | null
  readonly format: (value: number) => string
  /** The pointer is at this position of `xs`; null: it left. */
  readonly onHover: (position: number | null) => void
  /** The point of this line at this position was chosen. */
  readonly onPick: (position: number, line: number) => void
}

export interface Plot {
  destroy(): void
}

/** Lines differ by dash as well as by colour (WCAG 1.4.1); the same patterns are in panels.css for the legend. */
export const DASHES: readonly (readonly number[])[] = [[], [7, 4], [2, 3], [9, 3, 2, 3]]
const HEIGHT = 220
const AXES_SHOWN = 2

/** Draw into `host`, follow its width and the theme until destroyed. */
export async function drawPlot(host: HTMLElement, spec: PlotSpec, signal: AbortSignal): Promise<Plot | null> {
  const [{ default: UPlot }] = await Promise.all([import('uplot'), import('uplot/dist/uPlot.min.css')])
  if (signal.aborted) return null
  let plot = make(UPlot, host, spec)
  const redraw = (): void => {
    plot.destroy()
    plot = make(UPlot, host, spec)
  }
  const resized = new ResizeObserver(() => {
    if (host.clientWidth > 0 && host.clientWidth !== plot.width) plot.setSize({ width: host.clientWidth, height: HEIGHT })
  })
  resized.observe(host)
  const themed = new MutationObserver(redraw)
  themed.observe(document.documentElement, { attributes: true, attributeFilter: ['data-theme'] })
  const preferred = matchMedia('(prefers-color-scheme: dark)')
  preferred.addEventListener('change', redraw)
  return {
    destroy: () => {
      resized.disconnect()
      themed.disconnect()
      preferred.removeEventListener('change', redraw)
      plot.destroy()
    },
  }
}

function make(UPlot: typeof uPlot, host: HTMLElement, spec: PlotSpec): uPlot {
  const token = tokensOf(host)
  const scales = [...new Set(spec.lines.map(({ scale }) => scale))]
  const options: uPlot.Options = {
    width: Math.max(host.clientWidth, 100),
    height: HEIGHT,
    legend: { show: false },
    cursor: { points: { size: 9 }, drag: { x: false, y: false } },
    scales: { x: { time: false, range: widened }, ...Object.fromEntries(scales.map((scale) => [scale, { auto: true }])) },
    axes: axesOf(spec, scales, token),
    series: [{}, ...spec.lines.map((line, at) => seriesOf(line, at, token))],
    hooks: {
      draw: [(plot) => mark(plot, spec.marked, token('--accent'))],
      setCursor: [(plot) => spec.onHover(plot.cursor.idx ?? null)],
      ready: [(plot) => listen(plot, spec)],
    },
  }
  return new UPlot(options, [[...spec.xs], ...spec.lines.map(({ values }) => [...values])] as uPlot.AlignedData, host)
}

type Token = (name: string) => string

function tokensOf(host: HTMLElement): Token {
  const style = getComputedStyle(host)
  return (name) => style.getPropertyValue(name).trim() || 'gray'
}

function seriesOf(line: PlotLine, at: number, token: Token): uPlot.Series {
  const stroke = token(`--plot-${(at % DASHES.length) + 1}`)
  const dash = DASHES[at % DASHES.length] ?? []
  return {
    scale: line.scale,
    stroke,
    width: 2,
    dash: [...dash],
    spanGaps: true,
    points: { show: line.values.length <= 200, size: 7, fill: token('--bg'), stroke },
  }
}

function axesOf(spec: PlotSpec, scales: readonly string[], token: Token): uPlot.Axis[] {
  const font = `11px ${token('--font')}`
  const look = { stroke: token('--muted'), font, ticks: { stroke: token('--border'), width: 1 } }
  const grid = { stroke: token('--border'), width: 1 }
  // Whole numbers of epochs and steps: there is nothing between two of them.
  const across: uPlot.Axis = {
    ...look,
    grid: { ...grid, show: false },
    label: spec.xLabel,
    labelFont: font,
    labelSize: 18,
    size: 28,
    incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 1e7, 1e8, 1e9],
  }
  const upright = scales.slice(0, AXES_SHOWN).map(
    (scale, at): uPlot.Axis => ({
      ...look,
      // An axis has the colour of its line where each line has its own.
      stroke: scales.length > 1 ? token(`--plot-${at + 1}`) : token('--muted'),
      scale,
      // oxlint-disable-next-line typescript/no-unsafe-enum-assignment -- uPlot has its enums as types alone
      side: at === 0 ? 3 : 1,
      size: 56,
      grid: { ...grid, show: at === 0 },
      values: (_, ticks) => ticks.map((tick) => spec.format(tick)),
    }),
  )
  return [across, ...upright]
}

/** A little room on both sides; a single point stands in the middle. */
function widened(_: uPlot, low: number | null, high: number | null): [number, number] {
  const [from, to] = [low ?? 0, high ?? 1]
  const room = Math.max((to - from) * 0.03, from === to ? 1 : 0)
  return [from - room, to + room]
}

function mark(plot: uPlot, x: number | null, colour: string): void {
  if (x === null) return
  const { ctx, bbox } = plot
  const at = Math.round(plot.valToPos(x, 'x', true))
  ctx.save()
  ctx.strokeStyle = colour
  ctx.lineWidth = devicePixelRatio
  ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio])
  ctx.beginPath()
  ctx.moveTo(at, bbox.top)
  ctx.lineTo(at, bbox.top + bbox.height)
  ctx.stroke()
  ctx.restore()
}

function listen(plot: uPlot, spec: PlotSpec): void {
  plot.over.addEventListener('click', () => {
    const { idx, top } = plot.cursor
    if (idx === null || idx === undefined || top === undefined) return
    const line = nearest(plot, spec, idx, top)
    if (line >= 0) spec.onPick(idx, line)
  })
}

/** The line whose point at this position is nearest to the pointer. */
function nearest(plot: uPlot, spec: PlotSpec, position: number, top: number): number {
  const distances = spec.lines.map(({ values, scale }) => {
    const value = values[position]
    return value === null || value === undefined ? Infinity : Math.abs(plot.valToPos(value, scale) - top)
  })
  const least = Math.min(...distances)
  return Number.isFinite(least) ? distances.indexOf(least) : -1
}
