import { expect, test } from 'vitest'

import { moveCursor } from './components/cursor'
import { commandOf, KEYS } from './keys'

const press = (key: string, more: object = {}) => ({ key, ctrlKey: false, metaKey: false, altKey: false, ...more })
const inTable = { isTyping: false, isInTable: true }

test('while typing, and together with Ctrl, Alt or Meta, keys are not ours', () => {
  for (const key of KEYS.flatMap(({ keys }) => keys)) {
    expect(commandOf(press(key), { isTyping: true, isInTable: false })).toBeNull()
    for (const modifier of ['ctrlKey', 'metaKey', 'altKey']) expect(commandOf(press(key, { [modifier]: true }), inTable)).toBeNull()
    expect(commandOf(press(key), inTable)).not.toBeNull()
  }
})

test('keys that buttons and the page need, too, are ours only in the table', () => {
  const elsewhere = { isTyping: false, isInTable: false }
  for (const key of ['ArrowDown', 'Home', 'PageDown', ' ', 'Enter']) expect(commandOf(press(key), elsewhere)).toBeNull()
  expect(['/', 'j', 'k', 'x', 'c', '?'].map((key) => commandOf(press(key), elsewhere))).toEqual(
    ['search', 'next', 'previous', 'select', 'compare', 'help'],
  )
})

test('the cursor stays in the table; above its first row are the headers', () => {
  const size = { rows: 10, columns: 3, page: 4 }
  const walk = (...commands: Parameters<typeof moveCursor>[1][]) =>
    commands.reduce((cursor, command) => moveCursor(cursor, command, size), { row: 0, column: 0 })
  expect(walk('next', 'next').row).toBe(2)
  expect(walk('last', 'next').row).toBe(9)
  expect(walk('pageDown', 'pageDown', 'pageUp').row).toBe(4)
  expect(walk('previous', 'right', 'right', 'right')).toEqual({ row: -1, column: 2 })
  expect(walk('previous', 'right', 'next', 'left')).toEqual({ row: 0, column: 1 })
  expect(moveCursor({ row: 0, column: 0 }, 'next', { rows: 0, columns: 3, page: 4 }).row).toBe(-1)
})
