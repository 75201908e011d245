import fc from 'fast-check'
import { expect, test } from 'vitest'

import { MAX_HEIGHT, ratioOf, scrollTo, windowOf } from './virtual'

const lists = fc.record({
  count: fc.integer({ min: 1, max: 3_000_000 }),
  rowHeight: fc.constantFrom(32, 40),
  viewport: fc.integer({ min: 40, max: 2_000 }),
  at: fc.double({ min: 0, max: 1, noNaN: true }),
})

test('wherever it is scrolled to, the rows that are drawn cover the screen, and lie where they are seen', () => {
  fc.assert(
    fc.property(lists, ({ count, rowHeight, viewport, at }) => {
      const height = Math.min(count * rowHeight, MAX_HEIGHT)
      const scrollTop = at * Math.max(0, height - viewport)
      const window = windowOf(scrollTop, viewport, count, rowHeight)
      expect(window.height).toBe(height)
      expect(window.end).toBeLessThanOrEqual(count)
      expect(window.offset).toBeLessThanOrEqual(scrollTop + 0.01)
      const bottom = window.offset + (window.end - window.first) * rowHeight
      expect(bottom).toBeGreaterThanOrEqual(Math.min(scrollTop + viewport, height) - 0.01)
      expect(window.end - window.first).toBeLessThan(viewport / rowHeight + 20)
    }),
  )
})

test('every row of a list of millions can be scrolled to, and is wholly seen then', () => {
  fc.assert(
    fc.property(lists, fc.double({ min: 0, max: 1, noNaN: true }), ({ count, rowHeight, viewport, at }, share) => {
      const index = Math.min(count - 1, Math.floor(share * count))
      const limit = Math.max(0, Math.min(count * rowHeight, MAX_HEIGHT) - viewport)
      const scrollTop = scrollTo(index, at * limit, viewport, count, rowHeight)
      expect(scrollTop).toBeGreaterThanOrEqual(-0.01)
      expect(scrollTop).toBeLessThanOrEqual(limit + 0.01)
      const top = index * rowHeight - scrollTop * ratioOf(viewport, count, rowHeight)
      expect(top).toBeGreaterThanOrEqual(-0.01)
      expect(top + rowHeight).toBeLessThanOrEqual(viewport + 0.01)
      expect(scrollTo(index, scrollTop, viewport, count, rowHeight)).toBeCloseTo(scrollTop, 3)
    }),
  )
})
