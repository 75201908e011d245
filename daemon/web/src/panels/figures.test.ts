import { expect, test } from 'vitest'

import { percent, preciseAge } from './figures'

test('not quite all is never 100 %, and a little is never 0', () => {
  expect([percent(1, 1), percent(999, 1000), percent(1, 1000), percent(0, 5), percent(0, 0)]).toEqual([
    '100 %',
    '> 99 %',
    '< 1 %',
    '0 %',
    '0 %',
  ])
})

test('ages below two minutes are told in seconds, and clocks that differ never make one negative', () => {
  const now = Date.parse('2025-10-11T00:02:00Z')
  expect(preciseAge('2025-10-11T00:01:53Z', now)).toBe('7 s ago')
  expect(preciseAge('2025-10-11T00:02:09Z', now)).toBe('0 s ago')
  expect(preciseAge('2025-10-10T23:02:00Z', now)).toMatch(/1\s?hr?\.? ago/)
})
