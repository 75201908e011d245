import fc from 'fast-check'
import { describe, expect, test } from 'vitest'

import { type Filters, NEWEST_FIRST, NO_FILTERS, type Sort } from '../state'
import type { Entry } from '../wire'
import { entryOf, expectedIds, TestClock } from './store-model'
import { FADE_MS } from './fading'
import { FLUSH_MS, RowStore, SNAPSHOT_SHOW_MS } from './rows'

function shownIds(store: RowStore): readonly string[] {
  return Array.from({ length: store.length }, (_, index) => store.at(index)?.id ?? 'nothing')
}

function storeOf(...entries: Entry[]): { store: RowStore; clock: TestClock } {
  const clock = new TestClock()
  const store = new RowStore(clock)
  if (entries.length) store.upsert(entries)
  clock.wind(FLUSH_MS)
  return { store, clock }
}

// ---- against the model ------------------------------------------------------------------------------------------

const names = fc.constantFrom('dbnet', 'Craft', 'parseq', 'é-run')
const entries = fc
  .record({
    id: fc.integer({ min: 0, max: 40 }).map((number) => `id${number}`),
    exp_name: fc.option(names),
    architecture: fc.option(names),
    epoch: fc.option(fc.integer({ min: 0, max: 5 })),
    metrics: fc.dictionary(fc.constantFrom('hmean', 'validation_loss'), fc.constantFrom(0, 0.25, 0.5, 1)),
    size_bytes: fc.integer({ min: 0, max: 3 }),
    day: fc.integer({ min: 1, max: 4 }),
    health: fc.constantFrom('writing', 'valid', 'invalid', 'offline'),
    safety: fc.constantFrom('safe', 'unsafe', 'unknown'),
  })
  .map(({ id, day, ...more }) => entryOf(id, { ...more, modified_at: `2025-10-0${day}T12:00:00.000Z` }))
const sorts: fc.Arbitrary<Sort> = fc.record({
  by: fc.constantFrom('modified_at', 'epoch', 'exp_name', 'architecture', 'size_bytes', 'metrics.hmean', 'health', 'display_name'),
  descending: fc.boolean(),
})
const days = fc.option(fc.integer({ min: 1, max: 4 }).map((day) => `2025-10-0${day}`))
const filters: fc.Arbitrary<Filters> = fc.record({
  q: fc.constantFrom('', 'db', 'CRAFT', 'id1 lab', 'é', 'nothing such'),
  exp_name: fc.subarray(['dbnet', 'Craft']),
  architecture: fc.subarray(['dbnet', 'parseq']),
  health: fc.subarray(['valid', 'invalid'] as const),
  safety: fc.subarray(['safe', 'unsafe'] as const),
  metrics: fc.subarray([{ name: 'hmean', min: 0.25, max: null }, { name: 'validation_loss', min: null, max: 0.5 }]),
  modified_from: days,
  modified_to: days,
}) as fc.Arbitrary<Filters>

type Step =
  | { readonly do: 'upsert'; readonly entries: Entry[] }
  | { readonly do: 'delete'; readonly ids: string[] }
  | { readonly do: 'snapshot'; readonly entries: Entry[] }
  | { readonly do: 'filter'; readonly filters: Filters }
  | { readonly do: 'sort'; readonly sort: Sort }
  | { readonly do: 'hold' | 'release' | 'show' }
  | { readonly do: 'wait'; readonly ms: number }

const steps: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ do: fc.constant('upsert' as const), entries: fc.array(entries, { maxLength: 8 }) }),
  fc.record({ do: fc.constant('delete' as const), ids: fc.array(entries.map(({ id }) => id), { maxLength: 5 }) }),
  fc.record({ do: fc.constant('snapshot' as const), entries: fc.uniqueArray(entries, { maxLength: 20, selector: ({ id }) => id }) }),
  fc.record({ do: fc.constant('filter' as const), filters }),
  fc.record({ do: fc.constant('sort' as const), sort: sorts }),
  fc.record({ do: fc.constantFrom('hold' as const, 'release' as const, 'show' as const) }),
  fc.record({ do: fc.constant('wait' as const), ms: fc.integer({ min: 0, max: 2 * FADE_MS }) }),
)

/** What must be there once everything is taken in. */
class Model {
  readonly entries = new Map<string, Entry>()
  filters = NO_FILTERS
  sort = NEWEST_FIRST

  take(step: Step): void {
    if (step.do === 'snapshot') this.entries.clear()
    if (step.do === 'upsert' || step.do === 'snapshot') for (const entry of step.entries) this.entries.set(entry.id, entry)
    if (step.do === 'delete') for (const id of step.ids) this.entries.delete(id)
    if (step.do === 'filter') this.filters = step.filters
    if (step.do === 'sort') this.sort = step.sort
  }
}

function take(store: RowStore, clock: TestClock, step: Step): void {
  if (step.do === 'upsert') store.upsert(step.entries.map((entry) => ({ ...entry })))
  else if (step.do === 'delete') store.delete(step.ids)
  else if (step.do === 'snapshot') {
    store.beginSnapshot()
    for (const entry of step.entries) store.addSnapshot([{ ...entry }])
    store.endSnapshot()
  } else if (step.do === 'filter') store.setFilters(step.filters)
  else if (step.do === 'sort') store.setSort(step.sort)
  else if (step.do === 'hold' || step.do === 'release') store.held = step.do === 'hold'
  else if (step.do === 'wait') clock.wind(step.ms)
  else store.showWaiting()
}

test('whatever comes in whichever order, the store shows what a naive model shows', () => {
  fc.assert(
    fc.property(fc.array(steps, { maxLength: 30 }), fc.constantFrom(0, 20), (taken, perLookMs) => {
      const clock = new TestClock(perLookMs)
      const store = new RowStore(clock)
      const model = new Model()
      for (const step of taken) {
        take(store, clock, step)
        model.take(step)
      }
      store.flushAll()
      store.held = false
      clock.wind(4 * FADE_MS) // those that are gone have faded
      expect(shownIds(store)).toEqual(expectedIds(model.entries.values(), model.filters, model.sort))
      expect(store.total).toBe(model.entries.size)
      expect(new Map([...store.all()].map((entry) => [entry.id, entry]))).toEqual(model.entries)
      const metrics = new Set([...model.entries.values()].flatMap((entry) => Object.keys(entry.metrics)))
      expect(new Set(store.metrics())).toEqual(metrics)
    }),
    { numRuns: 400 },
  )
})

test('while held, rows keep their places whatever comes', () => {
  fc.assert(
    fc.property(fc.array(entries, { minLength: 1, maxLength: 20 }), fc.array(steps, { maxLength: 15 }), (first, taken) => {
      const { store, clock } = storeOf(...first)
      store.held = true
      const before = shownIds(store)
      for (const step of taken) {
        if (step.do === 'upsert' || step.do === 'delete' || step.do === 'snapshot' || step.do === 'wait') take(store, clock, step)
        expect(shownIds(store)).toEqual(before)
      }
    }),
    { numRuns: 200 },
  )
})

test('a row that was deleted while rows were held goes once they are let go', () => {
  const { store, clock } = storeOf(entryOf('a'))
  store.held = true
  store.delete(['a'])
  store.held = false
  clock.wind(4 * FADE_MS)
  expect(shownIds(store)).toEqual([])
})

test('a row that is deleted together with a change that moved it does not put others in the wrong place', () => {
  const { store, clock } = storeOf(
    entryOf('a', { modified_at: '2025-10-01T12:00:00.000Z' }), entryOf('b', { modified_at: '2025-10-03T12:00:00.000Z' }),
  )
  store.beginSnapshot()
  store.addSnapshot([entryOf('a', { modified_at: '2025-10-09T12:00:00.000Z' }), entryOf('b', { modified_at: '2025-10-03T12:00:00.000Z' })])
  store.delete(['a'])
  store.upsert([entryOf('c', { modified_at: '2025-10-08T12:00:00.000Z' })])
  store.flushAll()
  clock.wind(4 * FADE_MS)
  expect(shownIds(store)).toEqual(['c', 'b'])
})

// ---- one by one -------------------------------------------------------------------------------------------------

describe('flushes', () => {
  test('the first change is shown at once, further ones 100 ms later, together', () => {
    const clock = new TestClock()
    const store = new RowStore(clock)
    let drawn = 0
    store.onChange(() => drawn++)
    store.upsert([entryOf('a')])
    expect(shownIds(store)).toEqual(['a'])
    store.upsert([entryOf('b')])
    store.upsert([entryOf('c')])
    expect([store.length, drawn]).toEqual([1, 1])
    clock.wind(FLUSH_MS)
    expect([store.length, drawn]).toEqual([3, 2])
  })

  test('more than one flush takes in follows without waiting for the next 100 ms', () => {
    const { store, clock } = storeOf(entryOf('a'))
    clock.wind(FLUSH_MS)
    store.addSnapshot(Array.from({ length: 9_000 }, (_, number) => entryOf(`id${number}`)))
    expect(store.length).toBeLessThan(9_000)
    clock.wind(10)
    expect(store.length).toBe(9_001)
  })
})

describe('a snapshot', () => {
  test('leaves the old rows until it is whole, and then takes those away that it did not have', () => {
    const { store, clock } = storeOf(entryOf('old'), entryOf('kept'))
    store.beginSnapshot()
    store.addSnapshot([entryOf('kept'), entryOf('new')])
    clock.wind(SNAPSHOT_SHOW_MS)
    expect([...shownIds(store)].sort()).toEqual(['kept', 'new', 'old'])
    store.endSnapshot()
    clock.wind(FLUSH_MS)
    expect([...shownIds(store)].sort()).toEqual(['kept', 'new'])
  })

  test('that breaks off leaves everything, and the next one clears it up', () => {
    const { store, clock } = storeOf(entryOf('old'))
    store.beginSnapshot()
    store.addSnapshot([entryOf('gone before the second')])
    store.beginSnapshot()
    store.addSnapshot([entryOf('new')])
    clock.wind(SNAPSHOT_SHOW_MS)
    expect(store.length).toBe(3)
    store.endSnapshot()
    clock.wind(FLUSH_MS)
    expect(shownIds(store)).toEqual(['new'])
  })

  test('shows its first rows at once, further ones a few times a second, and the last ones with its end', () => {
    const clock = new TestClock()
    const store = new RowStore(clock)
    const seen: number[] = []
    store.beginSnapshot()
    clock.wind(SNAPSHOT_SHOW_MS)
    store.onChange(() => seen.push(store.length))
    for (let number = 0; number < 20; number++) {
      store.addSnapshot([entryOf(`id${number}`)])
      clock.wind(FLUSH_MS)
    }
    expect(seen[0]).toBe(1)
    expect(seen.length).toBeLessThanOrEqual(1 + (20 * FLUSH_MS) / SNAPSHOT_SHOW_MS)
    store.endSnapshot()
    clock.wind(FLUSH_MS)
    expect(seen.at(-1)).toBe(20)
  })

  test('that stops coming is shown as far as it came', () => {
    const clock = new TestClock()
    const store = new RowStore(clock)
    store.beginSnapshot()
    store.addSnapshot(Array.from({ length: 9_000 }, (_, number) => entryOf(`id${number}`)))
    clock.wind(2 * SNAPSHOT_SHOW_MS)
    expect(store.length).toBe(9_000)
  })
})

describe('what is gone', () => {
  test('fades where it stands, then goes', () => {
    const { store, clock } = storeOf(entryOf('a'), entryOf('b'))
    store.delete(['a'])
    clock.wind(FLUSH_MS)
    expect([shownIds(store), store.isGoneAt(0), store.total]).toEqual([['a', 'b'], true, 1])
    expect(store.get('a')).toBeUndefined()
    clock.wind(FADE_MS + FLUSH_MS)
    expect(shownIds(store)).toEqual(['b'])
  })

  test('goes at once where motion is not wanted', () => {
    const { store, clock } = storeOf(entryOf('a'), entryOf('b'))
    store.fadeMs = 0
    store.delete(['a'])
    clock.wind(FLUSH_MS)
    expect(shownIds(store)).toEqual(['b'])
  })

  test('may come back while it fades', () => {
    const { store, clock } = storeOf(entryOf('a', { epoch: 1 }))
    store.delete(['a'])
    clock.wind(FLUSH_MS)
    store.upsert([entryOf('a', { epoch: 2 })])
    clock.wind(FADE_MS + 2 * FLUSH_MS)
    expect(shownIds(store)).toEqual(['a'])
    expect(store.get('a')?.epoch).toBe(2)
  })
})

describe('while held', () => {
  test('new rows that match are counted, values change in place, Show puts all in their places', () => {
    const { store, clock } = storeOf(entryOf('a', { modified_at: '2025-10-01T00:00:00.000Z' }))
    store.setFilters({ ...NO_FILTERS, architecture: ['dbnet'] })
    store.held = true
    store.upsert([entryOf('b'), entryOf('other', { architecture: 'craft' })])
    store.upsert([entryOf('a', { epoch: 9, modified_at: '2025-10-01T00:00:00.000Z' })])
    clock.wind(FLUSH_MS)
    expect(store.waiting).toEqual({ added: 1, moved: 0 })
    expect([shownIds(store), store.at(0)?.epoch]).toEqual([['a'], 9])
    store.showWaiting()
    expect([shownIds(store), store.held]).toEqual([['b', 'a'], true])
    expect(store.waiting).toEqual({ added: 0, moved: 0 })
  })

  test('a new filter or order shows everything at once', () => {
    const { store, clock } = storeOf(entryOf('a'))
    store.held = true
    store.upsert([entryOf('b')])
    clock.wind(FLUSH_MS)
    store.setSort({ by: 'epoch', descending: false })
    clock.wind(100)
    expect(shownIds(store)).toEqual(['a', 'b'])
  })
})

test('only what changed a moment ago is told as changed, and nothing of a snapshot', () => {
  const { store, clock } = storeOf()
  store.beginSnapshot()
  store.addSnapshot([entryOf('a', { metrics: { hmean: 0.5 } })])
  store.endSnapshot()
  clock.wind(FLUSH_MS)
  expect(store.recentChange('a')).toBeUndefined()
  store.upsert([entryOf('a', { metrics: { hmean: 0.6 }, revision: 2 })])
  clock.wind(FLUSH_MS)
  expect([...(store.recentChange('a')?.fields ?? [])]).toEqual(['metrics.hmean'])
  let drawn = 0
  store.onChange(() => drawn++)
  clock.wind(1_000)
  expect(store.recentChange('a')).toBeUndefined()
  expect(drawn).toBe(1) // its row is drawn once more, without the tint
})

test('listeners of a row hear of it alone', () => {
  const { store, clock } = storeOf(entryOf('a'), entryOf('b'))
  const heard: string[] = []
  const end = store.subscribe('a', () => heard.push('a'))
  store.upsert([entryOf('b', { epoch: 5 })])
  clock.wind(FLUSH_MS)
  store.upsert([entryOf('a', { epoch: 5 })])
  clock.wind(FLUSH_MS)
  end()
  store.delete(['a'])
  clock.wind(FLUSH_MS)
  expect(heard).toEqual(['a'])
})

test('a facet counts under all other filters, and keeps the values that none of those has', () => {
  const { store } = storeOf(
    entryOf('a', { exp_name: 'one', architecture: 'dbnet' }),
    entryOf('b', { exp_name: 'two', architecture: 'dbnet' }),
    entryOf('c', { exp_name: 'three', architecture: 'craft' }),
  )
  store.setFilters({ ...NO_FILTERS, exp_name: ['one'], architecture: ['dbnet'] })
  expect(store.facet('exp_name')).toEqual([['one', 1], ['two', 1], ['three', 0]])
})

test('a filter finds what the texts were not made for yet, and what was renamed after they were', () => {
  const { store, clock } = storeOf()
  store.beginSnapshot()
  store.addSnapshot([entryOf('a', { display_name: 'lab/before' }), entryOf('b')])
  store.endSnapshot()
  clock.wind(FLUSH_MS)
  store.setFilters({ ...NO_FILTERS, q: 'before' })
  expect(shownIds(store)).toEqual(['a'])
  clock.wind(1_000)
  store.upsert([entryOf('a', { display_name: 'lab/after' })])
  clock.wind(FLUSH_MS)
  expect(shownIds(store)).toEqual([])
  store.setFilters({ ...NO_FILTERS, q: 'after' })
  expect(shownIds(store)).toEqual(['a'])
})

test('the usual metric is what most checkpoints were chosen by', () => {
  const { store } = storeOf(
    entryOf('a', { monitor: 'val_loss', metrics: { validation_loss: 1, hmean: 1 } }),
    entryOf('b', { monitor: 'recall', metrics: { recall: 1, hmean: 1 } }),
  )
  expect(store.usualMetric()).toBe('recall')
})

test('sorting 20,000 rows takes many short steps, and what comes meanwhile waits for its end', () => {
  const clock = new TestClock(1)
  const store = new RowStore(clock)
  const all = Array.from({ length: 20_000 }, (_, number) => entryOf(`id${number}`, { epoch: (number * 7919) % 20_000 }))
  store.addSnapshot(all)
  store.flushAll()
  const before = shownIds(store)
  store.setSort({ by: 'display_name', descending: true })
  store.upsert([entryOf('late', { display_name: 'zz' })])
  store.delete(['id5'])
  expect(shownIds(store)).toEqual(before) // it is not done yet
  clock.wind(1_000)
  store.flushAll()
  clock.wind(2_000)
  const expected = expectedIds([...all.filter(({ id }) => id !== 'id5'), entryOf('late', { display_name: 'zz' })], NO_FILTERS, {
    by: 'display_name',
    descending: true,
  })
  expect(shownIds(store)).toEqual(expected)
})

test('a row that has faded while another order is worked out does not come back', () => {
  const clock = new TestClock(20) // every look costs more than a step may take: sorting pauses after each
  const store = new RowStore(clock)
  store.upsert([entryOf('a'), entryOf('b')])
  store.flushAll()
  store.delete(['a'])
  store.flushAll()
  store.setSort({ by: 'epoch', descending: false })
  for (let look = 0; look < 100; look++) clock.now()
  store.setFilters({ ...NO_FILTERS, q: 'lab' })
  clock.wind(4 * FADE_MS)
  store.upsert([entryOf('c')])
  clock.wind(4 * FADE_MS)
  expect([...shownIds(store)].sort()).toEqual(['b', 'c'])
})
