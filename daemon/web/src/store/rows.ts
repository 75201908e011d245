/**
 * RowStore: all entries, which of them match, in which order they stand. Framework-free.
 *
 * Changes are queued and taken in at most each 100 ms, the first at once, and merged into the order: only a new sort
 * order sorts everything. A filter's change looks at every row once (3 to 15 ms for 100,000). While a snapshot comes
 * in, what was taken in is put in its place and shown a few times a second.
 *
 * While `held`, rows keep their places: values change where they stand, whatever is new, gone or belongs elsewhere
 * waits.
 */

import { type Filters, NO_FILTERS, type Sort } from '../state'
import type { Entry } from '../wire'
import { type RecentChange, RecentChanges } from './changes'
import { type Clock, realClock } from './clock'
import { type Facet, type Found, type RowTest, rowTest } from './filters'
import { Fading } from './fading'
import { Names } from './names'
import { type Change, Queue } from './queue'
import { Sharing } from './sharing'
import { Shown } from './shown'
import { GONE, PLACED, Slots } from './slots'
import { SortKeys } from './sort-keys'
import { SortedIndex, sortInSteps } from './sorted-index'
import { Sorting } from './sorting'

/** Least time between two flushes. */
export const FLUSH_MS = 100
/** Least time between two drawings while a snapshot comes in: each costs the time in which 1,000 rows are read. */
export const SNAPSHOT_SHOW_MS = 250
/** Changes that one flush takes in: what it costs, about 15 ms, keeps the page responsive while a snapshot comes. */
const FLUSH_ROWS = 4_000
/** Texts for the search that are made in one go (3 ms), and how long the page gets its turn in between. */
const TEXTS_PER_STEP = 4_096
const TEXTS_PAUSE_MS = 20
/** What a change of the store meant for what is shown. */
export interface StoreChange {
  /** The reader asked for another order or filter. */
  readonly isAsked: boolean
}

/** What waits while the order is held. */
export interface Waiting {
  readonly added: number
  /** Rows that changed so that they belong elsewhere, or are gone. */
  readonly moved: number
}

export class RowStore {
  private readonly slots = new Slots()
  private readonly keys = new SortKeys(this.slots)
  private readonly index = new SortedIndex(this.keys.compare)
  private readonly shown = new Shown()
  private readonly names = new Names()
  private readonly sharing = new Sharing()
  private readonly recent: RecentChanges
  private readonly fading: Fading
  private readonly sorting: Sorting
  private readonly queue = new Queue()

  private generation = 1
  private isInSnapshot = false
  private isScheduled = false
  private isPreparing = false
  private flushedAt = -Infinity
  private shownAt = -Infinity
  private dirty: number[] = []
  private isHeld = false

  private filters: Filters = NO_FILTERS
  private found: Found | null = null
  private isFoundWaiting = false
  private test: RowTest | null = null

  private readonly listeners = new Set<(change: StoreChange) => void>()
  private readonly rowListeners = new Map<string, Set<() => void>>()
  private readonly touched = new Set<string>()

  constructor(private readonly clock: Clock = realClock) {
    this.recent = new RecentChanges(clock, () => this.notify({ isAsked: false }))
    this.fading = new Fading(clock)
    this.sorting = new Sorting(clock, () => this.endSorting())
  }

  /** How long rows that are gone fade, in milliseconds; 0 where motion is not wanted. */
  set fadeMs(ms: number) {
    this.fading.ms = ms
  }

  // ---- what is shown ------------------------------------------------------------------------------------------

  /** Rows that match; those that are just gone and fade count until they have faded. */
  get length(): number {
    return this.shown.length
  }

  /** Entries in all. */
  get total(): number {
    return this.slots.byId.size
  }

  /** The row at a place of the list. */
  at(index: number): Entry | undefined {
    return this.slots.entries[this.shown.at(index)]
  }

  /** Whether the row at a place is gone, and shown only until it has faded. */
  isGoneAt(index: number): boolean {
    const slot = this.shown.at(index)
    return slot >= 0 && this.slots.is(slot, GONE)
  }

  /** The place of an entry in the list; -1 where it is not shown. */
  indexOf(id: string): number {
    const slot = this.slots.byId.get(id)
    return slot === undefined ? -1 : this.shown.indexOf(slot)
  }

  /** What changed in a row a moment ago. */
  recentChange(id: string): RecentChange | undefined {
    return this.recent.get(id)
  }

  get(id: string): Entry | undefined {
    const slot = this.slots.byId.get(id)
    return slot === undefined ? undefined : this.slots.entries[slot]
  }

  /** All entries, in no particular order, whatever is filtered. */
  *all(): Iterable<Entry> {
    for (const slot of this.slots.byId.values()) yield this.slots.entry(slot)
  }

  /** What waits while held. */
  get waiting(): Waiting {
    let added = 0
    let moved = 0
    for (const slot of this.isHeld ? this.dirty : []) {
      if (this.slots.is(slot, PLACED)) moved += 1
      else if (!this.slots.is(slot, GONE) && this.slots.passes(slot, this.test)) added += 1
    }
    return { added, moved }
  }

  /** Call `listener` after every change of what is shown. Returns what ends that. */
  onChange(listener: (change: StoreChange) => void): () => void {
    this.listeners.add(listener)
    return () => this.listeners.delete(listener)
  }

  /** Call `listener` when this one entry changes, comes or goes. Returns what ends that. */
  subscribe(id: string, listener: () => void): () => void {
    const all = this.rowListeners.get(id) ?? new Set()
    this.rowListeners.set(id, all.add(listener))
    return () => {
      all.delete(listener)
      if (!all.size && this.rowListeners.get(id) === all) this.rowListeners.delete(id)
    }
  }

  // ---- what there is ------------------------------------------------------------------------------------------

  /** Names of metrics that exist, the most frequent first. */
  metrics(): readonly string[] {
    return this.names.ranked()
  }

  /** The metric that most checkpoints were chosen by; else the most frequent one that is no loss. */
  usualMetric(): string | null {
    return this.names.usual()
  }

  /** Values of a field with how many rows have them under all other filters, the most frequent first. */
  facet(facet: Facet): readonly (readonly [value: string, count: number])[] {
    const test = rowTest(this.filters, this.found, facet)
    const counts = new Map<string, number>()
    for (const slot of this.slots.byId.values()) {
      const value = this.slots.entry(slot)[facet]
      if (value !== null) counts.set(value, (counts.get(value) ?? 0) + Number(this.slots.passes(slot, test)))
    }
    return [...counts].sort(([a, n], [b, m]) => m - n || (a < b ? -1 : 1))
  }

  // ---- what the reader asks for -------------------------------------------------------------------------------

  /** Show what passes these. At once. */
  setFilters(filters: Filters): void {
    if (filters === this.filters) return
    this.filters = filters
    this.match({ isAsked: true })
  }

  /** Show also what the daemon found by the search of the filters; while held, when rows are let go. */
  setFound(found: Found): void {
    if (found.q !== this.filters.q.trim()) return
    const isAsked = this.found?.q !== found.q
    this.found = found
    this.isFoundWaiting = this.isHeld
    if (!this.isHeld) this.match({ isAsked })
  }

  /** Test every row by the filters. */
  private match(change: StoreChange): void {
    const { slots } = this
    const test = (this.test = rowTest(this.filters, this.found))
    this.isFoundWaiting = false
    this.settle()
    slots.matches.fill(0)
    for (const slot of slots.byId.values()) slots.matches[slot] = Number(slots.passes(slot, test))
    this.show(change)
  }

  /** Show rows in this order. Within some steps of at most 12 ms; until then the old order stands. */
  setSort(sort: Sort): void {
    const { by, descending } = this.keys.sort
    if (sort.by === by && sort.descending === descending) return
    this.settle()
    this.sorting.begin(this.sortSteps(sort))
  }

  /** Whether rows keep their places. */
  get held(): boolean {
    return this.isHeld
  }

  set held(isHeld: boolean) {
    if (isHeld === this.isHeld) return
    this.isHeld = isHeld
    if (!isHeld && this.isFoundWaiting) this.match({ isAsked: false })
    if (!isHeld && !this.sorting.isRunning && this.dirty.length) {
      this.settle()
      this.show({ isAsked: false })
      this.awaitFading()
    }
  }

  /** Put everything in its place that waits; whatever comes from now on waits again while held. */
  showWaiting(): void {
    if (this.sorting.isRunning) return
    if (this.isFoundWaiting) this.match({ isAsked: false })
    this.settle()
    this.show({ isAsked: true })
  }

  // ---- what the stream says -----------------------------------------------------------------------------------

  /** A snapshot begins. What is there stays until its end, and goes then if the snapshot did not have it. */
  beginSnapshot(): void {
    this.enqueue({ kind: 'begin' })
  }

  addSnapshot(entries: readonly Entry[]): void {
    this.enqueue({ kind: 'upsert', entries, isSnapshot: true, done: 0 })
  }

  endSnapshot(): void {
    this.enqueue({ kind: 'end' })
  }

  upsert(entries: readonly Entry[]): void {
    this.enqueue({ kind: 'upsert', entries, isSnapshot: false, done: 0 })
  }

  delete(ids: readonly string[]): void {
    this.enqueue({ kind: 'delete', ids })
  }

  /** Take in everything that is queued, now. */
  flushAll(): void {
    this.sorting.finish()
    do this.flush(true)
    while (!this.queue.isEmpty)
  }

  // ---- taking in ----------------------------------------------------------------------------------------------

  private enqueue(change: Change): void {
    this.queue.push(change)
    this.schedule(this.flushedAt + FLUSH_MS - this.clock.now())
  }

  private schedule(waitMs: number): void {
    if (this.isScheduled) return
    if (waitMs <= 0 && !this.sorting.isRunning) {
      this.flush()
      return
    }
    this.isScheduled = true
    this.clock.after(Math.max(0, waitMs), () => {
      this.isScheduled = false
      if (!this.sorting.isRunning) this.flush()
    })
  }

  private flush(isShown = false): void {
    this.flushedAt = this.clock.now()
    this.queue.take(FLUSH_ROWS, this)
    const dueMs = this.isInSnapshot && !isShown ? this.shownAt + SNAPSHOT_SHOW_MS - this.flushedAt : 0
    if (dueMs <= 0) {
      if (!this.isHeld) this.settle()
      this.show({ isAsked: false })
      this.awaitFading()
    }
    // What one flush could not take follows at once; what is not shown yet, in its time.
    if (!this.queue.isEmpty) this.schedule(1)
    else if (dueMs > 0) this.schedule(dueMs)
  }

  /** See to it that rows which fade go once they have; while held they stay, and whoever lets go calls this. */
  private awaitFading(): void {
    if (!this.isHeld) this.fading.whenFaded(() => void (!this.sorting.isRunning && this.flush(true)))
  }

  /** Of the queue: an entry came. */
  put(received: Entry, isSnapshot: boolean): void {
    const { slots } = this
    const entry = this.sharing.share(received)
    const known = slots.byId.get(entry.id)
    const slot = known ?? slots.claim(entry.id)
    if (known !== undefined) this.names.count(slots.entry(known), -1)
    this.names.count(entry, 1)
    if (!isSnapshot && !this.isInSnapshot) this.recent.note(entry, known === undefined ? undefined : slots.entry(known))
    this.touch(entry.id)
    slots.generations[slot] = this.generation
    const modifiedMs = Date.parse(entry.modified_at)
    const isMoved = slots.modified[slot] !== modifiedMs
    slots.fill(slot, entry, modifiedMs)
    const isResorted = this.keys.update(slot, entry, modifiedMs)
    const isPlaced = known !== undefined && slots.is(slot, PLACED)
    if (!isPlaced || isMoved || isResorted || Number(slots.passes(slot, this.test)) !== slots.matches[slot]) {
      this.markDirty(slot)
    }
  }

  /** Of the queue: an entry is gone. */
  drop(id: string, fades = true): void {
    const { slots } = this
    const slot = slots.byId.get(id)
    if (slot === undefined) return
    slots.byId.delete(id)
    this.names.count(slots.entry(slot), -1)
    this.touch(id)
    this.recent.delete(id)
    // One that waits for another place does not stand where its key says, and would mislead those that are merged in.
    const isShown = slots.is(slot, PLACED) && slots.matches[slot] && !slots.dirty[slot]
    slots.flags[slot] = (slots.flags[slot] as number) | GONE
    if (fades && isShown) this.fading.add(slot)
    this.markDirty(slot)
  }

  /** Of the queue: a snapshot begins. */
  begin(): void {
    this.generation += 1
    this.isInSnapshot = true
  }

  /** Of the queue: a snapshot is whole; what it did not have is gone. */
  end(): void {
    this.isInSnapshot = false
    const { byId, generations } = this.slots
    for (const [id, slot] of byId) if (generations[slot] !== this.generation) this.drop(id, false)
    if (!this.isPreparing) this.prepareTexts(0)
  }

  /** Make the texts that the first word of a search would have to wait for. */
  private prepareTexts(start: number): void {
    this.isPreparing = true
    this.clock.after(TEXTS_PAUSE_MS, () => {
      this.isPreparing = this.slots.prepareTexts(start, TEXTS_PER_STEP)
      if (this.isPreparing) this.prepareTexts(start + TEXTS_PER_STEP)
    })
  }

  private touch(id: string): void {
    if (this.rowListeners.has(id)) this.touched.add(id)
  }

  private markDirty(slot: number): void {
    if (this.slots.dirty[slot]) return
    this.slots.dirty[slot] = 1
    this.dirty.push(slot)
  }

  // ---- order --------------------------------------------------------------------------------------------------

  /** Put every row in its place: what is new, gone, or belongs elsewhere. Those that fade keep theirs. */
  private settle(): void {
    if (this.sorting.isRunning) return // all were in their places when it began, and nothing is taken in meanwhile
    const stays = this.fading.slots()
    if (!this.dirty.length) return
    const { slots } = this
    const added: number[] = []
    const waits: number[] = []
    let hasPlaced = false
    for (const slot of this.dirty) {
      const isPlaced = slots.is(slot, PLACED)
      if (isPlaced && stays.has(slot)) {
        waits.push(slot)
        slots.dirty[slot] = 0
        continue
      }
      hasPlaced ||= isPlaced
      if (slots.is(slot, GONE)) continue
      slots.flags[slot] = PLACED
      slots.matches[slot] = Number(slots.passes(slot, this.test))
      added.push(slot)
    }
    this.index.merge(hasPlaced ? slots.dirty : null, added)
    for (const slot of this.dirty) {
      slots.dirty[slot] = 0
      if (slots.is(slot, GONE) && !stays.has(slot)) this.release(slot)
    }
    this.dirty = []
    for (const slot of waits) this.markDirty(slot)
  }

  private release(slot: number): void {
    this.slots.release(slot)
    this.keys.release(slot)
  }

  /** Collect the rows that match, in order, and tell of it. */
  private show(change: StoreChange): void {
    this.shownAt = this.clock.now()
    this.shown.collect(this.index.slots(), this.slots.matches)
    this.notify(change)
  }

  // The lists of listeners may change while they are called.

  private notify(change: StoreChange): void {
    for (const listener of Array.from(this.listeners)) listener(change)
    for (const id of this.touched) for (const listener of Array.from(this.rowListeners.get(id) ?? [])) listener()
    this.touched.clear()
  }

  // ---- sorting everything -------------------------------------------------------------------------------------

  private *sortSteps(sort: Sort): Generator<void, void> {
    this.keys.begin(sort)
    const slots = this.index.slots().slice()
    for (let at = 0; at < slots.length; at++) {
      const slot = slots[at] as number
      this.keys.update(slot, this.slots.entry(slot), this.slots.modified[slot] as number)
      if (at % 4_096 === 0) yield
    }
    const { compare } = this.keys
    this.index.replace(yield* sortInSteps(slots, compare), compare)
  }

  private endSorting(): void {
    this.show({ isAsked: true })
    if (!this.queue.isEmpty) this.schedule(this.flushedAt + FLUSH_MS - this.clock.now())
  }
}
