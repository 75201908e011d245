/** The filters of the page as one test of a row. */

import type { Filters } from '../state'
import type { Entry } from '../wire'
import { metricOf, parseSearch, timeBounds } from './search'

/** What a row is tested by: its entry, its folded text and when it was modified, in milliseconds since the epoch. */
export type RowTest = (entry: Entry, text: string, modifiedMs: number) => boolean

/** A filter that a facet leaves out when it counts what there is. */
export type Facet = 'exp_name' | 'architecture' | 'health' | 'safety'

/** What the daemon finds by a search, up to a revision of the catalog: also by what entries do not have. */
export interface Found {
  /** What was searched for, without space around it. */
  readonly q: string
  readonly ids: ReadonlySet<string>
  readonly revision: number
}

/** The test of all filters, cheapest first; null where everything passes. */
export function rowTest(filters: Filters, found: Found | null = null, without: Facet | null = null): RowTest | null {
  const tests: RowTest[] = []
  for (const facet of ['health', 'safety', 'architecture', 'exp_name'] as const) {
    const wanted: ReadonlySet<string | null> = new Set(filters[facet])
    if (facet !== without && wanted.size) tests.push((entry) => wanted.has(entry[facet]))
  }
  if (filters.modified_from !== null || filters.modified_to !== null) tests.push(timeTest(filters))
  for (const { name, min, max } of filters.metrics) {
    const [low, high] = [min ?? -Infinity, max ?? Infinity]
    tests.push((entry) => {
      const value = metricOf(entry, name)
      return value !== null && value >= low && value <= high
    })
  }
  tests.push(...searchTests(filters.q, found))
  const [first] = tests
  if (first === undefined || tests.length === 1) return first ?? null
  return (entry, text, modifiedMs) => {
    for (const test of tests) if (!test(entry, text, modifiedMs)) return false
    return true
  }
}

/** The tests of what is searched for: what the page knows of an entry, and what the daemon found. */
function searchTests(q: string, found: Found | null): readonly RowTest[] {
  const { terms } = parseSearch(q)
  const own = terms.map((term): RowTest => (entry, text) => term.holds(entry, text))
  if (found === null || found.q !== q.trim()) return own
  const { ids, revision } = found
  const isOwn: RowTest = (entry, text, modifiedMs) => own.every((test) => test(entry, text, modifiedMs))
  // What must not occur may occur in a config: of what the daemon has looked at, it alone knows.
  if (terms.some(({ token }) => token.startsWith('-'))) {
    return [(entry, text, ms) => (entry.revision > revision ? isOwn(entry, text, ms) : ids.has(entry.id))]
  }
  return [(entry, text, ms) => ids.has(entry.id) || isOwn(entry, text, ms)]
}

/** Whether anything is filtered at all. */
export function isFiltered(filters: Filters): boolean {
  return (
    filters.q.trim() !== '' || filters.exp_name.length > 0 || filters.architecture.length > 0 ||
    filters.health.length > 0 || filters.safety.length > 0 || filters.metrics.length > 0 ||
    filters.modified_from !== null || filters.modified_to !== null
  )
}

function timeTest(filters: Filters): RowTest {
  const low = timeBounds(filters.modified_from ?? '')?.[0] ?? -Infinity
  const high = timeBounds(filters.modified_to ?? '')?.[1] ?? Infinity
  return (_, __, modifiedMs) => modifiedMs >= low && modifiedMs < high
}
