/** SortKeys: what each slot is sorted by, and how two of them compare. */

import { NEWEST_FIRST, type Sort } from '../state'
import type { Entry } from '../wire'
import { grown } from './columns'
import { isTextSort, type Key, keyOf, type KeyOf } from './ordering'
import type { Slots } from './slots'
import type { Compare } from './sorted-index'

export class SortKeys {
  sort: Sort = NEWEST_FIRST

  private numbers = new Float64Array(0)
  /** Null where the order is one of numbers. */
  private texts: (string | null)[] | null = null
  private keyFor: KeyOf = keyOf(NEWEST_FIRST)

  constructor(private readonly slots: Slots) {}

  /** From now on slots are sorted by this; every slot has to be keyed anew. */
  begin(sort: Sort): void {
    this.sort = sort
    this.keyFor = keyOf(sort)
    this.texts = isTextSort(sort) ? Array.from<null>({ length: this.slots.length }).fill(null) : null
  }

  /** The order of slots by their keys. */
  get compare(): Compare {
    return this.texts === null ? (a, b) => this.compareNumbers(a, b) : (a, b) => this.compareTexts(a, b)
  }

  /** Work out the key of a slot. Returns whether it is another one than before. */
  update(slot: number, entry: Entry, modifiedMs: number): boolean {
    const key = this.keyFor(entry, modifiedMs)
    return this.texts === null ? this.setNumber(slot, key as number | null) : this.setText(this.texts, slot, key)
  }

  release(slot: number): void {
    if (this.texts !== null) this.texts[slot] = null
  }

  private setNumber(slot: number, key: number | null): boolean {
    const number = key ?? Number.NaN
    if (slot >= this.numbers.length) this.numbers = grown(this.numbers, slot + 1)
    const isOther = !Object.is(this.numbers[slot], number)
    this.numbers[slot] = number
    return isOther
  }

  private setText(texts: (string | null)[], slot: number, key: Key): boolean {
    const isOther = texts[slot] !== key
    texts[slot] = key as string | null
    return isOther
  }

  /** Newest first, then by id. */
  private tie(a: number, b: number): number {
    const { modified } = this.slots
    const difference = (modified[b] as number) - (modified[a] as number)
    if (difference) return difference
    return this.slots.entry(a).id < this.slots.entry(b).id ? -1 : 1
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
    const texts = this.texts as (string | null)[]
    const [x, y] = [texts[a] as string | null, texts[b] as string | null]
    if (x === y) return this.tie(a, b)
    if (x === null) return 1
    if (y === null) return -1
    return x < y === this.sort.descending ? 1 : -1
  }
}
