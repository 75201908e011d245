/**
 * Slots: where entries live. What is asked of all entries at once lies in typed arrays by slot; a slot that is free is
 * used again.
 */

import type { Entry } from '../wire'
import { grown } from './columns'
import type { RowTest } from './filters'
import { searchText } from './search'

/** Flags of a slot: it has a place in the order; its entry is gone. */
export const PLACED = 1
export const GONE = 2

export class Slots {
  entries: (Entry | undefined)[] = []
  modified = new Float64Array(0)
  flags = new Uint8Array(0)
  /** 1: passes the filters. */
  matches = new Uint8Array(0)
  /** 1: waits to be put in its place. */
  dirty = new Uint8Array(0)
  /** The snapshot that had it last. */
  generations = new Uint32Array(0)
  readonly byId = new Map<string, number>()

  private texts: (string | undefined)[] = []
  private free: number[] = []

  /** Slots in use and free ones. */
  get length(): number {
    return this.entries.length
  }

  entry(slot: number): Entry {
    return this.entries[slot] as Entry
  }

  /** A slot for an entry that is not known yet. */
  claim(id: string): number {
    const slot = this.free.pop() ?? this.entries.length
    if (slot >= this.flags.length) this.reserve(slot + 1)
    this.flags[slot] = 0
    this.matches[slot] = 0
    this.byId.set(id, slot)
    return slot
  }

  /** Put an entry into its slot. */
  fill(slot: number, entry: Entry, modifiedMs: number): void {
    this.entries[slot] = entry
    this.texts[slot] = undefined
    this.modified[slot] = modifiedMs
  }

  /** The slot is free again. */
  release(slot: number): void {
    this.entries[slot] = undefined
    this.texts[slot] = undefined
    this.flags[slot] = 0
    this.matches[slot] = 0
    this.free.push(slot)
  }

  is(slot: number, flag: typeof PLACED | typeof GONE): boolean {
    return ((this.flags[slot] as number) & flag) !== 0
  }

  /** What words are looked for in; made when it is first asked for: while a snapshot comes in, nobody does. */
  text(slot: number): string {
    return (this.texts[slot] ??= searchText(this.entry(slot)))
  }

  passes(slot: number, test: RowTest | null): boolean {
    return test === null || test(this.entry(slot), this.text(slot), this.modified[slot] as number)
  }

  /** Make the texts of slots from `start` on, `count` of them. Returns whether there are more. */
  prepareTexts(start: number, count: number): boolean {
    const end = Math.min(start + count, this.entries.length)
    for (let slot = start; slot < end; slot++) if (this.entries[slot] !== undefined) this.text(slot)
    return end < this.entries.length
  }

  private reserve(length: number): void {
    this.modified = grown(this.modified, length)
    this.flags = grown(this.flags, length)
    this.matches = grown(this.matches, length)
    this.dirty = grown(this.dirty, length)
    this.generations = grown(this.generations, length)
  }
}
