/**
 * Equal values stored once: of 100,000 entries that were parsed one by one, each has its own copy of the experiment's
 * name and an empty list of its own.
 */

import type { Entry, FindingRef } from '../wire'

/** Fields that many entries have in common. */
const COMMON = ['root', 'exp_name', 'run_id', 'architecture', 'backbone', 'config_path'] as const
const MAX_TEXTS = 50_000
const MAX_LISTS = 5_000

type Mutable<T> = { -readonly [K in keyof T]: T[K] }

export class Sharing {
  private readonly texts = new Map<string, string>()
  private readonly dtypes = new Map<string, readonly string[]>()
  private readonly findings = new Map<string, readonly FindingRef[]>()

  /** The same entry, with values of others where they are equal. */
  share(entry: Entry): Entry {
    const shared = entry as Mutable<Entry>
    for (const name of COMMON) if (shared[name] !== null) shared[name] = this.text(shared[name])
    shared.dtypes = listed(this.dtypes, dtypesKey(shared.dtypes), shared.dtypes)
    shared.findings = listed(this.findings, findingsKey(shared.findings), shared.findings)
    return shared
  }

  private text(value: string): string {
    const known = this.texts.get(value)
    if (known !== undefined) return known
    if (this.texts.size < MAX_TEXTS) this.texts.set(value, value)
    return value
  }
}

function listed<T>(known: Map<string, readonly T[]>, key: string, value: readonly T[]): readonly T[] {
  const first = known.get(key)
  if (first !== undefined) return first
  if (known.size < MAX_LISTS) known.set(key, value)
  return value
}

// Cheaper than JSON for what nearly all entries have; as unambiguous.

function dtypesKey(dtypes: readonly string[]): string {
  return dtypes.length === 1 ? `=${dtypes[0]}` : JSON.stringify(dtypes)
}

function findingsKey(findings: readonly FindingRef[]): string {
  return findings.length === 0 ? '' : JSON.stringify(findings)
}
