/** The page: header, whatever is looked at, the tray; keys; what is told to screen readers. */

import { useEffect, useRef, useState } from 'preact/hooks'

import { announcement } from '../announce'
import type { Feed } from '../feed'
import { useApp, useObservable } from '../hooks'
import { commandOf, isTypingIn } from '../keys'
import { app, closeDetail, openCompare, update } from '../state'
import { store } from '../store'
import type { PageConfig } from '../wire'
import { Chips } from './Chips'
import { Header } from './Header'
import { Lazy } from './Lazy'
import { Banner, Loading, Nothing } from './States'
import { Table, type TableHandle } from './Table'
import { Tray } from './Tray'
import { useStore } from './useStore'

/** How often relative times are drawn anew. */
const CLOCK_MS = 20_000

export function App({ config, feed }: { config: PageConfig; feed: Feed }) {
  const view = useApp((state) => state.view)
  const detailId = useApp((state) => state.detailId)
  const compareIds = useApp((state) => state.compareIds)
  const helpOpen = useApp((state) => state.helpOpen)
  const metric = usePrimaryMetric()
  const nowMs = useClock()
  const table = useRef<TableHandle | null>(null)
  const closePanel = (): void => {
    closeDetail()
    table.current?.focus()
  }
  useKeys(table)
  useEffect(() => {
    document.title = `${view === 'table' ? 'Checkpoints' : view === 'compare' ? 'Compare' : 'Health'} · ckptd`
  }, [view])
  return (
    <>
      <Header feed={feed} metric={metric} />
      <Banner feed={feed} />
      <Loading />
      <main>
        {view === 'table' && <Chips />}
        {view === 'table' && <Table metric={metric} nowMs={nowMs} handle={table} />}
        {view === 'table' && <Nothing config={config} />}
        {view === 'table' && detailId !== null && <Lazy pick={({ Detail }) => Detail} id={detailId} onClose={closePanel} />}
        {view === 'compare' && <Lazy pick={({ Compare }) => Compare} ids={compareIds} />}
        {view === 'health' && <Lazy pick={({ Health }) => Health} />}
      </main>
      {view === 'table' && <Tray />}
      {helpOpen && <Lazy pick={({ Help }) => Help} onClose={() => update({ helpOpen: false })} />}
      <Announcer />
    </>
  )
}

/** The metric that was chosen, else the one that most checkpoints were chosen by. */
function usePrimaryMetric(): string | null {
  useStore()
  const chosen = useApp((state) => state.metric)
  const usual = store.usualMetric()
  return chosen ?? usual
}

function useClock(): number {
  const [nowMs, setNow] = useState(Date.now())
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), CLOCK_MS)
    return () => clearInterval(timer)
  }, [])
  return nowMs
}

/** Said politely, in a region of its own that is always there. */
function Announcer() {
  const text = useObservable(announcement, (value) => value)
  return <div class="sr-only" role="status" aria-live="polite">{text}</div>
}

function useKeys(table: { current: TableHandle | null }): void {
  useEffect(() => {
    const press = (event: KeyboardEvent): void => {
      if (event.defaultPrevented || document.querySelector('dialog[open], [aria-modal="true"]')) return
      if (obey(event, table.current)) event.preventDefault()
    }
    document.addEventListener('keydown', press)
    return () => document.removeEventListener('keydown', press)
  }, [table])
}

/** Whether a key was one of the page's. */
function obey(event: KeyboardEvent, table: TableHandle | null): boolean {
  const { target } = event
  if (event.key === 'Escape') return escape(target, table)
  const isInTable = target instanceof Element && target.closest('.scroller') !== null
  if (isInTable && (event.key === 'ArrowLeft' || event.key === 'ArrowRight')) {
    table?.run(event.key === 'ArrowLeft' ? 'left' : 'right')
    return true
  }
  const command = commandOf(event, { isTyping: isTypingIn(target), isInTable })
  switch (command) {
    case null:
      return false
    case 'search':
      document.getElementById('search')?.focus()
      return true
    case 'help':
      update({ helpOpen: true })
      return true
    case 'compare':
      openCompare([...app.get().selected])
      return true
    case 'close':
      return false
    default:
      if (table === null || app.get().view !== 'table') return false
      table.focus()
      table.run(command)
      return true
  }
}

function escape(target: EventTarget | null, table: TableHandle | null): boolean {
  const { detailId, view } = app.get()
  if (target instanceof HTMLElement && target.id === 'search') table?.focus()
  else if (detailId !== null) {
    closeDetail()
    table?.focus()
  } else if (view !== 'table') update({ view: 'table' })
  else return false
  return true
}
