import fc from 'fast-check'
import { expect, test } from 'vitest'

import { clipped, clippedName, visible } from './visible'

test('characters that reorder or hide text are shown by their number', () => {
  expect(visible('a\u202egnp.exe')).toBe('a\\u202egnp.exe')
  expect(visible('x\u0000y\u200bz\u00ad')).toBe('x\\u0000y\\u200bz\\u00ad')
  expect(visible('two\nlines\tand a tab')).toBe('two\\nlines\\tand a tab')
  expect(visible('\u{e0041}')).toBe('\\u{e0041}')
  expect(visible('half \ud83d a pair')).toBe('half \\ud83d a pair')
})

test('ordinary text stays as it is, in any script', () => {
  for (const text of ['epoch=28-step=23722.ckpt', 'größe', '日本語', 'مرحبا', '🚀 best', 'e\u0301'])
    expect(visible(text)).toBe(text)
})

test('what is visible once is visible for good', () => {
  fc.assert(fc.property(fc.string({ unit: 'binary' }), (text) => visible(visible(text)) === visible(text)))
})

test('clipped text is no longer than allowed and never ends in half a character', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme' }), fc.integer({ min: 1, max: 20 }), (text, limit) => {
      const shown = clipped(text, limit)
      expect(shown.length).toBeLessThanOrEqual(limit + 1)
      expect(visible(shown).includes('\\ud8')).toBe(visible(text).includes('\\ud8'))
      if (text.length <= limit) expect(shown).toBe(text)
    }),
  )
})

test('a long name keeps both its ends, and never half a character', () => {
  const name = `experiment-${'x'.repeat(80)}/epoch=28-val_loss=0.12`
  const shown = clippedName(name, 60)
  expect(shown.length).toBeLessThanOrEqual(60)
  expect(shown).toMatch(/^experiment-x+….*\/epoch=28-val_loss=0\.12$/)
  expect(clippedName('short', 60)).toBe('short')
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme', minLength: 12 }), (text) => {
      const clip = clippedName(text, 11)
      expect(clip.length).toBeLessThanOrEqual(11)
      expect(() => encodeURIComponent(clip)).not.toThrow() // it does for half a pair
    }),
  )
})
