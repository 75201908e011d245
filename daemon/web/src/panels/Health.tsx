/** How far the catalog can be trusted, and what the daemon is doing; drawn anew every few seconds while it is looked at. */

import type { ComponentChildren, JSX } from 'preact'
import { useEffect, useState } from 'preact/hooks'

import type { CatalogHealth, VerifierStatus } from '../answers'
import { fetchHealth } from '../api'
import { formatAge, formatBytes, formatMoment, formatNumber } from '../format'
import { showFiltered } from '../state'
import { store } from '../store'
import { clipped, visible } from '../visible'
import { HEALTHS, type Health as CheckpointHealth, SAFETIES, type Severity } from '../wire'
import { HEALTH_LOOKS } from '../components/looks'
import { percent, preciseAge } from './figures'
import {
  Badge,
  Failure,
  SAFETY_LOOKS,
  Section,
  SEVERITY_LOOKS,
  Text,
  useHeartbeat,
  useNow,
  useRequest,
} from './parts'
import { Rebuild } from './Rebuild'
import { Roots } from './Roots'
import { Stack } from './Stack'

const REFRESH_MS = 5_000

export function Health(): JSX.Element {
  const heartbeat = useHeartbeat()
  const ticks = useTicks()
  const loaded = useRequest('health', `${heartbeat} ${ticks}`, fetchHealth)
  const now = useNow(1_000)
  const health = loaded.value
  return (
    <div class="health" role="region" aria-label="health of the catalog" tabIndex={0}>
      {loaded.error && <Failure error={loaded.error} onRetry={loaded.reload} />}
      {health === null ? (
        !loaded.error && (
          <p class="muted" role="status">
            asking…
          </p>
        )
      ) : (
        <>
          <Summary health={health} now={now} />
          <div class="cards">
            <Checkpoints health={health} />
            <Coverage health={health} />
            <FindingCounts counts={health.verification?.by_finding ?? {}} />
            {health.verification && <Verification status={health.verification} now={now} />}
            <Workers health={health} />
            <Build health={health} now={now} />
          </div>
          <Roots roots={health.roots} now={now} />
          <Errors health={health} now={now} />
        </>
      )}
    </div>
  )
}

const STATUS_LOOKS = {
  healthy: { icon: 'check', tone: 'ok' },
  degraded: { icon: 'warning', tone: 'warn' },
  unhealthy: { icon: 'cross', tone: 'invalid' },
} as const

function Summary({ health, now }: { health: CatalogHealth; now: number }): JSX.Element {
  return (
    <header class="health-head">
      <div>
        <h2>
          The catalog is <Badge {...STATUS_LOOKS[health.catalog_status]} word={health.catalog_status} />
        </h2>
        {health.reasons.length > 0 && (
          <ul class="reasons">
            {health.reasons.map((reason) => (
              <li key={reason}>
                <Text value={reason} />
              </li>
            ))}
          </ul>
        )}
        <p class="muted">
          {health.complete_as_of === null ? (
            'the first sweep has not ended yet: something may still be missing'
          ) : (
            <span title={formatMoment(health.complete_as_of)}>
              nothing is missing that was on disk {preciseAge(health.complete_as_of, now)}
            </span>
          )}
          {' · '}revision {formatNumber(health.revision)} · up for {upTime(health.started_at, now)}
        </p>
      </div>
      <Rebuild mayAsk={health.may_rebuild !== false} />
    </header>
  )
}

function upTime(since: string, now: number): string {
  const age = formatAge(since, now)
  return age === 'now' ? 'less than a minute' : age.replace(' ago', '')
}

function Checkpoints({ health }: { health: CatalogHealth }): JSX.Element {
  const looks: Readonly<Record<CheckpointHealth, string>> = {
    valid: 'look-ok',
    invalid: 'look-invalid',
    writing: 'look-muted',
    offline: 'look-warn',
  }
  return (
    <Section title={`Checkpoints: ${formatNumber(health.checkpoint_count)}`}>
      <Stack
        parts={HEALTHS.map((name) => ({
          name,
          count: health.by_health[name] ?? 0,
          look: looks[name],
          label: <Badge {...HEALTH_LOOKS[name]} word={name} />,
          onClick: () => showFiltered({ health: [name] }),
        }))}
      />
      <h4>Safety of loading them</h4>
      <Stack
        parts={SAFETIES.map((name) => ({
          name,
          count: health.by_safety[name] ?? 0,
          look: { safe: 'look-ok', unsafe: 'look-invalid', unknown: 'look-muted' }[name],
          label: <Badge {...SAFETY_LOOKS[name]} word={name} />,
          onClick: () => showFiltered({ safety: [name] }),
        }))}
      />
    </Section>
  )
}

function Coverage({ health }: { health: CatalogHealth }): JSX.Element {
  const valid = health.by_health.valid ?? 0
  const without = Math.max(0, valid - health.with_sidecar - health.with_state_metadata)
  return (
    <Section title={`Metadata: ${percent(health.metadata_coverage, 1)} of valid ones`}>
      <Stack
        parts={[
          { name: 'beside the file', count: health.with_sidecar, look: 'look-ok' },
          { name: 'kept by the daemon alone', count: health.with_state_metadata, look: 'part-1' },
          { name: 'none yet', count: without, look: 'look-warn' },
        ]}
      />
      <p class="muted">
        {health.writing_sidecars > 0 && `${formatNumber(health.writing_sidecars)} sidecars are being written. `}
        {health.skipped_sidecars > 0 && `${formatNumber(health.skipped_sidecars)} could not be written. `}
        {health.skipped_links > 0 && `${formatNumber(health.skipped_links)} links out of the roots are not followed.`}
      </p>
    </Section>
  )
}

/** Error before warning before info, then by number. */
const RANKS: readonly (Severity | undefined)[] = ['error', 'warning', 'info', undefined]

function FindingCounts({ counts }: { counts: Readonly<Record<string, number>> }): JSX.Element {
  const severities = severitiesOf(Object.keys(counts))
  const rank = (code: string): number => RANKS.indexOf(severities.get(code))
  const rows = Object.entries(counts)
    .filter(([, count]) => count > 0)
    .sort(([a, n], [b, m]) => rank(a) - rank(b) || m - n)
  return (
    <Section title="Findings">
      {rows.length === 0 ? (
        <p class="muted">nothing was found</p>
      ) : (
        <table class="data-table">
          <caption class="sr-only">checkpoints by finding; a code shows its checkpoints</caption>
          <tbody>
            {rows.map(([code, count]) => {
              const severity = severities.get(code)
              return (
                <tr key={code}>
                  <td>{severity && <Badge {...SEVERITY_LOOKS[severity]} word={severity} />}</td>
                  <th scope="row">
                    <button type="button" class="button link" onClick={() => showFiltered({ q: `finding:${code}` })}>
                      {visible(code)}
                    </button>
                  </th>
                  <td class="numeric">{formatNumber(count)}</td>
                </tr>
              )
            })}
          </tbody>
        </table>
      )}
    </Section>
  )
}

function Verification({ status, now }: { status: VerifierStatus; now: number }): JSX.Element {
  const looks = { none: 'look-muted', structure: 'part-2', checksum: 'part-1', weights: 'look-ok' }
  return (
    <Section title="Verification">
      {status.problem && (
        <p class="notice warn">
          <Badge icon="warning" word="stopped" tone="warn" /> <Text value={status.problem} />
        </p>
      )}
      <Stack
        parts={(Object.keys(looks) as (keyof typeof looks)[]).map((name) => ({
          name,
          count: status.by_level[name] ?? 0,
          look: looks[name],
          onClick: () => showFiltered({ q: `verified:${name}` }),
        }))}
      />
      <dl class="facts">
        <Figure name="wanted">{status.level}</Figure>
        <Figure name="reading">{status.verifying === null ? 'nothing just now' : <Text value={status.verifying} limit={160} />}</Figure>
        <Figure name="waiting">{formatNumber(status.queued)}</Figure>
        <Figure name="speed">{status.bytes_per_s > 0 ? `${formatBytes(status.bytes_per_s)}/s` : 'not known yet'}</Figure>
        <Figure name="read">{formatBytes(status.bytes_read)} since the start</Figure>
        <Figure name="oldest">
          {status.oldest_verified_at === null ? 'none' : (
            <span title={formatMoment(status.oldest_verified_at)}>{formatAge(status.oldest_verified_at, now)}</span>
          )}
        </Figure>
        <Figure name="outcomes">
          {Object.entries(status.outcomes)
            .map(([name, count]) => `${formatNumber(count)} ${visible(name)}`)
            .join(', ') || 'none yet'}
        </Figure>
      </dl>
    </Section>
  )
}

function Workers({ health }: { health: CatalogHealth }): JSX.Element {
  const isFull = health.sandbox === 'full'
  return (
    <Section title="Service">
      <dl class="facts">
        <Figure name="sandbox">
          <Badge icon={isFull ? 'check' : 'warning'} tone={isFull ? 'ok' : 'warn'} word={isFull ? 'full' : 'not full'} />{' '}
          {!isFull && <Text value={health.sandbox} limit={300} />}
        </Figure>
        <Figure name="crashes">{formatNumber(health.worker_crashes)} of worker processes</Figure>
        <Figure name="waiting">{formatNumber(health.pending)} paths for a look</Figure>
        <Figure name="state">
          {health.state_durable ? 'kept on disk' : <Badge icon="warning" tone="warn" word="cannot be written: kept in memory" />}
        </Figure>
        <Figure name="search">{health.search === 'full' ? 'complete' : <Text value={health.search} limit={300} />}</Figure>
      </dl>
    </Section>
  )
}

function Build({ health, now }: { health: CatalogHealth; now: number }): JSX.Element {
  const { last_build_time: seconds } = health
  return (
    <Section title="Last full build">
      <dl class="facts">
        <Figure name="took">{seconds === null ? withoutBuild(health) : `${seconds.toFixed(2)} s`}</Figure>
        <Figure name="ended">
          {health.last_build_at === null ? '–' : (
            <span title={formatMoment(health.last_build_at)}>{formatAge(health.last_build_at, now)}</span>
          )}
        </Figure>
        <Figure name="known before">{formatNumber(health.fast_path_count)}</Figure>
        <Figure name="inspected">{formatNumber(health.slow_path_count)}</Figure>
      </dl>
    </Section>
  )
}

function Errors({ health, now }: { health: CatalogHealth; now: number }): JSX.Element {
  return (
    <Section title="Recent errors">
      {health.recent_errors.length === 0 ? (
        <p class="muted">none</p>
      ) : (
        <ul class="errors">
          {[...health.recent_errors].reverse().map((error, place) => (
            <li key={`${error.at}-${place}`}>
              <span class="muted" title={formatMoment(error.at)}>
                {formatAge(error.at, now)}
              </span>{' '}
              <strong>{visible(error.what)}</strong>{' '}
              {error.path !== null && (
                <code>
                  <Text value={error.path} limit={200} />
                </code>
              )}
              <p>
                <Text value={clipped(error.message, 4_000)} limit={400} />
              </p>
            </li>
          ))}
        </ul>
      )}
    </Section>
  )
}

function Figure(props: { name: string; children: ComponentChildren }): JSX.Element {
  return (
    <div class="fact">
      <dt>{props.name}</dt>
      <dd>{props.children}</dd>
    </div>
  )
}

/** The daemon's counts have codes alone; how bad each is stands in the rows. */
function severitiesOf(codes: readonly string[]): ReadonlyMap<string, Severity> {
  const found = new Map<string, Severity>()
  for (const entry of store.all()) {
    for (const { code, severity } of entry.findings) if (!found.has(code)) found.set(code, severity)
    if (found.size >= codes.length) break
  }
  return found
}

/** Counts up each few seconds, as long as the page is seen. */
function useTicks(): number {
  const [ticks, setTicks] = useState(0)
  useEffect(() => {
    const timer = setInterval(() => {
      if (document.visibilityState === 'visible') setTicks((count) => count + 1)
    }, REFRESH_MS)
    return () => clearInterval(timer)
  }, [])
  return ticks
}

function withoutBuild(health: CatalogHealth): string {
  return health.last_partial_build_at === null ? 'it is under way' : 'none yet: not every root could be read'
}
