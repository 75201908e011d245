import { describe, expect, test } from 'vitest'

import type { Entry } from '../wire'
import { parseSearch, searchText } from './search'
import { entryOf } from './store-model'

const entry = entryOf('a', {
  path: 'lab/dbnet_r18/2025-10-11/epoch=28-hmean=0.87.ckpt',
  display_name: 'dbnet_r18/epoch=28-hmean=0.87',
  exp_name: 'dbnet_r18',
  architecture: 'DBNet',
  backbone: 'resnet50',
  epoch: 28,
  global_step: 25_000,
  size_bytes: 9_500_000,
  n_parameters: 12_000_000,
  metrics: { hmean: 0.87, validation_loss: 0.2, 'test/f1': 0.5 },
  modified_at: '2025-10-11T23:30:00.000Z',
  created_at: null,
  health: 'invalid',
  safety: 'unsafe',
  findings: [{ code: 'archive.truncated', severity: 'error' }],
  dtypes: ['bfloat16', 'float32'],
  has_config: true,
})

function finds(q: string, of: Entry = entry): boolean {
  const { terms, problems } = parseSearch(q)
  expect(problems).toEqual([])
  return terms.every((term) => term.holds(of, searchText(of)))
}

describe('as the q of the API', () => {
  test.each([
    'dbnet', 'DBNET r18', 'bnet_r', 'resn*', '"r18/2025"', '"R18/2025"', 'epoch=28', 'hmean=0.87', '-craft', '- dbnet'.slice(2),
    'architecture:dbnet', 'architecture:DB*', 'exp_name:dbnet_r18', 'backbone:resnet*', 'path:2025-10', 'health:invalid',
    'health:valid,invalid', 'safety:unsafe', 'finding:archive.*', 'finding:archive.truncated', 'dtype:bf*', 'has_config:true',
    'has_metadata:no', 'hmean>0.8', 'hmean>=0.87', 'hmean<0.9', 'hmean<=0.87', 'hmean:0.8..0.9', 'hmean:..0.9', 'val_loss<0.3',
    'val/loss<0.3', 'metrics.hmean>0.8', 'test/f1:0.5', 'epoch:28', 'epoch:20..30', 'epoch>27', 'step>24k', 'size<10MB',
    'size>9MiB', 'parameters:12M', 'modified:2025-10-11', 'modified:2025-10-10..2025-10-11', 'modified>2025-10-10',
    'modified<=2025-10-11', 'modified<2025-10-12', 'modified>=2025-10-11T23:30', '-hmean>0.9', '',
  ])('%s is found', (q) => expect(finds(q)).toBe(true))

  test.each([
    'craft', 'dbnet craft', '-dbnet', 'esnet*', '"dbnet r18"', 'epoch=2', 'architecture:db', 'exp_name:dbnet', 'health:valid',
    'safety:safe,unknown', 'finding:pickle.*', 'has_config:false', 'hmean>0.87', 'hmean<0.87', 'recall>0', 'epoch:29', 'size>10MB',
    'modified:2025-10-12', 'modified>2025-10-11', 'modified<2025-10-11', 'created>2020-01-01', '-hmean>0.8',
  ])('%s is not', (q) => expect(finds(q)).toBe(false))
})

test('what is typed only half filters nothing, and says what may stand there', () => {
  for (const q of ['hmean>', 'hmean>abc', 'size<10lightyears', '"open', 'a*b', 'modified>yesterday', 'has_config:maybe']) {
    const { terms, problems } = parseSearch(`dbnet ${q}`)
    expect(terms).toHaveLength(1)
    expect(problems[0]).toContain(q)
  }
})

test('words that differ only in how they are composed, or in case, are the same', () => {
  const composed = entryOf('b', { path: 'Caf\u00c9/last.ckpt' })
  expect(finds('cafe\u0301', composed)).toBe(true)
})

test('words that mean something to regular expressions or to JavaScript are words', () => {
  const odd = entryOf('c', { path: 'a+b(c)[d]/x-y/$^.ckpt' })
  for (const q of ['a+b(c)', '[d]*', 'x-y*', '$^', '-zz(*', '-p=q-r']) expect(finds(q, odd)).toBe(true)
  for (const q of ['__proto__>1', 'constructor:x', 'toString=1', 'hasOwnProperty:1..2']) expect(finds(q, odd)).toBe(false)
})
