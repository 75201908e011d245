import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'

import { followSearch, unfinished } from './found'
import { app, connection, INITIAL, NO_FILTERS, setFilters } from './state'
import type { Found } from './store/filters'
import { RowStore } from './store/rows'
import { entryOf, TestClock } from './store/store-model'
import type { Entry, ListAnswer } from './wire'

const found = (q: string, ids: readonly string[], revision = 1): Found => ({ q, ids: new Set(ids), revision })

function searching(q: string): RowStore {
  const store = new RowStore(new TestClock())
  store.upsert([entryOf('a', { display_name: 'lab/lion' }), entryOf('b'), entryOf('new', { revision: 5 })])
  store.setFilters({ ...NO_FILTERS, q })
  return store
}

function shown(store: RowStore): readonly string[] {
  return Array.from({ length: store.length }, (_, index) => store.at(index)?.id ?? 'nothing').toSorted()
}

describe('what the daemon finds', () => {
  test('is shown besides what the page finds by itself', () => {
    const store = searching('lion')
    expect(shown(store)).toEqual(['a'])
    store.setFound(found('lion', ['b']))
    expect(shown(store)).toEqual(['a', 'b'])
  })

  test('must pass the other filters as well', () => {
    const store = searching('lion')
    store.setFound(found('lion', ['b']))
    store.setFilters({ ...NO_FILTERS, q: 'lion', architecture: ['craft'] })
    expect(shown(store)).toEqual([])
  })

  test('is forgotten with the search that it belongs to', () => {
    const store = searching('lion')
    store.setFound(found('lion', ['b']))
    store.setFilters({ ...NO_FILTERS, q: 'lio' })
    expect(shown(store)).toEqual(['a'])
    store.setFound(found('tiger', ['b']))
    expect(shown(store)).toEqual(['a'])
  })

  test('decides alone where something must not occur, but for what came after it was asked', () => {
    const store = searching('-tiger')
    expect(shown(store)).toEqual(['a', 'b', 'new'])
    store.setFound(found('-tiger', ['a']))
    expect(shown(store)).toEqual(['a', 'new'])
  })

  test('does not move rows that are held, and is shown once they are let go', () => {
    const store = searching('lion')
    store.held = true
    store.setFound(found('lion', ['b']))
    expect(shown(store)).toEqual(['a'])
    store.held = false
    expect(shown(store)).toEqual(['a', 'b'])
  })
})

describe('the daemon is asked', () => {
  /** More than the 5,000 that were once the most. */
  const MANY = 7_500
  const entries = Array.from({ length: MANY }, (_, n) => entryOf(`m${n}`))
  let stop: () => void
  let asked: Readonly<Record<string, string>>[]
  let refuses: boolean

  const list = (all: readonly Entry[]) => async (query: Readonly<Record<string, string>>): Promise<ListAnswer> => {
    asked.push(query)
    if (refuses) throw new Error('no answer')
    const begin = Number(query['after'] ?? 0)
    const size = Number(query['page_size'])
    const next = begin + size < all.length ? String(begin + size) : null
    return {
      checkpoints: all.slice(begin, begin + size), total: all.length, revision: 3, next, page: 1, page_size: size, total_pages: 8,
    }
  }

  beforeEach(() => {
    vi.useFakeTimers()
    asked = []
    refuses = false
    app.set(INITIAL)
    connection.set({ ...connection.get(), status: 'live', revision: 3 })
  })
  afterEach(() => {
    stop()
    vi.useRealTimers()
  })

  function start(all: readonly Entry[] = entries): RowStore {
    const store = new RowStore(new TestClock())
    store.upsert(entries.slice(0, 10))
    app.subscribe(({ filters }) => store.setFilters(filters))
    stop = followSearch(store, list(all))
    return store
  }

  test('for every page of what it finds, however many, and says how far it is', async () => {
    const store = start()
    const told: unknown[] = []
    unfinished.subscribe((state) => told.push(state))
    setFilters({ q: 'adamw' })
    expect(store.length).toBe(0)
    await vi.advanceTimersByTimeAsync(10_000)
    expect(asked).toHaveLength(8)
    expect(store.length).toBe(10)
    expect(told[0]).toEqual({ status: 'asking', done: 1_000, total: MANY })
    expect(unfinished.get()).toBeNull()
  })

  test('once a word is typed, not at each key, and no more for what is no longer searched for', async () => {
    start()
    setFilters({ q: 'ad' })
    setFilters({ q: 'adam' })
    await vi.advanceTimersByTimeAsync(299)
    expect(asked).toHaveLength(0)
    setFilters({ q: '' })
    await vi.advanceTimersByTimeAsync(10_000)
    expect(asked).toHaveLength(0)
    expect(unfinished.get()).toBeNull()
  })

  test('again when it could not answer, and until then the page says that configs were not searched', async () => {
    const store = start(entries.slice(0, 5))
    refuses = true
    setFilters({ q: 'adamw' })
    await vi.advanceTimersByTimeAsync(1_000)
    expect(unfinished.get()).toEqual({ status: 'failed', reason: 'no answer' })
    refuses = false
    connection.set({ ...connection.get(), completeAsOf: 'later' }) // a heartbeat
    await vi.advanceTimersByTimeAsync(10_000)
    expect(unfinished.get()).toBeNull()
    expect(store.length).toBe(5)
  })

  test('again when the catalog has changed, and not when it has not', async () => {
    start(entries.slice(0, 5))
    setFilters({ q: 'adamw' })
    await vi.advanceTimersByTimeAsync(1_000)
    connection.set({ ...connection.get(), completeAsOf: 'much later' })
    await vi.advanceTimersByTimeAsync(10_000)
    expect(asked).toHaveLength(1)
    connection.set({ ...connection.get(), revision: 4 })
    await vi.advanceTimersByTimeAsync(10_000)
    expect(asked).toHaveLength(2)
  })
})
