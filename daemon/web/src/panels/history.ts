/** History: the metrics of an experiment over its epochs, from the rows that the page has already. */

import type { Entry } from '../wire'

export type Point = Pick<
  Entry,
  'id' | 'exp_name' | 'run_id' | 'epoch' | 'global_step' | 'metrics' | 'modified_at' | 'health' | 'path' | 'alias_of' | 'root'
>

/** What the horizontal axis counts. */
export type Axis = 'epoch' | 'global_step'

export interface Line {
  readonly label: string
  readonly metric: string
  readonly runId: string | null
  /** One for each position of the axis; null where this line has no point. */
  readonly values: readonly (number | null)[]
  /** The checkpoint behind each value. */
  readonly ids: readonly (string | null)[]
}

export interface History {
  readonly axis: Axis
  readonly xs: readonly number[]
  readonly lines: readonly Line[]
}

/** Lines that differ by colour and dash (tokens.css). */
export const MAX_LINES = 4

/** The checkpoints of the same experiment; without a name of one, those of the same directory. */
export function ofExperiment<T extends Point>(rows: Iterable<T>, entry: Point): T[] {
  const own = entry.exp_name
  const directory = directoryOf(entry)
  const found: T[] = []
  for (const row of rows)
    if (row.exp_name === own && (own !== null || directoryOf(row) === directory)) found.push(row)
  return found
}

/** The checkpoints of the same run, oldest first, links left out but for the one that is asked about. */
export function ofRun<T extends Point>(rows: readonly T[], entry: Point): T[] {
  return rows
    .filter((row) => row.run_id === entry.run_id && (row.run_id !== null || directoryOf(row) === directoryOf(entry)))
    .sort(byAge)
}

/** Metrics that at least one of them has, those of most checkpoints first. */
export function metricNames(rows: Iterable<Pick<Entry, 'metrics'>>): string[] {
  const counts = new Map<string, number>()
  for (const { metrics } of rows) for (const name in metrics) counts.set(name, (counts.get(name) ?? 0) + 1)
  return [...counts].sort(([a, n], [b, m]) => m - n || (a < b ? -1 : 1)).map(([name]) => name)
}

/** One line for each metric, through the checkpoints of one run. */
export function metricHistory(rows: readonly Point[], metrics: readonly string[], currentId: string | null): History {
  return historyOf(metrics.slice(0, MAX_LINES).map((metric) => ({ label: metric, metric, runId: null, rows })), currentId)
}

/** One line for each run, of one metric; the run of `current` first, then the newest ones. */
export function runHistory(rows: readonly Point[], metric: string, current: Point): History & { readonly runs: number } {
  const runs = new Map<string | null, Point[]>()
  for (const row of [...rows].sort(byAge).reverse()) {
    if (!(metric in row.metrics)) continue
    const run = runs.get(row.run_id)
    if (run === undefined) runs.set(row.run_id, [row])
    else run.push(row)
  }
  const ordered = [...runs].sort(([a], [b]) => Number(b === current.run_id) - Number(a === current.run_id))
  const lines = ordered.slice(0, MAX_LINES).map(([runId, points]) => ({
    label: runId ?? 'no run name',
    metric,
    runId,
    rows: points,
  }))
  return { ...historyOf(lines, current.id), runs: ordered.length }
}

/** One line for each of several groups of checkpoints, of one metric: the experiments of a comparison. */
export function groupHistory(
  groups: readonly { readonly label: string; readonly rows: readonly Point[]; readonly currentId: string }[],
  metric: string,
): History {
  const lines = groups.map(({ label, rows, currentId }) => ({ label, metric, runId: null, rows: best(rows, currentId) }))
  return historyOf(lines, null)

  function best(rows: readonly Point[], currentId: string): readonly Point[] {
    return [...rows].sort((a, b) => Number(b.id === currentId) - Number(a.id === currentId))
  }
}

/** Each line on its own scale, from 0 for its lowest value to 1 for its highest, so that their shapes compare. */
export function normalised(line: Line): (number | null)[] {
  const known = line.values.filter((value): value is number => value !== null)
  const [low, high] = [Math.min(...known), Math.max(...known)]
  return line.values.map((value) => (value === null ? null : high > low ? (value - low) / (high - low) : 0.5))
}

interface Wanted {
  readonly label: string
  readonly metric: string
  readonly runId: string | null
  readonly rows: readonly Point[]
}

function historyOf(wanted: readonly Wanted[], currentId: string | null): History {
  const all = wanted.flatMap(({ rows, metric }) => rows.filter((row) => metric in row.metrics))
  const axis = axisOf(all)
  const xs = [...new Set(all.flatMap((row) => row[axis] ?? []))].sort((a, b) => a - b)
  const places = new Map(xs.map((x, place) => [x, place]))
  const lines = wanted.map(({ label, metric, runId, rows }): Line => {
    const values = Array.from<unknown, number | null>(xs, () => null)
    const ids = Array.from<unknown, string | null>(xs, () => null)
    for (const row of rows) {
      const place = row[axis] === null ? undefined : places.get(row[axis])
      const value = row.metrics[metric]
      if (place === undefined || value === undefined) continue
      // `last.ckpt` is often a second file of the same epoch: the one that is asked about stands for both.
      if (ids[place] !== null && row.id !== currentId) continue
      values[place] = value
      ids[place] = row.id
    }
    return { label, metric, runId, values, ids }
  })
  return { axis, xs, lines }
}

/** Epochs, unless steps tell more points apart: a training that saves within its first epoch has no other axis. */
function axisOf(rows: readonly Point[]): Axis {
  const distinct = (axis: Axis): number => new Set(rows.flatMap((row) => row[axis] ?? [])).size
  const epochs = distinct('epoch')
  return epochs < 2 && distinct('global_step') > epochs ? 'global_step' : 'epoch'
}

function byAge(a: Point, b: Point): number {
  const x = a.epoch ?? a.global_step
  const y = b.epoch ?? b.global_step
  if (x !== null && y !== null && x !== y) return x - y
  if (a.modified_at !== b.modified_at) return a.modified_at < b.modified_at ? -1 : 1
  return a.id < b.id ? -1 : 1
}

function directoryOf(row: Pick<Entry, 'root' | 'path'>): string {
  return `${row.root}\0${row.path.slice(0, Math.max(0, row.path.lastIndexOf('/')))}`
}
