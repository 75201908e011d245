/** The panel's width: dragged or set by keys, and remembered. */

import type { JSX } from 'preact'
import { useState } from 'preact/hooks'

const KEY = 'ckptd.detail-width'
const LEAST = 360
const STEP = 32
const DEFAULT = 520

/** The width in CSS pixels, and the handle that changes it. */
export function useResize(panel: { current: HTMLElement | null }): { width: number; handle: JSX.Element } {
  const [width, setWidth] = useState(remembered)
  const most = Math.max(LEAST, Math.round(innerWidth * 0.85))
  const change = (wanted: number): void => {
    const next = Math.round(Math.max(LEAST, Math.min(most, wanted)))
    setWidth(next)
    remember(next)
  }
  const drag = (event: PointerEvent): void => {
    const handle = event.currentTarget as HTMLElement
    const right = panel.current?.getBoundingClientRect().right ?? innerWidth
    handle.setPointerCapture(event.pointerId)
    const move = (moved: PointerEvent): void => change(right - moved.clientX)
    handle.addEventListener('pointermove', move)
    handle.addEventListener('lostpointercapture', () => handle.removeEventListener('pointermove', move), { once: true })
  }
  const onKeyDown = (event: KeyboardEvent): void => {
    const wanted = { ArrowLeft: width + STEP, ArrowRight: width - STEP, Home: LEAST, End: most }[event.key]
    if (wanted === undefined) return
    event.preventDefault()
    event.stopPropagation()
    change(wanted)
  }
  const handle = (
    // a separator that moves has no element of its own
    <div
      class="detail-handle"
      role="separator"
      aria-orientation="vertical"
      aria-label="width of the details"
      aria-valuemin={LEAST}
      aria-valuemax={most}
      aria-valuenow={Math.min(width, most)}
      tabIndex={0}
      onPointerDown={drag}
      onDblClick={() => change(DEFAULT)}
      onKeyDown={onKeyDown}
    />
  )
  return { width, handle }
}

function remembered(): number {
  try {
    const kept = Number(localStorage.getItem(KEY))
    return kept >= LEAST ? kept : DEFAULT
  } catch {
    return DEFAULT // storage is not for everyone
  }
}

function remember(width: number): void {
  try {
    localStorage.setItem(KEY, String(width))
  } catch {
    // it is the same width until the page is closed
  }
}
