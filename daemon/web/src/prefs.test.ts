import { expect, test } from 'vitest'

import { orderedColumns, shownColumns, tracksOf } from './components/columns'
import { parsePrefs } from './prefs'

test('what was kept and cannot be used is as if it were not there', () => {
  for (const text of [null, '', '{', '[]', '3', 'null', '{"theme":"pink","density":1,"columns":3}']) expect(parsePrefs(text)).toEqual({})
  expect(parsePrefs('{"theme":"dark","density":40,"columns":[{"id":"epoch","isShown":true},{"id":1},null]}')).toEqual({
    theme: 'dark', density: 40, columns: [{ id: 'epoch', isShown: true }],
  })
})

test('columns stand as they were put, what is not known any more is left out, what is new comes last', () => {
  const ordered = orderedColumns([{ id: 'health', isShown: true }, { id: 'of an older version', isShown: true }, { id: 'epoch', isShown: false }])
  expect(ordered.slice(0, 3).map(({ column, isShown }) => [column.id, isShown])).toEqual([
    ['health', true], ['epoch', false], ['display_name', true],
  ])
})

test('the name is always there, and a narrow table fits 360 pixels', () => {
  expect(shownColumns([{ id: 'display_name', isShown: false }], 1_000).map(({ id }) => id)).toContain('display_name')
  expect(tracksOf(shownColumns([], 360), 360).least).toBeLessThanOrEqual(360)
})
