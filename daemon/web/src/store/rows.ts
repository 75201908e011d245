/**
 * RowStore: all entries, which of them match, in which order they stand. Framework-free.
 *
 * An entry lives in a slot. What is asked of all entries at once lies in typed arrays by slot; the order is an array of
 * slots. Changes are queued and taken in at most each 100 ms, the first at once, and merged into the order: only a new
 * sort order sorts everything. A filter's change looks at every row once (3 to 15 ms for 100,000).
 *
 * While `held`, rows keep their places: values change where they stand, whatever is new, gone or belongs elsewhere
 * waits.
 */

import { type Filters, NEWEST_FIRST, NO_FILTERS, type Sort } from '../state'
import type { Entry } from '../wire'
import { changedFields, type RecentChange } from './changes'
import { grown, Sharing, Tally } from './columns'
import { type Facet, type RowTest, rowTest } from './filters'
import { isTextSort, type Key, keyOf, type KeyOf } from './ordering'
import { searchText } from './search'
import { type Compare, SortedIndex, sortInSteps } from './sorted-index'

/** Time as the store sees it; tests have one of their own. */
export interface Clock {
  now(): number
  after(delayMs: number, run: () => void): void
}

export const realClock: Clock = {
  now: () => performance.now(),
  after: (delayMs, run) => void setTimeout(run, delayMs),
}

/** Least time between two flushes. */
export const FLUSH_MS = 100
/** Changes that one flush takes in: what it costs, about 15 ms, keeps the page responsive while a snapshot comes. */
const FLUSH_ROWS = 4_000
/** Time for one step of sorting, before the page gets its turn. */
const SORT_STEP_MS = 12
/** How long a row that is gone is still shown, faded. */
export const FADE_MS = 800

/** How long what changed is told as changed. */
const TINT_MS = 1_000
/** Rows of which that is remembered: more than a screen holds, however many change at once. */
const MAX_RECENT = 2_000

/** Flags of a slot. */
const PLACED = 1
const GONE = 2

type Change =
  | { readonly kind: 'upsert'; readonly entries: readonly Entry[]; readonly isSnapshot: boolean; done: number }
  | { readonly kind: 'delete'; readonly ids: readonly string[] }
  | { readonly kind: 'begin' | 'end' }

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
  /** How long rows that are gone fade; 0 where motion is not wanted. */
  fadeMs = FADE_MS

  private entries: (Entry | undefined)[] = []
  private texts: string[] = []
  private modified = new Float64Array(0)
  private numbers = new Float64Array(0)
  private keyTexts: (string | null)[] | null = null
  private flags = new Uint8Array(0)
  private matches = new Uint8Array(0)
  private dirtyFlags = new Uint8Array(0)
  private generations = new Uint32Array(0)
  private readonly slots = new Map<string, number>()
  private free: number[] = []

  private generation = 1
  private isInSnapshot = false
  private queue: Change[] = []
  private isScheduled = false
  private isFading = false
  private isTinting = false
  private flushedAt = -Infinity
  private dirty: number[] = []
  private fading: { slot: number; until: number }[] = []
  private isHeld = false
  private sorting: Generator<void, void> | null = null

  private filters: Filters = NO_FILTERS
  private test: RowTest | null = null
  private sort: Sort = NEWEST_FIRST
  private keyFor: KeyOf = keyOf(NEWEST_FIRST)
  private readonly index = new SortedIndex((a, b) => this.compareNumbers(a, b))
  private shown = new Int32Array(0)
  private shownCount = 0

  private readonly metricCounts = new Tally()
  private readonly monitorCounts = new Tally()
  private readonly sharing = new Sharing()
  private readonly recent = new Map<string, RecentChange>()
  private readonly listeners = new Set<(change: StoreChange) => void>()
  private readonly rowListeners = new Map<string, Set<() => void>>()
  private readonly touched = new Set<string>()

  constructor(private readonly clock: Clock = realClock) {}

  // ---- what is shown ------------------------------------------------------------------------------------------

  /** Rows that match; those that are just gone and fade count until they have faded. */
  get length(): number {
    return this.shownCount
  }

  /** Entries in all. */
  get total(): number {
    return this.slots.size
  }

  /** The row at a place of the list. */
  at(index: number): Entry | undefined {
    return index < 0 || index >= this.shownCount ? undefined : this.entries[this.shown[index] as number]
  }

  /** Whether the row at a place is gone, and shown only until it has faded. */
  isGoneAt(index: number): boolean {
    return index < this.shownCount && ((this.flags[this.shown[index] as number] as number) & GONE) !== 0
  }

  /** The place of an entry in the list; -1 where it is not shown. */
  indexOf(id: string): number {
    const slot = this.slots.get(id)
    return slot === undefined ? -1 : this.shown.subarray(0, this.shownCount).indexOf(slot)
  }

  /** What changed in a row a moment ago. */
  recentChange(id: string): RecentChange | undefined {
    const change = this.recent.get(id)
    return change !== undefined && change.until > this.clock.now() ? change : undefined
  }

  get(id: string): Entry | undefined {
    const slot = this.slots.get(id)
    return slot === undefined ? undefined : this.entries[slot]
  }

  /** All entries, in no particular order, whatever is filtered. */
  *all(): Iterable<Entry> {
    for (const slot of this.slots.values()) yield this.entries[slot] as Entry
  }

  /** What waits while held. */
  get waiting(): Waiting {
    let added = 0
    let moved = 0
    for (const slot of this.isHeld ? this.dirty : []) {
      const flags = this.flags[slot] as number
      if (flags & PLACED) moved += 1
      else if (!(flags & GONE) && this.passes(slot)) added += 1
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
    return this.metricCounts.ranked().map(([name]) => name)
  }

  /** The metric that most checkpoints were chosen by; else the most frequent one that is no loss. */
  usualMetric(): string | null {
    for (const [monitor] of this.monitorCounts.ranked()) if (!/loss/i.test(monitor)) return monitor
    const names = this.metrics()
    return names.find((name) => !/loss|lr|epoch|step/i.test(name)) ?? names[0] ?? null
  }

  /** Values of a field with how many rows have them under all other filters, the most frequent first. */
  facet(facet: Facet): readonly (readonly [value: string, count: number])[] {
    const test = rowTest(this.filters, facet)
    const counts = new Map<string, number>()
    for (const slot of this.slots.values()) {
      const entry = this.entries[slot] as Entry
      const value = entry[facet]
      if (value === null) continue
      const passes = test === null || test(entry, this.texts[slot] as string, this.modified[slot] as number)
      counts.set(value, (counts.get(value) ?? 0) + Number(passes))
    }
    return [...counts].sort(([a, n], [b, m]) => m - n || (a < b ? -1 : 1))
  }

  // ---- what the reader asks for -------------------------------------------------------------------------------

  /** Show what passes these. At once. */
  setFilters(filters: Filters): void {
    if (filters === this.filters) return
    this.filters = filters
    this.test = rowTest(filters)
    this.settle()
    this.matches.fill(0)
    for (const slot of this.slots.values()) this.matches[slot] = Number(this.passes(slot))
    this.show()
    this.notify({ isAsked: true })
  }

  /** Show rows in this order. Within some steps of at most 12 ms; until then the old order stands. */
  setSort(sort: Sort): void {
    if (sort.by === this.sort.by && sort.descending === this.sort.descending) return
    this.settle()
    this.sort = sort
    this.sorting = this.sortSteps(sort)
    this.advanceSorting()
  }

  /** Whether rows keep their places. */
  get held(): boolean {
    return this.isHeld
  }

  set held(isHeld: boolean) {
    if (isHeld === this.isHeld) return
    this.isHeld = isHeld
    if (!isHeld && this.sorting === null && this.dirty.length) {
      this.settle()
      this.show()
      this.notify({ isAsked: false })
      this.awaitFading()
    }
  }

  /** Put everything in its place that waits; whatever comes from now on waits again while held. */
  showWaiting(): void {
    if (this.sorting !== null) return
    this.settle()
    this.show()
    this.notify({ isAsked: true })
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
    while (this.sorting !== null) this.stepSorting(Infinity)
    while (this.queue.length) this.flush()
  }

  // ---- taking in ----------------------------------------------------------------------------------------------

  private enqueue(change: Change): void {
    this.queue.push(change)
    this.schedule()
  }

  /** See to it that what is queued is taken in; at once where the last flush could not take all. */
  private schedule(isBehind = false): void {
    if (this.isScheduled) return
    const waitMs = isBehind ? 1 : this.flushedAt + FLUSH_MS - this.clock.now()
    if (waitMs <= 0 && this.sorting === null) {
      this.flush()
      return
    }
    this.isScheduled = true
    this.clock.after(Math.max(0, waitMs), () => {
      this.isScheduled = false
      if (this.sorting === null) this.flush()
    })
  }

  private flush(): void {
    this.flushedAt = this.clock.now()
    this.apply()
    if (!this.isHeld) this.settle()
    this.show()
    this.notify({ isAsked: false })
    if (this.queue.length) this.schedule(true)
    this.awaitFading()
  }

  /** See to it that rows which fade go once they have; while held they stay, and whoever lets go calls this. */
  private awaitFading(): void {
    if (!this.fading.length || this.isHeld || this.isFading) return
    this.isFading = true
    this.clock.after(this.fadeMs, () => this.endFading())
  }

  private endFading(): void {
    this.isFading = false
    if (this.sorting === null) this.flush()
  }

  /** Take in changes from the head of the queue, as many as one flush may. */
  private apply(): void {
    let room = FLUSH_ROWS
    while (room > 0) {
      const change = this.queue[0]
      if (change === undefined) return
      if (change.kind === 'upsert') {
        const end = Math.min(change.entries.length, change.done + room)
        room -= end - change.done
        for (; change.done < end; change.done++) this.put(change.entries[change.done] as Entry, change.isSnapshot)
        if (change.done < change.entries.length) return
      } else if (change.kind === 'delete') {
        for (const id of change.ids) this.drop(id, true)
      } else if (change.kind === 'begin') {
        this.generation += 1
        this.isInSnapshot = true
      } else {
        this.endGeneration()
      }
      this.queue.shift()
    }
  }

  private put(received: Entry, isSnapshot: boolean): void {
    const entry = this.shared(received)
    const known = this.slots.get(entry.id)
    const slot = known ?? this.newSlot()
    const old = known === undefined ? undefined : this.entries[known]
    this.slots.set(entry.id, slot)
    this.generations[slot] = this.generation
    this.note(entry, old, isSnapshot)
    this.touched.add(entry.id)
    this.entries[slot] = entry
    this.texts[slot] = searchText(entry)
    const modifiedMs = Date.parse(entry.modified_at)
    const isMoved = this.modified[slot] !== modifiedMs
    this.modified[slot] = modifiedMs
    const isResorted = this.setKey(slot, this.keyFor(entry, modifiedMs))
    const isPlaced = ((this.flags[slot] as number) & PLACED) !== 0
    if (!isPlaced || isMoved || isResorted || Number(this.passes(slot)) !== this.matches[slot]) this.markDirty(slot)
  }

  private drop(id: string, fades: boolean): void {
    const slot = this.slots.get(id)
    if (slot === undefined) return
    this.slots.delete(id)
    this.count(this.entries[slot] as Entry, -1)
    this.touched.add(id)
    this.recent.delete(id)
    this.flags[slot] = (this.flags[slot] as number) | GONE
    const isShown = (this.flags[slot] as number) & PLACED && this.matches[slot]
    if (fades && isShown && this.fadeMs > 0) this.fading.push({ slot, until: this.clock.now() + this.fadeMs })
    this.markDirty(slot)
  }

  private endGeneration(): void {
    this.isInSnapshot = false
    for (const [id, slot] of [...this.slots]) if (this.generations[slot] !== this.generation) this.drop(id, false)
  }

  /** Remember what changed, and count names. */
  private note(entry: Entry, old: Entry | undefined, isSnapshot: boolean): void {
    if (old !== undefined) this.count(old, -1)
    this.count(entry, 1)
    if (isSnapshot || this.isInSnapshot) return
    const fields = changedFields(entry, old)
    if (!fields.size) return
    this.recent.set(entry.id, { fields, until: this.clock.now() + TINT_MS })
    if (this.recent.size > MAX_RECENT) this.forgetRecent()
    if (!this.isTinting) {
      this.isTinting = true
      this.clock.after(TINT_MS, () => this.endTint())
    }
  }

  private endTint(): void {
    this.forgetRecent()
    this.isTinting = this.recent.size > 0
    if (this.isTinting) this.clock.after(TINT_MS / 4, () => this.endTint())
    this.notify({ isAsked: false })
  }

  private count(entry: Entry, change: 1 | -1): void {
    for (const name in entry.metrics) this.metricCounts.add(name, change)
    if (entry.monitor !== null) this.monitorCounts.add(entry.monitor, change)
  }

  private forgetRecent(): void {
    const now = this.clock.now()
    for (const [id, change] of this.recent) if (change.until <= now || this.recent.size > MAX_RECENT) this.recent.delete(id)
  }

  private shared(entry: Entry): Entry {
    const { sharing } = this
    return Object.assign(entry, {
      root: sharing.text(entry.root),
      exp_name: sharing.text(entry.exp_name),
      run_id: sharing.text(entry.run_id),
      architecture: sharing.text(entry.architecture),
      backbone: sharing.text(entry.backbone),
      config_path: sharing.text(entry.config_path),
      created_at: sharing.text(entry.created_at),
      dtypes: sharing.list(entry.dtypes),
      findings: sharing.list(entry.findings),
    })
  }

  // ---- slots --------------------------------------------------------------------------------------------------

  private newSlot(): number {
    const slot = this.free.pop() ?? this.entries.length
    const length = slot + 1
    this.modified = grown(this.modified, length)
    this.numbers = grown(this.numbers, length)
    this.flags = grown(this.flags, length)
    this.matches = grown(this.matches, length)
    this.dirtyFlags = grown(this.dirtyFlags, length)
    this.generations = grown(this.generations, length)
    this.flags[slot] = 0
    this.matches[slot] = 0
    return slot
  }

  private passes(slot: number): boolean {
    const { test } = this
    return test === null || test(this.entries[slot] as Entry, this.texts[slot] as string, this.modified[slot] as number)
  }

  private markDirty(slot: number): void {
    if (this.dirtyFlags[slot]) return
    this.dirtyFlags[slot] = 1
    this.dirty.push(slot)
  }

  /** Returns whether the key is another one. */
  private setKey(slot: number, key: Key): boolean {
    if (this.keyTexts !== null) {
      const isOther = this.keyTexts[slot] !== key
      this.keyTexts[slot] = key as string | null
      return isOther
    }
    const number = key === null ? Number.NaN : (key as number)
    const isOther = !Object.is(this.numbers[slot], number)
    this.numbers[slot] = number
    return isOther
  }

  // ---- order --------------------------------------------------------------------------------------------------

  /** Put every row in its place: what is new, gone, or belongs elsewhere. Those that fade keep theirs. */
  private settle(): void {
    if (this.sorting !== null) return // all were in their places when it began, and nothing is taken in meanwhile
    this.fading = this.fading.filter(({ until }) => until > this.clock.now())
    if (!this.dirty.length) return
    const stays = new Set(this.fading.map(({ slot }) => slot))
    const added: number[] = []
    const waits: number[] = []
    let hasPlaced = false
    for (const slot of this.dirty) {
      const flags = this.flags[slot] as number
      if (flags & PLACED && stays.has(slot)) {
        waits.push(slot)
        this.dirtyFlags[slot] = 0
        continue
      }
      hasPlaced ||= (flags & PLACED) !== 0
      if (flags & GONE) continue
      this.flags[slot] = PLACED
      this.matches[slot] = Number(this.passes(slot))
      added.push(slot)
    }
    this.index.merge(hasPlaced ? this.dirtyFlags : null, added)
    for (const slot of this.dirty) {
      this.dirtyFlags[slot] = 0
      if ((this.flags[slot] as number) & GONE && !stays.has(slot)) this.release(slot)
    }
    this.dirty = []
    for (const slot of waits) this.markDirty(slot)
  }

  private release(slot: number): void {
    this.entries[slot] = undefined
    this.texts[slot] = ''
    this.flags[slot] = 0
    this.matches[slot] = 0
    if (this.keyTexts !== null) this.keyTexts[slot] = null
    this.free.push(slot)
  }

  /** Collect the rows that match, in order. */
  private show(): void {
    const order = this.index.slots()
    if (this.shown.length < order.length) this.shown = new Int32Array(Math.max(order.length, this.shown.length * 2))
    const { shown, matches } = this
    let count = 0
    for (let at = 0; at < order.length; at++) {
      const slot = order[at] as number
      if (matches[slot]) shown[count++] = slot
    }
    this.shownCount = count
  }

  private notify(change: StoreChange): void {
    for (const listener of [...this.listeners]) listener(change)
    if (this.rowListeners.size) {
      for (const id of this.touched) for (const listener of [...(this.rowListeners.get(id) ?? [])]) listener()
    }
    this.touched.clear()
  }

  private tie(a: number, b: number): number {
    const difference = (this.modified[b] as number) - (this.modified[a] as number)
    if (difference) return difference
    return (this.entries[a] as Entry).id < (this.entries[b] as Entry).id ? -1 : 1
  }

  private compareNumbers(a: number, b: number): number {
    const [x, y] = [this.numbers[a] as number, this.numbers[b] as number]
    if (x === y) return this.tie(a, b)
    if (x < y) return this.sort.descending ? 1 : -1
    if (x > y) return this.sort.descending ? -1 : 1
    // One of them is not a number.
    return x === x ? -1 : y === y ? 1 : this.tie(a, b)
  }

  private compareTexts(a: number, b: number): number {
    const keys = this.keyTexts as (string | null)[]
    const [x, y] = [keys[a] as string | null, keys[b] as string | null]
    if (x === y) return this.tie(a, b)
    if (x === null) return 1
    if (y === null) return -1
    return x < y === this.sort.descending ? 1 : -1
  }

  // ---- sorting everything -------------------------------------------------------------------------------------

  private *sortSteps(sort: Sort): Generator<void, void> {
    this.keyFor = keyOf(sort)
    const isText = isTextSort(sort)
    this.keyTexts = isText ? new Array<string | null>(this.entries.length).fill(null) : null
    const slots = this.index.slots().slice()
    for (let at = 0; at < slots.length; at++) {
      const slot = slots[at] as number
      this.setKey(slot, this.keyFor(this.entries[slot] as Entry, this.modified[slot] as number))
      if (at % 4_096 === 0) yield
    }
    const compare: Compare = isText ? (a, b) => this.compareTexts(a, b) : (a, b) => this.compareNumbers(a, b)
    this.index.replace(yield* sortInSteps(slots, compare), compare)
  }

  private stepSorting(budgetMs: number): void {
    const end = this.clock.now() + budgetMs
    do {
      if (this.sorting?.next().done) {
        this.sorting = null
        this.show()
        this.notify({ isAsked: true })
        return
      }
    } while (this.clock.now() < end)
  }

  private advanceSorting(): void {
    const mine = this.sorting
    if (mine === null) return
    this.stepSorting(SORT_STEP_MS)
    if (this.sorting === mine) this.clock.after(0, () => void (this.sorting === mine && this.advanceSorting()))
    else if (this.queue.length) this.schedule()
  }
}
