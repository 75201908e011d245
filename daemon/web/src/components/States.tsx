/** What the page says when it is loading, cut off, signed out, empty, or when nothing matches. */

import { useEffect, useState } from 'preact/hooks'

import type { Feed } from '../feed'
import { formatNumber, secondsUntil } from '../format'
import { loadingInWords } from './Status'
import { useApp, useObservable } from '../hooks'
import { connection, NO_FILTERS, update } from '../state'
import { store } from '../store'
import { isFiltered } from '../store/filters'
import { visible } from '../visible'
import type { PageConfig } from '../wire'
import { filtersInWords } from './Chips'
import { CopyButton } from './CopyButton'
import { useStore } from './useStore'

/** A thin bar while a snapshot comes in; its numbers stand beside the word in the header. */
export function Loading() {
  const { status, received, expected } = useObservable(connection, (value) => value)
  const [isSlow, setSlow] = useState(false)
  const waits = status === 'loading' && received === 0
  useEffect(() => {
    if (!waits) return setSlow(false)
    const timer = setTimeout(() => setSlow(true), 10_000)
    return () => clearTimeout(timer)
  }, [waits])
  if (status !== 'loading') return null
  const total = expected === null ? null : Math.max(expected, received)
  return (
    <div class="loading">
      <div class={`track ${total === null ? 'unknown' : ''}`} role="progressbar" aria-label="loading checkpoints" aria-valuemin={0}
        aria-valuemax={total ?? undefined} aria-valuenow={total === null ? undefined : received}
        aria-valuetext={loadingInWords(received, expected)}>
        <div class="done" style={{ width: `${total ? (100 * received) / total : 0}%` }} />
      </div>
      {isSlow && waits && (
        <span class="slow muted">ckptd has not answered yet. A browser opens six connections to one host: close other windows of this page.</span>
      )}
    </div>
  )
}

/** The rows stay; what is wrong and when it is tried again stands above them. */
export function Banner({ feed }: { feed: Feed }) {
  const { status, reason, retryAt } = useObservable(connection, (value) => value)
  const [nowMs, setNow] = useState(Date.now())
  const isCounting = status === 'waiting' && retryAt !== null
  useEffect(() => {
    if (!isCounting) return
    setNow(Date.now())
    const timer = setInterval(() => setNow(Date.now()), 250)
    return () => clearInterval(timer)
  }, [isCounting, retryAt])
  if (status === 'signed-out') {
    return (
      <div class="banner invalid" role="alert">
        <span>You are signed out. Open the link that <code>ckptd serve</code> prints, or run <code>ckptd token</code> on its machine.</span>
        <a class="button" href="./">Sign in</a>
      </div>
    )
  }
  if (status !== 'waiting') return null
  const attempt = retryAt === null ? '' : secondsUntil(retryAt, nowMs) ? `Next attempt in ${secondsUntil(retryAt, nowMs)} s.` : 'Trying…'
  return (
    <div class="banner warn" role="status">
      <span>Not live: {visible(reason ?? '')}. What is shown may be out of date. <span aria-live="off">{attempt}</span></span>
      <button type="button" class="button" onClick={feed.retry}>Retry now</button>
    </div>
  )
}

/** Instead of rows, where there are none. */
export function Nothing({ config }: { config: PageConfig }) {
  useStore()
  const filters = useApp((state) => state.filters)
  const { status, sweep } = useObservable(connection, (value) => value)
  if (store.length > 0) return null
  if (store.total > 0 && isFiltered(filters)) {
    return (
      <div class="nothing">
        <h2>No checkpoint matches</h2>
        <p>None of {formatNumber(store.total)} matches {filtersInWords(filters)}.</p>
        <button type="button" class="button primary" onClick={() => update({ filters: NO_FILTERS })}>Clear all filters</button>
      </div>
    )
  }
  if (status === 'loading' || status === 'signed-out') return null
  if (sweep) return <div class="nothing"><h2>Looking…</h2><p>{formatNumber(sweep.done)} of {formatNumber(sweep.total)} paths.</p></div>
  return <Empty config={config} />
}

function Empty({ config }: { config: PageConfig }) {
  const root = config.roots[0] ?? 'outputs'
  const command = `python -c ${quoted(`import torch; torch.save({"state_dict": torch.nn.Linear(2, 2).state_dict()}, ${pythonText(`${root}/first.ckpt`)})`)}`
  return (
    <div class="nothing">
      <h2>No checkpoints yet</h2>
      <p>ckptd watches</p>
      <ul>{config.roots.map((path) => <li key={path}><code>{visible(path)}</code></li>)}</ul>
      <p>and shows every <code>.ckpt</code> there a moment after it is written. A training does that, or</p>
      <p class="command"><code>{visible(command)}</code><CopyButton text={command} name="copy the command" tabIndex={0} /></p>
    </div>
  )
}

/** For a POSIX shell. */
function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`
}

/** A JSON string is a Python string. */
function pythonText(text: string): string {
  return JSON.stringify(text)
}
