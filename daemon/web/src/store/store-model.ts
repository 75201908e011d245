/** For the tests: made-up entries, a clock that they wind, and what a store must show, worked out the slow and obvious way. */

import type { Filters, Sort } from '../state'
import type { Entry, Health, Safety } from '../wire'
import type { Clock } from './clock'

export function entryOf(id: string, more: Partial<Entry> = {}): Entry {
  const path = more.path ?? `lab/${id}/checkpoints/last.ckpt`
  return {
    id, path, root: '/data', checkpoint_path: `/data/${path}`, display_name: `lab/${id}`, exp_name: 'lab', run_id: null,
    architecture: 'dbnet', backbone: null, epoch: 1, global_step: null, metrics: {}, monitor: null, monitor_mode: null,
    monitor_value: null, size_bytes: 1000, modified_at: '2025-10-11T00:00:00.000Z', created_at: null, format: 'torch_zip',
    n_parameters: null, weights_bytes: null, optimizer_bytes: null, dtypes: ['float32'], health: 'valid',
    verified: 'structure', safety: 'safe', findings: [], has_metadata: false, metadata_source: 'none', has_config: false,
    config_path: null, content_id: null, alias_of: null, revision: 1, ...more,
  }
}

/** A clock that stands still until it is wound, but for what each look at it takes. */
export class TestClock implements Clock {
  private ms = 0
  private timers: { at: number; run: () => void }[] = []

  constructor(private readonly perLookMs = 0) {}

  now(): number {
    this.ms += this.perLookMs
    return this.ms
  }

  after(delayMs: number, run: () => void): void {
    this.timers.push({ at: this.ms + delayMs, run })
  }

  /** Let time pass; whatever is due runs in its order. */
  wind(ms: number): void {
    const end = this.ms + ms
    for (;;) {
      this.timers.sort((a, b) => a.at - b.at)
      const next = this.timers[0]
      if (next === undefined || next.at > end) break
      this.timers.shift()
      this.ms = Math.max(this.ms, next.at)
      next.run()
    }
    this.ms = Math.max(this.ms, end)
  }
}

const HEALTHS: readonly Health[] = ['writing', 'valid', 'invalid', 'offline']
const SAFETIES: readonly Safety[] = ['safe', 'unsafe', 'unknown']

/** Ids of what a table of these entries must show, in order. Knows nothing of slots, flags, indexes or queues. */
export function expectedIds(entries: Iterable<Entry>, filters: Filters, sort: Sort): readonly string[] {
  return [...entries]
    .filter((entry) => matches(entry, filters))
    .sort((a, b) => compareValues(valueOf(a, sort.by), valueOf(b, sort.by), sort.descending) || newestFirst(a, b))
    .map(({ id }) => id)
}

function matches(entry: Entry, filters: Filters): boolean {
  const text = [entry.path, entry.display_name, entry.exp_name, entry.run_id, entry.architecture, entry.backbone]
    .map((part) => (part ?? '').toLowerCase()).join('\n')
  return (
    filters.q.split(/\s+/).filter(Boolean).every((word) => text.includes(word.toLowerCase())) &&
    (!filters.exp_name.length || (entry.exp_name !== null && filters.exp_name.includes(entry.exp_name))) &&
    (!filters.architecture.length || (entry.architecture !== null && filters.architecture.includes(entry.architecture))) &&
    (!filters.health.length || filters.health.includes(entry.health)) &&
    (!filters.safety.length || filters.safety.includes(entry.safety)) &&
    filters.metrics.every(({ name, min, max }) => {
      const value = entry.metrics[name]
      return value !== undefined && (min === null || value >= min) && (max === null || value <= max)
    }) &&
    (filters.modified_from === null || entry.modified_at.slice(0, 10) >= filters.modified_from) &&
    (filters.modified_to === null || entry.modified_at.slice(0, 10) <= filters.modified_to)
  )
}

function valueOf(entry: Entry, by: string): string | number | null {
  if (by === 'health') return HEALTHS.indexOf(entry.health)
  if (by === 'safety') return SAFETIES.indexOf(entry.safety)
  if (by.startsWith('metrics.')) return entry.metrics[by.slice('metrics.'.length)] ?? null
  const value = entry[by as 'epoch' | 'size_bytes' | 'exp_name' | 'modified_at']
  return typeof value === 'string' ? value.toLowerCase() : value
}

function compareValues(a: string | number | null, b: string | number | null, descending: boolean): number {
  if (a === null || b === null) return Number(a === null) - Number(b === null)
  return (a < b ? -1 : a > b ? 1 : 0) * (descending ? -1 : 1)
}

function newestFirst(a: Entry, b: Entry): number {
  if (a.modified_at !== b.modified_at) return a.modified_at > b.modified_at ? -1 : 1
  return a.id < b.id ? -1 : 1
}
