/** The other checkpoints of the same run, by epoch. */

import type { JSX } from 'preact'
import { useMemo, useState } from 'preact/hooks'

import { formatMetric, formatNumber } from '../format'
import { openDetail } from '../state'
import { store } from '../store'
import { clippedName, visible } from '../visible'
import type { Entry } from '../wire'
import { HEALTH_LOOKS } from '../components/looks'
import { ofExperiment, ofRun } from './history'
import { Badge, Section, useStoreChanges } from './parts'

/** Neighbours that are shown at once. */
const FEW_SIBLINGS = 12

export function Siblings({ entry }: { entry: Entry }): JSX.Element | null {
  const [isWhole, setWhole] = useState(false)
  const changes = useStoreChanges()
  // oxlint-disable-next-line react-hooks/exhaustive-deps -- `changes` stands for all rows of the store
  const run = useMemo(() => ofRun(ofExperiment(store.all(), entry), entry), [entry, changes])
  if (run.length < 2) return null
  const place = run.findIndex(({ id }) => id === entry.id)
  const first = isWhole ? 0 : Math.max(0, Math.min(place - FEW_SIBLINGS / 2, run.length - FEW_SIBLINGS))
  const shown = isWhole ? run.slice(0, 500) : run.slice(first, first + FEW_SIBLINGS)
  return (
    <Section title={`Of the same run (${formatNumber(run.length)})`}>
      <ul class="siblings">
        {shown.map((sibling) => (
          <li key={sibling.id}>
            <button
              type="button"
              class="button link"
              aria-current={sibling.id === entry.id ? 'true' : undefined}
              onClick={() => openDetail(sibling.id)}
            >
              <bdi>{visible(clippedName(fileName(sibling.path), 80))}</bdi>
            </button>
            <span class="muted numeric">{sibling.epoch === null ? '' : `epoch ${sibling.epoch}`}</span>
            <span class="numeric">{sibling.monitor_value === null ? '' : formatMetric(sibling.monitor_value)}</span>
            {sibling.health !== 'valid' && <Badge {...HEALTH_LOOKS[sibling.health]} word={sibling.health} />}
          </li>
        ))}
      </ul>
      {run.length > FEW_SIBLINGS && (
        <button type="button" class="button link" onClick={() => setWhole(!isWhole)}>
          {isWhole ? 'fewer' : `all ${formatNumber(run.length)}`}
        </button>
      )}
    </Section>
  )
}

function fileName(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1)
}
