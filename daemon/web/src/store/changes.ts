/** What changed in a row a moment ago, for the tint of its cells. */

import type { Entry } from '../wire'

export interface RecentChange {
  /** Names of fields; of metrics `metrics.<name>`; `*` alone for a row that is new. */
  readonly fields: ReadonlySet<string>
  /** When it is not recent any more, on the store's clock. */
  readonly until: number
}

const SHOWN = [
  'display_name', 'exp_name', 'run_id', 'architecture', 'backbone', 'epoch', 'global_step', 'size_bytes', 'modified_at',
  'n_parameters', 'format', 'health', 'safety', 'verified',
] as const

/** Fields in which two states of an entry differ, of those that a table shows. */
export function changedFields(entry: Entry, old: Entry | undefined): ReadonlySet<string> {
  if (old === undefined) return new Set(['*'])
  const fields = new Set<string>(SHOWN.filter((name) => entry[name] !== old[name]))
  for (const name of new Set([...Object.keys(entry.metrics), ...Object.keys(old.metrics)])) {
    if (entry.metrics[name] !== old.metrics[name]) fields.add(`metrics.${name}`)
  }
  return fields
}
