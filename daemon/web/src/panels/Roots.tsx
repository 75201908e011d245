/** The watched directories, each as it is now. */

import type { JSX } from 'preact'

import type { RootStatus } from '../answers'
import { formatMoment } from '../format'
import { preciseAge } from './figures'
import { Badge, CopyButton, Section, Text } from './parts'

export function Roots({ roots, now }: { roots: readonly RootStatus[]; now: number }): JSX.Element {
  return (
    <Section title="Roots">
      <div class="table-scroll">
        <table class="data-table">
          <thead>
            <tr>
              <th scope="col">directory</th>
              <th scope="col">state</th>
              <th scope="col">changes</th>
              <th scope="col">sidecars</th>
              <th scope="col">complete as of</th>
              <th scope="col">last sweep</th>
            </tr>
          </thead>
          <tbody>
            {roots.map((root) => (
              <RootRow key={root.path} root={root} now={now} />
            ))}
          </tbody>
        </table>
      </div>
    </Section>
  )
}

function RootRow({ root, now }: { root: RootStatus; now: number }): JSX.Element {
  return (
    <tr>
      <th scope="row">
        <code>
          <Text value={root.path} limit={200} />
        </code>{' '}
        <CopyButton text={root.path} what="path of the root" />
        {root.last_error && (
          <p class="error-text">
            <Text value={root.last_error} limit={300} />
          </p>
        )}
      </th>
      <td>
        <Badge
          icon={root.online ? 'check' : 'offline'}
          tone={root.online ? 'ok' : 'invalid'}
          word={root.online ? 'online' : 'offline'}
        />
      </td>
      <td>{root.watching ? 'events and sweeps' : <Badge icon="warning" tone="warn" word="sweeps alone" />}</td>
      <td>
        {root.writable === false ? (
          <Badge icon="warning" tone="warn" word="cannot be written" />
        ) : root.writable ? 'written' : 'none needed so far'}
      </td>
      <td title={formatMoment(root.complete_as_of)}>
        {root.complete_as_of === null ? 'not yet' : preciseAge(root.complete_as_of, now)}
      </td>
      <td>
        {root.sweep_started_at !== null
          ? `under way, ${preciseAge(root.sweep_started_at, now)}`
          : root.last_sweep_s === null
            ? '–'
            : `${root.last_sweep_s.toFixed(2)} s`}
      </td>
    </tr>
  )
}
