/** The metrics of one checkpoint, and their history over the run and the experiment. */

import type { JSX } from 'preact'
import { useMemo, useState } from 'preact/hooks'

import type { CheckpointDetail } from '../answers'
import { formatMetric, formatNumber } from '../format'
import { bestOf, DIRECTION_WORDS, directionOf } from '../metrics'
import { openDetail } from '../state'
import { store } from '../store'
import { clipped, visible } from '../visible'
import type { Entry } from '../wire'
import { Curves, type Scaling } from './Curves'
import { MAX_LINES, metricHistory, metricNames, ofExperiment, ofRun, runHistory } from './history'
import { Section, useStoreChanges } from './parts'
import { Origin } from './Origin'

export function Metrics(props: { entry: Entry; detail: CheckpointDetail | null; primary: string | null }): JSX.Element {
  const { entry } = props
  const changes = useStoreChanges()
  // oxlint-disable-next-line react-hooks/exhaustive-deps -- `changes` stands for all rows of the store
  const rows = useMemo(() => ofExperiment(store.all(), entry), [entry, changes])
  return (
    <>
      <Section title="Metrics">
        <Values {...props} rows={rows} />
      </Section>
      <Section title="History">
        <Historical entry={entry} rows={rows} primary={props.primary} />
      </Section>
    </>
  )
}

function Values(props: { entry: Entry; detail: CheckpointDetail | null; rows: readonly Entry[] }): JSX.Element {
  const { entry, detail, rows } = props
  const names = Object.keys(entry.metrics)
  if (names.length === 0) return <p class="muted">no metrics are known of it</p>
  return (
    <div class="table-scroll">
      <table class="data-table">
        <thead>
          <tr>
            <th scope="col">metric</th>
            <th scope="col">value</th>
            <th scope="col">in the experiment</th>
            <th scope="col">from</th>
          </tr>
        </thead>
        <tbody>
          {names.map((name) => (
            <tr key={name}>
              <th scope="row">
                <bdi>{visible(clipped(name, 100))}</bdi>
                {entry.monitor === name && <span class="muted"> monitored</span>}
              </th>
              <td class="number" title={String(entry.metrics[name])}>
                {formatMetric(entry.metrics[name])}
              </td>
              <td>
                <Rank name={name} entry={entry} rows={rows} />
              </td>
              <td>
                <Origin of={originOfMetric(name, detail)} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  )
}

/** Where its value stands among those of the experiment. */
function Rank(props: { name: string; entry: Entry; rows: readonly Entry[] }): JSX.Element | null {
  const { name, entry, rows } = props
  const direction = directionOf(name, rows)
  const value = entry.metrics[name]
  if (direction === null || value === undefined) return <span class="muted">which way is better is not known</span>
  const { glyph, word } = DIRECTION_WORDS[direction]
  const having = rows.filter((row) => name in row.metrics)
  const better = having.filter((row) => {
    const other = row.metrics[name] ?? value
    return direction === 'min' ? other < value : other > value
  }).length
  const isBest = better === 0 && bestOf(having.map((row) => row.metrics[name]), direction).length > 0
  return (
    <span>
      {isBest ? <strong class="best">★ best of {formatNumber(having.length)}</strong> : `#${better + 1} of ${formatNumber(having.length)}`}{' '}
      <span class="muted" title={word}>
        <span aria-hidden="true">{glyph}</span>
        <span class="sr-only">{word}</span>
      </span>
    </span>
  )
}

function Historical(props: { entry: Entry; rows: readonly Entry[]; primary: string | null }): JSX.Element {
  const { entry, rows, primary } = props
  const [scope, setScope] = useState<'run' | 'experiment'>('run')
  const [scaling, setScaling] = useState<Scaling>('own')
  const [chosen, setChosen] = useState<readonly string[] | null>(null)
  const run = useMemo(() => ofRun(rows, entry), [rows, entry])
  const names = useMemo(() => metricNames(rows), [rows])
  if (names.length === 0) return <p class="muted">no checkpoint of this experiment has metrics</p>
  const preferred = [primary, entry.monitor, names[0] ?? null].find((name) => name !== null && names.includes(name)) as string
  const metrics = (chosen ?? [preferred]).filter((name) => names.includes(name))
  const metric = metrics[0] ?? preferred
  const byRun = runHistory(rows, metric, entry)
  const history = scope === 'run' ? metricHistory(run, metrics.length ? metrics : [metric], entry.id) : byRun
  const isSplit = scope === 'run' && history.lines.length > 1
  const choose = (name: string, isOn: boolean): void =>
    setChosen(scope === 'experiment' ? [name] : isOn ? [...metrics, name].slice(-MAX_LINES) : metrics.filter((m) => m !== name))
  return (
    <>
      <div class="tool-row">
        <label>
          history of{' '}
          <select class="input" value={scope} onChange={(event) => setScope(event.currentTarget.value as 'run' | 'experiment')}>
            <option value="run">this run</option>
            <option value="experiment">all runs ({formatNumber(byRun.runs)})</option>
          </select>
        </label>
        {isSplit && (
          <label>
            scale{' '}
            <select class="input" value={scaling} onChange={(event) => setScaling(event.currentTarget.value as Scaling)}>
              <option value="own">each its own axis</option>
              <option value="normalised">normalised</option>
              <option value="shared">one axis</option>
            </select>
          </label>
        )}
      </div>
      <fieldset class="chips">
        <legend class="sr-only">metrics that are drawn, at most {MAX_LINES}</legend>
        {names.slice(0, 40).map((name) => (
          <label key={name} class="chip">
            <input
              // One that becomes another kind of box forgets that it is ticked.
              key={scope}
              type={scope === 'run' ? 'checkbox' : 'radio'}
              name={`metric-of-${entry.id}`}
              checked={scope === 'run' ? metrics.includes(name) : name === metric}
              onChange={(event) => choose(name, event.currentTarget.checked)}
            />
            <bdi>{visible(clipped(name, 60))}</bdi>
          </label>
        ))}
      </fieldset>
      {history.xs.length === 0 ? (
        <p class="muted">{scope === 'run' ? 'no checkpoint of this run has an epoch or a step and this metric' : 'no epochs or steps are known'}</p>
      ) : (
        <Curves
          label={`${metrics.join(', ')} of ${entry.exp_name ?? 'this directory'}`}
          history={history}
          scaling={isSplit ? scaling : 'shared'}
          currentId={entry.id}
          onOpen={openDetail}
        />
      )}
      {scope === 'experiment' && byRun.runs > MAX_LINES && (
        <p class="muted">
          {MAX_LINES} of {formatNumber(byRun.runs)} runs are drawn: this one and the newest
        </p>
      )}
    </>
  )
}

function originOfMetric(name: string, detail: CheckpointDetail | null): string | undefined {
  const origins = detail?.provenance
  return origins?.[`metrics.${name}`] ?? origins?.[`metrics.additional_metrics.${name}`]
}
