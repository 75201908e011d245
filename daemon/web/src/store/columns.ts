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

/**
 * Equal values stored once: of 100,000 entries that were parsed one by one, each has its own copy of the experiment's
 * name and an empty list of its own.
 */
export class Sharing {
  private readonly texts = new Map<string, string>()
  private readonly lists = new Map<string, readonly unknown[]>()

  text<T extends string | null>(value: T): T {
    if (value === null) return value
    const known = this.texts.get(value)
    if (known !== undefined) return known as T
    if (this.texts.size < 50_000) this.texts.set(value, value)
    return value
  }

  list<T>(value: readonly T[]): readonly T[] {
    const key = value.length ? JSON.stringify(value) : ''
    const known = this.lists.get(key)
    if (known !== undefined) return known as readonly T[]
    if (this.lists.size < 5_000) this.lists.set(key, value)
    return value
  }
}
