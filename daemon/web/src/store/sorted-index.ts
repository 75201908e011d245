/** SortedIndex: rows in order, as a typed array of slots. Changes are merged in; everything is sorted only when asked. */

/** Negative where the row in slot `a` stands before that in `b`. Total: never 0 for two slots. */
export type Compare = (a: number, b: number) => number

type Slots = Int32Array<ArrayBuffer>

/** Slots that are sorted in one go, 3 ms; longer lists are merged from such runs, so that no task is long. */
const RUN = 8_192

export class SortedIndex {
  private order: Slots = new Int32Array(1_024)
  private spare: Slots = new Int32Array(1_024)
  private count = 0

  constructor(public compare: Compare) {}

  get length(): number {
    return this.count
  }

  /** The slots in order. Valid until the next change. */
  slots(): Int32Array {
    return this.order.subarray(0, this.count)
  }

  /**
   * Take out all slots that are flagged and put others in, in one pass.
   *
   * @param flags - by slot; 0: stays. Null: all stay.
   * @param added - in any order; none of them is in the index, or it is flagged. Is sorted here.
   */
  merge(flags: Uint8Array | null, added: number[]): void {
    added.sort(this.compare)
    const kept = flags === null ? this.slots() : this.without(flags)
    if (added.length === 0) {
      this.count = kept.length
      return
    }
    const target = this.reserved(kept.length + added.length)
    let [from, to] = [0, 0]
    for (const slot of added) {
      const at = this.placeOf(slot, kept, from)
      target.set(kept.subarray(from, at), to)
      to += at - from
      target[to++] = slot
      from = at
    }
    target.set(kept.subarray(from), to)
    this.count = to + kept.length - from
    this.spare = this.order
    this.order = target
  }

  /** Replace everything by what is sorted already. */
  replace(sorted: Slots, compare: Compare): void {
    this.order = sorted
    this.count = sorted.length
    this.compare = compare
  }

  /** Closes the gaps in place. */
  private without(flags: Uint8Array): Int32Array {
    const { order, count } = this
    let to = 0
    for (let from = 0; from < count; from++) {
      const slot = order[from] as number
      if (flags[slot] === 0) order[to++] = slot
    }
    return order.subarray(0, to)
  }

  private placeOf(slot: number, kept: Int32Array, from: number): number {
    let [low, high] = [from, kept.length]
    // Snapshots come in order: most belong at the end.
    if (high > low && this.compare(kept[high - 1] as number, slot) < 0) return high
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.compare(kept[middle] as number, slot) < 0) low = middle + 1
      else high = middle
    }
    return low
  }

  private reserved(length: number): Slots {
    if (this.spare.length < length) this.spare = new Int32Array(Math.max(length, this.spare.length * 2))
    return this.spare
  }
}

/** Sort slots, step by step: each is a few milliseconds. Returns the sorted array, which may be another one. */
export function* sortInSteps(slots: Slots, compare: Compare): Generator<void, Slots> {
  for (let start = 0; start < slots.length; start += RUN) {
    slots.subarray(start, start + RUN).sort(compare)
    yield
  }
  let from = slots
  let to: Slots = new Int32Array(slots.length)
  for (let width = RUN; width < slots.length; width *= 2) {
    for (let start = 0; start < slots.length; start += 2 * width) {
      yield* mergeRuns(from, to, start, start + width, start + 2 * width, compare)
    }
    ;[from, to] = [to, from]
  }
  return from
}

function* mergeRuns(
  from: Int32Array, to: Int32Array, start: number, middle: number, end: number, compare: Compare,
): Generator<void, void> {
  const [leftEnd, rightEnd] = [Math.min(middle, from.length), Math.min(end, from.length)]
  let [left, right] = [start, leftEnd]
  for (let at = start; at < rightEnd; at++) {
    const takesLeft = right >= rightEnd || (left < leftEnd && compare(from[left] as number, from[right] as number) < 0)
    to[at] = from[takesLeft ? left++ : right++] as number
    if (at % RUN === 0) yield
  }
}
