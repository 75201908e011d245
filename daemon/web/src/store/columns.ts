/** Columns of values by slot, in typed arrays that grow. */

/** A typed array of at least `length`, with what was in it. */
export function grown<T extends Float64Array | Uint8Array | Uint32Array>(column: T, length: number): T {
  if (column.length >= length) return column
  const larger = new (column.constructor as new (length: number) => T)(Math.max(length, column.length * 2))
  larger.set(column)
  return larger
}

/** How often each name occurs; those that no longer do are forgotten. */
export class Tally {
  private readonly counts = new Map<string, number>()

  add(name: string, change: 1 | -1): void {
    const count = (this.counts.get(name) ?? 0) + change
    if (count > 0) this.counts.set(name, count)
    else this.counts.delete(name)
  }

  /** Names with their counts, the most frequent first, then by name. */
  ranked(): readonly (readonly [name: string, count: number])[] {
    return [...this.counts].sort(([a, n], [b, m]) => m - n || (a < b ? -1 : 1))
  }
}
