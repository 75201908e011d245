/** Curves of metrics: a plot to look at, a table of the same for whoever cannot, and a legend that both share. */

import type { JSX, RefObject } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'

import { formatMetric } from '../format'
import { drawPlot, type PlotSpec } from '../plot'
import { clippedName, visible } from '../visible'
import { type History, normalised } from './history'

export type Scaling = 'own' | 'normalised' | 'shared'

interface Props {
  readonly label: string
  readonly history: History
  readonly scaling: Scaling
  /** What is marked; null: nothing. */
  readonly currentId: string | null
  readonly onOpen: (id: string) => void
}

const AXIS_WORDS = { epoch: 'epoch', global_step: 'step' } as const

export function Curves(props: Props): JSX.Element {
  const { history, scaling, currentId } = props
  const [hovered, setHovered] = useState<number | null>(null)
  const host = usePlot(props, setHovered)
  const at = hovered !== null && hovered < history.xs.length ? hovered : placeOf(history, currentId)
  return (
    <div class="curves">
      <ul class="legend">
        {history.lines.map((line, place) => (
          <li key={`${line.label}/${line.metric}`} class={`line-${(place % 4) + 1}`}>
            <svg aria-hidden="true" viewBox="0 0 24 8" width="24" height="8">
              <line x1="0" y1="4" x2="24" y2="4" />
            </svg>
            <bdi>{visible(clippedName(line.label, 80))}</bdi>
            <output>{at === null ? '' : formatMetric(line.values[at] ?? null)}</output>
          </li>
        ))}
        {at !== null && (
          <li class="muted">
            {AXIS_WORDS[history.axis]} {history.xs[at]}
          </li>
        )}
      </ul>
      {/* The table below says the same in words. */}
      <div ref={host} class="plot" aria-hidden="true" />
      {scaling === 'normalised' && <p class="muted">each line from its lowest value to its highest</p>}
      <details>
        <summary>the same as a table</summary>
        <CurveTable {...props} />
      </details>
    </div>
  )
}

function CurveTable({ label, history, currentId, onOpen }: Props): JSX.Element {
  return (
    <div class="table-scroll">
      <table class="data-table">
        <caption class="sr-only">{label}</caption>
        <thead>
          <tr>
            <th scope="col">{AXIS_WORDS[history.axis]}</th>
            {history.lines.map((line) => (
              <th scope="col" key={`${line.label}/${line.metric}`}>
                <bdi>{visible(clippedName(line.label, 80))}</bdi>
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {history.xs.map((x, place) => (
            <tr key={x}>
              <th scope="row">{x}</th>
              {history.lines.map((line) => {
                const id = line.ids[place]
                return (
                  <td key={`${line.label}/${line.metric}`}>
                    {id && (
                      <button
                        type="button"
                        class="button link"
                        aria-current={id === currentId ? 'true' : undefined}
                        onClick={() => onOpen(id)}
                      >
                        {formatMetric(line.values[place])}
                        {id === currentId ? ' ●' : ''}
                      </button>
                    )}
                  </td>
                )
              })}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  )
}

/** Keeps a plot of the history in the element that the returned reference is given to. */
function usePlot(props: Props, setHovered: (position: number | null) => void): RefObject<HTMLDivElement | null> {
  const host = useRef<HTMLDivElement>(null)
  const onOpen = useRef(props.onOpen)
  onOpen.current = props.onOpen
  const { history, scaling, currentId } = props
  // The rows change while a training writes; the plot is drawn anew only when what it shows does.
  const drawn = JSON.stringify([history, scaling, currentId])
  useEffect(() => {
    const element = host.current
    if (!element || history.xs.length === 0) return
    const controller = new AbortController()
    const spec = specOf(history, scaling, currentId, setHovered, (id) => onOpen.current(id))
    const plot = drawPlot(element, spec, controller.signal)
    plot.catch(() => element.replaceChildren('the plot could not be loaded; the table below has its values'))
    return () => {
      controller.abort()
      void plot.then((made) => made?.destroy()).catch(() => {})
    }
    // oxlint-disable-next-line react-hooks/exhaustive-deps -- `drawn` is all of them
  }, [drawn])
  return host
}

function specOf(
  history: History,
  scaling: Scaling,
  currentId: string | null,
  onHover: (position: number | null) => void,
  onOpen: (id: string) => void,
): PlotSpec {
  const place = placeOf(history, currentId)
  return {
    xs: history.xs,
    xLabel: AXIS_WORDS[history.axis],
    lines: history.lines.map((line, at) => ({
      values: scaling === 'normalised' ? normalised(line) : line.values,
      scale: scaling === 'own' ? `y${at}` : 'y',
    })),
    marked: place === null ? null : (history.xs[place] ?? null),
    format: tickText,
    onHover,
    onPick: (position, line) => {
      const id = history.lines[line]?.ids[position]
      if (id) onOpen(id)
    },
  }
}

/** Of an axis: no zeros that say nothing. */
function tickText(value: number): string {
  const text = formatMetric(value)
  return text.includes('e') || !text.includes('.') ? text : text.replace(/\.?0+$/, '')
}

function placeOf(history: History, id: string | null): number | null {
  if (id === null) return null
  for (const line of history.lines) {
    const place = line.ids.indexOf(id)
    if (place >= 0) return place
  }
  return null
}
