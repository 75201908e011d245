/** What is known of one checkpoint at a glance: what was found, facts and where they come from, sizes, its neighbours. */

import type { ComponentChildren, JSX } from 'preact'
import { useMemo, useState } from 'preact/hooks'

import type { CheckpointDetail, Plain } from '../answers'
import { formatAge, formatMetric, formatMoment, formatNumber } from '../format'
import { openDetail, showFiltered } from '../state'
import { store } from '../store'
import { clipped, visible } from '../visible'
import type { Entry, Finding } from '../wire'
import { HEALTH_LOOKS } from '../components/looks'
import { Origin } from './Origin'
import {
  Badge,
  CopyButton,
  SAFETY_LOOKS,
  Section,
  SEVERITY_LOOKS,
  Text,
  useNow,
} from './parts'
import { Siblings } from './Siblings'
import { Sizes } from './Sizes'
import { flattenTree } from './tree'

interface Props {
  readonly entry: Entry
  readonly detail: CheckpointDetail | null
}

export function Overview({ entry, detail }: Props): JSX.Element {
  return (
    <>
      <Findings entry={entry} detail={detail} />
      <Trust entry={entry} detail={detail} />
      <Facts entry={entry} detail={detail} />
      <Sizes entry={entry} detail={detail} />
      <Model detail={detail} />
      <Siblings entry={entry} />
      <Identity entry={entry} detail={detail} />
    </>
  )
}

function Findings({ entry, detail }: Props): JSX.Element | null {
  const { findings } = detail ?? entry
  if (findings.length === 0) return null
  return (
    <Section title="Findings">
      <ul class="findings">
        {findings.map((found, place) => (
          <li key={`${place}-${found.code}`} class={`finding ${found.severity}`}>
            <div>
              <Badge {...SEVERITY_LOOKS[found.severity]} word={found.severity} /> <code>{visible(found.code)}</code>
            </div>
            {detail && <Advice {...(found as Finding)} />}
          </li>
        ))}
      </ul>
    </Section>
  )
}

function Advice({ message, remedy }: Finding): JSX.Element {
  return (
    <>
      <p>
        <Text value={message} limit={600} />
      </p>
      <p class="muted">
        <Text value={remedy} limit={600} />
      </p>
    </>
  )
}

const LEVELS: Readonly<Record<Entry['verified'], string>> = {
  none: 'nothing was read; what is known comes from its sidecar',
  structure: 'structure: archive, pickle and every tensor’s bounds',
  checksum: 'checksum: also every byte against its checksum',
  weights: 'weights: also every value, for NaN and infinities',
}

function Trust({ entry, detail }: Props): JSX.Element {
  const now = useNow(30_000)
  const names = detail?.unsafe_globals ?? []
  return (
    <Section title="Can it be trusted?">
      <dl class="facts">
        <Fact name="health">
          <Badge {...HEALTH_LOOKS[entry.health]} word={entry.health} />
        </Fact>
        <Fact name="verified">
          {LEVELS[entry.verified]}
          {detail?.verified_at && (
            <span class="muted" title={formatMoment(detail.verified_at)}>
              {' '}
              · {formatAge(detail.verified_at, now)}
            </span>
          )}
        </Fact>
        <Fact name="safety">
          <Badge {...SAFETY_LOOKS[entry.safety]} word={entry.safety} /> <span class="muted">{safetyWords(entry, detail)}</span>
          {names.length > 0 && <Names names={names} />}
        </Fact>
      </dl>
    </Section>
  )
}

function safetyWords(entry: Entry, detail: CheckpointDetail | null): string {
  if (entry.safety === 'unsafe') return 'loading it with weights_only=False would run:'
  if (entry.safety === 'safe') return 'only names that rebuild tensors and plain containers'
  if (detail?.unsafe_globals?.length) return 'it names classes that nothing is known of:'
  return 'nothing was proved'
}

function Names({ names }: { names: readonly string[] }): JSX.Element {
  const [isWhole, setWhole] = useState(false)
  const few = 8
  return (
    <ul class="names">
      {(isWhole ? names : names.slice(0, few)).map((name) => (
        <li key={name}>
          <code>
            <Text value={name} limit={120} />
          </code>
        </li>
      ))}
      {names.length > few && (
        <li>
          <button type="button" class="button link" onClick={() => setWhole(!isWhole)}>
            {isWhole ? 'fewer' : `all ${formatNumber(names.length)}`}
          </button>
        </li>
      )}
    </ul>
  )
}

function Facts({ entry, detail }: Props): JSX.Element {
  const now = useNow(30_000)
  const origins = detail?.provenance ?? {}
  const epochs = at(detail?.metadata, 'training', 'max_epochs')
  const wandb = at(detail?.metadata, 'wandb_run_id')
  return (
    <Section title="Facts">
      <dl class="facts">
        <Fact name="experiment" origin={origins.exp_name}>
          {entry.exp_name !== null && (
            <Jump label="show the experiment" onClick={() => showFiltered({ exp_name: [entry.exp_name as string] })}>
              {entry.exp_name}
            </Jump>
          )}
        </Fact>
        <Fact name="run">{entry.run_id !== null && <Text value={entry.run_id} />}</Fact>
        <Fact name="architecture" origin={origins['model.architecture']}>
          {entry.architecture !== null && (
            <Jump label="show the architecture" onClick={() => showFiltered({ architecture: [entry.architecture as string] })}>
              {entry.architecture}
            </Jump>
          )}
        </Fact>
        <Fact name="backbone" origin={origins['model.encoder.model_name']}>
          {entry.backbone !== null && <Text value={entry.backbone} />}
        </Fact>
        <Fact name="epoch" origin={origins['training.epoch']}>
          {entry.epoch !== null && (
            <>
              {entry.epoch}
              {typeof epochs === 'number' && <span class="muted"> of {epochs}</span>}
            </>
          )}
        </Fact>
        <Fact name="step" origin={origins['training.global_step']}>
          {entry.global_step !== null && formatNumber(entry.global_step)}
        </Fact>
        <Fact name="chosen by" origin={origins['checkpointing.monitor']}>
          {entry.monitor !== null && (
            <>
              <Text value={entry.monitor} /> {entry.monitor_mode !== null && <span class="muted">({entry.monitor_mode})</span>}{' '}
              {entry.monitor_value !== null && <strong>{formatMetric(entry.monitor_value)}</strong>}
            </>
          )}
        </Fact>
        <Fact name="modified">
          <span title={formatMoment(entry.modified_at)}>
            {formatAge(entry.modified_at, now)} <span class="muted">· {localMoment(entry.modified_at)}</span>
          </span>
        </Fact>
        <Fact name="created" origin={origins.created_at}>
          {entry.created_at !== null && entry.created_at !== entry.modified_at && (
            <span title={formatMoment(entry.created_at)}>{localMoment(entry.created_at)}</span>
          )}
        </Fact>
        <Fact name="Lightning">{detail?.lightning_version && <Text value={detail.lightning_version} />}</Fact>
        <Fact name="W&B run" origin={origins.wandb_run_id}>
          {typeof wandb === 'string' && <Text value={wandb} />}
        </Fact>
        <Fact name="config">
          {entry.config_path !== null && (
            <span class="path">
              <Text value={entry.config_path} /> <CopyButton text={entry.config_path} what="path of the config" />
            </span>
          )}
        </Fact>
        <Fact name="metadata">{METADATA_WORDS[entry.metadata_source]}</Fact>
      </dl>
    </Section>
  )
}

const METADATA_WORDS: Readonly<Record<Entry['metadata_source'], string>> = {
  none: 'none yet',
  sidecar: 'in a sidecar by a person or a training',
  daemon: 'in a sidecar by ckptd',
  state: 'kept by the daemon alone, not in a file beside it',
}

function Model({ detail }: { detail: CheckpointDetail | null }): JSX.Element | null {
  const model = detail?.metadata?.model
  const rows = useMemo(() => flattenTree(model ?? null).filter((node) => !node.isBranch && node.value !== null), [model])
  const recognized = detail?.recognized ?? []
  if (rows.length === 0 && recognized.length === 0 && !detail?.model_class) return null
  return (
    <Section title="Model">
      <dl class="facts">
        {detail?.model_class && (
          <Fact name="class">
            <code>
              <Text value={detail.model_class} />
            </code>
          </Fact>
        )}
        {rows.map((node) => (
          <Fact key={node.path} name={node.path.replaceAll('.', ' ')} origin={detail?.provenance?.[`model.${node.path}`]}>
            <Text value={node.text} />
          </Fact>
        ))}
        {recognized.map(({ part, name, confidence, evidence }) => (
          <Fact key={part + name} name={`${part}, by its tensors`}>
            <span title={visible(evidence.join('; ')).slice(0, 600)}>
              <Text value={name} /> <span class="muted">{Math.round(confidence * 100)} % of what is expected</span>
            </span>
          </Fact>
        ))}
      </dl>
    </Section>
  )
}

function Identity({ entry, detail }: Props): JSX.Element {
  const values: [string, string | null | undefined][] = [
    ['path', entry.checkpoint_path],
    ['id', entry.id],
    ['weights', entry.content_id],
    ['archive', detail?.archive_id],
    ['file digest', detail?.digest],
  ]
  return (
    <Section title="Identity">
      <dl class="facts">
        {values.map(
          ([name, value]) =>
            value && (
              <Fact key={name} name={name}>
                <span class="path">
                  <code>
                    <Text value={value} />
                  </code>{' '}
                  <CopyButton text={value} what={name} />
                </span>
              </Fact>
            ),
        )}
        {entry.alias_of !== null && (
          <Fact name="link to">
            <Jump label="show what it is a link to" onClick={() => openDetail(entry.alias_of as string)}>
              {store.get(entry.alias_of)?.path ?? entry.alias_of}
            </Jump>
          </Fact>
        )}
      </dl>
      <User user={detail?.user} />
    </Section>
  )
}

/** What a person wrote into the sidecar that the schema does not know. */
function User({ user }: { user: CheckpointDetail['user'] }): JSX.Element | null {
  const rows = flattenTree(user ?? null).filter((node) => !node.isBranch)
  if (rows.length === 0) return null
  return (
    <>
      <h4>Notes in its sidecar</h4>
      <dl class="facts">
        {rows.slice(0, 100).map((node) => (
          <Fact key={node.path} name={node.path}>
            <Text value={node.text} />
          </Fact>
        ))}
      </dl>
    </>
  )
}

/** One fact; nothing where its value is not known. */
function Fact(props: { name: string; origin?: string | undefined; children: ComponentChildren }): JSX.Element | null {
  const { name, origin, children } = props
  if (children === null || children === false || children === undefined || children === '') return null
  return (
    <div class="fact">
      <dt>
        <bdi>{visible(clipped(name, 60))}</bdi>
      </dt>
      <dd>
        {children} <Origin of={origin} />
      </dd>
    </div>
  )
}

function Jump(props: { label: string; onClick: () => void; children: string }): JSX.Element {
  return (
    <button type="button" class="button link" title={props.label} onClick={props.onClick}>
      <bdi>{visible(clipped(props.children, 160))}</bdi>
    </button>
  )
}

function at(value: Plain | undefined, ...keys: string[]): Plain {
  let found: Plain | undefined = value
  for (const key of keys)
    found = found !== null && typeof found === 'object' && !Array.isArray(found) ? (found as Record<string, Plain>)[key] : null
  return found ?? null
}

/** In the reader's zone alone; the other half is in the title. */
function localMoment(time: string): string {
  return formatMoment(time).split(' (')[0] ?? time
}
