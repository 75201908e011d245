/**
 * What only the daemon can find: words in configs and hyper-parameters, which entries do not have. The page filters by
 * what it knows at once; a moment after the last key it asks the daemon's `q`, and shows what that finds as well.
 */

import { askJson } from './api'
import { app, connection } from './state'
import type { Found } from './store/filters'
import type { RowStore } from './store/rows'
import { parseSearch } from './store/search'
import type { ListAnswer } from './wire'

/** After the last key. */
const TYPING_MS = 300
/** Least time until the same is asked again because the catalog has changed. */
const AGAIN_MS = 3_000
/** `MAX_PAGE_SIZE` of daemon/http/parameters.py. */
const PAGE = 1_000
/** Whoever types a word that more checkpoints have is not done typing; what the page finds by itself is shown. */
const MOST = 5_000

/** Ask the daemon for whatever is searched for, from now on. Returns what ends it. */
export function followSearch(store: RowStore): () => void {
  let asked = ''
  let revision = -1
  let timer: ReturnType<typeof setTimeout> | undefined
  let ending = new AbortController()
  const ask = async (): Promise<void> => {
    timer = undefined
    ending.abort()
    ending = new AbortController()
    const { signal } = ending
    // Without an answer the page shows what it finds by itself; what is wrong with the connection, the stream says.
    const found = await find(asked, signal).catch(() => null)
    if (signal.aborted || found === null) return
    revision = found.revision
    store.setFound(found)
  }
  const schedule = (delayMs: number): void => {
    clearTimeout(timer)
    timer = setTimeout(() => void ask(), delayMs)
  }
  const follow = (): void => {
    const q = app.get().filters.q.trim()
    if (q === asked) return
    asked = q
    ending.abort()
    clearTimeout(timer)
    timer = undefined
    if (isWorthAsking(q)) schedule(TYPING_MS)
  }
  const renew = (): void => {
    const { status, revision: latest } = connection.get()
    if (timer === undefined && status === 'live' && latest > revision && isWorthAsking(asked)) schedule(AGAIN_MS)
  }
  follow()
  const ends = [app.subscribe(follow), connection.subscribe(renew)]
  return () => {
    for (const end of ends) end()
    clearTimeout(timer)
    ending.abort()
  }
}

function isWorthAsking(q: string): boolean {
  const { terms, problems } = parseSearch(q)
  return q.length > 1 && terms.length > 0 && problems.length === 0
}

/** All that a search finds; null where it is too much. */
async function find(q: string, signal: AbortSignal): Promise<Found | null> {
  const ids = new Set<string>()
  const query = { q, include_invalid: 'true' }
  const { total, revision } = await page({ ...query, page_size: '1' }, signal)
  if (total > MOST) return null
  for (let after: string | null = ''; after !== null; ) {
    const answer: ListAnswer = await page({ ...query, page_size: String(PAGE), ...(after && { after }) }, signal)
    for (const { id } of answer.checkpoints) ids.add(id)
    after = answer.next
  }
  return { q, ids, revision }
}

function page(query: Readonly<Record<string, string>>, signal: AbortSignal): Promise<ListAnswer> {
  return askJson(`checkpoints?${new URLSearchParams(query).toString()}`, { signal })
}
