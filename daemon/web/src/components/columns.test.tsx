// @vitest-environment happy-dom

import { render } from 'preact'
import { describe, expect, test } from 'vitest'

import { entryOf } from '../store/store-model'
import type { Entry } from '../wire'
import { COLUMNS } from './columns'

function nameCell(entry: Entry, hasExperiment = false): HTMLElement {
  const cell = document.createElement('div')
  const column = COLUMNS.find(({ id }) => id === 'display_name')
  render(column?.cell(entry, { metric: null, nowMs: 0, hasExperiment, isPointed: false }), cell)
  return cell
}

describe('the name of a checkpoint', () => {
  test('is without an experiment where none is known', () => {
    const cell = nameCell(entryOf('a', { display_name: 'last', exp_name: null, path: '2025-10-11/00-44-42/last.ckpt' }))
    expect(cell.querySelector('.strong')?.textContent).toBe('last')
  })

  test('has its experiment before it where no column says it, also one with a slash in it', () => {
    const entry = entryOf('a', { display_name: 'det/dbnet/last', exp_name: 'det/dbnet' })
    expect(nameCell(entry).querySelector('.strong')?.textContent).toBe('det/dbnet/last')
    expect(nameCell(entry, true).querySelector('.strong')?.textContent).toBe('last')
  })

  test('is whole in its pieces, of which the last one never gives way', () => {
    const name = 'epoch=28-step=23722-val_loss=0.12'
    const cell = nameCell(entryOf('a', { display_name: `lab/${name}` }), true)
    expect(cell.querySelector('.strong')?.textContent).toBe(name)
    expect(cell.querySelector('.strong .tail')?.textContent).toBe('_loss=0.12')
  })
})
