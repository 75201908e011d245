/** What screen readers are told, politely, and seldom enough that they can follow. */

import { formatNumber, quarterOf } from './format'
import { app, connection, Observable } from './state'
import type { RowStore } from './store/rows'

/** The text of the page's live region. */
export const announcement = new Observable('')

/** Say something. The same text twice is said twice. */
export function announce(text: string): void {
  announcement.set(announcement.get() === text ? `${text}\u00a0` : text)
}

/** Least time between two counts of a filter that is being typed, and between two of what is new. */
const COUNT_MS = 700
const NEWS_MS = 10_000

/** Tell of the loading in steps of 25 %, of the connection, of what a filter leaves and of what is new. */
export function announceAll(store: RowStore): void {
  let told = -1
  let status = connection.get().status
  connection.subscribe(({ status: now, received, expected }) => {
    if (now === 'loading' && expected !== null) {
      const quarter = quarterOf(received, expected)
      if (quarter > told) announce(`${quarter} percent of ${formatNumber(expected)} checkpoints loaded`)
      told = quarter
    }
    if (now === status) return
    if (now === 'live' && status === 'loading') announce(`${formatNumber(received)} checkpoints, live`) // the store shows them a moment later
    if (now === 'live' && status === 'waiting') announce('connected again')
    if (now === 'waiting') announce('the connection is lost, what is shown may be out of date')
    if (now === 'signed-out') announce('you are signed out')
    if (now === 'loading') told = -1
    status = now
  })
  announceCounts(store)
  announceNews(store)
}

function announceCounts(store: RowStore): void {
  let { filters } = app.get()
  let timer: ReturnType<typeof setTimeout> | undefined
  app.subscribe((state) => {
    if (state.filters === filters) return
    filters = state.filters
    clearTimeout(timer)
    timer = setTimeout(() => announce(`${formatNumber(store.length)} of ${formatNumber(store.total)}`), COUNT_MS)
  })
}

function announceNews(store: RowStore): void {
  let told = 0
  let at = -Infinity
  store.onChange(() => {
    const { added } = store.held ? store.waiting : { added: 0 }
    if (added > told && performance.now() - at >= NEWS_MS) {
      at = performance.now()
      announce(`${formatNumber(added)} new`)
    }
    told = added
  })
}
