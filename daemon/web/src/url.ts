/** The address of the page: view, filters, sorting and selection, so that a link shows what its sender saw. */

import {
  type AppState, app, DETAIL_TABS, type Filters, INITIAL, MAX_SELECTED, type MetricFilter, NEWEST_FIRST, NO_FILTERS, type Sort, update,
} from './state'
import { isSortable, startsDescending } from './store/ordering'
import { timeBounds } from './store/search'
import { HEALTHS, SAFETIES } from './wire'

/** What of the state the address says. */
export type Addressed = Omit<AppState, 'theme' | 'density' | 'helpOpen'>

const ID = /^[a-z2-7]{16}$/
const DAY_MS = 86_400_000

/** The query of a state; empty for a fresh page. Names are the API's where it has the same filter. */
export function toQuery(state: Addressed): string {
  const query = new URLSearchParams()
  if (state.view !== 'table') query.set('view', state.view)
  if (state.view === 'compare') query.set('ids', state.compareIds.join(','))
  if (state.view === 'compare' && state.differencesOnly) query.set('differences', 'only')
  if (state.detailId !== null) query.set('id', state.detailId)
  if (state.detailId !== null && state.detailTab !== INITIAL.detailTab) query.set('tab', state.detailTab)
  writeFilters(query, state.filters)
  const { by, descending } = state.sort
  if (by !== NEWEST_FIRST.by || descending !== NEWEST_FIRST.descending) {
    query.set('sort_by', by)
    query.set('sort_order', descending ? 'desc' : 'asc')
  }
  if (state.metric !== null) query.set('metric', state.metric)
  if (state.selected.size && state.view === 'table') query.set('selected', [...state.selected].join(','))
  if (!state.streaming) query.set('stream', '0')
  return query.toString()
}

/** The state that a query asks for; what it does not say, or says wrongly, is as on a fresh page. */
export function fromQuery(text: string): Addressed {
  const query = new URLSearchParams(text)
  const { theme: _theme, density: _density, helpOpen: _helpOpen, ...fresh } = INITIAL
  const compareIds = idsOf(query.get('ids'))
  const view = query.get('view')
  const detailId = query.get('id')
  return {
    ...fresh,
    view: view === 'compare' && compareIds.length >= 2 ? 'compare' : view === 'health' ? 'health' : 'table',
    compareIds,
    detailId: detailId !== null && ID.test(detailId) ? detailId : null,
    detailTab: DETAIL_TABS.find((tab) => tab === query.get('tab')) ?? fresh.detailTab,
    differencesOnly: query.get('differences') === 'only',
    selected: new Set(query.has('selected') ? idsOf(query.get('selected')) : compareIds),
    metric: query.get('metric') || null,
    filters: readFilters(query),
    sort: readSort(query),
    streaming: query.get('stream') !== '0',
  }
}

function writeFilters(query: URLSearchParams, filters: Filters): void {
  if (filters.q.trim()) query.set('q', filters.q)
  for (const name of filters.exp_name) query.append('exp_name', name)
  for (const name of filters.architecture) query.append('architecture', name)
  if (filters.health.length) query.set('health', filters.health.join(','))
  if (filters.safety.length) query.set('safety', filters.safety.join(','))
  for (const { name, min, max } of filters.metrics) {
    if (min !== null) query.set(`min_${name}`, String(min))
    if (max !== null) query.set(`max_${name}`, String(max))
  }
  if (filters.modified_from !== null) query.set('modified_after', filters.modified_from)
  // The API's end is not included, people's last day is.
  if (filters.modified_to !== null) query.set('modified_before', dayAfter(filters.modified_to, 1))
}

function readFilters(query: URLSearchParams): Filters {
  const to = dayOf(query.get('modified_before'))
  return {
    ...NO_FILTERS,
    q: query.get('q') ?? '',
    exp_name: query.getAll('exp_name'),
    architecture: query.getAll('architecture'),
    health: HEALTHS.filter((health) => query.get('health')?.split(',').includes(health)),
    safety: SAFETIES.filter((safety) => query.get('safety')?.split(',').includes(safety)),
    metrics: readMetrics(query),
    modified_from: dayOf(query.get('modified_after')),
    modified_to: to === null ? null : dayAfter(to, -1),
  }
}

function readMetrics(query: URLSearchParams): readonly MetricFilter[] {
  const found = new Map<string, MetricFilter>()
  for (const [parameter, value] of query) {
    const [, bound, name] = /^(min|max)_(.+)$/s.exec(parameter) ?? []
    const limit = Number(value)
    if (bound === undefined || name === undefined || value.trim() === '' || !Number.isFinite(limit)) continue
    found.set(name, { ...(found.get(name) ?? { name, min: null, max: null }), [bound]: limit })
  }
  return [...found.values()]
}

function readSort(query: URLSearchParams): Sort {
  const by = query.get('sort_by')
  if (by === null || !isSortable(by)) return NEWEST_FIRST
  const order = query.get('sort_order')
  return { by, descending: order === null ? startsDescending(by) : order === 'desc' }
}

function idsOf(text: string | null): readonly string[] {
  return [...new Set((text ?? '').split(',').filter((id) => ID.test(id)))].slice(0, MAX_SELECTED)
}

function dayOf(text: string | null): string | null {
  return text !== null && /^\d{4}-\d{2}-\d{2}$/.test(text) && timeBounds(text) !== null ? text : null
}

function dayAfter(day: string, days: number): string {
  return new Date(Date.parse(`${day}T00:00:00Z`) + days * DAY_MS).toISOString().slice(0, 10)
}

/** Typing and ticking replace the address; whatever else changes is a step that "back" undoes. */
const TYPING_MS = 1_500

/** Keep address and state the same, both ways. Returns what ends it. */
export function followAddress(): () => void {
  let isReading = false
  let typedAt = -Infinity
  const read = (): void => {
    isReading = true
    update(fromQuery(location.search))
    isReading = false
  }
  read()
  let before = app.get()
  const ends = app.subscribe((state) => {
    const previous = before
    before = state
    const query = toQuery(state)
    if (isReading || query === toQuery(previous)) return
    const address = query ? `?${query}` : location.pathname
    const isTyped = state.filters.q !== previous.filters.q
    const goesOn = isTyped && performance.now() - typedAt < TYPING_MS
    if (isTyped) typedAt = performance.now()
    if (goesOn || state.selected !== previous.selected) history.replaceState(null, '', address)
    else history.pushState(null, '', address)
  })
  window.addEventListener('popstate', read)
  return () => {
    ends()
    window.removeEventListener('popstate', read)
  }
}
