/** Which rows of a long list are on the screen, and where. Pure. */

/** A browser's elements cannot be taller than about 17 million pixels (Firefox); longer lists scroll scaled. */
export const MAX_HEIGHT = 15_000_000

export interface Window {
  /** Rows to draw: from `first` up to, without, `end`. */
  readonly first: number
  readonly end: number
  /** Pixels from the top of the list to the first of them. */
  readonly offset: number
  /** Pixels of the whole list. */
  readonly height: number
}

/** Rows beyond both edges, so that scrolling shows no gap before the next frame. */
export const OVERSCAN = 8

export function windowOf(scrollTop: number, viewport: number, count: number, rowHeight: number): Window {
  const ratio = ratioOf(viewport, count, rowHeight)
  const top = scrollTop * ratio
  const first = Math.max(0, Math.min(count, Math.floor(top / rowHeight) - OVERSCAN))
  const end = Math.max(first, Math.min(count, Math.ceil((top + viewport) / rowHeight) + OVERSCAN))
  return {
    first,
    end,
    offset: scrollTop - (top - first * rowHeight),
    height: Math.min(count * rowHeight, MAX_HEIGHT),
  }
}

/** Where to scroll so that a row is wholly seen; `scrollTop` itself where it is. */
export function scrollTo(
  index: number, scrollTop: number, viewport: number, count: number, rowHeight: number,
): number {
  const ratio = ratioOf(viewport, count, rowHeight)
  const [top, bottom] = [index * rowHeight, (index + 1) * rowHeight - viewport]
  const shown = scrollTop * ratio
  if (shown > top) return top / ratio
  return shown < bottom ? bottom / ratio : scrollTop
}

/** Pixels of rows that one pixel of scrolling moves. */
export function ratioOf(viewport: number, count: number, rowHeight: number): number {
  const full = count * rowHeight
  return full <= MAX_HEIGHT ? 1 : (full - viewport) / (MAX_HEIGHT - viewport)
}
