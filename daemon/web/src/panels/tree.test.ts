import fc from 'fast-check'
import { expect, test } from 'vitest'

import type { Plain } from '../answers'
import { countMatches, flattenTree, foldedBelow, visibleNodes } from './tree'

const CONFIG = { model: { encoder: { name: 'resnet18', widths: [64, 128] }, lr: 0.1 }, 'a.b': [{ x: 1 }], empty: {} }
const paths = (query = '', folded: ReadonlySet<number> = new Set()) =>
  visibleNodes(flattenTree(CONFIG), folded, query).map((node) => node.path)

test('a tree is flattened in document order, short lists on one line, keys with a dot quoted', () => {
  expect(paths()).toEqual([
    'model',
    'model.encoder',
    'model.encoder.name',
    'model.encoder.widths',
    'model.lr',
    '"a.b"',
    '"a.b".0',
    '"a.b".0.x',
    'empty',
  ])
  const nodes = flattenTree(CONFIG)
  expect(nodes[3]?.text).toBe('[64,128]')
  expect([nodes[1]?.position, nodes[1]?.siblings, nodes[1]?.depth]).toEqual([1, 2, 1])
  expect(nodes[8]?.text).toBe('{}')
})

test('what is folded hides all that is in it and nothing else', () => {
  expect(paths('', new Set([1]))).toEqual(['model', 'model.encoder', 'model.lr', '"a.b"', '"a.b".0', '"a.b".0.x', 'empty'])
  expect(paths('', foldedBelow(flattenTree(CONFIG), 0))).toEqual(['model', '"a.b"', 'empty'])
})

test('a search shows what has it in its path or value, opened, with all that is above and below', () => {
  const folded = foldedBelow(flattenTree(CONFIG), 0)
  expect(paths('RESNET', folded)).toEqual(['model', 'model.encoder', 'model.encoder.name'])
  expect(paths('model.encoder', folded)).toEqual(['model', 'model.encoder', 'model.encoder.name', 'model.encoder.widths'])
  expect(paths('nowhere', folded)).toEqual([])
  expect(countMatches(flattenTree(CONFIG), 'encoder')).toBe(3)
})

test('whatever is folded, the nodes shown are those without a folded ancestor, in order', () => {
  const plain = fc.jsonValue({ maxDepth: 4 }) as fc.Arbitrary<Plain>
  fc.assert(
    fc.property(plain, fc.array(fc.nat(20)), (value, closed) => {
      const nodes = flattenTree(value)
      const folded = new Set(closed)
      const isHidden = (parent: number): boolean =>
        parent >= 0 && (folded.has(parent) || isHidden(nodes[parent]?.parent ?? -1))
      expect(visibleNodes(nodes, folded, '')).toEqual(nodes.filter((node) => !isHidden(node.parent)))
    }),
  )
})
