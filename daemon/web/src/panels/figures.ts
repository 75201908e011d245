/** Figures of the health view as people read them. */

import { formatAge } from '../format'

/** How long ago; below two minutes in seconds: a sweep is at most some seconds old. */
export function preciseAge(time: string, nowMs: number): string {
  const seconds = Math.max(0, Math.round((nowMs - Date.parse(time)) / 1_000))
  return seconds < 120 ? `${seconds} s ago` : formatAge(time, nowMs)
}

/** A share in whole percent; not quite all is never 100 %, and a little never 0. */
export function percent(part: number, whole: number): string {
  const share = whole > 0 ? (100 * part) / whole : 0
  const shown = share > 0 && share < 1 ? '< 1' : share < 100 && share > 99 ? '> 99' : String(Math.round(share))
  return `${shown} %`
}
