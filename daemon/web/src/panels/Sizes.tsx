/** What takes up a checkpoint's bytes: weights against optimizer, parts of the model, files of a directory. */

import type { JSX } from 'preact'

import type { CheckpointDetail } from '../answers'
import { formatBytes, formatCount, formatNumber } from '../format'
import { clipped, visible } from '../visible'
import type { Entry } from '../wire'
import { Section, Text } from './parts'

export function Sizes({ entry, detail }: { entry: Entry; detail: CheckpointDetail | null }): JSX.Element {
  const { weights_bytes: weights, optimizer_bytes: optimizer } = entry
  const known = (weights ?? 0) + (optimizer ?? 0)
  const rest = Math.max(0, entry.size_bytes - known)
  const parts = [
    { name: 'weights', bytes: weights ?? 0, look: 'part-1' },
    { name: 'optimizer', bytes: optimizer ?? 0, look: 'part-2' },
    { name: 'everything else', bytes: rest, look: 'part-3' },
  ].filter(({ bytes }) => bytes > 0)
  const total = parts.reduce((sum, { bytes }) => sum + bytes, 0)
  return (
    <Section title="Size">
      <p>
        <strong>{formatBytes(entry.size_bytes)}</strong>{' '}
        <span class="muted">
          {[
            entry.format && visible(entry.format),
            entry.n_parameters !== null && `${formatCount(entry.n_parameters)} parameters`,
            visible(entry.dtypes.join(', ')),
          ].filter(Boolean).join(' · ')}
        </span>
      </p>
      {weights !== null && total > 0 && (
        <>
          <div class="stack" aria-hidden="true">
            {parts.map(({ name, bytes, look }) => (
              <span key={name} class={look} style={{ flexGrow: bytes }} />
            ))}
          </div>
          <ul class="legend">
            {parts.map(({ name, bytes, look }) => (
              <li key={name}>
                <span class={`swatch ${look}`} aria-hidden="true" /> {name} <strong>{formatBytes(bytes)}</strong>{' '}
                <span class="muted">{Math.round((100 * bytes) / total)} %</span>
              </li>
            ))}
          </ul>
        </>
      )}
      <Parts parts={detail?.parameters_by_part ?? {}} />
      {(detail?.shards?.length ?? 0) > 0 && (
        <details>
          <summary>{formatNumber(detail?.shards?.length ?? 0)} files</summary>
          <ul class="names">
            {detail?.shards?.slice(0, 200).map(({ name, size_bytes }) => (
              <li key={name}>
                <code>
                  <Text value={name} limit={120} />
                </code>{' '}
                <span class="muted">{formatBytes(size_bytes)}</span>
              </li>
            ))}
          </ul>
        </details>
      )}
    </Section>
  )
}

function Parts({ parts }: { parts: Readonly<Record<string, number>> }): JSX.Element | null {
  const all = Object.entries(parts).sort(([, a], [, b]) => b - a)
  if (all.length < 2) return null
  const most = all[0]?.[1] ?? 1
  return (
    <table class="data-table parts">
      <caption>parameters by part</caption>
      <tbody>
        {all.slice(0, 12).map(([name, count]) => (
          <tr key={name}>
            <th scope="row">
              <bdi>{visible(clipped(name, 80))}</bdi>
            </th>
            <td class="numeric">{formatCount(count)}</td>
            <td class="bar-cell" aria-hidden="true">
              <span class="bar" style={{ width: `${Math.max(1, (100 * count) / most)}%` }} />
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  )
}
