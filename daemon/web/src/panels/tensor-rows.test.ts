import fc from 'fast-check'
import { expect, test } from 'vitest'

import type { TensorInfo } from '../answers'
import { flatRows, groupedRows, groupsOf, matchingTensors, type TensorTreeRow } from './tensor-rows'

function tensor(name: string, nbytes = 4, role = 'weights'): TensorInfo {
  return { name, nbytes, role, dtype: 'float32', shape: [nbytes / 4], storage: name }
}

const TABLE = [
  tensor('state_dict.encoder.layer10.weight', 40),
  tensor('state_dict.encoder.layer9.weight', 80),
  tensor('state_dict.encoder.layer9.bias', 8),
  tensor('state_dict.head.weight', 400),
  tensor('optimizer_states.0.state.1.exp_avg', 800, 'optimizer'),
  tensor("callbacks.{'a': 1}.best./runs/x.ckpt", 4, 'other'),
]
const shown = (rows: readonly TensorTreeRow[]) => rows.map((row) => `${'  '.repeat(row.depth)}${row.label} ${row.nbytes}`)

test('tensors are grouped by role and module, and modules that hold one module alone are one row', () => {
  expect(shown(groupedRows(TABLE, 'order', () => true))).toEqual([
    'weights 528',
    '  state_dict 528',
    '    encoder 128',
    '      layer10 40',
    '        weight 40',
    '      layer9 88',
    '        weight 80',
    '        bias 8',
    '    head 400',
    '      weight 400',
    'optimizer 800',
    '  optimizer_states.0.state.1 800',
    '    exp_avg 800',
    'other 4',
    "  callbacks.{'a': 1}.best./runs/x.ckpt 4",
  ])
})

test('sorting by size puts the largest first within each group, by name takes numbers for numbers', () => {
  const names = (sort: 'size' | 'name') =>
    groupedRows(TABLE.slice(0, 4), sort, () => true).map((row) => row.label)
  expect(names('size')).toEqual(['weights', 'state_dict', 'head', 'weight', 'encoder', 'layer9', 'weight', 'bias', 'layer10', 'weight'])
  expect(names('name').filter((name) => name.startsWith('layer'))).toEqual(['layer9', 'layer10'])
  expect(flatRows(TABLE, 'size').map((row) => row.nbytes)).toEqual([800, 400, 80, 40, 8, 4])
})

test('a closed group shows nothing of what is in it', () => {
  expect(shown(groupedRows(TABLE, 'order', (group) => group.depth < 1))).toEqual([
    'weights 528',
    '  state_dict 528',
    'optimizer 800',
    '  optimizer_states.0.state.1 800',
    'other 4',
    "  callbacks.{'a': 1}.best./runs/x.ckpt 4",
  ])
})

test('all words of a search must be in the name, in any order and case', () => {
  expect(matchingTensors(TABLE, ' LAYER9  enc ').map((t) => t.name)).toEqual([
    'state_dict.encoder.layer9.weight',
    'state_dict.encoder.layer9.bias',
  ])
  expect(matchingTensors(TABLE, ' ')).toBe(TABLE)
})

test('grouping loses no tensor and no byte, whatever the names are', () => {
  const names = fc.uniqueArray(fc.string({ unit: fc.constantFrom('.', 'a', 'b', '/'), maxLength: 8 }))
  const roles = fc.constantFrom('weights', 'optimizer', 'other', 'new')
  fc.assert(
    fc.property(names, fc.array(roles, { minLength: 1 }), (all, kinds) => {
      const tensors = all.map((name, n) => tensor(name, 4 * (n + 1), kinds[n % kinds.length] ?? 'other'))
      const rows = groupedRows(tensors, 'order', () => true)
      const leaves = rows.flatMap((row) => (row.kind === 'tensor' ? [row.tensor.name] : []))
      expect(leaves.sort()).toEqual([...all].sort())
      const top = rows.filter((row) => row.depth === 0)
      expect(top.reduce((sum, row) => sum + row.nbytes, 0)).toBe(tensors.reduce((sum, t) => sum + t.nbytes, 0))
      const ids = rows.map((row) => row.id)
      expect(new Set(ids).size).toBe(ids.length)
      expect(groupsOf(tensors)).toEqual(rows.filter((row) => row.kind === 'group'))
    }),
  )
})
