/**
 * What was typed into the search box, as the API's `q` means it (catalog/search.py): words, prefixes, phrases,
 * `field:value` and comparisons, all of which must hold. Hyper-parameters and config are not here: entries do not
 * have them; the API's `q` looks into them, and found.ts asks it.
 */

import type { Entry } from '../wire'

export interface SearchTerm {
  /** As it was typed. */
  readonly token: string
  /** `text` is the entry's `searchText`. */
  readonly holds: (entry: Entry, text: string) => boolean
}

export interface Search {
  readonly terms: readonly SearchTerm[]
  /** What cannot be used, and what may stand there; such tokens filter nothing. */
  readonly problems: readonly string[]
}

type Test = SearchTerm['holds']
/** Both ends included. */
type Bounds = readonly [low: number, high: number]

const MAX_TERMS = 32
const TOKEN = /-?(?:[^\s"]*"[^"]*"\S*|\S+)/g
const OPERATOR = /^([^\s:<>="*]*[\p{L}_][^\s:<>="*]*)(>=|<=|[<>=:])(.*)$/su
// oxlint-disable-next-line no-control-regex -- ASCII has control characters
const ASCII = /^[\x00-\x7f]*$/

/** Text as it is compared: composed, and without case. */
export function fold(text: string): string {
  return ASCII.test(text) ? text.toLowerCase() : text.normalize('NFC').toLowerCase()
}

/** What words are looked for in, in folded case. */
export function searchText(entry: Entry): string {
  let text = `${entry.path}\n${entry.display_name}`
  for (const named of [entry.exp_name, entry.run_id, entry.architecture, entry.backbone]) {
    if (named !== null && !text.includes(named)) text += `\n${named}`
  }
  return fold(text)
}

/** Read what was typed. Never fails: what cannot be used is told as a problem. */
export function parseSearch(q: string): Search {
  const terms: SearchTerm[] = []
  const problems: string[] = []
  for (const token of (q.match(TOKEN) ?? []).slice(0, MAX_TERMS)) {
    const isNegated = token.startsWith('-') && token.length > 1
    const read = termOf(isNegated ? token.slice(1) : token)
    if (typeof read === 'string') problems.push(`${token}: ${read}`)
    else terms.push({ token, holds: isNegated ? (entry, text) => !read(entry, text) : read })
  }
  return { terms, problems }
}

/** The test of one term, or what is wrong with it. */
function termOf(body: string): Test | string {
  if ((body.split('"').length - 1) % 2) return 'close the quote, e.g. "batch norm"'
  if (body.startsWith('"')) return phrase(body)
  const [, name, operator, value] = OPERATOR.exec(body) ?? []
  if (name === undefined || operator === undefined || value === undefined) return word(body)
  const unquoted = value.length > 1 && value.startsWith('"') && value.endsWith('"') ? value.slice(1, -1) : value
  if (operator === ':') return field(name, unquoted, body)
  if (operator === '=') return exactly(name, unquoted, body)
  return compare(name, operator, unquoted)
}

// ---- words --------------------------------------------------------------------------------------------------

function phrase(body: string): Test | string {
  const inner = fold(body.slice(1, -1).trim().replace(/\s+/g, ' '))
  if (!body.endsWith('"') || inner === '') return 'put words between the quotes, e.g. "batch norm"'
  return (_, text) => text.includes(inner)
}

function word(body: string): Test | string {
  const stem = body.endsWith('*') ? body.slice(0, -1) : body
  if (stem.includes('*') || stem === '') return 'a * stands at the end of a word, e.g. resn*'
  const literal = fold(stem)
  if (stem === body) return (_, text) => text.includes(literal)
  const pattern = new RegExp(`(?<![\\p{L}\\p{N}])${escaped(literal)}`, 'u')
  return (_, text) => text.includes(literal) && pattern.test(text)
}

function escaped(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&')
}

// ---- fields -------------------------------------------------------------------------------------------------

const EQUAL = ['exp_name', 'architecture', 'backbone', 'run_id', 'monitor'] as const
const CONTAINS = ['path', 'display_name', 'checkpoint_path', 'root', 'config_path'] as const
const MEMBERS = ['health', 'safety', 'verified', 'format', 'metadata_source'] as const
const FLAGS = ['has_metadata', 'has_config'] as const

function field(name: string, value: string, body: string): Test | string {
  if (isTime(name)) return timeWithin(name, ':', value)
  if (name in NUMERIC) return compare(name, ':', value)
  if (value === '') return word(body)
  const wanted = fold(value)
  const known = fieldTest(name, wanted)
  if (known !== null) return known
  // Any other name: a metric of that value or range, or the same characters somewhere.
  const within = metricWithin(name, value)
  const literal = fold(body.replaceAll('"', ''))
  return (entry, text) => (within?.(entry) ?? false) || text.includes(literal)
}

function fieldTest(name: string, wanted: string): Test | string | null {
  if (has(EQUAL, name)) return (entry) => isLike(entry[name], wanted)
  if (has(CONTAINS, name)) {
    const inner = wanted.endsWith('*') ? wanted.slice(0, -1) : wanted
    return (entry) => fold(entry[name] ?? '').includes(inner)
  }
  if (has(MEMBERS, name)) {
    const members = new Set(wanted.split(','))
    return (entry) => members.has(entry[name] ?? '')
  }
  if (has(FLAGS, name)) return flag(name, wanted)
  if (name === 'finding') return (entry) => entry.findings.some((found) => isLike(found.code, wanted))
  if (name === 'dtype') return (entry) => entry.dtypes.some((dtype) => isLike(dtype, wanted))
  return null
}

function flag(name: (typeof FLAGS)[number], wanted: string): Test | string {
  const isYes = ['true', 'yes', '1'].includes(wanted)
  if (!isYes && !['false', 'no', '0'].includes(wanted)) return `use ${name}:true or ${name}:false`
  return (entry) => entry[name] === isYes
}

function isLike(value: string | null, wanted: string): boolean {
  if (value === null) return false
  const folded = fold(value)
  return wanted.endsWith('*') ? folded.startsWith(wanted.slice(0, -1)) : folded === wanted
}

function has<T extends string>(names: readonly T[], name: string): name is T {
  return (names as readonly string[]).includes(name)
}

// ---- numbers ------------------------------------------------------------------------------------------------

type NumberField = 'epoch' | 'global_step' | 'monitor_value' | 'size_bytes' | 'weights_bytes' | 'optimizer_bytes'
  | 'n_parameters' | 'revision'

const SIZE: Readonly<Record<string, number>> = units(['k', 'm', 'g', 't'])
const COUNT: Readonly<Record<string, number>> = { '': 1, k: 1e3, m: 1e6, b: 1e9, g: 1e9, t: 1e12 }
const PLAIN: Readonly<Record<string, number>> = { '': 1 }
const NUMERIC: Readonly<Record<string, readonly [NumberField, Readonly<Record<string, number>>]>> = {
  __proto__: null as never,
  epoch: ['epoch', PLAIN],
  global_step: ['global_step', COUNT],
  step: ['global_step', COUNT],
  monitor_value: ['monitor_value', PLAIN],
  size: ['size_bytes', SIZE],
  size_bytes: ['size_bytes', SIZE],
  weights_bytes: ['weights_bytes', SIZE],
  optimizer_bytes: ['optimizer_bytes', SIZE],
  n_parameters: ['n_parameters', COUNT],
  parameters: ['n_parameters', COUNT],
  revision: ['revision', PLAIN],
}
const NUMBER = /^([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)([a-z]*)$/

function units(prefixes: readonly string[]): Record<string, number> {
  const found: Record<string, number> = { '': 1, b: 1 }
  prefixes.forEach((prefix, n) => {
    for (const byte of ['', 'b']) {
      found[prefix + byte] = 1000 ** (n + 1)
      found[`${prefix}i${byte}`] = 1024 ** (n + 1)
    }
  })
  return found
}

function exactly(name: string, value: string, body: string): Test {
  const literal = fold(body.replaceAll('"', ''))
  // Names of files are full of them: epoch=2 is also found in a name, and epoch=28 is another epoch.
  const pattern = new RegExp(`${escaped(literal)}(?![\\p{L}\\p{N}]|\\.\\d)`, 'u')
  const exact = isTime(name) ? timeWithin(name, ':', value) : compare(name, ':', value)
  const isSame = typeof exact === 'string' ? null : exact
  return (entry, text) => (isSame?.(entry, text) ?? false) || (text.includes(literal) && pattern.test(text))
}

function compare(name: string, operator: string, value: string): Test | string {
  if (isTime(name)) return timeWithin(name, operator, value)
  const [known, allowed] = NUMERIC[name] ?? [null, PLAIN]
  const bounds = interval(operator, value, (text) => {
    const number = numberOf(text, allowed)
    return number === null ? null : [number, number]
  })
  if (bounds === null) return 'use a number, e.g. epoch>=10 or size<10MB'
  const [low, high] = bounds
  const metric = metricName(name)
  const valueOf = known === null ? (entry: Entry) => metricOf(entry, metric) : (entry: Entry) => entry[known]
  return (entry) => {
    const own = valueOf(entry)
    if (own === null || own < low || own > high) return false
    return !(operator === '>' && own === low) && !(operator === '<' && own === high)
  }
}

function metricWithin(name: string, value: string): ((entry: Entry) => boolean) | null {
  const bounds = interval(':', value, (text) => {
    const number = numberOf(text, PLAIN)
    return number === null ? null : [number, number]
  })
  if (bounds === null) return null
  const metric = metricName(name)
  return (entry) => {
    const own = metricOf(entry, metric)
    return own !== null && own >= bounds[0] && own <= bounds[1]
  }
}

function metricName(name: string): string {
  return name.startsWith('metrics.') ? name.slice('metrics.'.length) : name
}

/** The value of a metric, under its own name or the one that the catalog's schema has for it. */
export function metricOf(entry: Entry, name: string): number | null {
  if (Object.hasOwn(entry.metrics, name)) return entry.metrics[name] ?? null
  const slot = /^(?:(?:val|valid|validation|eval)[/_.])?(precision|recall|hmean)(?:_epoch)?$/i.exec(name)?.[1]
  if (slot !== undefined) return entry.metrics[slot.toLowerCase()] ?? null
  if (/^(?:val|valid|validation|eval)[/_.]loss(?:_epoch)?$/i.test(name)) return entry.metrics['validation_loss'] ?? null
  return null
}

function numberOf(text: string, allowed: Readonly<Record<string, number>>): number | null {
  const [, digits, unit] = NUMBER.exec(text.toLowerCase()) ?? []
  const factor = unit === undefined || !Object.hasOwn(allowed, unit) ? undefined : allowed[unit]
  return digits === undefined || factor === undefined ? null : Number(digits) * factor
}

/** What an operator with a value asks for; of `>` and `<` the end itself is not meant. Null: no such value. */
function interval(operator: string, value: string, boundsOf: (text: string) => Bounds | null): Bounds | null {
  if (operator === ':' && value.includes('..')) {
    const dots = value.indexOf('..')
    const [low, high] = [value.slice(0, dots), value.slice(dots + 2)]
    const [first, last] = [low === '' ? null : boundsOf(low), high === '' ? null : boundsOf(high)]
    if ((first === null && low !== '') || (last === null && high !== '')) return null
    return [first?.[0] ?? -Infinity, last?.[1] ?? Infinity]
  }
  const bounds = boundsOf(value)
  if (bounds === null) return null
  if (operator === '>' || operator === '>=') return [operator === '>' ? bounds[1] : bounds[0], Infinity]
  if (operator === '<' || operator === '<=') return [-Infinity, operator === '<' ? bounds[0] : bounds[1]]
  return bounds
}

// ---- times --------------------------------------------------------------------------------------------------

const DAY_MS = 86_400_000
const TIMES = ['modified', 'modified_at', 'created', 'created_at']

function isTime(name: string): boolean {
  return TIMES.includes(name)
}

function timeWithin(name: string, operator: string, value: string): Test | string {
  const bounds = interval(operator, value, timeBounds)
  if (bounds === null) return 'use a day or a time, e.g. modified:2025-10-11..2025-10-12'
  const [low, high] = bounds
  const key = name.startsWith('modified') ? 'modified_at' : 'created_at'
  return (entry) => {
    const own = Date.parse(entry[key] ?? '')
    return own >= low && own < high // a day's end belongs to the next one
  }
}

/** From the beginning of a day or second, in UTC where no zone is named, to the beginning of the next. */
export function timeBounds(text: string): Bounds | null {
  const match = /^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?)(Z|[+-]\d{2}:\d{2})?)?$/i.exec(text)
  if (match === null) return null
  const [, day, time, zone] = match
  const begin = Date.parse(time === undefined ? `${day}T00:00:00Z` : `${day}T${time}${zone ?? 'Z'}`)
  return Number.isNaN(begin) ? null : [begin, begin + (time === undefined ? DAY_MS : 1000)]
}
