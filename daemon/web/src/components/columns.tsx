/** The table's columns: what each shows, how wide it is and what a click on its header sorts by. */

import type { ComponentChildren } from 'preact'

import {
  cellText, formatAge, formatBytes, formatCount, formatMetric, formatMoment, splitName, splitPath, UNKNOWN,
} from '../format'
import type { ColumnChoice } from '../prefs'
import { openDetail } from '../state'
import { lossOf } from '../store/ordering'
import { metricOf } from '../store/search'
import type { Entry } from '../wire'
import { CopyButton } from './CopyButton'
import { Icon } from './Icon'
import { HEALTH_LOOKS } from './looks'

/** What cells need besides their entry. */
export interface CellContext {
  readonly metric: string | null
  readonly nowMs: number
  /** The experiment has a column of its own. */
  readonly hasExperiment: boolean
  /** The pointer or the keyboard is at this row. */
  readonly isPointed: boolean
}

export interface Column {
  readonly id: string
  readonly title: (context: { metric: string | null }) => string
  /** What is sorted by; null: cannot be. */
  readonly sortBy: (context: { metric: string | null }) => string | null
  /** Fields whose change tints the cell. */
  readonly fields: (context: { metric: string | null }) => readonly string[]
  readonly isNumeric: boolean
  /** Least width in pixels, and the share of what is left. */
  readonly width: readonly [least: number, share: number]
  readonly isShown: boolean
  readonly isShownNarrow: boolean
  readonly cell: (entry: Entry, context: CellContext) => ComponentChildren
}

type TextField = 'exp_name' | 'architecture' | 'backbone' | 'run_id' | 'format' | 'verified' | 'safety'

function textColumn(field: TextField, title: string, least: number, isShown: boolean): Column {
  return {
    id: field,
    title: () => title,
    sortBy: () => field,
    fields: () => [field],
    isNumeric: false,
    width: [least, 1],
    isShown,
    isShownNarrow: false,
    cell: (entry) => textCell(entry[field]),
  }
}

type NumberField = 'epoch' | 'global_step' | 'size_bytes' | 'n_parameters'

function numberColumn(
  field: NumberField, title: string, least: number, isShown: boolean, format: (value: number | null) => string,
): Column {
  return {
    id: field,
    title: () => title,
    sortBy: () => field,
    fields: () => [field],
    isNumeric: true,
    width: [least, 0],
    isShown,
    isShownNarrow: false,
    cell: (entry) => <span title={entry[field] === null ? 'not known' : String(entry[field])}>{format(entry[field])}</span>,
  }
}

const plain = (value: number | null): string => (value === null ? UNKNOWN : String(value))

/** All columns, in their default order. */
export const COLUMNS: readonly Column[] = [
  {
    id: 'display_name',
    title: () => 'Checkpoint',
    sortBy: () => 'display_name',
    fields: () => ['display_name'],
    isNumeric: false,
    width: [280, 3],
    isShown: true,
    isShownNarrow: true,
    cell: nameCell,
  },
  textColumn('exp_name', 'Experiment', 150, true),
  textColumn('architecture', 'Architecture', 116, true),
  numberColumn('epoch', 'Epoch', 64, true, plain),
  {
    id: 'metric',
    title: ({ metric }) => metric ?? 'Metric',
    sortBy: ({ metric }) => (metric === null ? null : `metrics.${metric}`),
    fields: ({ metric }) => [`metrics.${metric}`],
    isNumeric: true,
    width: [96, 0],
    isShown: true,
    isShownNarrow: true,
    cell: (entry, { metric }) => metricCell(metric, metric === null ? null : metricOf(entry, metric)),
  },
  {
    id: 'loss',
    title: () => 'Loss',
    sortBy: () => 'loss',
    fields: () => ['metrics.validation_loss', 'metrics.val_loss', 'metrics.loss'],
    isNumeric: true,
    width: [80, 0],
    isShown: true,
    isShownNarrow: false,
    cell: (entry) => {
      const loss = lossOf(entry)
      return metricCell(loss?.name ?? null, loss?.value ?? null)
    },
  },
  numberColumn('size_bytes', 'Size', 80, true, formatBytes),
  {
    id: 'modified_at',
    title: () => 'Modified',
    sortBy: () => 'modified_at',
    fields: () => ['modified_at'],
    isNumeric: true,
    width: [96, 0],
    isShown: true,
    isShownNarrow: false,
    cell: (entry, { nowMs }) => (
      <time dateTime={entry.modified_at} title={formatMoment(entry.modified_at)}>{formatAge(entry.modified_at, nowMs)}</time>
    ),
  },
  {
    id: 'health',
    title: () => 'Health',
    sortBy: () => 'health',
    fields: () => ['health', 'safety', 'verified'],
    isNumeric: false,
    width: [180, 0],
    isShown: true,
    isShownNarrow: true,
    cell: healthCell,
  },
  textColumn('run_id', 'Run', 110, false),
  textColumn('backbone', 'Backbone', 100, false),
  numberColumn('global_step', 'Step', 72, false, plain),
  numberColumn('n_parameters', 'Parameters', 88, false, formatCount),
  textColumn('format', 'Format', 92, false),
  textColumn('verified', 'Verified', 84, false),
  textColumn('safety', 'Safety', 80, false),
]

/** Below this width of the table only the most telling columns are shown; the rest is in the details. */
export const NARROW = 640

/** All columns in the reader's order, each with whether it is shown. Columns that a choice does not know come last. */
export function orderedColumns(choices: readonly ColumnChoice[]): readonly { column: Column; isShown: boolean }[] {
  const chosen = choices.flatMap(({ id, isShown }) => {
    const column = COLUMNS.find((known) => known.id === id)
    return column ? [{ column, isShown }] : []
  })
  const rest = COLUMNS.filter((column) => !choices.some(({ id }) => id === column.id))
  return [...chosen, ...rest.map((column) => ({ column, isShown: column.isShown }))]
}

/** What gives way to the others where there is no room for all, the first one first: the name says some of it. */
const GIVES_WAY = ['architecture', 'size_bytes', 'loss', 'exp_name', 'epoch', 'modified_at'] as const

/**
 * The columns to draw in a table of some width. The name is always there. Where there is no room for all, some give
 * way, the one that sorts (by its `sortedId`) last; if a reader has added any, all stay and the table scrolls sideways.
 */
export function shownColumns(
  choices: readonly ColumnChoice[], width: number, sortedId: string | null = null,
): readonly Column[] {
  const ordered = orderedColumns(choices)
  if (width < NARROW) return ordered.filter(({ column }) => column.isShownNarrow).map(({ column }) => column)
  const chosen = ordered.filter(({ column, isShown }) => isShown || column.id === 'display_name').map(({ column }) => column)
  if (chosen.some(({ isShown }) => !isShown)) return chosen
  const leaving = GIVES_WAY.filter((id) => id !== sortedId)
  return [...leaving, sortedId].reduce<readonly Column[]>(
    (columns, id) => (tracksOf(columns, width).least <= width || !isLeaving(id) ? columns : columns.filter((column) => column.id !== id)),
    chosen,
  )
}

/** The column that sorts by this; null where none does. */
export function sortingId(by: string, metric: string | null): string | null {
  return COLUMNS.find((column) => column.sortBy({ metric }) === by)?.id ?? null
}

function isLeaving(id: string | null): boolean {
  return (GIVES_WAY as readonly (string | null)[]).includes(id)
}

/** The columns as CSS grid tracks, and the least width of all together. */
export function tracksOf(columns: readonly Column[], width: number): { tracks: string; least: number } {
  const widths = columns.map(({ id, width: [least, share] }) => {
    if (width >= NARROW) return [least, share] as const
    return id === 'display_name' ? ([120, 1] as const) : ([Math.min(least, 84), 0] as const)
  })
  const tracks = widths.map(([least, share]) => (share ? `minmax(${least}px, ${share}fr)` : `${least}px`))
  return { tracks: ['36px', ...tracks].join(' '), least: 36 + widths.reduce((sum, [least]) => sum + least, 0) }
}

// Functions and not components: a table has four hundred cells on the screen, and draws them anew at each frame.

function textCell(value: string | null) {
  if (value === null) return <span class="muted">{UNKNOWN}</span>
  const text = cellText(value)
  return givingWay(text, '', text)
}

/** Text that gives way in its middle where there is no room: names of a family begin alike, their ends differ. */
function givingWay(text: string, look = '', title?: string) {
  const [head, tail] = splitName(text)
  if (tail === '') return <span class={`clip ${look}`} title={title}>{text}</span>
  return <span class={`middle ${look}`} title={title}><span class="clip">{head}</span><span class="tail">{tail}</span></span>
}

function metricCell(name: string | null, value: number | null) {
  const title = name === null || value === null ? 'not known' : `${cellText(name)} ${value}`
  return <span class={value === null ? 'muted' : ''} title={title}>{formatMetric(value)}</span>
}

/** What tells checkpoints apart stands first and gives way last; the experiment is here only without its own column. */
function nameCell(entry: Entry, { hasExperiment, isPointed }: CellContext) {
  const slash = entry.display_name.indexOf('/', (entry.exp_name ?? '').length)
  const [experiment, stem] = [entry.display_name.slice(0, Math.max(0, slash)), entry.display_name.slice(slash + 1)]
  const [head, tail] = splitPath(entry.path.slice(0, Math.max(0, entry.path.lastIndexOf('/'))))
  const isNamed = !hasExperiment && experiment !== ''
  return (
    <span class={isNamed ? 'name with-experiment' : 'name'}>
      <span class="strong" title={cellText(entry.display_name)}>
        {isNamed && givingWay(`${cellText(experiment)}/`, 'muted')}
        {givingWay(cellText(stem))}
      </span>
      <span class="folder muted" title={cellText(entry.checkpoint_path)}>
        <span class="clip">{cellText(head)}</span>
        <span class="tail">{cellText(tail)}</span>
      </span>
      {isPointed && <CopyButton text={entry.checkpoint_path} name="copy the path" />}
    </span>
  )
}

function healthCell(entry: Entry) {
  const { icon, tone } = HEALTH_LOOKS[entry.health]
  const reasons = entry.findings.filter(({ severity }) => severity !== 'info').map(({ code }) => code)
  const warnings = entry.findings.filter(({ severity }) => severity === 'warning').length
  const title = [`${entry.health}, verified: ${entry.verified}, safety: ${entry.safety}`, ...reasons].join('\n')
  return (
    <button type="button" class="health-cell" tabIndex={-1} title={title} onClick={(event) => {
      event.stopPropagation()
      openDetail(entry.id)
    }}>
      {entry.safety === 'unsafe' && <span class="badge invalid"><Icon name="warning" size={12} />unsafe</span>}
      <span class={`badge ${tone}`}><Icon name={icon} size={12} />{entry.health}</span>
      {entry.safety !== 'unsafe' && entry.health === 'valid' && warnings > 0 && (
        <span class="badge warn"><Icon name="warning" size={12} />{warnings === 1 ? 'warning' : `${warnings} warnings`}</span>
      )}
    </button>
  )
}
