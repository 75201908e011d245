/** What became of the tensors: numbers by change, and the list of those that one asks for. */

import type { JSX } from 'preact'
import { useMemo, useState } from 'preact/hooks'

import { fetchComparison } from '../api'
import { type Comparison, TENSOR_CHANGES, type TensorChange, type TensorRow } from '../answers'
import { formatNumber } from '../format'
import { clippedName, visible } from '../visible'
import { CHANGES, shortNames } from './comparing'
import { Failure, Section, Text, useRequest } from './parts'
import { type ListRow, TreeList } from './TreeList'

const ROW_HEIGHT = 26
/** Rows in one answer: `MAX_LIMIT` of daemon/http/tensors.py. */
const AT_ONCE = 10_000

const EVIDENCE_WORDS = {
  none: 'records no checksums',
  failed: 'damaged: its checksums do not match',
  recorded: 'checksums as recorded, not yet verified',
  verified: 'every checksum verified',
} as const

interface Props {
  readonly ids: readonly string[]
  readonly comparison: Comparison
  readonly version: unknown
}

export function CompareTensors({ ids, comparison, version }: Props): JSX.Element {
  const { tensors, checkpoints } = comparison
  const names = shortNames(checkpoints)
  const [changes, setChanges] = useState<readonly TensorChange[] | null>(null)
  return (
    <Section title="Tensors">
      <div class="table-scroll">
        <table class="data-table">
          <caption class="sr-only">tensors of each checkpoint against the first one, by what became of them</caption>
          <thead>
            <tr>
              <th scope="col">against the first</th>
              <th scope="col" class="numeric">
                tensors
              </th>
              {TENSOR_CHANGES.map((change) => (
                <th scope="col" key={change} class="numeric">
                  <span aria-hidden="true">{CHANGES[change].glyph}</span> {CHANGES[change].word}
                </th>
              ))}
              <th scope="col">evidence</th>
            </tr>
          </thead>
          <tbody>
            {names.map((name, at) => (
              <tr key={ids[at]}>
                <th scope="row">
                  <bdi>{visible(clippedName(name, 80))}</bdi>
                </th>
                <td class="numeric">{tensors.known[at] ? formatNumber(tensors.totals[at] ?? 0) : 'not known'}</td>
                {TENSOR_CHANGES.map((change) => {
                  const count = at === 0 ? null : (tensors.counts[at - 1]?.[change] ?? 0)
                  const isNews = count && change !== 'same'
                  return (
                    <td key={change} class={isNews ? 'numeric changed' : 'numeric'}>
                      {count === null ? (
                        ''
                      ) : count > 0 ? (
                        <button type="button" class="button link" onClick={() => setChanges([change])}>
                          {formatNumber(count)}
                        </button>
                      ) : (
                        <span class="muted">0</span>
                      )}
                    </td>
                  )
                })}
                <td class="muted">{EVIDENCE_WORDS[tensors.checksums[at] ?? 'none']}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {changes === null ? (
        <button
          type="button"
          class="button"
          onClick={() => setChanges(TENSOR_CHANGES.filter((change) => change !== 'same'))}
        >
          list what differs
        </button>
      ) : (
        <List ids={ids} changes={changes} version={version} names={names} onChange={setChanges} />
      )}
    </Section>
  )
}

type Row = ListRow & { readonly row: TensorRow }

function List(props: {
  ids: readonly string[]
  changes: readonly TensorChange[]
  version: unknown
  names: readonly string[]
  onChange: (changes: readonly TensorChange[]) => void
}): JSX.Element {
  const { ids, changes, version, names } = props
  const [offset, setOffset] = useState(0)
  const [current, setCurrent] = useState<string | null>(null)
  const [query, setQuery] = useState('')
  const asked = changes.join(',') || 'same'
  const loaded = useRequest(`${ids.join()} ${asked} ${offset}`, version, (signal) =>
    fetchComparison(
      ids,
      { tensor_limit: String(AT_ONCE), tensor_offset: String(offset), tensor_change: asked },
      signal,
    ).then(({ tensors }) => tensors),
  )
  const section = loaded.value
  const rows = useMemo(() => {
    const wanted = query.trim().toLowerCase()
    const matching = (section?.rows ?? []).filter(({ name }) => name.toLowerCase().includes(wanted))
    return matching.map((row): Row => ({ id: `${row.role}:${row.name}`, depth: 0, isOpen: null, row }))
  }, [section, query])
  const chosen = rows.find(({ id }) => id === current)?.row
  const toggle = (change: TensorChange): void => {
    setOffset(0)
    props.onChange(changes.includes(change) ? changes.filter((other) => other !== change) : [...changes, change])
  }
  return (
    <div class="compare-tensors" style={{ '--columns': ids.length }}>
      <fieldset class="chips">
        <legend class="sr-only">changes that are listed</legend>
        {TENSOR_CHANGES.map((change) => (
          <label key={change} class="chip">
            <input type="checkbox" checked={changes.includes(change)} onChange={() => toggle(change)} />
            <span aria-hidden="true">{CHANGES[change].glyph}</span> {CHANGES[change].word}
          </label>
        ))}
        <input
          class="input"
          type="search"
          aria-label="search these tensors by name"
          placeholder="name"
          value={query}
          onInput={(event) => setQuery(event.currentTarget.value)}
        />
      </fieldset>
      {loaded.error && <Failure error={loaded.error} onRetry={loaded.reload} />}
      <p class="muted" role="status">
        {section === null ? 'comparing tensors…' : `${formatNumber(rows.length)} of ${formatNumber(section.total)} listed`}
      </p>
      {section !== null && rows.length > 0 && (
        <TreeList<Row>
          label="tensors that were compared"
          role="treegrid"
          rows={rows}
          rowHeight={ROW_HEIGHT}
          columns={ids.length + 1}
          current={current}
          onCurrent={({ id }) => setCurrent(id)}
          onToggle={() => {}}
          draw={drawRow}
          head={
            <div class="compare-tensor-row tensor-head" aria-hidden="true">
              <span>tensor</span>
              {names.map((name) => (
                <span key={name}>{visible(clippedName(name, 80))}</span>
              ))}
            </div>
          }
        />
      )}
      {chosen && (
        <div class="chosen">
          <code>
            <Text value={chosen.name} />
          </code>
        </div>
      )}
      {section !== null && section.total > AT_ONCE && (
        <div class="tool-row">
          <button type="button" class="button" disabled={offset === 0} onClick={() => setOffset(Math.max(0, offset - AT_ONCE))}>
            the {formatNumber(AT_ONCE)} before
          </button>
          <button type="button" class="button" disabled={offset + AT_ONCE >= section.total} onClick={() => setOffset(offset + AT_ONCE)}>
            the next {formatNumber(AT_ONCE)}
          </button>
        </div>
      )}
    </div>
  )
}

function drawRow({ row }: Row): JSX.Element {
  return (
    <div class="compare-tensor-row" role="presentation">
      {/* the focus stays with the grid */}
      <span role="gridcell" title={visible(clippedName(row.name, 400))}>
        <bdi>{visible(clippedName(row.name, 200))}</bdi>
      </span>
      {row.shapes.map((shape, at) => {
        const change = at === 0 ? null : CHANGES[row.changes[at - 1] ?? 'absent']
        const isNews = at > 0 && !['same', 'absent'].includes(row.changes[at - 1] ?? 'same')
        return (
          <span role="gridcell" key={at} class={isNews ? 'changed' : ''}>
            {change && (
              <span class="mark">
                <span aria-hidden="true" title={change.word}>
                  {change.glyph}
                </span>
                <span class="sr-only">{change.word}: </span>
              </span>
            )}{' '}
            {shape === null ? <span class="muted">–</span> : `${row.dtypes[at] ?? ''} ${shape.length ? shape.join(' × ') : 'scalar'}`}
          </span>
        )
      })}
    </div>
  )
}
