/** The state of the page: what is shown, filtered, sorted and chosen. Framework-free; `url.ts` keeps it in the address. */

import type { Health, Safety } from './wire'

/** One value that can be listened to. Listeners are called after each change, never for an equal value. */
export class Observable<T> {
  private readonly listeners = new Set<(value: T) => void>()

  constructor(private current: T) {}

  get(): T {
    return this.current
  }

  set(value: T): void {
    if (Object.is(value, this.current)) return
    this.current = value
    for (const listener of Array.from(this.listeners)) listener(value) // they may change meanwhile
  }

  /** Returns what ends the subscription. */
  subscribe(listener: (value: T) => void): () => void {
    this.listeners.add(listener)
    return () => this.listeners.delete(listener)
  }
}

export type View = 'table' | 'compare' | 'health'
/** Parts of the details. */
export const DETAIL_TABS = ['overview', 'metrics', 'settings', 'tensors', 'load'] as const
export type DetailTab = (typeof DETAIL_TABS)[number]
export type Theme = 'auto' | 'light' | 'dark'
/** Height of a row in CSS pixels. */
export type Density = 32 | 40

/** A threshold on a metric; `min` and `max` are both included. */
export interface MetricFilter {
  readonly name: string
  readonly min: number | null
  readonly max: number | null
}

/** All must hold; of a list that is not empty, any. */
export interface Filters {
  /** What was typed, see `store/search.ts`. */
  readonly q: string
  readonly exp_name: readonly string[]
  readonly architecture: readonly string[]
  readonly health: readonly Health[]
  readonly safety: readonly Safety[]
  readonly metrics: readonly MetricFilter[]
  /** Days in UTC, `2025-10-11`; both are included. */
  readonly modified_from: string | null
  readonly modified_to: string | null
}

export const NO_FILTERS: Filters = {
  q: '',
  exp_name: [],
  architecture: [],
  health: [],
  safety: [],
  metrics: [],
  modified_from: null,
  modified_to: null,
}

/** `by` is a field of an entry, `loss`, or `metrics.<name>`. */
export interface Sort {
  readonly by: string
  readonly descending: boolean
}

export const NEWEST_FIRST: Sort = { by: 'modified_at', descending: true }

export interface AppState {
  readonly view: View
  /** Whose detail panel is open. */
  readonly detailId: string | null
  /** Which part of the details; stays while a reader goes from one checkpoint to the next. */
  readonly detailTab: DetailTab
  /** What is compared, in the order of its columns. */
  readonly compareIds: readonly string[]
  /** Whether a comparison leaves out what is the same. */
  readonly differencesOnly: boolean
  /** Rows with a tick: at most `MAX_SELECTED`, in the order in which they were chosen. */
  readonly selected: ReadonlySet<string>
  /** The primary metric; null: the one that most checkpoints were chosen by. */
  readonly metric: string | null
  readonly filters: Filters
  readonly sort: Sort
  readonly theme: Theme
  readonly density: Density
  /** False: fetch pages of the list instead of listening. */
  readonly streaming: boolean
  readonly helpOpen: boolean
}

export const MAX_SELECTED = 4

export const INITIAL: AppState = {
  view: 'table',
  detailId: null,
  detailTab: 'overview',
  compareIds: [],
  differencesOnly: false,
  selected: new Set(),
  metric: null,
  filters: NO_FILTERS,
  sort: NEWEST_FIRST,
  theme: 'auto',
  density: 32,
  streaming: true,
  helpOpen: false,
}

/** The one state of the page. */
export const app = new Observable<AppState>(INITIAL)

/** Change some of it. */
export function update(patch: Partial<AppState>): void {
  const current = app.get()
  const changed = (Object.keys(patch) as (keyof AppState)[]).some((key) => !Object.is(patch[key], current[key]))
  if (changed) app.set({ ...current, ...patch })
}

export function openDetail(id: string): void {
  update({ detailId: id, view: 'table' })
}

export function closeDetail(): void {
  update({ detailId: null })
}

/** Compare these, at most four; with fewer than two there is nothing to compare and nothing happens. */
export function openCompare(ids: readonly string[]): void {
  const compareIds = [...new Set(ids)].slice(0, MAX_SELECTED)
  if (compareIds.length >= 2) update({ view: 'compare', compareIds, selected: new Set(compareIds), detailId: null })
}

export function openHealth(): void {
  update({ view: 'health', detailId: null })
}

export function showTable(): void {
  update({ view: 'table' })
}

/** Show the table filtered by one thing alone, as links elsewhere on the page do. */
export function showFiltered(filters: Partial<Filters>): void {
  update({ view: 'table', detailId: null, filters: { ...NO_FILTERS, ...filters } })
}

/** Tick or untick a row. Returns false where four have one already. */
export function toggleSelected(id: string): boolean {
  const selected = new Set(app.get().selected)
  if (!selected.delete(id)) {
    if (selected.size >= MAX_SELECTED) return false
    selected.add(id)
  }
  update({ selected })
  return true
}

export function setFilters(patch: Partial<Filters>): void {
  update({ filters: { ...app.get().filters, ...patch } })
}

/** How the page is fed. */
export type ConnectionStatus =
  /** The first snapshot, or one after the daemon forgot us, is coming in. */
  | 'loading'
  /** Changes are shown as they happen. */
  | 'live'
  /** The list was fetched and will not change by itself. */
  | 'fetched'
  /** The connection is gone; what is shown was true when it went. */
  | 'waiting'
  /** The tab is hidden and has given its connection back. */
  | 'hidden'
  /** The daemon wants a token. */
  | 'signed-out'

export interface Connection {
  readonly status: ConnectionStatus
  /** Entries of the snapshot under way that have come, and how many there will be where that is known. */
  readonly received: number
  readonly expected: number | null
  /** Why there is no connection. */
  readonly reason: string | null
  /** When the next attempt is made, in milliseconds since the epoch; null: one is under way. */
  readonly retryAt: number | null
  /** Nothing that was on disk at this time is missing; RFC 3339. */
  readonly completeAsOf: string | null
  /** The catalog's latest revision that is known here. */
  readonly revision: number
  /** A sweep or rebuild at work, in paths. */
  readonly sweep: { readonly done: number; readonly total: number } | null
  /** The last rebuild that the stream told of. */
  readonly rebuilt: { readonly token: string; readonly revision: number } | null
}

export const connection = new Observable<Connection>({
  status: 'loading',
  received: 0,
  expected: null,
  reason: null,
  retryAt: null,
  completeAsOf: null,
  revision: 0,
  sweep: null,
  rebuilt: null,
})
