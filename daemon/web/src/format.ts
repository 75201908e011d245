/** Values as people read them. Pure; times take `nowMs` as an argument. */

import { visible } from './visible'

/** What is shown where a value is not known. */
export const UNKNOWN = '–'

const SIZES = ['B', 'kB', 'MB', 'GB', 'TB', 'PB']

/** `1234567` → `1.23 MB`: three digits, powers of 1000, as disks are sold and `size<10MB` means. */
export function formatBytes(bytes: number | null): string {
  if (bytes === null) return UNKNOWN
  let [value, unit] = [bytes, 0]
  while (value >= 999.5 && unit < SIZES.length - 1) {
    value /= 1000
    unit += 1
  }
  return `${unit === 0 ? value : threeDigits(value)} ${SIZES[unit]}`
}

/** `25600000` → `25.6M`. */
export function formatCount(count: number | null): string {
  if (count === null) return UNKNOWN
  for (const [size, unit] of [[1e12, 'T'], [1e9, 'B'], [1e6, 'M'], [1e3, 'k']] as const) {
    if (count >= size * 0.9995) return `${threeDigits(count / size)}${unit}`
  }
  return String(count)
}

/** A metric's value: four digits behind the point, fewer where it is large, exponents only where it is tiny. */
export function formatMetric(value: number | null | undefined): string {
  if (value === null || value === undefined) return UNKNOWN
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value)
  const size = Math.abs(value)
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(2)
  return value.toFixed(size >= 1000 ? 1 : size >= 10 ? 2 : 4)
}

/** `12500` → `12,500`. */
export function formatNumber(value: number): string {
  return GROUPED.format(value)
}

const GROUPED = new Intl.NumberFormat('en')

const SPANS = [
  ['y', 31_556_952_000],
  ['mo', 2_629_746_000],
  ['d', 86_400_000],
  ['h', 3_600_000],
  ['min', 60_000],
] as const

/** How long ago, `5 min ago`; what lies less than a minute back is `now`, what lies ahead says so. */
export function formatAge(time: string | null, nowMs: number): string {
  const at = Date.parse(time ?? '')
  if (Number.isNaN(at)) return UNKNOWN
  for (const [unit, length] of SPANS) {
    const count = Math.floor(Math.abs(at - nowMs) / length)
    if (count) return at < nowMs ? `${count} ${unit} ago` : `in ${count} ${unit}`
  }
  return 'now'
}

/** Made once: to make one takes 50 us, and a table has forty times on the screen. */
const LOCAL = new Intl.DateTimeFormat('en-CA', { dateStyle: 'short', timeStyle: 'medium', hourCycle: 'h23' })

/** The moment itself, in the reader's zone and in UTC. */
export function formatMoment(time: string | null): string {
  const at = new Date(time ?? '')
  if (Number.isNaN(at.getTime())) return UNKNOWN
  return `${LOCAL.format(at).replace(',', '')} (${at.toISOString()})`
}

/** Seconds until something, whole ones, never negative. */
export function secondsUntil(atMs: number, nowMs: number): number {
  return Math.max(0, Math.ceil((atMs - nowMs) / 1000))
}

/** Longest text that goes into a table's cell; the detail panel shows all of it. */
const MAX_CELL = 300

/** Most text; nothing in it has to be made visible. */
const PRINTABLE = /^[\x20-\x7e]*$/

/** Text for a cell: visible, and not longer than can be looked at. */
export function cellText(text: string): string {
  if (text.length <= MAX_CELL && PRINTABLE.test(text)) return text
  const shown = text.length > MAX_CELL ? `${text.slice(0, MAX_CELL / 2)}…${text.slice(-MAX_CELL / 2)}` : text
  return visible(shown)
}

/** A path in two pieces, of which the first gives way where there is no room: ends tell paths apart. */
export function splitPath(path: string): readonly [head: string, tail: string] {
  const slash = path.lastIndexOf('/', path.lastIndexOf('/') - 1)
  const at = slash <= 0 || path.length - slash > 48 ? Math.max(0, path.length - 24) : slash
  return [path.slice(0, at), path.slice(at)]
}

/** Least length of what is split, and most of the piece that stays whole. */
const SPLIT_NAME = 20
const NAME_TAIL = 10

/** Letters that are read from the right, marks, and halves of pairs: a piece of such text does not stand where it belongs. */
const WHOLE_ONLY = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff\p{M}]|[^\0-\uffff]/u

/**
 * A name in two pieces, of which the first gives way where there is no room: what differs within a run, the step, the
 * score, stands at the end. `epoch=28-step=23722-val_loss=0.12` → `epoch=28-step=23722-val`, `_loss=0.12`. A name that
 * is short, or whose pieces would not stand in their order, is the first piece alone.
 */
export function splitName(name: string): readonly [head: string, tail: string] {
  if (name.length < SPLIT_NAME || WHOLE_ONLY.test(name)) return [name, '']
  const end = name.slice(-NAME_TAIL)
  const at = name.length - NAME_TAIL + Math.max(0, end.slice(0, -3).search(/[-_=./ ]/))
  return [name.slice(0, at), name.slice(at)]
}

/** The number that a step of 25 % is announced for: 0, 25, 50, 75 or 100. */
export function quarterOf(done: number, total: number): number {
  return total > 0 ? Math.min(100, Math.floor((4 * done) / total) * 25) : 0
}

function threeDigits(value: number): string {
  return value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0)
}
