/** The header: search, filters, how many match, how the page is fed, and what the reader prefers. One line. */

import { useEffect, useRef, useState } from 'preact/hooks'

import type { Feed } from '../feed'
import { formatNumber } from '../format'
import { unfinished } from '../found'
import { useApp, useObservable } from '../hooks'
import { openHealth, setFilters, showTable, update } from '../state'
import { store } from '../store'
import { isFiltered } from '../store/filters'
import { parseSearch } from '../store/search'
import { visible } from '../visible'
import { FilterMenu } from './FilterMenu'
import { Icon } from './Icon'
import { Status } from './Status'
import { useStore } from './useStore'
import { ViewMenu } from './ViewMenu'

export function Header({ feed, metric }: { feed: Feed; metric: string | null }) {
  const view = useApp((state) => state.view)
  return (
    <header class="header-bar">
      <h1 class="brand">
        <button type="button" class="button plain" onClick={showTable} aria-current={view === 'table' ? 'page' : undefined}>
          ckptd<span class="sr-only"> checkpoints</span>
        </button>
      </h1>
      {view === 'table' && <Search />}
      {view === 'table' && <FilterMenu />}
      {view === 'table' && <Count />}
      {view === 'table' && <Unfinished />}
      <span class="spacer" />
      <Status feed={feed} />
      <button type="button" class="button plain" aria-label="Health" aria-current={view === 'health' ? 'page' : undefined}
        onClick={() => (view === 'health' ? showTable() : openHealth())}>
        <Icon name="pulse" /> <span class="word">Health</span>
      </button>
      <ViewMenu metric={metric} />
      <button type="button" class="button plain icon help" aria-label="keys" title="keys (?)"
        onClick={() => update({ helpOpen: true })}>?</button>
    </header>
  )
}

function Search() {
  const q = useApp((state) => state.filters.q)
  const input = useRef<HTMLInputElement>(null)
  const [text, setText] = useState(q)
  useEffect(() => {
    if (input.current !== document.activeElement || q === '') setText(q)
  }, [q])
  const { problems } = parseSearch(text)
  const type = (value: string): void => {
    setText(value)
    setFilters({ q: value })
  }
  return (
    <div class="search">
      <Icon name="search" />
      <input ref={input} id="search" class="input" type="search" value={text} placeholder="Search, e.g. dbnet hmean>0.8"
        aria-label="search checkpoints" aria-describedby={problems.length ? 'search-problem' : undefined} title={SYNTAX}
        autocomplete="off" spellcheck={false} onInput={(event) => type(event.currentTarget.value)} />
      {problems.length > 0 && <p id="search-problem" class="search-problem" role="status">{visible(problems[0] ?? '')}</p>}
    </div>
  )
}

const SYNTAX = `words in path, name, experiment, architecture, config; all must occur
resn*   the beginning of a word
"batch norm"   these characters
architecture:dbnet  health:invalid  finding:archive.*
hmean>0.8  epoch:10..20  size<10MB  modified>2025-10-11
-last   not`

/** "12,500 of 100,000". */
function Count() {
  useStore()
  const filtered = useApp((state) => isFiltered(state.filters))
  const [length, total] = [store.length, store.total]
  return (
    <span class="count numeric" title={filtered ? 'checkpoints that match, of all' : 'all checkpoints'}>
      {filtered ? `${formatNumber(length)} of ${formatNumber(total)}` : formatNumber(total)}
    </span>
  )
}

/** Whether the count is all there is to a search: what only configs say comes from the daemon, page by page. */
function Unfinished() {
  const state = useObservable(unfinished, (value) => value)
  if (state === null) return null
  if (state.status === 'failed') {
    return <span class="count unfinished" title={visible(state.reason)}>configs were not searched</span>
  }
  return (
    <span class="count numeric unfinished" title="what only configs say is found by the daemon">
      and in configs: {formatNumber(state.done)} of {formatNumber(state.total)}…
    </span>
  )
}
