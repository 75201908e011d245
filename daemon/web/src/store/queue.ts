/** What the stream said and the store has not taken in yet. */

import type { Entry } from '../wire'

export type Change =
  | { readonly kind: 'upsert'; readonly entries: readonly Entry[]; readonly isSnapshot: boolean; done: number }
  | { readonly kind: 'delete'; readonly ids: readonly string[] }
  | { readonly kind: 'begin' | 'end' }

/** Who takes changes in. */
export interface Taker {
  put(entry: Entry, isSnapshot: boolean): void
  drop(id: string): void
  begin(): void
  end(): void
}

export class Queue {
  private changes: Change[] = []

  get isEmpty(): boolean {
    return this.changes.length === 0
  }

  push(change: Change): void {
    this.changes.push(change)
  }

  /** Give changes from the head to `taker`, in their order, with about `room` entries. */
  take(room: number, taker: Taker): void {
    for (let change = this.changes[0]; change !== undefined && room > 0; change = this.changes[0]) {
      if (change.kind === 'upsert') {
        const end = Math.min(change.entries.length, change.done + room)
        room -= end - change.done
        for (; change.done < end; change.done++) taker.put(change.entries[change.done] as Entry, change.isSnapshot)
        if (change.done < change.entries.length) return
      } else if (change.kind === 'delete') {
        for (const id of change.ids) taker.drop(id)
      } else if (change.kind === 'begin') taker.begin()
      else taker.end()
      this.changes.shift()
    }
  }
}
