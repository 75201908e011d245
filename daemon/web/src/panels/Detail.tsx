/** Everything known of one checkpoint, in a panel beside the table; reloads by itself when the checkpoint changes. */

import type { JSX } from 'preact'
import { useEffect, useLayoutEffect, useRef } from 'preact/hooks'

import type { CheckpointDetail, Gone } from '../answers'
import { ApiError, fetchDetail } from '../api'
import { formatAge, formatMoment } from '../format'
import { useApp } from '../hooks'
import { type DetailTab, openDetail, update } from '../state'
import { store } from '../store'
import { clipped, clippedName, visible } from '../visible'
import type { Entry } from '../wire'
import { Icon } from '../components/Icon'
import { HEALTH_LOOKS } from '../components/looks'
import { Loading } from './Loading'
import { Metrics } from './Metrics'
import { Overview } from './Overview'
import { Badge, CopyButton, Failure, SAFETY_LOOKS, Section, useNow, useRequest, useRow } from './parts'
import { Settings } from './Settings'
import { useResize } from './resize'
import { Tensors } from './Tensors'

const TABS = [
  ['overview', 'Overview'],
  ['metrics', 'Metrics'],
  ['settings', 'Settings'],
  ['tensors', 'Tensors'],
  ['load', 'Load'],
] as const satisfies readonly (readonly [DetailTab, string])[]

export function Detail({ id, onClose }: { id: string; onClose: () => void }): JSX.Element {
  const row = useRow(id)
  const loaded = useRequest(id, row?.revision ?? null, (signal) => fetchDetail(id, signal))
  const detail = loaded.value
  // The row is newer or as new: it is pushed, the detail is fetched.
  const entry: Entry | null = row ?? detail
  const panel = useRef<HTMLElement>(null)
  const { width, handle } = useResize(panel)
  useFocus(panel, id)
  const gone = loaded.error instanceof ApiError && row === undefined ? loaded.error.gone : null
  const onKeyDown = (event: KeyboardEvent): void => {
    if (event.key !== 'Escape' || event.defaultPrevented) return
    event.preventDefault()
    event.stopPropagation()
    onClose()
  }
  return (
    // Escape closes it wherever the focus is
    <aside
      ref={panel}
      class="detail"
      aria-label="details of a checkpoint"
      aria-busy={loaded.isLoading && detail === null}
      style={{ '--detail-width': `${width}px` }}
      onKeyDown={onKeyDown}
    >
      {handle}
      <Heading entry={entry} id={id} isGone={gone !== null} onClose={onClose} />
      {gone ? (
        <GoneNotice gone={gone} />
      ) : entry ? (
        <Tabs entry={entry} detail={detail} loaded={loaded} />
      ) : loaded.error ? (
        <Failure error={loaded.error} onRetry={loaded.reload} />
      ) : (
        <p class="muted panel-body" role="status">
          loading…
        </p>
      )}
    </aside>
  )
}

/** The end of a name is what tells it from others: an experiment's name and a file's, each up to 255 bytes, are whole. */
const MAX_NAME = 600
const MAX_PATH = 2_000

function Heading(props: { entry: Entry | null; id: string; isGone: boolean; onClose: () => void }): JSX.Element {
  const { entry, id, isGone } = props
  return (
    <header class="detail-head">
      <div class="detail-title">
        <h2 tabIndex={-1}>
          <bdi>{visible(clipped(entry?.display_name ?? id, MAX_NAME))}</bdi>
        </h2>
        <button type="button" class="button plain icon" aria-label="close details" title="close (Esc)" onClick={props.onClose}>
          <Icon name="cross" />
        </button>
      </div>
      {entry && (
        <>
          <div class="detail-path">
            <code title={visible(entry.checkpoint_path)}>
              <bdi>{visible(clipped(entry.path, MAX_PATH))}</bdi>
            </code>
            <CopyButton text={entry.checkpoint_path} what="path" />
          </div>
          {!isGone && (
            <div class="detail-badges">
              <Badge {...HEALTH_LOOKS[entry.health]} word={entry.health} />
              {entry.safety !== 'safe' && <Badge {...SAFETY_LOOKS[entry.safety]} word={safetyWord(entry)} />}
            </div>
          )}
        </>
      )}
    </header>
  )
}

interface TabsProps {
  readonly entry: Entry
  readonly detail: CheckpointDetail | null
  readonly loaded: { readonly error: Error | null; readonly reload: () => void }
}

function Tabs(props: TabsProps): JSX.Element {
  const tab = useApp((state) => state.detailTab)
  const list = useRef<HTMLDivElement>(null)
  const choose = (detailTab: DetailTab): void => update({ detailTab })
  const onKeyDown = (event: KeyboardEvent): void => {
    const at = TABS.findIndex(([name]) => name === tab)
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: TABS.length - 1 }[event.key]
    if (to === undefined) return
    event.preventDefault()
    event.stopPropagation()
    choose((TABS[(to + TABS.length) % TABS.length] as (typeof TABS)[number])[0])
    list.current?.querySelectorAll<HTMLElement>('[role=tab]')[(to + TABS.length) % TABS.length]?.focus()
  }
  return (
    <>
      <div ref={list} class="tabs" role="tablist" aria-label="parts of the details" onKeyDown={onKeyDown}>
        {TABS.map(([name, title]) => (
          <button
            key={name}
            type="button"
            role="tab"
            id={`detail-tab-${name}`}
            aria-selected={tab === name}
            aria-controls="detail-body"
            tabIndex={tab === name ? 0 : -1}
            onClick={() => choose(name)}
          >
            {title}
          </button>
        ))}
      </div>
      {/* it scrolls, also by keys */}
      <div id="detail-body" class={`panel-body tab-${tab}`} role="tabpanel" aria-labelledby={`detail-tab-${tab}`} tabIndex={0}>
        {props.loaded.error && <Failure error={props.loaded.error} onRetry={props.loaded.reload} />}
        <TabBody tab={tab} entry={props.entry} detail={props.detail} />
      </div>
    </>
  )
}

function TabBody({ tab, entry, detail }: { tab: DetailTab; entry: Entry; detail: CheckpointDetail | null }): JSX.Element | null {
  const primary = useApp(({ metric }) => metric) ?? store.usualMetric()
  switch (tab) {
    case 'overview':
      return <Overview entry={entry} detail={detail} />
    case 'metrics':
      return <Metrics entry={entry} detail={detail} primary={primary} />
    case 'tensors':
      return <Tensors id={entry.id} version={entry.revision} />
    case 'settings':
      return detail && <BothSettings detail={detail} />
    case 'load':
      return detail && <Loading detail={detail} />
  }
}

function BothSettings({ detail }: { detail: CheckpointDetail }): JSX.Element {
  const { hyper_parameters: saved, config } = detail
  return (
    <>
      <Section title="Hyper-parameters" aside={<span class="muted">as the checkpoint holds them</span>}>
        {saved && Object.keys(saved).length > 0 ? (
          <Settings key={`${detail.id}-saved`} label="hyper-parameters" value={saved} />
        ) : (
          <p class="muted">the checkpoint holds none</p>
        )}
      </Section>
      <Section title="Config" aside={<span class="muted">{detail.config_path && visible(clipped(detail.config_path, 200))}</span>}>
        {config !== null && config !== undefined ? (
          <Settings key={`${detail.id}-config`} label="config" value={config} />
        ) : (
          <p class="muted">{detail.has_config ? 'the config cannot be read; the findings say why' : 'no config was found beside it'}</p>
        )}
      </Section>
    </>
  )
}

function GoneNotice({ gone }: { gone: Gone }): JSX.Element {
  const now = useNow(30_000)
  const moved = gone.moved_to
  const age = formatAge(gone.deleted_at, now)
  return (
    <div class="panel-body" role="status">
      <p class="notice warn">
        <Badge icon="warning" word="gone" tone="warn" /> <bdi>{visible(clippedName(gone.path, 300))}</bdi> was {gone.reason}{' '}
        <span title={formatMoment(gone.deleted_at)}>{age === 'now' ? 'just now' : age}</span>.
      </p>
      {moved && (
        <p>
          <button type="button" class="button" onClick={() => openDetail(moved)}>
            show it where it is now{store.get(moved) ? `: ${visible(clippedName(store.get(moved)?.path ?? '', 120))}` : ''}
          </button>
        </p>
      )}
      <p class="muted">If a file comes back under this name, it is shown here again.</p>
    </div>
  )
}

function safetyWord({ safety }: Entry): string {
  return safety === 'unsafe' ? 'unsafe to load' : 'safety unknown'
}

/** The heading has the focus when the panel opens, and whoever had it before gets it back. */
function useFocus(panel: { current: HTMLElement | null }, id: string): void {
  const opener = useRef<Element | null>(null)
  useLayoutEffect(() => {
    opener.current = document.activeElement
    panel.current?.querySelector<HTMLElement>('h2')?.focus({ preventScroll: true })
    return () => {
      const before = opener.current
      const isLost = document.activeElement === null || document.activeElement === document.body
      if (isLost && before instanceof HTMLElement && before.isConnected) before.focus({ preventScroll: true })
    }
  }, [panel])
  useEffect(() => {
    // Another checkpoint begins at its top.
    panel.current?.querySelector('#detail-body')?.scrollTo(0, 0)
    void id
  }, [panel, id])
}
