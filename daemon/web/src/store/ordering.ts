/** In which order rows stand: by a number or a text, nulls last both ways, ties newest first, then by id. */

import type { Sort } from '../state'
import type { Entry, Health, Safety, Verified } from '../wire'
import { fold, metricOf } from './search'

/** What a row is sorted by. NaN and null stand for "not known". */
export type Key = number | string | null
export type KeyOf = (entry: Entry, modifiedMs: number) => Key

const HEALTH: Record<Health, number> = { writing: 0, valid: 1, invalid: 2, offline: 3 }
const SAFETY: Record<Safety, number> = { safe: 0, unsafe: 1, unknown: 2 }
const VERIFIED: Record<Verified, number> = { none: 0, structure: 1, checksum: 2, weights: 3 }

const TEXTS = ['display_name', 'path', 'exp_name', 'run_id', 'architecture', 'backbone', 'format'] as const
const NUMBERS = ['epoch', 'global_step', 'size_bytes', 'n_parameters', 'weights_bytes', 'optimizer_bytes'] as const

/** Names of losses, the first that an entry has. */
const LOSSES = ['validation_loss', 'val_loss', 'test_loss', 'loss', 'train_loss']

/** An entry's loss: the validation's where it is known, else whatever is called a loss. */
export function lossOf(entry: Entry): { readonly name: string; readonly value: number } | null {
  for (const name of LOSSES) {
    const value = entry.metrics[name]
    if (value !== undefined) return { name, value }
  }
  const name = Object.keys(entry.metrics).find((metric) => metric.toLowerCase().endsWith('loss'))
  const value = name === undefined ? undefined : entry.metrics[name]
  return name === undefined || value === undefined ? null : { name, value }
}

/** Whether rows can be sorted by this. */
export function isSortable(by: string): boolean {
  return (
    ['modified_at', 'loss', 'health', 'safety', 'verified', ...TEXTS, ...NUMBERS].includes(by) ||
    (by.startsWith('metrics.') && by.length > 'metrics.'.length)
  )
}

/** Which way a first click on a header sorts: text and losses upwards, times and other numbers downwards. */
export function startsDescending(by: string): boolean {
  return by !== 'loss' && !/loss$/i.test(by) && !(TEXTS as readonly string[]).includes(by) && by !== 'health'
}

/** What rows are sorted by. An unknown name sorts nothing, so that all are ties: newest first. */
export function keyOf({ by }: Sort): KeyOf {
  const text = TEXTS.find((name) => name === by)
  if (text !== undefined) return (entry) => (entry[text] === null ? null : fold(entry[text]))
  const number = NUMBERS.find((name) => name === by)
  if (number !== undefined) return (entry) => entry[number]
  if (by === 'modified_at') return (_, modifiedMs) => modifiedMs
  if (by === 'loss') return (entry) => lossOf(entry)?.value ?? null
  if (by === 'health') return (entry) => HEALTH[entry.health]
  if (by === 'safety') return (entry) => SAFETY[entry.safety]
  if (by === 'verified') return (entry) => VERIFIED[entry.verified]
  const metric = by.replace(/^metrics\./, '')
  return (entry) => metricOf(entry, metric)
}

/** Whether the keys of this order are texts; else they are numbers. */
export function isTextSort({ by }: Sort): boolean {
  return (TEXTS as readonly string[]).includes(by)
}
