import { describe, expect, test } from 'vitest'

import { COLUMNS, orderedColumns, shownColumns, tracksOf } from './components/columns'
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

describe('a table without room for all columns', () => {
  const ids = (width: number, sortedId: string | null = null) => shownColumns([], width, sortedId).map(({ id }) => id)

  test.each([360, 640, 700, 768, 900, 1024, 1280, 1440])('shows name, metric and health within %d pixels', (width) => {
    for (const sortedId of ['modified_at', 'size_bytes', null]) {
      expect(ids(width, sortedId)).toEqual(expect.arrayContaining(['display_name', 'metric', 'health']))
      expect(tracksOf(shownColumns([], width, sortedId), width).least).toBeLessThanOrEqual(width)
    }
  })

  test('leaves out no more than it must, and what sorts last', () => {
    expect(ids(1_440)).toEqual(COLUMNS.filter(({ isShown }) => isShown).map(({ id }) => id))
    expect(ids(1_024)).not.toContain('size_bytes')
    expect(ids(1_024, 'size_bytes')).toContain('size_bytes')
    expect(ids(1_024)).toContain('exp_name')
    expect(ids(768)).not.toContain('exp_name')
  })

  test('scrolls sideways where a reader has added a column, and leaves out none', () => {
    const chosen = shownColumns([{ id: 'run_id', isShown: true }], 700).map(({ id }) => id)
    expect(chosen).toEqual(expect.arrayContaining(['run_id', 'architecture', 'size_bytes', 'health']))
  })
})

test('the name is always there, and a narrow table fits 360 pixels', () => {
  expect(shownColumns([{ id: 'display_name', isShown: false }], 1_000).map(({ id }) => id)).toContain('display_name')
  expect(tracksOf(shownColumns([], 360), 360).least).toBeLessThanOrEqual(360)
})
