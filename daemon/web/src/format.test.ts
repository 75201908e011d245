import { describe, expect, test } from 'vitest'

import {
  cellText, formatAge, formatBytes, formatCount, formatMetric, formatMoment, quarterOf, secondsUntil, splitName, splitPath,
} from './format'

test.each([
  [0, '0 B'], [999, '999 B'], [1_000, '1.00 kB'], [49_900, '49.9 kB'], [999_600, '1.00 MB'], [1.5e9, '1.50 GB'],
  [7e15, '7.00 PB'], [9e18, '9000 PB'], [null, '–'],
])('%s bytes are %s', (bytes, text) => expect(formatBytes(bytes)).toBe(text))

test.each([[0, '0'], [999, '999'], [25_600_000, '25.6M'], [999_960, '1.00M'], [7e9, '7.00B']])('%s is %s', (count, text) => {
  expect(formatCount(count)).toBe(text)
})

test.each([
  [0, '0'], [1, '1'], [0.87564, '0.8756'], [12.3456, '12.35'], [12345.678, '12345.7'], [0.00012, '1.20e-4'], [-3e9, '-3.00e+9'],
  [undefined, '–'],
])('a metric of %s is %s', (value, text) => expect(formatMetric(value)).toBe(text))

describe('times', () => {
  const now = Date.parse('2025-10-11T12:00:00Z')
  test.each([
    ['2025-10-11T11:59:30Z', 'now'], ['2025-10-11T11:55:00Z', '5 min ago'], ['2025-10-11T09:00:00Z', '3 h ago'],
    ['2025-10-09T12:00:00Z', '2 d ago'], ['2024-01-01T00:00:00Z', '1 y ago'], ['2025-10-11T12:10:00Z', 'in 10 min'],
    ['nonsense', '–'], [null, '–'],
  ])('%s is %s', (time, text) => expect(formatAge(time, now)).toBe(text))

  test('a moment says its UTC, one that is none says so', () => {
    expect(formatMoment('2025-10-11T12:00:00.000Z')).toContain('2025-10-11T12:00:00.000Z')
    expect(formatMoment('9999-99-99')).toBe('–')
  })

  test('a countdown ends at 0', () => {
    expect([secondsUntil(1_500, 0), secondsUntil(1, 0), secondsUntil(0, 9_000)]).toEqual([2, 1, 0])
  })
})

test('what goes into a cell is neither endless nor deceiving', () => {
  expect(cellText('x'.repeat(10_000)).length).toBeLessThan(400)
  expect(cellText('a\u202egpj.ckpt')).not.toContain('\u202e')
})

test.each(['', 'last.ckpt', 'a/b', '/a', 'lab/run/checkpoints', 'x'.repeat(200), `a/${'y'.repeat(100)}/z`])(
  'both pieces of %j are the whole path',
  (path) => expect(splitPath(path).join('')).toBe(path),
)

describe('a long name gives way in its middle', () => {
  test.each([
    ['epoch=28-step=23722-val_loss=0.12', '_loss=0.12'],
    ['epoch-18_step-001957_hmean-0.8756', '-0.8756'],
    ['textdet-dbnet-resnet18-icdar-v2', '-icdar-v2'],
    ['a'.repeat(60), 'aaaaaaaaaa'],
    ['ends-with-two-separators-10--', '-10--'],
  ])('%s keeps %s', (name, end) => expect(splitName(name)).toEqual([name.slice(0, -end.length), end]))

  test.each(['last', 'epoch=28-step=23722', '\u05d0'.repeat(40), 'e\u0301'.repeat(30), '\u{1f600}'.repeat(30)])(
    '%s is one piece',
    (name) => expect(splitName(name)).toEqual([name, '']),
  )
})

test('progress is told at quarters', () => {
  expect([[0, 10], [2, 10], [3, 10], [5, 10], [9, 10], [10, 10], [12, 10], [0, 0]].map(([done, total]) => quarterOf(done ?? 0, total ?? 0)))
    .toEqual([0, 0, 25, 50, 75, 100, 100, 0])
})
