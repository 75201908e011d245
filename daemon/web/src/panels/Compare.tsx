/** Two to four checkpoints side by side: attributes as rows, checkpoints as columns, what differs tinted and marked. */

import type { JSX } from 'preact'
import { useMemo, useState } from 'preact/hooks'

import { announce } from '../announce'
import { ApiError, comparePath, EXPORTS, type ExportFormat, fetchComparison, fetchExport } from '../api'
import type { Attribute, Comparison } from '../answers'
import { copyText } from '../components/CopyButton'
import { Icon } from '../components/Icon'
import { HEALTH_LOOKS } from '../components/looks'
import { formatMetric, formatNumber } from '../format'
import { useApp } from '../hooks'
import { DIRECTION_WORDS } from '../metrics'
import { openCompare, openDetail, showTable, update } from '../state'
import { store } from '../store'
import { clippedName, visible } from '../visible'
import type { Entry } from '../wire'
import { AddColumn } from './AddColumn'
import { CompareCurves } from './CompareCurves'
import { CompareTensors } from './CompareTensors'
import { AGREEMENTS, cellText, moved, shortNames, type ShownSection, shownSections, weightsWords } from './comparing'
import { Badge, Failure, Text, useRequest, useStoreChanges } from './parts'

const FEWEST = 2
/** Rows of one section that are drawn before somebody asks for all. */
const FEW_ROWS = 200

export function Compare({ ids }: { ids: readonly string[] }): JSX.Element {
  const differencesOnly = useApp((state) => state.differencesOnly)
  useStoreChanges()
  const revisions = ids.map((id) => store.get(id)?.revision ?? 0).join(' ')
  const key = ids.length >= FEWEST ? ids.join(' ') : null
  const loaded = useRequest(key, revisions, (signal) => fetchComparison(ids, { tensor_limit: '0' }, signal))
  if (key === null) return <TooFew />
  const comparison = loaded.value
  return (
    <div class="compare">
      <header class="compare-head">
        <h2>Compare {ids.length} checkpoints</h2>
        <label>
          <input
            type="checkbox"
            checked={differencesOnly}
            onChange={(event) => update({ differencesOnly: event.currentTarget.checked })}
          />{' '}
          differences only
        </label>
        <AddColumn ids={ids} />
        <span class="spacer" />
        <Exports ids={ids} />
        <button type="button" class="button" onClick={showTable}>
          back to the table
        </button>
      </header>
      {loaded.error && <CompareFailure error={loaded.error} ids={ids} onRetry={loaded.reload} />}
      {comparison === null ? (
        !loaded.error && (
          <p class="muted panel-body" role="status">
            comparing…
          </p>
        )
      ) : (
        <div class="compare-body" role="region" aria-label="comparison" tabIndex={0}>
          <Verdict comparison={comparison} />
          <Table comparison={comparison} differencesOnly={differencesOnly} />
          <CompareTensors key={ids.join()} ids={ids} comparison={comparison} version={revisions} />
          <CompareCurves entries={comparison.checkpoints} />
        </div>
      )}
    </div>
  )
}

function TooFew(): JSX.Element {
  return (
    <div class="nothing">
      <h2>Nothing to compare yet</h2>
      <p>Select two to four checkpoints in the table, with their boxes or with x, then press c.</p>
      <button type="button" class="button" onClick={showTable}>
        to the table
      </button>
    </div>
  )
}

/** One of them may be gone: the others can still be compared. */
function CompareFailure(props: { error: Error; ids: readonly string[]; onRetry: () => void }): JSX.Element {
  const { error, ids } = props
  const culprit = error instanceof ApiError && [404, 410].includes(error.status) ? error.problem?.value : undefined
  const others = ids.filter((id) => id !== culprit)
  return (
    <div class="panel-body">
      <Failure error={error} onRetry={props.onRetry} />
      {culprit !== undefined && others.length >= FEWEST && others.length < ids.length && (
        <button type="button" class="button" onClick={() => openCompare(others)}>
          compare the others
        </button>
      )}
    </div>
  )
}

function Verdict({ comparison }: { comparison: Comparison }): JSX.Element {
  const { weights, tensors, checkpoints } = comparison
  const names = shortNames(checkpoints)
  const isVerified = tensors.checksums.every((evidence) => evidence === 'verified')
  return (
    <ul class="verdict">
      {weights.map((sameness, at) => {
        const counts = tensors.weights[at]
        return (
          counts && (
            <li key={checkpoints[at + 1]?.id}>
              <span class={`mark ${sameness}`} aria-hidden="true">
                {sameness === 'same' ? '=' : sameness === 'different' ? '≠' : '?'}
              </span>{' '}
              <bdi>{visible(clippedName(names[at + 1] ?? '', 80))}</bdi> against <bdi>{visible(clippedName(names[0] ?? '', 80))}</bdi>:{' '}
              <strong>{weightsWords(sameness, counts, isVerified)}</strong>
            </li>
          )
        )
      })}
    </ul>
  )
}

function Table({ comparison, differencesOnly }: { comparison: Comparison; differencesOnly: boolean }): JSX.Element {
  const sections = useMemo(() => shownSections(comparison, differencesOnly), [comparison, differencesOnly])
  const names = shortNames(comparison.checkpoints)
  const ids = comparison.checkpoints.map(({ id }) => id)
  return (
    <table class="compare-table">
      <caption class="sr-only">attributes of {ids.length} checkpoints; what differs is marked</caption>
      <thead>
        <tr>
          <th scope="col" class="corner">
            attribute
          </th>
          {comparison.checkpoints.map((entry, at) => (
            <th scope="col" key={entry.id}>
              <Column entry={entry} name={names[at] ?? ''} at={at} ids={ids} />
            </th>
          ))}
        </tr>
      </thead>
      {sections.length === 0 && (
        <tbody>
          <tr>
            <td colSpan={ids.length + 1} class="muted">
              {differencesOnly ? 'no attribute differs' : 'nothing is known of them'}
            </td>
          </tr>
        </tbody>
      )}
      {sections.map((shown) => (
        <SectionRows key={shown.name} shown={shown} columns={ids.length} />
      ))}
    </table>
  )
}

function Column(props: { entry: Entry; name: string; at: number; ids: readonly string[] }): JSX.Element {
  const { entry, name, at, ids } = props
  const shown = visible(clippedName(name, 100))
  const move = (to: number): void => {
    openCompare(moved(ids, at, to))
    announce(`column ${to + 1} of ${ids.length}`)
  }
  return (
    <div class="column-head">
      <button type="button" class="button link" title={visible(entry.path)} onClick={() => openDetail(entry.id)}>
        <bdi>{shown}</bdi>
      </button>
      {entry.health !== 'valid' && <Badge {...HEALTH_LOOKS[entry.health]} word={entry.health} />}
      <span class="column-tools">
        <button type="button" class="button plain icon" aria-label={`move ${shown} left`} disabled={at === 0} onClick={() => move(at - 1)}>
          ←
        </button>
        <button
          type="button"
          class="button plain icon"
          aria-label={`move ${shown} right`}
          disabled={at === ids.length - 1}
          onClick={() => move(at + 1)}
        >
          →
        </button>
        <button
          type="button"
          class="button plain icon"
          aria-label={`remove ${shown}`}
          title={ids.length <= FEWEST ? 'two are the fewest that can be compared' : 'remove'}
          disabled={ids.length <= FEWEST}
          onClick={() => openCompare(ids.filter((id) => id !== entry.id))}
        >
          <Icon name="cross" size={12} />
        </button>
      </span>
    </div>
  )
}

function SectionRows({ shown, columns }: { shown: ShownSection; columns: number }): JSX.Element {
  const [isWhole, setWhole] = useState(false)
  const { section, title, rows } = shown
  const listed = isWhole ? rows : rows.slice(0, FEW_ROWS)
  const left = rows.length - listed.length
  return (
    <tbody>
      <tr class="section-row">
        <th scope="rowgroup" colSpan={columns + 1}>
          <span>
            {title} <span class="muted">{countsText(section.differing, section.missing, section.equal)}</span>
          </span>
        </th>
      </tr>
      {listed.map((row) => (
        <Row key={row.name} row={row} isMetric={shown.name === 'metrics'} />
      ))}
      {(left > 0 || section.omitted > 0) && (
        <tr>
          <td colSpan={columns + 1} class="muted">
            {left > 0 && (
              <button type="button" class="button link" onClick={() => setWhole(true)}>
                {formatNumber(left)} more
              </button>
            )}{' '}
            {section.omitted > 0 && `${formatNumber(section.omitted)} further rows are only counted`}
          </td>
        </tr>
      )}
    </tbody>
  )
}

function Row({ row, isMetric }: { row: Attribute; isMetric: boolean }): JSX.Element {
  const { glyph, word } = AGREEMENTS[row.status]
  const direction = row.direction ? DIRECTION_WORDS[row.direction] : null
  return (
    <tr class={row.status}>
      <th scope="row">
        <span class={`mark ${row.status}`} title={word}>
          <span aria-hidden="true">{glyph}</span>
          <span class="sr-only">{word}: </span>
        </span>{' '}
        <Text value={row.name} limit={100} />
        {direction && (
          <span class="muted" title={direction.word}>
            {' '}
            <span aria-hidden="true">{direction.glyph}</span>
            <span class="sr-only">{direction.word}</span>
          </span>
        )}
      </th>
      {row.values.map((value, at) => {
        const text = cellText(row, at)
        const isBest = row.best.includes(at)
        return (
          <td key={at} class={isBest ? 'best' : typeof value === 'number' ? 'numeric' : ''}>
            {isBest && (
              <>
                <span aria-hidden="true">★ </span>
                <span class="sr-only">best: </span>
              </>
            )}
            {text === null ? (
              <span class="muted">–<span class="sr-only">not known</span></span>
            ) : isMetric && typeof value === 'number' ? (
              <span title={String(value)}>{formatMetric(value)}</span>
            ) : (
              <Text value={text} limit={160} />
            )}
          </td>
        )
      })}
    </tr>
  )
}

function Exports({ ids }: { ids: readonly string[] }): JSX.Element {
  const [error, setError] = useState<Error | null>(null)
  const copyMarkdown = async (): Promise<void> => {
    try {
      setError(null)
      const isCopied = await copyText(await fetchExport(ids, 'markdown'))
      announce(isCopied ? 'Markdown copied' : 'this browser does not let pages copy here')
    } catch (reason) {
      setError(reason instanceof Error ? reason : new Error(String(reason)))
    }
  }
  return (
    <span class="exports" role="group" aria-label="export">
      {(Object.keys(EXPORTS) as ExportFormat[]).map((format) => (
        <a
          key={format}
          class="button"
          href={comparePath(ids, { format, tensor_limit: '10000' })}
          download={`comparison.${EXPORTS[format].suffix}`}
        >
          {EXPORTS[format].label}
        </a>
      ))}
      <button type="button" class="button" title="copy as Markdown, for a report or an issue" onClick={() => void copyMarkdown()}>
        <Icon name="copy" size={12} /> copy Markdown
      </button>
      <button
        type="button"
        class="button"
        onClick={() => void copyText(location.href).then((isCopied) => announce(isCopied ? 'link copied' : 'not copied'))}
      >
        <Icon name="copy" size={12} /> copy link
      </button>
      {error && <Failure error={error} />}
    </span>
  )
}

function countsText(differing: number, missing: number, equal: number): string {
  const parts = [
    [differing, 'differ'],
    [missing, 'not in all'],
    [equal, 'equal'],
  ] as const
  return parts
    .filter(([count]) => count > 0)
    .map(([count, word]) => `${formatNumber(count)} ${word}`)
    .join(' · ')
}

