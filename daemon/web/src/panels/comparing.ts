/** A comparison as the rows of a table: which of them to show, and what to say of each. */

import {
  type Agreement,
  ATTRIBUTE_SECTIONS,
  type Attribute,
  type AttributeSection,
  type Comparison,
  type Plain,
  type Sameness,
  type SectionName,
  type TensorChange,
  type TensorCounts,
} from '../answers'
import { valueText } from './tree'

export const SECTION_TITLES: Readonly<Record<SectionName, string>> = {
  metrics: 'Metrics',
  training: 'Training',
  hyper_parameters: 'Hyper-parameters',
  config: 'Config',
  model: 'Model',
  identity: 'File',
}

/** Glyph and words of each status: nobody has to tell tints apart. */
export const AGREEMENTS: Readonly<Record<Agreement, { readonly glyph: string; readonly word: string }>> = {
  equal: { glyph: '=', word: 'equal' },
  differing: { glyph: '≠', word: 'differs' },
  missing: { glyph: '∅', word: 'not in all' },
}

export const CHANGES: Readonly<Record<TensorChange | 'absent', { readonly glyph: string; readonly word: string }>> = {
  added: { glyph: '+', word: 'added' },
  removed: { glyph: '−', word: 'removed' },
  reshaped: { glyph: '▱', word: 'reshaped' },
  dtype_changed: { glyph: 't', word: 'other type' },
  changed: { glyph: '≠', word: 'other values' },
  unknown: { glyph: '?', word: 'not comparable' },
  same: { glyph: '=', word: 'same' },
  absent: { glyph: '', word: 'in neither' },
}

export interface ShownSection {
  readonly name: SectionName
  readonly title: string
  readonly section: AttributeSection
  readonly rows: readonly Attribute[]
}

/** The sections that have rows to show. */
export function shownSections(comparison: Comparison, differencesOnly: boolean): ShownSection[] {
  return ATTRIBUTE_SECTIONS.flatMap((name) => {
    const section = comparison[name]
    const rows = differencesOnly ? section.rows.filter(({ status }) => status !== 'equal') : section.rows
    return rows.length > 0 ? [{ name, title: SECTION_TITLES[name], section, rows }] : []
  })
}

/** A value for people: nothing where it is not there, null where it is and is null. */
export function cellText(row: Attribute, position: number): string | null {
  if (row.missing.includes(position)) return null
  return attributeText(row.name, row.values[position] ?? null)
}

function attributeText(name: string, value: Plain): string {
  // Epochs and steps of a training are counted from their own beginning: no separators, they are copied into commands.
  if (typeof value === 'number' && /(_bytes|nbytes)$/.test(name)) return value.toLocaleString('en')
  if (name === 'n_parameters' && typeof value === 'number') return value.toLocaleString('en')
  return valueText(value)
}

/** How sure it is that the weights are the same, in words; `evidence` is what the checksums are worth. */
export function weightsWords(sameness: Sameness, counts: TensorCounts, isVerified: boolean): string {
  if (sameness === 'same') return isVerified ? 'same weights (checksums verified)' : 'same weights, by recorded checksums'
  if (sameness === 'different') return 'other weights'
  return counts.same > 0 ? 'nothing differs, but not all could be compared' : 'weights cannot be compared'
}

/** `ids` with the one at `from` put before what is at `to`; positions beyond the ends do nothing. */
export function moved(ids: readonly string[], from: number, to: number): readonly string[] {
  if (from === to || from < 0 || to < 0 || from >= ids.length || to >= ids.length) return ids
  const others = ids.filter((_, position) => position !== from)
  return [...others.slice(0, to), ids[from] as string, ...others.slice(to)]
}

/** A short name for each checkpoint of a comparison, no two alike. */
export function shortNames(checkpoints: readonly { readonly id: string; readonly display_name: string; readonly run_id: string | null }[]): string[] {
  const names = checkpoints.map(({ display_name }) => display_name)
  const isTwice = (name: string, all: readonly string[]): boolean => all.filter((other) => other === name).length > 1
  const withRuns = checkpoints.map(({ display_name, run_id }) =>
    isTwice(display_name, names) && run_id ? `${display_name} · ${run_id}` : display_name,
  )
  return withRuns.map((name, at) => (isTwice(name, withRuns) ? `${name} · ${checkpoints[at]?.id.slice(0, 6)}` : name))
}
