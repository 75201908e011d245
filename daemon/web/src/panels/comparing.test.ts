import { expect, test } from 'vitest'

import type { Attribute, AttributeSection, Comparison } from '../answers'
import { cellText, moved, shortNames, shownSections, weightsWords } from './comparing'

function row(name: string, values: Attribute['values'], patch: Partial<Attribute> = {}): Attribute {
  return { name, values, status: 'equal', missing: [], direction: null, best: [], ...patch }
}
const section = (...rows: Attribute[]): AttributeSection => ({ rows, equal: 0, differing: 0, missing: 0, omitted: 0 })
const COMPARISON = {
  metrics: section(row('hmean', [0.1, 0.2], { status: 'differing' }), row('recall', [1, 1])),
  training: section(row('epoch', [3, 3])),
  hyper_parameters: section(),
  config: section(row('lr', [0.1, null], { status: 'missing', missing: [1] })),
  model: section(),
  identity: section(row('format', ['torch_zip', 'torch_zip'])),
} as unknown as Comparison

test('differences only leaves rows that are equal out, and sections that have none left', () => {
  const names = (only: boolean) => shownSections(COMPARISON, only).map(({ name, rows }) => [name, rows.length])
  expect(names(false)).toEqual([['metrics', 2], ['training', 1], ['config', 1], ['identity', 1]])
  expect(names(true)).toEqual([['metrics', 1], ['config', 1]])
})

test('a null that was set is not the same as a value that is not there', () => {
  expect(cellText(row('a', [null, null], { missing: [1] }), 0)).toBe('null')
  expect(cellText(row('a', [null, null], { missing: [1] }), 1)).toBeNull()
  expect(cellText(row('a', [[1, 2], 'x']), 0)).toBe('[1,2]')
  expect(cellText(row('size_bytes', [1234567]), 0)).toBe('1,234,567')
})

test('moving a column keeps the others in their order', () => {
  expect(moved(['a', 'b', 'c'], 0, 2)).toEqual(['b', 'c', 'a'])
  expect(moved(['a', 'b', 'c'], 2, 0)).toEqual(['c', 'a', 'b'])
  expect(moved(['a', 'b'], 1, 2)).toEqual(['a', 'b'])
  expect(moved(['a', 'b'], 0, -1)).toEqual(['a', 'b'])
})

test('no two columns have the same name', () => {
  const of = (id: string, display_name: string, run_id: string | null) => ({ id, display_name, run_id })
  expect(shortNames([of('1', 'x/last', 'r1'), of('2', 'x/last', 'r2'), of('3', 'y/best', 'r1')])).toEqual([
    'x/last · r1',
    'x/last · r2',
    'y/best',
  ])
  expect(new Set(shortNames([of('abcdefg', 'last', null), of('hijklmn', 'last', null)])).size).toBe(2)
})

test('same is said only as surely as the checksums allow', () => {
  const counts = { added: 0, removed: 0, reshaped: 0, dtype_changed: 0, changed: 0, unknown: 0, same: 9 }
  expect(weightsWords('same', counts, true)).toContain('verified')
  expect(weightsWords('same', counts, false)).toContain('recorded')
  expect(weightsWords('unknown', { ...counts, unknown: 3 }, true)).toContain('not all')
  expect(weightsWords('unknown', { ...counts, same: 0 }, true)).toContain('cannot')
  // one of the two is still being written: nothing is known of its tensors
  expect(weightsWords('unknown', { ...counts, same: 0, unknown: 9 }, true)).toBe('weights cannot be compared')
})
