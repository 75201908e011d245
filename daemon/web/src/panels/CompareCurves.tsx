/** The runs of compared checkpoints over their epochs, in one plot. */

import type { JSX } from 'preact'
import { useMemo, useState } from 'preact/hooks'

import { openDetail } from '../state'
import { store } from '../store'
import { clippedName, visible } from '../visible'
import type { Entry } from '../wire'
import { shortNames } from './comparing'
import { Curves } from './Curves'
import { groupHistory, metricNames, ofExperiment, ofRun } from './history'
import { Section, useStoreChanges } from './parts'

interface Group {
  readonly label: string
  readonly rows: readonly Entry[]
  readonly currentId: string
}

export function CompareCurves({ entries }: { entries: readonly Entry[] }): JSX.Element | null {
  const [chosen, setChosen] = useState<string | null>(null)
  const changes = useStoreChanges()
  // oxlint-disable-next-line react-hooks/exhaustive-deps -- `changes` stands for all rows of the store
  const groups = useMemo(() => groupsOf(entries), [entries, changes])
  const names = useMemo(() => metricNames(groups.flatMap(({ rows }) => rows)), [groups])
  const metric = chosen !== null && names.includes(chosen) ? chosen : (names[0] ?? null)
  if (metric === null) return null
  const history = groupHistory(groups, metric)
  return (
    <Section
      title="Curves"
      aside={
        <label>
          metric{' '}
          <select class="input" value={metric} onChange={(event) => setChosen(event.currentTarget.value)}>
            {names.slice(0, 200).map((name) => (
              <option key={name} value={name}>
                {visible(clippedName(name, 80))}
              </option>
            ))}
          </select>
        </label>
      }
    >
      {history.xs.length === 0 ? (
        <p class="muted">no epochs or steps are known of those that have this metric</p>
      ) : (
        <Curves label={`${metric} of the compared runs`} history={history} scaling="shared" currentId={null} onOpen={openDetail} />
      )}
    </Section>
  )
}

/** One for each run; checkpoints of the same run share its curve. */
function groupsOf(entries: readonly Entry[]): Group[] {
  const names = shortNames(entries)
  const groups: Group[] = []
  const seen = new Set<string>()
  entries.forEach((entry, at) => {
    const rows = ofRun(ofExperiment(store.all(), entry), entry)
    const key = rows.map(({ id }) => id).join() || entry.id
    if (seen.has(key)) return
    seen.add(key)
    groups.push({ label: labelOf(entry, names[at] ?? entry.id), rows: rows.length ? rows : [entry], currentId: entry.id })
  })
  return groups
}

function labelOf(entry: Entry, name: string): string {
  return [entry.exp_name, entry.run_id].filter(Boolean).join(' · ') || name
}
