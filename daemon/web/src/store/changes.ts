/** What changed in a row a moment ago, for the tint of its cells. */

import type { Entry } from '../wire'
import type { Clock } from './clock'

export interface RecentChange {
  /** Names of fields; of metrics `metrics.<name>`; `*` alone for a row that is new. */
  readonly fields: ReadonlySet<string>
  /** When it is not recent any more, on the store's clock. */
  readonly until: number
}

/** How long what changed is told as changed. */
const TINT_MS = 1_000
/** Rows of which that is remembered: more than a screen holds, however many change at once. */
const MAX_RECENT = 2_000

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

/** The rows that changed within the last second. */
export class RecentChanges {
  private readonly byId = new Map<string, RecentChange>()
  private isTinting = false

  /** `onEnd` is called when some of them are not recent any more. */
  constructor(private readonly clock: Clock, private readonly onEnd: () => void) {}

  get(id: string): RecentChange | undefined {
    const change = this.byId.get(id)
    return change !== undefined && change.until > this.clock.now() ? change : undefined
  }

  note(entry: Entry, old: Entry | undefined): void {
    const fields = changedFields(entry, old)
    if (!fields.size) return
    this.byId.set(entry.id, { fields, until: this.clock.now() + TINT_MS })
    if (this.byId.size > MAX_RECENT) this.forgetOld()
    if (this.isTinting) return
    this.isTinting = true
    this.clock.after(TINT_MS, () => this.endTint())
  }

  delete(id: string): void {
    this.byId.delete(id)
  }

  private endTint(): void {
    this.forgetOld()
    this.isTinting = this.byId.size > 0
    if (this.isTinting) this.clock.after(TINT_MS / 4, () => this.endTint())
    this.onEnd()
  }

  private forgetOld(): void {
    const now = this.clock.now()
    for (const [id, { until }] of this.byId) if (until <= now || this.byId.size > MAX_RECENT) this.byId.delete(id)
  }
}
