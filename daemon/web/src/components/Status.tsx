/** How the page is fed, in a dot and a word. */

import type { Feed } from '../feed'
import { formatMoment, formatNumber } from '../format'
import { useObservable } from '../hooks'
import { connection, type ConnectionStatus } from '../state'

const WORDS: Record<ConnectionStatus, string> = {
  loading: 'Loading',
  live: 'Live',
  fetched: 'Fetched',
  waiting: 'Offline',
  hidden: 'Paused',
  'signed-out': 'Signed out',
}

/** "38,000 of 100,000". */
export function loadingInWords(received: number, expected: number | null): string {
  return expected === null ? formatNumber(received) : `${formatNumber(received)} of ${formatNumber(Math.max(expected, received))}`
}

export function Status({ feed }: { feed: Feed }) {
  const { status, completeAsOf, sweep, received, expected } = useObservable(connection, (value) => value)
  const title = completeAsOf === null ? WORDS[status] : `nothing that was on disk at ${formatMoment(completeAsOf)} is missing`
  return (
    <span class={`status ${status}`} title={title}>
      <span class="dot" aria-hidden="true" />
      <span class="word">{sweep ? `Looking at ${Math.floor((100 * sweep.done) / Math.max(1, sweep.total))} %` : WORDS[status]}</span>
      {status === 'loading' && <span class="numeric">{loadingInWords(received, expected)}</span>}
      {status === 'fetched' && <button type="button" class="button link" onClick={feed.retry}>fetch again</button>}
    </span>
  )
}
