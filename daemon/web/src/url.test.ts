import fc from 'fast-check'
import { expect, test } from 'vitest'

import { DETAIL_TABS, type Filters, INITIAL } from './state'
import { type Addressed, fromQuery, toQuery } from './url'
import { HEALTHS, SAFETIES } from './wire'

const ids = fc.uniqueArray(fc.string({ unit: fc.constantFrom(...'abcdefghijklmnopqrstuvwxyz234567'.split('')), minLength: 16, maxLength: 16 }), { minLength: 2, maxLength: 4 })
const text = fc.string({ unit: 'grapheme', minLength: 1 })
const number = fc.double({ noNaN: true, noDefaultInfinity: true }).map((value) => (Object.is(value, -0) ? 0 : value))
const day = fc.option(fc.integer({ min: 0, max: 20_000 }).map((days) => new Date(days * 86_400_000).toISOString().slice(0, 10)))
const filters = fc.record({
  q: fc.constantFrom('', 'dbnet hmean>0.8', 'a&b=c#d', '%41+"é"'),
  exp_name: fc.uniqueArray(text, { maxLength: 3 }),
  architecture: fc.uniqueArray(text, { maxLength: 3 }),
  health: fc.subarray([...HEALTHS]),
  safety: fc.subarray([...SAFETIES]),
  metrics: fc.uniqueArray(fc.record({ name: text, min: number, max: fc.option(number) }), { selector: ({ name }) => name, maxLength: 3 }),
  modified_from: day,
  modified_to: day,
}) as fc.Arbitrary<Filters>

test('every state comes back from its own address', () => {
  fc.assert(
    fc.property(
      filters, ids, fc.constantFrom('table', 'compare', 'health'), fc.option(text), fc.boolean(), fc.boolean(), fc.constantFrom(...DETAIL_TABS), fc.boolean(),
      fc.constantFrom('modified_at', 'epoch', 'metrics.val/loss', 'loss', 'display_name'),
      (chosen, [first, ...others], view, metric, descending, streaming, tab, isOnly, by) => {
        const compareIds = view === 'compare' ? [first as string, ...others] : []
        const state = {
          view, detailId: view === 'table' ? (first as string) : null, compareIds, metric, streaming, filters: chosen,
          detailTab: view === 'table' ? tab : 'overview', differencesOnly: view === 'compare' && isOnly,
          selected: new Set(view === 'health' ? [] : view === 'compare' ? compareIds : others), sort: { by, descending },
        } as Addressed
        expect(fromQuery(toQuery(state))).toEqual(state)
      },
    ),
  )
})

test('a fresh page has no query', () => {
  expect(toQuery(INITIAL)).toBe('')
})

test('whatever stands in an address, the page begins; what cannot be used is left out', () => {
  fc.assert(fc.property(fc.string({ unit: 'binary' }), (query) => void toQuery(fromQuery(query))))
  const { view, detailId, detailTab, differencesOnly, sort, filters: kept, compareIds } = fromQuery(
    'view=compare&ids=a,../../x&id=%3Cimg%3E&sort_by=revision&tab=nothing&differences=1&health=dead,valid&min_hmean=high&min_=1&modified_after=soon',
  )
  expect({ view, detailId, detailTab, differencesOnly, sort, compareIds }).toEqual({
    view: 'table', detailId: null, detailTab: 'overview', differencesOnly: false, sort: INITIAL.sort, compareIds: [],
  })
  expect(kept).toEqual({ ...INITIAL.filters, health: ['valid'] })
})

test('filters are called as the parameters of the API are, whose last moment is not included', () => {
  const { filters: read } = fromQuery('exp_name=a&exp_name=b&min_hmean=0.8&max_hmean=1&modified_after=2025-10-01&modified_before=2025-11-01')
  expect(read).toMatchObject({
    exp_name: ['a', 'b'], metrics: [{ name: 'hmean', min: 0.8, max: 1 }], modified_from: '2025-10-01', modified_to: '2025-10-31',
  })
})
