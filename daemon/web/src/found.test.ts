import { describe, expect, test } from 'vitest'

import { NO_FILTERS } from './state'
import type { Found } from './store/filters'
import { RowStore } from './store/rows'
import { entryOf, TestClock } from './store/store-model'

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
