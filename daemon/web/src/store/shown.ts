/** Shown: the rows that match, in order, as a typed array of slots. */

export class Shown {
  length = 0

  private slots = new Int32Array(0)

  /** Collect, of all slots in order, those that match. */
  collect(order: Int32Array, matches: Uint8Array): void {
    if (this.slots.length < order.length) {
      this.slots = new Int32Array(Math.max(order.length, this.slots.length * 2))
    }
    const { slots } = this
    let count = 0
    for (let at = 0; at < order.length; at++) {
      const slot = order[at] as number
      if (matches[slot]) slots[count++] = slot
    }
    this.length = count
  }

  /** The slot at a place; -1 where there is none. */
  at(index: number): number {
    return index < 0 || index >= this.length ? -1 : (this.slots[index] as number)
  }

  /** The place of a slot; -1 where it is not shown. */
  indexOf(slot: number): number {
    return this.slots.subarray(0, this.length).indexOf(slot)
  }
}
